"""Footprints as numbers: west, south, east, north in degrees, with the antimeridian unrolled."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SIDES = ("west", "south", "east", "north")


def boxes(footprint: pa.Array | pa.ChunkedArray) -> Floats:
    """Float64 (n, 4) west, south, east, north in degrees out of a column of these; NaN where one is missing.

    West lies in [-180, 180) and east up to a turn beyond it, so that west never exceeds east.
    """
    columns = [pc.struct_field(footprint, side).cast(pa.float64()).fill_null(np.nan) for side in SIDES]
    return unrolled(np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1))


def unrolled(box: Floats) -> Floats:
    """Footprints of which those that cross the antimeridian have west above east, as `boxes` has them."""
    west, south, east, north = box.T
    width = np.where(west > east, east + 360 - west, np.minimum(east - west, 360))
    west = np.where((west >= -180) & (west < 180), west, (west + 180) % 360 - 180)
    made = np.stack([west, south, west + width, north], axis=1)
    made[~np.isfinite(made).all(axis=1)] = np.nan
    return made
