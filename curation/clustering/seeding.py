"""Where k-means starts: greedy k-means++ (Arthur and Vassilvitskii 2007, section 5), within cells where k is large."""

from math import isqrt, log

import faiss
import numpy as np
from numpy.typing import NDArray

from curation.clustering.nearest import Floats
from curation.selection.quotas import quotas

FLAT = 256  # more starts than this are drawn cell by cell


def seeds(x: Floats, k: int, rng: np.random.Generator, given: Floats | None = None) -> Floats:
    """``k`` starts: those given, then rows of ``x``.

    Many starts are drawn in about sqrt(k) cells, each of which gets its share of the squared distances: sqrt(k)
    times fewer comparisons, and nearly as good.

    Args:
        x: ``(n, d)`` float32, a sample of at least ``k`` points.
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
    error = np.bincount(cell, np.minimum(left, squared[:, 0]))
    shares = quotas(error + 1e-9, np.bincount(cell), wanted)
    members = [np.flatnonzero(cell == number) for number in range(len(shares))]
    chosen = [m[_greedy(x[m], share, left[m], rng)] for m, share in zip(members, shares, strict=True)]
    return np.concatenate([given, x[np.concatenate(chosen)]])


def _greedy(x: Floats, k: int, left: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
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
