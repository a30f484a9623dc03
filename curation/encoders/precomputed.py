"""Vectors that somebody else has computed, looked up by key; no pixels are read."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.archive.sample import Sample
from curation.encoders.base import Artefact, Config, Floats
from curation.errors import BadSample, RequestError
from curation.storage import FileInfo, Folder, listing_digest

LAST = "\U0010ffff"  # behind all names
SHARD = "shard"  # a column of this name tells the equal keys of different shards apart


class Precomputed:
    """The encoder ``precomputed``: :meth:`lookup` in the place of ``prepare`` and ``encode``."""

    name = "precomputed"
    needs_pixels = False

    def __init__(self, config: Config, dim: int) -> None:
        self.batch, self.dim = int(config["batch"]), dim
        self._table = _open(config)
        if self._table.dim != dim:
            raise RequestError(
                f"encoder.path={config['path']} has vectors of {self._table.dim} numbers, but this catalog was begun "
                f"with {dim}: take a fresh workspace"
            )

    @property
    def prepare(self) -> Callable[[Sample], NDArray[Any]]:
        """There are no tiles."""
        raise TypeError("precomputed vectors are looked up, not encoded")

    def encode(self, tiles: NDArray[Any]) -> Floats:
        """There are no tiles."""
        raise TypeError("precomputed vectors are looked up, not encoded")

    def lookup(self, shard: str, key: str) -> Floats:
        """The vector of a sample, ``(dim,)`` float32, unit length.

        Args:
            shard: the shard's name, ``<root>/<path below it>``.
            key: the sample's key.

        Raises:
            BadSample: there is none, or it has no direction (zero, or not finite).
        """
        vector = self._table.get(shard, key)
        if vector is None:
            raise BadSample("encode", "NoVector", f"no vector for key {key!r}")
        vector = np.asarray(vector, np.float32)
        norm = float(np.linalg.norm(vector))
        if not 0 < norm < np.inf:
            raise BadSample("encode", "NoVector", f"the vector for key {key!r} is zero or not finite")
        return np.asarray(vector / np.float32(norm), np.float32)


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


class _Whole:
    """Vectors whose keys are unique in the archive, all in memory (an ``.npy`` on a local disk stays there)."""

    def __init__(self, keys: Sequence[str], vectors: NDArray[Any], where: str) -> None:
        self.rows = {key: row for row, key in enumerate(keys)}
        if len(self.rows) != len(keys):
            raise RequestError(f"{where}: a key stands twice; add a column {SHARD!r} that tells the shards apart")
        self.vectors, self.dim = vectors, vectors.shape[1]

    def get(self, shard: str, key: str) -> NDArray[Any] | None:
        row = self.rows.get(key)
        return None if row is None else self.vectors[row]


class _ByShard:
    """Vectors with their shard beside them; only one shard's are in memory."""

    def __init__(self, files: list[tuple[Folder, FileInfo]], key_column: str, vector_column: str) -> None:
        self.files = [(folder, file, *_shards_in(folder, file)) for folder, file in files]
        self.columns = (key_column, vector_column)
        self.shard: str | None = None
        self.current: _Whole | None = None
        with files[0][0].open(files[0][1]) as source:
            first = next(pq.ParquetFile(source).iter_batches(1, columns=[vector_column]), None)
        if first is None:
            raise RequestError(f"{files[0][0].public(files[0][1].path)} has no rows: remove it, or write it again")
        self.dim = _matrix(first.column(0), vector_column).shape[1]
        self.nothing = np.zeros((0, self.dim), np.float32)

    def get(self, shard: str, key: str) -> NDArray[Any] | None:
        if shard != self.shard:
            parts = []
            for folder, file, first, last in self.files:
                if first <= shard <= last:
                    with folder.open(file) as source:
                        parts.append(pq.read_table(source, columns=list(self.columns), filters=[(SHARD, "==", shard)]))
            table = pa.concat_tables(parts) if parts else None
            self.current = _whole(table, self.columns, shard, self.dim) if table else _Whole([], self.nothing, shard)
            self.shard = shard
        assert self.current is not None
        return self.current.get(shard, key)


def _shards_in(folder: Folder, file: FileInfo) -> tuple[str, str]:
    """The first and last shard name in a file, by its footer; everything where the footer does not say."""
    with folder.open(file) as source:
        metadata = pq.read_metadata(source)
    names = metadata.schema.to_arrow_schema().names
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
    files = _files(config, "path")
    if str(config["path"]).endswith(".npy"):
        return _open_npy(config, *files[0])
    key_column, vector_column = str(config["key_column"]), str(config["vector_column"])
    try:
        with files[0][0].open(files[0][1]) as source:
            schema = pq.read_schema(source)
        for name in (key_column, vector_column):
            if name not in schema.names:
                raise RequestError(f"{config['path']} has no column {name!r}, but {', '.join(schema.names)}")
        if SHARD in schema.names:
            return _ByShard(files, key_column, vector_column)
        parts = []
        for folder, file in files:
            with folder.open(file) as source:
                parts.append(pq.read_table(source, columns=[key_column, vector_column]))
        return _whole(pa.concat_tables(parts), (key_column, vector_column), str(config["path"]))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RequestError(f"encoder.path={config['path']} is not readable as Parquet: {error}") from error


def _whole(table: pa.Table, columns: tuple[str, str], where: str, dim: int = 0) -> _Whole:
    key_column, vector_column = columns
    table = table.filter(pc.is_valid(table[vector_column]))
    vectors = _matrix(table[vector_column], vector_column) if table.num_rows else np.zeros((0, dim), np.float32)
    return _Whole(table[key_column].cast(pa.string()).to_pylist(), vectors, where)


def _matrix(column: Any, name: str) -> NDArray[Any]:
    """A list column without nulls as ``(rows, dim)``."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = array.flatten().to_numpy(zero_copy_only=False)
    dim = len(values) // max(1, len(array))
    if not dim or values.dtype.kind != "f" or pc.any(pc.not_equal(pc.list_value_length(array), dim)).as_py():
        raise RequestError(f"column {name!r} must hold lists of floats, all of one length")
    return np.asarray(values.reshape(-1, dim))


def _open_npy(config: Config, folder: Folder, file: FileInfo) -> _Whole:
    path = config["path"]
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
    return _Whole(keys, vectors, str(config["keys"]))


def _files(config: Config, name: str) -> list[tuple[Folder, FileInfo]]:
    """The files behind ``encoder.path`` or ``encoder.keys``, each with the folder it is read through.

    Raises:
        RequestError: none was named, or there is none.
    """
    if not config[name]:
        raise RequestError(f"encoder=precomputed needs encoder.{name}")
    storage = config.get("storage")
    folder = Folder(str(config[name]), storage)
    if folder.fs.isfile(folder.base):
        parent, _, last = folder.url.rpartition("/")
        above = Folder(parent, storage)
        return [(above, above.info(last))]
    found = [file for file in folder.list() if file.path.endswith(".parquet")] if folder.exists() else []
    if not found:
        raise RequestError(f"encoder.{name}={config[name]}: no such file, nor a folder with Parquet files")
    return [(folder, file) for file in found]
