"""Measures that train nothing, against brute force, closed forms and scipy: coverage, balance, diversity, Fréchet."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.evaluation.balance import balance, evenness, tail_recall
from curation.evaluation.coverage import coverage, distances
from curation.evaluation.diversity import vendi_score
from curation.evaluation.frechet import axes, expected, frechet_distance
from curation.evaluation.moments import Moments


def unit(n: int, d: int, seed: int, dtype: type = np.float16) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


def gaussian(n: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal(mean, covariance, n)


def test_coverage_is_the_brute_force_one() -> None:
    rows = unit(300, 16, 0)
    kept = rows[::7]
    exact = np.linalg.norm(rows[:, None].astype(float) - kept.astype(float), axis=2).min(1)
    found = coverage(rows, kept)
    assert found.samples == 300
    assert found.mean == pytest.approx(exact.mean(), abs=1e-6)
    assert found.worst == pytest.approx(exact.max(), abs=1e-6)
    cosine = 1 - (rows.astype(float) @ kept.astype(float).T).max(1)
    assert found.mean_cosine == pytest.approx(cosine.mean(), abs=1e-3)  # float16 rows are not quite of length 1
    assert found.worst_cosine == pytest.approx(cosine.max(), abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
def test_coverage_is_zero_where_all_is_kept_and_never_grows_with_what_is_kept(seed: int, few: int, more: int) -> None:
    rows = unit(40, 5, seed)
    assert coverage(rows, rows).worst == 0
    small, large = coverage(rows, rows[: min(few, more)]), coverage(rows, rows[: max(few, more)])
    assert large.mean <= small.mean
    assert large.worst <= small.worst
    assert not distances(rows, rows[:few])[:few].any()


def test_parts_of_an_archive_add_up() -> None:
    rows, kept = unit(100, 8, 1), unit(9, 8, 2)
    parts = [rows[:10], rows[10:70], rows[70:]]
    whole, summed = coverage(rows, kept), reduce(add, (coverage(part, kept) for part in parts))
    assert vars(summed) == pytest.approx(vars(whole))
    moments = reduce(add, map(Moments.of, parts))
    np.testing.assert_allclose(moments.mean, rows.astype(float).mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(rows.astype(float).T), atol=1e-12)
    turn = scipy.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)), mode="economic")[0]
    np.testing.assert_allclose(moments.project(turn).covariance, np.cov((rows.astype(float) @ turn).T), atol=1e-12)


def test_balance_is_entropy_over_its_maximum_among_the_groups_that_the_archive_has() -> None:
    archive, kept = np.array([50, 0, 30, 20]), np.array([5, 0, 5, 0])
    found = balance(kept, archive)
    assert (found.groups, found.present, found.smallest) == (3, 2, 0)
    assert found.entropy == pytest.approx(scipy.stats.entropy([0.5, 0.5, 0]) / np.log(3))
    assert found.archive_entropy == pytest.approx(scipy.stats.entropy([0.5, 0.3, 0.2]) / np.log(3))
    even = balance(np.array([4, 0, 4, 4]), archive)
    assert (even.entropy, even.smallest, even.present) == (pytest.approx(1), 1, 3)
    assert balance(np.array([7]), np.array([9])).entropy == 1


@given(st.lists(st.integers(0, 100), min_size=2, max_size=20).filter(any))
def test_evenness_lies_between_all_in_one_and_all_alike(counts: list[int]) -> None:
    assert 0 <= evenness(np.array(counts)) <= 1 + 1e-12
    assert evenness(np.array([sum(counts), *[0] * (len(counts) - 1)])) == 0


def test_the_tail_is_the_rarest_groups_of_the_archive() -> None:
    archive = np.array([100, 4, 0, 50, 6, 40])  # of the five that are there, 40 % are the groups 1 and 4
    kept = np.array([10, 0, 0, 5, 3, 2])
    found = tail_recall(kept, archive, 0.4)
    assert found.groups.tolist() == [1, 4]
    assert found.samples == pytest.approx(3 / 10)
    assert found.found == 0.5
    assert found.lift == pytest.approx(0.3 / (20 / 200))
    assert tail_recall(archive, archive).lift == 1
    assert tail_recall(np.array([5, 5]), np.array([7, 7]), 0.5).groups.tolist() == [0]


def test_vendi_score_is_that_of_the_kernel() -> None:
    rows = unit(60, 12, 3, np.float64)
    values = np.linalg.eigvalsh(rows @ rows.T / 60)
    values = values[values > 1e-14]
    assert vendi_score(Moments.of(rows)) == pytest.approx(np.exp(-(values * np.log(values)).sum()))
    assert vendi_score(Moments.of(np.eye(7))) == pytest.approx(7)
    assert vendi_score(Moments.of(rows[:1].repeat(5, 0))) == pytest.approx(1)
    assert vendi_score(Moments.of(np.tile(rows, (3, 1)))) == pytest.approx(vendi_score(Moments.of(rows)))


def test_frechet_of_one_dimension_is_the_closed_form() -> None:
    one, other = Moments.of(gaussian(50, np.array([2.0]), np.eye(1), 0)), Moments.of(np.array([[0.0], [3.0], [9.0]]))
    exact = (one.mean - other.mean) ** 2 + (np.sqrt(one.covariance) - np.sqrt(other.covariance)) ** 2
    assert frechet_distance(one, other) == pytest.approx(exact.item())


def test_frechet_is_the_usual_formula_and_stands_singular_covariances() -> None:
    mix = np.random.default_rng(0).normal(size=(6, 6))
    one = Moments.of(gaussian(200, np.zeros(6), mix @ mix.T, 1))
    other = Moments.of(gaussian(150, np.ones(6), np.eye(6), 2))
    root = scipy.linalg.sqrtm(one.covariance @ other.covariance).real
    usual = ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(usual)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    flat = Moments.of(unit(4, 6, 5, np.float64))  # of rank three
    moved = Moments.of(unit(4, 6, 5, np.float64) + 0.5)
    assert frechet_distance(flat, moved) == pytest.approx(6 * 0.25)


def test_what_a_random_draw_would_have_is_foretold() -> None:
    covariance = np.diag(0.5 ** np.arange(8.0))
    truth = Moments(10**9, np.zeros(8), covariance * 10**9)
    for n in (100, 1000):
        drawn = [frechet_distance(truth, Moments.of(gaussian(n, np.zeros(8), covariance, s))) for s in range(300)]
        assert expected(truth, n) == pytest.approx(np.mean(drawn), rel=0.06)
    rows = gaussian(400, np.zeros(8), covariance, 0)
    archive, draw = Moments.of(rows), np.random.default_rng(0)
    drawn = [frechet_distance(archive, Moments.of(draw.choice(rows, 200, replace=False))) for _ in range(300)]
    assert expected(archive, 200) == pytest.approx(np.mean(drawn), rel=0.1)
    assert expected(archive, 400) == 0


def test_axes_are_the_reference_s_principal_ones() -> None:
    rows = gaussian(500, np.zeros(5), np.diag([1.0, 9, 4, 0.1, 0.01]), 0)
    found = axes(Moments.of(rows), 2)
    assert found.shape == (5, 2)
    _, _, vt = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.T @ vt[:2].T), np.eye(2), atol=1e-8)
    projected = Moments.of(rows).project(found)
    np.testing.assert_allclose(projected.covariance, np.cov((rows @ found).T), atol=1e-10)
