"""Quotas: they sum to the budget, respect caps and floors, never shrink when it grows, and rank the seats."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.quotas import cluster_weights, quotas, seat_quotient

CLUSTERS = st.lists(
    st.tuples(st.integers(1, 30), st.sampled_from([1e-3, 0.5, 1.0, 1.0, 2.0, 3.0, 7.3, 1e6]), st.floats(0, 1)),
    min_size=1,
    max_size=12,
)


def by_heap(weights: np.ndarray, caps: np.ndarray, budget: int, floors: np.ndarray) -> np.ndarray:
    """One seat after the other to the best quotient, ties to the lowest cluster."""
    seats = floors.copy()
    heap = [(-w / (2 * seats[k] + 1), k) for k, w in enumerate(weights) if seats[k] < caps[k]]
    heapq.heapify(heap)
    for _ in range(budget - floors.sum()):
        _, k = heapq.heappop(heap)
        seats[k] += 1
        if seats[k] < caps[k]:
            heapq.heappush(heap, (-weights[k] / (2 * seats[k] + 1), k))
    return seats


@settings(max_examples=300, deadline=None)
@given(CLUSTERS, st.floats(0, 1))
def test_equals_giving_out_seats_one_by_one(clusters: list, share: float) -> None:
    caps, weights, floor = (np.array(column) for column in zip(*clusters, strict=True))
    floors = (floor * caps * 0.5).astype(np.int64)
    budget = int(floors.sum() + share * (caps.sum() - floors.sum()))
    found = quotas(weights, caps, budget, floors)
    assert found.sum() == budget
    assert (floors <= found).all()
    assert (found <= caps).all()
    np.testing.assert_array_equal(found, by_heap(weights, caps, budget, floors))


@settings(max_examples=50, deadline=None)
@given(CLUSTERS)
def test_no_quota_shrinks_and_seats_in_order_of_quotient_are_every_smaller_budget(clusters: list) -> None:
    caps, weights, _ = (np.array(column) for column in zip(*clusters, strict=True))
    cluster = np.repeat(np.arange(len(caps)), caps)
    seat = np.concatenate([np.arange(cap) for cap in caps])
    order = np.lexsort((cluster, -seat_quotient(weights[cluster], seat)))
    for budget in range(0, caps.sum() + 1, 1 + caps.sum() // 40):
        first = np.bincount(cluster[order[:budget]], minlength=len(caps))
        np.testing.assert_array_equal(quotas(weights, caps, budget), first)


def test_balance_runs_from_proportional_to_water_filling() -> None:
    sizes = np.array([10, 100, 1000])
    np.testing.assert_array_equal(quotas(cluster_weights(sizes, 0.0), sizes, 111), [1, 10, 100])
    np.testing.assert_array_equal(quotas(cluster_weights(sizes, 1.0), sizes, 111), [10, 51, 50])
    np.testing.assert_array_equal(quotas(cluster_weights(sizes, 1.0, [1, 1, 3]), sizes, 100), [10, 23, 67])


def test_a_budget_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 3"):
        quotas([1, 1], [1, 2], 4)


def test_a_million_clusters() -> None:
    random = np.random.default_rng(0)
    sizes = random.geometric(1e-3, 10**6)
    weights = cluster_weights(sizes, 0.5)
    budget = int(sizes.sum() * 0.15)
    found = quotas(weights, sizes, budget)
    assert found.sum() == budget
    least = seat_quotient(weights, found - 1)[found > 0].min()  # no seat left out is worth more than one given
    assert (seat_quotient(weights, found)[found < sizes] <= least).all()
