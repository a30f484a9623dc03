"""Arrays of format 3, by zarr, out of the files of a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from curation.archive.zarr.files import Files


def open_format_3(name: str, files: Files) -> Any:
    """An array by its path; zarr raises whatever it likes on metadata that it does not know."""
    return zarr.open_array(_Store(files), path=name, mode="r", zarr_format=3)


class _Store(Store):
    """What zarr reads from."""

    supports_writes = supports_deletes = False
    supports_listing = True

    def __init__(self, files: Files) -> None:
        super().__init__(read_only=True)
        self.files, self._is_open = files, True

    def __eq__(self, other: object) -> bool:
        return self is other

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        size = self.files.sizes.get(key)
        if size is None:
            return None
        start, stop = 0, size
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, min(size, byte_range.end)
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(0, size - byte_range.suffix)
        if self.files.waits:
            data = await asyncio.to_thread(self.files.read, key, start, stop)
        else:
            data = self.files.read(key, start, stop)
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self.files.sizes

    async def list(self) -> AsyncIterator[str]:
        for key in self.files.sizes:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self.files.sizes:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        below = prefix.rstrip("/") + "/" if prefix else ""
        for name in {key.removeprefix(below).split("/")[0] for key in self.files.sizes if key.startswith(below)}:
            yield name

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        raise NotImplementedError
