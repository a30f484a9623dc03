"""Orders that the embeddings of a cluster give: k-center, facility location, SemDeDup.

Each gives every row of one piece, a cluster or a part of one, a figure by which
the rows of many pieces merge into one order. That of the first two never improves
from one pick to the next, so that what is merged is the greedy order over all
pieces; that of SemDeDup hangs on no pick.

Cosines are taken to the next multiple of 2^-20, and out of sums that float64
holds exactly (the products of float16 coordinates of unit vectors). So neither
they nor sums of them depend on who adds what first, and rows that tie do tie.

Bounds: a piece of `LIMIT` rows takes 64 MiB for its cosines and half as much to
make them; time grows with the square of its rows.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.selection.sampling import Floats

Cosines = NDArray[np.float32]  # (n, n)

LIMIT = 4096  # rows of a piece, about: larger clusters are split by a hash of the id
GRID = 2.0**20  # cosines a unit
STRIPE = 512  # rows whose cosines are made at once


def cosines(x: NDArray[np.float16]) -> Cosines:
    """(n, n) of the rows of (n, d), which have about unit length."""
    wide = x.astype(np.float64)
    norm = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    norm[norm == 0] = 1
    found = np.empty((len(x), len(x)), np.float32)
    for start in range(0, len(x), STRIPE):
        rows = slice(start, start + STRIPE)
        found[rows] = np.rint(wide[rows] @ wide.T / (norm[rows, None] * norm) * GRID) / GRID
    return found


def k_center(cosine: Cosines, required: NDArray[np.bool_], distance: Floats, picks: int) -> Floats:
    """The farthest from all before it goes next (Gonzalez 1985; Sener and Savarese 2018 as coreset).

    Args:
        cosine: `cosines`, of rows in the order that decides ties.
        required: (n,) these go first.
        distance: (n,) to the centroid: without required rows the nearest begins.
        picks: how many rows beside the required ones are wanted.

    Returns:
        (n,) the distance to the nearest row before it, between unit vectors; of the one that begins 2 (no distance is
        longer) and the distance to the farthest from it. NaN of required rows and of those beyond the picks.
    """
    radius = np.full(len(cosine), np.nan)
    left = ~required
    nearest = cosine[required].max(axis=0, initial=-1)
    if picks and not required.any():
        first = int(np.argmin(distance))
        nearest, left[first], picks = cosine[first].copy(), False, picks - 1
        radius[first] = 2 + _apart(nearest.min())
    for _ in range(min(picks, int(left.sum()))):
        pick = int(np.argmin(np.where(left, nearest, np.inf)))
        radius[pick], left[pick] = _apart(nearest[pick]), False
        np.maximum(nearest, cosine[pick], out=nearest)
    return radius


def _apart(cosine: np.float32) -> float:
    """The distance of two unit vectors."""
    return float(np.sqrt(max(0.0, 2 - 2 * float(cosine))))


def facility_location(cosine: Cosines, required: NDArray[np.bool_], distance: Floats, picks: int) -> Floats:
    """Who adds most to the sum over all rows of the largest cosine (0 at least) to a picked one goes next.

    Exact, by lazy evaluation (Minoux 1978): a gain never grows, so that only those are looked at again whose last
    known gain is above the best one found.

    Args:
        cosine: `cosines`, of rows in the order that decides ties.
        required: (n,) these go first.
        distance: not used.
        picks: how many rows beside the required ones are wanted.

    Returns:
        (n,) the gain; NaN of required rows and of those beyond the picks.
    """
    gain = np.full(len(cosine), np.nan)
    best = cosine[required].max(axis=0, initial=0)

    def gain_of(row: int) -> float:
        return float(np.maximum(cosine[row] - best, 0).sum(dtype=np.float64))

    known = [(-gain_of(int(row)), int(row), 0) for row in np.flatnonzero(~required)]
    heapq.heapify(known)
    for turn in range(min(picks, len(known))):
        while known[0][2] != turn:
            row = known[0][1]
            heapq.heapreplace(known, (-gain_of(row), row, turn))
        worth, row, _ = heapq.heappop(known)
        gain[row] = -worth
        np.maximum(best, cosine[row], out=best)
    return gain


def semdedup(cosine: Cosines, required: NDArray[np.bool_], distance: Floats, picks: int) -> Floats:
    """How like each row is to those before it, the farthest from the centroid first (Abbas et al. 2023, SemDeDup).

    Args:
        cosine: `cosines`, of rows in the order that decides ties.
        required: (n,) these stand before all others.
        distance: (n,) to the centroid.
        picks: not used: no row's figure hangs on how many are kept.

    Returns:
        (n,) the largest cosine to a row that stands before it, -1 of the first.
    """
    order = np.lexsort((-distance, ~required))
    likeness = np.full(len(order), -1.0)
    for start in range(0, len(order), STRIPE):
        rows = order[start : start + STRIPE]
        earlier = np.arange(start + len(rows)) < np.arange(start, start + len(rows))[:, None]
        found = cosine[rows[:, None], order[: start + len(rows)]]
        likeness[rows] = np.where(earlier, found, -1).max(axis=1)
    return likeness


class Rule(NamedTuple):
    """How a piece is ordered, and whether the largest figure goes first (1) or the smallest (-1)."""

    order: Callable[[Cosines, NDArray[np.bool_], Floats, int], Floats]
    sign: int


GREEDY = {
    "k_center": Rule(k_center, 1),
    "facility_location": Rule(facility_location, 1),
    "semdedup": Rule(semdedup, -1),
}
