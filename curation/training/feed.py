"""The kept tiles as a Ray Data set, which a Ray Train loop reads pass after pass, each by the keep-index of then.

The set is a fixed number of slots. In a pass each slot's task reads an equal, contiguous part of the kept rows; which
part, and its order, are drawn from seed, version and pass. What pass it is, a small actor says: the loop tells it.
"""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from curation.catalog.tiles import Tiles
from curation.errors import RequestError
from curation.training.dataset import TileDataset
from curation.training.index import KeepIndex
from curation.training.sampler import drawn

BLOCK_BYTES = 32 << 20  # of the tiles that a task reads, at most
MOST = 10_000  # tasks that Ray Data is handed; larger archives get larger blocks


class KeptTiles:
    """Rows, weights and tiles of a pass. It can be sent to the workers, which share the pass.

    Args:
        tiles: of the archive.
        shards: all of it, as the catalog names them.
        index: what is kept in pass 0; tasks on other machines read its files anew.
        seed: of the order.
        cache: a local folder on each machine for copies of remote tiles.

    Raises:
        RequestError: a shard has no tiles; the index is of another archive.
    """

    def __init__(
        self, tiles: Tiles, shards: Sequence[str], index: KeepIndex, *, seed: int, cache: Path | None = None
    ) -> None:
        self.tiles = TileDataset(tiles, shards, cache)
        self.seed = seed
        self.slots = max(1, min(MOST, len(self.tiles), ceil(len(self.tiles) * tiles.nbytes / BLOCK_BYTES)))
        self._pass: Any = ray.remote(num_cpus=0)(_Pass).remote()
        self.set_pass(0, index)

    def set_pass(self, number: int, index: KeepIndex) -> None:
        """Say what the next pass is; by one rank, before it iterates: the others' pass begins when its own does.

        Raises:
            RequestError: the index is of another archive.
        """
        if index.total != len(self.tiles):
            raise RequestError(f"the keep-index is of {index.total} samples, the tiles are of {len(self.tiles)}")
        ray.get(self._pass.set.remote(number, index))

    def dataset(self) -> "ray.data.Dataset":
        """Columns ``row`` int32, ``weight`` float32, ``tile`` uint8 (bands, size, size).

        Read whole it has one order, in which each of the pass's rows comes once. For Ray Train, or after
        ``streaming_split``, who gets which block depends on who is ready; all ranks together get each row once (with
        ``equal=True``, which is Ray Train's, but for the fewer than the ranks that do not divide).
        """
        read: Any = self._read  # Ray's types differ with what else is installed
        dataset = ray.data.range(self.slots, override_num_blocks=self.slots).map_batches(read, batch_size=None)
        dataset.context.execution_options.preserve_order = True
        return dataset

    def _read(self, slots: Any) -> dict[str, Any]:
        """The samples of some slots."""
        number, index = ray.get(self._pass.get.remote())
        parts = drawn(self.seed, index.version, number, "parts").permutation(self.slots)
        places: list[NDArray[np.int64]] = []
        for slot in slots["id"].tolist():
            own = np.arange(*(int(part) * index.kept // self.slots for part in (parts[slot], parts[slot] + 1)))
            places.append(drawn(self.seed, index.version, number, slot).permutation(own))
        mixed = np.concatenate(places)
        rows, weights = index.at(mixed)
        return {"row": rows, "weight": weights, "tile": self.tiles.read(rows)}


class _Pass:
    """What all tasks of a pass must know."""

    def set(self, number: int, index: KeepIndex) -> None:
        """A new pass."""
        self.now = number, index

    def get(self) -> tuple[int, KeepIndex]:
        """The pass."""
        return self.now
