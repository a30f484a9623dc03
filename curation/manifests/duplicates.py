"""Near-duplicates of the whole archive: `selection.duplicates` over ranges of clusters, in Ray tasks."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curation.manifests.exchange import Columns, Layers, merge, submit
from curation.manifests.steps import CODE, OPEN, Plan, Shards, running
from curation.selection.duplicates import COLUMNS, across_clusters, groups_from_pairs, halo, within_clusters
from curation.selection.sampling import split_ids

ROWS_A_RANGE = 1 << 17  # rows with their patches; as many again, and more, lie in the neighbouring clusters
RANGES = 256  # at most


def find_duplicates(
    parts: list[Layers], shards: list[Any], plan: Any, sizes: NDArray[np.int64], neighbours: NDArray[np.int32]
) -> tuple[list[Layers], dict[str, int]]:
    """Give every duplicate its reason and its representative.

    Args:
        parts: references to each part's rows.
        shards: references to each part's `Shards`.
        plan: reference to the `Plan`.
        sizes: (K,) samples of each cluster.
        neighbours: (K, n) of each cluster.

    Returns:
        the parts with one more layer, and how many duplicates there are and how many an embedding decided.
    """
    ranges = cluster_ranges(sizes, ROWS_A_RANGE, RANGES)
    near = ray.put(neighbours)
    rows = [
        submit(_rows, plan, near, ranges, names, *part, returns=len(ranges))
        for names, part in zip(shards, parts, strict=True)
    ]
    rows = [[piece] if len(ranges) == 1 else piece for piece in rows]
    within = [submit(_within, *limits, *(piece[i] for piece in rows)) for i, limits in enumerate(ranges)]
    inside = submit(_concatenated, *within)
    across = [submit(_across, near, *limits, inside, *(piece[i] for piece in rows)) for i, limits in enumerate(ranges)]
    groups, found = submit(_groups, inside, *across, returns=2)
    return [[*part, submit(_mark, groups, *part)] for part in parts], ray.get(found)


def cluster_ranges(sizes: NDArray[np.int64], rows: int, most: int) -> list[tuple[int, int]]:
    """Cut the clusters into ranges of about so many rows."""
    number = int(np.clip(sizes.sum() // rows, 1, min(most, len(sizes))))
    edges = np.searchsorted(np.cumsum(sizes), sizes.sum() * np.arange(1, number) / number)
    edges = np.unique([0, *edges, len(sizes)])
    return [(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]


def _rows(
    plan: Plan, neighbours: NDArray[np.int32], ranges: list[tuple[int, int]], shards: Shards, *layers: Columns
) -> Any:
    """The rows of each range and its halo, out of one part."""
    rows = merge(layers)
    there, first = running(rows), 0
    found: list[list[pa.Table]] = [[] for _ in ranges]
    wanted = [np.isin(np.arange(len(plan.mean)), halo(neighbours, *limits)) for limits in ranges]
    for (start, stop), clusters in zip(ranges, wanted, strict=True):
        clusters[start:stop] = True
    for name, count in zip(shards.names, shards.rows, strict=True):
        here = slice(first, first + count)
        table = plan.store.read(name, COLUMNS)
        table = _without_idle_embeddings(table).append_column("cluster", pa.array(rows["cluster"][here]))
        table = table.append_column("first", pa.array(rows["reason"][here] == CODE["required"]))
        for pieces, clusters in zip(found, wanted, strict=True):
            pieces.append(table.filter(pa.array(there[here] & clusters[rows["cluster"][here]])))
        first += count
    tables = [pa.concat_tables(pieces).combine_chunks() for pieces in found]
    return tables if len(tables) > 1 else tables[0]


def _without_idle_embeddings(table: pa.Table) -> pa.Table:
    """Embeddings only where there is no patch to decide; the others take no room."""
    decided = pc.and_(table["patch"].is_valid(), table["signature"].is_valid())
    vectors = table["embedding"].cast(pa.list_(pa.float16()))
    vectors = pc.if_else(decided, pa.scalar(None, vectors.type), vectors)
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", vectors)


def _within(start: int, stop: int, *pieces: pa.Table) -> pa.Table:
    rows = pa.concat_tables(pieces)
    clusters = rows["cluster"].to_numpy()
    return within_clusters(rows.filter(pa.array((clusters >= start) & (clusters < stop))))


def _across(neighbours: NDArray[np.int32], start: int, stop: int, inside: pa.Table, *pieces: pa.Table) -> pa.Table:
    return across_clusters(pa.concat_tables(pieces), inside, neighbours, start, stop)


def _concatenated(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables)


def _groups(*pairs: pa.Table) -> tuple[Columns, dict[str, int]]:
    """Duplicates and their representatives, sorted by id, and counts."""
    groups = groups_from_pairs(pa.concat_tables(pairs))
    of_upper, of_lower = split_ids(groups["duplicate_of"])
    counts = {"found": groups.num_rows, "by_embedding": int(np.asarray(groups["by_embedding"]).sum())}
    return {"id": _sortable(*split_ids(groups["sample_id"])), "of_upper": of_upper, "of_lower": of_lower}, counts


def _mark(groups: Columns, *layers: Columns) -> Columns:
    rows = merge(layers)
    ids = _sortable(rows["upper"], rows["lower"])
    place = np.minimum(np.searchsorted(groups["id"], ids), max(len(groups["id"]) - 1, 0))
    copy = groups["id"][place] == ids if len(groups["id"]) else np.zeros(len(ids), bool)
    marked = {"reason": np.where(copy & (rows["reason"] == OPEN), CODE["duplicate"], rows["reason"])}
    for name in ("of_upper", "of_lower"):
        marked[name] = np.zeros(len(ids), np.uint64)
        marked[name][copy] = groups[name][place[copy]]
    return marked


def _sortable(upper: NDArray[np.uint64], lower: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """Ids as bytes, which NumPy can search."""
    return np.ascontiguousarray(np.stack([upper, lower], 1).astype(">u8")).view("S16").ravel()
