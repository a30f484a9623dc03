"""Near-duplicates of the whole archive: `selection.duplicates` over ranges of clusters, in Ray tasks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.catalog.schema import catalog_schema
from curation.clustering.nearest import one_thread
from curation.manifests.exchange import Columns, Layers, merge, submit
from curation.manifests.schema import SKETCHES, File, sketch_bytes
from curation.manifests.steps import CODE, OPEN, Plan, Shards, running
from curation.selection.duplicates import COLUMNS, across_clusters, groups_from_pairs, halo, within_clusters
from curation.selection.sampling import sortable, split_ids
from curation.selection.sketches import SKETCH_SCHEMA, propose, sketch
from curation.storage import Folder

ROWS_A_RANGE = 1 << 16  # rows with their patches; several times as many lie in the neighbouring clusters
RANGES = 1024  # at most
SKETCH_TASKS = 256  # at most
SKETCHED = ("sample_id", "signature", "patch", "embedding")  # catalog columns that a sketch is made of

Ranges = list[tuple[int, int]]  # of clusters: first, and the one after the last


def find_duplicates(
    parts: list[Layers],
    shards: list[Any],
    plan: Any,
    sizes: NDArray[np.int64],
    neighbours: NDArray[np.int32],
    folder: Folder,
    sketches: Any = None,
) -> tuple[Any, dict[str, int], list[File]]:
    """Find every duplicate and its representative, and write sketches of all rows that nothing stands for.

    Where the parts have the columns ``fresh`` and ``alike``, only rows of ``alike`` are compared, those of a parent go
    before the fresh ones and none of them falls.

    Args:
        parts: references to each part's rows.
        shards: references to each part's `Shards`.
        plan: reference to the `Plan`.
        sizes: (K,) samples of each cluster.
        neighbours: (K, n) of each cluster.
        folder: of the manifest that is being made.
        sketches: reference to those of the fresh rows, where only these are to be written.

    Returns:
        a reference to what `mark` takes, how many duplicates there are and how many an embedding decided, and the
        files of sketches.
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
    known = [submit(_known, table) for table in rows]
    groups, found = submit(_groups, len(known), *known, within, *across, returns=2)
    made = [submit(sketch, table) for table in rows] if sketches is None else [sketches]
    files = [submit(_write_sketches, folder, number, table, groups) for number, table in enumerate(made)]
    return groups, ray.get(found), [file for file in ray.get(files) if file is not None]


def find_alike(
    parts: list[Layers],
    shards: list[Any],
    plan: Any,
    neighbours: NDArray[np.int32],
    around: Folder,
    files: Sequence[str],
) -> tuple[list[Layers], Any]:
    """Add the column ``alike``: by their sketches, fresh rows that might be copies, and what they might be copies of.

    Args:
        parts: references to each part's rows, with the column ``fresh``.
        shards: references to each part's `Shards`.
        plan: reference to the `Plan`.
        neighbours: (K, n) of each cluster.
        around: the folder of all manifests.
        files: of sketches, below it.

    Returns:
        the parts, and a reference to the sketches of the fresh rows.
    """
    sketches = [submit(_fresh_sketches, plan, names, *part) for names, part in zip(shards, parts, strict=True)]
    fresh, beside = submit(_sorted_sketches, *sketches), ray.put(neighbours)
    groups = np.array_split(np.array(files, object), min(len(files), SKETCH_TASKS)) if files else []
    among = submit(_propose_among, fresh, beside)
    found = submit(distinct_ids, among, *(submit(_propose, around, list(some), fresh, beside) for some in groups))
    return [[*part, submit(_mark_alike, found, *part)] for part in parts], fresh


def cluster_ranges(sizes: NDArray[np.int64]) -> Ranges:
    """Cut the clusters into ranges of about equally many rows."""
    number = int(np.clip(sizes.sum() // ROWS_A_RANGE, 1, RANGES))
    edges = np.searchsorted(np.cumsum(sizes), sizes.sum() * np.arange(1, number) / number)
    return list(pairwise(np.unique([0, *edges, len(sizes)]).tolist()))


def _split(plan: Plan, ranges: Ranges, shards: Shards, *layers: Columns) -> list[Any]:
    """The rows of each range out of one part (and nothing, so that there are always several results)."""
    rows = merge(layers)
    there, first = running(rows), 0
    if "alike" in rows:
        there &= rows["alike"]
    nothing = _candidates(catalog_schema(1).empty_table().select(COLUMNS), rows, slice(0, 0))
    found: list[list[pa.Table]] = [[nothing] for _ in ranges]
    waiting: list[pa.Table] = []  # of many shards, so that what a range gets of them is one piece
    for name, count in zip(shards.names, shards.rows, strict=True):
        here = slice(first, first + count)
        first += count
        if there[here].any():
            waiting.append(_candidates(plan.store.read(name, COLUMNS), rows, here).filter(pa.array(there[here])))
        if waiting and (first == len(there) or sum(map(len, waiting)) >= ROWS_A_RANGE):
            _deal(pa.concat_tables(waiting, promote_options="permissive"), ranges, found)
            waiting.clear()
    return [*(pa.concat_tables(pieces, promote_options="permissive").combine_chunks() for pieces in found), None]


def _deal(table: pa.Table, ranges: Ranges, found: list[list[pa.Table]]) -> None:
    """Give each range its rows of a table."""
    table = table.combine_chunks()
    number = np.searchsorted([stop for _, stop in ranges], table["cluster"].to_numpy(), side="right")
    order = np.argsort(number, kind="stable")
    cuts = np.searchsorted(number[order], np.arange(1, len(ranges)))
    for pieces, own in zip(found, np.split(order, cuts), strict=True):
        if len(own):
            pieces.append(table.take(pa.array(own)))


def _candidates(table: pa.Table, rows: Columns, here: slice) -> pa.Table:
    """What the search wants of a shard's rows; embeddings only where there is no patch to decide."""
    decided = pc.and_(table["patch"].is_valid(), table["signature"].is_valid())
    vectors = table["embedding"].cast(pa.list_(pa.float16()))
    vectors = pc.if_else(decided, pa.scalar(None, vectors.type), vectors)  # null takes no room
    table = table.set_column(table.schema.get_field_index("embedding"), "embedding", vectors)
    table = table.append_column("cluster", pa.array(rows["cluster"][here]))
    known = rows["alike"][here] & ~rows["fresh"][here] if "alike" in rows else np.zeros(table.num_rows, bool)
    first = known | (rows["reason"][here] == CODE["required"])
    return table.append_column("first", pa.array(first)).append_column("known", pa.array(known))


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


def _known(table: pa.Table) -> NDArray[np.bytes_]:
    """Ids of the rows that were there before."""
    return sortable(*split_ids(table["sample_id"].filter(table["known"])))


def _groups(ranges: int, *found: Any) -> tuple[Columns, dict[str, int]]:
    """Duplicates and their representatives, sorted by id, and counts; ``found``: `_known` of the ranges, then pairs."""
    pairs = pa.concat_tables(found[ranges:])
    stays = np.isin(sortable(*split_ids(pairs["worse"])), np.concatenate(found[:ranges]))
    groups = groups_from_pairs(pairs.filter(pa.array(~stays)))
    of_upper, of_lower = split_ids(groups["duplicate_of"])
    counts = {"found": groups.num_rows, "by_embedding": int(np.asarray(groups["by_embedding"]).sum())}
    return {"id": sortable(*split_ids(groups["sample_id"])), "of_upper": of_upper, "of_lower": of_lower}, counts


# sketches


def _write_sketches(folder: Folder, number: int, rows: pa.Table, groups: Columns) -> File | None:
    """The rows that nothing stands for."""
    rows = rows.filter(pa.array(~np.isin(_fixed(rows["id"]), groups["id"])))
    if not rows.num_rows:
        return None
    data = sketch_bytes(rows)
    path = f"{SKETCHES}/part-{number:05d}.parquet"
    folder.publish(path, data)
    return File.of(path, data, rows.num_rows)


def _fresh_sketches(plan: Plan, shards: Shards, *layers: Columns) -> pa.Table:
    """Sketches of the fresh rows of a part that are in the running."""
    rows = merge(layers)
    there, first, found = running(rows) & rows["fresh"], 0, [SKETCH_SCHEMA.empty_table()]
    for name, count in zip(shards.names, shards.rows.tolist(), strict=True):
        here = slice(first, first + count)
        first += count
        if there[here].any():
            table = plan.store.read(name, SKETCHED).filter(pa.array(there[here]))
            found.append(sketch(table.append_column("cluster", pa.array(rows["cluster"][here][there[here]]))))
    return pa.concat_tables(found)


def _sorted_sketches(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables).sort_by([("cluster", "ascending"), ("id", "ascending")]).combine_chunks()


def _propose(
    around: Folder, files: Sequence[str], fresh: pa.Table, neighbours: NDArray[np.int32]
) -> NDArray[np.bytes_]:
    found = [np.zeros(0, "S16")]
    with one_thread():
        for path in files:
            known = pq.read_table(pa.BufferReader(around.read(path)), schema=SKETCH_SCHEMA).combine_chunks()
            found.append(_fixed(propose(known, fresh, neighbours)))
    return np.concatenate(found)


def _propose_among(fresh: pa.Table, neighbours: NDArray[np.int32]) -> NDArray[np.bytes_]:
    with one_thread():
        return _fixed(propose(fresh, fresh, neighbours))


def distinct_ids(*some: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Each id once, sorted: S16."""
    return np.unique(np.concatenate([np.zeros(0, "S16"), *some]))


def _mark_alike(ids: NDArray[np.bytes_], *layers: Columns) -> Columns:
    rows = merge(layers)
    there, _ = find(ids, rows)
    return {"alike": there & running(rows)}


def _fixed(ids: pa.Array) -> NDArray[np.bytes_]:
    return np.frombuffer(b"".join(ids.to_pylist()), "S16")


def mark(groups: Columns, reason: str, *layers: Columns) -> Columns:
    """A part's reasons and representatives.

    Args:
        groups: ``id`` of rows that fall, `sortable` and sorted; ``of_upper``, ``of_lower`` of their representatives.
        reason: why they fall.
        layers: the part's rows.
    """
    rows = merge(layers)
    copy, place = find(groups["id"], rows)
    if "fresh" in rows:  # what a parent kept standing stays so
        copy &= rows["fresh"]
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
