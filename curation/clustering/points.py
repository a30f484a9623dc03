"""The points that k-means sees: a few matrices in this process (in Ray actors: `clustering.actors`).

Sums are exact, so it does not matter who adds what first, and the result of a
fit has the same bits for any number of actors: coordinates are multiples of
2^-24 (every float16 of length 1 is; longer types are rounded to it), which
float64 adds without error up to 2^29 rows of unit length.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from curation.clustering.nearest import Floats, Labels, Nearest, Vectors, blocks, one_thread

Loader = Callable[[], Vectors]  # gives (rows, d); picklable: it is called in the actor

GRID = 2.0**24  # coordinates a unit of length
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

    def add_points(self, x: Floats, labels: Labels, squared: Floats) -> None:
        """Add points ``(n, d)`` with what :meth:`Nearest.two` says of them."""
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


class Points(Protocol):
    """All that k-means needs to know of its points."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def head(self, rows: int) -> Floats:
        """A fair sample ``(about rows, d)``, always the same."""

    def sums(self, centroids: Floats, share: float) -> Sums:
        """One pass over a fair sample of this share of the points, always the same."""


class Rows:
    """Points in this process.

    Args:
        loaders: the matrices' loaders by number. Each matrix is shuffled by seed and number, so that its
            first rows are a fair sample of it, whoever holds it.
        seed: of the shuffling.
        device: what searches for the nearest centroids.
    """

    def __init__(self, loaders: Mapping[int, Loader], seed: int, device: str = "cpu") -> None:
        self.loaders, self.seed, self.device = loaders, seed, device

    @cached_property
    def parts(self) -> dict[int, Vectors]:
        """The shuffled matrices; loaded by the first call, since an actor whose constructor fails is not made again."""
        return {number: _shuffled(self.loaders[number](), self.seed, number) for number in sorted(self.loaders)}

    @property
    def rows(self) -> int:
        """How many points there are."""
        return sum(map(len, self.parts.values()))

    def count(self) -> int:
        """How many there are (an actor's attributes are not to be seen from outside)."""
        return self.rows

    def heads(self, share: float) -> dict[int, Floats]:
        """The first rows of each matrix."""
        return {number: x[: ceil(share * len(x))].astype(np.float32) for number, x in self.parts.items()}

    def head(self, rows: int) -> Floats:
        """See :class:`Points`."""
        return np.concatenate(list(self.heads(min(1.0, rows / max(1, self.rows))).values()))

    @one_thread()
    def sums(self, centroids: Floats, share: float) -> Sums:
        """See :class:`Points`."""
        search, total = Nearest(centroids, self.device), Sums.zero(*centroids.shape)
        for x in self.parts.values():
            for _, block in blocks(x[: ceil(share * len(x))]):
                total.add_points(block, *search.two(block))
        return total

    @one_thread()
    def split(self, centroids: Floats) -> list[dict[int, Vectors]]:
        """The rows of each matrix that are nearest to each centroid."""
        search = Nearest(centroids, self.device)
        labels = {number: search(x)[0] for number, x in self.parts.items()}
        return [{number: x[labels[number] == c] for number, x in self.parts.items()} for c in range(len(centroids))]

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something else where these rows are held."""
        return function(*arguments)


def _shuffled(x: Vectors, seed: int, number: int) -> Vectors:
    x = x[np.random.default_rng((seed, number)).permutation(len(x))]
    return x if x.dtype == np.float16 else (np.rint(x * GRID) / GRID).astype(np.float32)
