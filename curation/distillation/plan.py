"""What a distillation will take before it is paid for: images to encode, training steps, forwards, hours; no Ray.

The classes are counted in the catalog where the workspace has it, else in the first samples of some shards. A step of
each model, as it will be built, is timed on one core of this machine.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from curation.archive.listing import Root
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.shards import Shard
from curation.archive.sidecar import gather, in_name, read_fields
from curation.archive.tables import Table, lookup
from curation.catalog.artefact import catalog_id
from curation.catalog.labels import Labels
from curation.catalog.store import CatalogStore
from curation.config import Config
from curation.distillation.settings import DistillConfig
from curation.runtime import limit_threads
from curation.storage import Folder

HEADS = 16  # shards whose first samples are looked at where there is no catalog
HEAD = 128  # samples of each
SIZE = 32  # as build.SIZE, which imports Ray
ARMS = 4  # of students
TIMED = 3  # steps


def plan_distillation(config: Config, roots: Sequence[Root], tables: Sequence[Table], plan: dict[str, Any]) -> Any:
    """What ``curate distill`` will take, with what ``curate plan`` says of the archive.

    Args:
        config: of the run that is planned.
        roots: the listing.
        tables: beside the archive, one of which may have the labels.
        plan: of the catalog.

    Raises:
        RequestError: there is no such column of labels.
    """
    settings, samples = config.distill, int(plan["samples_expected"])
    holdout = 0.0 if settings.test.url else settings.holdout
    source = Labels.of(settings.label, tables, "distill.label")
    listed = [(root, shard) for root in roots for shard in root.shards]
    counted = _in_catalog(config, source, listed)
    counts, bands = counted if counted is not None else _in_heads(config, source, listed)
    learned = [count - min(round(holdout * count), count - 1) for count in counts.values()]
    known = counted is not None
    images = sum(min(settings.ipc, count) for count in learned) if known else settings.ipc * len(counts)
    labelled = sum(counts.values()) if known else samples
    diffusion = settings.diffusion.filled(settings.weights is not None)
    passes = settings.classifier.epochs * math.ceil(labelled * (1 - holdout) / settings.classifier.batch)
    steps = {
        "autoencoder": 0 if settings.weights else settings.autoencoder.steps,
        "classifier": min(settings.classifier.steps, passes),
        "denoiser": diffusion.steps or 0,
        "students": settings.students.seeds * ARMS * settings.students.steps,
    }
    twice = settings.guidance.classes != 1
    forwards = math.ceil(images * settings.candidates / settings.batch) * settings.guidance.steps
    made = {
        "classes": len(counts),
        "classes_counted_in": "the catalog" if known else f"{sum(counts.values())} samples: there may be more",
        "images": images,
        "candidates": images * settings.candidates,
        "images_to_encode": samples,
        "training_steps": steps,
        "generator_forwards": forwards,
        "rows_a_forward": settings.batch * (1 + twice),
    }
    if settings.weights:
        return {**made, "hours": None, "measured_on": "nothing: given weights are not loaded for a plan"}
    each, cores = _measured(settings, bands, len(counts)), plan["cores"]
    hours = {
        "encode": samples * each["encode"] / cores / 3600,
        "train": sum(steps[name] * each[name] for name in ("autoencoder", "classifier", "denoiser")) / 3600,
        "generate": forwards * each["forward"] / cores / 3600,
        "students": steps["students"] * each["students"] / cores / 3600,
    }
    measured = f"{TIMED} steps of each model on one core of this machine, no GPU; training runs on distill.workers"
    return {**made, "hours": {**hours, "total": sum(hours.values())}, "measured_on": measured}


def _in_catalog(
    config: Config, source: Labels, listed: Sequence[tuple[Root, Shard]]
) -> tuple[Counter[str], int] | None:
    """Samples of each class, and bands; None where a shard is not in the workspace's catalog yet."""
    if config.workspace is None:
        return None
    workspace = Folder(config.workspace, config.runtime.storage, "workspace")
    store = CatalogStore(workspace, catalog_id(config))
    there = {file.path for file in store.own.list()} if store.own.exists() else set()
    counts: Counter[str] = Counter()
    bands = 0
    for _, shard in listed:
        if store.path(shard.name) not in there:
            return None
        counts.update(source.read(store, shard.name).drop_null().to_pylist())
        if not bands:
            some = store.read(shard.name, ["entropy_bands"])["entropy_bands"].drop_null()
            bands = len(some[0]) if len(some) else 0
    return (counts, bands) if counts else None


def _in_heads(config: Config, source: Labels, listed: Sequence[tuple[Root, Shard]]) -> tuple[Counter[str], int]:
    """Labels among the first samples of some shards, evenly spaced; bands as far as they are configured, else three."""
    counts: Counter[str] = Counter()
    archive = config.archive
    for place in np.unique(np.linspace(0, len(listed) - 1, min(HEADS, len(listed))).astype(int)).tolist():
        root, shard = listed[place]
        raws = [raw for raw in islice(read_shard(root.folder, shard, archive), HEAD) if isinstance(raw, RawSample)]
        said = [gather(raw.data, {**in_name(raw.key, archive.name_pattern), **raw.said}) for raw in raws]
        fields = [read_fields(one, archive.fields) for one in said]
        if source.table is None:
            labels = [one["label"] for one in fields]
        else:
            named = [raw.key for raw in raws] if source.table.on == "key" else [one["source_id"] for one in fields]
            labels = lookup(source.table, [source.column], pa.array(named, pa.string()))[source.column].to_pylist()
        counts.update(str(label) for label in labels if label not in (None, ""))
    return counts, len(archive.bands or "RGB")


def _measured(settings: DistillConfig, bands: int, classes: int) -> dict[str, float]:
    """Seconds of a step of each training, of encoding a tile, and of a forward of the generator, on one core."""
    from curation.distillation import training
    from curation.distillation.autoencoder import new_autoencoder
    from curation.distillation.classifier import new_classifier
    from curation.distillation.denoiser import new_denoiser
    from curation.scoring.network import BATCH, train_classifier

    limit_threads(1)
    size, classes, bands = settings.size or SIZE, max(2, classes), max(1, bands)
    side, own = size // settings.autoencoder.factor, settings.autoencoder
    most = max(own.batch, settings.classifier.batch, settings.diffusion.filled(False).batch or 0, BATCH)
    random = np.random.default_rng(0)
    tiles = torch.from_numpy(random.integers(0, 256, (most, bands, size, size), np.uint8))
    codes = np.arange(most) % classes
    latents = torch.randn(most, own.channels, side, side, generator=torch.Generator().manual_seed(0))
    told = latents, torch.ones_like(latents), torch.from_numpy(codes)
    autoencoder = new_autoencoder(bands, own, 0)
    denoiser = new_denoiser(own.channels, side, classes, 0)
    classifier = new_classifier(own.channels, classes, settings.classifier.dropout, 0)
    diffusion = settings.diffusion
    teacher = classifier if diffusion.consistency else None
    courses = {
        "autoencoder": (training.autoencoder_course(autoencoder, most, own, 0), (tiles,)),
        "classifier": (training.classifier_course(classifier, codes, settings.classifier, 0), told),
        "denoiser": (training.diffusion_course(denoiser, codes, diffusion, 0, teacher=teacher), told),
    }
    found = {}
    for name, (course, data) in courses.items():
        found[name] = _seconds(partial(course.step, tuple(x[: course.recipe.batch] for x in data)))
    students = tiles.numpy(), codes
    found["students"] = _seconds(lambda: train_classifier(*students, classes, steps=TIMED, seed=0), 1) / TIMED
    some = tiles[: min(16, most)]
    found["encode"] = _seconds(lambda: autoencoder.encode(some)) / len(some)
    rows = settings.batch * (1 + (settings.guidance.classes != 1))
    z = torch.randn(rows, own.channels, side, side)
    times, of = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    with torch.inference_mode():
        found["forward"] = _seconds(lambda: denoiser(z, times, of))
    return found


def _seconds(call: Callable[[], Any], times: int = TIMED) -> float:
    """Of one call on one core, whoever else computes here; after a first one that is not counted."""
    call()
    begun = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - begun) / times
