"""The order of a selection: what tasks do with the rows that every stage before has left; `draw` says in which order.

Columns of a row are those of `steps`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.clustering.assign import embeddings
from curation.clustering.kmeans import fit_kmeans
from curation.clustering.points import Rows
from curation.manifests.exchange import Columns, merge
from curation.manifests.steps import CODE, OPEN, Plan, Shards, reason_of_split, running
from curation.selection import counting, units
from curation.selection.blocks import EDGE
from curation.selection.ccs import strata_of
from curation.selection.greedy import GREEDY, cosines
from curation.selection.importance import ease, importance
from curation.selection.prototypes import best_of_each, margins
from curation.selection.sampling import distance_weight, priority, uniform
from curation.selection.strategies import (
    Items,
    by_weight,
    cluster_order,
    overall_order,
    spread_order,
)

# what a row is when it is ordered


def sampling_weight(plan: Plan, rows: Columns) -> NDArray[np.float64]:
    """Of every row: in a cluster from its distance to the centroid; else 1."""
    if plan.strategy.strata != "cluster":
        return np.ones(len(rows["distance"]))
    cluster, near = rows["cluster"], plan.settings.representativeness
    return distance_weight(rows["distance"], plan.mean[cluster], plan.std[cluster], near)


def row_priority(plan: Plan, rows: Columns) -> NDArray[np.float64]:
    """Of every row (or its unit): the smallest are kept."""
    order = plan.strategy.order
    if "priority" in rows:  # of its stratum
        return rows["priority"]
    if order == "entropy":
        return -rows.get("unit_entropy", rows["entropy"]).astype(np.float64)
    if order == "score":
        hardest = plan.hardness * rows["value"].astype(np.float64)
        return -hardest if plan.settings.hard else hardest
    if order == "importance":
        return _importance(plan, rows["upper"], rows["rank_of_class"])
    if order != "draw":
        return np.zeros(len(rows["upper"]))  # to come
    weight = rows["unit_weight"] if "unit_weight" in rows else sampling_weight(plan, rows)
    return priority(uniform(rows.get("unit_upper", rows["upper"]), plan.seed), weight)


def _importance(plan: Plan, words: NDArray[np.uint64], rank: NDArray[np.float32]) -> NDArray[np.float64]:
    """The draw by ranks of the score; a row without a rank is required."""
    sims, pruned = plan.settings.sims, 1 - plan.budget / plan.running
    rank = np.nan_to_num(ease(plan.settings.score, rank))
    weight = importance(rank, pruned, sims.low, sims.high, sims.sigma)
    return priority(uniform(words, plan.seed), weight)


def stratum(plan: Plan, rows: Columns) -> NDArray[np.int32]:
    """What a row (or its unit) is counted in: a cluster, class or bin, or a piece of one; 0 without strata."""
    kind, strata = plan.strategy.strata, plan.strata
    if kind is None:
        return np.zeros(len(rows["cluster"]), np.int32)
    if kind == "score":
        return score_bin(plan, rows["value"])
    own: NDArray[np.int32] = rows["label"] if kind == "label" else rows.get("stratum", rows["cluster"])
    if strata.pieces is None:
        return own
    first = np.cumsum(strata.pieces) - strata.pieces
    return (first[own] + (rows["lower"] % strata.pieces[own].astype(np.uint64)).astype(np.int64)).astype(np.int32)


def score_bin(plan: Plan, value: NDArray[np.float32]) -> NDArray[np.int32]:
    """The stratum of each score: a bin of equal width, or the last for a row that has none, which is required."""
    strata, number = plan.strata, plan.settings.ccs.strata
    hard = plan.hardness * value.astype(np.float64)
    place = np.where(np.isnan(hard), number, strata_of(np.nan_to_num(hard), strata.low, strata.high, number))
    return (strata.bin[place] if len(strata.bin) else place).astype(np.int32)


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
        reason = reason_of_split(plan, of_unit["split"][members.unit], reason)
    return {"reason": reason, **{name: column[members.unit] for name, column in of_unit.items()}}, None


# the order in strata


def count_rows(*layers: Columns) -> NDArray[np.int64]:
    """Rows in the running, and how many of these are required: int64 (2,)."""
    rows = merge(layers)
    return np.array([running(rows).sum(), (rows["reason"] == CODE["required"]).sum()])


def count_strata(plan: Plan, number: int, *layers: Columns) -> NDArray[np.int64]:
    """The same in each of so many strata: int64 (2, strata)."""
    rows = merge(layers)
    where, required = stratum(plan, rows), rows["reason"] == CODE["required"]
    return np.stack([np.bincount(where[these], minlength=number) for these in (running(rows), required)])


def hard_range(plan: Plan, *layers: Columns) -> tuple[float, float]:
    """The least and the greatest hardness in the running; inf and -inf where there is none."""
    rows = merge(layers)
    hard = plan.hardness * rows["value"][running(rows) & ~np.isnan(rows["value"])].astype(np.float64)
    return float(hard.min(initial=np.inf)), float(hard.max(initial=-np.inf))


def send_to_stratum(plan: Plan, rows: Columns, shards: Shards) -> tuple[Columns, NDArray[np.integer]]:
    """Rows in the running to the partition of their stratum, with their embeddings if those decide."""
    columns, there = _item_columns(plan, rows), running(rows)
    if plan.strategy.order in ("spread", "k_center", "facility_location", "semdedup"):
        columns["distance"] = rows.get("unit_distance", rows["distance"])
    if plan.strategy.order == "importance":
        columns["by_all"] = _importance(plan, rows["lower"], rows["rank_of_all"])
    if plan.strategy.embedded:
        columns["embedding"] = read_vectors(plan, shards, there)
    return columns, np.where(there, plan.strata.partition[columns["stratum"]], -1)


def read_vectors(plan: Plan, shards: Shards, there: NDArray[np.bool_]) -> NDArray[np.float16]:
    """The embeddings of a part's rows; zeros, which take no room, where they are not wanted."""
    found, first = np.zeros((0, 0), np.float16), 0
    for name, count in zip(shards.names, shards.rows.tolist(), strict=True):
        wanted = first + np.flatnonzero(there[first : first + count])
        if len(wanted):
            own = embeddings(plan.store.read(name, ["embedding"]))
            if not len(found):
                found = np.zeros((len(there), own.shape[1]), np.float16)
            found[wanted] = own[wanted - first]
        first += count
    return found if len(found) else np.zeros((len(there), 0), np.float16)


def order_strata(plan: Plan, number: int, rows: Columns) -> tuple[Columns, None]:
    """The score of every row, from its place in its stratum, and the first refused priority of its stratum."""
    order = plan.strategy.order
    if plan.strategy.greedy:
        return _order_pieces(plan, rows), None
    members = _members(rows)
    items = _items(rows, members)
    made: Columns = {}
    if order == "spread":
        distance = rows["distance"] if members is None else rows["distance"][members.leaders]
        made["priority"], made["near"] = spread_order(items, distance.astype(np.float64), plan.settings.nearest)
    if order == "margin":
        made["value"], made["priority"] = _prototypes(plan, rows)
    if "priority" in made:
        items = items._replace(priority=made["priority"])
    turn = by_weight(plan.weights) if plan.tree is None else plan.tree.turn
    made["score"], made["threshold"] = cluster_order(items, turn, plan.quotas, plan.settings.balance)
    if order == "importance":  # what its class has refused is drawn from all
        beyond = np.isnan(made["score"])
        made["threshold"] = np.where(beyond, np.nan, made["threshold"])
        made["priority"] = np.where(beyond, rows["by_all"], items.priority)
        made["score"] = np.where(beyond, rows["by_all"], made["score"])
    if members is not None:
        made = {name: column[members.unit] for name, column in made.items()}
    return made, None


def _pieces(rows: Columns) -> list[NDArray[np.int64]]:
    """The rows of each stratum, by id."""
    order = np.lexsort((rows["lower"], rows["upper"], rows["stratum"]))
    edges = np.flatnonzero(np.diff(rows["stratum"][order])) + 1
    return [piece for piece in np.split(order, edges) if len(piece)]


def _order_pieces(plan: Plan, rows: Columns) -> Columns:
    """Each piece by its greedy order, as far as the budget goes."""
    rule = GREEDY[plan.strategy.order]
    value = np.full(len(rows["upper"]), np.nan)
    for piece in _pieces(rows):
        required, distance = rows["required"][piece], rows["distance"][piece].astype(np.float64)
        value[piece] = rule.order(cosines(rows["embedding"][piece]), required, distance, plan.budget)
    return {"value": value, "priority": -rule.sign * value, "score": -rule.sign * value}


def _prototypes(plan: Plan, rows: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The margin of every row to the centroids of its class's k-means, and its place by them."""
    margin, place = np.zeros(len(rows["upper"])), np.zeros(len(rows["upper"]))
    assert plan.quotas is not None
    for piece in _pieces(rows):
        free = piece[~rows["required"][piece]]
        number = int(plan.quotas[rows["stratum"][piece[0]]]) - (len(piece) - len(free))
        if number > 0:
            x = rows["embedding"][free]
            points = Rows({0: lambda x=x: x}, plan.seed)  # type: ignore[misc]
            centroids = fit_kmeans(points, number, plan.seed, spherical=False).centroids
            cluster, margin[free] = margins(x, centroids, plan.settings.margin.alpha)
            place[free] = best_of_each(cluster, margin[free])
    return margin, place


# the order of all


def score(plan: Plan, rows: Columns) -> NDArray[np.float64]:
    """The smallest are kept; NaN where a row is no longer in the running."""
    if plan.grown:
        return rows["grown"]
    value = row_priority(plan, rows) if plan.strategy.strata is None else rows["score"]
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
    chosen = np.where(rows.get("guided", np.zeros(len(kept), bool)), CODE["guided"], chosen)
    if plan.grown:
        stays = (rows["was"] >= 0) & (rows["before"] != CODE["required"])
        chosen = np.where(stays, rows["before"], chosen)
    refused = CODE["entropy" if plan.strategy.order == "entropy" else "quota"]
    return np.where(rows["reason"] == OPEN, np.where(kept, chosen, refused), rows["reason"])
