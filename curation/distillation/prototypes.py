"""Which real images of a class stand for it: margin prototypes (DPD's released code), and a control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from curation.distillation.settings import PrototypesConfig
from curation.selection.prototypes import margins

Floats = NDArray[np.float64]
STARTS = 10  # of k-means, of which the best is kept


@dataclass(frozen=True)
class Prototypes:
    """A class's, by cluster.

    Attributes:
        rows: int64 (k,) which image.
        margin: float64 (k,) of it: the distance to the nearest other centre, less alpha times that to its own.
        members: int64 (k,) images of the cluster.
        assignment: int64 (n,) cluster of each image.
    """

    rows: NDArray[np.int64]
    margin: Floats
    members: NDArray[np.int64]
    assignment: NDArray[np.int64]


def class_prototypes(latents: NDArray[np.floating], k: int, settings: PrototypesConfig, seed: int) -> Prototypes:
    """Of each of k clusters the image that stands for it and for no other: that of the largest margin.

    Args:
        latents: (n, c, h, w) scaled means of one class, in an order that decides ties.
        k: images a class; as many as there are where they are fewer.
        settings: pooling, alpha.
        seed: of k-means.
    """
    x, centres = _clustered(latents, k, settings, seed)
    cluster, margin = margins(x, centres, settings.alpha)
    return _best(cluster, margin)


def nearest_real(latents: NDArray[np.floating], k: int, settings: PrototypesConfig, seed: int) -> Prototypes:
    """Of the same clusters the image nearest to the centre: a control; ``margin`` is the distance, negative."""
    x, centres = _clustered(latents, k, settings, seed)
    cluster, _ = margins(x, centres, settings.alpha)
    return _best(cluster, -np.linalg.norm(x - centres[cluster], axis=1))


def pooled(latents: NDArray[np.floating], side: int) -> Floats:
    """(n, c * side**2) of unit length: means over places, at most ``side`` of them each way, flattened."""
    x = torch.from_numpy(np.asarray(latents, np.float64))
    if max(x.shape[2:]) > side:
        x = F.adaptive_avg_pool2d(x, side)
    rows: Floats = F.normalize(x.flatten(1), dim=1).numpy()
    return rows


def _clustered(latents: NDArray[np.floating], k: int, settings: PrototypesConfig, seed: int) -> tuple[Floats, Floats]:
    """Pooled rows and the centres of k-means, on one thread, for its sums' order follows the threads."""
    x = pooled(latents, settings.pool)
    k = min(k, len(np.unique(x, axis=0)))  # k-means makes no more clusters than there are points
    with threadpool_limits(1):
        centres: Floats = KMeans(k, n_init=STARTS, random_state=seed).fit(x).cluster_centers_
    return x, centres


def _best(cluster: NDArray[np.int64], score: Floats) -> Prototypes:
    """The first of the highest score of each cluster that has any image."""
    order = np.lexsort((np.arange(len(score)), -score, cluster))
    _, first, members = np.unique(cluster[order], return_index=True, return_counts=True)
    rows = order[first]
    renamed = np.unique(cluster, return_inverse=True)[1].astype(np.int64)
    return Prototypes(rows, score[rows], members, renamed)
