"""Small tiles of an archive by row, for a sampler; memory-mapped ones are shared by workers and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from curation.errors import RequestError
from curation.storage import IN_FLIGHT, Folder, local_copy

MAPPED = 4096  # shards that a process keeps mapped


class Stored(Protocol):
    """An array of every sample, a safetensors file a shard: the archive's tiles, or what was made of them."""

    @property
    def folder(self) -> Folder:
        """Where the files lie."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample's array."""

    @property
    def nbytes(self) -> int:
        """Of one sample's array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the arrays."""

    def path(self, shard: str) -> str:
        """Of a shard's file, below the folder."""

    def place(self, shard: str) -> tuple[int, int]:
        """Where in it the arrays begin, in bytes, and how many they are; FileNotFoundError where there is none."""


class TileDataset(Dataset[torch.Tensor]):
    """Item i: row i's tile, a uint8 tensor ``(bands, size, size)``.

    Args:
        tiles: of the archive; or other arrays of every sample, which then are the items.
        shards: all of it, as the catalog names them; rows count their samples in sorted order.
        cache: a local folder for copies of a remote folder's files, each fetched when it is first asked for. Without
            it remote tiles are read by ranges, every time.

    Raises:
        RequestError: a shard has no tiles.
    """

    def __init__(self, tiles: Stored, shards: Sequence[str], cache: Path | None = None) -> None:
        self.tiles, self.shards, self.cache = tiles, sorted(shards), cache
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            places = list(pool.map(self._place, self.shards))
        self.offsets = [offset for offset, _ in places]
        self.starts = np.cumsum([0, *(count for _, count in places)])
        self._paths: dict[int, Path] = {}  # of the shards asked for so far

    def __len__(self) -> int:
        """Rows of the archive."""
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self.read([row])[0])

    def __getitems__(self, rows: Sequence[int]) -> list[torch.Tensor]:
        """A batch, as a DataLoader asks for it."""
        return list(torch.from_numpy(self.read(rows)))

    def read(self, rows: ArrayLike) -> NDArray[Any]:
        """The tiles of some rows, ``(n, bands, size, size)``, in their order.

        Raises:
            RequestError: there is no such row.
            AccessError: they could not be read.
        """
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise RequestError(f"rows {wanted.min()} to {wanted.max()} are asked for of {len(self)}")
        found = np.empty((len(wanted), *self.tiles.shape), self.tiles.dtype)
        shard, local = self.locate(wanted)
        for number in np.unique(shard):
            own = np.flatnonzero(shard == number)
            found[own] = self._tiles(int(number), local[own])
        return found

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The number of each row's shard, and the row there."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return shard, rows - self.starts[shard]

    def _tiles(self, number: int, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Of rows of one shard."""
        folder, path = self.tiles.folder, self.tiles.path(self.shards[number])
        if not folder.local and self.cache is None:
            begins = (self.offsets[number] + rows * self.tiles.nbytes).tolist()
            data = folder.read_ranges(path, [(begin, begin + self.tiles.nbytes) for begin in begins])
            return np.frombuffer(b"".join(data), self.tiles.dtype).reshape(-1, *self.tiles.shape)
        if number not in self._paths:
            self._paths[number] = local_copy(folder, path, self.cache)
        count = int(self.starts[number + 1] - self.starts[number])
        shape = count, *self.tiles.shape
        found: NDArray[Any] = _mapped(self._paths[number], self.offsets[number], self.tiles.dtype, shape)[rows]
        return found

    def _place(self, shard: str) -> tuple[int, int]:
        try:
            return self.tiles.place(shard)
        except FileNotFoundError as error:
            raise RequestError(f"{shard} has no tiles in {self.tiles.folder.public()}: make them first") from error


@lru_cache(MAPPED)
def _mapped(path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return np.memmap(path, dtype, "r", offset, shape)
