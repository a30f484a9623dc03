"""Orders by a score: strata of equal width (CCS), and importance sampling on ranks (SIMS)."""

import numpy as np
from numpy.typing import NDArray

from curation.selection.sampling import Floats


def score_strata(score: NDArray[np.floating], low: float, high: float, number: int) -> NDArray[np.int32]:
    """The stratum of each score: one of so many of equal width, or ``number`` where there is none (NaN).

    As in Zheng et al. 2023 (CCS, arXiv 2210.15809), over the scores that are left once the hardest have gone.

    Args:
        score: (n,).
        low: the least of all.
        high: the greatest of all, which belongs to the last stratum.
        number: of strata.
    """
    width = (high - low) / number
    place = np.floor((score.astype(np.float64) - low) / width) if width > 0 else np.zeros(len(score))
    return np.where(np.isnan(score), number, np.clip(np.nan_to_num(place), 0, number - 1)).astype(np.int32)


def ratio_mean(pruned: float, low: float, high: float) -> float:
    """Where on the ranks (0 hardest, 1 easiest) SIMS draws most: from low to high as the share pruned goes from 0 to 1.

    The line and its ends are a choice: SIMS (arXiv 2409.13915) says that the mean depends on the ratio.
    """
    return low + (high - low) * pruned


def importance_weight(rank: Floats, mean: float, sigma: float) -> Floats:
    """The density of N(mean, sigma^2) at each rank, but for a factor."""
    weight: Floats = np.exp(-0.5 * ((rank - mean) / sigma) ** 2)
    return weight
