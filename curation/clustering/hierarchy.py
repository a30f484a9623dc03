"""Hierarchical k-means, in both directions.

Downwards (:func:`fit_in_cells`): so many centroids that a flat fit would compare each point with too many are
fitted within the cells of a few; the search for the nearest may then look at the nearest cells only.

Upwards (:func:`build_levels`): Vo et al. 2024 (arXiv 2405.15613): each level clusters the centroids of the level
below, which flattens the density a little more every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from curation.clustering.kmeans import KMeans, fit_kmeans
from curation.clustering.nearest import Floats, Labels, Vectors, nearest
from curation.clustering.points import Rows
from curation.selection.quotas import quotas

if TYPE_CHECKING:  # whoever fits in one process needs no Ray
    from curation.clustering.actors import ActorRows

FLAT = 16_384  # centroids fitted without cells
ROUNDS = 10  # of resampling on each level above the lowest


def fit_in_cells(
    points: ActorRows, k: int, seed: int, *, spherical: bool = True, max_iter: int = 50, tol: float = 1e-2
) -> tuple[Floats, KMeans]:
    """Fit about sqrt(k) cells, then each cell's share of the ``k`` centroids to the points in it.

    The shares follow the cells' sums of squared distances. No pass over all points follows, so a point near a
    cell's edge may have a nearer centroid in the next cell.

    Returns:
        Centroids ``(k, d)`` float32, cell by cell, and the fit of the cells.
    """
    cells = fit_kmeans(points, round(k**0.5), seed, spherical=spherical, max_iter=max_iter, tol=tol)
    sums = points.sums(cells.centroids, 1.0)
    shares = quotas(sums.errors + 1e-9, sums.counts, k, np.minimum(sums.counts, 1))
    work = [
        (int(share), seed, spherical, max_iter, tol, *members)
        for share, members in zip(shares, points.split(cells.centroids), strict=True)
        if share
    ]
    return np.concatenate(points.call(_fit_cell, work)), cells


def _fit_cell(k: int, seed: int, spherical: bool, max_iter: int, tol: float, *members: dict[int, Vectors]) -> Floats:
    parts = {number: rows for held in members for number, rows in held.items()}
    x = np.concatenate([parts[number] for number in sorted(parts)])
    return fit_kmeans(Rows({0: lambda: x}, seed), k, seed, spherical=spherical, max_iter=max_iter, tol=tol).centroids


def build_levels(centroids: Floats, sizes: Sequence[int], seed: int, *, spherical: bool = True) -> list[Labels]:
    """Cluster the centroids, then the centroids of those, and so on.

    On each level, as published, the fit is repeated on the members nearest to each centroid only, as many of each
    cluster: dense regions count for no more than sparse ones. Then all members are assigned again.

    Args:
        centroids: ``(k, d)`` float32, of the lowest level.
        sizes: clusters of the levels above, from the lowest, falling.
        seed: of the fits.
        spherical: see :func:`fit_kmeans`.

    Returns:
        For each level above: int32, the cluster of that level in which each cluster of the level below lies.
    """
    parents = []
    for size in sizes:
        above = _fit_resampled(centroids, size, seed, spherical)
        parents.append(nearest(centroids, above)[0])
        centroids = above
    return parents


def _fit_resampled(x: Floats, k: int, seed: int, spherical: bool) -> Floats:
    few = len(x) // (2 * k)  # half of a cluster, were all alike
    rows = x
    for _ in range(1 + ROUNDS):
        centroids = fit_kmeans(Rows({0: rows.copy}, seed), k, seed, spherical=spherical).centroids
        clusters, distances = nearest(x, centroids)
        order = np.lexsort((distances, clusters))
        place = np.arange(len(x)) - np.searchsorted(clusters[order], clusters[order])
        rows = x[np.sort(order[place < few])]
        if few < 2 or len(rows) < k:  # single members would be their own centroids
            break
    return centroids
