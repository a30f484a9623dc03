"""Vectors that somebody else has computed, looked up by key; no pixels are read.

Of several vectors of one key ``encoder.several`` says what they are. Major
TOM publishes its own so: a row a window of a patch, with ``grid_cell``,
``product_id``, ``pixel_bbox`` and ``embedding``.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.archive.sample import Sample, Window
from curation.encoders.base import Artefact, Config, Floats
from curation.errors import BadSample, RequestError
from curation.storage import FileInfo, Folder, listing_digest, public_url

LAST = "\U0010ffff"  # behind all names
SEVERAL = ("refuse", "mean", "tiles")
SHARD = "shard"  # a column of this name tells the equal keys of different shards apart


Found = list[tuple[Window | None, NDArray[Any]]]  # the vectors of a key, each with the window that it is of
Vectors = list[tuple[Window | None, Floats | BadSample]]


class Precomputed:
    """The encoder ``precomputed``: :meth:`lookup` in the place of ``prepare`` and ``encode``."""

    name = "precomputed"
    needs_pixels = False

    def __init__(self, config: Config, dim: int) -> None:
        self.batch, self.dim, self.several = int(config["batch"]), dim, str(config["several"])
        self._table = _open(config)
        if self._table.dim != dim:
            raise RequestError(
                f"encoder.path={_shown(config, 'path')} has vectors of {self._table.dim} numbers, but this catalog was "
                f"begun with {dim}: take a fresh workspace"
            )

    @property
    def prepare(self) -> Callable[[Sample], NDArray[Any]]:
        """There are no tiles."""
        raise TypeError("precomputed vectors are looked up, not encoded")

    def encode(self, tiles: NDArray[Any]) -> Floats:
        """There are no tiles."""
        raise TypeError("precomputed vectors are looked up, not encoded")

    def lookup(self, shard: str, key: str, window: Window | None = None) -> Vectors:
        """The vectors of a sample, ``(dim,)`` float32, unit length: one, or with ``several=tiles`` one a window.

        Args:
            shard: the shard's name, ``<root>/<path below it>``.
            key: the sample's key; of a tile that a reader cut, its image's.
            window: that tile.

        Returns:
            pairs of window (``None``: all that was asked for) and vector; a tile whose vector has no direction (zero,
            or not finite) comes with the reason.

        Raises:
            BadSample: there is none, it has no direction, or a window stands twice.
        """
        if self.several != "tiles":
            name = key + (window.suffix if window else "")
            return [(window, self._mean(name, [vector for _, vector in self._table.get(shard, name)]))]
        found = self._table.get(shard, key)
        windows = [own for own, _ in found]
        if len(set(windows)) < len(windows):
            raise BadSample("encode", "NoVector", f"two vectors for one window of key {key!r}: name more key columns")
        chosen = [pair for pair in found if window in (None, pair[0])]
        if not chosen:
            raise BadSample("encode", "NoVector", f"no vector for key {key!r}" + (f", {window}" if window else ""))
        return [(own, _unit_or_reason(key, vector)) for own, vector in sorted(chosen, key=_by_place)]

    def _mean(self, key: str, vectors: Sequence[NDArray[Any]]) -> Floats:
        """The direction of the mean of their directions."""
        if not vectors:
            raise BadSample("encode", "NoVector", f"no vector for key {key!r}")
        units = [_unit(key, vector) for vector in vectors]
        return units[0] if len(units) == 1 else _unit(key, np.mean(units, axis=0))


def _unit(key: str, vector: NDArray[Any]) -> Floats:
    vector = np.asarray(vector, np.float32)
    norm = float(np.linalg.norm(vector))
    if not 0 < norm < np.inf:
        raise BadSample("encode", "NoVector", f"the vector for key {key!r} is zero or not finite")
    return np.asarray(vector / np.float32(norm), np.float32)


def _unit_or_reason(key: str, vector: NDArray[Any]) -> Floats | BadSample:
    try:
        return _unit(key, vector)
    except BadSample as error:
        return error


def _by_place(pair: tuple[Window | None, Any]) -> tuple[int, int]:
    return (pair[0].row, pair[0].column) if pair[0] else (0, 0)


def fit(config: Config) -> Artefact:
    """Nothing is fitted; the artefact holds the vectors' length. Their files are checked here, before any work."""
    return {"dim": np.array([_open(config).dim], np.int32)}


def build(
    config: Config, artefact: Artefact, bands: tuple[str, ...], dtype: str, device: str, threads: int
) -> Precomputed:
    """The vectors, opened."""
    return Precomputed(config, int(artefact["dim"][0]))


def versions(config: Config) -> Callable[[str], str]:
    """Gives the version of the files that a shard's vectors come from: a row is made anew when that changes."""
    files = _files(config, "path")
    spans = [("", LAST)] * len(files)
    if not str(config["path"]).endswith(".npy"):
        spans = [_shards_in(folder, file) for folder, file in files]
    if config["keys"]:
        files, spans = files + _files(config, "keys"), [*spans, ("", LAST)]

    def version(shard: str) -> str:
        return listing_digest(
            file for (_, file), (first, last) in zip(files, spans, strict=True) if first <= shard <= last
        )

    return version


@dataclass(frozen=True)
class _Columns:
    """Which columns of a Parquet file are read.

    Attributes:
        keys: whose values, joined by ``_``, are the key.
        vector: lists of floats.
        window: ``[first row, first column, row after the last, column after the last]`` in pixels, which is what Major
            TOM writes as ``pixel_bbox``; ``None``: keys are unique, or their vectors are averaged.
    """

    keys: tuple[str, ...]
    vector: str
    window: str | None
    several: str

    @classmethod
    def of(cls, config: Config) -> "_Columns":
        keys, several = config["key_column"], str(config["several"])
        if several not in SEVERAL:
            raise RequestError(f"encoder.several={several}: choose {', '.join(SEVERAL)}")
        window = str(config["window_column"]) if several == "tiles" else None
        return cls((keys,) if isinstance(keys, str) else tuple(keys), str(config["vector_column"]), window, several)

    @property
    def every(self) -> list[str]:
        """All of them."""
        return [*self.keys, self.vector, *([self.window] if self.window else [])]


class _Whole:
    """Vectors by key, all in memory (an ``.npy`` on a local disk stays there)."""

    def __init__(
        self,
        keys: Sequence[str],
        vectors: NDArray[Any],
        where: str,
        several: str,
        windows: NDArray[np.int64] | None = None,
    ) -> None:
        self.rows: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            self.rows.setdefault(key, []).append(row)
        if several == "refuse" and len(self.rows) < len(keys):
            raise RequestError(
                f"{where}: a key stands twice; add a column {SHARD!r} that tells the shards apart, name more columns "
                "in encoder.key_column, or say with encoder.several what several vectors of a key are"
            )
        self.vectors, self.dim, self.windows = vectors, vectors.shape[1], windows

    def get(self, shard: str, key: str) -> Found:
        return [(self._window(row), self.vectors[row]) for row in self.rows.get(key, [])]

    def _window(self, row: int) -> Window | None:
        if self.windows is None:
            return None
        top, left, bottom, right = self.windows[row].tolist()
        return Window(top, left, bottom - top, right - left)


class _ByShard:
    """Vectors with their shard beside them; only one shard's are in memory."""

    def __init__(self, files: list[tuple[Folder, FileInfo]], columns: _Columns) -> None:
        self.files = [(folder, file, *_shards_in(folder, file)) for folder, file in files]
        self.columns = columns
        self.shard: str | None = None
        self.current: _Whole | None = None
        with files[0][0].open(files[0][1]) as source:
            first = next(pq.ParquetFile(source).iter_batches(1, columns=[columns.vector]), None)
        if first is None:
            raise RequestError(f"{files[0][0].public(files[0][1].path)} has no rows: remove it, or write it again")
        self.dim = _matrix(first.column(0), columns.vector).shape[1]
        self.nothing = np.zeros((0, self.dim), np.float32)

    def get(self, shard: str, key: str) -> Found:
        if shard != self.shard:
            parts = []
            for folder, file, first, last in self.files:
                if first <= shard <= last:
                    with folder.open(file) as source:
                        parts.append(pq.read_table(source, columns=self.columns.every, filters=[(SHARD, "==", shard)]))
            table = pa.concat_tables(parts) if parts else None
            nothing = _Whole([], self.nothing, shard, self.columns.several)
            self.current = _whole(table, self.columns, shard, self.dim) if table else nothing
            self.shard = shard
        assert self.current is not None
        return self.current.get(shard, key)


def _shards_in(folder: Folder, file: FileInfo) -> tuple[str, str]:
    """The first and last shard name in a file, by its footer; everything where the footer does not say."""
    with folder.open(file) as source:
        metadata = pq.read_metadata(source)
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]  # of leaves: structs have several
    if SHARD not in names:
        return "", LAST
    column = names.index(SHARD)
    groups = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
    if not groups or any(group is None or not group.has_min_max for group in groups):
        return "", LAST
    return min(group.min for group in groups), max(group.max for group in groups)


def _open(config: Config) -> _Whole | _ByShard:
    """The vectors that the config names.

    Raises:
        RequestError: no such file or column, or keys and rows do not match.
    """
    files, columns = _files(config, "path"), _Columns.of(config)
    if str(config["path"]).endswith(".npy"):
        return _open_npy(config, *files[0])
    try:
        with files[0][0].open(files[0][1]) as source:
            schema = pq.read_schema(source)
        for name in columns.every:
            if name not in schema.names:
                raise RequestError(f"{_shown(config, 'path')} has no column {name!r}, but {', '.join(schema.names)}")
        if SHARD in schema.names:
            return _ByShard(files, columns)
        parts = []
        for folder, file in files:
            with folder.open(file) as source:
                parts.append(pq.read_table(source, columns=columns.every))
        return _whole(pa.concat_tables(parts), columns, _shown(config, "path"))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RequestError(f"encoder.path={_shown(config, 'path')} is not readable as Parquet: {error}") from error


def _whole(table: pa.Table, columns: _Columns, where: str, dim: int = 0) -> _Whole:
    table = table.filter(pc.is_valid(table[columns.vector]))
    vectors = _matrix(table[columns.vector], columns.vector) if table.num_rows else np.zeros((0, dim), np.float32)
    names = [table[name].cast(pa.string()) for name in columns.keys]
    keys = names[0] if len(names) == 1 else pc.binary_join_element_wise(*names, "_")
    windows = _boxes(table[columns.window], columns.window) if columns.window else None
    return _Whole(keys.to_pylist(), vectors, where, columns.several, windows)


def _boxes(column: pa.ChunkedArray, name: str) -> NDArray[np.int64]:
    """Windows as ``(rows, 4)``."""
    wrong = RequestError(f"column {name!r} must hold windows as [row, column, row after, column after], in pixels")
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or column.null_count or pc.any(pc.not_equal(pc.list_value_length(column), 4)).as_py():
        raise wrong
    boxes = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    if boxes.dtype.kind not in "iu" or (boxes[:, :2] < 0).any() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise wrong
    return np.asarray(boxes, np.int64)


def _matrix(column: Any, name: str) -> NDArray[Any]:
    """A list column without nulls as ``(rows, dim)``."""
    chunks = [chunk for chunk in getattr(column, "chunks", [column]) if len(chunk)]
    lengths = {pc.list_value_length(chunk)[0].as_py() for chunk in chunks}
    wrong = RequestError(f"column {name!r} must hold lists of floats, all of one length")
    if len(lengths) != 1 or lengths & {0, None}:
        raise wrong
    (dim,) = lengths
    if any(pc.any(pc.not_equal(pc.list_value_length(chunk), dim)).as_py() for chunk in chunks):
        raise wrong
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) for chunk in chunks]
    if any(part.dtype.kind != "f" for part in parts):
        raise wrong
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _open_npy(config: Config, folder: Folder, file: FileInfo) -> _Whole:
    path = _shown(config, "path")
    if config["several"] == "tiles":
        raise RequestError(f"encoder.path={path}: the windows of encoder.several=tiles stand in Parquet only")
    if not config["keys"]:
        raise RequestError(f"encoder.path={path} needs encoder.keys: a text file with one key a line")
    try:
        source: Any = folder.full(file.path) if folder.local else io.BytesIO(folder.read(file.path))
        vectors = np.load(source, mmap_mode="r" if folder.local else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RequestError(f"encoder.path={path} is no array of numbers: {error}") from error
    where, names = _files(config, "keys")[0]
    keys = where.read(names.path).decode("utf-8", "surrogateescape").splitlines()
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(keys) != len(vectors):
        raise RequestError(
            f"encoder.path={path} has shape {vectors.shape} and dtype {vectors.dtype} for {len(keys)} keys; "
            "give one row of floats a key"
        )
    return _Whole(keys, vectors, _shown(config, "keys"), str(config["several"]))


def _files(config: Config, name: str) -> list[tuple[Folder, FileInfo]]:
    """The files behind ``encoder.path`` or ``encoder.keys``, each with the folder it is read through.

    Raises:
        RequestError: none was named, or there is none.
    """
    if not config[name]:
        raise RequestError(f"encoder=precomputed needs encoder.{name}")
    storage = config.get("storage")
    folder = Folder(str(config[name]), storage)
    kind = folder.kind()
    if kind == "file":
        return [(folder.parent, folder.parent.info(folder.url.rpartition("/")[2]))]
    found = [file for file in folder.list() if file.path.endswith(".parquet")] if kind else []
    if not found:
        raise RequestError(f"encoder.{name}={_shown(config, name)}: no such file, nor a folder with Parquet files")
    return [(folder, file) for file in found]


def _shown(config: Config, name: str) -> str:
    """A file's URL as it may be printed."""
    return public_url(str(config[name]))
