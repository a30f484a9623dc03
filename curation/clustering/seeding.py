"""Where k-means starts: greedy k-means++ (Arthur and Vassilvitskii 2007, section 5), within cells where k is large."""

from math import isqrt, log

import faiss
import numpy as np
from numpy.typing import NDArray

FLAT = 256  # more starts than this are drawn cell by cell


def seeds(
    x: NDArray[np.float32], k: int, rng: np.random.Generator, given: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """``k`` starts: those given, then rows of ``x``.

    Many starts are drawn in about sqrt(k) cells, each getting its share of the squared distances: k^1.5
    instead of k^2 comparisons a row, and nearly as good.

    Args:
        x: ``(n, d)`` float32, a sample of the points.
        k: how many in all.
        rng: where the draws come from.
        given: ``(g, d)`` float32, starts that are there already; no more than ``k``.

    Returns:
        ``(k, d)`` float32. Where ``x`` has too few distinct rows, some are there twice.
    """
    given = np.empty((0, x.shape[1]), np.float32) if given is None else given
    wanted = k - len(given)
    left = faiss.knn(x, given, 1)[0][:, 0] if len(given) else np.full(len(x), np.inf, np.float32)
    if wanted <= FLAT:
        return np.concatenate([given, x[_greedy(x, wanted, left, rng)]])
    squared, cell = faiss.knn(x, x[_greedy(x, isqrt(wanted), left, rng)], 1)
    cell = cell[:, 0]
    error = np.cumsum(np.bincount(cell, np.minimum(left, squared[:, 0])))
    quotas = np.diff(np.rint(wanted * error / error[-1]).astype(int), prepend=0)
    chosen = []
    for number, quota in enumerate(quotas):
        rows = np.flatnonzero(cell == number)
        chosen.append(rows[_greedy(x[rows], min(quota, len(rows)), left[rows], rng)])
    rows = np.concatenate(chosen)
    return np.concatenate([given, x[rows], x[rng.choice(len(x), wanted - len(rows))]])


def _greedy(
    x: NDArray[np.float32], k: int, left: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.int64]:
    """``k`` rows, each drawn in proportion to what is left: its squared distance from the starts so far.

    Of ``2 + log k`` drawn, the one that leaves the smallest sum is taken.
    """
    chosen = np.empty(k, np.int64)
    for i in range(k):
        total = np.cumsum(left if np.isfinite(left).all() else np.ones_like(left), dtype=np.float64)
        drawn = np.searchsorted(total, rng.random(2 + int(log(k))) * total[-1], side="right").clip(max=len(x) - 1)
        after = np.minimum(faiss.pairwise_distances(x[drawn], x), left)
        best = after.sum(1).argmin()
        chosen[i], left = drawn[best], after[best]
    return chosen
