"""Draws a version of the keep-index with the network as it is now, on Ray resources of its own (imports Ray).

``draws/<version>/<digest of the encoder>/`` below the run's folder holds what is done: the vectors of a group of shards
a file, complete or absent, and removed once the index is there. So a draw that was killed goes on, and one that is
finished is not made again. Groups and luck depend on the archive and the seed: as many workers as there are, the same
index.
"""

import hashlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util import ActorPool

from curation.catalog.store import CatalogStore
from curation.catalog.tiles import Tiles
from curation.clustering.actors import ActorRows
from curation.clustering.hierarchy import FLAT, fit_in_cells
from curation.clustering.nearest import Floats, Vectors, nearest, one_thread
from curation.encoders.base import in_batches
from curation.errors import CurationError, RequestError
from curation.runtime import limit_threads
from curation.selection.sampling import Words, split_ids
from curation.storage import Folder
from curation.training import draws
from curation.training.draws import Leaves
from curation.training.index import versions, write_index
from curation.training.settings import PruneConfig

Embed = Callable[[NDArray[np.uint8]], Floats]  # (n, bands, size, size) -> (n, d)
Load = Callable[[Folder, str, str], Embed]  # of a folder, an encoder's path below it (or its URL there), a device

BATCH = 256  # tiles a forward, always: padded where there are fewer
ROWS = 8192  # rows a group, about


@dataclass(frozen=True)
class RedrawSpec:
    """What all draws of a run have in common.

    Attributes:
        tiles, store: of the archive.
        shards: all of it; rows count their samples in sorted order.
        folder: of the run; the index is in ``index/`` below it.
        prune: ``pretrain.prune.*``, a strategy but ``none``.
        seed: of the run.
        load: opens an encoder of the run's folder in a worker (`export.open_encoder`).
        workers: how many at once.
        cpus, gpus: of each worker; the encoder runs on CUDA where it has a part of a GPU.
        threads: of each worker; fixed, for bits depend on it.

    Raises:
        RequestError: fewer samples would be embedded than are to be kept.
    """

    tiles: Tiles
    store: CatalogStore
    shards: tuple[str, ...]
    folder: Folder
    prune: PruneConfig
    seed: int
    load: Load
    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.prune.strategy == "balanced" and self.prune.share < self.prune.keep:
            raise RequestError(
                f"pretrain.prune.share={self.prune.share:g} embeds fewer samples than pretrain.prune.keep="
                f"{self.prune.keep:g} keeps: raise it to that at least"
            )

    @property
    def device(self) -> str:
        """Where encoder and search run."""
        return "cuda" if self.gpus else "cpu"

    @property
    def resources(self) -> dict[str, float]:
        """Of a Ray task or actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


def redraw(spec: RedrawSpec, version: int, encoder: str) -> dict[str, float]:
    """Make a version of the keep-index, unless it is there. To be called as a Ray task, or where Ray runs.

    With ``prune.share`` below 1 only that share of the archive, by hash and another for each version, is embedded, and
    the version is drawn from it; weights count that.

    Args:
        spec: of the run.
        version: from 1.
        encoder: its file, below the run's folder; ``random`` needs none.

    Returns:
        Seconds of ``embedding``, ``clustering`` (with assignment) and ``drawing``, 0 of what was done before.

    Raises:
        CurationError: the encoder gives numbers that are not finite.
        RequestError: too few samples to fit the clusters on.
    """
    seconds = {"embedding": 0.0, "clustering": 0.0, "drawing": 0.0}
    index = spec.folder.child("index")
    place = f"draws/{version:06d}"
    if version in versions(index):
        spec.folder.discard(place)
        return seconds
    prune, groups = spec.prune, groups_of(spec)
    total = groups[-1].stop
    made_of = {"strategy": prune.strategy, "keep": prune.keep, "seed": spec.seed}
    clock = time.perf_counter()
    if prune.strategy == "random":
        ancestors = np.zeros((1, 0), np.int32)
        parts = [_unassigned.options(num_cpus=spec.cpus).remote(spec.store, group) for group in groups]
    else:
        digest = hashlib.sha256(spec.folder.read(encoder.removeprefix(f"{spec.folder.url}/"))).hexdigest()
        made_of |= {"diversity": prune.diversity, "share": prune.share, "sample": prune.sample, "encoder": digest}
        folder = spec.folder.child(f"{place}/{digest[:16]}")
        embedded = embed_all(spec, version, encoder, folder, groups)
        seconds["embedding"], clock = time.perf_counter() - clock, time.perf_counter()
        leaves, made_of["levels"] = _fit(spec, version, folder, groups, embedded)
        ancestors, shared = leaves.ancestors, ray.put(leaves.centroids)
        parts = [_assign.options(**spec.resources).remote(folder, group, shared, spec.device) for group in groups]
        ray.wait(parts, num_returns=len(parts), fetch_local=False)
        seconds["clustering"], clock = time.perf_counter() - clock, time.perf_counter()
    ray.get(_draw.options(num_cpus=spec.cpus).remote(spec, version, index, made_of, ancestors, total, *parts))
    seconds["drawing"] = time.perf_counter() - clock
    spec.folder.discard(place)
    return seconds


# embedding


@dataclass(frozen=True)
class Group:
    """Some shards in sorted order: their rows are ``start`` to ``stop``, those of shard i ``counts[i]``."""

    number: int
    shards: tuple[str, ...]
    counts: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.start + sum(self.counts)

    @property
    def path(self) -> str:
        """Of its vectors."""
        return f"part-{self.number:05}.npz"


def groups_of(spec: RedrawSpec) -> list[Group]:
    """The shards in runs of about `ROWS` rows.

    Raises:
        RequestError: there is no sample.
    """
    shards = sorted(spec.shards)
    counts = ray.get(_counts.options(num_cpus=spec.cpus).remote(spec.tiles, shards))
    if not sum(counts):
        raise RequestError("the archive has no sample to train on")
    groups: list[Group] = []
    first, start = 0, 0
    for stop in range(1, len(shards) + 1):
        rows = sum(counts[first:stop])
        if rows >= ROWS or stop == len(shards):
            groups.append(Group(len(groups), tuple(shards[first:stop]), tuple(counts[first:stop]), start))
            first, start = stop, start + rows
    return groups


def embed_all(spec: RedrawSpec, version: int, encoder: str, folder: Folder, groups: Sequence[Group]) -> int:
    """Write the vectors of every group whose file is not there; how many rows were embedded in all."""
    options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, **spec.resources}
    actor = ray.remote(**options)(_Embedder)
    actors: list[Any] = [actor.remote(spec, version, encoder, folder) for _ in range(min(spec.workers, len(groups)))]
    pool: Any = ActorPool(actors)
    rows = sum(pool.map_unordered(lambda worker, group: worker.embed.remote(group), groups))
    for one in actors:
        ray.kill(one)  # the next actors need the room
    return int(rows)


class _Embedder:
    """Embeds groups of shards in an actor."""

    def __init__(self, spec: RedrawSpec, version: int, encoder: str, folder: Folder) -> None:
        self.spec, self.version, self.encoder, self.folder = spec, version, encoder, folder
        self.forward: Embed | None = None

    def embed(self, group: Group) -> int:
        """Publish a group's vectors unless they are there; how many."""
        if not self.folder.exists(group.path):
            limit_threads(self.spec.threads)
            self.forward = self.forward or self.spec.load(self.spec.folder, self.encoder, self.spec.device)
            words = _words(self.spec.store, group)
            chosen = np.ones(len(words), bool)
            if self.spec.prune.share < 1:
                chosen = draws.in_share(words, self.spec.prune.share, self.spec.seed, self.version)
            vectors = self._vectors(group, chosen)
            rows = (group.start + np.flatnonzero(chosen)).astype(np.int32)
            buffer = io.BytesIO()
            np.savez(buffer, rows=rows, words=words[chosen], vectors=vectors)
            self.folder.publish(group.path, buffer.getvalue())
        return len(_read(self.folder, group, "rows"))

    def _vectors(self, group: Group, chosen: NDArray[np.bool_]) -> NDArray[np.float16]:
        """Those of the chosen rows; a shard's tiles and a batch are in memory at once."""
        parts, first, waiting = [], 0, np.zeros((0, *self.spec.tiles.shape), np.uint8)
        for shard, count in zip(group.shards, group.counts, strict=True):
            tiles = np.concatenate([waiting, self.spec.tiles.read(shard)[chosen[first : first + count]]])
            first += count
            stop = len(tiles) if first == len(chosen) else len(tiles) - len(tiles) % BATCH
            for start in range(0, stop, BATCH):
                parts.append(
                    in_batches(tiles[start : min(start + BATCH, stop)], BATCH, self._checked).astype(np.float16)
                )
            waiting = tiles[stop:]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float16)

    def _checked(self, tiles: NDArray[np.uint8]) -> Floats:
        assert self.forward is not None
        vectors = self.forward(tiles)
        if not np.isfinite(vectors).all():
            raise CurationError(
                f"the encoder of draw {self.version} gives numbers that are not finite: its training has diverged, "
                "lower pretrain.rate"
            )
        return vectors


@ray.remote
def _counts(tiles: Tiles, shards: Sequence[str]) -> list[int]:
    return [tiles.place(shard)[1] for shard in shards]


def _words(store: CatalogStore, group: Group) -> Words:
    """The upper halves of a group's sample ids, uint64, by row."""
    parts = [split_ids(store.read(shard, ["sample_id"])["sample_id"])[0] for shard in group.shards]
    words = np.concatenate(parts)
    if len(words) != sum(group.counts):
        raise CurationError(
            f"the catalog has {len(words)} samples where there are {sum(group.counts)} tiles: run again"
        )
    return words


def _read(folder: Folder, group: Group, name: str) -> NDArray[Any]:
    """``rows`` int32 (n,), ``words`` uint64 (n,) or ``vectors`` float16 (n, d) of a group."""
    with np.load(io.BytesIO(folder.read(group.path)), allow_pickle=False) as arrays:
        array: NDArray[Any] = arrays[name]
        return array


# clustering and drawing


@dataclass(frozen=True)
class Fitted:
    """Loads the rows of a group that clusters are fitted on."""

    folder: Folder
    group: Group
    chosen: Callable[[Words], NDArray[np.bool_]]

    def __call__(self) -> Vectors:
        """``(n, d)`` float16."""
        vectors: Vectors = _read(self.folder, self.group, "vectors")[
            self.chosen(_read(self.folder, self.group, "words"))
        ]
        return vectors


def _fit(
    spec: RedrawSpec, version: int, folder: Folder, groups: Sequence[Group], embedded: int
) -> tuple[Leaves, list[int]]:
    """The hierarchy, and how many clusters each of its levels has, from the top."""
    chosen = partial(draws.sampled, sample=spec.prune.sample, total=embedded, seed=spec.seed, version=version)
    seed = draws.fit_seed(spec.seed, version)
    loaders = [Fitted(folder, group, chosen) for group in groups]
    points = ActorRows(loaders, seed, spec.workers, spec.device, **spec.resources)
    levels = draws.choose_levels(spec.prune.levels, embedded, points.rows)
    if levels[-1] <= FLAT:
        return draws.fit(points, levels, spec.seed, version), levels
    centroids, _ = fit_in_cells(points, levels[-1], seed)
    return draws.raise_levels(centroids, levels, seed), levels


@ray.remote
def _unassigned(store: CatalogStore, group: Group) -> dict[str, NDArray[Any]]:
    """A group's rows, all of one cluster."""
    words = _words(store, group)
    return {"rows": np.arange(group.start, group.stop, dtype=np.int32), "words": words, **_nowhere(len(words))}


def _nowhere(n: int) -> dict[str, NDArray[Any]]:
    return {"leaf": np.zeros(n, np.int32), "distance": np.zeros(n, np.float32)}


@ray.remote
def _assign(folder: Folder, group: Group, centroids: Floats, device: str) -> dict[str, NDArray[Any]]:
    """A group's embedded rows with their nearest centroids."""
    with one_thread():
        vectors = _read(folder, group, "vectors")
        leaf, distance = nearest(vectors, centroids, device) if len(vectors) else _nowhere(0).values()
    rows, words = (_read(folder, group, name) for name in ("rows", "words"))
    return {"rows": rows, "words": words, "leaf": leaf, "distance": distance}


@ray.remote
def _draw(
    spec: RedrawSpec,
    version: int,
    index: Folder,
    made_of: dict[str, Any],
    ancestors: NDArray[np.int32],
    total: int,
    *parts: dict[str, NDArray[Any]],
) -> None:
    """Draw from all parts, and write the index; takes about 100 bytes a sample."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    prune = spec.prune
    wanted = draws.budget(prune.keep, total)
    made = draws.draw(
        whole["leaf"], whole["distance"], whole["words"], ancestors, wanted, prune.diversity, spec.seed, version
    )
    share = prune.share if prune.strategy == "balanced" else 1.0
    write_index(index, version, whole["rows"][made.rows], made.weights / np.float32(share), total, made_of)
