"""Greedy orders on embeddings, held against the plainest way to write each of them down."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.greedy import cosines, facility_location, k_center, semdedup


def vectors(seed: int, number: int, dim: int = 12, copies: int = 0) -> np.ndarray:
    """Unit float16 vectors in three bunches, the last ones copies of the first."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(3, dim))[random.integers(0, 3, number)] + 0.6 * random.normal(size=(number, dim))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    x[number - copies :] = x[:copies]
    return x


CASES = st.tuples(st.integers(0, 999), st.integers(1, 40), st.integers(0, 5), st.integers(0, 3), st.integers(0, 45))


def made(case: tuple[int, int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    seed, number, copies, required, picks = case
    cosine = cosines(vectors(seed, number, copies=min(copies, number // 2)))
    random = np.random.default_rng(seed)
    must = np.zeros(number, bool)
    must[random.permutation(number)[:required]] = True
    return cosine, must, random.random(number), picks


def objective(cosine: np.ndarray, chosen: list[int]) -> float:
    return float(np.maximum(cosine[chosen].max(axis=0, initial=0), 0).sum(dtype=np.float64))


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_facility_location_is_the_exact_greedy(case: tuple[int, int, int, int, int]) -> None:
    cosine, required, distance, picks = made(case)
    gain = facility_location(cosine, required, distance, picks)
    chosen = np.flatnonzero(required).tolist()
    for _ in range(min(picks, int((~required).sum()))):
        gains = [-np.inf if i in chosen else objective(cosine, [*chosen, i]) for i in range(len(cosine))]
        best = int(np.argmax(gains))
        assert gain[best] == gains[best] - objective(cosine, chosen)  # to the last bit
        chosen.append(best)
    order = np.lexsort((np.arange(len(gain)), -gain))[: int((~np.isnan(gain)).sum())]
    free = [i for i in chosen if not required[i]]
    assert sorted(order.tolist()) == sorted(free)
    assert (np.diff(gain[free]) <= 0).all()


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_k_center_takes_the_farthest_each_time(case: tuple[int, int, int, int, int]) -> None:
    cosine, required, distance, picks = made(case)
    radius = k_center(cosine, required, distance, picks)
    apart = np.sqrt(np.maximum(0, 2 - 2 * cosine.astype(np.float64)))
    chosen = np.flatnonzero(required).tolist()
    begun = bool(chosen)
    for _ in range(min(picks, int((~required).sum()))):
        far = apart[chosen].min(axis=0) if chosen else None
        best = (
            int(np.argmin(distance)) if far is None else max(range(len(far)), key=lambda i: (i not in chosen, far[i]))
        )
        expected = 2 + apart[best].max() if far is None else far[best]
        assert radius[best] == pytest.approx(expected, abs=1e-12)
        chosen.append(best)
    free = chosen[int(required.sum()) :]
    assert np.isnan(np.delete(radius, free)).all()
    assert (np.diff(radius[free]) <= 1e-12).all()
    assert begun or not free or radius[free[0]] >= 2


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_semdedup_keeps_what_no_earlier_row_is_too_like(case: tuple[int, int, int, int, int]) -> None:
    cosine, required, distance, picks = made(case)
    likeness = semdedup(cosine, required, distance, picks)
    order = sorted(range(len(cosine)), key=lambda i: (not required[i], -distance[i], i))
    for place, row in enumerate(order):
        assert likeness[row] == max((cosine[row, other] for other in order[:place]), default=-1)
    for epsilon in (0.05, 0.3, 1.0):  # as published: fall if the cosine to an earlier one is above 1 - epsilon
        published = {row for place, row in enumerate(order) if not (cosine[row, order[:place]] > 1 - epsilon).any()}
        assert set(np.flatnonzero(likeness <= 1 - epsilon)) == published


def test_cosines_are_those_of_the_vectors_and_the_same_in_any_company() -> None:
    x = vectors(1, 700, dim=64)
    found, wide = cosines(x), x.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wide @ wide.T, atol=2**-20)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 1)
    some = np.random.default_rng(0).permutation(700)[:37]
    np.testing.assert_array_equal(cosines(x[some]), found[np.ix_(some, some)])
    np.testing.assert_array_equal(cosines(x[:, ::-1]), found)  # sums are exact, whatever their order
    assert cosines(np.zeros((2, 4), np.float16)).tolist() == [[0, 0], [0, 0]]


def test_stripes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cosine, required, distance, _ = made((7, 40, 5, 2, 0))
    whole = semdedup(cosine, required, distance, 0)
    monkeypatch.setattr("curation.selection.greedy.STRIPE", 7)
    np.testing.assert_array_equal(semdedup(cosine, required, distance, 0), whole)
