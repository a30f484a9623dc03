"""What the bank's classes say of the order, against the plainest way to write it down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.selection.guided import (
    CLEAR,
    MOST,
    OFFSET,
    claims,
    class_shares,
    explained,
    guided_order,
    merged,
    posterior,
    wanted,
)

seeds = st.integers(0, 2**32 - 1)


def probabilities(seed: int, rows: int, classes: int, sharp: float = 3.0) -> np.ndarray:
    p = np.exp(np.random.default_rng(seed).normal(size=(rows, classes)) * sharp)
    return np.asarray(p / p.sum(1, keepdims=True))


def naive(p: np.ndarray, shares: np.ndarray, required: np.ndarray, picks: int) -> list[int]:
    q = posterior(p, shares)
    typical = np.exp(CLEAR * (p * np.log(np.maximum(p, 1e-300))).sum(1))
    count, left, order = q[required].sum(0) + OFFSET, ~required, []
    for _ in range(min(picks, int(left.sum()))):
        best = int(np.argmax(np.where(left, (q / count).sum(1) * typical, -1)))
        left[best] = False
        count = count + q[best]
        order.append(best)
    return order


@given(seeds, st.integers(1, 60), st.integers(2, 7), st.integers(0, 70), st.floats(0, 0.5))
def test_the_lazy_order_is_the_greedy_one(seed: int, rows: int, classes: int, picks: int, must: float) -> None:
    p = probabilities(seed, rows, classes).round(2) + 1e-3  # rows tie
    p /= p.sum(1, keepdims=True)
    required, shares = np.random.default_rng(seed).random(rows) < must, class_shares(p)
    place = guided_order(p, shares, required, picks)
    expected = np.full(rows, -1)
    order = naive(p, shares, required.copy(), picks)
    expected[order] = np.arange(len(order))
    assert place.tolist() == expected.tolist()


def test_classes_come_in_turn_and_the_clear_rows_first() -> None:
    sizes, classes = [90, 9, 30], np.repeat([0, 1, 2], [90, 9, 30])
    doubt = np.random.default_rng(0).uniform(0.01, 0.3, len(classes))
    p = np.tile(doubt[:, None] / 2, 3)
    p[np.arange(len(p)), classes] = 1 - doubt
    place = guided_order(p, class_shares(p), np.zeros(len(p), bool), 24)
    assert np.bincount(classes[place >= 0]).tolist() == pytest.approx([8, 8, 8], abs=1)
    for k, size in enumerate(sizes):
        own = (classes == k).nonzero()[0]
        first = own[np.argsort(doubt[own])][: (place[own] >= 0).sum()]
        assert set(first) == set(own[place[own] >= 0]), size


def test_class_shares_are_found_behind_doubtful_probabilities() -> None:
    draw, true = np.random.default_rng(1), np.array([0.7, 0.25, 0.05])
    classes = draw.choice(3, 20_000, p=true)
    z = draw.normal(size=(20_000, 3)) + 1.5 * np.eye(3)[classes]  # so that softmax(1.5 z) is right under equal shares
    p = np.exp(1.5 * z)
    p /= p.sum(1, keepdims=True)
    assert class_shares(p) == pytest.approx(true, abs=0.02)
    assert p.mean(0)[0] < 0.65  # which the mean is not


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_the_explained_share_is_that_of_rows_like_the_bank(share: float) -> None:
    draw = np.random.default_rng(2)
    bank, like = draw.beta(6, 2, 2000), draw.beta(6, 2, 20_000)
    other = draw.uniform(0, 0.3, 20_000)
    archive = np.where(draw.random(20_000) < share, like, other)
    assert explained(archive, bank) == pytest.approx(min(share, MOST), abs=0.06)
    assert explained(np.empty(0), bank) == 0


@given(seeds, st.integers(1, 300), st.floats(0.05, 0.9), st.integers(1, 4), st.floats(0, 1))
def test_every_budget_takes_the_first_of_both_orders_whatever_pieces_and_cuts_there_are(
    seed: int, rows: int, share: float, pieces: int, calm: float
) -> None:
    draw = np.random.default_rng(seed)
    drawn, piece, known = draw.permutation(rows), draw.integers(0, pieces, rows), draw.random(rows) >= calm
    order, of = draw.random(rows), int(known.sum())

    def places(budget: int) -> np.ndarray:
        guided = np.full(rows, np.nan)
        for number in range(pieces):
            own = np.flatnonzero(known & (piece == number))
            place = np.argsort(np.argsort(order[own]))
            place[place >= wanted(len(own), of, pieces, budget, share)] = -1
            guided[own] = merged(place, len(own), of)
        return np.minimum(*claims(guided, np.where(drawn < budget, drawn, np.nan), share))

    whole = np.lexsort((np.arange(rows), places(rows)))
    for budget in {1, rows // 7 + 1, rows // 2 + 1, rows}:
        found = places(budget)
        kept = np.lexsort((np.arange(rows), found))[:budget]
        assert kept.tolist() == whole[:budget].tolist()
        assert np.isfinite(found[kept]).all()
        if pieces == 1:
            first = set(np.flatnonzero(drawn < np.floor((1 - share) * budget + 1e-9)))
            by_bank = np.flatnonzero(known)[np.argsort(order[known])]
            assert first | set(by_bank[: int(share * budget + 1e-9)]) <= set(kept.tolist())
