"""Consistent sampling: the draw hangs on the id alone, is nested, and its weights undo it."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.quotas import cluster_weights, quotas
from curation.selection.sampling import (
    distance_weight,
    estimate_weight,
    hash01,
    join_ids,
    line_up,
    mix,
    priority,
    split_ids,
    uniform,
)
from curation.selection.strategies import Items, by_weight, cluster_order, overall_order


def make_ids(number: int, salt: str = "") -> pa.Array:
    return pa.array([hashlib.blake2b(f"{salt}{i}".encode(), digest_size=16).hexdigest() for i in range(number)])


def make_items(number: int, clusters: int, seed: int, weight: np.ndarray | float = 1.0) -> Items:
    ids = make_ids(number)
    upper, lower = split_ids(ids)
    stratum = (np.arange(number) % clusters).astype(np.int32)
    return Items(
        stratum=stratum,
        priority=priority(hash01(ids, seed), weight),
        required=np.zeros(number, bool),
        upper=upper,
        lower=lower,
        size=np.ones(number, np.int64),
    )


def take(items: Items, rows: np.ndarray) -> Items:
    return Items(*(column[rows] for column in items[:6]))


def keep(items: Items, weights: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank (-1: dropped) and threshold."""
    caps = np.bincount(items.stratum, minlength=len(weights))
    floors = np.bincount(items.stratum[items.required], minlength=len(weights))
    score, threshold = cluster_order(items, by_weight(weights), quotas(weights, caps, budget, floors))
    there = np.flatnonzero(~np.isnan(score))
    rank = np.full(len(score), -1)
    rank[there], _ = overall_order(take(items, there), score[there], 0, budget)
    return rank, threshold


def test_ids_are_split_and_joined() -> None:
    ids = make_ids(1000)
    upper, lower = split_ids(ids)
    assert upper[3] == int(ids[3].as_py()[:16], 16)
    assert lower[3] == int(ids[3].as_py()[16:], 16)
    assert join_ids(upper, lower).equals(ids)
    assert join_ids(*split_ids(ids.slice(17, 40))).equals(ids.slice(17, 40))
    chunked = pa.chunked_array([ids.slice(0, 5), ids.slice(5, 0), ids.slice(5, 3)])
    np.testing.assert_array_equal(split_ids(chunked)[0], upper[:8])
    assert len(join_ids(*split_ids(pa.array([], pa.string())))) == 0


@pytest.mark.parametrize("bad", [["abc"], [None], ["0" * 31, "0" * 33], ["x" * 32]])
def test_other_texts_are_no_ids(bad: list) -> None:
    with pytest.raises(ValueError):
        split_ids(pa.array(bad, pa.string()))


def test_mix_is_splitmix64() -> None:
    # the first outputs of the published generator for the seed 1234567
    states = 1234567 + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_uniform_and_hang_on_id_and_seed_only() -> None:
    ids = make_ids(20000)
    u = hash01(ids, 7)
    assert u.min() > 0
    assert u.max() < 1
    counts = np.bincount((u * 20).astype(int), minlength=20)
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-square, 19 degrees of freedom
    backwards = hash01(ids.take(pa.array(np.arange(20000)[::-1])), 7)
    np.testing.assert_array_equal(backwards[::-1], u)
    assert abs(np.corrcoef(u, hash01(ids, 8))[0, 1]) < 0.03
    assert (hash01(ids, 7) != hash01(ids, -7)).any()


def test_near_samples_weigh_more_where_representativeness_is_positive() -> None:
    distance = np.array([0.1, 0.5, 0.9, 100.0])
    weight = distance_weight(distance, 0.5, 0.4, 1.0)
    np.testing.assert_allclose(weight, np.exp([1.0, 0.0, -1.0, -3.0]))
    np.testing.assert_allclose(distance_weight(distance, 0.5, 0.4, -1.0), 1 / weight)
    np.testing.assert_array_equal(distance_weight(distance, 0.5, 0.0, 1.0), np.ones(4))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200_000), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3)), max_size=60))
def test_rows_line_up_like_a_full_sort(rows: list) -> None:
    stratum, value, tie = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.empty(0),) * 3
    unique = np.arange(len(rows), dtype=np.uint64)[::-1]
    order, start = line_up(stratum.astype(np.int32), value.astype(float), tie.astype(np.uint64), unique)
    expected = np.lexsort((unique, tie, value, stratum))
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(start, np.searchsorted(stratum[expected], stratum[expected]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 3), st.data())
def test_the_first_n_by_rank_are_what_budget_n_selects(clusters: int, seed: int, data: st.DataObject) -> None:
    items = make_items(150, clusters, seed)
    items.required[data.draw(st.lists(st.integers(0, 149), max_size=5))] = True
    weights = cluster_weights(np.bincount(items.stratum, minlength=clusters), 0.5) * (1 + np.arange(clusters) % 3)
    budget = data.draw(st.integers(10, 150))
    rank, _ = keep(items, weights, budget)
    assert sorted(rank[rank >= 0]) == list(range(budget))
    assert set(rank[items.required]) == set(range(items.required.sum()))
    smaller = data.draw(st.integers(5, budget))
    less, _ = keep(items, weights, smaller)
    np.testing.assert_array_equal(less, np.where(rank < smaller, rank, -1))


def test_newcomers_displace_but_never_reorder() -> None:
    items = make_items(400, 1, 0)
    rank, _ = keep(items, np.ones(1), 100)
    fewer, _ = keep(take(items, np.arange(300)), np.ones(1), 100)
    before = np.flatnonzero(fewer >= 0)
    stay = before[rank[before] >= 0]
    assert 50 < len(stay) < 100
    assert (np.argsort(fewer[stay]) == np.argsort(rank[stay])).all()
    displaced = (rank[300:] >= 0).sum()
    assert len(before) - len(stay) == displaced


def test_weights_undo_the_draw() -> None:
    """Horvitz-Thompson totals over many seeds are close to the truth, in each cluster and over all."""
    number, clusters, budget, seeds = 600, 3, 120, 400
    random = np.random.default_rng(0)
    distance, value = random.gamma(4, 0.2, number), random.uniform(1, 5, number)
    value += distance  # what is drawn for and what is measured go together
    weight = distance_weight(distance, 0.8, 0.4, 0.7)
    upper, _ = split_ids(make_ids(number))
    items = make_items(number, clusters, 0)
    totals, plain = np.zeros((seeds, clusters)), np.zeros(seeds)
    for seed in range(seeds):
        drawn = items._replace(priority=priority(uniform(upper, seed), weight))
        rank, threshold = keep(drawn, np.array([1.0, 2.0, 6.0]), budget)
        kept = rank >= 0
        estimate = estimate_weight(weight[kept], threshold[kept]) * value[kept]
        totals[seed] = np.bincount(items.stratum[kept], estimate, minlength=clusters)
        plain[seed] = value[kept].mean() * number
    truth = np.bincount(items.stratum, value)
    error = totals.mean(0) - truth
    standard = totals.std(0) / np.sqrt(seeds)
    assert (np.abs(error) < 4 * standard).all()
    assert (standard / truth < 0.02).all()
    assert abs(plain.mean() - truth.sum()) > 10 * plain.std() / np.sqrt(seeds)  # without weights it is far off


def test_where_nothing_is_refused_every_weight_is_one() -> None:
    items = make_items(30, 3, 0)
    rank, threshold = keep(items, np.ones(3), 30)
    assert (rank >= 0).all()
    np.testing.assert_array_equal(estimate_weight(np.full(30, 0.3), threshold), np.ones(30))
