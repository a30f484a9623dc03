"""What the tasks of a selection do with the rows of a part or a partition; `build` says in which order.

Columns of a row on its way: ``upper``, ``lower`` (its id), ``cluster``,
``distance``, ``reason`` (a code); where they are asked for ``entropy``,
``split`` (see `selection.blocks`), ``group`` (a code) and ``unclear`` (the reason
that the validity and cloud stage has); ``of_upper``, ``of_lower`` once something
stands for others; of its unit, if there are units: ``unit_upper``, ``unit_lower``, ``stratum``, ``size``
and the means ``unit_weight``, ``unit_distance``, ``unit_entropy``; of its
place: ``score``, ``threshold``, ``rank``.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.archive.tables import Table, lookup
from curation.catalog.schema import catalog_schema
from curation.catalog.store import CatalogStore
from curation.config import SelectConfig
from curation.errors import CurationError, RequestError
from curation.manifests.exchange import Columns, merge
from curation.manifests.schema import REASONS
from curation.selection import counting, units
from curation.selection.blocks import EDGE, Blocks, boxes, split_codes
from curation.selection.groups import group_texts
from curation.selection.lists import SampleList
from curation.selection.sampling import distance_weight, priority, split_ids, uniform
from curation.selection.strategies import STRATEGIES, Items, Strategy, cluster_order, overall_order, spread_order
from curation.storage import Folder

CODE = {reason: np.uint8(code) for code, reason in enumerate(REASONS)}
OPEN = np.uint8(len(REASONS))  # no rule has decided yet

ROWS_A_PARTITION = 1 << 19
PARTITIONS = 128  # at most: pieces must not become so small that the driver would hold them
SPLITS = 64  # shard names that a part tells of itself, at most
GROUPS = 1 << 16  # at most: the driver knows their names


@dataclass(frozen=True)
class Plan:
    """What every task must know; the driver fills in what it learns on the way.

    Attributes:
        excluded: (K,) clusters that nothing is kept of.
        mean: (K,) of the distances, and
        std: their standard deviation: the frozen normalisers.
        scene: (K,) names or null.
        partition: (K,) of clusters.
        lists: ``exclude`` and ``require``, where there are such.
        columns: of the catalog, that the steps before the last need.
        joined: columns of tables, that they need too.
        splits: names, in the order of their codes.
        groups: names, in the order of their codes.
        entropy_prefix: how far the keys of `entropy_keys` are kept.
        weights: (K,) of the clusters.
        quotas: (K,) of the clusters, None where units are cut overall.
        budget: samples.
        bin_partition: (65536,) of the scores' bins, below 0 beyond the budget.
        before: (partitions,) rows in the partitions before each.
        least_entropy: of what was kept for its entropy.
        threshold: the first refused priority where there are no clusters; NaN where nothing was refused.
    """

    store: CatalogStore
    clusters: Folder
    settings: SelectConfig
    seed: int
    excluded: NDArray[np.bool_]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    scene: pa.Array
    partition: NDArray[np.int16]
    lists: dict[str, SampleList]
    columns: tuple[str, ...]
    joined: dict[Table, tuple[str, ...]]
    splits: tuple[str, ...]
    groups: tuple[str, ...] = ()
    entropy_prefix: tuple[int, ...] = ()
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    quotas: NDArray[np.int64] | None = None
    budget: int = 0
    bin_partition: NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))
    before: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    least_entropy: float = np.nan
    threshold: float = np.nan

    @property
    def strategy(self) -> Strategy:
        """As named in the settings."""
        return STRATEGIES[self.settings.strategy]


class Shards(NamedTuple):
    """The shards of a part, in the order of its rows, and how many rows each has."""

    names: list[str]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Survey:
    """What the driver learns of a part when it is read.

    Attributes:
        rows: samples.
        without_entropy: of these, where entropy is asked for.
        matched: rows that each list names.
        both: rows that both lists name.
        clouded: rows whose cloudy share is known, where it is asked for.
        states: of radiometry, likewise.
        footprints: rows that have one, where there are splits.
        splits: rows of each split, then of training.
        shards: some shard names and how many rows each stands for, up to the next.
    """

    rows: int
    without_entropy: int
    matched: dict[str, int]
    both: int
    shards: list[tuple[str, int]]
    clouded: int = 0
    states: frozenset[str] = frozenset()
    footprints: int = 0
    splits: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def load(plan: Plan, path: str) -> tuple[Columns, Shards, Survey, list[str]]:
    """Read a part of the assignments, and from the catalog and the tables what the rules ask for.

    Returns:
        the part's rows; its shards; what the driver learns; the names of its groups, in the order of their codes here.
    """
    columns = ["sample_id", "shard", "cluster", "distance"]
    table = pq.read_table(pa.BufferReader(plan.clusters.read(path)), columns=columns, read_dictionary=["shard"])
    upper, lower = split_ids(table["sample_id"])
    shards = _runs(table["shard"])
    rows = {"upper": upper, "lower": lower, **{name: table[name].to_numpy() for name in ("cluster", "distance")}}
    rows["reason"] = np.where(plan.excluded[rows["cluster"]], CODE["cluster_excluded"], OPEN)
    del table
    named = {name: np.zeros(len(upper), bool) for name in ("require", "exclude")}
    told: dict[str, Any] = {}
    groups: list[str] = []
    if plan.columns:
        catalog = _with_tables(plan, read_catalog(plan.store, shards, plan.columns))
        if "entropy" in plan.columns:
            rows["entropy"] = catalog["entropy"].to_numpy()
        if plan.settings.unit:
            rows["unit_upper"], rows["unit_lower"] = units.unit_ids(catalog[plan.settings.unit], upper, lower)
        named |= {name: listed.match(catalog) for name, listed in plan.lists.items()}
        rows["reason"][named["require"]] = CODE["required"]
        rows["reason"][named["exclude"]] = CODE["excluded"]
        if plan.settings.by:
            rows["group"], groups = _groups(plan.settings, catalog)
        told = _judge(plan, catalog, rows)
    survey = Survey(
        rows=len(upper),
        without_entropy=int(np.isnan(rows["entropy"]).sum()) if "entropy" in rows else 0,
        matched={name: int(named[name].sum()) for name in plan.lists},
        both=int((named["require"] & named["exclude"]).sum()),
        shards=_some(shards),
        **told,
    )
    return rows, shards, survey, groups


def _with_tables(plan: Plan, catalog: pa.Table) -> pa.Table:
    """The rows with what the tables say of them."""
    for table, columns in plan.joined.items():
        found = lookup(table, columns, catalog[table.on])
        for name in columns:
            catalog = catalog.append_column(name, found[name])
    return catalog


def _groups(settings: SelectConfig, catalog: pa.Table) -> tuple[NDArray[np.int32], list[str]]:
    """The group of every row, as a code, and the names that the codes stand for.

    Raises:
        RequestError: there are too many.
    """
    texts = group_texts(settings.by, catalog, settings.region_km)
    check_groups(settings, len(texts.dictionary))
    return texts.indices.to_numpy(), texts.dictionary.to_pylist()


def check_groups(settings: SelectConfig, number: int) -> None:
    """Refuse more groups than can be balanced.

    Raises:
        RequestError: they are.
    """
    if number > GROUPS:
        keys = ", ".join(settings.by)
        raise RequestError(f"select.by=[{keys}] makes more than {GROUPS} groups: take fewer or coarser keys")


def code_groups(plan: Plan, names: list[str], *layers: Columns) -> Columns:
    """The groups of a part by the codes that hold for all parts."""
    codes = {name: code for code, name in enumerate(plan.groups)}
    return {"group": np.array([codes[name] for name in names], np.int32)[merge(layers)["group"]]}


def _judge(plan: Plan, catalog: pa.Table, rows: Columns) -> dict[str, Any]:
    """Give the rows their split, and the reason that the validity and cloud stage would have; tell what was seen."""
    told: dict[str, Any] = {}
    settings = plan.settings
    if plan.splits:
        if settings.split_by:
            said = catalog[settings.split_by].cast(pa.string())
            rows["split"] = pc.index_in(said, pa.array(plan.splits)).fill_null(len(plan.splits)).to_numpy()
            rows["split"] = rows["split"].astype(np.uint8)
        else:
            where = boxes(catalog["footprint"])
            shares = [(settings.splits or {})[name] for name in plan.splits]
            rows["split"] = split_codes(where, Blocks(settings.block_km), shares)
            told["footprints"] = int(where.known.sum())
        rows["reason"] = _reason_of_split(plan, rows["split"], rows["reason"])
        told["splits"] = np.bincount(rows["split"], minlength=EDGE + 1)[: len(plan.splits) + 1]
    if settings.min_valid is not None or settings.max_cloud is not None:
        rows["unclear"] = np.full(len(rows["reason"]), OPEN)
    if settings.max_cloud is not None:
        cloud = catalog["cloud_fraction"].to_numpy()
        rows["unclear"][cloud > np.float32(settings.max_cloud)] = CODE["cloud"]
        told["clouded"] = int((~np.isnan(cloud)).sum())
        if "radiometry" in catalog.column_names:
            told["states"] = frozenset(catalog["radiometry"].drop_null().unique().to_pylist())
    if settings.min_valid is not None:
        valid = catalog["valid_fraction"].to_numpy()
        rows["unclear"][valid < np.float32(settings.min_valid)] = CODE["invalid"]
    return told


def _reason_of_split(plan: Plan, split: NDArray[np.uint8], reason: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What lies in a split, or across several, falls before all other rules."""
    reason = np.where(split < len(plan.splits), CODE["split"], reason)
    return np.where(split == EDGE, CODE["split_edge"], reason)


def read_catalog(store: CatalogStore, shards: Shards, columns: tuple[str, ...]) -> pa.Table:
    """Columns of a part's shards, row by row as in the assignments.

    Raises:
        CurationError: the catalog has another number of rows.
    """
    tables = [catalog_schema(1).empty_table().select(columns)]
    for name, rows in zip(shards.names, shards.rows, strict=True):
        tables.append(store.read(name, columns))
        if tables[-1].num_rows != rows:
            raise CurationError(
                f"{name}: {tables[-1].num_rows} rows in the catalog, {rows} in the clusters' assignments: cluster again"
            )
    return pa.concat_tables(tables, promote_options="permissive")  # columns may or may not be marked nullable


def _runs(column: pa.ChunkedArray) -> Shards:
    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    codes = np.asarray(column.indices)
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    names = column.dictionary.take(pa.array(codes[first])).to_pylist()
    if names != sorted(set(names)):
        raise CurationError("the clusters' assignments are not sorted by shard: cluster again")
    return Shards(names, np.diff(np.append(first, len(codes))))


def _some(shards: Shards) -> list[tuple[str, int]]:
    """Every so many-th shard with the rows up to the next."""
    if not shards.names:
        return []
    first = np.unique(np.linspace(0, len(shards.names), SPLITS, endpoint=False).astype(int))
    return [(shards.names[i], int(rows)) for i, rows in zip(first, np.add.reduceat(shards.rows, first), strict=True)]


# what a row is when it is ordered


def running(rows: Columns) -> NDArray[np.bool_]:
    """Rows that may still be kept."""
    return np.isin(rows["reason"], (OPEN, CODE["required"]))


def sampling_weight(plan: Plan, rows: Columns) -> NDArray[np.float64]:
    """Of every row, from its distance to the centroid; 1 where the draw has no clusters."""
    if not plan.strategy.clustered:
        return np.ones(len(rows["distance"]))
    cluster, near = rows["cluster"], plan.settings.representativeness
    return distance_weight(rows["distance"], plan.mean[cluster], plan.std[cluster], near)


def row_priority(plan: Plan, rows: Columns) -> NDArray[np.float64]:
    """Of every row (or its unit): the smallest are kept."""
    if plan.strategy.order == "entropy":
        return -rows.get("unit_entropy", rows["entropy"]).astype(np.float64)
    if plan.strategy.order == "spread":
        return rows["priority"] if "priority" in rows else np.zeros(len(rows["upper"]))
    weight = rows["unit_weight"] if "unit_weight" in rows else sampling_weight(plan, rows)
    return priority(uniform(rows.get("unit_upper", rows["upper"]), plan.seed), weight)


def stratum(plan: Plan, rows: Columns) -> NDArray[np.int32]:
    """The cluster that a row (or its unit) is counted in; 0 without clusters."""
    if not plan.strategy.clustered:
        return np.zeros(len(rows["cluster"]), np.int32)
    return rows.get("stratum", rows["cluster"])


def _item_columns(plan: Plan, rows: Columns) -> Columns:
    """What `_items` and `_members` need of every row."""
    columns = {
        "stratum": stratum(plan, rows),
        "priority": row_priority(plan, rows),
        "required": rows["reason"] == CODE["required"],
        **{name: rows[name] for name in ("upper", "lower")},
    }
    if "size" in rows:
        columns |= {name: rows[name] for name in ("unit_upper", "unit_lower", "size")}
    if "group" in rows:
        columns["group"] = rows["group"]
    return columns


def _members(rows: Columns) -> units.Members | None:
    if "size" not in rows:
        return None
    return units.group((rows["unit_upper"], rows["unit_lower"]), (rows["upper"], rows["lower"]))


def _items(rows: Columns, members: units.Members | None) -> Items:
    if members is None:
        rows = rows | {"size": np.ones(len(rows["upper"]), np.int64)}
        names = ("stratum", "priority", "required", "upper", "lower", "size")
        return Items(*(rows[name] for name in names))._replace(group=rows.get("group"))
    names = ("stratum", "priority", "required", "unit_upper", "unit_lower", "size")
    group = rows["group"][members.leaders] if "group" in rows else None
    return Items(*(rows[name][members.leaders] for name in names))._replace(group=group)


# validity and clouds


def drop_unclear(*layers: Columns) -> Columns:
    """Reasons after the validity and cloud stage, which required rows pass."""
    rows = merge(layers)
    return {"reason": np.where(rows["reason"] == OPEN, rows["unclear"], rows["reason"])}


# entropy


def entropy_keys(rows: Columns) -> counting.Digits:
    """Keys by falling entropy, ties by the id's hash, of the rows that reach the entropy stage."""
    there = running(rows)
    return counting.digits(counting.sortable(-rows["entropy"][there]), rows["upper"][there])


def count_entropy(prefix: tuple[int, ...], *layers: Columns) -> NDArray[np.int64]:
    """One part's histogram for `counting.threshold`."""
    return counting.histogram(entropy_keys(merge(layers)), prefix)


def cut_entropy(plan: Plan, *layers: Columns) -> tuple[Columns, float]:
    """Reasons after the cut, and the least entropy that passed it (inf if none did)."""
    rows = merge(layers)
    passed = np.zeros(len(rows["reason"]), bool)
    passed[running(rows)] = counting.up_to(entropy_keys(rows), plan.entropy_prefix)
    reason = rows["reason"].copy()
    reason[(reason == OPEN) & ~passed] = CODE["entropy"]
    return {"reason": reason}, float(rows["entropy"][passed].min(initial=np.inf))


# units


def send_to_unit(plan: Plan, rows: Columns) -> tuple[Columns, NDArray[np.integer]]:
    """Every row to the partition of its unit."""
    names = ("unit_upper", "unit_lower", "upper", "lower", "cluster", "distance", "reason")
    columns = {name: rows[name] for name in names} | {"weight": sampling_weight(plan, rows)}
    if plan.strategy.order == "entropy":
        columns["entropy"] = rows["entropy"]
    columns |= {name: rows[name] for name in ("split", "group") if name in rows}
    partitions = np.uint64(plan.partition.max() + 1)
    return columns, (rows["unit_upper"] % partitions).astype(np.int16)


def settle_units(plan: Plan, number: int, rows: Columns) -> tuple[Columns, None]:
    """What a unit's members decide together.

    Excluded if one is; required if one is; else in the running while one is, so
    that a unit falls only where each of its samples would; but one whose samples
    lie in different splits can be in none. It stands in the cluster, and in the
    group, that most of them are in.
    """
    members = units.group((rows["unit_upper"], rows["unit_lower"]), (rows["upper"], rows["lower"]))
    reason = rows["reason"]
    for code in (OPEN, CODE["required"], CODE["excluded"]):
        one = ~units.every(members, rows["reason"] != code)
        reason = np.where(one[members.unit], code, reason)
    of_unit: Columns = {
        "stratum": units.majority(members, rows["cluster"]),
        "size": members.size,
        "unit_weight": units.mean(members, rows["weight"]),
        "unit_distance": units.mean(members, rows["distance"]),
    }
    if "entropy" in rows:
        of_unit["unit_entropy"] = units.mean(members, rows["entropy"])
    if "group" in rows:
        of_unit["group"] = units.majority(members, rows["group"])
    if "split" in rows:
        one = units.every(members, rows["split"] == rows["split"][members.leaders][members.unit])
        of_unit["split"] = np.where(one, rows["split"][members.leaders], EDGE)
        reason = _reason_of_split(plan, of_unit["split"][members.unit], reason)
    return {"reason": reason, **{name: column[members.unit] for name, column in of_unit.items()}}, None


# the order in clusters


def count_clusters(plan: Plan, *layers: Columns) -> NDArray[np.int64]:
    """Rows in the running by cluster, and how many of these are required: int64 (2, K)."""
    rows = merge(layers)
    number = len(plan.mean)
    required = rows["reason"] == CODE["required"]
    where = stratum(plan, rows)
    return np.stack([np.bincount(where[these], minlength=number) for these in (running(rows), required)])


def send_to_cluster(plan: Plan, rows: Columns) -> tuple[Columns, NDArray[np.integer]]:
    """Rows in the running to the partition of their cluster."""
    columns = _item_columns(plan, rows)
    if plan.strategy.order == "spread":
        columns["distance"] = rows.get("unit_distance", rows["distance"])
    return columns, np.where(running(rows), plan.partition[columns["stratum"]], -1)


def order_clusters(plan: Plan, number: int, rows: Columns) -> tuple[Columns, None]:
    """The score of every row, from its place in its cluster, and the first refused priority of its stratum."""
    members = _members(rows)
    items = _items(rows, members)
    made: Columns = {}
    if plan.strategy.order == "spread":
        distance = rows["distance"] if members is None else rows["distance"][members.leaders]
        made["priority"], made["near"] = spread_order(items, distance.astype(np.float64), plan.settings.nearest)
        items = items._replace(priority=made["priority"])
    made["score"], made["threshold"] = cluster_order(items, plan.weights, plan.quotas, plan.settings.balance)
    if members is not None:
        made = {name: column[members.unit] for name, column in made.items()}
    return made, None


# the order of all


def score(plan: Plan, rows: Columns) -> NDArray[np.float64]:
    """The smallest are kept; NaN where a row is no longer in the running."""
    value = rows["score"] if plan.strategy.clustered else row_priority(plan, rows)
    return np.where(rows["reason"] == CODE["required"], -np.inf, np.where(running(rows), value, np.nan))


def count_scores(plan: Plan, *layers: Columns) -> NDArray[np.int64]:
    """Rows in each bin of the scores, int64 (65536,)."""
    value = score(plan, merge(layers))
    return np.bincount(_bin(value[~np.isnan(value)]), minlength=counting.BINS)


def send_to_score(plan: Plan, rows: Columns) -> tuple[Columns, NDArray[np.integer]]:
    """Rows that may fit into the budget to the partition of their score."""
    columns = _item_columns(plan, rows) | {"score": score(plan, rows)}
    known = ~np.isnan(columns["score"])
    partition = np.full(len(known), -1, np.int16)
    partition[known] = plan.bin_partition[_bin(columns["score"][known])]
    return columns, partition


class Ordered(NamedTuple):
    """What the driver learns of a partition that was ranked: rows kept, the last kept and the first refused score."""

    kept: int
    last: float
    refused: float


def order_all(plan: Plan, number: int, rows: Columns) -> tuple[Columns, Ordered]:
    """The rank of every row, -1 beyond the budget."""
    members = _members(rows)
    items = _items(rows, members)
    scores = rows["score"] if members is None else rows["score"][members.leaders]
    rank, refused = overall_order(items, scores, int(plan.before[number]), plan.budget)
    last = float(scores[rank >= 0].max(initial=-np.inf))
    if members is not None:
        rank = rank[members.unit]
        rank = np.where(rank < 0, -1, rank + members.place)
    return {"rank": rank}, Ordered(int((rank >= 0).sum()), last, refused)


def _bin(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin that holds a score: its sign, exponent and first bits, in order."""
    return (counting.sortable(value) >> np.uint64(48)).astype(np.int64)


def final_reason(plan: Plan, rows: Columns) -> NDArray[np.uint8]:
    """The reason of every row once ranks are known."""
    kept = rows["rank"] >= 0
    chosen = np.where(rows.get("near", np.zeros(len(kept), bool)), CODE["nearest"], CODE["sampled"])
    refused = CODE["entropy" if plan.strategy.order == "entropy" else "quota"]
    return np.where(rows["reason"] == OPEN, np.where(kept, chosen, refused), rows["reason"])
