"""The reference bank: labelled scenes, over-clustered into centroids that each stand for a class."""

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from curation.clustering.kmeans import fit_kmeans
from curation.clustering.nearest import Floats, Vectors, nearest
from curation.clustering.points import Rows

EXPLAINED = 99  # percentile of the bank's own distances; beyond it, no reference explains a sample
WARN_BEYOND = 0.2  # share of the archive


@dataclass(frozen=True)
class References:
    """Centroids of the bank.

    Attributes:
        centroids: ``(r, d)`` float32.
        reach: the distance to the nearest of them within which lie 99 % of the bank.
    """

    centroids: Floats
    reach: float


def fit_references(x: Vectors, k: int, seed: int, spherical: bool) -> References:
    """Cluster the bank into at most ``k`` centroids, no more than one for two of its samples.

    Args:
        x: ``(n, d)`` embeddings.
        k: centroids.
        seed: of their starts.
        spherical: see :func:`fit_kmeans`.
    """
    points = Rows({0: lambda: x}, seed)
    centroids = fit_kmeans(points, max(1, min(k, len(x) // 2)), seed, spherical=spherical).centroids
    return References(centroids, float(np.percentile(_held_out(x.astype(np.float32), centroids), EXPLAINED)))


def name_scenes(x: Vectors, labels: NDArray[np.str_], centroids: Floats) -> tuple[list[str | None], list[float | None]]:
    """The class of most bank samples that are nearest to each centroid, and their share; ``None`` where there are none.

    Args:
        x: ``(n, d)`` embeddings of the bank.
        labels: ``(n,)`` their classes; of classes that tie, the first by name is taken.
        centroids: ``(k, d)`` float32.
    """
    clusters, _ = nearest(x, centroids)
    classes, codes = np.unique(labels, return_inverse=True)
    votes = np.zeros((len(centroids), len(classes)), np.int64)
    np.add.at(votes, (clusters, codes), 1)
    total, best = votes.sum(1), votes.argmax(1)
    scenes = [str(classes[b]) if t else None for b, t in zip(best, total, strict=True)]
    return scenes, [float(v[b] / t) if t else None for v, b, t in zip(votes, best, total, strict=True)]


def _held_out(x: Floats, centroids: Floats) -> NDArray[np.float64]:
    """Distance of each sample to its centroid, had the centroid been fitted without it.

    Without one of its m members a mean lies m / (m - 1) times as far from it; a lone member goes to the next centroid.
    """
    squared, found = faiss.knn(x, centroids, min(2, len(centroids)))
    distances, own = np.sqrt(np.asarray(squared, np.float64)), found[:, 0]
    members = np.bincount(own, minlength=len(centroids))[own]
    return np.where(members > 1, distances[:, 0] * members / np.maximum(members - 1, 1), distances[:, -1])
