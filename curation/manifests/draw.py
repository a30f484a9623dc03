"""The draw: what is left is ordered in its strata and overall, and the first that fit the budget are kept."""

import dataclasses

import numpy as np
import ray
from numpy.typing import NDArray

from curation.errors import RequestError
from curation.manifests import grown, guided, order
from curation.manifests.draft import Draft
from curation.manifests.duplicates import RANGES
from curation.manifests.exchange import exchange, submit
from curation.manifests.partitions import deal_strata, number_of_partitions
from curation.manifests.steps import Guide, Strata
from curation.selection import counting
from curation.selection.greedy import LIMIT
from curation.selection.guided import LEAST, SAMPLE
from curation.selection.guided import LIMIT as GUIDED_LIMIT
from curation.selection.quotas import cluster_weights, quotas
from curation.selection.tree import Tree, parents_of

ROWS_WITH_VECTORS = 1 << 16  # rows of a partition that holds embeddings


def draw(draft: Draft) -> None:
    """Order the rows that are left, in their strata and overall, and rank those within the budget.

    Raises:
        RequestError: not even the first unit fits.
    """
    strategy = draft.plan.strategy
    draft.told["nested"] = strategy.nested
    if strategy.labelled:
        draft.told["label"] = draft.plan.label
    draft.learn(running=draft.left)
    if strategy.strata is not None:
        sizes, required = _make_strata(draft)
        if strategy.seats is not None:
            _share_seats(draft, sizes, required)
        _order_strata(draft)
    _order_all(draft)
    if draft.plan.guide is not None and _learn_guide(draft, draft.plan.guide):
        _guide(draft, sizes, required)


def _make_strata(draft: Draft) -> NDArray[np.int64]:
    """Say what rows are ordered in; (2, strata): how many are in each, and how many of them required."""
    strategy = draft.plan.strategy
    if strategy.strata == "score":
        return _cut_bins(draft)
    number = len(draft.plan.names["label"]) if strategy.strata == "label" else len(draft.sizes)
    counts = draft.total(order.count_strata, draft.shared, number)
    partition = deal_strata(counts[0]) if strategy.strata == "label" else draft.plan.partition
    if not strategy.embedded:
        draft.learn(strata=Strata(partition))
        return counts
    pieces = np.maximum(-(-counts[0] // LIMIT), 1)
    sizes = np.repeat(counts[0] // pieces, pieces)
    strata = Strata(deal_strata(sizes, ROWS_WITH_VECTORS, RANGES), pieces)
    draft.learn(strata=strata)
    counts = draft.total(order.count_strata, draft.shared, len(sizes))
    draft.told["pieces"] = int((counts[0] > 0).sum())
    return counts


def _cut_bins(draft: Draft) -> NDArray[np.int64]:
    """Drop the hardest, and cut the rest into bins of equal width over the score, numbered by falling size."""
    number = draft.settings.ccs.strata
    if hardest := round(draft.settings.ccs.beta * draft.left):
        sign = draft.plan.hardness
        last = sign * draft.cut("value", sign, draft.left - hardest, "hard")
        draft.told["hardest"] = last
        draft.learn(hardest=last)
        draft.check(f"select.ccs.beta={draft.settings.ccs.beta:g} leaves")
    lows, highs = zip(*ray.get([submit(order.hard_range, draft.shared, *part) for part in draft.parts]), strict=True)
    strata = Strata(np.zeros(number + 1, np.int16), low=min(lows), high=max(highs))
    draft.learn(strata=strata)
    counts = draft.total(order.count_strata, draft.shared, number + 1)
    fullest = np.argsort(counts[0], kind="stable")[::-1]  # these take what the published budgets leave over
    strata = dataclasses.replace(
        strata, bin=np.argsort(fullest).astype(np.int32), partition=deal_strata(counts[0][fullest])
    )
    draft.learn(strata=strata)
    return counts[:, fullest]


def _share_seats(draft: Draft, sizes: NDArray[np.int64], required: NDArray[np.int64]) -> None:
    """Quotas of the strata, unless units must be cut overall."""
    plan, settings = draft.plan, draft.settings
    if plan.strategy.seats == "levels":
        tree = Tree(sizes, _parents(draft))
        quota = None if settings.grouped else tree.quotas(plan.budget, required)
        draft.learn(tree=tree, quotas=quota)
        return
    if plan.strata.pieces is not None:
        _share_pieces(draft, sizes, required, plan.strata.pieces)
        return
    factors = np.ones(len(sizes))
    if plan.strategy.strata == "cluster":
        for cluster, factor in (settings.clusters.weight or {}).items():
            factors[cluster] = factor
    weights = cluster_weights(sizes, settings.balance, factors)
    budget = plan.budget
    if plan.strategy.order == "importance":
        budget = max(round(settings.sims.class_share * budget), int(required.sum()))
    quota = None if settings.grouped else quotas(weights, sizes, budget, required)
    draft.learn(weights=weights, quotas=quota)


def _parents(draft: Draft) -> list[NDArray[np.int64]]:
    """Of each level, from the lowest; see `selection.tree`."""
    ancestors = np.array(draft.centroids["ancestors"].to_pylist(), np.int64)
    return parents_of(ancestors.reshape(len(draft.centroids), -1))


def _share_pieces(
    draft: Draft, sizes: NDArray[np.int64], required: NDArray[np.int64], pieces: NDArray[np.int64]
) -> None:
    """Quotas of classes, and of each class's in proportion to its pieces."""
    first = np.cumsum(pieces) - pieces
    of_class, floors = np.add.reduceat(sizes, first), np.add.reduceat(required, first)
    weights = cluster_weights(of_class, draft.settings.balance)
    seats = quotas(weights, of_class, draft.plan.budget, floors)
    quota = np.zeros(len(sizes), np.int64)
    for start, number, budget in zip(first, pieces, seats.tolist(), strict=True):
        own = slice(start, start + number)
        quota[own] = quotas(cluster_weights(sizes[own], 0), sizes[own], budget, required[own])
    draft.learn(weights=np.repeat(weights, pieces), quotas=quota)


def _order_strata(draft: Draft) -> None:
    """Order the rows in their strata."""
    partitions = int(draft.plan.strata.partition.max()) + 1
    draft.exchange(partitions, order.send_to_stratum, order.order_strata, shards=True)


def _order_all(draft: Draft) -> float:
    """Rank by score, and tell the last kept one.

    The bins of the scores tell which rows can fit, and what lies before each partition.

    Raises:
        RequestError: not even the first unit fits.
    """
    ends = np.cumsum(draft.total(order.count_scores, draft.shared))
    end = min(int(np.searchsorted(ends, draft.plan.budget, side="right")), counting.BINS - 1)
    starts = np.concatenate([[0], ends[:-1]])
    partitions = number_of_partitions(int(ends[end]))
    bins = np.where(np.arange(counting.BINS) <= end, starts * partitions // max(ends[end], 1), -1)
    before = starts[np.searchsorted(bins[: end + 1], np.arange(partitions))]
    draft.learn(bin_partition=bins.astype(np.int16), before=before)
    told = draft.exchange(partitions, order.send_to_score, order.order_all)
    if not sum(ordered.kept for ordered in told):
        raise RequestError(
            f"select.budget={draft.settings.budget:g} comes to {draft.plan.budget} samples, fewer than "
            f"the first {draft.settings.grouped} has: raise it"
        )
    refused = min(ordered.refused for ordered in told)
    last: float = max(ordered.last for ordered in told)
    strategy = draft.plan.strategy
    if strategy.order == "entropy" and np.isfinite(last):
        draft.tell_least_entropy(-last)
    elif (strategy.seats is None or strategy.order == "importance") and np.isfinite(refused):
        draft.learn(threshold=refused)
    if strategy.order == "semdedup" and np.isfinite(last):
        draft.told["epsilon"] = 1 - last
    return last


def _learn_guide(draft: Draft, guide: Guide) -> bool:
    """How much of the selection goes by the bank's classes, and their shares; whether any does."""
    rows = int(draft.total(guided.count, draft.shared)[0])
    guide = dataclasses.replace(guide, rows=rows, required=draft.required, sampled=min(1.0, SAMPLE / max(rows, 1)))
    draft.learn(guide=guide)
    learnt = _learnt_before(draft)
    if learnt is None:  # on a sample, which is no column of anybody's
        _, [learnt] = exchange(draft.parts, 1, draft.shared, guided.send_to_sample, guided.learn, draft.shards)
    share = draft.settings.guided
    if share is None:
        share = learnt.share if learnt.share >= LEAST else 0.0
    pieces = max(1, -(-rows // GUIDED_LIMIT))
    guide = dataclasses.replace(
        guide,
        share=share,
        class_shares=learnt.class_shares,
        pieces=pieces,
        partitions=min(pieces, RANGES),
    )
    draft.learn(guide=guide if share else None)
    draft.told["guided"] = {
        "share": share,
        "explained": learnt.share,
        "rows": rows,
        "pieces": pieces,
        "classes": list(guide.classes),
        "class_shares": learnt.class_shares.tolist(),
    }
    return share > 0


def _learnt_before(draft: Draft) -> guided.Learnt | None:
    """What the parent had learnt of the archive, which stays with the clusters."""
    told = draft.again.content["selection"].get("guided", {}) if draft.again is not None else {}
    if "explained" not in told:
        return None
    return guided.Learnt(told["explained"], np.array(told["class_shares"]))


def _guide(draft: Draft, sizes: NDArray[np.int64], required: NDArray[np.int64]) -> None:
    """Merge the draw's order with that of the bank's classes; the draw refuses from where its part ends."""
    assert draft.plan.guide is not None
    draft.exchange(draft.plan.guide.partitions, guided.send_to_piece, guided.order_pieces, shards=True)
    draft.add(guided.claim, draft.shared)
    last = _order_all(draft)
    drawn = max(draft.add_told(guided.settle, draft.shared, last))
    quota = quotas(draft.plan.weights, sizes, drawn, required)
    draft.learn(quotas=quota)
    _order_strata(draft)


def grow(draft: Draft) -> None:
    """Keep what the parent kept and is still there; newcomers take what the draw leaves in each cluster.

    Raises:
        RequestError: not even the first unit fits.
    """
    partitions = int(draft.plan.partition.max()) + 1
    draft.learn(grown=True)
    draft.exchange(partitions, grown.send_to_cluster, grown.grow)
    kept = int(draft.total(grown.count)[0])
    if kept != draft.plan.budget:
        draft.warn(f"recurate.mode=grow: {kept} samples are kept where select.budget comes to {draft.plan.budget}")
    draft.told["draw"] = draft.plan.budget
    draft.learn(budget=kept)
    draft.told["nested"] = False
    _order_all(draft)
