"""Coverage-centric selection: equal shares for all levels of a score, but for the hardest (Zheng et al. 2023).

As published: the hardest ``beta`` of the samples go (they may be mislabelled), the range of what is left is cut into
strata of equal width, and budgets are given to the smallest strata first. A sample's stratum needs no other sample
once the range is known, so that the functions work on parts of an archive as well.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curation.selection.sampling import Words, line_up, priority, uniform

Floats = NDArray[np.float64]


def strata_of(score: ArrayLike, low: float, high: float, strata: int = 50) -> NDArray[np.int32]:
    """The stratum of each score in [low, high], 0 the lowest.

    Args:
        score: whichever way it rises.
        low: the least score that is left after the hardest went.
        high: the greatest.
        strata: how many, of equal width.
    """
    width = (high - low) / strata
    if not width > 0:
        return np.zeros(np.shape(score), np.int32)
    at = (np.asarray(score, np.float64) - low) / width
    return np.clip(at, 0, strata - 1).astype(np.int32)


def budgets(sizes: ArrayLike, budget: int) -> NDArray[np.int64]:
    """Seats of each stratum: the smallest first, each min(size, what remains // strata that remain).

    Args:
        sizes: (strata,) samples of each.
        budget: seats in all, at most the sum of the sizes.

    Returns:
        int64 (strata,); they sum to the budget.

    Raises:
        ValueError: there are fewer samples.
    """
    sizes = np.asarray(sizes, np.int64)
    if budget > sizes.sum():
        raise ValueError(f"{budget} samples are asked for, but the strata have {sizes.sum()}")
    seats, remaining = np.zeros_like(sizes), budget
    for done, stratum in enumerate(np.argsort(sizes, kind="stable")):
        seats[stratum] = min(sizes[stratum], remaining // (len(sizes) - done))
        remaining -= seats[stratum]
    return seats


def kept_after_hardest(hard: ArrayLike, beta: float, *ties: Words) -> NDArray[np.bool_]:
    """False for the hardest ``round(beta n)``; ties by the further keys, ids that come first go first.

    Args:
        hard: (n,) difficulty, the greatest goes first.
        beta: share that goes.
        ties: (n,) words of the ids.
    """
    hard = np.asarray(hard, np.float64)
    order = np.lexsort((*reversed(ties), -hard))
    kept = np.ones(len(hard), bool)
    kept[order[: round(beta * len(hard))]] = False
    return kept


def ccs(
    upper: Words,
    lower: Words,
    seed: int,
    hard: ArrayLike,
    budget: int,
    *,
    beta: float = 0.3,
    strata: int = 50,
) -> NDArray[np.int64]:
    """The rows that are kept, by stratum from the easiest, each stratum's drawn at random by a hash of the ids.

    Args:
        upper: (n,) words of the ids, see :func:`~curation.selection.sampling.split_ids`.
        lower: the same.
        seed: of the draw.
        hard: (n,) difficulty, such as EL2N or minus AUM.
        budget: how many are kept.
        beta: share of the hardest that go first; less where the budget would not be left.
        strata: how many.

    Raises:
        ValueError: the budget is more than there is.
    """
    hard = np.asarray(hard, np.float64)
    n = len(hard)
    if budget > n:
        raise ValueError(f"{budget} samples are asked for, but there are {n}")
    left = np.flatnonzero(kept_after_hardest(hard, min(beta, 1 - budget / n), upper, lower)) if n else np.arange(0)
    if not budget:
        return left[:0]
    stratum = strata_of(hard[left], hard[left].min(), hard[left].max(), strata)
    seats = budgets(np.bincount(stratum, minlength=strata), budget)
    order, start = line_up(stratum, priority(uniform(upper[left], seed)), upper[left], lower[left])
    return left[order[np.arange(len(left)) - start < seats[stratum[order]]]]
