"""The orders behind the strategies: rs_prune's near and spread samples, and units that stay whole."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection import units
from curation.selection.quotas import seat_quotient
from curation.selection.sampling import split_ids
from curation.selection.strategies import Items, by_weight, cluster_order, overall_order, spread_order
from tests.test_selection_sampling import make_ids


def items_of(stratum: np.ndarray, size: np.ndarray | None = None) -> Items:
    number = len(stratum)
    upper, lower = split_ids(make_ids(number))
    size = np.ones(number, np.int64) if size is None else size
    return Items(stratum.astype(np.int32), np.zeros(number), np.zeros(number, bool), upper, lower, size)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 1.0]))
def test_every_prefix_holds_the_nearest_and_an_even_spread(number: int, nearest: float) -> None:
    distance = np.random.default_rng(number).permutation(number) / 10
    priority, near = spread_order(items_of(np.zeros(number)), distance, nearest)
    order = np.argsort(priority)
    for n in range(1, number + 1):
        first = np.sort((distance[order[:n]] * 10).astype(int))  # ranks by distance
        wanted = math.ceil(nearest * n - 1e-9)
        assert set(range(wanted)) <= set(first)
        others = max(n - wanted - 2, 0)  # of n points in van der Corput's order no gap is wider than twice the mean
        if others and nearest < 1:
            assert np.diff([-1, *first, number]).max() <= math.ceil(2 * number / others) + 1
    if nearest in (0.0, 1.0):
        assert near.all() == (nearest == 1.0)


def test_the_spread_is_each_cluster_s_own_and_leaves_required_ones_out() -> None:
    stratum = np.repeat([0, 3], 40)
    items = items_of(stratum)
    distance = np.concatenate([np.arange(40.0), 100 + np.arange(40.0)])
    priority, _ = spread_order(items, distance, 0.5)
    np.testing.assert_array_equal(priority[:40], priority[40:])
    items.required[[0, 1, 41]] = True
    without, _ = spread_order(items, distance, 0.5)
    free = ~items.required[:40]
    alone, _ = spread_order(items_of(np.zeros(free.sum())), distance[:40][free], 0.5)
    np.testing.assert_array_equal(without[:40][free], alone)


def make_units(seed: int, number: int) -> Items:
    random = np.random.default_rng(seed)
    items = items_of(random.integers(0, 4, number), random.integers(1, 9, number))
    items.required[random.random(number) < 0.1] = True
    return items._replace(priority=random.exponential(size=number))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0, 1))
def test_units_fill_the_budget_to_less_than_one_unit_and_rank_at_their_edges(
    seed: int, number: int, share: float
) -> None:
    items = make_units(seed, number)
    least = items.size[items.required].sum()
    budget = int(least + share * (items.size.sum() - least))
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    score, threshold = cluster_order(items, by_weight(weights), None)
    assert np.isnan(threshold).all()
    rank, refused = overall_order(items, score, 0, budget)
    kept = rank >= 0
    total = items.size[kept].sum()
    assert total <= budget
    assert kept[items.required].all()
    assert np.isinf(refused) == kept.all()
    if not kept.all():
        next_one = np.flatnonzero(~kept)[np.lexsort((items.stratum[~kept], score[~kept]))[0]]
        assert total + items.size[next_one] > budget
    edges = np.sort(rank[kept])
    np.testing.assert_array_equal(edges, np.cumsum([0, *items.size[kept][np.argsort(rank[kept])][:-1]])[: len(edges)])
    smaller, _ = overall_order(items, score, 0, int(total))
    np.testing.assert_array_equal(smaller, rank)


def test_units_of_one_sample_are_samples() -> None:
    items = make_units(3, 50)._replace(size=np.ones(50, np.int64))
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    score, _ = cluster_order(items, by_weight(weights), None)
    for k in range(4):
        free = (items.stratum == k) & ~items.required
        before = (items.required & (items.stratum == k)).sum() + np.arange(free.sum())
        own = score[free][np.argsort(items.priority[free])]
        np.testing.assert_array_equal(own, -seat_quotient(weights[k], before))


def test_a_partition_goes_on_where_the_one_before_ended() -> None:
    items = make_units(1, 40)
    score, _ = cluster_order(items, by_weight(np.ones(4)), None)
    rank, refused = overall_order(items, score, 0, 60)
    cut = np.median(score)
    low, high = (Items(*(column[there] for column in items[:6])) for there in (score < cut, score >= cut))
    first, here = overall_order(low, score[score < cut], 0, 60)
    second, beyond = overall_order(high, score[score >= cut], int(low.size.sum()), 60)
    np.testing.assert_array_equal(rank[score < cut], first)
    np.testing.assert_array_equal(rank[score >= cut], second)
    assert refused == min(here, beyond)


def test_members_stand_together_in_the_cluster_of_most() -> None:
    names = ["a", "b", "a", None, "b", "a", "b", "b", None]
    cluster = np.array([5, 2, 5, 1, 1, 0, 2, 1, 4], np.int32)
    sample = split_ids(make_ids(len(names)))
    unit = units.unit_ids(pa.array(names), *sample)
    members = units.group(unit, sample)
    assert (unit[0][3], unit[1][3]) == (sample[0][3], sample[1][3])  # a sample without a value is its own unit
    assert len(set(members.unit)) == 4
    assert [members.unit[i] for i in (0, 2, 5)] == [members.unit[0]] * 3
    of_row = units.majority(members, cluster)[members.unit]
    assert of_row.tolist() == [5, 1, 5, 1, 1, 5, 1, 1, 4]  # b has two in 1 and two in 2
    assert members.size[members.unit].tolist() == [3, 4, 3, 1, 4, 3, 4, 4, 1]
    np.testing.assert_allclose(units.mean(members, cluster.astype(float))[members.unit][[0, 1]], [10 / 3, 6 / 4])
    ids = list(zip(*sample, strict=True))
    for one in set(members.unit):
        own = sorted(np.flatnonzero(members.unit == one), key=lambda i: ids[i])
        assert members.place[own].tolist() == list(range(len(own)))
        assert own[0] in members.leaders


@pytest.mark.parametrize("values", [[1, 1, 2], [True, True, False]])
def test_units_by_numbers_and_truths(values: list) -> None:
    sample = split_ids(make_ids(3))
    upper, _ = units.unit_ids(pa.array(values), *sample)
    assert upper[0] == upper[1] != upper[2]
