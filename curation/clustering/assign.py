"""One streaming pass: every row of the catalog to its nearest centroid, part by part, on Ray tasks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.catalog.store import CatalogStore, parquet_bytes
from curation.clustering.nearest import Floats, Search, one_thread, search_in
from curation.storage import Folder

ROWS = 500_000  # rows a part, about
COLUMNS = ["sample_id", "shard", "index", "embedding"]  # of the catalog

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
    ]
)


@dataclass
class Spread:
    """How the members of each of k clusters lie about their centroid.

    Attributes:
        sizes: ``(k,)`` int64.
        sums: ``(k,)`` float64, of the distances.
        squares: ``(k,)`` float64, of their squares.
    """

    sizes: NDArray[np.int64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self.sizes + other.sizes, self.sums + other.sums, self.squares + other.squares)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of the distances; 0 for an empty cluster."""
        return self.sums / np.maximum(self.sizes, 1)

    @property
    def std(self) -> NDArray[np.float64]:
        """Of the distances."""
        return np.sqrt(np.maximum(self.squares / np.maximum(self.sizes, 1) - self.mean**2, 0))


def assign(
    store: CatalogStore,
    shards: Sequence[str],
    rows: int,
    centroids: Floats,
    folder: Folder,
    *,
    used: NDArray[np.int64] | None = None,
    coarse: Floats | None = None,
    device: str = "cpu",
) -> Spread:
    """Write ``assignments/part-00000.parquet``, …; a part that is there stays as it is.

    A shard's rows are in one part, by a hash of its name; rows are ordered by (shard, index).

    Args:
        store: the catalog.
        shards: names.
        rows: how many there are in all, which sets the number of parts.
        centroids: ``(k, d)`` float32.
        folder: ``clusters/<id>``.
        used: which of the centroids may have members; None: all.
        coarse: see :class:`Nearest`.
        device: ``cpu`` or ``cuda``.
    """
    parts = parts_of(shards, rows)
    shared = ray.put((centroids, np.arange(len(centroids)) if used is None else used, coarse))
    task = _assign_part.options(num_gpus=int(device == "cuda"))
    jobs = [
        task.remote(store, members, shared, folder, f"assignments/part-{number:05}.parquet", device)
        for number, members in enumerate(parts)
    ]
    total: Spread = ray.get(jobs[0])
    for job in jobs[1:]:  # always in this order: these sums are rounded
        total += ray.get(job)
    return total


def parts_of(shards: Sequence[str], rows: int) -> list[list[str]]:
    """Which shards' rows lie in each part, sorted: by a hash of their names, whatever they are clustered with."""
    parts: list[list[str]] = [[] for _ in range(-(-rows // ROWS))]
    for shard in sorted(shards):
        parts[part_of(shard, len(parts))].append(shard)
    return parts


def part_of(shard: str, parts: int) -> int:
    """Which of so many parts a shard's rows lie in."""
    return _hash(shard) % parts


def embeddings(table: pa.Table) -> NDArray[np.float16]:
    """The column ``embedding`` as ``(rows, d)``."""
    column = table["embedding"].combine_chunks()
    vectors: NDArray[np.float16] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return vectors


@ray.remote(num_cpus=1)
def _assign_part(
    store: CatalogStore,
    shards: list[str],
    shared: tuple[Floats, NDArray[np.int64], Floats | None],
    folder: Folder,
    path: str,
    device: str,
) -> Spread:
    centroids, used, coarse = shared
    if not folder.exists(path):
        search = search_in(centroids[used], device, coarse)
        with one_thread():
            pieces = [assign_rows(store.read(shard, COLUMNS), search, used) for shard in shards]
        folder.publish(path, parquet_bytes(pa.concat_tables([SCHEMA.empty_table(), *pieces])))
    table = pq.read_table(pa.BufferReader(folder.read(path)), columns=["cluster", "distance"])
    clusters, distances = table["cluster"].to_numpy(), table["distance"].to_numpy().astype(np.float64)
    total: Any = partial(np.bincount, clusters, minlength=len(centroids))
    return Spread(total(), total(distances), total(distances**2))


def assign_rows(table: pa.Table, search: Search, ids: NDArray[np.integer]) -> pa.Table:
    """Rows of the catalog, `COLUMNS`, with their cluster; ``ids``: of the centroids that are searched."""
    clusters, distances = search(embeddings(table))
    own = pa.array(ids[clusters].astype(np.int32))
    return pa.table([*(table[name] for name in COLUMNS[:3]), own, pa.array(distances)], schema=SCHEMA)


def _hash(shard: str) -> int:
    return int.from_bytes(hashlib.blake2b(shard.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
