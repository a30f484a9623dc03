"""The nearest centroid of a row is the true one, whatever stands beside the row and whatever computes it."""

import warnings

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clustering import gpu
from curation.clustering.nearest import BLOCK, Nearest, nearest
from curation.clustering.points import GRID


def brute(x: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (the lower id wins a tie) and distances, in float64 and term by term."""
    squared = np.square(x[:, None].astype(np.float64) - centroids[None].astype(np.float64)).sum(2)
    return squared.argmin(1), np.sqrt(squared.min(1))


@pytest.mark.parametrize(("n", "k", "d"), [(500, 40, 16), (300, 1, 5), (200, 2, 64), (3, 100, 3)])
def test_equals_brute_force(n: int, k: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x, centroids = rng.standard_normal((n, d), np.float32), rng.standard_normal((k, d), np.float32)
    labels, distances = nearest(x, centroids)
    true_labels, true_distances = brute(x, centroids)
    assert labels.dtype == np.int32 and distances.dtype == np.float32
    np.testing.assert_array_equal(labels, true_labels)
    np.testing.assert_allclose(distances, true_distances, rtol=1e-5)


def test_float16_rows_are_taken_as_they_are() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 8)).astype(np.float16)
    centroids = rng.standard_normal((7, 8), np.float32)
    np.testing.assert_array_equal(nearest(x, centroids)[0], brute(x, centroids)[0])


def near_ties() -> tuple[np.ndarray, np.ndarray]:
    """Rows half way between centroids that are closer to each other than float32 products can tell."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((20, 256)).astype(np.float32) * 10
    centroids = np.concatenate([base, base + np.float32(1e-5) * rng.standard_normal((20, 256)).astype(np.float32)])
    rows = np.repeat(base, 30, axis=0) + rng.standard_normal((600, 256)).astype(np.float32) * np.float32(1e-5)
    return rows, centroids


def test_near_ties_are_settled_in_float64() -> None:
    rows, centroids = near_ties()
    truth, _ = brute(rows, centroids)
    _, rounded = faiss.knn(rows, centroids, 1)
    assert (rounded[:, 0] != truth).any()  # float32 alone does not get them right
    np.testing.assert_array_equal(nearest(rows, centroids)[0], truth)


def test_equal_centroids_give_the_lower_id() -> None:
    rng = np.random.default_rng(2)
    centroids = rng.standard_normal((10, 32), np.float32)
    centroids[7] = centroids[3] = centroids[1]
    labels, _ = nearest(np.repeat(centroids[1:2], 40, axis=0), centroids)
    assert set(labels) == {1}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 600), st.integers(0, 10_000))
def test_a_row_does_not_see_its_neighbours(size: int, seed: int) -> None:
    rows, centroids = near_ties()
    chosen = np.random.default_rng(seed).permutation(len(rows))[:size]
    labels, distances = nearest(rows, centroids)
    some_labels, some_distances = nearest(rows[chosen], centroids)
    np.testing.assert_array_equal(some_labels, labels[chosen])
    np.testing.assert_array_equal(some_distances, distances[chosen])


def test_more_rows_than_a_block() -> None:
    rng = np.random.default_rng(3)
    x, centroids = rng.standard_normal((BLOCK + 5, 4), np.float32), rng.standard_normal((6, 4), np.float32)
    np.testing.assert_array_equal(nearest(x, centroids)[0], brute(x, centroids)[0])


@pytest.mark.parametrize("k", [1, 2, 40])
@pytest.mark.parametrize("products", [1 << 28, 1000])  # all rows at once, or 25 of them
def test_what_gpus_run_gives_the_same(monkeypatch: pytest.MonkeyPatch, k: int, products: int) -> None:
    rows, centroids = near_ties()
    centroids = centroids[np.random.default_rng(5).permutation(len(centroids))[:k]]
    monkeypatch.setattr(gpu, "PRODUCTS", products)
    there, here = gpu.GpuNearest(centroids, "cpu"), Nearest(centroids)
    labels, distances = there(rows)
    np.testing.assert_array_equal(labels, here(rows)[0])
    np.testing.assert_allclose(distances, here(rows)[1], rtol=1e-6)
    parts = [unit(7, 1).astype(np.float16), (np.rint(unit(500, 2) * GRID) / GRID).astype(np.float32)]
    mine, theirs = (search.sums(parts) for search in (gpu.GpuNearest(unit(k, 3), "cpu"), Nearest(unit(k, 3))))
    np.testing.assert_array_equal(mine.vectors, theirs.vectors)
    np.testing.assert_array_equal(mine.counts, theirs.counts)
    np.testing.assert_allclose(mine.errors, theirs.errors, rtol=1e-4)
    np.testing.assert_allclose(mine.gaps, theirs.gaps, rtol=1e-3, atol=1e-4)


def unit(n: int, seed: int) -> np.ndarray:
    """Rows of length 1."""
    rows = np.random.default_rng(seed).standard_normal((n, 64)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_rows_that_may_not_be_written_are_taken_by_gpus_too() -> None:
    rows, centroids = near_ties()
    rows.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(gpu.GpuNearest(centroids, "cpu")(rows)[0], nearest(rows, centroids)[0])


def test_search_in_cells_finds_nearly_all() -> None:
    rng = np.random.default_rng(4)
    cells = rng.standard_normal((40, 16), np.float32) * 3
    centroids = (cells[rng.integers(40, size=2000)] + rng.standard_normal((2000, 16))).astype(np.float32)
    x = (cells[rng.integers(40, size=1000)] + rng.standard_normal((1000, 16))).astype(np.float32)
    exact, _ = nearest(x, centroids)
    found, _ = Nearest(centroids, coarse=cells)(x)
    assert (exact == found).mean() > 0.99
