"""How far the archive lies from what was kept: every sample's distance to the nearest kept one, in an encoder's space.

The mean is the k-medians objective, the worst the k-center one (Sener and Savarese 2018, "Active Learning for
Convolutional Neural Networks: A Core-Set Approach"). A larger kept set covers better whatever it is, so sets of one
size are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.clustering.nearest import nearest, one_thread
from curation.evaluation.moments import Vectors


@dataclass(frozen=True)
class Coverage:
    """Distances to the nearest kept sample; ``a + b`` is that of both sets of samples.

    Attributes:
        samples: how many were looked at.
        mean: Euclidean between unit vectors, 0 to 2.
        worst: the largest.
        mean_cosine: of 1 - cosine, 0 to 2.
        worst_cosine: the largest.
    """

    samples: int
    mean: float
    worst: float
    mean_cosine: float
    worst_cosine: float

    def __add__(self, other: Coverage) -> Coverage:
        samples = self.samples + other.samples
        share = self.samples / samples
        return Coverage(
            samples,
            share * self.mean + (1 - share) * other.mean,
            max(self.worst, other.worst),
            share * self.mean_cosine + (1 - share) * other.mean_cosine,
            max(self.worst_cosine, other.worst_cosine),
        )


def coverage(samples: Vectors, kept: Vectors) -> Coverage:
    """How far samples lie from the nearest kept one.

    Exact, in blocks of samples; memory is that of ``kept`` in float32 and one block. For an archive in parts, add up
    the parts' results.

    Args:
        samples: (n, d) unit vectors of any float type: all of the archive or a part of it, the kept ones among them.
        kept: (m, d) unit vectors, m at least 1.
    """
    far = distances(samples, kept).astype(np.float64)
    cosine = far**2 / 2  # |a - b|² = 2 - 2 cos for unit vectors
    return Coverage(len(far), float(far.mean()), float(far.max()), float(cosine.mean()), float(cosine.max()))


def distances(samples: Vectors, kept: Vectors) -> NDArray[np.float32]:
    """Euclidean distance of each sample to the nearest kept one: float32 (n,), 0 for the kept ones themselves."""
    with one_thread():
        return nearest(samples, np.asarray(kept, np.float32))[1]
