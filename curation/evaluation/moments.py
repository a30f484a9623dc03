"""Count, sum and second moment of vectors: all that spectral diversity and the Fréchet distance need; parts add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]

BLOCK = 16_384  # rows converted to float64 at once


@dataclass(frozen=True)
class Moments:
    """Of n vectors of d numbers; ``a + b`` are those of both sets.

    Attributes:
        count: n.
        total: float64 (d,), the sum of the vectors.
        outer: float64 (d, d), the sum of x xᵀ.
    """

    count: int
    total: Floats
    outer: Floats

    @classmethod
    def of(cls, rows: Vectors) -> Moments:
        """Of rows (n, d) of any float type, n at least 1; in blocks, so that memory stays near d² numbers."""
        total, outer = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK].astype(np.float64)
            total += block.sum(0)
            outer += block.T @ block
        return cls(len(rows), total, outer)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Floats:
        """(d,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Floats:
        """(d, d), divided by n - 1 (zero for one vector)."""
        centred: Floats = self.outer - np.outer(self.total, self.mean)
        return centred / max(self.count - 1, 1)

    def project(self, axes: Floats) -> Moments:
        """Of the same vectors multiplied by ``axes`` (d, k)."""
        return Moments(self.count, self.total @ axes, axes.T @ self.outer @ axes)
