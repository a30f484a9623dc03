"""How many samples each cluster may keep: a house-monotone divisor rule with caps and floors.

Sainte-Laguë: seat j (from 0) of a cluster of weight w is worth the quotient
w / (2j + 1), and a budget of n takes the n best seats, ties by cluster. So the
quotas sum to the budget, none shrinks when the budget grows, and the order of
the seats ranks the kept samples: the first n are what budget n selects.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def cluster_weights(sizes: ArrayLike, balance: float, factors: ArrayLike = 1.0) -> Floats:
    """size^(1 - balance) times the user's factor: 0 is proportional to the sizes, 1 uniform; empty clusters get 0."""
    sizes = np.asarray(sizes, np.float64)
    weights: Floats = np.maximum(sizes, 1) ** (1 - balance) * np.asarray(factors, np.float64)
    return np.where(sizes > 0, weights, 0.0)


def seat_quotient(weight: ArrayLike, before: ArrayLike, size: ArrayLike = 1) -> Floats:
    """What seats are worth to a cluster, the next of which goes to the best.

    Args:
        weight: of the cluster.
        before: seats that the cluster has.
        size: seats taken at once, as by a unit that stands whole: counted at their middle.
    """
    quotient: Floats = np.asarray(weight, np.float64) / (2 * np.asarray(before) + np.asarray(size))
    return quotient


def quotas(weights: ArrayLike, caps: ArrayLike, budget: int, floors: ArrayLike = 0) -> Ints:
    """Seats of each cluster; they sum to the budget.

    Bisects the least quotient that still gets a seat over the bits of the
    floats, so that ties are exact; seats that tie for the last places go to the
    lowest clusters.

    Args:
        weights: (K,), positive where the cap is above the floor.
        caps: (K,) what each cluster has.
        budget: between the sums of floors and caps.
        floors: (K,) seats that are given before all others.

    Returns:
        int64 (K,).
    """
    weights, caps = np.asarray(weights, np.float64), np.asarray(caps, np.int64)
    floors = np.broadcast_to(np.asarray(floors, np.int64), caps.shape)
    if not floors.sum() <= budget <= caps.sum():
        raise ValueError(f"a budget of {budget} does not lie between {floors.sum()} and {caps.sum()}")
    if budget == caps.sum():
        return caps.copy()
    low, high = 0, int(np.nextafter(weights.max(), np.inf).view(np.int64))  # as bits: all seats, none
    while high - low > 1:
        middle = (low + high) // 2
        seats = _seats_worth(_float(middle), weights, caps, floors)
        if (given := seats.sum()) == budget:
            return seats
        low, high = (middle, high) if given > budget else (low, middle)
    seats = _seats_worth(_float(high), weights, caps, floors)
    last = np.flatnonzero(_seats_worth(_float(low), weights, caps, floors) > seats)
    seats[last[: budget - seats.sum()]] += 1
    return seats


def _seats_worth(quotient: np.float64, weights: Floats, caps: Ints, floors: Ints) -> Ints:
    """How many seats of each cluster have at least that quotient, as `seat_quotient` rounds it."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        seats = np.clip(np.nan_to_num((weights / quotient + 1) / 2), floors, caps).astype(np.int64)
    seats -= (seats > floors) & (seat_quotient(weights, seats - 1) < quotient)
    seats += (seats < caps) & (seat_quotient(weights, seats) >= quotient)
    return seats


def _float(bits: int) -> np.float64:
    return np.int64(bits).view(np.float64)
