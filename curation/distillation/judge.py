"""What a distilled set is worth: students, each a task that leaves a file; what the images tell of members (Ray)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curation.catalog.labels import Labels
from curation.catalog.store import CatalogStore
from curation.catalog.tiles import Tiles
from curation.config import Config
from curation.distillation.classes import Classes
from curation.distillation.drawn import Drawn
from curation.distillation.generate import pixels_of
from curation.distillation.leakage import TESTED, Checker, Images, Limits, Membership, Seen, account, drawn
from curation.distillation.models import CACHE, id_of
from curation.distillation.pool import Pool
from curation.distillation.real import Real, embedder
from curation.distillation.settings import StudentsConfig
from curation.distillation.students import ARMS, most_seen, random_rows, summarise, train_student
from curation.encoders.base import start_torch
from curation.evaluation.coreset import Labelled
from curation.manifests.exchange import submit
from curation.manifests.schema import json_bytes
from curation.runs import stage
from curation.storage import Folder
from curation.training.dataset import TileDataset

log = logging.getLogger("curation")

VERSION = 1  # raise when the same images would get other marks
MOST = 20_000  # images that students are tested on, at most
MOST_BYTES = 2 << 30  # of the images that a student of the full set is trained on
LOOKED = 100  # images whose nearest are looked for in one task
STUDENTS, LEAKAGE = "students.json", "leakage.json"

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Test:
    """The images that students are tested on.

    Attributes:
        tiles, shards: where they are.
        rows: int64 (n,), see `TileDataset`.
        codes: int64 (n,) their classes.
        digest: of what decides which they are.
    """

    tiles: Tiles
    shards: tuple[str, ...]
    rows: Rows
    codes: NDArray[np.int64]
    digest: str


@dataclass(frozen=True)
class Exam:
    """What every student is told.

    Attributes:
        folder: ``distilled/<id>``.
        drawn: with an image, of the set.
        tiles, shards: of the archive.
        classes: of it.
        settings: ``distill.students``.
        seed: of the first student; the others' follow.
        test: what they are tested on.
    """

    folder: Folder
    drawn: tuple[Drawn, ...]
    tiles: Tiles
    shards: tuple[str, ...]
    classes: Classes
    settings: StudentsConfig
    seed: int
    test: Test

    @property
    def marks(self) -> Folder:
        """Where each student's mark lies."""
        made_of = [VERSION, self.settings.steps, self.test.digest]
        return self.folder.child(f"students/{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}")


def held_out(tiles: Tiles, shards: Sequence[str], classes: Classes) -> Test | None:
    """The archive's own samples that nothing has learned from; None where there are none (a task)."""
    codes, held = classes.read()
    rows = np.flatnonzero(held)
    if not len(rows):
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(np.int64))]
    return Test(tiles, tuple(shards), rows, codes[rows].astype(np.int64), id_of(classes.folder))


def test_rows(
    store: CatalogStore, shards: Sequence[str], source: Labels, names: Sequence[str], shared: Sequence[str]
) -> tuple[Rows, NDArray[np.int64], list[str]]:
    """Of a labelled test set: rows that count, their classes, and labels that are no class (a task)."""
    ids = pa.concat_arrays([store.read(shard, ["sample_id"])["sample_id"].combine_chunks() for shard in sorted(shards)])
    labels = pa.concat_arrays([source.read(store, shard) for shard in sorted(shards)])
    codes = pc.index_in(labels, pa.array(names, pa.string())).fill_null(-1).to_numpy(zero_copy_only=False)
    out = pc.is_in(ids, value_set=pa.array(list(shared), pa.string())).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((codes >= 0) & ~out)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(np.int64))] if len(rows) else rows
    others = sorted(set(labels.drop_null().unique().to_pylist()) - set(names))
    return rows, codes[rows].astype(np.int64), others


def judge(exam: Exam, images: Any, pool: Pool) -> dict[str, Any]:
    """``students.json``: what students of each arm reach, those trained that are wanting.

    Args:
        exam: what all are told.
        images: reference to the real images.
        pool: says which device there is.
    """
    seeds = range(exam.seed, exam.seed + exam.settings.seeds)
    task: Any = ray.remote(num_cpus=min(1.0, pool.cpus), num_gpus=pool.gpus)(_student)
    shared = ray.put(exam)
    tasks = {(arm, seed): task.remote(shared, images, arm, seed, pool.device) for seed in seeds for arm in ARMS}
    with stage("students", len(tasks), "students") as done:
        left = list(tasks.values())
        while left:
            ready, left = ray.wait(left)
            ray.get(ready)
            done(1)
    figures = {arm: [float(ray.get(tasks[arm, seed])) for seed in seeds] for arm in ARMS}
    about = {**summarise(figures), "tested": len(exam.test.rows), "steps": exam.settings.steps}
    exam.folder.publish(STUDENTS, json_bytes(about))
    return about


def _student(exam: Exam, images: Images, arm: str, seed: int, device: str) -> float:
    """The macro accuracy of one student."""
    path = f"{arm}-{seed}.json"
    if not exam.marks.exists(path):
        start_torch(device, 1)
        test = Labelled(TileDataset(exam.test.tiles, exam.test.shards, CACHE).read(exam.test.rows), exam.test.codes)
        train, classes = _of_arm(exam, images, arm, seed), len(exam.classes.names)
        mark = train_student(train, test, classes, seed=seed, steps=exam.settings.steps, device=device)
        exam.marks.publish(path, json.dumps(mark).encode())
    return float(json.loads(exam.marks.read(path)))


def _of_arm(exam: Exam, images: Images, arm: str, seed: int) -> Labelled:
    """What the students of an arm are trained on."""
    own = np.array([one.number for one in exam.drawn], np.int64)
    if arm == "distilled":
        return Labelled(np.stack([pixels_of(exam.folder, one) for one in exam.drawn]), own)
    dataset = TileDataset(exam.tiles, exam.shards, CACHE)
    codes, held = exam.classes.read()
    learned = np.flatnonzero((codes >= 0) & ~held)  # in the order of `images`
    if arm == "prototypes":
        starts = dict(zip(dataset.shards, dataset.starts.tolist(), strict=False))
        rows = np.array([starts[one.shard] + one.row for one in exam.drawn], np.int64)
    elif arm == "random":
        counts = np.bincount(own, minlength=len(exam.classes.names)).tolist()
        rows = learned[random_rows(images.ids.astype("U32").tolist(), codes[learned], counts, seed)]
    else:
        most = min(most_seen(exam.settings.steps), MOST_BYTES // exam.tiles.nbytes)
        rows = learned[drawn(images.ids, seed, most)]
    return Labelled(dataset.read(rows), codes[rows].astype(np.int64))


# leakage


def tell_leakage(config: Config, folder: Folder, found: Sequence[Drawn], real: Real, limits: Limits) -> dict[str, Any]:
    """``leakage.json``: how near the images come to real ones, and whether they tell which were learned from.

    Args:
        config: of the run.
        folder: ``distilled/<id>``.
        found: what was drawn for every prototype.
        real: the real images.
        limits: from where on an image was too near.
    """
    if not folder.exists(LEAKAGE):
        with stage("leakage"):
            synthetic = submit(_synthetic, config, folder, list(found))
            own = [one.sample_id for one in found]
            seen = []
            for images, wanted, without in ((real.images, None, own), (real.held, None, []), (real.images, own, [])):
                tasks = [
                    submit(_look, config, synthetic, images, wanted, without, config.seed, start)
                    for start in range(0, TESTED, LOOKED)
                ]
                seen.append([one for part in ray.get(tasks) for one in part])
            chosen = [one.chosen for one in found]
            kept = [Seen(c.similarity, c.nearest, c.ssim, c.ssim_nearest) for c in chosen if c]  # type: ignore[arg-type]
            dropped = sum(candidate.leaks for one in found for candidate in one.candidates)
            told = account(kept, real.baseline, limits, Membership.of(*seen), dropped, chosen.count(None))
            folder.publish(LEAKAGE, json_bytes(told))
    return dict(json.loads(folder.read(LEAKAGE)))


def _synthetic(config: Config, folder: Folder, found: list[Drawn]) -> Images:
    kept = [one for one in found if one.chosen]
    pixels = np.stack([pixels_of(folder, one) for one in kept])
    return Images.held([f"{one.cluster:032x}" for one in kept], pixels, _embedder(config))


def _look(
    config: Config,
    synthetic: Images,
    images: Images,
    wanted: list[str] | None,
    without: list[str],
    seed: int,
    start: int,
) -> list[Seen]:
    """What is nearest among the synthetic images to a few of some real ones."""
    ids = images.ids
    some = np.isin(ids, np.array(without if wanted is None else wanted, "S32"), invert=wanted is None)
    places = np.flatnonzero(some)
    places = places[drawn(ids[places], seed, TESTED)][start : start + LOOKED] if len(places) else places
    if not len(places):
        return []
    return Checker(synthetic, _embedder(config)).look(np.stack([images.read(int(place)) for place in places]))


def _embedder(config: Config) -> Any:
    return embedder(config, Folder(str(config.workspace), config.runtime.storage, "workspace"), "cpu")
