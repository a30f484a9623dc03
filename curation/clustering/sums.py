"""What one pass over points leaves for each centroid; exact, so it does not matter who adds what first."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FINE = 2.0**20  # squared distances a unit


@dataclass
class Sums:
    """What one pass over points leaves of them, for each of k centroids; exact, so they add in any order.

    Attributes:
        vectors: ``(k, d)`` float64, the sum of the points nearest to it.
        counts: ``(k,)`` int64, how many they are.
        errors: ``(k,)`` float64, the sum of their squared distances to it.
        gaps: ``(k,)`` float64, by how much that sum would grow were the centroid taken away.
    """

    vectors: NDArray[np.float64]
    counts: NDArray[np.int64]
    errors: NDArray[np.float64]
    gaps: NDArray[np.float64]

    @classmethod
    def zero(cls, k: int, d: int) -> "Sums":
        """The sums over no points."""
        return cls(np.zeros((k, d)), np.zeros(k, np.int64), np.zeros(k), np.zeros(k))

    def add_points(self, x: Floats, labels: NDArray[np.int32], squared: Floats) -> None:
        """Add points ``(n, d)`` with what :meth:`.Nearest.two` says of them."""
        k = len(self.counts)
        rounded = np.rint(np.where(np.isinf(squared), squared[:, :1], squared) * FINE) / FINE
        self.counts += np.bincount(labels, minlength=k)
        self.errors += np.bincount(labels, rounded[:, 0], k)
        self.gaps += np.bincount(labels, rounded[:, 1] - rounded[:, 0], k)
        order = np.argsort(labels, kind="stable")
        present, starts = np.unique(labels[order], return_index=True)
        x = x[order]
        for label, start, stop in zip(present, starts, [*starts[1:], len(x)], strict=True):
            self.vectors[label] += x[start:stop].sum(0, dtype=np.float64)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.vectors + other.vectors,
            self.counts + other.counts,
            self.errors + other.errors,
            self.gaps + other.gaps,
        )
