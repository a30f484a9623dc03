"""Where the samples' labels are said: in the catalog, or in a column of a table beside the archive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.archive.tables import Table, columns_by_table, lookup
from curation.catalog.store import CatalogStore


@dataclass(frozen=True)
class Labels:
    """The labels that ``score.label`` or ``distill.label`` means.

    Attributes:
        column: its name.
        table: that has the column; ``None``: the catalog.
    """

    column: str = "label"
    table: Table | None = None

    @classmethod
    def of(cls, column: str, tables: Sequence[Table], key: str = "score.label") -> "Labels":
        """Those of a column of the catalog (``label``) or of one of the tables; ``key`` is the setting that says which.

        Raises:
            RequestError: no table has it.
        """
        if column == "label":
            return cls()
        ((table, _),) = columns_by_table(tables, [column], key).items()
        return cls(column, table)

    @property
    def identity(self) -> Any:
        """What tells these labels from others, as JSON; ``None``: the catalog's."""
        return self.table and [self.column, self.table.identity]

    def read(self, store: CatalogStore, shard: str) -> pa.Array:
        """The label of each row of a shard, as text, or null; an empty text is none."""
        column = self.column if self.table is None else self.table.on
        found = store.read(shard, [column])[column]
        if self.table is not None:
            found = lookup(self.table, [self.column], found)[self.column]
        texts = found.combine_chunks().cast(pa.string())
        return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
