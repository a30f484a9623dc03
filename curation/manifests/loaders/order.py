"""Who reads which kept sample in an epoch, and when: pure functions of the manifest's counts, seed and epoch.

An epoch is one sequence: the shards in a shuffled order, each with its kept
samples. Ranks take equal, contiguous slices of it, the workers of a rank
contiguous slices of the rank's (lanes), so a shard is read by few. Within a
lane the order is shuffled as by a buffer of fixed size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.errors import RequestError
from curation.manifests.reading import ShardIndex
from curation.selection.sampling import mix

MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Run:
    """Samples that follow each other in the epoch's sequence and lie in one shard.

    Attributes:
        rows: the shard's first row in the manifest, and the row after its last.
        first: the run's first sample, counted among the shard's kept ones.
        count: its samples.
        position: of the first sample, in the epoch's sequence.
    """

    rows: tuple[int, int]
    first: int
    count: int
    position: int


@dataclass(frozen=True, slots=True)
class Order:
    """One epoch's order, over all ranks.

    Args:
        seed, epoch: what it is drawn from.
        buffer: how far, in samples, the order within a lane is shuffled; 0 leaves everything, shards too,
            in the manifest's order.
    """

    seed: int
    epoch: int
    buffer: int

    def runs(self, index: ShardIndex, start: int, stop: int) -> Iterator[Run]:
        """The sequence from position ``start`` up to ``stop``; beyond the last sample it begins again."""
        order = self._shards(index)
        counts = index.counts
        ends = np.cumsum(counts[order])
        total = int(ends[-1]) if len(ends) else 0
        position = start
        while position < stop:
            inside = position % total
            place = int(np.searchsorted(ends, inside, side="right"))
            shard = int(order[place])
            first = inside - (int(ends[place]) - int(counts[shard]))
            count = min(stop - position, int(counts[shard]) - first)
            yield Run((int(index.first[shard]), int(index.stop[shard])), first, count, position)
            position += count

    def shuffled(self, start: int, stop: int) -> NDArray[np.int64]:
        """The positions from ``start`` up to ``stop`` in the order in which they are given.

        Each moves back by a drawn distance below ``buffer``, so a reader that
        goes through them in sequence holds at most ``buffer`` samples.
        """
        positions = np.arange(start, stop, dtype=np.int64)
        if self.buffer == 0:
            return positions
        drawn = mix(positions.astype(np.uint64) ^ self._salt(1)) >> np.uint64(11)
        moved = positions + self.buffer * (drawn.astype(np.float64) / 2**53)
        return positions[np.argsort(moved, kind="stable")]

    def _shards(self, index: ShardIndex) -> NDArray[np.int64]:
        if self.buffer == 0:
            return np.arange(len(index.counts))
        return np.argsort(mix(index.hashes ^ self._salt(0)), kind="stable")

    def _salt(self, use: int) -> np.uint64:
        salt = np.zeros(1, np.uint64)
        for number in (self.seed, self.epoch, use):
            salt = mix(salt ^ np.uint64(number & MASK))
        return np.uint64(salt[0])


@dataclass(frozen=True, slots=True)
class Lanes:
    """How a rank's samples are dealt to its workers: in batches, round robin, as a DataLoader collects them.

    Worker ``j`` of ``workers`` gives the batches ``j``, ``j + workers``, …;
    only the last batch of all may be short.
    """

    samples: int
    batch: int
    workers: int

    def length(self, worker: int) -> int:
        """Samples of a worker."""
        return self.given(worker, self.samples)

    def start(self, worker: int) -> int:
        """Where a worker's samples begin among the rank's."""
        return sum(self.length(before) for before in range(worker))

    def given(self, worker: int, seen: int) -> int:
        """How many of the rank's first ``seen`` samples (whole batches, or all) came from this worker."""
        batches, rest = divmod(seen, self.batch)
        own = (batches - worker + self.workers - 1) // self.workers if batches > worker else 0
        return own * self.batch + (rest if batches % self.workers == worker else 0)


def samples_per_rank(total: int, world_size: int, pad: bool) -> int:
    """Samples that every rank gives in an epoch: rounded up and filled from the start, or rounded down.

    Raises:
        RequestError: rounded down, none are left.
    """
    if pad:
        return -(-total // world_size)
    if total and total < world_size:
        raise RequestError(f"{total} kept samples are too few for {world_size} ranks without padding: take pad=True")
    return total // world_size
