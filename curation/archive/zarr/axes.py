"""Which arrays of a store hold images, and which of their axes is which.

Axes are told by their names (``_ARRAY_DIMENSIONS``, ``dimension_names``), else by their order: sample axes, band, y, x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.clouds import is_mask
from curation.archive.image import bad_image
from curation.archive.zarr.arrays import Array, Selection

_Y = frozenset({"y", "lat", "latitude", "row", "rows", "height", "northing"})
_X = frozenset({"x", "lon", "longitude", "col", "cols", "column", "columns", "width", "easting"})
_BAND = frozenset({"band", "bands", "channel", "channels", "c", "wavelength", "polarization", "polarisation", "pol"})

Block = Sequence[slice]  # samples, by their sample axes
Position = Sequence[int]  # of one sample on them


@dataclass(frozen=True)
class Pixels:
    """An array of images: which of its axes is which."""

    array: Array
    sample: tuple[int, ...]
    band: int | None
    y: int
    x: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.array.shape[self.y], self.array.shape[self.x]

    @property
    def bands(self) -> int:
        """How many."""
        return 1 if self.band is None else self.array.shape[self.band]

    @property
    def samples(self) -> tuple[int, ...]:
        """Lengths of the sample axes."""
        return tuple(self.array.shape[axis] for axis in self.sample)

    def select(self, block: Block, rows: slice, columns: slice) -> Selection:
        """The slices for some samples and some pixels."""
        parts = [slice(0, length) for length in self.array.shape]
        for axis, part in zip(self.sample, block, strict=True):
            parts[axis] = part
        parts[self.y], parts[self.x] = rows, columns
        return tuple(parts)

    def read(self, block: Block, rows: slice, columns: slice) -> NDArray[Any]:
        """``(sample axes…, bands, height, width)``."""
        values = np.asarray(self.array.read(self.select(block, rows, columns)))
        bands = () if self.band is None else (self.band,)
        values = values.transpose(*self.sample, *bands, self.y, self.x)
        return np.ascontiguousarray(values if bands else values[..., None, :, :])


def base(name: str) -> str:
    """The last part of an array's path."""
    return name.rpartition("/")[2]


def find_images(arrays: Mapping[str, Array]) -> dict[str, Pixels]:
    """All arrays that may be images, masks too."""
    return {name: found for name, array in arrays.items() if (found := _pixels(array))}


def _pixels(array: Array) -> Pixels | None:
    """An array as images; ``None`` if it is none."""
    count = len(array.shape)
    if array.dtype.kind not in "iufb" or count < 2:
        return None
    if not all(array.dims):
        return Pixels(array, tuple(range(count - 3)), count - 3 if count > 2 else None, count - 2, count - 1)
    dims = [dim.lower() for dim in array.dims]
    y, x, band = (next((i for i, dim in enumerate(dims) if dim in names), None) for names in (_Y, _X, _BAND))
    if y is None or x is None:
        return None
    return Pixels(array, tuple(i for i in range(count) if i not in (y, x, band)), band, y, x)


def choose_pixels(
    images: Mapping[str, Pixels], arrays: Mapping[str, Array], members: Sequence[str] | None
) -> dict[str, Pixels]:
    """The arrays that hold pixels: those of ``archive.members``, else those with a band axis, else all images.

    Raises:
        BadSample: ``NoImage``, ``MissingMember``, or ``SeveralImages`` where they have different samples.
    """
    if members is not None:
        for name in members:
            if name not in images:
                raise bad_image(f"zarr: it has no array {name} of images (archive.members)", "MissingMember")
        chosen = {name: images[name] for name in members}
    else:
        found = {name: pixels for name, pixels in images.items() if not is_mask(base(name))}
        chosen = {name: pixels for name, pixels in found.items() if pixels.band is not None} or found
    if not chosen:
        have = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items()) or "no array"
        raise bad_image(f"zarr: no array with the axes y and x: it has {have}"[:200], "NoImage")
    samples = next(iter(chosen.values())).samples
    for name, other in chosen.items():
        if other.samples != samples:
            raise bad_image(f"zarr: {name} has other samples: choose arrays in archive.members", "SeveralImages")
    return chosen
