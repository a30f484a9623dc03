"""What the arrays of a store mean: which hold pixels and masks, and what the others say of a sample.

What lies over x, y, band or the reference system says where samples are and what their bands are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from curation.archive.clouds import is_mask
from curation.archive.image import numbered
from curation.archive.place import Georeference
from curation.archive.sample import Image, Window
from curation.archive.zarr.arrays import Array
from curation.archive.zarr.axes import Block, Pixels, Position, base, choose_pixels, find_images
from curation.archive.zarr.coordinates import Coordinates
from curation.archive.zarr.values import crs_of, nodata_of, plain_text, plain_value
from curation.errors import BadSample

KEYS = ("key", "sample_id", "unique_identifier", "id", "sample")  # coordinates that name samples: the first there is
_TIME = frozenset({"time", "times", "date", "t", "season"})


@dataclass(frozen=True)
class _Legend:
    """What is the same for all samples of an array; ``crs`` as its attributes have it."""

    bands: tuple[str, ...]
    nodata: float | None
    crs: str | None


class Layout:
    """What the arrays of a store mean.

    Args:
        arrays: all of them.
        members: ``archive.members``: the arrays that hold pixels.
        stem: what a store without a name for its sample is called.

    Attributes:
        pixels, masks: by name.
        images: both.
        samples: lengths of the sample axes.

    Raises:
        BadSample: ``NoImage``, ``MissingMember`` or ``SeveralImages``.
    """

    def __init__(self, arrays: Mapping[str, Array], members: Sequence[str] | None, stem: str) -> None:
        self.arrays, self.stem = arrays, stem
        images = find_images(arrays)
        self.pixels = choose_pixels(images, arrays, members)
        self.first = next(iter(self.pixels.values()))
        self.samples = self.first.samples
        self.masks = {
            name: found
            for name, found in images.items()
            if name not in self.pixels
            and is_mask(base(name))
            and (found.samples, found.size) == (self.samples, self.first.size)
        }
        self.images = self.pixels | self.masks
        self.coordinates = Coordinates(arrays, self.images, self.first)
        self._legends: dict[str, _Legend] = {}

    def check_there(self, name: str, block: Block, rows: slice, columns: slice, nodata: float | None) -> None:
        """Refuse a chunk of pixels that is not there, unless what stands for it says that there are no data.

        Raises:
            BadSample: ``MissingChunk``.
        """
        if name in self.masks:
            return
        pixels = self.pixels[name]
        lost = pixels.array.missing(pixels.select(block, rows, columns))
        if not lost:
            return
        fill, declared = pixels.array.fill, nodata_of(pixels.array.attrs) if nodata is None else nodata
        if fill is not None and (fill != fill or (declared is not None and fill == declared)):
            return
        advice = f"; if that means no data, set archive.nodata={fill}" if fill is not None else ""
        raise BadSample("read", "MissingChunk", f"the chunk {lost[0]} is not there{advice}")

    # of one sample

    def key(self, position: Position) -> str:
        """The name of a sample: its id where there is one, and its place on the axes that the id does not cover."""
        parts = [] if self._named is None else [plain_text(self.coordinates.of_sample(self._named, position))]
        if not parts and all(is_time for _, is_time in self._counted):
            parts = [self.stem]
        for axis, is_time in self._counted:
            parts.append(f"t{position[axis]}" if is_time else f"{position[axis]:06d}")
        return "_".join(parts)

    @cached_property
    def _named(self) -> str | None:
        return next((name for name in KEYS if name in self.coordinates.spoken), None)

    @cached_property
    def _counted(self) -> list[tuple[int, bool]]:
        """The sample axes that a key counts along, and whether they are times."""
        covered = () if self._named is None else self.arrays[self._named].dims
        axes = enumerate(zip(self.coordinates.dims, self.samples, strict=True))
        return [(axis, dim in _TIME) for axis, (dim, length) in axes if length > 1 and not (dim and dim in covered)]

    def said(self, position: Position) -> dict[str, Any]:
        """What the arrays over the sample axes alone say of a sample."""
        found: dict[str, Any] = {}
        for name in self.coordinates.spoken:
            array = self.arrays[name]
            if array.dtype.kind not in "iufbUSOMmT":
                continue
            value = plain_value(self.coordinates.of_sample(name, position), array.attrs)
            if value is not None:
                found[base(name).rstrip("_")] = value
        return found

    def image(self, name: str, values: NDArray[Any], position: Position, window: Window | None = None) -> Image:
        """One sample of an array as an image."""
        if name not in self._legends:
            array = self.images[name].array
            self._legends[name] = _Legend(self._bands(name), nodata_of(array.attrs), self._declared_crs(array))
        legend = self._legends[name]
        place = self._place(self.images[name], legend.crs, position)
        if place and window:
            place = place.window(window.row, window.column)
        return Image(values, legend.bands, None, legend.nodata, place)

    def _bands(self, name: str) -> tuple[str, ...]:
        """The bands of an array: by the coordinate of its band axis or an attribute, else numbered."""
        pixels = self.images[name]
        if pixels.band is None:
            return (base(name),)
        dim, count = pixels.array.dims[pixels.band], pixels.bands
        beside = name.rpartition("/")[0]
        for other in (f"{beside}/{dim}" if beside else dim, "band_name", "band_names", "bands_names"):
            array = self.coordinates.arrays.get(other)
            if array is not None and array.shape == (count,) and array.dtype.kind in "USOTiu":
                names = tuple(plain_text(value) for value in self.coordinates[other])
                if len(set(names)) == count and all(names):
                    return names
        listed = pixels.array.attrs.get("bands") or pixels.array.attrs.get("band_names")
        if isinstance(listed, list) and len(listed) == count == len(set(map(str, listed))):
            return tuple(map(str, listed))
        return numbered(count)

    def _place(self, pixels: Pixels, declared: str | None, position: Position) -> Georeference | None:
        """Where the grid of a sample lies: by the coordinates of y and x (of the pixels' centres) and the system."""
        dims = pixels.array.dims
        ys, xs = (self.coordinates.line(dims[axis], position) for axis in (pixels.y, pixels.x))
        if ys is None or xs is None:
            return None
        degrees = "EPSG:4326" if dims[-1].lower() in ("lon", "longitude") else None
        crs = declared or self._said_crs(position) or degrees
        if crs is None:
            return None
        (y, down), (x, right) = ys, xs
        return Georeference(crs, (right, 0.0, x - right / 2, 0.0, down, y - down / 2))

    def _declared_crs(self, array: Array) -> str | None:
        reference = [str(array.attrs.get("grid_mapping", "")), "spatial_ref", "crs"]
        for attrs in (array.attrs, *(self.arrays[name].attrs for name in reference if name in self.arrays)):
            for name in ("crs_wkt", "spatial_ref", "crs", "proj:epsg", "epsg"):
                if name in attrs and (found := crs_of(attrs[name])):
                    return found
        return None

    def _said_crs(self, position: Position) -> str | None:
        for name in ("crs", "epsg"):
            if name in self.coordinates.spoken:
                found = crs_of(plain_value(self.coordinates.of_sample(name, position), {}))
                if found:
                    return found
        return None
