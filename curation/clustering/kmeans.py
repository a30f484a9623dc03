"""K-means (Lloyd 1982) that looks at few points first and moves centroids where they are needed.

Most of the way is gone on samples that grow: a pass over 40 points a centroid
costs little and still says which centroids are wasted. Such a centroid, whose
removal would cost less than a share of the largest cluster's error, is moved
there and splits it (compare Fritzke 2020, breathing k-means). So the fit leaves
poor optima that Lloyd's steps alone cannot leave, and few passes over all
points remain.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from curation.clustering.nearest import Floats, Vectors
from curation.clustering.points import Points
from curation.clustering.seeding import seeds
from curation.clustering.sums import Sums

SEED_ROWS = 16_384  # points that the starts are drawn from, or 10 a centroid if that is more
GAIN = 0.1  # what splitting a cluster is taken to save of its error


@dataclass
class KMeans:
    """A finished fit.

    Attributes:
        centroids: ``(k, d)`` float32, of unit length if spherical.
        moved: ``(k,)`` bool, True where a centroid was moved to another cluster on the way.
        converged: whether the last shift was below the tolerance.
        sampled: passes over samples.
        objective: mean squared distance to the nearest centroid, at the start of each pass over all points.
        shift: root mean square of the centroids' movement in each of these passes.
        reseeded: centroids that had become empty, in each of these passes.
    """

    centroids: Floats
    moved: NDArray[np.bool_]
    converged: bool = False
    sampled: int = 0
    objective: list[float] = field(default_factory=list)
    shift: list[float] = field(default_factory=list)
    reseeded: list[int] = field(default_factory=list)


def default_k(rows: int) -> int:
    """The square root of the number of samples, rounded.

    Assignment costs n k comparisons, looking for duplicates within clusters n^2 / k: their sum is smallest
    where k is the square root of n. 77 for 6,000 samples, 1,000 for a million, 31,623 for 10^9.
    """
    return max(1, round(math.sqrt(rows)))


def fit_kmeans(
    points: Points,
    k: int,
    seed: int,
    *,
    init: Floats | None = None,
    spherical: bool = True,
    max_iter: int = 50,
    tol: float = 1e-2,
) -> KMeans:
    """Fit ``k`` centroids.

    Args:
        points: unit vectors or others of comparable length.
        k: how many; no more than there are points.
        seed: of the starts.
        init: ``(g, d)`` float32, the first ``g <= k`` starts; these are moved only if nothing is nearest to them.
        spherical: keep centroids at unit length (Dhillon and Modha 2001), else they are plain means.
        max_iter: passes over all points at most.
        tol: stop when the root mean square shift of the centroids falls below this share of the points'
            root mean square distance to them.
    """
    given = 0 if init is None else len(init)
    starts = seeds(points.head(max(SEED_ROWS, 10 * k)), k, np.random.default_rng(seed), init)
    fit = KMeans((_unit(starts) if spherical else starts).astype(np.float32), np.zeros(k, bool))

    def step(share: float, gain: float) -> tuple[Sums, float, int]:
        sums = points.sums(fit.centroids, share)
        centroids, moved = _update(fit.centroids, sums, given, gain)
        new = (_unit(centroids) if spherical else centroids).astype(np.float32)
        shift = float(np.sqrt(np.square(new.astype(np.float64) - fit.centroids).sum(1).mean()))
        fit.centroids = new
        fit.moved[moved] = True
        return sums, shift, len(moved)

    for share, gain in _warm_up(points.rows / k):
        step(share, gain)
        fit.sampled += 1
    for _ in range(max_iter):
        sums, shift, moved = step(1.0, 0.0)
        fit.objective.append(float(sums.errors.sum()) / points.rows)
        fit.shift.append(shift)
        fit.reseeded.append(moved)
        fit.converged = not moved and shift <= tol * fit.objective[-1] ** 0.5
        if fit.converged:
            break
    return fit


def _warm_up(available: float) -> list[tuple[float, float]]:
    """Share of the points and gain of each pass over a sample, where there are so many points a centroid.

    Samples grow fourfold, up to a quarter of the points. Two passes let the centroids settle after each move.
    """
    passes, rows = [], 40
    while rows <= max(40, available / 4):
        passes += [(min(1.0, rows / available), gain) for gain in (GAIN, 0.0, 0.0) * 3]
        rows *= 4
    return passes


def _update(centroids: Floats, sums: Sums, given: int, gain: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Means of the clusters ``(k, d)``, and which centroids were moved into another's cluster to split it."""
    counts = sums.counts[:, None]
    means = np.where(counts > 0, sums.vectors / np.maximum(counts, 1), centroids)
    cost = np.where(sums.counts > 0, sums.gaps, -1.0)
    cost[:given][sums.counts[:given] > 0] = np.inf
    poor, rich = np.argsort(cost, kind="stable"), np.argsort(-sums.errors, kind="stable")
    worth = (sums.errors[rich] > 0) & (cost[poor] < gain * sums.errors[rich])
    rank = np.empty(len(rich), np.int64)
    rank[rich] = np.arange(len(rich))
    apart = np.minimum.accumulate(rank[poor]) > np.arange(len(poor))  # nobody gives and takes
    moves = int(np.argmin(np.append(worth & apart, False)))
    taken, split = poor[:moves], rich[:moves]
    apart_by = np.where(np.arange(means.shape[1]) % 2, 1 + 2.0**-10, 1 - 2.0**-10)
    means[taken] = means[split] * apart_by
    means[split] *= 2 - apart_by
    return means, taken


def _unit(x: Vectors) -> NDArray[np.float64]:
    lengths = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    unit: NDArray[np.float64] = x / np.where(lengths > 0, lengths, 1)
    return unit
