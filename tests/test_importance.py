"""SIMS and CCS: weights, quotas and budgets as properties, and CCS against its published procedure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.ccs import budgets, ccs, kept_after_hardest, strata_of
from curation.selection.importance import class_quotas, ease, importance, sims


def words(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**64, n, np.uint64), rng.integers(0, 2**64, n, np.uint64)


def ranks(scores: np.ndarray) -> np.ndarray:
    return (np.argsort(np.argsort(scores)) + 0.5) / len(scores)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1), st.floats(0, 1))
def test_weights_are_a_normal_density_whose_mean_rises_with_what_is_pruned(pruned, u):
    mean = 0.3 + 0.4 * pruned
    density = np.exp(-((u - mean) ** 2) / (2 * 0.2**2))
    assert importance([u], pruned)[0] == pytest.approx(density)
    assert importance([mean], pruned)[0] == pytest.approx(1)


def test_scores_that_rise_with_difficulty_are_turned():
    assert ease("el2n", [0.25])[0] == ease("forgetting", [0.25])[0] == 0.75
    assert all(ease(name, [0.25])[0] == 0.25 for name in ("sim", "aum", "separability", "integrity", "agreement"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.data())
def test_class_quotas_are_as_equal_as_the_sizes_allow(sizes, data):
    budget = data.draw(st.integers(0, sum(sizes)))
    seats = class_quotas(sizes, budget, 0.5)
    assert seats.sum() == round(0.5 * budget)
    assert (seats <= sizes).all()
    open_ones = seats[seats < sizes]
    if len(open_ones):
        assert seats.max() <= open_ones.min() + 1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(0, 4), st.data())
def test_sims_keeps_the_budget_whatever_the_order(n, seed, data):
    budget = data.draw(st.integers(0, n))
    upper, lower = words(n, seed)
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, n)
    u, within = rng.random(n), rng.random(n)
    kept = sims(upper, lower, seed, u, within, classes, budget)
    assert len(kept) == len(set(kept.tolist())) == budget
    sizes = np.bincount(classes)
    assert (np.bincount(classes[kept], minlength=len(sizes)) >= class_quotas(sizes, budget)).all()
    shuffled = rng.permutation(n)
    args = (upper[shuffled], lower[shuffled], seed, u[shuffled], within[shuffled], classes[shuffled], budget)
    assert (shuffled[sims(*args)] == kept).all()


def test_sims_moves_from_hard_to_easy_and_balances_its_half():
    n = 20_000
    upper, lower = words(n)
    rng = np.random.default_rng(1)
    classes = (rng.random(n) ** 3 * 5).astype(int)  # a long tail
    u = ranks(rng.random(n))
    means = []
    for pruned in (0.3, 0.9):
        budget = round((1 - pruned) * n)
        kept = sims(upper, lower, 0, u, u, classes, budget)
        means.append(u[kept].mean())
        assert means[-1] == pytest.approx(0.3 + 0.4 * pruned, abs=0.1)
    assert means[0] < means[1]
    only_classes = sims(upper, lower, 0, u, u, classes, 1000, class_share=1.0)
    assert np.ptp(np.bincount(classes[only_classes])) <= 1
    flat = sims(upper, lower, 0, u, u, classes, 1000, class_share=0.0)
    shares = np.bincount(classes[flat]) / 1000
    assert np.abs(shares - np.bincount(classes) / n).max() < 0.05


def test_sims_and_ccs_refuse_more_than_there_is():
    upper, lower = words(3)
    with pytest.raises(ValueError, match="4 samples are asked for, but there are 3"):
        sims(upper, lower, 0, np.ones(3), np.ones(3), np.zeros(3, int), 4)
    with pytest.raises(ValueError, match="4 samples are asked for, but there are 3"):
        ccs(upper, lower, 0, np.ones(3), 4)


def published_budgets(num: int, bins: list[int]) -> list[int]:
    """Budgets as in the authors' description: strata by size, each its fair share of what remains."""
    given_, rest = dict[int, int](), num
    for i, at in enumerate(sorted(range(len(bins)), key=lambda b: bins[b])):
        given_[at] = min(bins[at], rest // (len(bins) - i))
        rest -= given_[at]
    return [given_[at] for at in range(len(bins))]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=50), st.data())
def test_budgets_are_the_published_ones(sizes, data):
    budget = data.draw(st.integers(0, sum(sizes)))
    found = budgets(sizes, budget)
    assert found.tolist() == published_budgets(budget, sizes)
    assert found.sum() == budget


def test_ccs_is_the_published_procedure():
    n, budget, beta = 5000, 500, 0.3
    upper, lower = words(n)
    hard = np.random.default_rng(2).gamma(2.0, size=n)
    kept = ccs(upper, lower, 0, hard, budget, beta=beta)
    assert len(set(kept.tolist())) == budget
    left = np.argsort(-hard)[int(beta * n) :]
    edges = np.linspace(hard[left].min(), hard[left].max(), 51)
    sizes = [
        int(((hard[left] >= low) & ((hard[left] < high) | (high == edges[-1]))).sum())
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    strata = np.clip(np.searchsorted(edges, hard[kept], "right") - 1, 0, 49)
    assert np.bincount(strata, minlength=50).tolist() == published_budgets(budget, sizes)
    assert hard[kept].max() <= hard[left].max()


def test_ccs_by_ids_alone():
    n = 300
    upper, lower = words(n)
    hard = np.round(np.random.default_rng(0).random(n), 1)  # many ties
    kept = ccs(upper, lower, 5, hard, 60)
    shuffled = np.random.default_rng(1).permutation(n)
    again = shuffled[ccs(upper[shuffled], lower[shuffled], 5, hard[shuffled], 60)]
    assert set(again.tolist()) == set(kept.tolist())
    assert set(ccs(upper, lower, 6, hard, 60).tolist()) != set(kept.tolist())
    assert len(ccs(upper, lower, 0, hard, 290)) == 290  # beta gives way to the budget
    assert kept_after_hardest([1, 3, 2], 1 / 3).tolist() == [True, False, True]
    assert strata_of([2.0, 2.0], 2.0, 2.0).tolist() == [0, 0]
    assert len(ccs(upper[:0], lower[:0], 0, hard[:0], 0)) == 0
