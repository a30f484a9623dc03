"""Parquet with image files in its cells: Major TOM Core (a GeoTIFF a band), Hugging Face's images, and plain columns.

One row group is read at a time, of it only the columns that are needed; from a
local disk not even a row group has to fit the memory. From an object store the
column chunks of several small row groups come together.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from curation.archive.clouds import is_mask
from curation.archive.decode import looks_like_image
from curation.archive.names import is_preview
from curation.archive.sample import Effort, Member, RawSample, Rejection, Wanted
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.sidecar import NESTED
from curation.archive.tables import Sieve
from curation.errors import AccessError, BadSample
from curation.storage import BLOCK, GAP, Folder, bundled, coalesce

KEYS = ("key", "id", "sample_id", "unique_identifier")  # columns that name samples, the first that is there
MAJOR_TOM = ("grid_cell", "product_id")  # in Major TOM the two together do
BATCH = 16  # rows of a row group that are decoded at once
MANY = 4096  # the same where no column of files is read
PROBED = 16  # row groups that are looked into until every column has shown what it holds
_BUFFER = 1 << 20  # bytes of a column that are read at once from a local file, and to see what a column holds

T = TypeVar("T")


def read_parquet(
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
    bare: bool = False,
) -> Iterator[RawSample | Rejection]:
    """The rows of a file in their order, numbered from 0.

    A row group that cannot be read is one rejection for what is left of it. ``bare``: no column of files is read.

    Raises:
        AccessError: fewer bytes came than the listing said.
    """
    try:
        file = _File(folder, shard)
        columns = _choose(file.plain, settings)
    except _FAULTS as error:
        yield Rejection("", 0, "read", "DamagedShard", f"the Parquet file cannot be read: {_damage(error)}")
        return
    if isinstance(columns, str):
        yield Rejection("", 0, "read", "WrongSchema", columns)
        return
    if bare:
        columns = replace(columns, images=(), masks=())
    rows = _Rows(file, columns)
    groups: Iterator[tuple[int, set[int] | None]] = ((group, None) for group in range(len(file.starts)))
    if only is not None:
        groups = (
            (group, wanted)
            for group, wanted in sorted(_places(file, columns, only).items())
            if group < len(file.starts)
        )
    elif sieve is not None:
        groups = _allowed(file, columns, sieve)
    for run in file.together(groups, columns.every):
        yield from rows.read(*run)


def survey_parquet(folder: Folder, shard: Shard, settings: ArchiveConfig) -> Effort:
    """What reading a file takes: its footer, a look at what its columns hold, and the chunks of those that are read.

    Raises:
        BadSample: it makes no samples.
    """
    try:
        file = _File(folder, shard)
        columns = _choose(file.plain, settings)
    except _FAULTS as error:
        raise BadSample("read", "DamagedShard", _damage(error)) from error
    if isinstance(columns, str):
        raise BadSample("read", "WrongSchema", columns)
    runs = file.runs(((group, None) for group in range(len(file.starts))), columns.every)
    spans = [span for _, ranges in runs for span in coalesce(ranges, GAP)]
    if settings.members is None:
        _, looked = next(file.runs([(0, None)], columns.images), (None, []))
        spans += _looked_at([(start, min(stop, start + _BUFFER)) for start, stop in looked], file.listed.size - BLOCK)
    spans.append((0, min(BLOCK, file.listed.size)))
    if file.metadata.serialized_size + 8 > BLOCK:
        spans.append((0, file.metadata.serialized_size))
    return Effort(file.rows, sum(stop - start for start, stop in spans), len(spans) + 1)


def _looked_at(ranges: Sequence[tuple[int, int]], tail: int) -> list[tuple[int, int]]:
    """What is fetched where ranges are read one by one: short ones by blocks, but not the end, which has come."""
    long = [(start, stop) for start, stop in ranges if stop - start >= BLOCK]
    short = [range(start // BLOCK, -(-stop // BLOCK)) for start, stop in ranges if stop - start < BLOCK]
    blocks = sorted({block * BLOCK for one in short for block in one if block * BLOCK < tail})
    return long + [(start, min(start + BLOCK, tail)) for start in blocks]


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


class _File:
    """A Parquet file.

    Attributes:
        plain: from which any column is read page by page.
        starts: the number of each row group's first row.

    Raises:
        AccessError: it is not of its listed size.
    """

    def __init__(self, folder: Folder, shard: Shard) -> None:
        assert shard.file is not None
        self.folder, self.listed = folder, shard.file
        source: Any = folder.open(shard.file, random=True)
        if folder.local:
            with source:
                size = source.seek(0, 2)
            if size != shard.file.size:
                text = f"{size} bytes came where the listing said {shard.file.size}"
                raise AccessError(f"{folder.public(shard.path)}: {text}")
            source = folder.full(shard.path)
        self.plain = pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER)
        self.metadata = self.plain.metadata
        counts = (self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups))
        *self.starts, self.rows = itertools.accumulate(counts, initial=0)

    def together(
        self, groups: Iterable[tuple[int, T]], columns: Sequence[str]
    ) -> Iterator[tuple[pq.ParquetFile, int, T]]:
        """Row groups, each with the file to read these columns of it from; a remote one's bytes have come by then."""
        if self.folder.local:
            for group, more in groups:
                yield self.plain, group, more
            return
        for run, ranges in self.runs(groups, columns):
            source = self.folder.open(self.listed, random=True, ahead=ranges)
            file = pq.ParquetFile(source, metadata=self.metadata, pre_buffer=False)
            for group, more in run:
                yield file, group, more

    def runs(
        self, groups: Iterable[tuple[int, T]], columns: Sequence[str]
    ) -> Iterator[tuple[list[tuple[int, T]], list[tuple[int, int]]]]:
        """Row groups that are fetched together, and where their pages of these columns lie."""
        leaves = [i for i in range(self.metadata.num_columns) if self._is_of(i, columns)]
        for run in bundled(groups, lambda item: sum(stop - start for start, stop in self._chunks(item[0], leaves))):
            yield run, [chunk for group, _ in run for chunk in self._chunks(group, leaves)]

    def _is_of(self, leaf: int, columns: Sequence[str]) -> bool:
        return self.metadata.schema.column(leaf).path.partition(".")[0] in {name.partition(".")[0] for name in columns}

    def _chunks(self, group: int, leaves: Sequence[int]) -> list[tuple[int, int]]:
        """Where the pages of some columns of a row group lie."""
        found = []
        for leaf in leaves:
            chunk = self.metadata.row_group(group).column(leaf)
            start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
            found.append((start, min(start + max(0, chunk.total_compressed_size), self.listed.size)))
        return found


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

    file: _File
    columns: _Columns
    index: int = 0
    keys: set[str] = field(default_factory=set)

    def read(self, source: pq.ParquetFile, group: int, only: set[int] | None) -> Iterator[RawSample | Rejection]:
        """The rows of one group, or some of them."""
        done, start, count = 0, self.file.starts[group], self.file.metadata.row_group(group).num_rows
        try:
            names = self.columns.every
            size = BATCH if self.columns.images else MANY
            for batch in source.iter_batches(size, row_groups=[group], columns=names, use_threads=False):
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


def _allowed(file: _File, columns: _Columns, sieve: Sieve) -> Iterator[tuple[int, set[int] | None]]:
    """The row groups of which rows pass a sieve, and which; ``None`` where what is said of them cannot be read."""
    names = list(dict.fromkeys((*columns.key, *columns.said)))
    for source, group, start in file.together(enumerate(file.starts), names):
        try:
            values = _read_columns(source, group, names)
        except _FAULTS as error:
            _damage(error)  # it is rejected when its turn comes
            yield group, None
            continue
        count = file.metadata.row_group(group).num_rows
        said = [{name: column[row] for name, column in values.items()} for row in range(count)]
        keys = [_key(columns, one, start + row) for row, one in enumerate(said)]
        rows = {row for row, passes in enumerate(sieve.allowed(keys, said)) if passes}
        if rows:
            yield group, rows


def _read_columns(source: pq.ParquetFile, group: int, names: Sequence[str]) -> dict[str, list[Any]]:
    """The values of some columns of a row group."""
    table = source.read_row_group(group, columns=list(names), use_threads=False)
    return {name: _values(table.column(name).combine_chunks()) for name in names}


def _key(columns: _Columns, said: dict[str, Any], number: int) -> str:
    """A row's key: its key columns' values, else its number."""
    return "_".join(str(said[name]) for name in columns.key) if columns.key else f"{number:09d}"


def _places(file: _File, columns: _Columns, only: Sequence[Wanted]) -> dict[int, set[int]]:
    """The rows of each group that are wanted: by position, else by key."""
    found: dict[int, set[int]] = {}
    for wanted in only:
        if wanted.position is not None:
            found.setdefault(wanted.position[0], set()).add(wanted.position[1])
    keys = {wanted.key for wanted in only if wanted.position is None}
    for source, group, start in file.together(enumerate(file.starts) if keys else (), columns.key):
        if columns.key:
            parts = _read_columns(source, group, columns.key).values()
            names = ["_".join(map(str, row)) for row in zip(*parts, strict=True)]
        else:
            names = [f"{start + row:09d}" for row in range(file.metadata.row_group(group).num_rows)]
        rows = {row for row, name in enumerate(names) if name in keys}
        if rows:
            found.setdefault(group, set()).update(rows)
    return found
