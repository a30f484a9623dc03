"""Latents of a whole archive, computed once: all that follows the autoencoder reads them and no pixels (Ray).

One safetensors file a shard, ``distilled/latents/<id>/<shard>.safetensors``, rows as in the shard's catalog file:
``mean`` and ``std``, float16 (n, c, h, w). Its header names the content that the shard's tiles were made from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import safetensors.numpy
import torch
from numpy.typing import NDArray

from curation.catalog.store import chunks
from curation.catalog.tiles import Tiles, header_of
from curation.distillation.models import CACHE, fetched, id_of
from curation.distillation.pool import Maker, Pool
from curation.manifests.exchange import submit
from curation.runs import stage
from curation.storage import Folder
from curation.training.dataset import TileDataset

log = logging.getLogger("curation")

VERSION = 1  # raise when the same tiles would get other latents
BATCH = 16  # tiles a forward, always: the bits depend on it
CHECKED = 500  # shards looked at in one task

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Derived:
    """Arrays of every sample that were made from its tile, a file a shard.

    Attributes:
        folder: that the files lie in.
    """

    folder: Folder

    def path(self, shard: str) -> str:
        """Where a shard's file lies, below the folder."""
        return f"{shard}.safetensors"

    def digest(self, shard: str) -> str | None:
        """Of the content that the shard's tiles were made from; ``None`` where there is no file."""
        try:
            return str(header_of(self.folder, self.path(shard))[1]["__metadata__"]["digest"])
        except (FileNotFoundError, KeyError, ValueError):
            return None

    def publish(self, shard: str, arrays: dict[str, NDArray[Any]], tiles: Tiles) -> None:
        """Write a shard's arrays, rows as in its tiles."""
        data = safetensors.numpy.save(arrays, {"digest": tiles.digest(shard) or ""})
        self.folder.publish(self.path(shard), data)


def derive(
    made: Derived,
    tiles: Tiles,
    shards: Sequence[str],
    maker: Callable[..., Maker],
    arguments: Sequence[Any],
    pool: Pool,
) -> None:
    """Make what is wanting of some shards' arrays.

    Args:
        made: where they go.
        tiles: of the archive.
        shards: all of it.
        maker: a class whose ``make(shard)`` publishes a shard's file.
        arguments: that it is made with.
        pool: room for actors.
    """
    looks = [submit(_wanting, made, tiles, list(part)) for part in chunks(shards, CHECKED)]
    wanting = [shard for part in ray.get(looks) for shard in part]
    name = made.folder.base.split("/")[-2]
    if wanting:
        log.info("%s: %d of %d shards to make", name, len(wanting), len(shards))
    with stage(name, len(wanting), "shards") as done:
        for _ in pool.work(maker, arguments, wanting):
            done(1)


def _wanting(made: Derived, tiles: Tiles, shards: list[str]) -> list[str]:
    """Those without current arrays."""
    return [shard for shard in shards if made.digest(shard) != (tiles.digest(shard) or "")]


@dataclass(frozen=True)
class Latents(Derived):
    """The latents of a catalog.

    Attributes:
        shape: (c, h, w) of one.
    """

    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Moment:
    """The means, or the standard deviations, of all latents, as `TileDataset` reads them."""

    latents: Latents
    name: str
    dtype = np.dtype(np.float16)

    @property
    def folder(self) -> Folder:
        """Of the latents."""
        return self.latents.folder

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one latent."""
        return self.latents.shape

    @property
    def nbytes(self) -> int:
        """Of one latent."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def path(self, shard: str) -> str:
        """Of a shard's file."""
        return self.latents.path(shard)

    def place(self, shard: str) -> tuple[int, int]:
        """Where they begin in it, and how many they are."""
        start, header = header_of(self.folder, self.path(shard))
        tensor = header[self.name]
        return start + int(tensor["data_offsets"][0]), int(tensor["shape"][0])


class LatentDataset:
    """Latents by row, memory-mapped.

    Args:
        latents: of the archive.
        shards: all of it; rows count their samples in sorted order, as `TileDataset`'s do.

    Raises:
        RequestError: a shard has no latents.
    """

    def __init__(self, latents: Latents, shards: Sequence[str]) -> None:
        self.mean, self.std = (TileDataset(Moment(latents, name), shards, CACHE) for name in ("mean", "std"))

    def read(self, rows: Any) -> tuple[Floats, Floats]:
        """Mean and standard deviation of some rows, each (n, c, h, w)."""
        return self.mean.read(rows).astype(np.float32), self.std.read(rows).astype(np.float32)


def build_latents(
    tiles: Tiles, shards: Sequence[str], autoencoder: Folder, shape: tuple[int, int, int], workspace: Folder, pool: Pool
) -> Latents:
    """Encode the shards that have no latents yet, in a pool of actors.

    Args:
        tiles: of the archive.
        shards: all of it.
        autoencoder: ``distilled/models/<id>/autoencoder``.
        shape: of a latent.
        workspace: where they go.
        pool: room for actors; its thread count is one of the things that decide the bits.

    Raises:
        RequestError: latents that are there are of another numeric profile.
    """
    made_of = [VERSION, BATCH, pool.threads, id_of(tiles.folder), id_of(autoencoder.parent)]
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    made = Latents(workspace.child(f"distilled/latents/{name}"), shape)
    derive(made, tiles, shards, LatentEncoder, (made, tiles, autoencoder, pool), pool)
    return made


class LatentEncoder:
    """An actor with the autoencoder.

    Args:
        latents: to be made.
        tiles: of the archive.
        autoencoder: its folder.
        pool: that it is in.
    """

    def __init__(self, latents: Latents, tiles: Tiles, autoencoder: Folder, pool: Pool) -> None:
        from curation.distillation.autoencoder import Autoencoder  # diffusers takes seconds to import, and few need it

        self.latents, self.tiles = latents, tiles
        self.device = pool.begin(latents.folder)
        self.autoencoder = Autoencoder.load(fetched(autoencoder), str(self.device))

    def make(self, shard: str) -> None:
        """Publish one shard's latents, which are held in memory."""
        _, count = self.tiles.place(shard)
        mean, std = (np.empty((count, *self.latents.shape), np.float16) for _ in range(2))
        for start in range(0, count, BATCH):
            some = self.tiles.read(shard, slice(start, start + BATCH))
            full = np.concatenate([some, np.repeat(some[:1], BATCH - len(some), axis=0)])
            found = self.autoencoder.encode(torch.from_numpy(full).to(self.device))
            for moment, values in zip((mean, std), found, strict=True):
                moment[start : start + BATCH] = values[: len(some)].cpu().numpy()
        self.latents.publish(shard, {"mean": mean, "std": std}, self.tiles)
