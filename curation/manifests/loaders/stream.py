"""The kept samples of one epoch as a stream: this rank's, this worker's, in the epoch's order, from any position.

The order is known before anything is read, so a position is one number: a
reader that goes on from it reads again what its buffer held, and gives the
same samples in the same order as one that was never stopped.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.errors import AccessError, BadSample, RequestError
from curation.manifests.loaders.decoded import Decoder
from curation.manifests.loaders.fetch import Fetcher, Members
from curation.manifests.loaders.kept import Kept
from curation.manifests.loaders.order import Lanes, Order, Run, samples_per_rank
from curation.manifests.reading import ManifestReader

_EPOCH, _START, _WORKERS = range(3)  # places in the cursor


class SampleStream:
    """Exactly the kept samples, once an epoch over all ranks and workers together.

    Args:
        manifest: an open manifest, or the URL of one.
        budget: only the first that many samples by ``rank``.
        members: ``all``: every image and sidecar of a sample; ``image``: only the image member that the
            manifest speaks of, which needs fewer bytes and no catalog.
        roots: root name to URL, where the archive has moved since the manifest was made.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.
        seed: of the order.
        shuffle: samples in the shuffle buffer; the shards are shuffled too. 0: the manifest's order.
        rank, world_size: which part of the epoch; by default as ``torch.distributed`` or the environment
            (``RANK``, ``WORLD_SIZE``) say, else all of it.
        pad: ranks give equal counts, ``True``: rounded up, the last rank's missing samples taken again
            from the start of the epoch (fewer than ``world_size`` in all); ``False``: rounded down, as
            many left out at the end of the epoch.
        batch_size: samples that the DataLoader collects, so that its workers hold whole batches.

    Raises:
        RequestError: something asked for cannot be.
        AccessError: while iterating: a sample has gone or changed; the message names it.
    """

    def __init__(
        self,
        manifest: ManifestReader | str,
        *,
        budget: int | None = None,
        members: Members = "all",
        roots: dict[str, str] | None = None,
        storage: dict[str, Any] | None = None,
        seed: int = 0,
        shuffle: int = 1000,
        rank: int | None = None,
        world_size: int | None = None,
        pad: bool = True,
        batch_size: int = 1,
    ) -> None:
        self.manifest = ManifestReader(manifest, storage) if isinstance(manifest, str) else manifest
        self.budget, self.members, self.roots, self.storage = budget, members, roots or {}, storage
        self.seed, self.shuffle, self.pad, self.batch_size = seed, shuffle, pad, batch_size
        self.rank, self.world_size = _place(rank, world_size)
        if shuffle < 0 or batch_size < 1:
            raise RequestError(f"shuffle={shuffle}, batch_size={batch_size}: take at least 0 and 1")
        self.index = self.manifest.shards(budget)
        self.samples = samples_per_rank(int(self.index.counts.sum()), self.world_size, pad)
        self._cursor = _shared_cursor()
        self._own: tuple[int, int] | None = None  # epoch and position that were loaded in this worker, for itself
        self._epoch = self._seen = 0
        self._fetcher()  # says now what is wrong with the request

    def __len__(self) -> int:
        """Samples that this rank gives in an epoch."""
        return self.samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, before iterating; the position that was loaded stays if it is of this epoch."""
        if int(self._cursor[_EPOCH]) != epoch:
            self.move(epoch, 0)

    def __iter__(self) -> Iterator[Any]:
        """What is left of this rank's (in a DataLoader's worker: this worker's) epoch."""
        worker, workers = _worker() or [0, 1]
        epoch, start = int(self._cursor[_EPOCH]), int(self._cursor[_START])
        self._cursor[_WORKERS] = workers if _worker() else 0
        if not _worker():
            self._cursor[_START] = 0  # the next iteration begins at the beginning
        lanes = Lanes(self.samples, self.batch_size, workers)
        if self._own is not None:
            (epoch, given), self._own = self._own, None
        else:
            if workers > 1 and start % self.batch_size and start != self.samples:
                raise RequestError(f"{start} samples are no whole batches of {self.batch_size}: set batch_size")
            worker = (worker + start // self.batch_size) % workers  # whose turn it is comes first
            given = lanes.given(worker, start)
        self._epoch, self._seen = epoch, given
        first = self.rank * self.samples + lanes.start(worker)
        order = Order(self.seed, epoch, self.shuffle)
        runs = order.runs(self.index, first, first + lanes.length(worker))
        return self._give(runs, order.shuffled(first, first + lanes.length(worker))[given:])

    def _give(self, runs: Iterable[Run], wanted: NDArray[np.int64]) -> Iterator[Any]:
        decoder = self.decoder()
        arrive = partial(self.arrive, decoder=decoder)
        for kept in in_order(self._fetcher(), runs, wanted, self.budget, arrive):
            self._seen += 1
            with changed(kept):
                given = self.convert(kept, decoder)
            yield given

    def decoder(self) -> Decoder:
        """What makes pixels of the samples of one iteration."""
        return Decoder(self.manifest.archive)

    def arrive(self, kept: Kept, decoder: Decoder) -> Kept:
        """A sample as the shuffle buffer holds it; they come in the manifest's order."""
        return kept

    def convert(self, kept: Kept, decoder: Decoder) -> Any:
        """What is given for a sample.

        Raises:
            BadSample: it no longer decodes.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands in the epoch, as plain values; the same on every rank.

        Raises:
            RequestError: a DataLoader's workers do the reading, so this process does not know.
        """
        if not _worker() and int(self._cursor[_WORKERS]):
            raise RequestError("the DataLoader's workers hold the position: iterate dataset.loader(…), and ask that")
        return {**self.identity(), "epoch": self._epoch, "seen": self._seen, "worker": _worker()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            RequestError: it was taken from another stream: the order would not be the same.
        """
        check_same({**self.identity(), "worker": _worker()}, state)
        if _worker():
            self._own = state["epoch"], state["seen"]
        else:
            self.move(state["epoch"], state["seen"])

    def identity(self) -> dict[str, Any]:
        """What decides the order, besides the epoch."""
        return {
            "manifest": self.manifest.id,
            "budget": self.budget,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "world_size": self.world_size,
            "pad": self.pad,
        }

    def move(self, epoch: int, start: int) -> None:
        """Let the next iteration begin at a position of an epoch."""
        self._cursor[_EPOCH], self._cursor[_START] = epoch, start
        self._epoch, self._seen = epoch, start

    def _fetcher(self) -> Fetcher:
        return Fetcher(self.manifest, self.members, self.roots, self.storage)


def in_order(
    fetcher: Fetcher,
    runs: Iterable[Run],
    order: NDArray[np.int64],
    budget: int | None,
    arrive: Callable[[Kept], Kept] = lambda kept: kept,
) -> Iterator[Kept]:
    """Samples read in sequence, and given in another order.

    Args:
        fetcher: reads them.
        runs: where the samples lie, in sequence.
        order: positions of the wanted ones in the order of giving, int64 (n,).
        budget: as of the stream.
        arrive: what to make of a sample before it is held.
    """
    left = np.sort(order)
    arriving = zip(left.tolist(), fetcher.read(_rows(fetcher.manifest, runs, left, budget)), strict=True)
    held: dict[int, Kept] = {}
    for position in order.tolist():
        while position not in held:
            came, kept = next(arriving)
            held[came] = arrive(kept)
        yield held.pop(position)


def _rows(
    manifest: ManifestReader, runs: Iterable[Run], left: NDArray[np.int64], budget: int | None
) -> Iterator[pa.Table]:
    """The manifest's rows at the positions that are left, a run at a time."""
    for run in runs:
        begin, end = np.searchsorted(left, [run.position, run.position + run.count])
        if begin < end:
            yield manifest.rows(*run.rows, budget).take(pa.array(left[begin:end] - run.position + run.first))


@contextmanager
def changed(kept: Kept) -> Iterator[None]:
    """What no longer decodes has changed since the manifest was made.

    Raises:
        AccessError: in the place of BadSample; it names the sample.
    """
    try:
        yield
    except BadSample as error:
        raise AccessError(f"sample {kept.row['key']!r} of {kept.url} has changed: {error}") from error


def check_same(here: dict[str, Any], state: dict[str, Any]) -> None:
    """Refuse a state that was taken from another order of samples.

    Raises:
        RequestError: it differs, or is no state.
    """
    for name, value in here.items():
        if name not in state or state[name] != value:
            raise RequestError(f"the state was taken with {name}={state.get(name)!r}; this reader has {value!r}")


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size as given, as torch.distributed or the environment say, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise RequestError("give rank and world_size together, or neither")
    if rank is None or world_size is None:
        torch = sys.modules.get("torch")
        if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise RequestError(f"rank={rank}, world_size={world_size}: ranks count from 0")
    return rank, world_size


def _worker() -> list[int] | None:
    """Number of this DataLoader worker, and of how many; ``None`` outside of one."""
    data = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data is not None else None
    return None if info is None else [info.id, info.num_workers]


def _shared_cursor() -> Any:
    """Epoch, position and workers, seen by a DataLoader's workers too where torch is installed."""
    try:
        import torch
    except ImportError:
        return np.zeros(3, np.int64)
    cursor: Any = torch.zeros(3, dtype=torch.int64)
    return cursor.share_memory_()
