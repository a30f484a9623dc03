"""In which order a store is read: block after block of samples that lie in the same chunks, each chunk once."""

import itertools
from collections.abc import Iterator, Sequence

from curation.archive.sample import Wanted, Window
from curation.archive.settings import TileConfig
from curation.archive.tables import Sieve
from curation.archive.zarr.axes import Block
from curation.archive.zarr.files import Files
from curation.archive.zarr.layout import Layout
from curation.storage import AHEAD, bundled

Positions = list[tuple[int, ...]]  # of the samples of a block that are wanted


class Plan:
    """What is read of a store, in which order, and by which files.

    Args:
        layout: of the store.
        files: of the store.
        tile: ``archive.tile``.
        only: the samples that are wanted; ``None``: all.
        sieve: passes by key where it can.

    Attributes:
        wanted: windows of the wanted samples by position.
        in_strips: whether an image is read row of tiles by row of tiles: it is alone in its chunks, and has several
            rows of them.
    """

    def __init__(
        self, layout: Layout, files: Files, tile: TileConfig, only: Sequence[Wanted] | None, sieve: Sieve | None
    ) -> None:
        self.layout, self.files, self.sieve = layout, files, sieve
        self.wanted = None if only is None else self._positions(only)
        first = layout.first
        alone = all(first.array.chunks[axis] == 1 for axis in first.sample)
        tall = first.array.chunks[first.y] < first.size[0]
        equal = len({pixels.size for pixels in layout.pixels.values()}) == 1
        self.in_strips = tile.size is not None and alone and tall and equal

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

    def blocks(self) -> Iterator[tuple[Block, Positions]]:
        """The samples that lie in the same chunks, and which of them are wanted."""
        lengths, first = self.layout.samples, self.layout.first
        steps = [first.array.chunks[axis] for axis in first.sample]
        starts = [range(0, length, step) for length, step in zip(lengths, steps, strict=True)]
        for start in itertools.product(*starts):
            ends = [min(at + step, length) for at, step, length in zip(start, steps, lengths, strict=True)]
            block = [slice(at, end) for at, end in zip(start, ends, strict=True)]
            positions = list(itertools.product(*map(range, start, ends)))
            if self.wanted is not None:
                positions = [position for position in positions if position in self.wanted]
            if self.sieve is not None and self.sieve.by_key and positions:
                allowed = self.sieve.allowed([self.layout.key(at) for at in positions], [{}] * len(positions))
                positions = [at for at, passes in zip(positions, allowed, strict=True) if passes]
            if positions:
                yield block, positions

    def runs(self, far: bool) -> Iterator[list[tuple[Block, Positions]]]:
        """Blocks whose files are fetched together; of what is near, a block is enough at once."""

        def size(item: tuple[Block, Positions]) -> int:
            return sum(self.files.sizes.get(key, 0) for key in self.keys(item[0])) if far else AHEAD

        return bundled(self.blocks(), size)

    def keys(self, block: Block, rows: slice | None = None, columns: slice | None = None) -> list[str]:
        """The files that some samples, or some of their pixels, are read from whole."""
        return [
            key
            for pixels in self.layout.images.values()
            if self.wanted is None or not pixels.array.sharded
            for key in pixels.array.keys(
                pixels.select(block, rows or slice(0, pixels.size[0]), columns or slice(0, pixels.size[1]))
            )
        ]

    def requests(self) -> Iterator[list[str]]:
        """The files that a store, were it far, is asked for together."""
        first = self.layout.first
        step, (height, _) = first.array.chunks[first.y], first.size
        if self.in_strips:
            for block, _ in self.blocks():
                for top in range(0, height, step):
                    yield self.keys(block, slice(top, min(top + step, height)))
            return
        for run in self.runs(far=True):
            yield [key for block, _ in run for key in self.keys(block)]
