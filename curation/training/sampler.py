"""A torch sampler over the keep-index: one shuffled order a pass, the same on every rank, from any position."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from curation.errors import RequestError
from curation.storage import Folder
from curation.training.index import BLOCK, KeepIndex, Rows, Weights, read_index
from curation.training.ranks import agreed

BUCKETS = 256  # of ten million rows each then fits a core's cache
TOLD = 1 << 14  # rows turned into Python numbers at once


class KeptSampler(Sampler[int]):
    """Gives the kept rows, once a pass over all ranks together, in an order drawn from seed, version and pass.

    Rank r of W takes each W-th from the r-th on. All give equal counts: where the kept rows do not divide, the fewer
    than W that are missing are the pass's first ones once more.

    Args:
        index: what is kept; or the folder of a keep-index's versions, of which each pass takes the newest.
        seed: of the order.
        rank, world: which part; by default what ``torch.distributed`` says. Then all ranks must make the sampler,
            and call :meth:`set_pass` and :meth:`load_state_dict`, together: they are held to one index.
        cache: a local folder for copies of a remote folder's files.

    Raises:
        RequestError: something asked for cannot be.
        CurationError: the ranks see different indexes.
    """

    def __init__(
        self,
        index: KeepIndex | Folder,
        *,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        cache: Path | None = None,
    ) -> None:
        self.seed, self.cache = seed, cache
        self.rank, self.world, self.together = _place(rank, world)
        self.folder = index if isinstance(index, Folder) else None
        self.number = 0  # of the pass
        self._turn = 0  # counts the moves from pass to pass
        self._start, self._loaded = 0, False  # position that the pass begins at, and whether it was just loaded
        self._order: Rows | None = None
        self._checksum = 0
        self._move(0, index if isinstance(index, KeepIndex) else None)

    def set_pass(self, number: int, index: KeepIndex | None = None) -> None:
        """Go to a pass, before iterating it; a position that was loaded in this very pass stays.

        Args:
            number: of the pass.
            index: what is kept from now on. Without it: what was; of a folder the newest version that rank 0 sees.

        Raises:
            CurationError: the ranks see different indexes.
        """
        if self._loaded and number == self.number and (index is None or index.sha256 == self.index.sha256):
            self._loaded = False
        else:
            self._move(number, index or (None if self.folder else self.index))

    def __len__(self) -> int:
        """Rows that this rank gives in what is left of the pass."""
        return -(-(self.index.kept - self._start) // self.world)

    def __iter__(self) -> Iterator[int]:
        """What is left of the pass."""
        turn, first, kept = self._turn, self._start + self.rank, self.index.kept
        for begin in range(0, len(self), TOLD):
            if turn != self._turn:
                raise RequestError("the sampler went to another pass while one was read: make a new iterator of it")
            end = min(begin + TOLD, len(self))
            positions = np.arange(first + begin * self.world, first + end * self.world, self.world)
            yield from self.order[positions % kept].tolist()

    @property
    def order(self) -> Rows:
        """The pass's order of all ranks, int32 (kept,)."""
        if self._order is None:
            self._order = shuffled(self.index, self.seed, self.number)
            self._checksum = zlib.crc32(self._order.data)
        return self._order

    def weights_of(self, rows: ArrayLike) -> Weights:
        """1 / inclusion probability of some rows of this pass, float32 (n,); see :meth:`KeepIndex.weights_of`."""
        return self.index.weights_of(rows)

    def state_dict(self, taken: int) -> dict[str, Any]:
        """Where training stands, as plain values; the same on every rank that took as many.

        Args:
            taken: samples that this rank has trained on since the pass began or was gone on with. (What the sampler
                gave says nothing: a DataLoader's workers ask in advance.)

        Raises:
            RequestError: there were not that many.
        """
        if not 0 <= taken <= len(self):
            raise RequestError(f"taken={taken}: this rank has {len(self)} samples in what was left of this pass")
        position = min(self.index.kept, self._start + taken * self.world)
        self.order  # noqa: B018 - its checksum is wanted
        said = {"seed": self.seed, "version": self.index.version, "sha256": self.index.sha256, "pass": self.number}
        return {**said, "position": position, "order": self._checksum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, with any number of ranks: what is left of the pass is dealt out among them.

        Raises:
            RequestError: it was taken with another seed or index: the order would be another.
            CurationError: the ranks see different indexes.
        """
        if state["seed"] != self.seed:
            raise RequestError(f"the state was taken with seed={state['seed']}; this sampler has seed={self.seed}")
        known = self.folder is None or state["sha256"] == self.index.sha256
        self._move(state["pass"], self.index if known else None, state["version"])
        if state["sha256"] != self.index.sha256:
            raise RequestError(
                f"the state was taken with version {state['version']} of a keep-index, {state['sha256'][:8]}…; this is "
                f"version {self.index.version}, {self.index.sha256[:8]}…: go on with the index that was trained on"
            )
        if state != self.state_dict(0) | {"position": state["position"]}:
            raise RequestError("this NumPy shuffles otherwise than the one that the state was taken with: use that one")
        self._start, self._loaded = int(state["position"]), True

    def _move(self, number: int, index: KeepIndex | None, version: int | None = None) -> None:
        if self.together:
            index = agreed(index, self._read, version)
        self.index = index or self._read(version)
        self.number, self._start, self._loaded = number, 0, False
        self._turn += 1
        self._order = None

    def _read(self, version: int | None) -> KeepIndex:
        assert self.folder is not None
        return read_index(self.folder, version, self.cache)


def drawn(seed: int, version: int, number: int, use: str | int) -> np.random.Generator:
    """The generator of a seed, a version and a pass for one use, seeded by their hash."""
    name = json.dumps([seed, version, number, use]).encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.blake2b(name, digest_size=16).digest())))


def shuffled(index: KeepIndex, seed: int, number: int) -> Rows:
    """The kept rows in an order drawn from (seed, version, pass), int32 (kept,); any order is equally likely.

    Each row goes to one of some buckets, and each bucket is shuffled in place (Rao 1961; Sandelius 1962): in a core's
    cache, which makes it some times as fast as one shuffle of all, and needs no memory but the result's.
    """
    size = sum((_counts(own) for own in _buckets(index, seed, number)), np.zeros(BUCKETS, np.int64))
    ends = np.cumsum(size)
    fill, order = ends - size, np.empty(index.kept, np.int32)
    for block, own in zip(index.blocks(), _buckets(index, seed, number), strict=True):
        counts = _counts(own)
        pieces = np.split(block[np.argsort(own, kind="stable")], np.cumsum(counts)[:-1])
        for to, piece in zip(fill.tolist(), pieces, strict=True):
            order[to : to + len(piece)] = piece
        fill += counts
    draw = drawn(seed, index.version, number, "order")
    for bucket in np.split(order, ends[:-1]):
        draw.shuffle(bucket)
    return order


def _buckets(index: KeepIndex, seed: int, number: int) -> Iterator[NDArray[np.uint8]]:
    """Of each block of rows the buckets; drawn again each time, for to hold them would take a byte a row."""
    draw = drawn(seed, index.version, number, "buckets")
    return (draw.integers(0, BUCKETS, min(BLOCK, index.kept - at), np.uint8) for at in range(0, index.kept, BLOCK))


def _counts(buckets: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(buckets, minlength=BUCKETS)


def _place(rank: int | None, world: int | None) -> tuple[int, int, bool]:
    """Rank, of how many, and whether ``torch.distributed`` said so."""
    if (rank is None) != (world is None):
        raise RequestError("give rank and world together, or neither")
    if rank is not None and world is not None:
        if not 0 <= rank < world:
            raise RequestError(f"rank={rank}, world={world}: ranks count from 0")
        return rank, world, False
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size(), dist.get_world_size() > 1
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RequestError("make the sampler after torch.distributed.init_process_group, or give rank and world")
    return 0, 1, False
