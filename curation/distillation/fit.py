"""Trains the models of a distillation on Ray Train; a model that is there is not trained again (Ray).

A model's folder, ``distilled/models/<id>/<kind>``, is named by the hash of what decides it. Checkpoints and metrics lie
in it while it is trained. A training that was killed, or whose worker died, goes on from the newest checkpoint and ends
with the same weights, bit for bit, on one numeric profile.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from typing import Any

from ray.train.torch import get_device
from torch import distributed as dist

from curation.catalog.tiles import Tiles
from curation.distillation.classes import Classes
from curation.distillation.latents import Latents
from curation.distillation.models import account_of
from curation.distillation.pretrained import Weights
from curation.distillation.settings import DistillConfig
from curation.encoders.base import start_torch
from curation.errors import CurationError, require
from curation.runs import stage
from curation.runtime import Resources, numeric_profile
from curation.storage import Folder
from curation.training.group import Group, train
from curation.training.journal import read_rows

log = logging.getLogger("curation")

VERSION = 1  # raise when the same request would give another model
KEYS = {"autoencoder": "autoencoder", "classifier": "classifier", "denoiser": "diffusion"}  # of a model's settings
OF_WEIGHTS = ("adapt", "rank")  # which nothing depends on where there are none


@dataclass(frozen=True)
class Task:
    """A model to be trained; what every worker is told.

    Attributes:
        kind: ``autoencoder``, ``classifier`` or ``denoiser``.
        settings: ``distill.*``.
        seed: of first weights, orders and noise.
        folder: of the model.
        classes: which samples it learns from, and their classes.
        shards: of the archive.
        steps: of the whole training; of the classifier as many at most.
        mix: whether a checkpoint of another numeric profile may be gone on from.
        tiles: of the autoencoder.
        latents: of the others.
        weights, texts: of a denoiser that begins as a model of text: that, and what it is told of each class.
        teacher: of a denoiser that learns to be consistent: the classifier's folder.
    """

    kind: str
    settings: DistillConfig
    seed: int
    folder: Folder
    classes: Classes
    shards: tuple[str, ...]
    steps: int
    mix: bool
    tiles: Tiles | None = None
    latents: Latents | None = None
    weights: Weights | None = None
    texts: tuple[str, ...] = ()
    teacher: Folder | None = None


def model_folder(workspace: Folder, kind: str, settings: DistillConfig, made_of: Any) -> Folder:
    """Where a model lies.

    Args:
        workspace: the run's.
        kind: of the model.
        settings: of the run; of them the model's own and the number of workers and threads count.
        made_of: what else decides it, as JSON.
    """
    own = asdict(getattr(settings, KEYS[kind]))
    if kind == "denoiser":
        own = {key: value for key, value in own.items() if settings.weights or key not in OF_WEIGHTS}
    decisive = [VERSION, kind, own, settings.workers, settings.threads, made_of]
    name = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    return workspace.child(f"distilled/models/{name}/{kind}")


def fit(tasks: Sequence[Task], resources: Resources) -> list[dict[str, Any]]:
    """Train what is not there yet, one after the other in one group of workers; the account of each.

    Raises:
        RequestError: the cluster has not the room.
        CurationError: a worker's own, or that it died more often than ``distill.restarts`` allows.
    """
    wanting = [task for task in tasks if account_of(task.folder) is None]
    if wanting:
        settings = wanting[0].settings
        for task in wanting:
            batch = _batch(task)
            ok = batch >= settings.workers
            require(ok, f"distill.workers={settings.workers} is more than the {batch} rows of the {task.kind}'s batch")
        group = Group.of("distill.workers", settings.workers, settings.threads, resources)
        what = " and ".join(task.kind for task in wanting)
        with stage(f"train {what}", sum(task.steps for task in wanting), "steps") as done:
            watch = _Watch(wanting, done)
            train(_train, {"tasks": wanting}, group, wanting[0].folder, settings.restarts, "distill.restarts", watch)
    accounts = [account_of(task.folder) for task in tasks]
    for task, account in zip(tasks, accounts, strict=True):
        if account is None:
            raise CurationError(f"{task.folder.public()} vanished while it was made: run the same command again")
    return [account for account in accounts if account is not None]


def _batch(task: Task) -> int:
    return int(getattr(task.settings, KEYS[task.kind]).batch)


class _Watch:
    """Tells people how the training goes, out of its metrics, until it is finished."""

    def __init__(self, tasks: Sequence[Task], done: Callable[[float], None]) -> None:
        self.tasks, self.done, self.shown = tasks, done, [0] * len(tasks)

    def __call__(self, finished: Future[Any]) -> None:
        while not wait([finished], 2).done:
            for number, task in enumerate(self.tasks):
                try:
                    rows = read_rows(task.folder.child("metrics"))
                except (CurationError, OSError, ValueError):
                    continue
                if rows and rows[-1]["step"] != self.shown[number]:
                    step, loss = rows[-1]["step"], rows[-1]["loss"]
                    self.done(max(0, step - self.shown[number]))
                    self.shown[number] = step
                    log.info("%s: step %d of %d, loss %.4g", task.kind, step, task.steps, loss)
        finished.result()


# what each worker runs


def _train(config: dict[str, Any]) -> None:
    from curation.distillation.learner import Learner  # diffusers takes seconds to import, and few need it

    tasks: list[Task] = config["tasks"]
    device = str(get_device())
    start_torch(device, tasks[0].settings.threads)
    profile = numeric_profile("cuda" if device.startswith("cuda") else "cpu", "float32")
    for task in tasks:
        if account_of(task.folder) is None:
            Learner(task, device, profile).run()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.barrier()  # the next may need it
