"""Parquet with image files in its cells: Major TOM Core (a GeoTIFF a band), Hugging Face's images, and plain columns.

One row group is read at a time, of it only the columns that are needed; from a
local disk not even a row group has to fit the memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.archive.clouds import is_mask
from curation.archive.decode import looks_like_image
from curation.archive.names import is_preview
from curation.archive.sample import Member, RawSample, Rejection, Wanted
from curation.archive.sidecar import NESTED
from curation.errors import AccessError

if TYPE_CHECKING:
    from curation.archive.shards import Shard
    from curation.archive.tables import Sieve
    from curation.config import ArchiveConfig
    from curation.storage import Folder

KEYS = ("key", "id", "sample_id", "unique_identifier")  # columns that name samples, the first that is there
MAJOR_TOM = ("grid_cell", "product_id")  # in Major TOM the two together do
BATCH = 16  # rows of a row group that are decoded at once
PROBED = 16  # row groups that are looked into until every column has shown what it holds
_BUFFER = 1 << 20  # bytes of a column that are read at once from a local file


def read_parquet(
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
) -> Iterator[RawSample | Rejection]:
    """The rows of a file in their order, numbered from 0.

    A row group that cannot be read is one rejection for what is left of it.

    Raises:
        AccessError: fewer bytes came than the listing said.
    """
    try:
        file = _open(folder, shard)
        columns = _choose(file, settings)
    except _FAULTS as error:
        yield Rejection("", 0, "read", "DamagedShard", f"the Parquet file cannot be read: {_damage(error)}")
        return
    if isinstance(columns, str):
        yield Rejection("", 0, "read", "WrongSchema", columns)
        return
    rows = _Rows(columns)
    places = None if only is None else _places(file, columns, only)
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        wanted = None if places is None else places.get(group, set())
        if sieve is not None and wanted is None:
            wanted = _allowed(file, columns, group, start, sieve)
        if wanted is None or wanted:
            yield from rows.read(file, group, start, count, wanted)
        start += count


# what pyarrow raises on damaged files; of the disk's own errors an OSError has a number
_FAULTS = (pa.ArrowException, ValueError, KeyError, UnicodeError, NotImplementedError, OverflowError, OSError)


@dataclass(frozen=True)
class _Columns:
    """Which columns are read, and what for.

    Attributes:
        images: those that hold pixels.
        masks: those that say which pixels are clouded or valid.
        key: those whose values, joined by ``_``, are the key; empty: the row's number is.
        said: those that say something of the sample.
        labels: a label's names by its number, where Hugging Face's metadata have them.
    """

    images: tuple[str, ...]
    masks: tuple[str, ...]
    key: tuple[str, ...]
    said: tuple[str, ...]
    labels: dict[str, list[str]]

    @property
    def every(self) -> list[str]:
        """All of them."""
        return list(dict.fromkeys((*self.images, *self.masks, *self.key, *self.said)))


def _open(folder: Folder, shard: Shard) -> pq.ParquetFile:
    assert shard.file is not None
    if not folder.local:
        return pq.ParquetFile(folder.open(shard.file), pre_buffer=True)  # a row group's columns in few requests
    with folder.open(shard.file) as file:
        size = file.seek(0, 2)
    if size != shard.file.size:
        raise AccessError(f"{folder.public(shard.path)}: {size} bytes came where the listing said {shard.file.size}")
    return pq.ParquetFile(folder.full(shard.path), pre_buffer=False, buffer_size=_BUFFER)  # page by page


def _damage(error: Exception) -> str:
    """What is wrong with the file; the error itself where that is not the file's fault."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return " ".join(str(error).split())[:200] or type(error).__name__


# which columns


def _choose(file: pq.ParquetFile, settings: ArchiveConfig) -> _Columns | str:
    """The columns to read; or why there is nothing to read."""
    types = {item.name: _plain(item.type) for item in file.schema_arrow}
    files = [name for name, kind in types.items() if _holds_files(kind)]
    if settings.members is not None:
        images = list(settings.members)
        missing = [name for name in images if name not in files]
        if missing:
            return f"it has no column {missing[0]} of image files (archive.members); it has {_listed(types)}"
    else:
        images = _probe(file, [name for name in files if not is_mask(name, settings.clouds) and not is_preview(name)])
        if not images:
            return f"no column holds image files; it has {_listed(types)}: name those in archive.members"
    key: tuple[str, ...] = tuple(name for name in KEYS if name in types and _is_scalar(types[name]))[:1]
    if not key and all(name in types and _is_scalar(types[name]) for name in MAJOR_TOM):
        key = MAJOR_TOM
    wanted = {*NESTED, *(settings.fields or {}).values()}
    said = [name for name, kind in types.items() if name not in files and (_is_scalar(kind) or name in wanted)]
    masks = [name for name in files if is_mask(name, settings.clouds) and name not in images]
    return _Columns(tuple(images), tuple(masks), key, tuple(said), _label_names(file))


def _listed(types: dict[str, Any]) -> str:
    text = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    return text if len(text) < 300 else text[:300] + "…"


def _plain(kind: pa.DataType) -> pa.DataType:
    return _plain(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _holds_files(kind: pa.DataType) -> bool:
    """Whether cells are bytes, or Hugging Face's ``{bytes, path}``."""
    return _is_binary(kind) or (
        pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(_plain(kind.field("bytes").type))
    )


def _is_scalar(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_scalar(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(text or types.is_primitive(kind) or types.is_decimal(kind))


def _probe(file: pq.ParquetFile, names: list[str]) -> list[str]:
    """Those of some columns whose first cell that is not null begins as an image does."""
    found: dict[str, bool] = {}
    for group in range(min(file.num_row_groups, PROBED)):
        open_ones = [name for name in names if name not in found]
        if not open_ones:
            break
        try:
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=open_ones, use_threads=False):
                for name in open_ones:
                    cell = next((cell for cell in _files(batch.column(name)).to_pylist() if cell is not None), None)
                    if cell is not None and name not in found:
                        found[name] = looks_like_image(cell)
                break
        except _FAULTS as error:
            _damage(error)  # the group is rejected when its turn comes
    return [name for name in names if found.get(name)]


def _label_names(file: pq.ParquetFile) -> dict[str, list[str]]:
    """The classes of Hugging Face's ``ClassLabel`` columns."""
    try:
        features = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(one["names"]) for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


# rows


def _files(column: pa.Array) -> pa.Array:
    """The bytes of each cell."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_struct(column.type):
        return _files(column.flatten()[column.type.get_field_index("bytes")])
    return column


def _values(column: pa.Array) -> list[Any]:
    """The values of a column in Python's own types, as sidecars would have them."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind, types = column.type, pa.types
    if types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    elif types.is_date(kind):
        column = column.cast(pa.timestamp("us"))
    elif types.is_decimal(kind):
        column = column.cast(pa.float64())
    return [None if isinstance(value, float) and math.isnan(value) else value for value in column.to_pylist()]


@dataclass
class _Rows:
    """Makes samples of rows, and numbers them."""

    columns: _Columns
    index: int = 0
    keys: set[str] = field(default_factory=set)

    def read(
        self, file: pq.ParquetFile, group: int, start: int, count: int, only: set[int] | None
    ) -> Iterator[RawSample | Rejection]:
        """The rows of one group; ``start`` is the number of its first row in the file."""
        done = 0
        try:
            names = self.columns.every
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=names, use_threads=False):
                files = {name: _files(batch.column(name)) for name in (*self.columns.images, *self.columns.masks)}
                said = {name: _values(batch.column(name)) for name in {*self.columns.said, *self.columns.key}}
                for row in range(batch.num_rows):
                    if only is None or done in only:
                        cells = {name: column[row].as_py() for name, column in files.items()}
                        about = {name: values[row] for name, values in said.items()}
                        yield self._row(cells, about, (group, done), start + done)
                    done += 1
        except _FAULTS as error:
            message = f"row group {group} cannot be read from its row {done} of {count} on: {_damage(error)}"
            yield Rejection("", self._next(), "read", "DamagedShard", message)

    def _row(
        self, cells: dict[str, bytes | None], said: dict[str, Any], position: tuple[int, int], number: int
    ) -> RawSample | Rejection:
        columns = self.columns
        parts = [said[name] for name in columns.key]
        key = _key(columns, said, number)
        if any(part is None for part in parts):
            return self._reject(f"{number:09d}", "BadName", f"the column {columns.key[parts.index(None)]} is null")
        if key in self.keys:
            return self._reject(key, "DuplicateKey", "the key came before in this file")
        self.keys.add(key)
        for name in columns.images:
            if not cells[name]:
                kind = "MissingMember" if cells[name] is None else "EmptyMember"
                return self._reject(key, kind, f"{name} is null" if cells[name] is None else f"{name} has no bytes")
        for name, names in columns.labels.items():
            label = said.get(name)
            if isinstance(label, int) and 0 <= label < len(names):
                said[name] = names[label]
        data = {name: cell for name, cell in cells.items() if cell}
        members = [Member(name, None, len(cell)) for name, cell in data.items()]
        return RawSample(key, self._next(), members, data, said=said, position=position)

    def _reject(self, key: str, kind: str, message: str) -> Rejection:
        return Rejection(key, self._next(), "read", kind, message)

    def _next(self) -> int:
        self.index += 1
        return self.index - 1


def _allowed(file: pq.ParquetFile, columns: _Columns, group: int, start: int, sieve: Sieve) -> set[int] | None:
    """The rows of a group that pass a sieve, by what is said of them; ``None`` where that cannot be read."""
    names = list(dict.fromkeys((*columns.key, *columns.said)))
    try:
        table = file.read_row_group(group, columns=names, use_threads=False)
        values = {name: _values(table.column(name).combine_chunks()) for name in names}
    except _FAULTS as error:
        _damage(error)  # it is rejected when its turn comes
        return None
    count = file.metadata.row_group(group).num_rows
    said = [{name: column[row] for name, column in values.items()} for row in range(count)]
    keys = [_key(columns, one, start + row) for row, one in enumerate(said)]
    return {row for row, passes in enumerate(sieve.allowed(keys, said)) if passes}


def _key(columns: _Columns, said: dict[str, Any], number: int) -> str:
    """A row's key: its key columns' values, else its number."""
    return "_".join(str(said[name]) for name in columns.key) if columns.key else f"{number:09d}"


def _places(file: pq.ParquetFile, columns: _Columns, only: Sequence[Wanted]) -> dict[int, set[int]]:
    """The rows of each group that are wanted: by position, else by key."""
    found: dict[int, set[int]] = {}
    for wanted in only:
        if wanted.position is not None:
            found.setdefault(wanted.position[0], set()).add(wanted.position[1])
    keys = {wanted.key for wanted in only if wanted.position is None}
    start = 0
    for group in range(file.num_row_groups if keys else 0):
        count = file.metadata.row_group(group).num_rows
        if columns.key:
            table = file.read_row_group(group, columns=list(columns.key), use_threads=False)
            parts = [_values(table.column(name).combine_chunks()) for name in columns.key]
            names = ["_".join(map(str, row)) for row in zip(*parts, strict=True)]
        else:
            names = [f"{start + row:09d}" for row in range(count)]
        rows = {row for row, name in enumerate(names) if name in keys}
        if rows:
            found.setdefault(group, set()).update(rows)
        start += count
    return found
