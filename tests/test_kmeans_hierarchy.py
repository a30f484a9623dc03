"""Very many centroids by way of cells, and levels of clusters of clusters."""

from functools import partial

import numpy as np

from curation.clustering.actors import ActorRows
from curation.clustering.hierarchy import build_levels, fit_in_cells
from curation.clustering.kmeans import fit_kmeans
from curation.clustering.nearest import nearest
from curation.clustering.points import Rows


def skewed(n: int = 4000, d: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 101)
    x = rng.standard_normal((100, d))[rng.choice(100, n, p=share / share.sum())] + 0.2 * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def objective(x: np.ndarray, centroids: np.ndarray) -> float:
    return float(np.square(nearest(x, centroids)[1].astype(float)).mean())


def test_a_fit_in_cells_is_nearly_as_good_and_as_reproducible(ray_local: None) -> None:
    x = skewed()
    loaders = [partial(np.copy, part) for part in np.array_split(x, 3)]
    one, cells = fit_in_cells(ActorRows(loaders, 0, 1), 100, seed=0)
    two, _ = fit_in_cells(ActorRows(loaders, 0, 2), 100, seed=0)
    assert one.shape == (100, 8) and cells.centroids.shape == (10, 8)
    assert one.tobytes() == two.tobytes()
    flat = fit_kmeans(Rows({0: x.copy}, 0), 100, seed=0).centroids
    assert objective(x, one) <= 1.1 * objective(x, flat)


def test_levels_nest_and_flatten_the_density() -> None:
    x = skewed(6000)
    leaves = fit_kmeans(Rows({0: x.copy}, 0), 200, seed=0).centroids
    parents = build_levels(leaves, [40, 8], seed=0)
    assert [len(p) for p in parents] == [200, 40]
    assert set(parents[0]) == set(range(40)) and set(parents[1]) == set(range(8))
    flat = fit_kmeans(Rows({0: x.copy}, 0), 40, seed=0).centroids
    sizes = np.bincount(nearest(x, leaves)[0], minlength=200)
    by_levels, by_points = np.bincount(parents[0], sizes), np.bincount(nearest(x, flat)[0])
    # the dense components get fewer clusters of a higher level than of a flat fit
    assert by_levels.max() > by_points.max()
