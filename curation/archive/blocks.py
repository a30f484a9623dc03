"""Parts of GeoTIFFs by range reads: strips and tiles, each fetched and decoded once.

The header is read first, in pieces of 64 KiB; then, row of windows by row of
windows, those blocks that the windows touch. Block rows that the next windows
still need stay; all others go. So what is held is the width of the image times
the height of the windows and of a block, however tall the image is.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from curation.archive.image import bad_image, check_pixels, jpeg_frame
from curation.archive.sample import Image
from curation.archive.tiff import Layout, Page, check_tiles, full_pages, read_layout, read_legend, read_pages
from curation.errors import CurationError

if TYPE_CHECKING:
    from curation.archive.place import Georeference
    from curation.storage import FileInfo, Folder

PIECE = 1 << 16  # bytes of a header that are fetched at once
GAP = 1 << 16  # bytes that are fetched in vain rather than by another request
THREADS = 8  # requests at once to a remote store
# What is decoded block by block: uncompressed, LZW, JPEG, deflate (two numbers), PackBits, LERC, LZMA, zstd, WebP.
CODECS = frozenset({1, 5, 7, 8, 32946, 32773, 34887, 34925, 50000, 50001})
JPEG = 7

Range = tuple[int, int]


def read_ranges(folder: Folder, path: str, ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of several ranges of a file, in the order asked for; near ones by one request."""
    spans: list[list[int]] = []
    for start, stop in sorted(ranges):
        if spans and start <= spans[-1][1] + GAP:
            spans[-1][1] = max(spans[-1][1], stop)
        else:
            spans.append([start, stop])
    if folder.local or len(spans) < 2:
        parts = [folder.read_range(path, *span) for span in spans]
    else:
        with ThreadPoolExecutor(min(THREADS, len(spans))) as pool:
            parts = list(pool.map(lambda span: folder.read_range(path, *span), spans))
    starts = np.array([start for start, _ in spans])
    where = [int(np.searchsorted(starts, start, "right")) - 1 for start, _ in ranges]
    return [parts[i][start - spans[i][0] : stop - spans[i][0]] for i, (start, stop) in zip(where, ranges, strict=True)]


class _Header(io.RawIOBase):
    """The bytes of a file as they are asked for, by slices or as a file; what was fetched stays."""

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        self.folder, self.file = folder, file
        self.pieces: dict[int, bytes] = {}
        self.position = 0

    def __len__(self) -> int:
        return self.file.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.file.size)
        if stop <= start:
            return b""
        first, last = start // PIECE, -(-stop // PIECE)
        missing = [i for i in range(first, last) if i not in self.pieces]
        ranges = [(i * PIECE, min((i + 1) * PIECE, self.file.size)) for i in missing]
        self.pieces.update(zip(missing, read_ranges(self.folder, self.file.path, ranges), strict=True))
        joined = b"".join(self.pieces[i] for i in range(first, last))
        return joined[start - first * PIECE : stop - first * PIECE]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self)}[whence] + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self[self.position : self.position + len(buffer)]
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a block cannot be read; ``cut``: it lies behind the end of the file."""

    message: str
    cut: bool


class BlockFile:
    """A GeoTIFF, opened; its pixels come by parts.

    Attributes:
        shape: height and width of full resolution.
        bands: the bands' names.
        nodata, place: see :class:`~curation.archive.sample.Image`.
    """

    def __init__(self, folder: Folder, file: FileInfo, images: list[_Layer], mask: _Layer | None, layout: Layout):
        self.folder, self.file, self.images, self.mask = folder, file, images, mask
        self.layers = [*images, *([mask] if mask else [])]
        self.legend = read_legend(images[0].page, layout, sum(layer.samples for layer in images))
        self.shape = layout.height, layout.width
        self.bands, self.nodata = self.legend.bands, self.legend.nodata
        self.place: Georeference | None = self.legend.place

    def plan(self, rows: Range, columns: Sequence[Range], max_pixels: int) -> None:
        """Say which parts come next, below the last ones or overlapping them; what lies above is forgotten.

        Raises:
            BadSample: ``TooManyPixels``, that is more than is held at once.
        """
        for layer in self.layers:
            layer.plan(rows, columns, max_pixels)

    def fetch(self) -> list[bytes]:
        """The bytes of all blocks that are planned and not here yet."""
        ranges = [(start, stop) for layer in self.layers for _, start, stop in layer.todo]
        return read_ranges(self.folder, self.file.path, ranges) if ranges else []

    def decode(self, data: list[bytes]) -> None:
        """Decode what :meth:`fetch` gave."""
        blocks = iter(data)
        for layer in self.layers:
            layer.decode(blocks)

    def fault(self, rows: Range, columns: Range) -> Fault | None:
        """Why a part cannot be read, if it cannot."""
        return next((fault for layer in self.layers if (fault := layer.fault(rows, columns))), None)

    def part(self, rows: Range, columns: Range) -> Image:
        """A part that was planned, fetched and decoded; its memory is its own."""
        parts = [layer.part(rows, columns) for layer in self.images]
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        written = [layer.written(rows, columns) for layer in self.layers]
        masks = [mask for mask in written if mask is not None]
        if self.mask:
            masks.append(self.mask.part(rows, columns)[0] != 0)
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
        self.grid = -(-self.height // self.block[0]), -(-self.width // self.block[1])
        self.offsets = page.values(324) or page.values(273)
        self.counts = page.values(325) or page.values(279)
        if min(len(self.offsets), len(self.counts)) < self.planes * self.grid[0] * self.grid[1]:
            raise bad_image("tif: the header names fewer strips or tiles than the image has")
        self.codec, self.tables, self.decoder = page.number(259, 1), decoder.jpegtables, decoder.decode
        self.top = 0
        self.held = np.empty((self.samples, 0, self.width), decoder.dtype.newbyteorder("="))
        nodata = read_legend(page, layout, self.samples).nodata
        self.fill = nodata if nodata is not None and _holds(self.held.dtype, nodata) else 0
        self.blocks: dict[tuple[int, int], Fault | bool] = {}  # those held: whether anything was written, or its fault
        self.todo: list[tuple[int, int, int]] = []  # index of a segment, where its bytes begin and end

    def plan(self, rows: Range, columns: Sequence[Range], max_pixels: int) -> None:
        high, wide = self.block
        top, bottom = rows[0] // high, -(-rows[1] // high)
        self._hold(top * high, min(bottom * high, self.height), max_pixels)
        self.blocks = {at: state for at, state in self.blocks.items() if at[0] >= top}
        across = sorted({i for start, stop in columns for i in range(start // wide, -(-stop // wide))})
        self.todo = []
        for at in ((down, right) for down in range(top, bottom) for right in across):
            if at not in self.blocks:
                self.blocks[at] = self._queue(*at)

    def _hold(self, top: int, bottom: int, max_pixels: int) -> None:
        """Make room for these rows; of those that are held already the content stays."""
        check_pixels(bottom - top, self.width, self.samples, max_pixels)
        before, height = self.held, bottom - top
        kept = before[:, top - self.top :] if self.top <= top < self.top + before.shape[1] else before[:, :0]
        kept = kept[:, :height]
        if before.shape[1] != height:
            self.held = np.empty((self.samples, height, self.width), before.dtype)
        self.held[:, : kept.shape[1]] = kept
        self.top = top

    def _queue(self, down: int, right: int) -> Fault | bool:
        """Note what is to be fetched for a block; what is known of it before."""
        inside = self._inside(down, right)
        for plane in range(self.planes):
            index = (plane * self.grid[0] + down) * self.grid[1] + right
            start, size = self.offsets[index], self.counts[index]
            if size == 0:  # sparse: never written
                self.held[inside] = self.fill
                return False
            if start + size > self.end:
                return Fault("the file ends before its strips and tiles do", cut=True)
            self.todo.append((index, start, start + size))
        return True

    def _inside(self, down: int, right: int) -> tuple[slice, slice, slice]:
        """Where a block lies in what is held."""
        high, wide = self.block
        return (
            slice(None),
            slice(down * high - self.top, (down + 1) * high - self.top),
            slice(right * wide, (right + 1) * wide),
        )

    def decode(self, data: Any) -> None:
        """Decode the segments that were to be fetched, from an iterator over their bytes."""
        for index, _, _ in self.todo:
            plane, at = divmod(index, self.grid[0] * self.grid[1])
            down, right = divmod(at, self.grid[1])
            content = next(data)
            if self.blocks[down, right] is not True:
                continue
            samples, rows, columns = self._inside(down, right)
            target = self.held[plane : plane + 1 if self.planes > 1 else None, rows, columns]
            try:
                if self.codec == JPEG:
                    self._check_jpeg(content)
                pixels = self.decoder(content, index, jpegtables=self.tables)[0][0]
                target[...] = pixels[: target.shape[1], : target.shape[2]].transpose(2, 0, 1)
            except Exception as error:  # decoders raise whatever they like; for want of memory, where lengths are wrong
                text = " ".join(str(error).split())[:150] or type(error).__name__
                where = f"the block at row {down * self.block[0]}, column {right * self.block[1]}"
                self.blocks[down, right] = Fault(f"{where} is damaged: {text}", cut=False)
        self.todo = []

    def _check_jpeg(self, content: bytes) -> None:
        """Refuse a stream of another size than its block: memory would be taken for it."""
        _, _, height, width, _ = jpeg_frame(content)
        if height > self.block[0] or width > self.block[1]:
            raise bad_image(f"a JPEG of {width} x {height} pixels in a block of {self.block[1]} x {self.block[0]}")

    def _touched(self, rows: Range, columns: Range) -> list[tuple[int, int]]:
        high, wide = self.block
        return [
            (down, right)
            for down in range(rows[0] // high, -(-rows[1] // high))
            for right in range(columns[0] // wide, -(-columns[1] // wide))
        ]

    def fault(self, rows: Range, columns: Range) -> Fault | None:
        states = (self.blocks[at] for at in self._touched(rows, columns))
        return next((state for state in states if isinstance(state, Fault)), None)

    def part(self, rows: Range, columns: Range) -> NDArray[Any]:
        return self.held[:, rows[0] - self.top : rows[1] - self.top, slice(*columns)].copy()

    def written(self, rows: Range, columns: Range) -> NDArray[np.bool_] | None:
        """``(height, width)``, False where blocks of a sparse file were never written; ``None`` where all were."""
        empty = [at for at in self._touched(rows, columns) if self.blocks[at] is False]
        if not empty:
            return None
        mask = np.ones((rows[1] - rows[0], columns[1] - columns[0]), bool)
        for down, right in empty:
            at = [start * size for start, size in zip((down, right), self.block, strict=True)]
            where = [
                slice(max(0, begin - start), max(0, begin + size - start))
                for begin, size, start in zip(at, self.block, (rows[0], columns[0]), strict=True)
            ]
            mask[where[0], where[1]] = False
        return mask
