"""Blocks of the globe: nearly equal areas, whole footprints in one split, the date line and the poles."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.blocks import EDGE, RADIUS, SALT, Blocks, boxes, split_codes
from curation.selection.sampling import uniform

SIDES = ("west", "south", "east", "north")


def footprints(*rows: tuple[float, float, float, float] | None) -> pa.ChunkedArray:
    kind = pa.struct([(side, pa.float64()) for side in SIDES])
    return pa.chunked_array([pa.array([row and dict(zip(SIDES, row, strict=True)) for row in rows], kind)])


def split_at(longitude: float, latitude: float, blocks: Blocks, shares: list[float]) -> int:
    """By the plainest words: the row, the column in it, the block's number, its draw."""
    row = min(int((latitude + 90) / 180 * blocks.rows), blocks.rows - 1)
    column = int((longitude + 180) % 360 / 360 * blocks.columns[row]) % int(blocks.columns[row])
    u = uniform(np.array([blocks.columns[:row].sum() + column], np.uint64), SALT)[0]
    return int(np.searchsorted(np.cumsum(shares), u, side="right"))


@pytest.mark.parametrize("side", [10, 50, 333, 10_000])
def test_blocks_cover_the_globe_with_nearly_equal_areas(side: float) -> None:
    blocks = Blocks(side)
    edges = np.sin(np.radians(np.linspace(-90, 90, blocks.rows + 1)))
    areas = 2 * np.pi * RADIUS**2 * np.diff(edges) / blocks.columns
    np.testing.assert_allclose((areas * blocks.columns).sum(), 4 * np.pi * RADIUS**2)
    assert (np.abs(areas / side**2 - 1) < 0.35).all() or side == 10_000
    assert np.median(np.abs(areas / side**2 - 1)) < 0.01 or side == 10_000


def test_shares_of_the_globe_are_as_asked_and_do_not_hang_on_the_seed() -> None:
    draw = np.random.default_rng(0)
    longitude, latitude = draw.uniform(-180, 180, 40_000), np.degrees(np.arcsin(draw.uniform(-1, 1, 40_000)))
    points = footprints(*zip(longitude, latitude, longitude, latitude, strict=True))
    code = split_codes(boxes(points), Blocks(50), [0.2, 0.05])
    share = np.bincount(code, minlength=3) / len(code)
    np.testing.assert_allclose(share[:3], [0.2, 0.05, 0.75], atol=0.01)
    assert len(share) == 3  # a point is in one block
    assert code[:50].tolist() == [
        split_at(x, y, Blocks(50), [0.2, 0.05]) for x, y in zip(longitude[:50], latitude[:50], strict=True)
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-180, 180),
    st.floats(-90, 90),
    st.floats(0, 30),
    st.floats(0, 20),
    st.sampled_from([200.0, 900.0, 5000.0]),
    st.booleans(),
)
def test_a_footprint_is_in_a_split_only_if_all_of_it_is(
    west: float, south: float, width: float, height: float, side: float, wrap: bool
) -> None:
    shares = [0.3, 0.3]
    north, east = min(south + height, 90.0), west + width
    if wrap:
        east = (east + 180) % 360 - 180
    blocks = Blocks(side)
    (code,) = split_codes(boxes(footprints((west, south, east, north))), blocks, shares)
    width = east - west + (360 if east < west else 0)
    inside = {
        split_at(west + width * x, south + (north - south) * y, blocks, shares)
        for x in np.linspace(1e-6, 1 - 1e-6, 15)
        for y in np.linspace(1e-6, 1 - 1e-6, 15)
    }
    if len(inside) > 1:
        assert code == EDGE
    elif code != EDGE:  # a sliver may touch a block that no point of the grid fell into
        assert {int(code)} == inside


def test_no_two_footprints_of_different_splits_overlap() -> None:
    draw = np.random.default_rng(1)
    west, south = draw.uniform(178, 182, 3000), draw.uniform(-2, 2, 3000)
    west = (west + 180) % 360 - 180
    east = (west + 0.2 + 180) % 360 - 180
    code = split_codes(boxes(footprints(*zip(west, south, east, south + 0.2, strict=True))), Blocks(50), [0.3, 0.3])
    x, y = (west + 360) % 360, south
    overlap = (np.abs(x[:, None] - x) < 0.2) & (np.abs(y[:, None] - y) < 0.2)
    whole = code != EDGE
    different = (code[:, None] != code) & whole[:, None] & whole
    assert {0, 1, 2, int(EDGE)} == set(code.tolist())
    assert not (overlap & different).any()


def test_date_line_poles_and_missing_footprints() -> None:
    shares, blocks = [0.4, 0.3], Blocks(3000)
    whole = boxes(footprints((-180, -90, 180, 90), (170, 60, 190, 60), (-180, 90, 180, 90), (350, 1, 351, 2)))
    code = split_codes(whole, blocks, shares)
    assert code[0] == EDGE
    cases = footprints((179.9, 10, -179.9, 10.1), (179.9, 10, 180.1, 10.1), (0, 89.99, 0.01, 90), None)
    code = split_codes(boxes(cases), blocks, shares)
    assert code[0] == code[1]
    assert code[2] == split_at(0.005, 89.995, blocks, shares)
    assert code[3] == len(shares)
    degrees = split_codes(boxes(footprints((350, 1, 350.1, 1.1), (-10, 1, -9.9, 1.1))), blocks, shares)
    assert degrees[0] == degrees[1]  # both ways to count longitudes
    nothing = split_codes(boxes(footprints((np.nan, 1, 2, 3), (np.inf, 1, 2, 3))), blocks, shares)
    assert nothing.tolist() == [2, 2]


def test_a_tile_that_ends_on_the_line_does_not_touch_what_lies_beyond() -> None:
    blocks, shares = Blocks(1000), [0.5]
    height = 180 / blocks.rows
    row = blocks.rows // 2
    width = 360 / blocks.columns[row]
    south, west = -90 + row * height, -180.0
    (code,) = split_codes(boxes(footprints((west, south, west + width, south + height))), blocks, shares)
    assert code == split_at(west + width / 2, south + height / 2, blocks, shares)
