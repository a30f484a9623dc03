"""Small tiles of an archive by row, for a sampler: memory-mapped, so that workers and ranks share them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from curation.errors import RequestError
from curation.storage import IN_FLIGHT, local_copy

if TYPE_CHECKING:  # it imports Ray
    from curation.catalog.tiles import Tiles

MAPPED = 4096  # shards that a process keeps mapped


class TileDataset(Dataset[torch.Tensor]):
    """Item i: row i's tile, a uint8 tensor ``(bands, size, size)``.

    Args:
        tiles: of the archive.
        shards: all of it, as the catalog names them; rows count their samples in sorted order.
        cache: a local folder for copies of a remote folder's files, each shard's fetched when it is first asked for.

    Raises:
        RequestError: a shard has no tiles.
    """

    def __init__(self, tiles: Tiles, shards: Sequence[str], cache: Path | None = None) -> None:
        self.tiles, self.shards, self.cache = tiles, sorted(shards), cache
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            counts = list(pool.map(self._count, self.shards))
        self.starts = np.cumsum([0, *counts])
        self._paths: dict[int, Path] = {}  # of the shards asked for so far

    def __len__(self) -> int:
        """Rows of the archive."""
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self.read([row])[0])

    def __getitems__(self, rows: Sequence[int]) -> list[torch.Tensor]:
        """A batch, as a DataLoader asks for it."""
        return list(torch.from_numpy(self.read(rows)))

    def read(self, rows: ArrayLike) -> NDArray[np.uint8]:
        """The tiles of some rows, ``(n, bands, size, size)``, in their order.

        Raises:
            RequestError: there is no such row.
            AccessError: they could not be read.
        """
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise RequestError(f"rows {wanted.min()} to {wanted.max()} are asked for of {len(self)}")
        found = np.empty((len(wanted), self.tiles.bands, self.tiles.size, self.tiles.size), np.uint8)
        shard = np.searchsorted(self.starts, wanted, side="right") - 1
        for number in np.unique(shard):
            own = np.flatnonzero(shard == number)
            found[own] = self._map(int(number))[wanted[own] - self.starts[number]]
        return found

    def _map(self, number: int) -> NDArray[np.uint8]:
        if number not in self._paths:
            self._paths[number] = local_copy(self.tiles.folder, self.tiles.path(self.shards[number]), self.cache)
        count = int(self.starts[number + 1] - self.starts[number])
        return _mapped(self._paths[number], (count, *self.tiles.shape))

    def _count(self, shard: str) -> int:
        try:
            return self.tiles.count(shard)
        except FileNotFoundError as error:
            raise RequestError(f"{shard} has no tiles in {self.tiles.folder.public()}: make them first") from error


@lru_cache(MAPPED)
def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The one array of a safetensors file, its last bytes."""
    return np.memmap(path, np.uint8, "r", offset=path.stat().st_size - int(np.prod(shape)), shape=shape)
