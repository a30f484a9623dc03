"""Parts of GeoTIFFs by range reads: strips and tiles, each fetched and decoded once.

The header is read first, in pieces of 64 KiB; then, row of windows by row of
windows, those blocks that the windows touch. Block rows that the next windows
still need stay; all others go. So what is held is the width of the image times
the height of the windows and of a block, however tall the image is.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from curation.archive.image import bad_image, check_pixels, jpeg_frame
from curation.archive.lists import CHECKSUM
from curation.archive.place import Georeference
from curation.archive.sample import Image
from curation.archive.tiff import Layout, Page, check_tiles, full_pages, read_layout, read_legend, read_pages
from curation.errors import CurationError
from curation.storage import FileInfo, Folder, RangeReader, coalesce

PIECE = 1 << 16  # bytes of a header that are fetched at once
GAP = 1 << 10  # bytes between blocks that are fetched with them: a COG's sizes; more is other blocks, whose turn comes
STRIPS = 128  # rows of strips that are decoded together
# What is decoded block by block: uncompressed, LZW, JPEG, deflate (two numbers), PackBits, LERC, LZMA, zstd, WebP.
CODECS = frozenset({1, 5, 7, 8, 32946, 32773, 34887, 34925, 50000, 50001})
JPEG = 7

Range = tuple[int, int]
Area = tuple[slice, slice]


def _read(folder: Folder, file: FileInfo, ranges: Sequence[Range]) -> list[bytes]:
    """Ranges of a file of the version that was listed."""
    version = "" if file.version.startswith(CHECKSUM) else file.version
    return folder.read_ranges(file.path, ranges, version, GAP)


class _Header(RangeReader):
    """The bytes of a file as they are asked for, by slices or as a file; what was fetched stays."""

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        super().__init__(folder, file)
        self.pieces: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self.file.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.file.size)
        return self.get(start, stop) if start < stop else b""

    def get(self, start: int, stop: int) -> bytes:
        first, last = start // PIECE, -(-stop // PIECE)
        missing = [i for i in range(first, last) if i not in self.pieces]
        ranges = [(i * PIECE, min((i + 1) * PIECE, self.file.size)) for i in missing]
        self.pieces.update(zip(missing, _read(self.folder, self.file, ranges), strict=True))
        joined = b"".join(self.pieces[i] for i in range(first, last))
        return joined[start - first * PIECE : stop - first * PIECE]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a block cannot be read; ``cut``: it lies behind the end of the file."""

    message: str
    cut: bool


class BlockFile:
    """A GeoTIFF, opened; its pixels come by parts.

    Attributes:
        shape, dtype: height and width of full resolution, and the numbers' type.
        bands, samples: the bands' names; how many samples a pixel has, alpha too.
        nodata, place: see :class:`~curation.archive.sample.Image`.
    """

    def __init__(self, folder: Folder, file: FileInfo, images: list[_Layer], mask: _Layer | None, layout: Layout):
        self.folder, self.file, self.images, self.mask = folder, file, images, mask
        self.layers = [*images, *([mask] if mask else [])]
        self.samples = sum(layer.samples for layer in images)
        self.legend = read_legend(images[0].page, layout, self.samples)
        self.shape = layout.height, layout.width
        self.bands, self.nodata, self.dtype = self.legend.bands, self.legend.nodata, images[0].dtype
        self.place: Georeference | None = self.legend.place

    def plan(self, rows: Range, columns: Sequence[Range], max_pixels: int) -> None:
        """Say which parts come next, below the last ones or overlapping them; what lies above is forgotten.

        Raises:
            BadSample: ``TooManyPixels``, that is more than is held at once.
        """
        for layer in self.layers:
            layer.plan(rows, columns, max_pixels)

    def fetch(self) -> None:
        """Fetch the bytes of all blocks that are planned and not here yet."""
        ranges = [(start, stop) for layer in self.layers for _, _, start, stop in layer.todo]
        data = iter(_read(self.folder, self.file, ranges))
        for layer in self.layers:
            layer.take(data)

    def skip(self) -> list[Range]:
        """What :meth:`fetch` would ask for; it is not asked for any more."""
        ranges = [(start, stop) for layer in self.layers for _, _, start, stop in layer.todo]
        for layer in self.layers:
            layer.todo = []
        return coalesce(ranges, GAP)

    def part(self, rows: Range, columns: Range, into: NDArray[Any] | None = None) -> Image | Fault:
        """A part that was planned and fetched; or why it cannot be read.

        Args:
            rows: first and last (exclusive).
            columns: the same.
            into: ``(bands, height, width)``, where its pixels go, of a file that is one page without alpha; else they
                have memory of their own.
        """
        parts = [layer.part(rows, columns, into if layer is self.images[0] else None) for layer in self.layers]
        faults = [part for part in parts if isinstance(part, Fault)]
        if faults:
            return faults[0]
        made = [part for part in parts if not isinstance(part, Fault)]
        pixels = made[0] if len(self.images) == 1 else np.concatenate(made[: len(self.images)])
        masks = [mask for layer in self.layers if (mask := layer.written(rows, columns)) is not None]
        if self.mask:
            masks.append(made[-1][0] != 0)
        return self.legend.image(pixels, np.logical_and.reduce(masks) if masks else None)


def open_blocks(folder: Folder, file: FileInfo, max_pixels: int) -> BlockFile | None:
    """Read the header of a TIFF.

    Returns:
        The file; ``None`` where it is none that is read by blocks: another format, palettes, CMYK, less than 8 bits.

    Raises:
        BadSample: the header is damaged, cut short, or of a kind that is not read.
    """
    header = _Header(folder, file)
    if header[0:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        images, masks = full_pages(read_pages(header))
        layout = read_layout(images[0])
        if not _is_simple(images[0], layout):
            return None
        if any(read_layout(page) != layout for page in images[1:]):
            raise bad_image(f"tif: {len(images)} pages of different kinds", "SeveralImages")
        masks = [page for page in masks if (page.number(257, 0), page.number(256, 0)) == (layout.height, layout.width)]
        with tifffile.TiffFile(io.BufferedReader(header, PIECE)) as tiff:
            layers = [_Layer(header, page, tiff.pages[page.index], max_pixels) for page in [*images, *masks[:1]]]
    except (CurationError, OSError, MemoryError):
        raise
    except Exception as error:  # tifffile raises whatever it likes on damaged files
        raise bad_image(f"tif: {' '.join(str(error).split())[:200] or type(error).__name__}") from error
    return BlockFile(folder, file, layers[: len(images)], layers[len(images)] if masks else None, layout)


def _is_simple(page: Page, layout: Layout) -> bool:
    """Whether pixels are numbers or colours in whole bytes, by a codec that is decoded block by block."""
    codec = page.number(259, 1)
    if codec == JPEG and layout.photometric != 1:
        plain = layout.photometric in (2, 6) and layout.samples == 3 and not layout.separate
    else:
        plain = layout.photometric in (1, 2)
    return plain and min(layout.bits, default=0) >= 8 and codec in CODECS


def _inflate(data: Any, target: NDArray[Any]) -> None:
    """Decompress into an array whose bytes lie side by side."""
    flat = target.reshape(-1).view(np.uint8)
    if len(imagecodecs.deflate_decode(data, out=flat.data)) != len(flat):
        raise ValueError("it holds too few bytes")


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a dtype has this number."""
    if dtype.kind not in "iu":
        return dtype.kind == "f"
    return value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


class _Layer:
    """One directory of a TIFF as a grid of blocks, of which some rows are held, decoded."""

    def __init__(self, header: _Header, page: Page, decoder: Any, max_pixels: int) -> None:
        layout = read_layout(page)
        self.height, self.width, self.samples = layout.height, layout.width, layout.samples
        check_pixels(self.height, self.width, self.samples, 2**64)  # an image may be as large as it likes
        check_tiles(page, self.samples, max_pixels)
        self.page, self.end = page, len(header)
        tiled = 322 in page.entries
        self.block = (
            (page.number(323, 0), page.number(322, 0))
            if tiled
            else (max(1, min(page.number(278, self.height), self.height)), self.width)
        )
        check_pixels(*self.block, 1, max_pixels)
        self.planes = self.samples if layout.separate else 1
        self.segments = -(-self.height // self.block[0]), -(-self.width // self.block[1])
        self.offsets = page.values(324) or page.values(273)
        self.counts = page.values(325) or page.values(279)
        if min(len(self.offsets), len(self.counts)) < self.planes * self.segments[0] * self.segments[1]:
            raise bad_image("tif: the header names fewer strips or tiles than the image has")
        # Low strips are taken together: else a tile would be pieced together of hundreds.
        self.together = 1 if tiled else max(1, STRIPS // self.block[0])
        self.size = self.block[0] * self.together, self.block[1]  # of a block
        self.codec, self.tables, self.decoder = page.number(259, 1), decoder.jpegtables, decoder.decode
        # Strips of one band each, plain deflate: straight to their place, which is a tenth faster.
        native = page.order == ("<" if sys.byteorder == "little" else ">") or decoder.dtype.itemsize == 1
        plain = decoder.predictor == 1 and decoder.fillorder == 1 and native
        self.direct = plain and self.codec in (8, 32946) and not tiled and self.samples == self.planes
        self.dtype: np.dtype[Any] = decoder.dtype.newbyteorder("=")
        nodata = read_legend(page, layout, self.samples).nodata
        self.fill = nodata if nodata is not None and _holds(self.dtype, nodata) else 0
        self.sparse = False  # whether some block was never written
        # Blocks by row and column: the bytes of their segments, from when they are planned; their pixels
        # (samples, height, width), from when they are first used; a fault; nothing, where nothing was ever written.
        self.blocks: dict[tuple[int, int], list[tuple[int, bytes]] | NDArray[Any] | Fault | None] = {}
        self.todo: list[tuple[list[tuple[int, bytes]], int, int, int]] = []  # the block, which segment, its bytes

    def plan(self, rows: Range, columns: Sequence[Range], max_pixels: int) -> None:
        high, wide = self.size
        top, bottom = rows[0] // high, -(-rows[1] // high)
        check_pixels((bottom - top) * high, self.width, self.samples, max_pixels)
        self.blocks = {at: block for at, block in self.blocks.items() if at[0] >= top}
        across = sorted({i for start, stop in columns for i in range(start // wide, -(-stop // wide))})
        self.todo = []
        for at in ((down, right) for down in range(top, bottom) for right in across):
            if at not in self.blocks:
                self.blocks[at] = self._queue(*at)

    def _queue(self, down: int, right: int) -> list[tuple[int, bytes]] | Fault | None:
        """Note what is to be fetched for a block; what is known of it before."""
        begin = down * self.together
        indices = [
            (plane * self.segments[0] + row) * self.segments[1] + right
            for plane in range(self.planes)
            for row in range(begin, min(begin + self.together, self.segments[0]))
        ]
        if not any(self.counts[index] for index in indices):
            self.sparse = True
            return None
        if any(self.offsets[index] + self.counts[index] > self.end for index in indices):
            return Fault("the file ends before its strips and tiles do", cut=True)
        content = [(index, b"") for index in indices]
        places = ((self.offsets[index], self.counts[index]) for index in indices)
        self.todo += [(content, i, start, start + size) for i, (start, size) in enumerate(places) if size]
        return content

    def take(self, data: Iterator[bytes]) -> None:
        """Take the bytes of what was planned."""
        for content, i, _, _ in self.todo:
            content[i] = content[i][0], next(data)
        self.todo = []

    def _decoded(self, at: tuple[int, int]) -> NDArray[Any] | Fault | None:
        block = self.blocks[at]
        if isinstance(block, list):
            try:
                block = self._decode(at, block)
            except Exception as error:  # decoders raise whatever they like; for want of memory, where lengths are wrong
                text = " ".join(str(error).split())[:150] or type(error).__name__
                where = f"row {at[0] * self.size[0]}, column {at[1] * self.size[1]}"
                block = Fault(f"the block at {where} is damaged: {text}", cut=False)
            self.blocks[at] = block
        return block

    def _decode(self, at: tuple[int, int], content: list[tuple[int, bytes]]) -> NDArray[Any]:
        """``(samples, height, width)``."""
        if len(content) == 1:
            return self._segment(*content[0])
        height = min(self.size[0], self.height - at[0] * self.size[0])
        pixels = np.empty((self.samples, height, self.block[1]), self.dtype)
        for position, (index, data) in enumerate(content):
            plane, row = divmod(position, len(content) // self.planes)
            target = pixels[plane : plane + 1 if self.planes > 1 else None, row * self.block[0] :][:, : self.block[0]]
            if not data:
                target[...] = self.fill
            elif self.direct:
                _inflate(data, target)
            else:
                target[...] = self._segment(index, data)[:, : target.shape[1]]
        return pixels

    def _segment(self, index: int, data: bytes) -> NDArray[Any]:
        """The pixels of a strip or tile, all samples that it has."""
        if self.codec == JPEG:
            _, _, height, width, _ = jpeg_frame(data)
            if height > self.block[0] or width > self.block[1]:  # else memory would be taken for it
                raise ValueError(f"a JPEG of {width} x {height} pixels in {self.block[1]} x {self.block[0]}")
        pixels: NDArray[Any] = self.decoder(data, index, jpegtables=self.tables)[0][0]
        return pixels.transpose(2, 0, 1)

    def _touched(self, rows: Range, columns: Range) -> Iterator[tuple[tuple[int, int], Area, Area]]:
        """The blocks that a part touches; of each, what of the part it is, and what of it."""
        high, wide = self.size
        for down in range(rows[0] // high, -(-rows[1] // high)):
            top, bottom = max(rows[0], down * high), min(rows[1], (down + 1) * high)
            for right in range(columns[0] // wide, -(-columns[1] // wide)):
                left, end = max(columns[0], right * wide), min(columns[1], (right + 1) * wide)
                there = slice(top - rows[0], bottom - rows[0]), slice(left - columns[0], end - columns[0])
                here = slice(top - down * high, bottom - down * high), slice(left - right * wide, end - right * wide)
                yield (down, right), there, here

    def part(self, rows: Range, columns: Range, into: NDArray[Any] | None) -> NDArray[Any] | Fault:
        shape = self.samples, rows[1] - rows[0], columns[1] - columns[0]
        pixels = np.empty(shape, self.dtype) if into is None else into
        for at, there, here in self._touched(rows, columns):
            block = self._decoded(at)
            if isinstance(block, Fault):
                return block
            pixels[:, *there] = self.fill if block is None else block[:, *here]
        return pixels

    def written(self, rows: Range, columns: Range) -> NDArray[np.bool_] | None:
        """``(height, width)``, False where blocks were never written; ``None`` of a file that is not sparse."""
        if not self.sparse:
            return None
        empty = [there for at, there, _ in self._touched(rows, columns) if self.blocks[at] is None]
        mask = np.ones((rows[1] - rows[0], columns[1] - columns[0]), bool)
        for there in empty:
            mask[there] = False
        return mask
