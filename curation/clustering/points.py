"""The points that k-means sees: a few matrices in this process (in Ray actors: `clustering.actors`).

Sums over them are exact, so the result of a fit has the same bits for any number of actors: coordinates are multiples
of 2^-24 (every float16 of length 1 is; longer types are rounded to it), which float64 adds without error up to 2^29
rows of unit length.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from math import ceil
from typing import Any, Protocol

import numpy as np

from curation.clustering.nearest import Floats, Vectors, one_thread, search_in
from curation.clustering.sums import Sums

Loader = Callable[[], Vectors]  # gives (rows, d); picklable: it is called in the actor

GRID = 2.0**24  # coordinates a unit of length


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
        return search_in(centroids, self.device).sums(x[: ceil(share * len(x))] for x in self.parts.values())

    @one_thread()
    def split(self, centroids: Floats) -> list[dict[int, Vectors]]:
        """The rows of each matrix that are nearest to each centroid."""
        search = search_in(centroids, self.device)
        labels = {number: search(x)[0] for number, x in self.parts.items()}
        return [{number: x[labels[number] == c] for number, x in self.parts.items()} for c in range(len(centroids))]

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something else where these rows are held."""
        return function(*arguments)


def _shuffled(x: Vectors, seed: int, number: int) -> Vectors:
    x = x[np.random.default_rng((seed, number)).permutation(len(x))]
    return x if x.dtype == np.float16 else (np.rint(x * GRID) / GRID).astype(np.float32)
