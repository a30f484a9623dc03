"""Seats down a tree of clusters, held against giving them out one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.tree import Tree, parents_of


def by_turns(sizes: np.ndarray, ancestors: np.ndarray) -> list[tuple[int, int]]:
    """Every seat in turn: from the root down to the child that has fewest and more to give, of several the largest."""
    lineage = [(*reversed(above), leaf) for leaf, above in enumerate(ancestors.tolist())]  # from the top
    left, seats, given = sizes.copy(), {}, []
    size = {path[:depth]: 0 for path in lineage for depth in range(len(path) + 1)}
    for leaf, path in enumerate(lineage):
        for depth in range(len(path) + 1):
            size[path[:depth]] += int(sizes[leaf])
    for _ in range(int(sizes.sum())):
        node: tuple[int, ...] = ()
        while len(node) < len(lineage[0]):
            children = sorted({path[: len(node) + 1] for path in lineage if path[: len(node)] == node})
            open_ones = [child for child in children if seats.get(child, 0) < size[child]]
            node = min(open_ones, key=lambda child: (seats.get(child, 0), -size[child], child[-1]))
            seats[node] = seats.get(node, 0) + 1
        leaf = node[-1]
        given.append((leaf, int(sizes[leaf] - left[leaf])))
        left[leaf] -= 1
    return given


@st.composite
def forests(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the leaves, and the nodes of up to two levels that they lie in."""
    widths = draw(st.lists(st.integers(1, 4), max_size=2))
    leaves = draw(st.integers(1, 8))
    own, above = np.arange(leaves), []
    for width in widths:
        below = int(own.max()) + 1
        parent = np.array(draw(st.lists(st.integers(0, width - 1), min_size=below, max_size=below)))
        own = parent[own]
        above.append(own)
    sizes = np.array(draw(st.lists(st.integers(0, 6), min_size=leaves, max_size=leaves)))
    return sizes, np.array(above, np.int64).reshape(len(widths), leaves).T


@settings(max_examples=300, deadline=None)
@given(forests())
def test_the_place_of_every_seat_is_its_turn(forest: tuple[np.ndarray, np.ndarray]) -> None:
    sizes, ancestors = forest
    tree = Tree(sizes, parents_of(ancestors))
    leaf, seat = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
    place = tree.place(leaf, seat.astype(np.int64))
    assert [(int(leaf[i]), int(seat[i])) for i in np.argsort(place)] == by_turns(sizes, ancestors)
    np.testing.assert_array_equal(np.sort(place), np.arange(sizes.sum()))


@settings(max_examples=300, deadline=None)
@given(forests(), st.randoms(use_true_random=False), st.floats(0, 1))
def test_quotas_are_the_first_seats_and_heed_floors(
    forest: tuple[np.ndarray, np.ndarray], random: np.random.Generator, share: float
) -> None:
    sizes, ancestors = forest
    tree, turns = Tree(sizes, parents_of(ancestors)), by_turns(sizes, ancestors)
    floors = np.array([random.randint(0, int(size)) if random.random() < 0.3 else 0 for size in sizes], np.int64)
    budget = int(floors.sum() + share * (sizes.sum() - floors.sum()))
    expected = floors.copy()
    for leaf, seat in turns:  # a seat that the floor has given already costs nothing
        if expected.sum() < budget and seat >= floors[leaf]:
            expected[leaf] += 1
    np.testing.assert_array_equal(tree.quotas(budget, floors), expected)


def test_the_published_example_of_a_dense_and_a_sparse_half() -> None:
    """One half of the tree has nine clusters, the other one: each half gets as many."""
    tree = Tree([100] * 10, [[0] * 9 + [1]])
    assert tree.quotas(90).tolist() == [5] * 9 + [45]
