"""Hierarchical k-means, in both directions.

Downwards (:func:`fit_in_cells`): so many centroids that a flat fit would compare each point with too many are
fitted within the cells of a few; the search for the nearest may then look at the nearest cells only.

Upwards (:func:`build_levels`): Vo et al. 2024 (arXiv 2405.15613): each level clusters the centroids of the level
below, which flattens the density a little more every time, and :func:`level_quotas` shares a budget out from the top.
"""

from collections.abc import Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from curation.clustering.kmeans import KMeans, fit_kmeans
from curation.clustering.nearest import nearest
from curation.clustering.points import ActorRows, Rows
from curation.clustering.seeding import apportion
from curation.selection.quotas import quotas

FLAT = 16_384  # centroids fitted without cells
ROUNDS = 10  # of resampling on each level above the lowest


def fit_in_cells(
    points: ActorRows, k: int, seed: int, *, spherical: bool = True, max_iter: int = 50, tol: float = 1e-2
) -> tuple[NDArray[np.float32], KMeans]:
    """Fit about sqrt(k) cells, then each cell's share of the ``k`` centroids to the points in it.

    The shares follow the cells' sums of squared distances. No pass over all points follows, so a point near a
    cell's edge may have a nearer centroid in the next cell.

    Returns:
        Centroids ``(k, d)`` float32, cell by cell, and the fit of the cells.
    """
    cells = fit_kmeans(points, round(k**0.5), seed, spherical=spherical, max_iter=max_iter, tol=tol)
    sums = points.sums(cells.centroids, 1.0)
    shares = quotas(sums.errors, sums.counts, min(k, points.rows), np.minimum(sums.counts, 1))
    split = points.split(cells.centroids)
    fits = [
        _fit_cell.remote(int(share), seed, spherical, max_iter, tol, *members)
        for share, members in zip(shares, split, strict=True)
        if share
    ]
    return np.concatenate(ray.get(fits)), cells


@ray.remote(num_cpus=1)
def _fit_cell(
    k: int, seed: int, spherical: bool, max_iter: int, tol: float, *members: dict[int, NDArray[np.floating]]
) -> NDArray[np.float32]:
    parts = {number: rows for held in members for number, rows in held.items()}
    x = np.concatenate([parts[number] for number in sorted(parts)])
    return fit_kmeans(Rows({0: lambda: x}, seed), k, seed, spherical=spherical, max_iter=max_iter, tol=tol).centroids
