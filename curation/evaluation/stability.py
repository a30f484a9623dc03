"""How alike repetitions of one selection are, beside what chance alone gives. Pure functions.

Two things can repeat. *Which samples* are kept: the overlap of two selections with independent draws and clusters. And
*which kinds*: even where luck draws the samples of a stratum, a selection may favour kinds, each time the same.
Kinds are told by clusters that belong to neither selection.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOISE_SAMPLES = 0.1  # overlap beyond chance below which the kept samples are luck
NOISE_KINDS = 0.25  # agreement below which the kept kinds are luck; and in any case below what chance may give
AS_GOOD = 0.05  # what two settings may differ by and still count as equal

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """Of two selections.

    Attributes:
        jaccard: samples in both over samples in either.
        chance: what two uniform draws of their sizes have.
        beyond: (jaccard - chance) / (1 - chance): 0 chance, 1 the same samples.
    """

    jaccard: float
    chance: float
    beyond: float


def overlap(one: Rows, other: Rows, samples: int) -> Overlap:
    """Compare two selections of distinct rows out of so many samples.

    The expectation of the intersection of two draws of a and b out of n is a b / n (hypergeometric); chance is that of
    the Jaccard index with the intersection at its expectation.
    """
    both = len(np.intersect1d(one, other, assume_unique=True))
    jaccard = both / (len(one) + len(other) - both)
    expected = len(one) * len(other) / samples
    chance = expected / (len(one) + len(other) - expected)
    beyond = (jaccard - chance) / (1 - chance) if chance < 1 else 0.0
    return Overlap(jaccard, chance, beyond)


def kinds_agreement(one: Rows, other: Rows, kinds: NDArray[np.integer[Any]]) -> float:
    """Whether two selections favour the same kinds: correlation of how much more than its share each keeps of a kind.

    Args:
        one: rows.
        other: rows, of another draw and other clusters.
        kinds: (samples,) codes from 0, that belong to neither.

    Returns:
        Pearson's correlation of kept over expected, kinds weighted by their size, -1 to 1; 0 where either is even.
    """
    sizes = np.bincount(kinds)
    there = sizes > 0
    share = sizes[there] / sizes.sum()
    lifts = [np.bincount(kinds[rows], minlength=len(sizes))[there] / len(rows) / share for rows in (one, other)]
    x, y = (lift - share @ lift for lift in lifts)
    scale = math.sqrt(float(share @ x**2) * float(share @ y**2))
    return float(share @ (x * y)) / scale if scale > 0 else 0.0


def least_agreement(k: int) -> float:
    """From which agreement over K kinds on a selection is no luck."""
    return max(NOISE_KINDS, 2 / math.sqrt(max(k - 1, 1)))


def recommend(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What to take of the settings that were swept, or that the choice is mostly noise.

    The rule: it is mostly noise if at no setting the overlap is `NOISE_SAMPLES` beyond chance, nor the agreement of
    kinds `NOISE_KINDS` and beyond 2 / sqrt(K - 1), twice the error of a correlation of nothing over K kinds. Else, of
    the settings that are no noise at some budget, the smallest K (and its encoder) whose kinds agree as well as any
    other's, within `AS_GOOD`, averaged over the budgets; and of it the smallest budget whose samples overlap as far
    beyond chance as any's.

    Args:
        found: a setting each: ``encoder``, ``k``, ``budget``, ``beyond`` and ``kinds`` (means over pairs of seeds).

    Returns:
        ``noise``, and ``encoder``, ``k``, ``budget`` (None if it is noise).
    """
    told = [one for one in found if one["beyond"] >= NOISE_SAMPLES or one["kinds"] >= least_agreement(one["k"])]
    if not told:
        return {"noise": True, "encoder": None, "k": None, "budget": None}
    settings = sorted({(one["k"], one["encoder"]) for one in told})
    means = {at: np.mean([one["kinds"] for one in found if (one["k"], one["encoder"]) == at]) for at in settings}
    k, encoder = next(at for at in settings if means[at] >= max(means.values()) - AS_GOOD)
    mine = sorted((one for one in found if (one["k"], one["encoder"]) == (k, encoder)), key=lambda one: one["budget"])
    most = max(one["beyond"] for one in mine)
    budget = next(one["budget"] for one in mine if one["beyond"] >= most - AS_GOOD)
    return {"noise": False, "encoder": encoder, "k": k, "budget": budget}
