"""``curate pretrain``: self-supervised training on Ray Train over any archive that the readers know (Ray).

The catalog gives a frozen listing and its samples; their tiles are made once and memory-mapped by every worker. Each
worker's training is a `Course`; Ray Train starts the workers as one group, and again from the newest checkpoint if one
of them dies.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.train.torch import get_device

from curation.archive.listing import Root, list_archive
from curation.archive.radiometry import in_decibels
from curation.catalog.build import Catalog, build_catalog
from curation.catalog.fit import check_bank
from curation.catalog.labels import Labels
from curation.catalog.tiles import VERSION as TILES
from curation.catalog.tiles import Tiles, build_tiles
from curation.errors import CurationError, RequestError
from curation.evaluation.arms import codes_of, split_in_two
from curation.evaluation.samples import gather
from curation.manifests.exchange import submit
from curation.runs import stage
from curation.runtime import Resources, limit_threads, numeric_profile
from curation.scoring.network import band_statistics
from curation.stages import Run
from curation.storage import Folder
from curation.training.course import ENCODER, RUN, Course, Plan, SideSet
from curation.training.dataset import TileDataset
from curation.training.draws import budget
from curation.training.export import Input, open_encoder
from curation.training.group import Group, train
from curation.training.journal import read_rows
from curation.training.pruner import RedrawSpec, redraw
from curation.training.settings import PretrainConfig
from curation.training.trainer import check_architecture

log = logging.getLogger("curation")

VERSION = 1  # raise when the same request would give another encoder
TEST = "test_set"  # the side set's root name
LEAST, MOST = 20, 20_000  # labelled samples of the side set that probes need, and take
STATISTICS = 2000  # tiles that mean and standard deviation are taken of
APART = ("checkpoint", "probe", "restarts", "cache", "test")  # settings that leave the encoder as it is


def pretrain(run: Run) -> dict[str, Any]:
    """Train, or go on; the result line.

    Raises:
        RequestError: archive, side set or settings do not go together.
        CurationError: a worker failed more often than ``pretrain.restarts`` allows.
    """
    settings = run.config.pretrain
    catalog = run.catalog()
    total, steps = catalog.counts["kept"], int(settings.epochs * catalog.counts["kept"]) // settings.batch
    if settings.batch > total or not steps:
        raise RequestError(
            f"pretrain.batch={settings.batch}, pretrain.epochs={settings.epochs:g}: {total} samples give no step: "
            "lower the batch, or raise the epochs"
        )
    if settings.prune.strategy != "none" and budget(settings.prune.keep, total) < settings.batch:
        raise RequestError(
            f"pretrain.prune.keep={settings.prune.keep:g} of {total} samples are fewer than pretrain.batch="
            f"{settings.batch}: raise it, or lower the batch"
        )
    shared = room(settings, run.resources)
    tested = _catalog_of_side_set(run, catalog)
    decisive = {key: value for key, value in asdict(settings).items() if key not in APART}
    made_of: dict[str, Any] = {
        "archive": catalog.digest,
        "catalog": catalog.store.catalog_id,
        "artefact": catalog.artefact.sha256,
        "side_set": tested.digest if tested else None,
        "settings": decisive,
        "seed": run.config.seed,
        "version": [VERSION, TILES],
    }
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = run.workspace.child(f"pretrained/{name}")
    if not folder.exists(RUN):
        check_architecture(settings, len(catalog.artefact.bands))
        tiles = build_tiles(run.config, run.roots, catalog, run.resources, settings.size)
        cache = Path(settings.cache or tempfile.gettempdir()) / "curation-pretrain"
        what = ray.get(submit(_input, tiles, catalog.shards, catalog.artefact, settings.size, cache))
        side = _side_set(run, tested) if tested else None
        plan = Plan(
            settings=settings,
            seed=run.config.seed,
            folder=folder,
            tiles=tiles,
            shards=catalog.shards,
            total=total,
            steps=steps,
            what=what,
            side=side,
            cache=cache,
            mix=run.config.runtime.mix_profiles,
            made_of=made_of,
        )
        metrics = folder.public("metrics")
        spec = _redraws(plan, catalog, shared) if settings.prune.strategy != "none" else None
        log.info("pretrain: %d samples, %d steps of %d tiles; metrics in %s", total, steps, settings.batch, metrics)
        _fit(plan, shared, spec)
    return _told(folder, name)


def _told(folder: Folder, name: str) -> dict[str, Any]:
    """The result line of a finished run."""
    account = json.loads(folder.read(RUN))
    for warning in account["warnings"]:
        log.warning("pretrain: %s", warning)
    keys = ("epochs", "steps", "loss", "probes", "pruning_share", "seconds")
    encoder = folder.public(ENCODER)
    log.info("encoder   %s\n          curate prune encoder=timm encoder.checkpoint=%s …", encoder, encoder)
    return {"encoder": encoder, **{key: account[key] for key in keys}, "run": name, "account": folder.public(RUN)}


# Ray Train


@dataclass(frozen=True)
class Room:
    """What Ray is asked for.

    Attributes:
        group: of the training.
        drawers: of draws, each with a CPU and ``part`` of a GPU.
    """

    group: Group
    drawers: int
    part: float


def room(settings: PretrainConfig, resources: Resources) -> Room:
    """Share the cluster out between training and draws.

    Draws get the GPUs that training leaves; where it leaves none, a part of each, too small for two of training.

    Raises:
        RequestError: the cluster has not as much.
    """
    workers, drawn, cuda = settings.workers, settings.prune.strategy != "none", resources.device == "cuda"
    least = 1.0 if drawn else 0.0  # for the draws
    group = Group.of("pretrain.workers", workers, settings.threads, resources, least)
    free = int(resources.cpus - workers * group.cpus + 0.01)
    if not cuda:
        return Room(group, max(1, free), 0)
    left = int(resources.gpus) - workers
    if drawn and not left:
        return Room(replace(group, gpus=0.6), max(1, min(workers, free)), 0.4)
    return Room(group, max(1, min(left, free)), 1)


def _fit(plan: Plan, shared: Room, spec: RedrawSpec | None) -> None:
    """Run Ray Train to the end.

    Raises:
        CurationError: a worker's own, or that it died too often.
    """
    with stage("train", plan.steps, "steps") as done:
        train(
            _train,
            {"plan": plan, "spec": spec},
            shared.group,
            plan.folder,
            plan.settings.restarts,
            "pretrain.restarts",
            lambda finished: _watch(plan, finished, done),
        )


def _redraws(plan: Plan, catalog: Catalog, shared: Room) -> RedrawSpec:
    """What draws are told."""
    return RedrawSpec(
        tiles=plan.tiles,
        store=catalog.store,
        shards=plan.shards,
        folder=plan.folder,
        prune=plan.settings.prune,
        seed=plan.seed,
        load=open_encoder,
        workers=shared.drawers,
        gpus=shared.part,
        threads=plan.settings.threads,
    )


def _train(config: dict[str, Any]) -> None:
    """What each worker runs."""
    plan: Plan = config["plan"]
    spec: RedrawSpec | None = config["spec"]
    limit_threads(plan.settings.threads)
    device = get_device()
    kind = "cuda" if getattr(device, "type", "cpu") == "cuda" else "cpu"
    profile = numeric_profile(kind, plan.settings.precision)

    def begin(version: int, path: str) -> Callable[[], dict[str, Any]]:
        task: Any = ray.remote(redraw).options(num_cpus=0).remote(spec, version, path)  # type: ignore[arg-type]
        return lambda: dict(ray.get(task))

    Course(plan, str(device), profile, begin if spec else None).run()


def _watch(plan: Plan, finished: Future[Any], done: Callable[[float], None]) -> None:
    """Tell people how the training goes, out of its metrics, until it is finished; its error, if it has one."""
    shown, warned = -1, False
    while not wait([finished], 2).done:
        try:
            rows = read_rows(plan.folder.child("metrics"))
        except (CurationError, OSError, ValueError):
            continue
        if not rows or rows[-1]["step"] == shown:
            continue
        before, shown = shown, rows[-1]["step"]
        done(shown - max(before, 0))
        known = {key: value for row in rows for key, value in row.items()}
        figures = [f"{key} {known[key]:.4g}" for key in ("loss", "rate", "knn", "linear") if key in known]
        log.info("pretrain: step %d of %d, epoch %.4g: %s", shown, plan.steps, known["epoch"], ", ".join(figures))
        if "warning" in known and not warned:
            log.warning("pretrain: %s", known["warning"])
            warned = True
    finished.result()


# what is trained on, and judged by


def _input(tiles: Tiles, shards: tuple[str, ...], artefact: Any, size: int, cache: Path) -> Input:
    """What the tiles are: statistics of some, evenly spaced over the archive."""
    limit_threads(1)
    dataset = TileDataset(tiles, shards, cache)
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(STATISTICS, len(dataset))).astype(np.int64))
    ranges: NDArray[Any] = np.asarray(artefact.arrays["range"], np.float64)
    stored = artefact.dtype == "uint8"  # such tiles are as stored, others were scaled by the range
    limits = ranges if stored else np.tile([0.0, 255.0], (len(ranges), 1))
    seen = np.clip(dataset.read(rows), *limits.T[..., None, None])
    mean, std = band_statistics(seen)
    radar = in_decibels(artefact.bands, artefact.dtype, artefact.radiometry)
    decibels = np.where(radar, 255 / (ranges[:, 1] - ranges[:, 0]), 0.0)
    return Input(
        bands=tuple(artefact.bands),
        size=size,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        limits=tuple((low, high) for low, high in limits.tolist()),
        decibels=tuple(decibels.tolist()),
    )


def _catalog_of_side_set(run: Run, catalog: Catalog) -> Catalog | None:
    """The side set in the archive's catalog; None where there is none.

    Raises:
        RequestError: its pixels are not the archive's kind, or cannot be read.
    """
    root = _side_root(run)
    if root is None:
        return None
    check_bank(run.config, root, catalog.artefact, "pretrain.test.url")
    tested = build_catalog(run.config, [root], None, run.resources)
    if not tested.counts["kept"]:
        raise RequestError(f"none of the {tested.counts['read']} samples of pretrain.test.url can be used")
    return tested


def _side_root(run: Run) -> Root | None:
    config = run.config
    if config.pretrain.test.url is None:
        return None
    if any(root.name == TEST for root in run.roots):
        raise RequestError(f"archive.url: no root of the archive may be called {TEST!r}: give it another name")
    (root,) = list_archive({TEST: config.pretrain.test.url}, config.runtime.storage, config.archive)
    return root


def _side_set(run: Run, tested: Catalog) -> SideSet:
    """Its tiles, and which of them probes learn from.

    Raises:
        RequestError: it has too few labels.
    """
    root = _side_root(run)
    assert root is not None
    tiles = build_tiles(run.config, [root], tested, run.resources, run.config.pretrain.size)
    samples, _, labelled = gather(None, tested.store, tested.shards, Labels())
    if labelled < LEAST:
        raise RequestError(f"pretrain.test.url has {labelled} labelled samples: probes need {LEAST} of two classes")
    rows, codes, teaches = ray.get(submit(_divided, samples))
    if len(np.unique(codes)) < 2:
        raise RequestError("pretrain.test.url has one class only: probes need two")
    return SideSet(tiles, tested.shards, rows, codes, teaches)


def _divided(samples: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Rows with a label, at most `MOST` of them by their ids; their classes; the half of each class that teaches."""
    codes, _ = codes_of(samples.labels)
    known = np.flatnonzero(codes >= 0)
    known = np.sort(known[np.argsort(samples.ids[known])[:MOST]])
    return known, codes[known], split_in_two(samples.ids[known], codes[known])
