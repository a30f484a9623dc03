"""Near-duplicates of the whole archive: `selection.duplicates` over ranges of clusters, in Ray tasks."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curation.catalog.schema import catalog_schema
from curation.manifests.exchange import Columns, Layers, merge, submit
from curation.manifests.steps import CODE, OPEN, Plan, Shards, running
from curation.selection.duplicates import COLUMNS, across_clusters, groups_from_pairs, halo, within_clusters
from curation.selection.sampling import split_ids

ROWS_A_RANGE = 1 << 16  # rows with their patches; several times as many lie in the neighbouring clusters
RANGES = 1024  # at most

Ranges = list[tuple[int, int]]  # of clusters: first, and the one after the last


def find_duplicates(
    parts: list[Layers], shards: list[Any], plan: Any, sizes: NDArray[np.int64], neighbours: NDArray[np.int32]
) -> tuple[Any, dict[str, int]]:
    """Find every duplicate and its representative.

    Args:
        parts: references to each part's rows.
        shards: references to each part's `Shards`.
        plan: reference to the `Plan`.
        sizes: (K,) samples of each cluster.
        neighbours: (K, n) of each cluster.

    Returns:
        a reference to what `mark` takes, and how many duplicates there are and how many an embedding decided.
    """
    ranges = cluster_ranges(sizes)
    split = [
        submit(_split, plan, ranges, names, *part, returns=len(ranges) + 1)
        for names, part in zip(shards, parts, strict=True)
    ]
    rows = [submit(_concatenated, *(piece[i] for piece in split)) for i in range(len(ranges))]
    del split
    within = submit(_concatenated, *(submit(within_clusters, table) for table in rows))
    near = ray.put(neighbours)
    across = [submit(_across, near, number, within, ranges, rows) for number in range(len(ranges))]
    groups, found = submit(_groups, within, *across, returns=2)
    return groups, ray.get(found)


def cluster_ranges(sizes: NDArray[np.int64]) -> Ranges:
    """Cut the clusters into ranges of about equally many rows."""
    number = int(np.clip(sizes.sum() // ROWS_A_RANGE, 1, RANGES))
    edges = np.searchsorted(np.cumsum(sizes), sizes.sum() * np.arange(1, number) / number)
    return list(pairwise(np.unique([0, *edges, len(sizes)]).tolist()))


def _split(plan: Plan, ranges: Ranges, shards: Shards, *layers: Columns) -> list[Any]:
    """The rows of each range out of one part (and nothing, so that there are always several results)."""
    rows = merge(layers)
    there, first = running(rows), 0
    nothing = _candidates(catalog_schema(1).empty_table().select(COLUMNS), rows, slice(0, 0))
    found = [[nothing] for _ in ranges]
    for name, count in zip(shards.names, shards.rows, strict=True):
        here = slice(first, first + count)
        table = _candidates(plan.store.read(name, COLUMNS), rows, here).filter(pa.array(there[here]))
        for pieces, limits in zip(found, ranges, strict=True):
            pieces.append(table.filter(_in_range(table, *limits)))
        first += count
    return [*(pa.concat_tables(pieces, promote_options="permissive").combine_chunks() for pieces in found), None]


def _candidates(table: pa.Table, rows: Columns, here: slice) -> pa.Table:
    """What the search wants of a shard's rows; embeddings only where there is no patch to decide."""
    decided = pc.and_(table["patch"].is_valid(), table["signature"].is_valid())
    vectors = table["embedding"].cast(pa.list_(pa.float16()))
    vectors = pc.if_else(decided, pa.scalar(None, vectors.type), vectors)  # null takes no room
    table = table.set_column(table.schema.get_field_index("embedding"), "embedding", vectors)
    table = table.append_column("cluster", pa.array(rows["cluster"][here]))
    return table.append_column("first", pa.array(rows["reason"][here] == CODE["required"]))


def _in_range(table: pa.Table, first: int, stop: int) -> pa.Array:
    return pc.and_(pc.greater_equal(table["cluster"], first), pc.less(table["cluster"], stop))


def _across(neighbours: NDArray[np.int32], number: int, within: pa.Table, ranges: Ranges, rows: list[Any]) -> pa.Table:
    """Pairs of a range with itself and with the clusters next to it, which are picked out of the others' rows."""
    first, stop = ranges[number]
    beside = halo(neighbours, first, stop)
    found = [ray.get(rows[number])]
    for (start, end), table in zip(ranges, rows, strict=True):
        wanted = beside[(beside >= start) & (beside < end)]
        if len(wanted):
            there = ray.get(table)
            found.append(there.filter(pc.is_in(there["cluster"], value_set=pa.array(wanted))))
    return across_clusters(pa.concat_tables(found), within, neighbours, first, stop)


def _concatenated(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables)


def _groups(*pairs: pa.Table) -> tuple[Columns, dict[str, int]]:
    """Duplicates and their representatives, sorted by id, and counts."""
    groups = groups_from_pairs(pa.concat_tables(pairs))
    of_upper, of_lower = split_ids(groups["duplicate_of"])
    counts = {"found": groups.num_rows, "by_embedding": int(np.asarray(groups["by_embedding"]).sum())}
    return {"id": sortable(*split_ids(groups["sample_id"])), "of_upper": of_upper, "of_lower": of_lower}, counts


def mark(groups: Columns, reason: str, *layers: Columns) -> Columns:
    """A part's reasons and representatives.

    Args:
        groups: ``id`` of rows that fall, `sortable` and sorted; ``of_upper``, ``of_lower`` of their representatives.
        reason: why they fall.
        layers: the part's rows.
    """
    rows = merge(layers)
    copy, place = find(groups["id"], rows)
    marked = {"reason": np.where(copy & (rows["reason"] == OPEN), CODE[reason], rows["reason"])}
    for name in ("of_upper", "of_lower"):
        marked[name] = rows[name].copy() if name in rows else np.zeros(len(copy), np.uint64)
        marked[name][copy] = groups[name][place[copy]]
    return marked


def find(ids: NDArray[np.bytes_], rows: Columns) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which rows are among sorted ids, and where in them."""
    own = sortable(rows["upper"], rows["lower"])
    place = np.minimum(np.searchsorted(ids, own), max(len(ids) - 1, 0))
    return (ids[place] == own if len(ids) else np.zeros(len(own), bool)), place


def sortable(upper: NDArray[np.uint64], lower: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """Ids as bytes, which NumPy can search."""
    return np.ascontiguousarray(np.stack([upper, lower], 1).astype(">u8")).view("S16").ravel()
