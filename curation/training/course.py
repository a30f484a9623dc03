"""One worker's way through a training: passes over what is kept, draws, probes, checkpoints, the result; no Ray.

Ranks go in step. Rank 0 alone writes, probes and has draws made; the others wait for it at the next step. A checkpoint
has all that what follows depends on, so a training that was killed ends with the same encoder, bit for bit, on one
numeric profile.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist

from curation.errors import RequestError
from curation.evaluation.probe import Features, linear, nearest_neighbours
from curation.storage import Folder
from curation.training import checkpoints
from curation.training.dataset import TileDataset
from curation.training.draws import due
from curation.training.export import Input, encoder_bytes
from curation.training.index import KeepIndex, read_index
from curation.training.journal import Journal
from curation.training.sampler import KeptSampler
from curation.training.settings import PretrainConfig
from curation.training.trainer import Trainer

if TYPE_CHECKING:  # it imports Ray
    from curation.catalog.tiles import Tiles

LOG = 50  # steps from one note to the next
COLLAPSED = 0.1, 1.5  # spread and rank of vectors below which they tell tiles no more apart
COLLAPSE = (
    "the encoder's vectors have collapsed to about one: lower pretrain.rate, raise pretrain.batch, or take another "
    "pretrain.method"
)
ENCODER, RUN = "encoder/encoder.safetensors", "run.json"
PRUNING = ("embedding", "clustering", "drawing")  # seconds that a draw tells of

Draw = Callable[[int, str], Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class SideSet:
    """Labelled tiles for probes.

    Attributes:
        tiles, shards: where they are.
        rows: int64 (n,), see `TileDataset`.
        codes: int64 (n,), classes.
        teaches: bool (n,), which of them the probes learn from; they are judged by the rest.
    """

    tiles: Tiles
    shards: tuple[str, ...]
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    teaches: NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What every worker is told.

    Attributes:
        settings: ``pretrain.*``.
        seed: of first weights, views and orders.
        folder: ``pretrained/<id>``.
        tiles, shards, total: of the archive; ``total`` samples.
        steps: of the whole training.
        what: the encoder's input.
        side: for probes.
        cache: a local folder for copies of remote files.
        mix: whether a checkpoint of another numeric profile may be gone on from.
        made_of: plain values for the encoder's metadata.
    """

    settings: PretrainConfig
    seed: int
    folder: Folder
    tiles: Tiles
    shards: tuple[str, ...]
    total: int
    steps: int
    what: Input
    side: SideSet | None
    cache: Path
    mix: bool
    made_of: dict[str, Any]


class Course:
    """A worker's training, begun or gone on with.

    Args:
        plan: the same on all ranks.
        device: ``cpu`` or ``cuda``, of this worker.
        profile: its numeric profile.
        draw: begins to draw a version with the encoder in a file of the run's folder; what it gives waits for the end,
            and tells the seconds of each part.

    Raises:
        RequestError: the newest checkpoint is of another numeric profile.
    """

    def __init__(self, plan: Plan, device: str, profile: dict[str, str], draw: Draw | None = None) -> None:
        settings, what = plan.settings, plan.what
        self.plan, self.settings, self.profile, self._draw = plan, settings, profile, draw
        self.trainer = Trainer(
            settings,
            len(what.bands),
            what.mean,
            what.std,
            steps=plan.steps,
            seed=plan.seed,
            device=device,
            decibels=what.decibels,
            limits=what.limits,
        )
        self.rank, self.share = self.trainer.rank, settings.batch // self.trainer.world
        self.dataset = TileDataset(plan.tiles, plan.shards, plan.cache)
        self.version, self.pending, self.taken = 0, 0, 0
        self.losses: list[float] = []
        self.costs: dict[str, float] = dict.fromkeys(("training", "probing", *PRUNING), 0.0)
        self.waiting: Callable[[], dict[str, Any]] | None = None
        rows = self._resume()
        self.journal = Journal(plan.folder.child("metrics"), rows, self.trainer.done) if self.rank == 0 else None
        self.since = time.monotonic()

    def run(self) -> None:
        """Train to the end, and write the result."""
        if not self.trainer.done:
            self._probe()
        while self.trainer.done < self.plan.steps:
            for rows, tiles in self._batches():
                self._step(rows, tiles)
                if self.trainer.done == self.plan.steps:
                    break
            else:
                self._next_pass()
        self._finish()

    # training

    def _step(self, rows: list[int], tiles: torch.Tensor) -> None:
        weights = None
        if self.settings.weighted:
            weights = torch.from_numpy(self.sampler.weights_of(rows) / self.mean_weight)
        self.losses.append(self.trainer.step(tiles, weights))
        self.taken += self.share
        self._spent("training")
        done, every = self.trainer.done, self.settings.probe * self.plan.total
        if done == 1 or done % LOG == 0 or done == self.plan.steps:
            self._note()
        seen = done * self.settings.batch
        if done == self.plan.steps or (every and seen // every > (seen - self.settings.batch) // every):
            self._probe()
        if done % self.settings.checkpoint == 0:
            self._save()

    def _batches(self) -> Iterator[tuple[list[int], torch.Tensor]]:
        """This rank's whole batches of what is left of the pass, one read ahead."""
        rows = iter(self.sampler)

        def read(some: list[int]) -> tuple[list[int], torch.Tensor]:
            tiles = torch.from_numpy(self.dataset.read(some))
            return some, tiles.pin_memory() if self.trainer.device.type == "cuda" else tiles

        with ThreadPoolExecutor(1) as pool:

            def ask() -> Any:
                some = list(islice(rows, self.share))
                return pool.submit(read, some) if len(some) == self.share else None

            ahead = ask()
            while ahead:
                ahead, ready = ask(), ahead
                yield ready.result()

    def _next_pass(self) -> None:
        """Draw what is due, and go over what is kept then."""
        if self.settings.prune.strategy != "none":
            self._keep_up()
        self.sampler.set_pass(self.sampler.number + 1, self.index)
        self.taken = 0
        if self.index.kept < self.settings.batch:
            raise RequestError(
                f"pretrain.batch={self.settings.batch} is more than the {self.index.kept} samples that are kept: "
                "lower it, or raise pretrain.prune.keep"
            )

    def _keep(self, version: int) -> None:
        """Open a version of the keep-index."""
        total, folder = self.plan.total, self.plan.folder.child("index")
        if version and self.trainer.world > 1:
            dist.barrier()  # it is there once rank 0 is
        self.version = version
        self.index = read_index(folder, version, self.plan.cache) if version else KeepIndex.full(total)
        self.mean_weight = float(np.mean(self.index.weights, dtype=np.float64))

    # pruning

    def _keep_up(self) -> None:
        """Go to the version that is due: at once, or a pass after its drawing began."""
        if self.pending:
            self._collect()
        done, batch, lag = self.trainer.done, self.settings.batch, self.settings.prune.lag
        nearest = done * batch + self.index.kept // 2  # passes leave their rests out, so epochs do not end with them
        wanted = due(nearest, self.plan.total, self.settings.prune)
        used = done + lag * (self.index.kept // batch)
        if wanted > self.version and used < self.plan.steps:
            self.pending = wanted
            self._begin()
            if not lag:
                self._collect()

    def _begin(self) -> None:
        """Have the pending version drawn with the encoder as it is now."""
        if self.rank == 0:
            assert self._draw is not None
            path = _drawn_by(self.pending)
            if not self.plan.folder.exists(path):
                self.plan.folder.publish(path, self._encoder())
            self.waiting = self._draw(self.pending, path)

    def _collect(self) -> None:
        """Wait for the pending version."""
        if self.rank == 0:
            assert self.waiting is not None
            told = self.waiting()
            self.plan.folder.remove(_drawn_by(self.pending))
            for name in PRUNING:
                self.costs[name] += float(told.get(name, 0))
            self._note_row(version=self.pending, **{name: float(told.get(name, 0)) for name in PRUNING})
        self._keep(self.pending)
        self.pending, self.waiting = 0, None
        self.since = time.monotonic()

    # what is told and kept (rank 0)

    def _note(self) -> None:
        if self.rank == 0:
            spread, rank = self.trainer.spread()
            values: dict[str, Any] = {"loss": float(np.mean(self.losses)), "rate": self.trainer.rate}
            values |= {"spread": spread, "rank": rank, "kept": self.index.kept}
            if spread < COLLAPSED[0] or rank < COLLAPSED[1]:
                values["warning"] = COLLAPSE
            self._note_row(**values)
        self.losses.clear()
        self.since = time.monotonic()

    def _note_row(self, **values: Any) -> None:
        assert self.journal is not None
        done = self.trainer.done
        self.journal.note(done, epoch=round(done * self.settings.batch / self.plan.total, 4), **values)

    def _probe(self) -> None:
        """How well simple classifiers do on the frozen encoder's vectors of the side set."""
        side = self.plan.side
        if self.rank == 0 and side is not None:
            tiles = TileDataset(side.tiles, side.shards, self.plan.cache).read(side.rows)
            vectors = self.trainer.embed(tiles)
            train, test = (Features(vectors[some], side.codes[some]) for some in (side.teaches, ~side.teaches))
            found = {"knn": nearest_neighbours(train, test).macro, "linear": linear(train, test, self.plan.seed).macro}
            self._spent("probing")
            self._note_row(**found)

    def _save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        if self.rank == 0:
            assert self.journal is not None
            self.journal.publish()
            state = {
                "trainer": self.trainer.state_dict(),
                "sampler": self.sampler.state_dict(self.taken),
                "version": self.version,
                "pending": self.pending,
                "losses": self.losses,
                "costs": self.costs,
                "rows": json.dumps(self.journal.rows),
            }
            checkpoints.save(self.plan.folder, self.trainer.done, state, self.profile)
        self.since = time.monotonic()

    def _resume(self) -> list[dict[str, Any]]:
        """Go on from the newest checkpoint that rank 0 sees; the figures that it knew."""
        state = checkpoints.newest(self.plan.folder, self.profile, self.plan.mix)
        if state is None:
            self._keep(0)
            self.sampler = KeptSampler(self.index, seed=self.plan.seed)
            return []
        self.trainer.load_state_dict(state["trainer"])
        self._keep(state["version"])
        self.sampler = KeptSampler(self.index, seed=self.plan.seed)
        self.sampler.load_state_dict(state["sampler"])
        self.losses, self.costs, self.pending = state["losses"], state["costs"], state["pending"]
        if self.pending:
            self._begin()
        return list(json.loads(state["rows"]))

    def _finish(self) -> None:
        """Publish encoder and account; the account last, so that what has one is whole."""
        if self.rank:
            return
        assert self.journal is not None
        self.journal.publish()
        data, rows, plan = self._encoder(), self.journal.rows, self.plan
        plan.folder.publish(ENCODER, data)
        pruning = sum(self.costs[name] for name in PRUNING)
        account = {
            "epochs": round(plan.steps * self.settings.batch / plan.total, 4),
            "steps": plan.steps,
            "samples": plan.total,
            "loss": next(row["loss"] for row in reversed(rows) if "loss" in row),
            "probes": [{n: row[n] for n in ("step", "epoch", "knn", "linear")} for row in rows if "knn" in row],
            "draws": [{n: row[n] for n in ("step", "epoch", "version", *PRUNING)} for row in rows if "version" in row],
            "seconds": {name: round(value, 3) for name, value in self.costs.items()},
            "pruning_share": pruning / (pruning + self.costs["training"]),
            "warnings": sorted({row["warning"] for row in rows if "warning" in row}),
            "encoder": hashlib.sha256(data).hexdigest(),
            "profile": self.profile,
            "made_of": plan.made_of,
        }
        plan.folder.publish(RUN, json.dumps(account, indent=1).encode())
        checkpoints.discard(plan.folder)

    def _encoder(self) -> bytes:
        more = {**self.plan.made_of, "steps": self.trainer.done}
        return encoder_bytes(self.trainer.method.encoder, self.plan.what, self.settings.architecture, more)

    def _spent(self, what: str) -> None:
        now = time.monotonic()
        self.costs[what] += now - self.since
        self.since = now


def _drawn_by(version: int) -> str:
    return f"draws/{version:06d}.safetensors"
