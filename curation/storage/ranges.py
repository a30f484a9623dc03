"""Ranges of remote files: which are fetched together, and seekable readers that fetch them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from curation.storage.folder import FileInfo, Folder

T = TypeVar("T")

CHUNK = 8 << 20  # bytes a sequential reader asks for at once
BLOCK = 1 << 16  # bytes that a random reader asks for at least; as many as pyarrow wants of a file's end
AHEAD = 4 * CHUNK  # bytes that a reader of a file's parts fetches at once


class RangeReader(io.RawIOBase):
    """A listed file as a seekable stream; how bytes are fetched is the subclass's."""

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        self.folder, self.file = folder, file
        self.position = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go on from another place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        """The place that is read next."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes."""
        stop = min(self.position + len(buffer), self.file.size)
        if self.position >= stop:
            return 0
        data = self.get(self.position, stop)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def get(self, start: int, stop: int) -> bytes:
        """The bytes from ``start``, some of them at least."""
        raise NotImplementedError

    def fetch(self, start: int, stop: int) -> bytes:
        """All bytes from ``start`` up to ``stop``, of the listed version."""
        return self.folder.read_range(self.file.path, start, stop, self.file.version)


class SequentialReader(RangeReader):
    """Fetches ``CHUNK`` bytes from wherever it is read, and gives what follows out of them."""

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        super().__init__(folder, file)
        self.start, self.chunk = 0, b""

    def get(self, start: int, stop: int) -> bytes:
        """What of the chunk follows ``start``."""
        if not self.start <= start < self.start + len(self.chunk):
            self.start, self.chunk = start, self.fetch(start, min(self.file.size, start + CHUNK))
        return self.chunk[start - self.start : stop - self.start]


class RandomReader(RangeReader):
    """Fetches exactly what it is asked for, but the last ``BLOCK`` bytes and short reads by blocks, which it keeps."""

    HELD = 16  # blocks

    def __init__(self, folder: Folder, file: FileInfo, ahead: Sequence[tuple[int, int]]) -> None:
        super().__init__(folder, file)
        self.ahead = dict(zip(ahead, folder.read_ranges(file.path, ahead, file.version), strict=True))
        self.tail = max(0, file.size - BLOCK)
        self.blocks: dict[int, bytes] = {}

    def readall(self) -> bytes:
        """The rest of the file, by one request."""
        start, self.position = min(self.position, self.file.size), self.file.size
        return self.get(start, self.file.size)

    def get(self, start: int, stop: int) -> bytes:
        """All of it, from what was fetched ahead where it lies in one of these ranges."""
        for (first, last), data in self.ahead.items():
            if first <= start and stop <= last:
                return data[start - first : stop - first]
        if stop - start >= BLOCK and start != self.tail:
            return self.fetch(start, stop)
        data = b""
        while start < stop:
            begin = self.tail if start >= self.tail else start // BLOCK * BLOCK
            end = self.file.size if begin == self.tail else min(begin + BLOCK, self.tail)
            data += self._block(begin, end)[start - begin : stop - begin]
            start = end
        return data

    def _block(self, begin: int, end: int) -> bytes:
        if begin not in self.blocks:
            if len(self.blocks) == self.HELD:
                del self.blocks[min(self.blocks, key=lambda start: start == self.tail)]  # the oldest, never the tail
            self.blocks[begin] = self.fetch(begin, end)
        return self.blocks[begin]


def bundled(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Runs of items, each run of ``AHEAD`` bytes or little more by ``size``: what is worth fetching together."""
    run: list[T] = []
    total = 0
    for item in items:
        run.append(item)
        total += size(item)
        if total >= AHEAD:
            yield run
            run, total = [], 0
    if run:
        yield run


def coalesce(ranges: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """What to fetch for ``ranges``, sorted and disjoint; a span grows to ``CHUNK`` bytes at most by joining."""
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if spans:
            first, last = spans[-1]
            together = max(last, stop)
            if start < last or (start - last <= gap and together - first <= CHUNK):
                spans[-1] = first, together
                continue
        spans.append((start, stop))
    return spans
