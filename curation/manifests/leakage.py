"""Tells which kept samples a benchmark has too: by footprint, and by embedding where it has one.

The benchmark is held whole; the kept samples pass by a row group at a time,
and of them only those that leak are held.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.catalog.schema import FOOTER
from curation.errors import RequestError
from curation.manifests.explain import catalog_rows, vectors
from curation.manifests.reading import ManifestReader, open_catalog, open_workspace
from curation.manifests.schema import ROWS_FILE, open_parquet
from curation.selection.duplicates import EMBEDDING_THRESHOLD
from curation.selection.footprints import SIDES, boxes
from curation.selection.lists import moments
from curation.selection.places import DAY, UNKNOWN, overlapping
from curation.storage import Folder, public_url

log = logging.getLogger("curation")

NAMES = ("key", "name", "sample_id", "source_id")  # what a benchmark's tile is called by: the first that it has
WORST = 10  # samples told
BLOCK = 4096  # vectors compared with as many at once

LEAKS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("overlap", pa.float64()),  # largest share of the smaller footprint, with the tile
        pa.field("overlaps", pa.string()),
        pa.field("cosine", pa.float64()),  # of the embeddings, where near enough, with the tile
        pa.field("like", pa.string()),
    ]
)


@dataclass(frozen=True)
class Benchmark:
    """The tiles that nothing kept may show.

    Attributes:
        names: string (n,).
        box: float64 (n, 4), see `selection.footprints.boxes`; NaN where there is none. None without footprints.
        start, end: int64 (n,) microseconds since 1970, both included.
        vectors: float32 (n, dim) of unit length, or None.
    """

    names: pa.Array
    box: NDArray[np.float64] | None
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    vectors: NDArray[np.float32] | None


def find_leaks(
    url: str, against: str, overlap: float = 0.0, days: float = 1.0, storage: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Compare a manifest's kept samples with a benchmark.

    Args:
        url: of ``manifest.json``, in its workspace.
        against: a CSV or Parquet file of the benchmark's tiles, or a folder of Parquet files, such as a catalog.
        overlap: share of the smaller footprint from which they overlap; 0: any at all.
        days: how far a sample may be from the ``time`` of a tile that has one.
        storage: per protocol, fsspec options.

    Returns:
        ``manifest``, ``against``, ``tiles`` (of the benchmark), ``kept``, ``overlapping`` and ``alike`` (samples, None
        where there was nothing to compare), ``leaking`` (either), ``unplaced`` (kept without a footprint),
        ``unplaced_tiles`` (of the benchmark, likewise), ``worst`` (a few rows of `LEAKS`), ``table`` (URL of all of
        them, None without any).

    Raises:
        RequestError: the benchmark has nothing to compare, or the catalog has not.
        AccessError: either could not be read.
    """
    manifest = ManifestReader(url, storage)
    benchmark = _benchmark(against, storage, days, manifest.header["content"])
    found, unplaced = [LEAKS.empty_table()], 0
    for rows, catalog in _kept(manifest, storage, benchmark):
        leaks, without = _leaks(rows, catalog, benchmark, overlap)
        found.append(leaks)
        unplaced += without
    if unplaced == manifest.num_rows and benchmark.vectors is None:
        raise RequestError(
            f"none of the {manifest.num_rows} kept samples has a footprint to compare: add footprints to the archive's "
            "sidecars (docs/formats.md), or give a benchmark with a column embedding"
        )
    lacking = len(benchmark.names) if benchmark.box is None else int(np.isnan(benchmark.box[:, 0]).sum())
    alone = "by embedding alone" if benchmark.vectors is not None else "with nothing"
    for count, of, what in ((unplaced, manifest.num_rows, "kept samples"), (lacking, len(benchmark.names), "tiles")):
        if count and benchmark.box is not None:
            log.warning("leakage: %d of %d %s have no footprint and are compared %s", count, of, what, alone)
    table = pa.concat_tables(found).sort_by(
        [("overlap", "descending"), ("cosine", "descending"), ("sample_id", "ascending")]
    )
    return {
        "manifest": manifest.folder.public("manifest.json"),
        "against": public_url(against),
        "tiles": len(benchmark.names),
        "kept": manifest.num_rows,
        "overlapping": None if benchmark.box is None else table["overlaps"].is_valid().to_numpy().sum().item(),
        "alike": None if benchmark.vectors is None else table["like"].is_valid().to_numpy().sum().item(),
        "leaking": table.num_rows,
        "unplaced": None if benchmark.box is None else unplaced,
        "unplaced_tiles": None if benchmark.box is None else lacking,
        "worst": table.slice(0, WORST).to_pylist(),
        "table": _publish(manifest, table, storage) if table.num_rows else None,
    }


def _publish(manifest: ManifestReader, table: pa.Table, storage: dict[str, Any] | None) -> str:
    """Write the leaks beside the manifest's page; named by what is in them."""
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table, sink)
    workspace = open_workspace(manifest, storage)
    workspace.check_writable()
    digest = hashlib.blake2b(sink.getvalue(), digest_size=8).hexdigest()
    path = f"reports/{manifest.id}/leakage-{digest}.csv"
    workspace.publish(path, sink.getvalue())
    return workspace.public(path)


def _kept(
    manifest: ManifestReader, storage: dict[str, Any] | None, benchmark: Benchmark
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """A row group at a time: the kept rows, and what the catalog has to compare.

    Raises:
        RequestError: there is no catalog.
    """
    store = open_catalog(manifest, storage)
    columns = ["footprint", "time"] if benchmark.box is not None else []
    columns += ["embedding"] if benchmark.vectors is not None else []
    with open_parquet(manifest.folder, ROWS_FILE) as file:
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number, LEAKS.names[:4])
            if number == 0 and store.footer(rows["shard"][0].as_py()) is None:
                raise RequestError(
                    f"no catalog of {manifest.folder.public()} in {store.own.public()}: footprints and embeddings are "
                    "in the catalog, so give the manifest that lies in its workspace"
                )
            yield rows, catalog_rows(store, rows, columns)


def _leaks(rows: pa.Table, catalog: pa.Table, benchmark: Benchmark, least: float) -> tuple[pa.Table, int]:
    """The rows of `LEAKS` among some kept rows, and how many of these have no footprint."""
    overlap, cosine = np.full((2, len(rows)), np.nan)
    overlaps, like = np.full((2, len(rows)), -1)
    unplaced = 0
    if benchmark.box is not None:
        overlap, overlaps, known = _by_footprint(catalog, benchmark, least)
        unplaced = int((~known).sum())
    if benchmark.vectors is not None:
        cosine, like = _by_embedding(vectors(catalog["embedding"]), benchmark.vectors)
    leak = np.flatnonzero((overlaps >= 0) | (like >= 0))
    columns = {name: rows[name].take(pa.array(leak)) for name in LEAKS.names[:4]}
    columns |= {
        "overlap": pa.array(overlap[leak], from_pandas=True),
        "overlaps": benchmark.names.take(pa.array(overlaps[leak], mask=overlaps[leak] < 0)),
        "cosine": pa.array(cosine[leak], from_pandas=True),
        "like": benchmark.names.take(pa.array(like[leak], mask=like[leak] < 0)),
    }
    return pa.table(columns, schema=LEAKS), unplaced


def _by_footprint(
    catalog: pa.Table, benchmark: Benchmark, least: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Of each row the largest overlap at a time that agrees (NaN: none), its tile (-1), and whether it has a footprint.

    A sample whose time is unknown may have been acquired at any.
    """
    assert benchmark.box is not None
    box = boxes(catalog["footprint"])
    time = catalog["time"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).fill_null(UNKNOWN).to_numpy()
    known, there = ~np.isnan(box[:, 0]), np.flatnonzero(~np.isnan(benchmark.box[:, 0]))
    own = np.flatnonzero(known)
    i, j, part = overlapping(box[own], benchmark.box[there], least)
    i, j = own[i], there[j]
    meets = (time[i] == UNKNOWN) | ((time[i] >= benchmark.start[j]) & (time[i] <= benchmark.end[j]))
    i, j, part = i[meets], j[meets], part[meets]
    order = np.lexsort((j, -part, i))
    row, first = np.unique(i[order], return_index=True)
    overlap, tile = np.full(len(box), np.nan), np.full(len(box), -1)
    overlap[row], tile[row] = part[order[first]], j[order[first]]
    return overlap, tile, known


def _by_embedding(
    own: NDArray[np.float32], others: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of each row the largest cosine and its tile, where it reaches that of near-duplicates; else NaN and -1.

    Raises:
        RequestError: the vectors are of other lengths.
    """
    if own.shape[1] != others.shape[1]:
        raise RequestError(
            f"the benchmark's embeddings have {others.shape[1]} numbers, the archive's {own.shape[1]}: "
            "encode the benchmark with the archive's encoder"
        )
    own = _unit(own)
    best, tile = np.full(len(own), -np.inf, np.float32), np.zeros(len(own), np.int64)
    for start in range(0, len(own), BLOCK):
        rows = slice(start, start + BLOCK)
        for first in range(0, len(others), BLOCK):
            cosine = own[rows] @ others[first : first + BLOCK].T
            at = cosine.argmax(axis=1)
            highest = cosine[np.arange(len(at)), at]
            better = highest > best[rows]
            best[rows] = np.where(better, highest, best[rows])
            tile[rows] = np.where(better, first + at, tile[rows])
    exact = np.einsum("ij,ij->i", own.astype(np.float64), others[tile].astype(np.float64)).clip(max=1)
    alike = exact >= EMBEDDING_THRESHOLD
    return np.where(alike, exact, np.nan), np.where(alike, tile, -1)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny))


# the benchmark


def _benchmark(url: str, storage: dict[str, Any] | None, days: float, content: dict[str, Any]) -> Benchmark:
    """Read it.

    Raises:
        RequestError: it is not there, is no such table, or is of another encoder.
    """
    try:
        table, footers = _tables(url, storage)
        areas = _areas(table)
        start, end = _times(table, days)
    except pa.ArrowException as error:
        raise RequestError(f"{public_url(url)} is no Parquet or CSV table: {str(error).splitlines()[0]}") from error
    if not len(table):
        raise RequestError(f"{public_url(url)} has no rows: there is nothing to compare with")
    if areas is None and "embedding" not in table.column_names:
        raise RequestError(
            f"{public_url(url)} needs columns {', '.join(SIDES)} in degrees, or embedding; "
            f"it has {', '.join(table.column_names)}"
        )
    names = next((table[name] for name in NAMES if name in table.column_names), pa.array(np.arange(len(table))))
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    embedding = None
    if "embedding" in table.column_names:
        if _same_encoder(footers, content):
            embedding = _embedding(table["embedding"], public_url(url))
        elif areas is None:
            raise RequestError(
                f"{public_url(url)} was encoded otherwise than the manifest's archive, so that embeddings cannot be "
                "compared: encode it in the same workspace, or give a table with footprints"
            )
        else:
            log.warning("%s was encoded otherwise than the archive: only footprints are compared", public_url(url))
    return Benchmark(names.cast(pa.string()), areas, start, end, embedding)


def _tables(url: str, storage: dict[str, Any] | None) -> tuple[pa.Table, list[dict[str, Any]]]:
    """All rows, and what the footers of catalog files say."""
    folder = Folder(url, storage)
    try:
        return _table(folder.read(""))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        files = [file.path for file in folder.list() if file.path.endswith(".parquet")]
        if not files:
            raise RequestError(f"{public_url(url)}: there is no such table, nor a folder of Parquet files") from error
    found = [_table(folder.read(path)) for path in files]
    tables, footers = [table for table, _ in found], [footer for _, some in found for footer in some]
    return pa.concat_tables(tables, promote_options="permissive"), footers


def _table(data: bytes) -> tuple[pa.Table, list[dict[str, Any]]]:
    source = pa.BufferReader(data)
    if data[:4] != b"PAR1":
        texts = {name: pa.string() for name in NAMES}  # 007 is a name, not a number
        return pa.csv.read_csv(source, convert_options=pa.csv.ConvertOptions(column_types=texts)), []
    file = pq.ParquetFile(source)
    wanted = {*NAMES, *SIDES, "footprint", "time", "start", "end", "embedding"}
    metadata = file.schema_arrow.metadata or {}
    columns = [name for name in file.schema_arrow.names if name in wanted] or file.schema_arrow.names
    table = file.read(columns).replace_schema_metadata(None)
    return table, [json.loads(metadata[FOOTER])] if FOOTER in metadata else []


def _areas(table: pa.Table) -> NDArray[np.float64] | None:
    """Footprints as `boxes` has them, None where the table has none.

    Raises:
        RequestError: one lies nowhere on Earth.
    """
    if set(SIDES) <= set(table.column_names):
        footprint = pa.StructArray.from_arrays(
            [table[side].combine_chunks().cast(pa.float64()) for side in SIDES], names=list(SIDES)
        )
    elif "footprint" in table.column_names and pa.types.is_struct(table["footprint"].type):
        footprint = table["footprint"]
    else:
        return None
    box = boxes(footprint)
    known = ~np.isnan(box[:, 0])
    if (wrong := known & ~((box[:, 1] >= -90) & (box[:, 1] <= box[:, 3]) & (box[:, 3] <= 90))).any():
        raise RequestError(
            f"the benchmark's tile {int(np.argmax(wrong)) + 1} is no area in degrees: "
            f"give {', '.join(SIDES)}, south below north, within -90 and 90"
        )
    return box if known.any() else None


def _times(table: pa.Table, days: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first and last moment of each tile, out of ``start`` and ``end``, or ``time`` and so many days about it."""
    limits = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    found = []
    for bound, limit, sign in zip(("start", "end"), limits, (-1, 1), strict=True):
        about = bound not in table.column_names
        name = "time" if about else bound
        if name not in table.column_names:
            found.append(np.full(len(table), limit))
            continue
        moment = moments(table[name], last=sign > 0).cast(pa.int64())
        value = moment.fill_null(0).to_numpy() + (sign * round(days * DAY) if about else 0)
        found.append(np.where(moment.is_valid().to_numpy(), value, limit))
    return found[0], found[1]


def _embedding(column: pa.ChunkedArray, name: str) -> NDArray[np.float32]:
    try:
        if column.null_count:
            raise ValueError
        return _unit(vectors(column))
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise RequestError(f"{name}: the column embedding is not of lists of numbers, all of one length") from error


def _same_encoder(footers: list[dict[str, Any]], content: dict[str, Any]) -> bool:
    """Whether catalog files say that they were made as the manifest's catalog was; other tables say nothing."""
    made_of = content["catalog"], content.get("artefact")
    return all((footer.get("catalog_id"), footer.get("artefact")) == made_of for footer in footers)
