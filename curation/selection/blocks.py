"""The globe cut into blocks of nearly equal area: where a footprint lies, and which split a block is drawn for.

Rows of one height run around a sphere; each is cut into so many columns that
its blocks come nearest to the square of the side. A block's split is a hash of
its number, so that neither the seed nor the archive moves it.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.selection import footprints
from curation.selection.sampling import Floats, uniform

Ints = NDArray[np.int64]

RADIUS = 6371.0088  # km, the Earth's mean
SALT = 0x5B11D5  # of the blocks' draw: it must outlive every change of `seed`
EDGE = np.uint8(255)  # the code of a footprint that touches blocks of different splits


class Boxes(NamedTuple):
    """Footprints in degrees; every array is (n,), NaN where there is none.

    Attributes:
        west: eastwards from the antimeridian, 0 to 360.
        width: eastwards from there, 0 to 360.
        south, north: -90 to 90.
    """

    west: Floats
    width: Floats
    south: Floats
    north: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which rows have a footprint."""
        return ~np.isnan(self.west + self.width + self.south + self.north)

    @property
    def latitude(self) -> Floats:
        """Of the centre."""
        return (self.south + self.north) / 2


def boxes(footprint: pa.ChunkedArray) -> Boxes:
    """The catalog's column as numbers; a west above the east crosses the antimeridian."""
    west, south, east, north = footprints.boxes(footprint).T
    return Boxes((west + 180) % 360, east - west, np.clip(south, -90, 90), np.clip(north, -90, 90))


class Blocks:
    """Blocks of about ``side`` by ``side`` km.

    Attributes:
        rows: from the south pole.
        columns: int64 (rows,), of each row, eastwards from the antimeridian.
    """

    def __init__(self, side: float) -> None:
        self.rows = max(1, round(np.pi * RADIUS / side))
        sines = np.sin(np.radians(np.linspace(-90, 90, self.rows + 1)))
        areas = 2 * np.pi * RADIUS**2 * np.diff(sines)
        self.columns: Ints = np.maximum(np.rint(areas / side**2), 1).astype(np.int64)

    @cached_property
    def first(self) -> Ints:
        """(rows,) the number of each row's westernmost block."""
        return np.cumsum(self.columns) - self.columns

    def row(self, latitude: Floats) -> Ints:
        """The row of each latitude; what lies on the line between two belongs to the northern one."""
        return np.clip(np.floor((latitude + 90) / 180 * self.rows), 0, self.rows - 1).astype(np.int64)

    def around(self, where: Boxes) -> Ints:
        """The number of the block that each (known) footprint's centre lies in."""
        row = self.row(where.latitude)
        columns = self.columns[row]
        return self.first[row] + np.floor((where.west + where.width / 2) / 360 * columns).astype(np.int64) % columns

    def centre(self, number: Ints) -> tuple[Floats, Floats]:
        """Latitude and longitude of each block's own centre."""
        row = np.searchsorted(self.first, number, side="right") - 1
        east = (number - self.first[row] + 0.5) / self.columns[row]
        return (row + 0.5) / self.rows * 180 - 90, east * 360 - 180


def split_codes(where: Boxes, blocks: Blocks, shares: Sequence[float]) -> NDArray[np.uint8]:
    """The split of each footprint.

    Args:
        where: the footprints.
        blocks: what is drawn.
        shares: of the blocks, a split; what they leave is training.

    Returns:
        uint8 (n,): the position in ``shares`` of the split that all blocks under the footprint were drawn for,
        ``len(shares)`` where all are training (or there is no footprint), `EDGE` where they differ.
    """
    found = np.full(len(where.west), -1, np.int16)
    known = np.flatnonzero(where.known)
    low = np.zeros(len(found), np.int64)
    high = low.copy()
    low[known] = blocks.row(where.south[known])
    high[known] = np.ceil((where.north[known] + 90) / 180 * blocks.rows).astype(np.int64) - 1
    for up in itertools.count():
        known = known[(low[known] + up <= np.maximum(low, high)[known]) & (found[known] != EDGE)]
        if not len(known):
            break
        row = low[known] + up
        columns = blocks.columns[row]
        left = np.floor(where.west[known] / 360 * columns).astype(np.int64)
        right = np.ceil((where.west + where.width)[known] / 360 * columns).astype(np.int64) - 1
        _visit(found, known, blocks.first[row], columns, left, np.clip(right - left, 0, columns - 1), shares)
    return np.where(found < 0, len(shares), found).astype(np.uint8)


def _visit(
    found: NDArray[np.int16], rows: Ints, first: Ints, columns: Ints, left: Ints, beyond: Ints, shares: Sequence[float]
) -> None:
    """Look at the blocks from ``left`` to ``left + beyond`` of one row of blocks, until two splits have been seen."""
    for step in itertools.count():
        there = np.flatnonzero((beyond >= step) & (found[rows] != EDGE))
        if not len(there):
            return
        block = first[there] + (left[there] + step) % columns[there]
        split = np.searchsorted(np.cumsum(shares), uniform(block.astype(np.uint64), SALT), side="right")
        before = found[rows[there]]
        found[rows[there]] = np.where((before < 0) | (before == split), split, EDGE)
