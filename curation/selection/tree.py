"""Seats shared out down a tree of clusters: on each level a seat goes to whoever has fewest and has more to give.

That is the balanced sampling of Vo et al. 2024 (arXiv 2405.15613), a uniform
share on each level with what there is as a cap. Where they give a remainder out
at random it goes to the largest here; so no quota shrinks when the budget grows,
and the place of a seat in the order in which all are given out has a closed form.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


class Tree:
    """A forest of clusters under one root.

    Args:
        sizes: (K,) of the leaves.
        parents: for each level, from the leaves upwards, the node of the next level that each of its nodes lies in;
            the nodes of the uppermost level lie in the root. None: all leaves lie in the root.
    """

    def __init__(self, sizes: ArrayLike, parents: Sequence[ArrayLike] = ()) -> None:
        self.levels: list[_Level] = []
        own = np.asarray(sizes, np.int64)
        for above in (*(np.asarray(one, np.int64) for one in parents), np.zeros(0, np.int64)):
            level = _Level(own, above if len(above) else np.zeros(len(own), np.int64))
            self.levels.append(level)
            own = level.total

    def place(self, leaf: Ints, seat: Ints) -> Ints:
        """(n,) when a leaf gets its seat of a number (from 0), among all seats of all leaves; both arrays are (n,)."""
        node, place = leaf, seat
        for level in self.levels:
            place = level.filled(level.parent[node], place) + level.turn[node]
            node = level.parent[node]
        return place

    def turn(self, leaf: NDArray[np.int32], seat: Ints, size: Ints) -> Ints:
        """`place`, as `strategies.cluster_order` asks for it; several seats taken at once count by their first."""
        return self.place(leaf.astype(np.int64), seat)

    def quotas(self, budget: int, floors: ArrayLike = 0) -> Ints:
        """(K,) seats of each leaf: those of the first seats of all, so many that with the floors they are the budget.

        Args:
            budget: between the sums of floors and sizes.
            floors: (K,) seats that are given before all others.
        """
        low, high = 0, int(self.levels[-1].total.sum())
        while low < high:  # one more seat gives one leaf one more, or none if its floor is higher
            middle = (low + high) // 2
            enough = np.maximum(self._share(middle), floors).sum() >= budget
            low, high = (low, middle) if enough else (middle + 1, high)
        seats: Ints = np.maximum(self._share(low), floors)
        return seats

    def _share(self, seats: int) -> Ints:
        """(K,) the leaves of the first so many seats."""
        given = np.array([seats], np.int64)
        for level in reversed(self.levels):
            given = level.share(given)
        return given


class _Level:
    """Nodes of one level.

    Attributes:
        size, parent: (nodes,).
        turn: (nodes,) where it stands among its siblings, the largest first.
        total: (parents,) of the sizes.
    """

    def __init__(self, size: Ints, parent: Ints) -> None:
        self.size, self.parent = size, parent
        number = int(parent.max(initial=-1)) + 1
        self.total = np.bincount(parent, size, number).astype(np.int64)
        self._base = int(size.max(initial=0)) + 1
        order = np.argsort(self._key(parent, size), kind="stable")
        self._keys = self._key(parent, size)[order]
        self._first = np.searchsorted(parent[order], np.arange(number))
        self._before = np.concatenate([[0], np.cumsum(size[order])])
        self.turn = np.empty(len(size), np.int64)
        self.turn[order] = np.arange(len(size)) - self._first[parent[order]]

    def _key(self, parent: Ints, size: Ints) -> Ints:
        """Sorts by parent, then falling size."""
        return parent * (self._base + 1) + (self._base - size)

    def filled(self, parent: Ints, seat: Ints) -> Ints:
        """(n,) seats of all children of a parent up to a number each: the sum of min(size, seat); both are (n,)."""
        first = self._first[parent]
        above = np.searchsorted(self._keys, self._key(parent, np.minimum(seat, self._base)))  # those are larger
        smaller = self.total[parent] - (self._before[above] - self._before[first])
        filled: Ints = (above - first) * seat + smaller
        return filled

    def share(self, seats: Ints) -> Ints:
        """(nodes,) of the (parents,) seats."""
        parents = np.arange(len(self.total))
        low, high = np.zeros(len(parents), np.int64), np.full(len(parents), self._base)
        while (low < high).any():  # the highest level that all can be filled to
            middle = (low + high + 1) // 2
            fits = self.filled(parents, middle) <= seats
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        left = seats - self.filled(parents, low)
        level = low[self.parent]
        more = (self.size > level) & (self.turn < left[self.parent])
        given: Ints = np.minimum(self.size, level) + more
        return given


def parents_of(ancestors: NDArray[np.integer]) -> list[Ints]:
    """What `Tree` wants, out of (K, levels) the nodes that each leaf lies in, upwards."""
    parents: list[Ints] = []
    own = np.arange(len(ancestors))
    for above in ancestors.T.astype(np.int64):
        parent = np.zeros(int(own.max(initial=-1)) + 1, np.int64)
        parent[own] = above
        parents.append(parent)
        own = above
    return parents
