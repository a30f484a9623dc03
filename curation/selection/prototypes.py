"""Margin prototypes: real samples that stand for a part of their class and for no other part of it."""

import numpy as np
from numpy.typing import NDArray

from curation.selection.sampling import Floats


def margins(x: NDArray[np.floating], centroids: NDArray[np.floating], alpha: float) -> tuple[NDArray[np.int64], Floats]:
    """How well each row stands for its k-means cluster (the released code of DPD, arXiv 2601.15829).

    Args:
        x: (n, d) rows of one class.
        centroids: (k, d) of k-means over them.
        alpha: weight of the distance to the own centroid.

    Returns:
        cluster: (n,) of the nearest centroid.
        margin: (n,) the distance to the nearest other centroid (0 if there is none), less alpha times that to its own.
    """
    wide, centres = x.astype(np.float64), centroids.astype(np.float64)
    squared = (wide**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * wide @ centres.T
    distance = np.sqrt(np.maximum(squared, 0))
    cluster = distance.argmin(axis=1)
    rows = np.arange(len(x))
    own = distance[rows, cluster].copy()
    distance[rows, cluster] = np.inf
    other = distance.min(axis=1, initial=np.inf)
    return cluster, np.where(np.isinf(other), 0, other) - alpha * own


def best_of_each(cluster: NDArray[np.int64], margin: Floats) -> NDArray[np.int64]:
    """(n,) the place of each row: the best of every cluster by falling margin, then the others likewise.

    Args:
        cluster: (n,).
        margin: (n,) of rows in the order that decides ties.
    """
    order = np.argsort(-margin, kind="stable")
    best = np.ones(len(order), bool)
    best[order] = False
    best[order[np.unique(cluster[order], return_index=True)[1]]] = True
    place = np.empty(len(order), np.int64)
    place[np.lexsort((-margin, ~best))] = np.arange(len(order))
    return place
