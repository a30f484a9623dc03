"""SIMS: importance sampling by a score's rank, whose mean moves with the share that is pruned (2409.13915).

The paper gives no formula for the mean, the spread or the two halves; all are arguments here, and choices.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curation.selection.quotas import Floats, quotas
from curation.selection.sampling import Words, line_up, priority, uniform

HARD_IS_HIGH = frozenset({"el2n", "forgetting"})  # scores that rise with difficulty; all others fall


def ease(name: str, rank: ArrayLike) -> Floats:
    """A score's rank in [0, 1] turned so that 1 is the easiest sample."""
    rank = np.asarray(rank, np.float64)
    return 1 - rank if name in HARD_IS_HIGH else rank


def importance(ease: ArrayLike, pruned: float, low: float = 0.3, high: float = 0.7, sigma: float = 0.2) -> Floats:
    """Sampling weights: a normal density over the ranks, at its mean 1.

    The mean rises from ``low`` where nothing is pruned (hard samples first) to ``high`` where all is (easy ones).

    Args:
        ease: ranks in [0, 1], 1 the easiest.
        pruned: share of the samples that goes, in [0, 1].
        low: the mean where nothing is pruned.
        high: the mean where everything is.
        sigma: the standard deviation.
    """
    mean = low + (high - low) * pruned
    weights: Floats = np.exp(-0.5 * ((np.asarray(ease, np.float64) - mean) / sigma) ** 2)
    return weights


def class_quotas(sizes: ArrayLike, budget: int, class_share: float = 0.5) -> NDArray[np.int64]:
    """Seats of each class in the class-dependent half: as equal as the classes' sizes allow (Sainte-Laguë).

    Args:
        sizes: (classes,) samples of each.
        budget: samples that are kept in all.
        class_share: the half's share of them.
    """
    sizes = np.asarray(sizes, np.int64)
    return quotas((sizes > 0).astype(np.float64), sizes, round(class_share * budget))


def sims(
    upper: Words,
    lower: Words,
    seed: int,
    ease: ArrayLike,
    class_ease: ArrayLike,
    classes: NDArray[np.integer[Any]],
    budget: int,
    *,
    low: float = 0.3,
    high: float = 0.7,
    sigma: float = 0.2,
    class_share: float = 0.5,
) -> NDArray[np.int64]:
    """The rows that are kept: first the class-dependent half, then the other one, each by rising priority.

    In the first half every class has its quota and its members are drawn by their rank within the class; in the
    second all that is left is drawn by global rank. Each half draws without replacement from a hash of its own half
    of the id, so that neither order nor partition matters.

    Args:
        upper: (n,) words of the ids, see :func:`~curation.selection.sampling.split_ids`.
        lower: the same.
        seed: of the draws.
        ease: (n,) global ranks in [0, 1], 1 the easiest.
        class_ease: (n,) the same within the class.
        classes: (n,) codes from 0.
        budget: how many are kept.
        low: see :func:`importance`.
        high: the same.
        sigma: the same.
        class_share: share of the class-dependent half.

    Raises:
        ValueError: the budget is more than there is.
    """
    n = len(upper)
    if budget > n:
        raise ValueError(f"{budget} samples are asked for, but there are {n}")
    pruned = 1 - budget / n if n else 0.0
    shape = {"pruned": pruned, "low": low, "high": high, "sigma": sigma}
    seats = class_quotas(np.bincount(classes), budget, class_share) if n else np.zeros(0, np.int64)
    drawn = priority(uniform(upper, seed), importance(class_ease, **shape))
    order, start = line_up(classes.astype(np.int32), drawn, upper, lower)
    within = np.arange(n) - start
    first = order[within < seats[classes[order]]]
    first = first[np.lexsort((lower[first], upper[first], drawn[first]))]
    left = np.setdiff1d(np.arange(n), first)
    drawn = priority(uniform(lower[left], seed), importance(np.asarray(ease)[left], **shape))
    rest = left[np.lexsort((lower[left], upper[left], drawn))][: budget - len(first)]
    return np.concatenate([first, rest])
