"""One worker's training of a model, begun or gone on with; no Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curation.distillation import training
from curation.distillation.autoencoder import Autoencoder, new_autoencoder
from curation.distillation.classes import Members
from curation.distillation.classifier import LatentClassifier, accuracy, new_classifier, validation_rows
from curation.distillation.denoiser import Denoiser, new_denoiser
from curation.distillation.fit import Task
from curation.distillation.latents import LatentDataset
from curation.distillation.models import CACHE, fetched, publish
from curation.distillation.training import Course, Fetch
from curation.training import checkpoints
from curation.training.dataset import TileDataset
from curation.training.journal import Journal

LOG = 50  # steps from one note to the next
CALIBRATED, JUDGED = 2000, 10_000  # tiles that latents are scaled by; samples that a model is judged by, at most
FORWARD = 64  # tiles at once where nothing is trained

Rows = NDArray[np.int64]


class Learner:
    """One rank's training of a model, begun or gone on with."""

    def __init__(self, task: Task, device: str, profile: dict[str, str]) -> None:
        self.task, self.device, self.profile, self.begun = task, device, profile, time.monotonic()
        self.model: Any
        self.course: Course
        self.fetch: Fetch
        self.judge: Callable[[], dict[str, Any]]
        getattr(self, f"_begin_{task.kind}")(task.classes.members())
        state = checkpoints.newest(task.folder, profile, task.mix)
        rows, self.seconds = [], 0.0
        self.losses: list[Tensor] = []
        if state is not None:
            self.course.load_state_dict(state["course"])
            rows, self.seconds = json.loads(state["rows"]), float(state["seconds"])
            self.losses = [loss.to(self.course.device) for loss in state["losses"]]  # a checkpoint is read on the CPU
        leads = self.course.rank == 0
        self.journal = Journal(task.folder.child("metrics"), rows, self.course.done) if leads else None

    def run(self) -> None:
        """Train to the end, and publish the model."""
        with self._batches() as batches:
            for part in batches:
                self.losses.append(self.course.step(part))
                done = self.course.done
                if done % LOG == 0 or self.course.finished:
                    self._note()
                if done % self.task.settings.checkpoint == 0 and not self.course.finished:
                    self._save()
        self.course.finish()
        if self.journal is not None:
            self.journal.publish()
            account = {
                "kind": self.task.kind,
                "steps": self.course.done,
                "batch": self.course.recipe.batch,
                "loss": self.journal.rows[-1]["loss"],
                **self.judge(),
                "seconds": round(self._spent(), 3),
                "profile": self.profile,
            }
            publish(self.task.folder, self.model.save, account)
            checkpoints.discard(self.task.folder)

    @contextmanager
    def _batches(self) -> Iterator[Iterator[tuple[Tensor, ...]]]:
        """What this rank trains on in each step that is left, read one step ahead."""
        course = self.course

        def read(step: int) -> tuple[Tensor, ...]:
            part = self.fetch(np.array_split(course.draws.rows(step), course.world)[course.rank])
            return tuple(x.pin_memory() for x in part) if course.device.type == "cuda" else part

        def all_of_them(pool: ThreadPoolExecutor) -> Iterator[tuple[Tensor, ...]]:
            steps = range(course.done, course.recipe.steps)
            ahead = [pool.submit(read, step) for step in steps[:1]]
            for step in steps:
                if step + 1 < steps.stop:
                    ahead.append(pool.submit(read, step + 1))
                yield ahead.pop(0).result()

        with ThreadPoolExecutor(1) as pool:
            yield all_of_them(pool)

    def _note(self) -> None:
        if self.journal is not None:
            self.journal.note(self.course.done, loss=float(torch.stack(self.losses).mean()))
        self.losses.clear()

    def _save(self) -> None:
        if self.journal is not None:
            self.journal.publish()
            state = {
                "course": self.course.state_dict(),
                "rows": json.dumps(self.journal.rows),
                "losses": self.losses,
                "seconds": self._spent(),
            }
            checkpoints.save(self.task.folder, self.course.done, state, self.profile)

    def _spent(self) -> float:
        """Seconds of training, those before the checkpoint that was gone on from too."""
        return self.seconds + time.monotonic() - self.begun

    # the models

    def _begin_autoencoder(self, members: Members) -> None:
        task = self.task
        assert task.tiles is not None
        dataset = TileDataset(task.tiles, task.shards, CACHE)
        rows, held = np.sort(members.rows), task.classes.held_rows()
        model: Autoencoder = new_autoencoder(task.tiles.bands, task.settings.autoencoder, task.seed)
        self.model = model
        self.course = training.autoencoder_course(model, len(rows), task.settings.autoencoder, task.seed, self.device)

        def read(some: Rows) -> Tensor:
            return torch.from_numpy(dataset.read(some))

        def judge() -> dict[str, Any]:
            model.calibrate(read(part).to(self.device) for part in _parts(_spread(rows, CALIBRATED)))
            return {
                "psnr": _psnr(model, (read(part).to(self.device) for part in _parts(_spread(_any(held, rows), 500))))
            }

        self.fetch, self.judge = lambda some: (read(rows[some]),), judge

    def _begin_classifier(self, members: Members) -> None:
        task, settings = self.task, self.task.settings.classifier
        assert task.latents is not None
        checks = validation_rows(members.codes, task.seed)
        model = new_classifier(task.latents.shape[0], len(task.classes.names), settings.dropout, task.seed)
        self.model = model
        codes, rows = members.codes[~checks], members.rows[~checks]
        self.course = training.classifier_course(model, codes, settings, task.seed, self.device)
        fetch = self.fetch = self._latents(rows, codes)
        judges = _spread(np.flatnonzero(checks), JUDGED)
        seen = self._latents(members.rows, members.codes)

        def judge() -> dict[str, Any]:
            told = {"learned": len(codes), "checked": len(judges)}
            for name, some, read in (
                ("accuracy", judges, seen),
                ("learned_accuracy", _spread(np.arange(len(codes)), JUDGED), fetch),
            ):
                parts = [read(part) for part in _parts(some)]
                logits = [model.logits(part[0]) for part in parts]
                found = accuracy(torch.cat(logits), torch.cat([p[2] for p in parts]).numpy()) if parts else None
                told[name] = found  # type: ignore[assignment]
            return told

        self.judge = judge

    def _begin_denoiser(self, members: Members) -> None:
        task, settings = self.task, self.task.settings.diffusion
        assert task.latents is not None
        channels, side, _ = task.latents.shape
        model: Denoiser
        if task.weights is None:
            model = new_denoiser(channels, side, len(task.classes.names), task.seed)
        else:
            from curation.distillation.weights import load_denoiser  # transformers, which others do without

            model = load_denoiser(task.weights, task.texts, settings, task.seed, self.device)
        teacher = LatentClassifier.load(fetched(task.teacher), self.device) if task.teacher else None
        self.model, codes = model, members.codes
        self.course = training.diffusion_course(model, codes, settings, task.seed, self.device, teacher)
        self.fetch, self.judge = self._latents(members.rows, codes), lambda: {"learned": len(codes)}

    def _latents(self, rows: Rows, codes: NDArray[np.int32]) -> Fetch:
        """Mean, standard deviation and class of some of these rows."""
        assert self.task.latents is not None
        dataset = LatentDataset(self.task.latents, self.task.shards)

        def fetch(some: Rows) -> tuple[Tensor, ...]:
            mean, std = dataset.read(rows[some])
            return torch.from_numpy(mean), torch.from_numpy(std), torch.from_numpy(codes[some].astype(np.int64))

        return fetch


def _spread(rows: Rows, most: int) -> Rows:
    """At most so many of some rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]


def _any(first: Rows, other: Rows) -> Rows:
    return first if len(first) else other


def _parts(rows: Rows) -> list[Rows]:
    return [rows[start : start + FORWARD] for start in range(0, len(rows), FORWARD)]


def _psnr(model: Autoencoder, parts: Iterator[Tensor]) -> float:
    """Peak signal to noise of tiles that were encoded and decoded again, dB."""
    squares, count = 0.0, 0
    for part in parts:
        mean, _ = model.encode(part)
        squares += float((model.decode(mean).float() - part.float()).square().sum())
        count += part.numel()
    return float(10 * np.log10(255**2 * count / max(squares, 1e-9)))
