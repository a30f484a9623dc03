"""TIFF and GeoTIFF: what the header says, read by us, and the pixels, decoded by libtiff.

``tifffile`` takes most of a millisecond for a tile of 64 pixels; here it only
stands in for what libtiff does not decode. Formats: TIFF 6.0, BigTIFF, GeoTIFF
1.1, GDAL's metadata and nodata tags.
"""

import html
import io
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from curation.archive.image import bad_image, check_pixels
from curation.archive.place import Georeference, named_crs
from curation.archive.sample import Image
from curation.errors import BadSample

# TIFF's numeric types: struct's letter and bytes.
_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TYPES = {kind: (letter, struct.calcsize("=" + letter)) for kind, letter in _LETTERS.items()}
_ITEM = re.compile(r"<Item\b([^>]*)>([^<]*)</Item>")
_SAMPLE = re.compile(r'\bsample="(\d+)"')
# Compressions that libtiff decodes: none, LZW, JPEG, deflate (two numbers), PackBits, zstd.
_LIBTIFF = frozenset({1, 5, 7, 8, 32946, 32773, 50000})
MAX_PAGES = 4096


class Source(Protocol):
    """The bytes of a file, here or fetched when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class Page:
    """One directory of a TIFF; values are read when they are asked for."""

    def __init__(self, data: Source, order: str, index: int, entries: dict[int, tuple[int, int, bytes]]) -> None:
        self.data, self.order, self.index, self.entries = data, order, index, entries

    def values(self, tag: int, *default: Any) -> tuple[Any, ...]:
        """The numbers of a tag."""
        entry = self.entries.get(tag)
        if entry is None or entry[0] not in _TYPES:
            return default
        letter, size = _TYPES[entry[0]]
        return struct.unpack(f"{self.order}{entry[1]}{letter}", self._bytes(tag, size * entry[1]))

    def text(self, tag: int) -> str:
        """The text of a tag, empty without one."""
        if tag not in self.entries:
            return ""
        return self._bytes(tag, self.entries[tag][1]).partition(b"\0")[0].decode("utf-8", "replace")

    def number(self, tag: int, default: int) -> int:
        """A tag's first number."""
        values = self.values(tag)
        return int(values[0]) if values else default

    def _bytes(self, tag: int, size: int) -> bytes:
        field = self.entries[tag][2]
        if size <= len(field):
            return field[:size]
        start = int(struct.unpack(self.order + ("I" if len(field) == 4 else "Q"), field)[0])
        if start + size > len(self.data):
            raise BadSample("decode", "TruncatedImage", f"tif: tag {tag} lies behind the end of the file")
        return self.data[start : start + size]


@dataclass(slots=True)
class Layout:
    """How a page stores its pixels; pages of one image are equal in it."""

    height: int
    width: int
    samples: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    photometric: int
    separate: bool


def read_pages(data: Source) -> list[Page]:
    """The directories of a TIFF in their order."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    try:
        big = struct.unpack(order + "H", data[2:4])[0] == 43
        (start,) = struct.unpack(order + ("Q" if big else "I"), data[8:16] if big else data[4:8])
        entry, count_format, next_format = ("HHQ8s", "Q", "Q") if big else ("HHI4s", "H", "I")
        pages: list[Page] = []
        seen = set()
        while start and start not in seen and len(pages) < MAX_PAGES:
            seen.add(start)
            first = start + struct.calcsize("=" + count_format)
            (count,) = struct.unpack(order + count_format, data[start:first])
            last = first + count * struct.calcsize("=" + entry)
            table = data[first:last]
            (start,) = struct.unpack(order + next_format, data[last : last + struct.calcsize("=" + next_format)])
            entries = {tag: (kind, n, value) for tag, kind, n, value in struct.iter_unpack(order + entry, table)}
            pages.append(Page(data, order, len(pages), entries))
    except struct.error:
        raise BadSample("decode", "TruncatedImage", "tif: a directory lies behind the end of the file") from None
    if not pages:
        raise bad_image("tif: no image in it")
    return pages


def decode_tiff(data: bytes, max_pixels: int) -> Image | None:
    """Decode the full-resolution image of a TIFF; several equal pages are its bands.

    Returns:
        The image, or ``None`` for a palette, CMYK, YCbCr, inverted or bilevel
        one: Pillow knows those.

    Raises:
        BadSample: it is damaged, too large, or of a kind that is not read.
    """
    images, masks = full_pages(read_pages(data))
    layout = read_layout(images[0])
    check_pixels(layout.height, layout.width, layout.samples * len(images), max_pixels)
    check_tiles(images[0], layout.samples, max_pixels)
    for page in images[1:]:
        if read_layout(page) != layout:
            raise BadSample("decode", "SeveralImages", f"tif: {len(images)} pages of different kinds")
        check_tiles(page, layout.samples, max_pixels)
    if layout.photometric not in (1, 2) or min(layout.bits) < 8:
        if len(images) > 1:
            raise BadSample("decode", "Unsupported", "tif: several pages with colours that are no bands")
        return None
    planes = [_pixels(data, page, layout) for page in images]
    pixels = planes[0] if len(planes) == 1 else np.concatenate(planes)
    mask = _mask(data, masks[0], layout) if masks else None
    return read_legend(images[0], layout, len(pixels)).image(pixels, mask)


def full_pages(pages: list[Page]) -> tuple[list[Page], list[Page]]:
    """The directories of full resolution: those of pixels, and masks."""
    kinds = [page.number(254, 0) & 5 | (page.number(255, 1) == 2) for page in pages]  # 1 smaller copy, 4 mask
    images = [page for page, kind in zip(pages, kinds, strict=True) if not kind] or pages[:1]
    return images, [page for page, kind in zip(pages, kinds, strict=True) if kind == 4]


def read_layout(page: Page) -> Layout:
    """How a page stores its pixels, by its tags."""
    samples = page.number(277, 1)
    return Layout(
        height=page.number(257, 0),
        width=page.number(256, 0),
        samples=samples,
        bits=page.values(258, 1),
        formats=page.values(339, 1),
        photometric=page.number(262, 1),
        separate=page.number(284, 1) == 2 and samples > 1,
    )


def _pixels(data: bytes, page: Page, layout: Layout) -> NDArray[Any]:
    """``(samples, height, width)``, in native byte order."""
    pixels: NDArray[Any]
    usual = page.number(259, 1) in _LIBTIFF and set(layout.bits) <= {8, 16, 32, 64}
    if _check_segments(page) and usual:
        pixels = imagecodecs.tiff_decode(data, index=page.index)
    else:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pixels = file.pages[page.index].asarray()
    shape = layout.height, layout.width
    if pixels.shape == shape:
        pixels = pixels[None]
    elif pixels.shape == (*shape, layout.samples) and not (layout.separate and pixels.shape[0] == layout.samples):
        pixels = pixels.transpose(2, 0, 1)
    if pixels.shape != (layout.samples, *shape):
        raise bad_image(f"tif: pixels of shape {pixels.shape} where the header says {(layout.samples, *shape)}")
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def check_tiles(page: Page, samples: int, max_pixels: int) -> None:
    """Refuse tiles that alone are beyond the limit, and volumes."""
    if 322 in page.entries or 323 in page.entries:
        check_pixels(page.number(323, 0), page.number(322, 0), samples, max_pixels)
    if page.number(32997, 1) > 1 or page.number(32998, 1) > 1:
        raise BadSample("decode", "Unsupported", "tif: a volume is no image")


def _check_segments(page: Page) -> bool:
    """Whether every strip or tile is there; some may be left out, and then hold nodata.

    Raises:
        BadSample: one lies behind the end of the file.
    """
    offsets = page.values(324) or page.values(273)
    counts = page.values(325) or page.values(279)
    if not offsets or len(counts) != len(offsets):
        return not counts
    if max(start + size for start, size in zip(offsets, counts, strict=True)) > len(page.data):
        raise BadSample("decode", "TruncatedImage", "tif: a strip or tile lies behind the end of the file")
    return all(counts)


def _mask(data: bytes, page: Page, layout: Layout) -> NDArray[np.bool_] | None:
    """GDAL's mask page: not 0 is valid."""
    if (page.number(257, 0), page.number(256, 0)) != (layout.height, layout.width):
        return None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return np.asarray(file.pages[page.index].asarray() != 0)


@dataclass(frozen=True, slots=True)
class Legend:
    """What the tags say of the pixels: names of the bands, which sample is alpha (no band), nodata, and the place."""

    bands: tuple[str, ...]
    alpha: int | None
    nodata: float | None
    place: Georeference | None

    def image(self, pixels: NDArray[Any], mask: NDArray[np.bool_] | None) -> Image:
        """An image of samples ``(samples, height, width)``; alpha becomes mask."""
        if self.alpha is not None:
            opaque = pixels[self.alpha] > 0
            mask = opaque if mask is None else mask & opaque
            pixels = np.delete(pixels, self.alpha, axis=0)
        return Image(pixels, self.bands, mask, self.nodata, self.place)


def read_legend(page: Page, layout: Layout, samples: int) -> Legend:
    """The legend of an image of as many samples, by the tags of its first page."""
    names = _descriptions(page.text(42112), samples)
    default = [f"b{i + 1}" for i in range(samples)]
    colours = 3 if layout.photometric in (2, 6) and samples >= 3 else 0
    default[:colours] = ["red", "green", "blue"][:colours]
    alpha = _alpha(page, layout, names)
    bands = tuple(name for i, name in enumerate(names or default) if i != alpha)
    nodata = page.text(42113).strip()
    try:
        value = float(nodata) if nodata else None
    except ValueError:
        value = None
    return Legend(bands, alpha, value, georeference(page))


def _alpha(page: Page, layout: Layout, names: tuple[str, ...]) -> int | None:
    """The sample that says how opaque a pixel is; one with a name of its own is a band."""
    colours = 3 if layout.photometric == 2 else 1
    for i, kind in enumerate(page.values(338)):
        sample = colours + i
        if kind in (1, 2) and sample < layout.samples and (not names or names[sample].lower() == "alpha"):
            return sample
    return None


@lru_cache(maxsize=256)
def _descriptions(xml: str, count: int) -> tuple[str, ...]:
    """The bands' names from GDAL's metadata, if every band has one of its own."""
    found = {}
    for attributes, text in _ITEM.findall(xml):
        sample = _SAMPLE.search(attributes)
        if sample and 'role="description"' in attributes:
            found[int(sample[1])] = html.unescape(text).strip()
    names = tuple(found.get(i, "") for i in range(count))
    return names if all(names) and len(set(names)) == count else ()


# place


def georeference(page: Page) -> Georeference | None:
    """The grid's place, where the tags give it in a reference system that PROJ knows."""
    keys = page.values(34735)
    model = {key: value for key, place, _, value in zip(*[iter(keys[4:])] * 4, strict=False) if place == 0}
    transform = _transform(page, 0.5 if model.get(1025) == 2 else 0.0)
    if transform is None:
        return None
    if model.get(1024) == 1:
        crs = named_crs(int(model.get(3072, 0)))
    elif model.get(1024) == 2:
        crs = named_crs(int(model.get(2048, 0))) or "EPSG:4326"
    else:
        return None
    return Georeference(crs, transform) if crs else None


def _transform(page: Page, shift: float) -> tuple[float, float, float, float, float, float] | None:
    """Pixel corners to coordinates; ``shift`` where the tags speak of pixels' centres."""
    matrix, scale, tie = page.values(34264), page.values(33550), page.values(33922)
    if len(matrix) == 16:
        a, b, c, d, e, f = matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]
    elif len(scale) >= 2 and len(tie) >= 6:
        a, b, c = scale[0], 0.0, tie[3] - tie[0] * scale[0]
        d, e, f = 0.0, -scale[1], tie[4] + tie[1] * scale[1]
    else:
        return None
    return a, b, c - shift * (a + b), d, e, f - shift * (d + e)
