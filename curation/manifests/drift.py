"""How far new acquisitions are from what the clusters were fitted on.

Three figures: the share of the new samples that lie farther from every centroid than 99 % of the first archive did; how
far the clusters' shares of the archive have moved (total variation, 0 to 1); how far the mean entropy of the new
samples lies from that of the first archive, in its standard deviations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILE = 0.99
BINS = 4096  # of distances between unit vectors, which end at 2
LEAST = 30  # samples below which a share or a mean tells nothing


@dataclass(frozen=True)
class Spread:
    """How the distances and entropies of some samples lie; adds up.

    Attributes:
        distances: int64 (BINS,) samples by the distance to their centroid.
        entropies: how many have an entropy, the sum of these, and of their squares.
    """

    distances: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    entropies: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    @staticmethod
    def of(distance: NDArray[np.float32], entropy: NDArray[np.floating]) -> "Spread":
        """Of samples, NaN where there is no entropy."""
        known = np.round(
            entropy[~np.isnan(entropy)].astype(np.float64) * 2**16
        )  # whole, so that the order is no matter
        return Spread(
            np.bincount(_bins(distance), minlength=BINS), np.array([len(known), known.sum(), np.square(known).sum()])
        )

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self.distances + other.distances, self.entropies + other.entropies)

    def frozen(self) -> dict[str, float | None]:
        """What later runs are held against: ``reach``, ``entropy_mean``, ``entropy_std``."""
        total = int(self.distances.sum())
        end = int(np.searchsorted(np.cumsum(self.distances), QUANTILE * total)) + 1 if total else BINS
        mean, std = self.entropy()
        return {"reach": end * 2 / BINS, "entropy_mean": mean, "entropy_std": std}

    def entropy(self) -> tuple[float | None, float | None]:
        """Mean and standard deviation of the entropies, bits."""
        number, total, squares = self.entropies.tolist()
        if not number:
            return None, None
        mean = total / number
        return mean / 2**16, max(squares / number - mean**2, 0.0) ** 0.5 / 2**16


@dataclass(frozen=True)
class Drift:
    """What the new samples of a run show.

    Attributes:
        samples: new ones.
        far_share: of them, beyond the reach of every centroid.
        share_shift: of the clusters' shares of the archive, since they were fitted.
        entropy_shift: of their mean, in standard deviations; None where there are no entropies.
    """

    samples: int
    far_share: float
    share_shift: float
    entropy_shift: float | None

    def figures(self) -> dict[str, Any]:
        """As they stand in the header."""
        return {
            "samples": self.samples,
            "far_share": round(self.far_share, 6),
            "share_shift": round(self.share_shift, 6),
            "entropy_shift": None if self.entropy_shift is None else round(self.entropy_shift, 6),
        }


def far_share(spread: Spread, reach: float) -> float:
    """Share of samples beyond the reach; 0 of too few."""
    total = int(spread.distances.sum())
    return float(spread.distances[round(reach * BINS / 2) :].sum()) / total if total >= LEAST else 0.0


def share_shift(now: Sequence[int] | NDArray[np.int64], then: Sequence[int] | NDArray[np.int64]) -> float:
    """Total variation distance between two distributions given by counts; the later may have more entries."""
    one, other = np.asarray(now, np.float64), np.zeros(len(now))
    other[: len(then)] = then
    if not one.sum() or not other.sum():
        return 0.0
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)


def entropy_shift(new: Spread, frozen: dict[str, Any]) -> float | None:
    """Of the mean of new samples against the frozen one, in its standard deviations."""
    mean, _ = new.entropy()
    if mean is None or frozen.get("entropy_mean") is None or new.entropies[0] < LEAST:
        return None
    return float((mean - frozen["entropy_mean"]) / max(frozen["entropy_std"], 1e-6))


def _bins(distance: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whole numbers of steps, the last for all beyond; a distance on an edge counts to the lower bin."""
    step: NDArray[np.float64] = np.ceil(distance.astype(np.float64) * (BINS / 2)) - 1
    return np.clip(step, 0, BINS - 1).astype(np.int64)
