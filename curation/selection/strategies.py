"""The strategies by name, and the orders that they are made of.

A strategy orders the samples of each stratum (or of all), then all samples by
one score: the first n are what budget n selects, so the position in that order
is the rank. What is ordered is an item: a sample, or a unit of samples that
stand or fall together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.selection.quotas import cluster_weights, seat_quotient
from curation.selection.sampling import Floats, Words, line_up

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Strategy:
    """What a strategy is made of.

    Attributes:
        strata: what items are ordered in: clusters, classes by label, bins of `select.score`, or all together.
        order: of a stratum's items: a weighted random draw; falling entropy; spread over the distances to the
            centroid; the score itself; importance sampling on the score's ranks; greedy on the embeddings
            (`selection.greedy`); margin prototypes.
        seats: what decides between strata: a quota each by weights, a quota each down the levels of clusters, or
            (none) one order over all.
        guided: whether the classes of a bank may lead it (`selection.guided`).
        nested: whether a smaller budget selects the first ranks of a larger one.
    """

    strata: Literal["cluster", "label", "score"] | None
    order: Literal[
        "draw", "entropy", "spread", "score", "importance", "k_center", "facility_location", "semdedup", "margin"
    ]
    seats: Literal["quotas", "levels"] | None = None
    nested: bool = True
    guided: bool = False

    @property
    def labelled(self) -> bool:
        """Whether samples need a label."""
        return self.strata == "label"

    @property
    def scored(self) -> bool:
        """Whether samples need `select.score`."""
        return self.strata == "score" or self.order in ("score", "importance")

    @property
    def greedy(self) -> bool:
        """Whether the order is one of `selection.greedy`."""
        return self.order in ("k_center", "facility_location", "semdedup")

    @property
    def embedded(self) -> bool:
        """Whether the order looks at embeddings."""
        return self.greedy or self.order == "margin"

    @property
    def balances(self) -> bool:
        """Whether clusters have quotas, which keys and weights of the user may bend."""
        return self.strata == "cluster" and self.seats is not None

    @property
    def whole(self) -> bool:
        """Whether it can order units of several samples."""
        return not (self.labelled or self.scored or self.embedded)


STRATEGIES = {
    "balanced": Strategy("cluster", "draw", "quotas", guided=True),
    "rs_prune": Strategy("cluster", "spread", "quotas"),
    "stratified": Strategy("cluster", "draw", "quotas"),
    "hierarchical": Strategy("cluster", "draw", "levels"),
    "random": Strategy(None, "draw"),
    "entropy": Strategy(None, "entropy"),
    "k_center": Strategy("cluster", "k_center"),
    "facility_location": Strategy("cluster", "facility_location"),
    "semdedup": Strategy("cluster", "semdedup"),
    "oracle": Strategy("label", "draw", "quotas"),
    "margin": Strategy("label", "margin", "quotas", nested=False),
    "el2n": Strategy(None, "score"),
    "ccs": Strategy("score", "draw", "quotas"),
    "sims": Strategy("label", "importance", "quotas", nested=False),
}


class Items(NamedTuple):
    """What is ordered; every array is (n,).

    Attributes:
        stratum: the cluster, class or bin (0 where a strategy has none).
        priority: the smallest first.
        required: these go before all others.
        upper, lower: the id, which decides ties.
        size: samples in it.
        group: that it is balanced over within its cluster; ``None`` where there are no groups.
    """

    stratum: NDArray[np.int32]
    priority: Floats
    required: NDArray[np.bool_]
    upper: Words
    lower: Words
    size: Ints
    group: NDArray[np.int32] | None = None

    def by_group(self) -> NDArray[np.int32]:
        """(n,) a number for each cluster and group."""
        if self.group is None:
            return self.stratum
        both = self.stratum.astype(np.int64) << 32 | self.group
        number: NDArray[np.int32] = np.unique(both, return_inverse=True)[1].astype(np.int32)
        return number


Turn = Callable[[NDArray[np.int32], Ints, Ints], NDArray[np.floating] | Ints]


def by_weight(weights: Floats) -> Turn:
    """When seats are given out by `quotas.quotas`: the negative quotient of clusters, seats before and sizes.

    Args:
        weights: (K,) of the clusters, see `quotas.cluster_weights`.
    """
    return lambda cluster, before, size: -seat_quotient(weights[cluster], before, size)


def cluster_order(items: Items, turn: Turn, quotas: Ints | None, balance: float = 0.0) -> tuple[Floats, Floats]:
    """The score of every item for `overall_order`, from its place in its cluster.

    A cluster's seats go to its groups by the rule that gives them to clusters by
    weight, one after the other, so that no group loses one when its cluster gets more.

    Args:
        items: whole clusters.
        turn: the score of a seat, out of its cluster, the seats before it there, and how many are taken at once.
        quotas: (K,) samples that each cluster keeps; ``None`` where units must be cut overall.
        balance: of the groups in their cluster, likewise.

    Returns:
        score: (n,) of the item's seat, -inf for required ones, NaN beyond the quota.
        threshold: (n,) the first refused priority of its cluster and group, NaN where nothing was refused.
    """
    strata = items.by_group()
    first = np.where(items.required, -np.inf, items.priority)
    order, start = line_up(strata, first, items.upper, items.lower)
    if items.group is not None:
        share = cluster_weights(np.bincount(strata, items.size), balance)
        worth = np.empty(len(order))
        worth[order] = -seat_quotient(share[strata[order]], _before(items, order, start), items.size[order])
        worth[items.required] = -np.inf
        order, start = line_up(items.stratum, worth, items.group.astype(np.uint64), items.upper, items.lower)
    clusters, before = items.stratum[order], _before(items, order, start)
    score, threshold = np.empty(len(order)), np.full(strata.max(initial=-1) + 1, np.nan)
    score[order] = np.where(items.required[order], -np.inf, turn(clusters, before, items.size[order]))
    if quotas is not None:
        refused = order[before >= quotas[clusters]]
        score[refused] = np.nan
        threshold[strata[refused[::-1]]] = items.priority[refused[::-1]]  # the last one written is the first refused
    return score, threshold[strata]


def _before(items: Items, order: Ints, start: Ints) -> Ints:
    """Samples before each of ``order``, from its start."""
    size = items.size[order]
    before = np.cumsum(size) - size
    return before - before[start]


def overall_order(items: Items, score: Floats, first: int, budget: int) -> tuple[Ints, float]:
    """The rank of each item's first sample among all kept ones.

    The first item that does not fit into the budget whole is refused, and
    everything after it.

    Args:
        items: all those whose scores lie in one range.
        score: (n,) the smallest first; ties by stratum, then id.
        first: samples in the partitions before this one.
        budget: samples.

    Returns:
        rank: (n,) -1 where refused.
        refused: the first refused score, inf without one.
    """
    everywhere = np.zeros(len(score), np.int32)
    order, _ = line_up(everywhere, score, items.stratum.astype(np.uint64), items.upper, items.lower)
    end = first + np.cumsum(items.size[order])
    rank = np.empty(len(score), np.int64)
    rank[order] = np.where(end <= budget, end - items.size[order], -1)
    return rank, float(np.min(score[rank < 0], initial=np.inf))


def spread_order(items: Items, distance: Floats, nearest: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Priorities that keep near samples and samples at all distances in a fixed proportion, for every quota.

    Every item makes two claims. Standing r-th in its cluster by distance (from
    0) it claims place r / nearest; standing i-th in van der Corput's order of
    those ranks, which fills the quantiles evenly at every length, it claims
    place (i + 1) / (1 - nearest). The better claim counts. So among the first n
    there are at most n claims below n, hence the ceil(nearest n) nearest and the
    first of the even spread are in, whatever n is; no draw is involved.

    Args:
        items: whole clusters; each of their groups is spread on its own.
        distance: (n,) to the centroid.
        nearest: share of every quota that goes to the nearest, 0 to 1.

    Returns:
        priority: (n,), the smallest first; of no meaning for required items.
        near: (n,) whether nearness was the better claim.
    """
    items = items._replace(stratum=items.by_group())
    strata, counts = np.unique(items.stratum[~items.required], return_counts=True)
    size = np.ones(max(items.stratum.max(initial=0) + 1, 1), np.int64)
    size[strata] = counts
    by_distance = _position(items, distance)
    in_spread = _position(items, _van_der_corput(by_distance, size[items.stratum]))
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.nan_to_num(by_distance / np.float64(nearest), nan=np.inf)
        spread = (in_spread + 1) / np.float64(1 - nearest)
    return np.minimum(near, spread), near <= spread


def _position(items: Items, value: Floats) -> Ints:
    """The place of each item among those of its cluster that are not required, by value, then id."""
    order, start = line_up(items.stratum, np.where(items.required, np.inf, value), items.upper, items.lower)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order)) - start
    return position


def _van_der_corput(rank: Ints, size: Ints) -> Floats:
    """When van der Corput's sequence in base 2 first hits [rank / size, (rank + 1) / size), for sizes up to 2^31.

    Its points are the bits of 0, 1, 2, … read backwards. As many bits as tell
    the ranks apart put one or two points into an interval; of two, the even one
    has a bit less and comes earlier.
    """
    rank = np.minimum(rank, size - 1)
    bits = np.ceil(np.log2(size)).astype(np.int64)
    point = -(-(rank << bits) // size)
    point += point & (((point + 1) * size < (rank + 1) << bits).astype(np.int64))
    backwards = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)
    return backwards[(point << (32 - bits)).astype(">u4").view(np.uint8)].view("<u4").astype(np.float64)
