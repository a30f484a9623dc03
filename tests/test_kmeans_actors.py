"""K-means on Ray: the same bits for any number of actors, and after the loss of one."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray

from curation.clustering.actors import ActorRows
from curation.clustering.kmeans import KMeans, fit_kmeans
from curation.clustering.points import Rows

PARTS = 5


@pytest.fixture(scope="module", params=["float16", "float32"])
def loaders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[partial[np.ndarray]]:
    """Unit vectors, and longer ones whose sums would be rounded; parts of unlike size."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 12))[rng.integers(40, size=4000)] + 0.4 * rng.standard_normal((4000, 12))
    x = x if request.param == "float32" else x / np.linalg.norm(x, axis=1, keepdims=True)
    folder: Path = tmp_path_factory.mktemp("points")
    for number, part in enumerate(np.split(x.astype(request.param), [300, 1700, 1800, 3000])):
        np.save(folder / f"{number}.npy", part)
    return [partial(np.load, folder / f"{number}.npy") for number in range(PARTS)]


def same(one: KMeans, other: KMeans) -> bool:
    return one.centroids.tobytes() == other.centroids.tobytes() and one.objective == other.objective


@pytest.mark.parametrize("spherical", [True, False])
def test_bits_do_not_depend_on_the_number_of_actors(
    ray_local: None, loaders: list[partial[np.ndarray]], spherical: bool
) -> None:
    here = fit_kmeans(Rows(dict(enumerate(loaders)), 0), 30, seed=0, spherical=spherical, max_iter=6)
    for actors in (1, 2, 3):
        fit = fit_kmeans(ActorRows(loaders, 0, actors), 30, seed=0, spherical=spherical, max_iter=6)
        assert same(fit, here), actors


def test_a_lost_actor_changes_nothing(ray_local: None, loaders: list[partial[np.ndarray]]) -> None:
    points = ActorRows(loaders, 0, 2)
    before = fit_kmeans(points, 20, seed=0, max_iter=3)
    ray.kill(points.actors[1], no_restart=False)
    assert same(fit_kmeans(points, 20, seed=0, max_iter=3), before)


def test_more_actors_than_parts_or_cores(ray_local: None, loaders: list[partial[np.ndarray]]) -> None:
    points = ActorRows(loaders, 0, 50)
    assert len(points.actors) == PARTS and points.rows == 4000
    assert len(points.head(100)) in range(100, 100 + PARTS)


def test_parts_without_rows(ray_local: None) -> None:
    rows = np.eye(6, dtype=np.float16)
    parts = [partial(np.copy, rows[:0]), partial(np.copy, rows), partial(np.copy, rows[:0])]
    fit = fit_kmeans(ActorRows(parts, 0, 2), 6, seed=0)
    assert sorted(fit.centroids.argmax(1)) == list(range(6))
