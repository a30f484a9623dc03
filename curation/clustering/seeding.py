"""Where k-means starts: greedy k-means++ (Arthur and Vassilvitskii 2007, section 5), in cells where k is large."""

from math import isqrt, log

import faiss
import numpy as np
from numpy.typing import NDArray

from curation.clustering.nearest import Floats, one_thread

FLAT = 256  # starts after which the rows fall into cells


@one_thread()
def seeds(x: Floats, k: int, rng: np.random.Generator, given: Floats | None = None) -> Floats:
    """``k`` starts: those given, then rows of ``x``.

    Each is the best of a few rows drawn in proportion to what is left: the squared distance to the starts so far.
    Where ``k`` is large, the first sqrt(k) starts make cells; from then on a start is drawn from one cell and
    changes what is left in that cell only, which saves nearly all of the comparisons and little of the quality.

    Args:
        x: ``(n, d)`` float32, a sample of at least ``k`` points.
        k: how many in all.
        rng: where the draws come from.
        given: ``(g, d)`` float32, starts that are there already; no more than ``k``.

    Returns:
        ``(k, d)`` float32. Where ``x`` has too few distinct rows, some are there twice.
    """
    starts = x[rng.integers(len(x), size=1)] if given is None or not len(given) else given
    left = faiss.knn(x, starts, 1)[0][:, 0]
    many = k - len(starts) > FLAT
    first = _draw(x, left, [np.arange(len(x))], isqrt(k) if many else k - len(starts), rng)
    if not many:
        return np.concatenate([starts, x[first]])
    _, cell = faiss.knn(x, x[first], 1)
    cells = [np.flatnonzero(cell[:, 0] == number) for number in range(len(first))]
    rest = _draw(x, left, cells, k - len(starts) - len(first), rng)
    return np.concatenate([starts, x[first], x[rest]])


def _draw(
    x: Floats, left: Floats, cells: list[NDArray[np.int64]], k: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """``k`` rows; ``left`` is brought up to date.

    A cell is drawn in proportion to the sum of what is left in it; of ``2 + log k`` rows drawn in it, the one that
    leaves the smallest sum is taken.
    """
    parts, lefts = [x[rows] for rows in cells], [left[rows] for rows in cells]
    sums = np.array([part.sum(dtype=np.float64) for part in lefts])
    chosen = np.empty(k, np.int64)
    for i in range(k):
        cell = int(_proportional(sums, rng.random(1))[0])
        drawn = _proportional(lefts[cell], rng.random(2 + int(log(k))))
        after = np.minimum(faiss.pairwise_distances(parts[cell][drawn], parts[cell]), lefts[cell])
        totals = after.sum(1, dtype=np.float64)
        best = totals.argmin()
        chosen[i], lefts[cell], sums[cell] = cells[cell][drawn[best]], after[best], totals[best]
    for rows, part in zip(cells, lefts, strict=True):
        left[rows] = part
    return chosen


def _proportional(weights: NDArray[np.floating], u: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices drawn in proportion to weights, for ``u`` uniform in [0, 1)."""
    total = np.cumsum(weights, dtype=np.float64)
    drawn: NDArray[np.int64] = np.searchsorted(total, u * total[-1], side="right").clip(max=len(weights) - 1)
    return drawn
