"""Zarr: stores and zips with a sample axis, or of one image; and the images of a zip in a tar.

Axes are told by their names (``_ARRAY_DIMENSIONS``, ``dimension_names``), else
by their order: sample axes, band, y, x. What has only sample axes is said of
the samples; what lies over x, y, band or the reference system says where they
are and what their bands are called.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.arrays import (
    Array,
    Files,
    FolderFiles,
    RemoteZipFiles,
    Selection,
    ZipFiles,
    metadata_keys,
    open_arrays,
    unzip_arrays,
)
from curation.archive.clouds import is_mask
from curation.archive.image import bad_image, check_pixels, numbered
from curation.archive.place import Georeference, named_crs
from curation.archive.sample import Effort, Image, Member, RawSample, Rejection, Wanted, Window
from curation.archive.tiling import windows
from curation.errors import AccessError, BadSample
from curation.storage import AHEAD, BLOCK, bundled

if TYPE_CHECKING:
    from curation.archive.shards import Shard
    from curation.archive.tables import Sieve
    from curation.config import ArchiveConfig
    from curation.storage import Folder

KEYS = (
    "key",
    "sample_id",
    "unique_identifier",
    "id",
    "sample",
)  # coordinates that name samples, the first that is there
_Y = frozenset({"y", "lat", "latitude", "row", "rows", "height", "northing"})
_X = frozenset({"x", "lon", "longitude", "col", "cols", "column", "columns", "width", "easting"})
_BAND = frozenset({"band", "bands", "channel", "channels", "c", "wavelength", "polarization", "polarisation", "pol"})
_TIME = frozenset({"time", "times", "date", "t", "season"})
_SINCE = re.compile(r"(\w+?)s? since (\d{4}-\d\d?-\d\d?(?:[T ][\d:.]+)?)")
_UNITS: dict[str, float] = {"day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000, "second": 1_000_000}
_UNITS |= {"millisecond": 1000, "microsecond": 1, "nanosecond": 1 / 1000}  # all in microseconds
COORDINATE = 1 << 24  # numbers of a coordinate that is read at once
SMALL = 1 << 16  # numbers of a coordinate that is fetched before somebody asks for it


Block = Sequence[slice]  # samples, by their sample axes


@dataclass(frozen=True)
class _Axes:
    """Which axis of an array is which."""

    sample: tuple[int, ...]
    band: int | None
    y: int
    x: int


@dataclass(frozen=True)
class _Pixels:
    """An array of images."""

    array: Array
    axes: _Axes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.array.shape[self.axes.y], self.array.shape[self.axes.x]

    @property
    def samples(self) -> tuple[int, ...]:
        """Lengths of the sample axes."""
        return tuple(self.array.shape[axis] for axis in self.axes.sample)

    def select(self, block: Block, rows: slice, columns: slice) -> Selection:
        """The slices for some samples and some pixels."""
        parts = [slice(0, length) for length in self.array.shape]
        for axis, part in zip(self.axes.sample, block, strict=True):
            parts[axis] = part
        parts[self.axes.y], parts[self.axes.x] = rows, columns
        return tuple(parts)

    def read(self, block: Block, rows: slice, columns: slice) -> NDArray[Any]:
        """``(sample axes…, bands, height, width)``."""
        axes = self.axes
        values = self.array.read(self.select(block, rows, columns))
        order = (*axes.sample, *(() if axes.band is None else (axes.band,)), axes.y, axes.x)
        values = np.asarray(values).transpose(order)
        return np.ascontiguousarray(values if axes.band is not None else values[..., None, :, :])


class Layout:
    """What the arrays of a store mean.

    Args:
        arrays: all of them.
        members: ``archive.members``: the arrays that hold pixels.
        stem: what a store without a name for its sample is called.

    Raises:
        BadSample: ``NoImage``, ``MissingMember`` or ``SeveralImages``.
    """

    def __init__(self, arrays: Mapping[str, Array], members: Sequence[str] | None, stem: str) -> None:
        self.arrays, self.stem = arrays, stem
        images = {name: found for name, array in arrays.items() if (found := _pixels(array))}
        self.pixels = _chosen(images, arrays, members)
        first = next(iter(self.pixels.values()))
        self.samples = first.samples
        for name, other in self.pixels.items():
            if other.samples != self.samples:
                raise bad_image(f"zarr: {name} has other samples: choose arrays in archive.members", "SeveralImages")
        self.masks = {
            name: found
            for name, found in images.items()
            if name not in self.pixels
            and is_mask(_base(name))
            and (found.samples, found.size) == (self.samples, first.size)
        }
        self.dims = tuple(first.array.dims[axis] for axis in first.axes.sample)
        self._coordinates: dict[str, NDArray[Any] | BadSample] = {}
        self._bands: dict[str, tuple[str, ...]] = {}

    def coordinate(self, name: str) -> NDArray[Any]:
        """A small array, read once.

        Raises:
            BadSample: ``BadSidecar``, it is damaged or not small.
        """
        if name not in self._coordinates:
            self._coordinates[name] = self._read(name)
        found = self._coordinates[name]
        if isinstance(found, BadSample):
            raise found
        return found

    def _read(self, name: str) -> NDArray[Any] | BadSample:
        if math.prod(self.arrays[name].shape) > COORDINATE:
            return bad_image(f"zarr: {name} has {math.prod(self.arrays[name].shape)} numbers", "BadSidecar")
        try:
            return np.asarray(self.arrays[name].read(self.arrays[name].everything))
        except (AccessError, MemoryError, OSError):
            raise
        except Exception as error:  # codecs raise whatever they like on damaged chunks
            return bad_image(f"zarr: {name}: {' '.join(str(error).split())[:200]}", "BadSidecar")

    def fetch_small(self, files: Files) -> None:
        """Read the small arrays at once, where each alone would be a request."""
        files.ahead(self.small_keys())
        for name in self._small():
            self._coordinates[name] = self._read(name)

    def small_keys(self) -> list[str]:
        """The files of the small arrays."""
        return [key for name in self._small() for key in self.arrays[name].keys(self.arrays[name].everything)]

    def _small(self) -> list[str]:
        plain = self.arrays.keys() - self.pixels.keys() - self.masks.keys()
        return sorted(name for name in plain if math.prod(self.arrays[name].shape) <= SMALL)

    # of one sample

    def key(self, position: Sequence[int]) -> str:
        """The name of a sample: its id where there is one, and its place on the axes that the id does not cover."""
        named = next((name for name in KEYS if name in self.arrays and self._covers(self.arrays[name])), None)
        covered = self.arrays[named].dims if named is not None else ()
        axes = [
            (f"t{at}" if dim in _TIME else f"{at:06d}", dim in _TIME)
            for dim, length, at in zip(self.dims, self.samples, position, strict=True)
            if length > 1 and not (dim and dim in covered)
        ]
        parts = [_plain_text(self._of(named, position))] if named is not None else []
        if not parts and all(is_time for _, is_time in axes):
            parts = [self.stem]
        return "_".join([*parts, *(text for text, _ in axes)])

    def said(self, position: Sequence[int]) -> dict[str, Any]:
        """What the arrays over the sample axes alone, and the store's attributes, say of a sample."""
        found: dict[str, Any] = {}
        for name, array in self.arrays.items():
            if array.dtype.kind not in "iufbUSOMmT" or not self._covers(array):
                continue
            value = _value(self._of(name, position), array.attrs)
            if value is not None:
                found[_base(name).rstrip("_")] = value
        return found

    def _covers(self, array: Array) -> bool:
        """Whether an array lies over nothing but sample axes."""
        if array.name in self.pixels or array.name in self.masks:
            return False
        sizes = dict(zip(self.dims, self.samples, strict=True))
        return all(dim and sizes.get(dim) == length for dim, length in zip(array.dims, array.shape, strict=True))

    def _of(self, name: str, position: Sequence[int]) -> Any:
        place = dict(zip(self.dims, position, strict=True))
        return self.coordinate(name)[tuple(place[dim] for dim in self.arrays[name].dims)]

    def bands(self, name: str) -> tuple[str, ...]:
        """The bands of an array: by the coordinate of its band axis or an attribute, else numbered."""
        pixels = self.pixels.get(name) or self.masks[name]
        if pixels.axes.band is None:
            return (_base(name),)
        dim, count = pixels.array.dims[pixels.axes.band], pixels.array.shape[pixels.axes.band]
        beside = name.rpartition("/")[0]
        for other in (f"{beside}/{dim}" if beside else dim, "band_name", "band_names", "bands_names"):
            array = self.arrays.get(other)
            if array is not None and array.shape == (count,) and array.dtype.kind in "USOTiu":
                names = tuple(_plain_text(value) for value in self.coordinate(other))
                if len(set(names)) == count and all(names):
                    return names
        listed = pixels.array.attrs.get("bands") or pixels.array.attrs.get("band_names")
        if isinstance(listed, list) and len(listed) == count == len(set(map(str, listed))):
            return tuple(map(str, listed))
        return numbered(count)

    def place(self, name: str, position: Sequence[int]) -> Georeference | None:
        """Where the grid of a sample lies: by the coordinates of y and x (of the pixels' centres) and the system."""
        pixels = self.pixels.get(name) or self.masks[name]
        array, axes = pixels.array, pixels.axes
        ys, xs = (self._line(array.dims[axis], position) for axis in (axes.y, axes.x))
        crs = self._crs(array, position)
        if ys is None or xs is None or crs is None:
            return None
        (y, down), (x, right) = ys, xs
        return Georeference(crs, (right, 0.0, x - right / 2, 0.0, down, y - down / 2))

    def _line(self, dim: str, position: Sequence[int]) -> tuple[float, float] | None:
        """The first centre of an axis, and the step; ``None`` where they are not evenly spaced."""
        array = self.arrays.get(dim)
        if (
            array is None
            or not array.dims
            or array.dims[-1] != dim
            or array.shape[-1] < 2
            or array.dtype.kind not in "iuf"
        ):
            return None
        place = dict(zip(self.dims, position, strict=True))
        if not all(other in place for other in array.dims[:-1]):
            return None
        line = self.coordinate(dim)[tuple(place[other] for other in array.dims[:-1])]
        first, last = float(line[0]), float(line[-1])
        step = (last - first) / (len(line) - 1)
        middle = float(line[len(line) // 2]) - (first + step * (len(line) // 2))
        return (first, step) if step and math.isfinite(step) and abs(middle) <= abs(step) / 2 else None

    def _crs(self, array: Array, position: Sequence[int]) -> str | None:
        reference = [str(array.attrs.get("grid_mapping", "")), "spatial_ref", "crs"]
        for attrs in (array.attrs, *(self.arrays[name].attrs for name in reference if name in self.arrays)):
            for name in ("crs_wkt", "spatial_ref", "crs", "proj:epsg", "epsg"):
                if name in attrs and (found := _named_crs(attrs[name])):
                    return found
        for name in ("crs", "epsg"):
            there = name in self.arrays and self._covers(self.arrays[name])
            if there and (found := _named_crs(_value(self._of(name, position), {}))):
                return found
        return "EPSG:4326" if array.dims[-1].lower() in ("lon", "longitude") else None

    def nodata(self, array: Array) -> float | None:
        """The number that an array's attributes declare to be no data."""
        for name in ("_FillValue", "nodata", "missing_value", "nodatavals"):
            value = array.attrs.get(name)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return None

    def image(self, name: str, values: NDArray[Any], position: Sequence[int], window: Window | None = None) -> Image:
        """One sample of an array as an image."""
        place = self.place(name, position)
        if place and window:
            place = place.window(window.row, window.column)
        pixels = self.pixels.get(name) or self.masks[name]
        if name not in self._bands:
            self._bands[name] = self.bands(name)
        return Image(values, self._bands[name], None, self.nodata(pixels.array), place)


def _pixels(array: Array) -> _Pixels | None:
    """An array as images; ``None`` if it is none."""
    if array.dtype.kind not in "iufb" or len(array.shape) < 2:
        return None
    named = all(array.dims)
    if not named:
        count = len(array.shape)
        return _Pixels(
            array, _Axes(tuple(range(max(0, count - 3))), count - 3 if count > 2 else None, count - 2, count - 1)
        )
    dims = [dim.lower() for dim in array.dims]
    y, x, band = (next((i for i, dim in enumerate(dims) if dim in names), None) for names in (_Y, _X, _BAND))
    if y is None or x is None:
        return None
    return _Pixels(array, _Axes(tuple(i for i in range(len(dims)) if i not in (y, x, band)), band, y, x))


def _chosen(
    images: Mapping[str, _Pixels], arrays: Mapping[str, Array], members: Sequence[str] | None
) -> dict[str, _Pixels]:
    """The arrays that hold pixels: those of ``archive.members``, else those with a band axis, else all images."""
    if members is not None:
        for name in members:
            if name not in images:
                raise bad_image(f"zarr: it has no array {name} of images (archive.members)", "MissingMember")
        return {name: images[name] for name in members}
    found = {name: pixels for name, pixels in images.items() if not is_mask(_base(name))}
    banded = {name: pixels for name, pixels in found.items() if pixels.axes.band is not None}
    if not found:
        have = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items()) or "no array"
        raise bad_image(f"zarr: no array with the axes y and x: it has {have}"[:200], "NoImage")
    return banded or found


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _plain_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value)


def _value(value: Any, attrs: Mapping[str, Any]) -> Any:
    """A number, text or time as the sidecars would say it; ``None`` where it says nothing."""
    if isinstance(value, np.datetime64):
        return (
            None if np.isnat(value) else datetime.fromisoformat(str(value.astype("datetime64[us]"))).replace(tzinfo=UTC)
        )
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    since = _SINCE.match(str(attrs.get("units", "")))
    if since and isinstance(value, int | float) and since[1] in _UNITS:
        return _value(np.datetime64(_iso(since[2]), "us") + np.timedelta64(round(value * _UNITS[since[1]]), "us"), {})
    return _plain_text(value) if isinstance(value, bytes) else value


def _iso(text: str) -> str:
    """A date as ``2024-1-1 0:0:0`` in ISO 8601."""
    date, _, time = text.replace("T", " ").partition(" ")
    year, month, day = date.split("-")
    clock = [f"{float(part):02.0f}" for part in time.split(":") if part]
    return f"{year}-{int(month):02}-{int(day):02}T{':'.join([*clock, '00', '00', '00'][:3])}"


def _named_crs(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return named_crs(value) if isinstance(value, int | str) and value not in ("", 0) else None


# of the bytes of a zip


def decode_zarr(data: bytes, max_pixels: int, position: Sequence[int] = (), nodata: float | None = None) -> Image:
    """Decode the image in the bytes of a zipped store: ``(band, y, x)``, ``(y, x)``, or one of several times.

    Args:
        data: the zip.
        max_pixels: limit of height times width.
        position: which one along the sample axes; where there is but one it does not matter.
        nodata: ``archive.nodata``, else what the file declares: a chunk that is not there may hold nothing else.

    Raises:
        BadSample: it is damaged, too large, or holds no image, several, or pickles.
    """
    layout = Layout(unzip_arrays(data, 64 * max_pixels), None, "")
    count = math.prod(layout.samples)
    at = (0,) * len(layout.samples) if count == 1 else tuple(position)
    if len(at) != len(layout.samples):
        raise bad_image(f"zarr: {count} images in one file", "SeveralImages")
    images = []
    for name, pixels in layout.pixels.items():
        values = _read_one(layout, name, pixels, at, max_pixels, nodata)
        images.append(layout.image(name, values, at))
    if len({image.pixels.shape[1:] for image in images}) > 1 or len({image.pixels.dtype for image in images}) > 1:
        raise bad_image(f"zarr: {', '.join(layout.pixels)} differ in size or dtype", "SeveralImages")
    image = images[0]
    if len(images) > 1:
        image.bands = tuple(band for one in images for band in one.bands)
        image.pixels = np.concatenate([one.pixels for one in images])
    image.masks = {
        _base(name): _read_one(layout, name, pixels, at, max_pixels, None)[0] for name, pixels in layout.masks.items()
    }
    image.said = layout.said(at)
    return image


def by_time(items: Iterator[RawSample | Rejection]) -> Iterator[RawSample | Rejection]:
    """Samples of a tar, numbered anew: one whose zipped Zarr holds several times becomes one a time.

    Its key gets ``_t0``, ``_t1``, … (the indices along the sample axes), its position says which it is.
    """
    index = 0
    for item in items:
        places = _times(item) if isinstance(item, RawSample) else [()]
        for place in places:
            one = replace(item, index=index)
            if place:
                assert isinstance(one, RawSample)
                one.key, one.position = item.key + "_t" + "_".join(map(str, place)), place
            yield one
            index += 1


def _times(raw: RawSample) -> Sequence[tuple[int, ...]]:
    """The places of a sample's images along their sample axes; one empty place for a single image."""
    for suffix, data in raw.data.items():
        if suffix.endswith("zip"):
            try:
                samples = Layout(unzip_arrays(data, 0), None, "").samples
            except Exception:  # noqa: BLE001 - decoding will tell
                break
            if math.prod(samples) > 1:
                return list(itertools.product(*map(range, samples)))
    return [()]


def _read_one(
    layout: Layout, name: str, pixels: _Pixels, at: Sequence[int], max_pixels: int, nodata: float | None
) -> NDArray[Any]:
    height, width = pixels.size
    bands = 1 if pixels.axes.band is None else pixels.array.shape[pixels.axes.band]
    check_pixels(height, width, bands, max_pixels)
    block, rows, columns = [slice(i, i + 1) for i in at], slice(0, height), slice(0, width)
    if name in layout.pixels:
        _check_missing(layout, pixels, block, rows, columns, nodata)
    values: NDArray[Any] = pixels.read(block, rows, columns)[(0,) * len(at)]
    return values


def _check_missing(
    layout: Layout, pixels: _Pixels, block: Block, rows: slice, columns: slice, nodata: float | None
) -> None:
    """Refuse a chunk that is not there, unless what stands for it says that there are no data.

    Raises:
        BadSample: ``MissingChunk``.
    """
    lost = pixels.array.missing(pixels.select(block, rows, columns))
    if not lost:
        return
    fill, declared = pixels.array.fill, layout.nodata(pixels.array) if nodata is None else nodata
    if fill is not None and (fill != fill or (declared is not None and fill == declared)):
        return
    advice = f"; if that means no data, set archive.nodata={fill}" if fill is not None else ""
    raise BadSample("read", "MissingChunk", f"the chunk {lost[0]} is not there{advice}")


# shards


def read_zarr(
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
) -> Iterator[RawSample | Rejection]:
    """The samples of a store or a zip, chunk by chunk, numbered from 0; each chunk is read and decoded once.

    Memory holds the samples of one chunk; of an image that is to be cut and has several rows of chunks, the rows that
    a row of tiles lies in.

    Raises:
        AccessError: a file vanished, or gave fewer bytes than the listing said.
    """
    try:
        files = _files(folder, shard)
        layout = Layout(open_arrays(files), settings.members, _stem(shard.path))
        if files.far:
            layout.fetch_small(files)
        if math.prod(layout.samples):
            layout.key((0,) * len(layout.samples))  # so that what names the samples is known to be readable
    except (AccessError, MemoryError, OSError):
        raise
    except BadSample as error:
        kind = "DamagedShard" if error.kind in ("BadImage", "TruncatedImage", "BadSidecar") else error.kind
        yield Rejection("", 0, "read", kind, error.message)
        return
    except Exception as error:  # zarr raises whatever it likes on metadata that contradict each other
        yield Rejection("", 0, "read", "DamagedShard", f"zarr: {' '.join(str(error).split())[:200]}")
        return
    reader = _Reader(layout, files, settings, only, sieve)
    for index, item in enumerate(reader.read()):
        yield replace(item, index=index)


def survey_zarr(folder: Folder, shard: Shard, settings: ArchiveConfig) -> Effort:
    """What reading a store or a zip takes: its metadata, its coordinates, and each chunk of its images and masks.

    Raises:
        BadSample: it makes no samples.
    """
    files = _files(folder, shard)
    layout = Layout(open_arrays(files), settings.members, _stem(shard.path))
    first, size = next(iter(layout.pixels.values())), settings.tile.size
    spans = [*files.spans(metadata_keys(files)), *files.spans(layout.small_keys())]
    for keys in _Reader(layout, files, settings, None, None).fetched():
        spans += files.spans(keys)
    if isinstance(files, ZipFiles):
        spans.append(min(BLOCK, shard.size))  # its directory
    count = math.prod(layout.samples)
    cut = 1 if size is None else sum(1 for _ in windows(*first.size, size, settings.tile.stride or size))
    return Effort(count * cut, sum(spans), len(spans) + 1, True)


def _files(folder: Folder, shard: Shard) -> Files:
    if shard.file is None:
        return FolderFiles(folder, shard.path, shard.files)
    return ZipFiles(folder.open(shard.file)) if folder.local else RemoteZipFiles(folder, shard.file)


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".zip").removesuffix(".zarr")


class _Reader:
    """Goes through a store once."""

    def __init__(
        self,
        layout: Layout,
        files: Files,
        settings: ArchiveConfig,
        only: Sequence[Wanted] | None,
        sieve: Sieve | None,
    ) -> None:
        self.layout, self.files, self.settings, self.sieve = layout, files, settings, sieve
        self.wanted = None if only is None else self._positions(only)
        self.keys: set[str] = set()

    def _positions(self, only: Sequence[Wanted]) -> dict[tuple[int, ...], list[Window | None]]:
        """The wanted samples by position; of those that have none, by key."""
        found: dict[tuple[int, ...], list[Window | None]] = {}
        keys: dict[str, list[Window | None]] = {wanted.key: [] for wanted in only if wanted.position is None}
        for wanted in only:
            if wanted.position is not None:
                found.setdefault(tuple(wanted.position), []).append(wanted.window)
            else:
                keys[wanted.key].append(wanted.window)
        if keys:
            for position in itertools.product(*map(range, self.layout.samples)):
                if (key := self.layout.key(position)) in keys:
                    found.setdefault(position, []).extend(keys[key])
        return found

    def read(self) -> Iterator[RawSample | Rejection]:
        """Every sample, block after block of the grid of chunks; the files of several blocks are fetched together."""
        first = next(iter(self.layout.pixels.values()))
        if self._in_strips(first):
            for _, positions in self._blocks(first):
                for position in positions:
                    yield from self._strips(position, first)
            return
        for run in bundled(self._blocks(first), self._size):
            self.files.ahead(key for block, _ in run for key in self.chunks(block))
            for block, positions in run:
                yield from self._block(block, positions)

    def chunks(self, block: Block, rows: slice | None = None, columns: slice | None = None) -> list[str]:
        """The files that some samples, or some of their pixels, are read from whole."""
        return [
            key
            for pixels in (*self.layout.pixels.values(), *self.layout.masks.values())
            if self.wanted is None or not pixels.array.sharded
            for key in pixels.array.keys(
                pixels.select(block, rows or slice(0, pixels.size[0]), columns or slice(0, pixels.size[1]))
            )
        ]

    def fetched(self) -> Iterator[list[str]]:
        """The files that a far store is asked for together."""
        first = next(iter(self.layout.pixels.values()))
        step, (height, _) = first.array.chunks[first.axes.y], first.size
        if self._in_strips(first):
            for block, _ in self._blocks(first):
                for top in range(0, height, step):
                    yield self.chunks(block, slice(top, min(top + step, height)))
            return
        for run in bundled(self._blocks(first), self._bytes):
            yield [key for block, _ in run for key in self.chunks(block)]

    def _bytes(self, item: tuple[Block, list[tuple[int, ...]]]) -> int:
        return sum(self.files.sizes.get(key, 0) for key in self.chunks(item[0]))

    def _size(self, item: tuple[Block, list[tuple[int, ...]]]) -> int:
        """Bytes to fetch for a block; of what is near, a block is enough at once."""
        return self._bytes(item) if self.files.far else AHEAD

    def _blocks(self, first: _Pixels) -> Iterator[tuple[Block, list[tuple[int, ...]]]]:
        """The samples that lie in the same chunks, and which of them are wanted."""
        steps = [first.array.chunks[axis] for axis in first.axes.sample]
        starts = [range(0, length, step) for length, step in zip(self.layout.samples, steps, strict=True)]
        for start in itertools.product(*starts):
            block = [
                slice(at, min(at + step, length))
                for at, step, length in zip(start, steps, self.layout.samples, strict=True)
            ]
            positions = list(itertools.product(*(range(part.start, part.stop) for part in block)))
            if self.wanted is not None:
                positions = [position for position in positions if position in self.wanted]
            if self.sieve is not None and self.sieve.by_key and positions:
                allowed = self.sieve.allowed([self.layout.key(at) for at in positions], [{}] * len(positions))
                positions = [at for at, passes in zip(positions, allowed, strict=True) if passes]
            if positions:
                yield block, positions

    def _in_strips(self, first: _Pixels) -> bool:
        """Whether an image is read row of tiles by row of tiles: it is alone in its chunks, and has several rows."""
        alone = all(first.array.chunks[axis] == 1 for axis in first.axes.sample)
        tall = first.array.chunks[first.axes.y] < first.size[0]
        equal = len({pixels.size for pixels in self.layout.pixels.values()}) == 1
        return self.settings.tile.size is not None and alone and tall and equal

    def _block(self, block: Block, positions: Sequence[tuple[int, ...]]) -> Iterator[RawSample | Rejection]:
        """Whole samples of one block."""
        try:
            values = {name: self._whole(name, pixels, block) for name, pixels in self.layout.pixels.items()}
            masks = {name: self._whole(name, pixels, block) for name, pixels in self.layout.masks.items()}
        except BadSample as error:
            for position in positions:
                yield self._rejection(position, error)
            return
        for position in positions:
            at = tuple(i - part.start for i, part in zip(position, block, strict=True))
            yield self._sample(position, {name: whole[at] for name, whole in (values | masks).items()})

    def _whole(self, name: str, pixels: _Pixels, block: Block) -> NDArray[Any]:
        rows, columns = (slice(0, length) for length in pixels.size)
        self._check(name, pixels, block, rows, columns)
        return self._read(name, pixels, block, rows, columns)

    def _check(self, name: str, pixels: _Pixels, block: Block, rows: slice, columns: slice) -> None:
        if name in self.layout.pixels:
            _check_missing(self.layout, pixels, block, rows, columns, self.settings.nodata)

    def _read(self, name: str, pixels: _Pixels, block: Block, rows: slice, columns: slice) -> NDArray[Any]:
        bands = 1 if pixels.axes.band is None else pixels.array.shape[pixels.axes.band]
        check_pixels(rows.stop - rows.start, columns.stop - columns.start, bands, self.settings.max_pixels)
        try:
            return pixels.read(block, rows, columns)
        except (AccessError, MemoryError, BadSample):
            raise
        except OSError as error:
            raise AccessError(f"zarr: {name}: {error.strerror or error}") from error
        except Exception as error:  # codecs raise whatever they like on damaged chunks
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise BadSample("read", "BadImage", f"zarr: a chunk of {name} is damaged: {said}") from error

    def _strips(self, position: tuple[int, ...], first: _Pixels) -> Iterator[RawSample | Rejection]:
        """The tiles of one image; each row of chunks is read once, and kept while a tile needs it."""
        size, (height, width) = self.settings.tile.size, first.size
        assert size is not None
        wanted = None if self.wanted is None else {w for w in self.wanted[position] if w is not None}
        every = list(windows(height, width, size, self.settings.tile.stride or size))
        rows = {row: list(tiles) for row, tiles in itertools.groupby(every, key=lambda window: window.row)}
        block = [slice(i, i + 1) for i in position]
        strip = _Strip(self, block, first)
        for row, tiles in rows.items():
            asked = [tile for tile in tiles if wanted is None or tile in wanted]
            if asked:
                yield from self._row(position, strip, row, asked)

    def _row(
        self, position: tuple[int, ...], strip: _Strip, row: int, tiles: Sequence[Window]
    ) -> Iterator[RawSample | Rejection]:
        columns = slice(min(t.column for t in tiles), max(t.column + t.width for t in tiles))
        strip.move(row, row + tiles[0].height, columns if self.wanted is not None else slice(0, strip.width))
        for tile in tiles:
            try:
                yield self._sample(position, strip.cut(tile), tile)
            except BadSample as error:
                yield self._rejection(position, error, tile)

    def _sample(
        self, position: tuple[int, ...], values: Mapping[str, NDArray[Any]], window: Window | None = None
    ) -> RawSample | Rejection:
        key = self.layout.key(position)
        whole = f"{key}{window.suffix}" if window else key
        if whole in self.keys:
            return Rejection(whole, 0, "read", "DuplicateKey", "the key came before in this store")
        self.keys.add(whole)
        members = [Member(name, None, own.nbytes) for name, own in values.items()]
        try:
            images = {name: self.layout.image(name, own, position, window) for name, own in values.items()}
            return RawSample(key, 0, members, {}, images, self.layout.said(position), position, window)
        except BadSample as error:
            return Rejection(whole, 0, error.stage, error.kind, error.message)

    def _rejection(self, position: tuple[int, ...], error: BadSample, window: Window | None = None) -> Rejection:
        key = self.layout.key(position) + (window.suffix if window else "")
        self.keys.add(key)
        return Rejection(key, 0, error.stage, error.kind, error.message)


class _Strip:
    """The rows of chunks around a row of tiles, read once each."""

    def __init__(self, reader: _Reader, block: Block, first: _Pixels) -> None:
        self.reader, self.block = reader, block
        self.step, (self.height, self.width) = first.array.chunks[first.axes.y], first.size
        self.every = {**reader.layout.pixels, **reader.layout.masks}
        self.columns = slice(0, self.width)
        self.parts: dict[int, dict[str, NDArray[Any]] | BadSample] = {}  # by the row of chunks

    def move(self, top: int, bottom: int, columns: slice) -> None:
        """Read what is wanting of the rows from ``top`` to ``bottom``, forget what lies above."""
        numbers = range(top // self.step, -(-bottom // self.step))
        if columns != self.columns:
            self.columns, self.parts = columns, {}
        self.parts = {number: self.parts.get(number) or self._chunks(number) for number in numbers}

    def _chunks(self, number: int) -> dict[str, NDArray[Any]] | BadSample:
        rows = slice(number * self.step, min((number + 1) * self.step, self.height))
        self.reader.files.ahead(self.reader.chunks(self.block, rows, self.columns))
        try:
            return self._read(rows, self.columns)
        except BadSample as error:
            return error

    def cut(self, tile: Window) -> dict[str, NDArray[Any]]:
        """The pixels of one tile.

        Raises:
            BadSample: a chunk that it lies in is not there, or damaged.
        """
        rows = slice(tile.row, tile.row + tile.height)
        columns = slice(tile.column, tile.column + tile.width)
        for name, pixels in self.every.items():
            self.reader._check(name, pixels, self.block, rows, columns)
        if any(isinstance(part, BadSample) for part in self.parts.values()):  # it may lie beside the damage
            return self._read(rows, columns)
        left = slice(columns.start - self.columns.start, columns.stop - self.columns.start)
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in self.every}
        for number, part in self.parts.items():
            assert not isinstance(part, BadSample)
            top = number * self.step
            for name, values in part.items():
                found[name].append(values[:, max(0, rows.start - top) : rows.stop - top, left])
        return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}

    def _read(self, rows: slice, columns: slice) -> dict[str, NDArray[Any]]:
        return {
            name: self.reader._read(name, pixels, self.block, rows, columns)[(0,) * len(self.block)]
            for name, pixels in self.every.items()
        }
