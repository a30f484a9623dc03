"""The small arrays beside the images, each read once; what has only sample axes is said of the samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.image import bad_image
from curation.archive.zarr.arrays import Array
from curation.archive.zarr.axes import Pixels, Position
from curation.archive.zarr.files import Files
from curation.errors import AccessError, BadSample

COORDINATE = 1 << 24  # numbers of a coordinate that is read at once
SMALL = 1 << 16  # numbers of a coordinate that is fetched before somebody asks for it


class Coordinates:
    """The arrays of a store that are neither pixels nor masks.

    Args:
        arrays: all of the store.
        images: names of those that are pixels or masks.
        first: any array of pixels: its sample axes are those of all.

    Attributes:
        spoken: those that say something of each sample.
    """

    def __init__(self, arrays: Mapping[str, Array], images: Collection[str], first: Pixels) -> None:
        self.arrays = {name: array for name, array in arrays.items() if name not in images}
        self.dims = tuple(first.array.dims[axis] for axis in first.sample)
        sizes = dict(zip(self.dims, first.samples, strict=True))
        self.spoken = [
            name
            for name, array in self.arrays.items()
            if all(dim and sizes.get(dim) == length for dim, length in zip(array.dims, array.shape, strict=True))
        ]
        self._held: dict[str, NDArray[Any] | BadSample] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The numbers of one.

        Raises:
            BadSample: ``BadSidecar``, it is damaged or not small.
        """
        if name not in self._held:
            self._held[name] = self._read(name)
        found = self._held[name]
        if isinstance(found, BadSample):
            raise found
        return found

    def _read(self, name: str) -> NDArray[Any] | BadSample:
        array = self.arrays[name]
        if math.prod(array.shape) > COORDINATE:
            return bad_image(f"zarr: {name} has {math.prod(array.shape)} numbers", "BadSidecar")
        try:
            return np.asarray(array.read(array.everything))
        except (AccessError, MemoryError, OSError):
            raise
        except Exception as error:  # codecs raise whatever they like on damaged chunks
            return bad_image(f"zarr: {name}: {' '.join(str(error).split())[:200]}", "BadSidecar")

    def fetch_small(self, files: Files) -> None:
        """Read the small ones at once, where each alone would be a request."""
        files.ahead(self.small_keys())
        for name in self._small():
            self._held[name] = self._read(name)

    def small_keys(self) -> list[str]:
        """The files of the small ones."""
        return [key for name in self._small() for key in self.arrays[name].keys(self.arrays[name].everything)]

    def _small(self) -> list[str]:
        return sorted(name for name, array in self.arrays.items() if math.prod(array.shape) <= SMALL)

    def of_sample(self, name: str, position: Position) -> Any:
        """What one of ``spoken`` says of a sample."""
        place = dict(zip(self.dims, position, strict=True))
        return self[name][tuple(place[dim] for dim in self.arrays[name].dims)]

    def line(self, dim: str, position: Position) -> tuple[float, float] | None:
        """The first number along an axis (of one sample), and the step; ``None`` where they are not evenly spaced."""
        array = self.arrays.get(dim)
        if array is None or array.dims[-1:] != (dim,) or array.shape[-1] < 2 or array.dtype.kind not in "iuf":
            return None
        place = dict(zip(self.dims, position, strict=True))
        if not all(other in place for other in array.dims[:-1]):
            return None
        line = self[dim][tuple(place[other] for other in array.dims[:-1])]
        first, last = float(line[0]), float(line[-1])
        step = (last - first) / (len(line) - 1)
        middle = float(line[len(line) // 2]) - (first + step * (len(line) // 2))
        return (first, step) if step and math.isfinite(step) and abs(middle) <= abs(step) / 2 else None
