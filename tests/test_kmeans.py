"""K-means in one process: against numpy, faiss and scikit-learn, and what it promises of its centroids."""

import subprocess
import sys

import faiss
import numpy as np
import pytest
from sklearn.cluster import KMeans as Reference

from curation.clustering.kmeans import default_k, fit_kmeans
from curation.clustering.nearest import nearest
from curation.clustering.points import Rows
from curation.clustering.seeding import FLAT, seeds
from curation.clustering.sums import Sums


def skewed(n: int = 6000, d: int = 16, components: int = 120, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    """Unit vectors of a mixture whose component sizes fall like 1 / rank."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((components, d))
    share = 1 / np.arange(1, components + 1)
    x = centres[rng.choice(components, n, p=share / share.sum())] + spread * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def points(x: np.ndarray, parts: int = 3) -> Rows:
    return Rows({i: rows.copy for i, rows in enumerate(np.array_split(x, parts))}, seed=0)


def objective(x: np.ndarray, centroids: np.ndarray) -> float:
    return float(np.square(nearest(x, centroids)[1].astype(np.float64)).mean())


def test_sums_are_those_of_numpy_and_exact_in_any_order() -> None:
    x = skewed(2000)
    centroids = x[:20].astype(np.float32)
    labels, distances = nearest(x, centroids)
    second = np.partition(np.square(x[:, None].astype(float) - centroids).sum(2), 1, axis=1)[:, 1]
    whole, other = points(x, 1).sums(centroids, 1.0), Sums.zero(20, 16)
    for part in reversed(np.array_split(np.random.default_rng(0).permutation(x), 7)):
        other += points(part, 2).sums(centroids, 1.0)
    for name in ("vectors", "counts", "errors", "gaps"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(other, name))
    np.testing.assert_array_equal(whole.vectors[3], x[labels == 3].astype(np.float64).sum(0))
    np.testing.assert_array_equal(whole.counts, np.bincount(labels, minlength=20))
    np.testing.assert_allclose(whole.errors.sum(), np.square(distances).sum(), rtol=1e-4)
    np.testing.assert_allclose(whole.gaps[5], (second - distances**2)[labels == 5].sum(), rtol=1e-3)


@pytest.mark.parametrize("spherical", [True, False])
def test_a_converged_fit_is_a_fixed_point_of_lloyds_step(spherical: bool) -> None:
    x = skewed(3000)
    fit = fit_kmeans(points(x), 30, seed=0, spherical=spherical, max_iter=200, tol=0)
    assert fit.converged and fit.shift[-1] == 0
    labels, _ = nearest(x, fit.centroids)
    means = np.stack([x[labels == c].astype(np.float64).mean(0) for c in range(30)])
    means /= np.linalg.norm(means, axis=1, keepdims=True) if spherical else 1
    np.testing.assert_array_equal(fit.centroids, means.astype(np.float32))
    assert fit.objective == sorted(fit.objective, reverse=True)
    assert fit.objective[-1] == pytest.approx(objective(x, fit.centroids), rel=1e-5)


@pytest.mark.parametrize("spread", [0.1, 0.3, 1.0])
def test_is_no_worse_than_what_one_would_use_instead(spread: float) -> None:
    x = skewed(spread=spread)
    mine = np.mean([objective(x, fit_kmeans(points(x), 60, s, spherical=False).centroids) for s in range(3)])
    x32 = x.astype(np.float32)
    theirs = np.mean([Reference(60, n_init=1, random_state=s).fit(x32).inertia_ / len(x) for s in range(3)])
    kmeans = faiss.Kmeans(16, 60, niter=50, seed=1, max_points_per_centroid=len(x))
    kmeans.train(x32)
    assert mine <= 1.02 * theirs
    assert mine <= 1.005 * objective(x, kmeans.centroids)


def test_finds_every_one_of_many_separate_groups() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 24))
    sizes = rng.geometric(0.02, 300) + 5
    x = np.repeat(centres, sizes, axis=0) + 0.01 * rng.standard_normal((sizes.sum(), 24))
    fit = fit_kmeans(points(x.astype(np.float32)), 300, seed=0, spherical=False)
    found, _ = nearest(centres.astype(np.float32), fit.centroids)
    assert len(set(found)) >= 297


def test_starts_that_are_given_stay_first_and_near() -> None:
    x = skewed()
    given = fit_kmeans(points(x[:1000]), 10, seed=1).centroids
    fit = fit_kmeans(points(x), 40, seed=0, init=given)
    assert not fit.moved[:10].any()
    labels, distances = nearest(given, fit.centroids)
    assert (labels == np.arange(10)).mean() >= 0.6 and distances.mean() < 0.5


def test_a_given_start_that_nothing_is_near_to_is_used_elsewhere() -> None:
    x = skewed(d=8)
    x[:, 0] = abs(x[:, 0])
    nowhere = np.array([[-1, 0, 0, 0, 0, 0, 0, 0]], np.float32)
    fit = fit_kmeans(points(x), 20, seed=0, init=np.concatenate([x[:1].astype(np.float32), nowhere]))
    assert not fit.moved[0] and fit.moved[1]
    assert (np.bincount(nearest(x, fit.centroids)[0], minlength=20) > 0).all()


def test_empty_clusters_are_filled_again() -> None:
    x = skewed()
    same = np.repeat(x[:1].astype(np.float32), 12, axis=0)
    fit = fit_kmeans(points(x), 12, seed=0, init=same)
    assert (np.bincount(nearest(x, fit.centroids)[0], minlength=12) > 0).all()


@pytest.mark.parametrize("k", [1, 5, 60])
def test_fewer_distinct_points_than_clusters(k: int) -> None:
    x = np.repeat(skewed(5), 12, axis=0)
    fit = fit_kmeans(points(x), k, seed=0, max_iter=5)
    assert fit.centroids.shape == (k, 16) and np.isfinite(fit.centroids).all()
    assert objective(x, fit.centroids) < (1e-6 if k >= 5 else 2)


def test_spherical_centroids_have_unit_length_and_others_do_not() -> None:
    x = skewed()
    lengths = np.linalg.norm(fit_kmeans(points(x), 20, seed=0).centroids, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert np.linalg.norm(fit_kmeans(points(x), 20, seed=0, spherical=False).centroids, axis=1).max() < 0.999


def test_the_seed_decides() -> None:
    x = skewed()
    first, again, other = (fit_kmeans(points(x), 20, seed=s, max_iter=3).centroids for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_starts_are_drawn_where_the_error_is() -> None:
    rng = np.random.default_rng(0)
    far = rng.standard_normal((30, 8)) * 100
    x = np.concatenate([rng.standard_normal((5000, 8)), far]).astype(np.float32)
    drawn = seeds(x, 31, rng)
    assert (np.linalg.norm(drawn, axis=1) > 20).sum() >= 29


def test_many_starts_are_rows_and_distinct() -> None:
    x = skewed().astype(np.float32)
    given = x[:7]
    drawn = seeds(x, FLAT + 100, np.random.default_rng(0), given)
    assert drawn.shape == (FLAT + 100, 16)
    np.testing.assert_array_equal(drawn[:7], given)
    rows = {row.tobytes() for row in x}
    assert all(row.tobytes() in rows for row in drawn)
    assert len({row.tobytes() for row in drawn}) == FLAT + 100


def test_default_k_is_a_square_root() -> None:
    assert [default_k(n) for n in (1, 6000, 10**6, 10**9)] == [1, 77, 1000, 31623]


def test_what_runs_in_one_process_needs_no_ray() -> None:
    modules = (
        "clustering.kmeans",
        "clustering.hierarchy",
        "clustering.nearest",
        "selection.tree",
        "evaluation.probe",
        "evaluation.pretraining",
        "scoring.network",
    )
    names = ", ".join(f"curation.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", f"import sys, {names}; assert 'ray' not in sys.modules"], check=True)
