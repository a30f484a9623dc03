"""Samples out of the chunks of a store, as the plan has them: whole blocks, or an image in strips of tiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.image import check_pixels
from curation.archive.sample import Member, RawSample, Rejection, Window
from curation.archive.settings import ArchiveConfig
from curation.archive.tiling import windows
from curation.archive.zarr.axes import Block
from curation.archive.zarr.plan import Plan, Positions
from curation.errors import AccessError, BadSample


def read_samples(plan: Plan, settings: ArchiveConfig) -> Iterator[RawSample | Rejection]:
    """Every sample that the plan wants, not numbered."""
    reader = _Reader(plan, settings)
    if plan.in_strips:
        for _, positions in plan.blocks():
            for position in positions:
                yield from reader.strips(position)
        return
    for run in plan.runs(plan.files.far):
        plan.files.ahead(key for block, _ in run for key in plan.keys(block))
        for block, positions in run:
            yield from reader.block(block, positions)


class _Reader:
    """Goes through a store once."""

    def __init__(self, plan: Plan, settings: ArchiveConfig) -> None:
        self.plan, self.layout, self.settings = plan, plan.layout, settings
        self.keys: set[str] = set()

    def block(self, block: Block, positions: Positions) -> Iterator[RawSample | Rejection]:
        """Whole samples of one block."""
        try:
            values = {name: self._whole(name, block) for name in self.layout.images}
        except BadSample as error:
            for position in positions:
                yield self._rejection(position, error)
            return
        for position in positions:
            at = tuple(i - part.start for i, part in zip(position, block, strict=True))
            yield self._sample(position, {name: whole[at] for name, whole in values.items()})

    def _whole(self, name: str, block: Block) -> NDArray[Any]:
        rows, columns = (slice(0, length) for length in self.layout.images[name].size)
        self.check_there(name, block, rows, columns)
        return self.read(name, block, rows, columns)

    def check_there(self, name: str, block: Block, rows: slice, columns: slice) -> None:
        """Refuse chunks that are not there; see :meth:`Layout.check_there`."""
        self.layout.check_there(name, block, rows, columns, self.settings.nodata)

    def read(self, name: str, block: Block, rows: slice, columns: slice) -> NDArray[Any]:
        """``(sample axes…, bands, height, width)`` of one array.

        Raises:
            BadSample: it is too large, or a chunk of it is damaged.
        """
        pixels = self.layout.images[name]
        check_pixels(rows.stop - rows.start, columns.stop - columns.start, pixels.bands, self.settings.max_pixels)
        try:
            return pixels.read(block, rows, columns)
        except (AccessError, MemoryError, BadSample):
            raise
        except OSError as error:
            raise AccessError(f"zarr: {name}: {error.strerror or error}") from error
        except Exception as error:  # codecs raise whatever they like on damaged chunks
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise BadSample("read", "BadImage", f"zarr: a chunk of {name} is damaged: {said}") from error

    def strips(self, position: tuple[int, ...]) -> Iterator[RawSample | Rejection]:
        """The tiles of one image; each row of chunks is read once, and kept while a tile needs it."""
        size, wanted = self.settings.tile.size, self.plan.wanted
        assert size is not None
        strip = _Strip(self, [slice(i, i + 1) for i in position])
        every = windows(*self.layout.first.size, size, self.settings.tile.stride or size)
        for row, tiles in itertools.groupby(every, key=lambda window: window.row):
            asked = [tile for tile in tiles if wanted is None or tile in wanted[position]]
            if asked:
                yield from self._row(position, strip, row, asked)

    def _row(
        self, position: tuple[int, ...], strip: _Strip, row: int, tiles: Sequence[Window]
    ) -> Iterator[RawSample | Rejection]:
        columns = slice(min(t.column for t in tiles), max(t.column + t.width for t in tiles))
        every = slice(0, self.layout.first.size[1])
        strip.move(row, row + tiles[0].height, every if self.plan.wanted is None else columns)
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

    def __init__(self, reader: _Reader, block: Block) -> None:
        first, self.reader, self.block = reader.layout.first, reader, block
        self.step, self.height = first.array.chunks[first.y], first.size[0]
        self.columns = slice(0, first.size[1])
        self.parts: dict[int, dict[str, NDArray[Any]] | BadSample] = {}  # by the row of chunks

    def move(self, top: int, bottom: int, columns: slice) -> None:
        """Read what is wanting of the rows from ``top`` to ``bottom``, forget what lies above."""
        numbers = range(top // self.step, -(-bottom // self.step))
        if columns != self.columns:
            self.columns, self.parts = columns, {}
        self.parts = {number: self.parts.get(number) or self._chunks(number) for number in numbers}

    def _chunks(self, number: int) -> dict[str, NDArray[Any]] | BadSample:
        rows = slice(number * self.step, min((number + 1) * self.step, self.height))
        plan = self.reader.plan
        plan.files.ahead(plan.keys(self.block, rows, self.columns))
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
        for name in self.reader.layout.images:
            self.reader.check_there(name, self.block, rows, columns)
        if any(isinstance(part, BadSample) for part in self.parts.values()):  # it may lie beside the damage
            return self._read(rows, columns)
        left = slice(columns.start - self.columns.start, columns.stop - self.columns.start)
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in self.reader.layout.images}
        for number, part in self.parts.items():
            assert not isinstance(part, BadSample)
            top = number * self.step
            for name, values in part.items():
                found[name].append(values[:, max(0, rows.start - top) : rows.stop - top, left])
        return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}

    def _read(self, rows: slice, columns: slice) -> dict[str, NDArray[Any]]:
        return {
            name: self.reader.read(name, self.block, rows, columns)[(0,) * len(self.block)]
            for name in self.reader.layout.images
        }
