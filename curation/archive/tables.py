"""Tables that say more of the samples than the archive does: CSV or Parquet, joined by key or source id.

A table is read where it is used, only the columns that are wanted, once a
process. Its columns never enter the catalog, so that a new table encodes
nothing anew.
"""

import difflib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.archive.filter import compile_filter, names_in
from curation.archive.sample import TILE_SUFFIX, RawSample, Rejection
from curation.archive.settings import ArchiveConfig
from curation.archive.sidecar import gather, in_name, source_id
from curation.errors import BadSample, RequestError
from curation.storage import FileInfo, Folder, file_name, is_local, local_path

HELD = 4  # tables that a process keeps
CHUNK = 8 << 20  # bytes hashed at once
SIFTED = 32  # samples looked up at once
JOINS = ("key", "source_id")


@dataclass(frozen=True)
class Table:
    """A table beside the archive.

    Attributes:
        folder: that it lies in.
        file: its name, size and version there.
        key: its column that names samples, or several whose values joined by ``_`` do; no name may come twice.
        on: what that column holds: keys or source ids.
        schema: of its columns.
        digest: of its bytes.
    """

    folder: Folder = field(compare=False)
    file: FileInfo
    key: tuple[str, ...]
    on: str
    schema: pa.Schema = field(compare=False)
    digest: str

    @property
    def name(self) -> str:
        """The file's, as it may be printed."""
        return file_name(self.folder.full(self.file.path))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its values, wherever it lies."""
        return {"path": self.name, "key": list(self.key), "on": self.on, "digest": self.digest}


def open_tables(entries: Sequence[Any] | None, storage: dict[str, Any] | None = None) -> tuple[Table, ...]:
    """The tables of ``archive.tables``: each is read once for its digest, and not held.

    Args:
        entries: mappings of ``path`` (a URL), ``key`` (its column, or several) and ``on`` (key or source_id).
        storage: per protocol, fsspec options.

    Raises:
        RequestError: an entry is malformed, names no table, or a column that the table lacks.
    """
    return tuple(_open(entry, storage) for entry in entries or ())


def _open(entry: Any, storage: dict[str, Any] | None) -> Table:
    if not isinstance(entry, dict) or set(entry) != {"path", "key", "on"} or entry["on"] not in JOINS:
        raise RequestError(
            f"archive.tables: {entry} is not {{path: URL, key: column or [columns], on: key or source_id}}"
        )
    path, key = str(entry["path"]), entry["key"]
    columns = tuple(map(str, key)) if isinstance(key, list) else (str(key),)
    head, _, name = (local_path(path) if is_local(path) else path).rpartition("/")
    folder = Folder(head or "/", storage)
    try:
        file = folder.info(name)
        if folder.local and os.path.isdir(folder.full(name)):
            raise IsADirectoryError
        with folder.open(file) as source:
            digest = hashlib.blake2b(digest_size=16)
            while data := source.read(CHUNK):
                digest.update(data)
        table = Table(folder, file, columns, entry["on"], _schema(folder, file), digest.hexdigest())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise RequestError(f"archive.tables: there is no file {folder.public(name)}") from error
    for column in columns or ("",):
        if column not in table.schema.names:
            known = ", ".join(table.schema.names)
            raise RequestError(f"archive.tables: {table.name} has no column {column!r}; it has {known}")
    return table


@contextmanager
def _reading(folder: Folder, file: FileInfo) -> Iterator[tuple[BinaryIO, bool]]:
    """The open file, and whether it is Parquet."""
    try:
        with folder.open(file) as source:
            parquet = source.read(4) == b"PAR1"
            source.seek(0)
            yield source, parquet
    except pa.ArrowException as error:
        said = str(error).splitlines()[0]
        raise RequestError(f"archive.tables: {folder.public(file.path)} is no Parquet or CSV table: {said}") from error


def _schema(folder: Folder, file: FileInfo) -> pa.Schema:
    with _reading(folder, file) as (source, parquet):
        return pq.read_schema(source) if parquet else pa.csv.open_csv(source).schema


class _Held(NamedTuple):
    """A table in memory: the hashes of its keys, sorted; the row of each; some columns."""

    ids: NDArray[np.bytes_]
    rows: NDArray[np.int64]
    values: pa.Table


@lru_cache(HELD)
def _held(table: Table, columns: tuple[str, ...]) -> _Held:
    """Read a table's keys and columns.

    Raises:
        RequestError: the table has changed since it was opened; a key comes twice.
    """
    if table.folder.info(table.file.path) != table.file:
        raise RequestError(f"archive.tables: {table.name} has changed since the run began: run it again")
    wanted = list(dict.fromkeys((*table.key, *columns)))
    with _reading(table.folder, table.file) as (source, parquet):
        if parquet:
            read = pq.read_table(source, columns=wanted)
        else:
            texts = {name: pa.string() for name in table.key}  # 007 is a key, not a number
            options = pa.csv.ConvertOptions(include_columns=wanted, column_types=texts)
            read = _without_empty_texts(pa.csv.read_csv(source, convert_options=options))
    names = pc.binary_join_element_wise(*(read[name].cast(pa.string()) for name in table.key), "_")
    ids, rows = _hashes(names)
    order = np.argsort(ids)
    ids, rows = ids[order], rows[order]
    if (twice := np.flatnonzero(ids[1:] == ids[:-1])).size:
        name = names[int(rows[twice].min())].as_py()
        key = "_".join(table.key)
        raise RequestError(f"archive.tables: {table.name}: {key} {name!r} comes twice: give each one row")
    return _Held(ids, rows, read.select(list(columns)).combine_chunks())


def _without_empty_texts(read: pa.Table) -> pa.Table:
    """Nothing between two commas is no value, whereas the text NA may be Namibia."""
    for i, column in enumerate(read.columns):
        if pa.types.is_string(column.type):
            read = read.set_column(i, read.field(i), pc.if_else(pc.equal(column, ""), None, column))
    return read


def _hashes(names: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """128 bits of each name that there is, and its row."""
    texts = names.cast(pa.string()).to_pylist()
    rows = np.array([i for i, text in enumerate(texts) if text is not None], np.int64)
    data = b"".join(hashlib.blake2b(texts[i].encode(), digest_size=16).digest() for i in rows.tolist())
    return np.frombuffer(data, "S16"), rows


def lookup(table: Table, columns: Sequence[str], names: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The rows of some columns for some keys or source ids; null where the table does not name them.

    A tile that the table does not name has the values of its image.

    Raises:
        RequestError: the table has changed since it was opened; a key comes twice in it.
    """
    held = _held(table, tuple(columns))
    found = _find(held, names)
    missing = np.flatnonzero(found < 0)
    if table.on == "key" and len(missing):
        tiles = names.take(pa.array(missing)).cast(pa.string())
        found[missing] = _find(held, pc.replace_substring_regex(tiles, TILE_SUFFIX, ""))
    return held.values.take(pa.array(found, mask=found < 0))


def _find(held: _Held, names: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """The table's row of each name, -1 where there is none."""
    found = np.full(len(names), -1, np.int64)
    ids, rows = _hashes(names)
    if len(ids) and len(held.ids):
        place = np.minimum(np.searchsorted(held.ids, ids), len(held.ids) - 1)
        found[rows] = np.where(held.ids[place] == ids, held.rows[place], -1)
    return found


def table_of(tables: Sequence[Table], column: str) -> Table | None:
    """The first table that has a column."""
    return next((table for table in tables if column in table.schema.names), None)


def columns_by_table(tables: Sequence[Table], columns: Sequence[str], what: str) -> dict[Table, tuple[str, ...]]:
    """Which columns each table gives.

    Raises:
        RequestError: no table has one of them; ``what`` says who asks.
    """
    wanted: dict[Table, tuple[str, ...]] = {}
    for column in columns:
        table = table_of(tables, column)
        if table is None:
            known = [name for table in tables for name in table.schema.names]
            near = difflib.get_close_matches(column, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"they have {', '.join(known) or 'none'}"
            raise RequestError(f"{what}: archive.tables have no column {column!r}; {hint}")
        wanted[table] = (*wanted.get(table, ()), column)
    return wanted


class TableFilter:
    """Which samples an expression over the tables' columns allows, before anything of them is read.

    A sample that a table does not name, or of which a value that decides is missing, is not allowed.

    Args:
        tables: see `open_tables`.
        expression: see `archive.filter`.

    Attributes:
        digest: of what decides: the expression, and the bytes of the tables that it looks at.

    Raises:
        RequestError: the expression is malformed, or names a column that no table has.
    """

    def __init__(self, tables: Sequence[Table], expression: str) -> None:
        self.tables, self.expression = tuple(tables), expression
        self.columns = columns_by_table(self.tables, names_in(expression), "archive.filter")
        fields = [table.schema.field(name) for table, names in self.columns.items() for name in names]
        if not any(pa.types.is_null(field.type) for field in fields):  # the first lines of a CSV do not tell them all
            compile_filter(expression, pa.schema(fields))
        looked_at = [repr(sorted(table.identity.items())) for table in self.columns]
        self.digest = hashlib.blake2b("\n".join([expression, *looked_at]).encode(), digest_size=16).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return TableFilter, (self.tables, self.expression)

    def allowed(
        self, keys: pa.Array | pa.ChunkedArray, source_ids: pa.Array | pa.ChunkedArray | None = None
    ) -> NDArray[np.bool_]:
        """Which samples may be read, bool (n,), by their keys and source ids, string (n,)."""
        names = {"key": keys, "source_id": pa.nulls(len(keys), pa.string()) if source_ids is None else source_ids}
        rows = pa.table({"": np.arange(len(keys))})
        for table, columns in self.columns.items():
            found = lookup(table, columns, names[table.on])
            for name in columns:
                rows = rows.append_column(name, found[name])
        there = np.zeros(len(keys), bool)
        there[rows.filter(compile_filter(self.expression, rows.schema))[""].to_numpy()] = True
        return there


def open_filter(tables: Sequence[Table], expression: str | None) -> TableFilter | None:
    """The filter of ``archive.filter``; ``None`` where there is none.

    Raises:
        RequestError: see `TableFilter`.
    """
    return TableFilter(tables, expression) if expression else None


class Sieve:
    """A filter over the samples of one shard: lets pass what is allowed, and counts what is not.

    Args:
        filter: which samples are allowed.
        settings: whose ``fields`` and ``name_pattern`` tell a sample's source.

    Attributes:
        refused: samples that were not allowed.
        first: key of the first of them.
    """

    def __init__(self, filter: TableFilter, settings: ArchiveConfig) -> None:
        self.filter, self.names, self.pattern = filter, settings.fields, settings.name_pattern
        self.refused, self.first = 0, ""

    @property
    def by_key(self) -> bool:
        """Whether a sample's key is all that it takes."""
        return all(table.on == "key" for table in self.filter.columns)

    def allowed(self, keys: Sequence[str], said: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which of several samples may be read; those that may not are counted."""
        if self.pattern:
            said = [{**in_name(key, self.pattern), **one} for key, one in zip(keys, said, strict=True)]
        sources = [source_id(one, self.names) for one in said]
        found = self.filter.allowed(pa.array(keys, pa.string()), pa.array(sources, pa.string())).tolist()
        if not self.refused and False in found:
            self.first = keys[found.index(False)]
        self.refused += found.count(False)
        return [bool(one) for one in found]

    def sift(self, items: Iterable[RawSample | Rejection]) -> Iterator[RawSample | Rejection]:
        """What is allowed of a stream, looked up some samples at a time; rejections pass."""
        items = iter(items)
        while some := list(itertools.islice(items, SIFTED)):
            raws = [item for item in some if isinstance(item, RawSample)]
            found = iter(self.allowed([raw.key for raw in raws], [gathered(raw.data, raw.said) for raw in raws]))
            yield from (item for item in some if not isinstance(item, RawSample) or next(found))


def gathered(data: Mapping[str, bytes], said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What sidecars say too; a broken one is quarantined where it is decoded."""
    try:
        return gather(data, said)
    except BadSample:
        return said
