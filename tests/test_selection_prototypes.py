"""Margin prototypes, held against the released rule written row by row."""

import numpy as np
import pytest

from curation.selection.prototypes import best_of_each, margins


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_margins_are_the_released_rule(alpha: float) -> None:
    random = np.random.default_rng(3)
    x, centroids = random.normal(size=(50, 6)), random.normal(size=(5, 6))
    cluster, margin = margins(x, centroids, alpha)
    for row, k, found in zip(x, cluster, margin, strict=True):
        distance = np.linalg.norm(row - centroids, axis=1)
        assert k == np.argmin(distance)
        assert found == pytest.approx(np.delete(distance, k).min() - alpha * distance[k])


def test_a_single_centroid_leaves_the_nearest() -> None:
    x = np.random.default_rng(0).normal(size=(9, 3))
    _, margin = margins(x, x.mean(0, keepdims=True), 1.0)
    assert best_of_each(np.zeros(9, np.int64), margin)[np.linalg.norm(x - x.mean(0), axis=1).argmin()] == 0


def test_every_cluster_gives_its_best_before_any_gives_a_second() -> None:
    cluster = np.array([0, 0, 1, 1, 2, 2, 2])
    margin = np.array([0.1, 0.4, 0.2, 0.2, 0.9, 0.8, 0.7])
    place = best_of_each(cluster, margin)
    assert np.argsort(place).tolist() == [4, 1, 2, 5, 6, 3, 0]  # of two that tie the first
