"""Groups beside the clusters: what `select.by` balances over."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.selection.blocks import Blocks, Boxes, boxes

KEYS = {  # catalog columns that each key is told from
    "season": ("time", "footprint"),
    "month": ("time",),
    "year": ("time",),
    "region": ("footprint",),
}
SEASONS = np.array(["winter", "spring", "summer", "autumn"], object)
UNKNOWN = "?"
SEPARATOR = " / "


def group_texts(by: Sequence[str], rows: pa.Table, region_km: float) -> pa.DictionaryArray:
    """The group of each row as text, a value a key, `UNKNOWN` where a key cannot be told.

    Args:
        by: names in `KEYS`, or of columns of ``rows``.
        rows: with the columns that the keys are told from.
        region_km: side of a region's cell.
    """
    keys = [pc.fill_null(_key(name, rows, region_km).cast(pa.string()), UNKNOWN) for name in by]
    encoded = pc.dictionary_encode(pc.binary_join_element_wise(*keys, SEPARATOR))
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _key(name: str, rows: pa.Table, region_km: float) -> pa.Array | pa.ChunkedArray:
    if name not in KEYS:
        column = rows[name]
        return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column
    if name == "region":
        return _regions(boxes(rows["footprint"]), region_km)
    time = rows["time"].cast(pa.timestamp("us"))  # UTC
    if name == "year":
        return pc.year(time)
    month = pc.month(time)
    if name == "month":
        return pc.utf8_lpad(month.cast(pa.string()), 2, "0")
    return _seasons(month.fill_null(0).to_numpy(), boxes(rows["footprint"]))


def _seasons(month: NDArray[np.int64], where: Boxes) -> pa.Array:
    """Meteorological, of the footprint's hemisphere: December to February is winter in the north, summer in the south.

    Args:
        month: (n,) 1 to 12, 0 where it is unknown.
        where: footprints; the equator is northern.
    """
    season = (month % 12 // 3 + np.where(where.latitude < 0, 2, 0)) % 4
    return pa.array(SEASONS[season], pa.string(), mask=(month == 0) | ~where.known)


def _regions(where: Boxes, side: float) -> pa.Array:
    """The cell of equal area that the footprint's centre lies in, by the cell's own centre: latitude, longitude."""
    known = where.known
    blocks = Blocks(side)
    numbers, code = np.unique(blocks.around(Boxes(*(column[known] for column in where))), return_inverse=True)
    names = [f"{latitude:.1f} {longitude:.1f}" for latitude, longitude in zip(*blocks.centre(numbers), strict=True)]
    codes = np.zeros(len(known), np.int32)
    codes[known] = code
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=~known), pa.array(names, pa.string()))
