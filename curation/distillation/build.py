"""``curate distill``: from a labelled catalog to a few synthetic images a class, and what they are worth (Ray).

Each step leaves files under a name that is the hash of what decides it; the same command goes on from there, and what
another request shares with this one is not made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from ray.exceptions import OutOfDiskError

from curation.archive.listing import list_archive
from curation.catalog.build import Catalog, build_catalog, check_bad_fraction
from curation.catalog.fit import check_bank
from curation.catalog.labels import Labels
from curation.catalog.store import CatalogStore, chunks
from curation.catalog.tiles import build_tiles
from curation.config import to_dict
from curation.distillation.captions import Captioned, captions_count, few
from curation.distillation.classes import build_classes, warn_of_small
from curation.distillation.drawn import Drawn
from curation.distillation.fit import Task, fit, model_folder
from curation.distillation.generate import PROTOTYPES, Spec, build_prototypes, generate, pixels_of, read_drawn
from curation.distillation.judge import Exam, Test, held_out, judge, tell_leakage, test_rows
from curation.distillation.latents import Latents, build_latents
from curation.distillation.leakage import Images, Limits
from curation.distillation.models import account_of, id_of, publish
from curation.distillation.pool import Pool
from curation.distillation.pretrained import Weights, find_weights
from curation.distillation.real import Real, build_real
from curation.distillation.settings import DistillConfig
from curation.distillation.write import Lineage, Units, write_set
from curation.errors import CurationError, RequestError, require
from curation.evaluation.disjoint import find_shared
from curation.evaluation.disjoint import told as told_of_shared
from curation.manifests.exchange import submit
from curation.manifests.schema import HEADER_FILE, Manifest
from curation.report.distilled import write_page
from curation.runs import stage
from curation.runtime import versions
from curation.stages import Run, config_without_urls
from curation.storage import Folder, file_name

log = logging.getLogger("curation")

VERSION = 2  # raise when the same request would give other images
TEST = "test_set"  # the test set's root name
SIZE = 32  # pixels a side, where nothing says
LEAST_SIDE = 4  # places a side of a latent
LIBRARIES = ("diffusers", "peft", "scikit-learn", "transformers")
KEYS = ("seed", "archive", "encoder", "catalog")  # that a distilled set is made by, besides its own
APART = ("checkpoint", "restarts", "students", "test")  # settings that leave the images as they are
FULL = errno.ENOSPC, errno.EDQUOT


def distill(run: Run) -> dict[str, Any]:
    """Distil, or go on; the result line.

    Raises:
        RequestError: archive, labels, weights or settings do not go together.
        CurationError: there is no space left, a worker died too often, or too many samples are quarantined.
    """
    with full_disks_told(run.workspace):
        return _Distillation(run).run()


@contextmanager
def full_disks_told(workspace: Folder) -> Iterator[None]:
    """Say in one line that there is no space left, whoever found out."""
    try:
        yield
    except (OSError, OutOfDiskError) as error:
        known = getattr(error, "cause", error)  # Ray wraps what a task raised
        if isinstance(error, OSError) and getattr(known, "errno", None) not in FULL:
            raise
        raise CurationError(
            f"no space is left to write on ({workspace.public()}): make some, and the same command goes on from what "
            "is done"
        ) from error


@dataclass(frozen=True)
class _Models:
    """Folders of what was trained, the latents, and what a model of text was told of each class."""

    autoencoder: Folder
    latents: Latents
    classifier: Folder
    denoiser: Folder
    texts: list[str]


class _Distillation:
    """A distillation under way."""

    def __init__(self, run: Run) -> None:
        given = run.config.distill.weights is not None
        settings = replace(run.config.distill, diffusion=run.config.distill.diffusion.filled(given))
        self.run_, self.config, self.settings, self.seed = run, run.config, settings, run.config.seed
        self.workspace, self.resources = run.workspace, run.resources
        self.source = Labels.of(settings.label, run.tables, "distill.label")
        self.weights = find_weights(settings.weights) if settings.weights else None
        self.pool = Pool.of(self.config.runtime, self.resources, settings.threads, settings.restarts)
        self.warnings: list[str] = []

    def run(self) -> dict[str, Any]:
        """All of it."""
        settings, catalog = self.settings, self.run_.catalog()
        self.catalog, self.shards = catalog, tuple(sorted(catalog.shards))
        size = self._size(catalog)
        with stage("labels"):
            holdout = 0.0 if settings.test.url else settings.holdout
            self.classes = build_classes(catalog, self.source, holdout, settings.label)
        self._tell_classes()
        tested = self._catalog_of_test()
        with stage("tiles"):
            self.tiles = build_tiles(self.config, self.run_.roots, catalog, self.resources, size)
        real = build_real(self.config, catalog, self.tiles, self.classes, self.pool)
        limits = real.baseline.limits(settings.leakage.quantile)
        self.warnings += real.baseline.warnings(limits)
        models = self._models(size)
        folder, made_of = self._folder(models)
        arguments = self.classes, settings.ipc, settings.prototypes, self.seed
        prototypes = build_prototypes(folder, models.latents, catalog.store, self.shards, *arguments)
        names = models.autoencoder, models.classifier, models.denoiser
        spec = Spec(self.config, settings, folder, models.latents, self.shards, *names, limits, self.pool)
        generate(spec, prototypes, real.images)
        found: list[Drawn] = ray.get(submit(read_drawn, folder, prototypes))
        with stage("write"):
            manifest = self._write(folder, found, made_of, limits)
        leakage = tell_leakage(self.config, folder, found, real, limits)
        marks = self._judge(folder, found, real, tested, size)
        with stage("report"):
            told = Units.of(catalog.artefact), leakage, marks
            report = ray.get(submit(_write_page, self.workspace, folder, found, real.images, *told))
        return self._told(manifest, report, marks)

    # what is asked

    def _size(self, catalog: Catalog) -> int:
        """Pixels a side of what is made.

        Raises:
            RequestError: the weights are not for such images, or no latent is of such a size.
        """
        if self.weights is not None:
            return self.weights.fit(catalog.artefact.bands, self.settings.size)
        size, factor = self.settings.size or SIZE, self.settings.autoencoder.factor
        require(
            size % factor == 0 and size // factor >= LEAST_SIDE,
            f"distill.size={size}: with distill.autoencoder.factor={factor} give a multiple of {factor}, "
            f"{LEAST_SIDE * factor} or above",
        )
        return size

    def _tell_classes(self) -> None:
        classes = self.classes
        if warning := warn_of_small(classes, self.settings.ipc):
            self.warnings.append(warning)
        log.info(
            "distill: %d classes, %d samples to learn from, %d held out; %d images",
            *(len(classes.names), sum(classes.learned), sum(classes.held), sum(classes.images(self.settings.ipc))),
        )

    def _catalog_of_test(self) -> Catalog | None:
        """The test set in the archive's catalog; None where there is none.

        Raises:
            RequestError: its pixels are not the archive's kind, or cannot be read.
        """
        config, url = self.config, self.settings.test.url
        if url is None:
            return None
        if any(root.name == TEST for root in self.run_.roots):
            raise RequestError(f"archive.url: no root of the archive may be called {TEST!r}: give it another name")
        (self.test_root,) = list_archive({TEST: url}, config.runtime.storage, config.archive)
        check_bank(config, self.test_root, self.catalog.artefact, "distill.test.url")
        tested = build_catalog(config, [self.test_root], None, self.resources)
        if not tested.counts["kept"]:
            raise RequestError(f"none of the {tested.counts['read']} samples of distill.test.url can be used")
        return tested

    # the models

    def _models(self, size: int) -> _Models:
        """Those that are wanting, trained."""
        settings, of_classes = self.settings, id_of(self.classes.folder)
        autoencoder, side = self._autoencoder(of_classes), size // self._factor
        shape = (self.weights.channels if self.weights else settings.autoencoder.channels), side, side
        arguments = self.tiles, self.shards, autoencoder, shape, self.workspace, self.pool
        latents = build_latents(*arguments)
        common = [id_of(latents.folder), of_classes, self.seed]
        classifier = model_folder(self.workspace, "classifier", settings, common)
        taught, texts = settings.diffusion.consistency > 0, self._texts()
        begun = [self.weights.digest, texts] if self.weights else None
        decisive = [*common, begun, id_of(classifier.parent) if taught else None]
        denoiser = model_folder(self.workspace, "denoiser", settings, decisive)
        batches = math.ceil(sum(self.classes.learned) / settings.classifier.batch)
        steps = min(settings.classifier.steps, settings.classifier.epochs * batches)
        of_classifier = replace(self._task("classifier", classifier, steps), latents=latents)
        teacher = classifier if taught else None
        of_denoiser = replace(
            self._task("denoiser", denoiser, settings.diffusion.steps or 0),
            **{"latents": latents, "weights": self.weights, "texts": tuple(texts), "teacher": teacher},  # type: ignore[arg-type]
        )
        account, _ = fit([of_classifier, of_denoiser], self.resources)
        if account["accuracy"] is not None:
            told = f"{100 * account['accuracy']:.1f} % of {account['checked']} samples that it did not learn from"
            log.info("distill: the classifier that chooses knows %s", told)
        return _Models(autoencoder, latents, classifier, denoiser, texts)

    @property
    def _factor(self) -> int:
        return self.weights.factor if self.weights else self.settings.autoencoder.factor

    def _task(self, kind: str, folder: Folder, steps: int) -> Task:
        mix = self.config.runtime.mix_profiles
        return Task(kind, self.settings, self.seed, folder, self.classes, self.shards, steps, mix)

    def _autoencoder(self, of_classes: str) -> Folder:
        """Trained, or the weights' own."""
        settings = self.settings
        if self.weights is not None:
            folder = self.workspace.child(f"distilled/models/{self.weights.digest[:16]}/autoencoder")
            if account_of(folder) is None:
                ray.get(submit(_keep_autoencoder, self.weights, folder))
            return folder
        made_of = [id_of(self.tiles.folder), of_classes, self.seed]
        folder = model_folder(self.workspace, "autoencoder", settings, made_of)
        task = replace(self._task("autoencoder", folder, settings.autoencoder.steps), tiles=self.tiles)
        (account,) = fit([task], self.resources)
        log.info("distill: the autoencoder gives tiles back at %.1f dB", account["psnr"])
        return folder

    def _texts(self) -> list[str]:
        """What a model of text is told of each class; nothing where there is none."""
        wanted = captions_count(self.settings)
        if self.weights is None:
            return []
        captions: list[Any] = []
        if wanted:
            arguments = self.catalog.store, self.source
            captions = [submit(_captions, *arguments, list(some)) for some in chunks(self.shards, 100)]
        texts: list[str] = ray.get(submit(_class_texts, self.weights, self.classes.names, self.settings, *captions))
        return texts

    # the set

    def _folder(self, models: _Models) -> tuple[Folder, dict[str, Any]]:
        """Where the set lies, and what it is made of."""
        settings = self.settings
        made_of: dict[str, Any] = {
            "archive": {"roots": [root.name for root in self.run_.roots], "digest": self.catalog.digest},
            "catalog": self.catalog.store.catalog_id,
            "artefact": self.catalog.artefact.sha256,
            "classes": id_of(self.classes.folder),
            "latents": id_of(models.latents.folder),
            "models": {
                kind: id_of(folder.parent) for kind, folder in vars(models).items() if isinstance(folder, Folder)
            },
        }
        if models.texts:
            made_of["texts"] = dict(zip(self.classes.names, models.texts, strict=True))
        keys = "ipc", "candidates", "batch", "threads", "prototypes", "guidance", "leakage"
        own = {key: value for key, value in asdict(settings).items() if key in keys}
        decisive = json.dumps([VERSION, made_of, own, self.seed], sort_keys=True)
        name = hashlib.sha256(decisive.encode()).hexdigest()[:16]
        return self.workspace.child(f"distilled/{name}"), made_of

    def _write(self, folder: Folder, found: Sequence[Drawn], made_of: dict[str, Any], limits: Limits) -> Manifest:
        """Shards and manifest."""
        run, config = self.run_, self.config
        settled = replace(config, archive=self.catalog.artefact.settled(config.archive))
        content = {key: value for key, value in config_without_urls(settled, run.tables).items() if key in KEYS}
        own = {key: value for key, value in to_dict(self.settings).items() if key not in APART}
        if self.weights is not None:
            own["weights"] = [file_name(self.weights.name), self.weights.digest]
        digest = hashlib.sha256(folder.read(PROTOTYPES)).hexdigest()
        made_of = {**made_of, "prototypes": digest}
        lineage = Lineage({**content, "distill": own}, made_of, limits.as_dict(), self.warnings)
        provenance = run.provenance()
        provenance["versions"] |= versions(LIBRARIES)
        units = Units.of(self.catalog.artefact)
        return ray.get(submit(_write_set, folder, list(found), units, lineage, provenance))  # type: ignore[no-any-return]

    def _judge(
        self, folder: Folder, found: Sequence[Drawn], real: Real, tested: Catalog | None, size: int
    ) -> dict[str, Any] | None:
        """What students reach; None where none are asked for, or nothing is there to test them on."""
        if not self.settings.students.seeds:
            return None
        if tested:
            test: Test | None = self._test(tested, size)
        else:
            test = ray.get(submit(held_out, self.tiles, self.shards, self.classes))
        if test is None:
            log.warning(
                "distill: nothing is held out, so that no student tells what the set is worth: give distill.holdout, "
                "or distill.test.url"
            )
            return None
        kept = tuple(one for one in found if one.chosen)
        arguments = self.tiles, self.shards, self.classes, self.settings.students, self.seed
        return judge(Exam(folder, kept, *arguments, test), real.images, self.pool)

    def _test(self, tested: Catalog, size: int) -> Test:
        """The test set's samples of the archive's classes that are not in the archive too.

        Raises:
            RequestError: there are none.
        """
        tiles = build_tiles(self.config, [self.test_root], tested, self.resources, size)
        shared = find_shared(self.catalog.store, tested.shards, self.shards)
        if told := told_of_shared(shared, tested.counts["kept"]):
            log.warning("distill: distill.test.url: %s", told)
        arguments = tested.store, tested.shards, self.source, self.classes.names, sorted(shared)
        rows, codes, others = ray.get(submit(test_rows, *arguments))
        if others:
            log.warning("distill: distill.test.url has %d classes that the archive lacks: %s", len(others), others[0])
        if not len(rows):
            raise RequestError("distill.test.url has no sample of the archive's classes, or all are in the archive too")
        return Test(tiles, tested.shards, rows, codes, tested.digest)

    def _told(self, manifest: Manifest, report: str, marks: dict[str, Any] | None) -> dict[str, Any]:
        """The result line.

        Raises:
            CurationError: too many samples of the archive are quarantined; everything was written.
        """
        result = {
            "manifest": manifest.url,
            "samples": manifest.samples,
            "kept": manifest.kept,
            "dropped": manifest.samples - manifest.kept,
            "quarantined": self.catalog.counts["quarantined"],
            "report": report,
            "classes": len(self.classes.names),
            "accuracy": marks and {name: round(arm["mean"], 4) for name, arm in marks["arms"].items()},
        }
        if marks and "words" in marks:
            log.info("distill: %s", marks["words"])
        log.info("manifest  %s\nreport    %s", result["manifest"], report)
        check_bad_fraction(self.config, self.catalog.sources, self.catalog.store.workspace, result)
        return result


# tasks


def _keep_autoencoder(weights: Weights, folder: Folder) -> None:
    from curation.distillation.weights import load_autoencoder

    publish(folder, load_autoencoder(weights).save, {"kind": "autoencoder", "weights": weights.digest})


def _captions(store: CatalogStore, source: Labels, shards: Sequence[str]) -> list[Captioned]:
    """Some captions of each class."""
    rows: list[Captioned] = []
    for shard in shards:
        table = store.read(shard, ["sample_id", "caption"])
        columns = table["sample_id"].to_pylist(), source.read(store, shard).to_pylist(), table["caption"].to_pylist()
        rows = few([*rows, *(row for row in zip(*columns, strict=True) if row[1] is not None and row[2] is not None)])
    return rows


def _class_texts(
    weights: Weights, names: Sequence[str], settings: DistillConfig, *captions: list[Captioned]
) -> list[str]:
    from curation.distillation.weights import class_texts

    texts: list[str] = class_texts(weights, names, settings, few(row for part in captions for row in part))
    return texts


def _write_set(
    folder: Folder, found: list[Drawn], units: Units, lineage: Lineage, provenance: dict[str, Any]
) -> Manifest:
    return write_set(folder, found, lambda one: pixels_of(folder, one), units, lineage, provenance)


def _write_page(
    workspace: Folder,
    folder: Folder,
    found: list[Drawn],
    images: Images,
    units: Units,
    leakage: dict[str, Any],
    marks: dict[str, Any] | None,
) -> str:
    header = json.loads(folder.read(HEADER_FILE))
    arguments = images, units, leakage, marks
    return write_page(workspace, id_of(folder), header, found, lambda one: pixels_of(folder, one), *arguments)
