"""``curate compare``: which way of pruning this archive is worth it, at which budget, with honest statistics.

What all arms share (catalogs, tiles, selections, the scorer's features) is made once; then every arm and measure is a
Ray task that leaves a file. A comparison that was stopped goes on from there, and one that is asked for more arms
measures only those.
"""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from curation.archive.listing import Root, list_archive
from curation.catalog.artefact import portable_encoder, same_eyes
from curation.catalog.build import Catalog, build_catalog
from curation.catalog.fit import check_bank
from curation.catalog.labels import Labels
from curation.catalog.store import parquet_bytes
from curation.catalog.tiles import build_tiles
from curation.config import Config, described_encoder, load_config, options_of, to_dict
from curation.errors import CurationError, RequestError
from curation.evaluation import verdicts
from curation.evaluation.arms import FULL, VERSION, Arm, Task, measure, prefix, refer, task_of
from curation.evaluation.disjoint import find_shared, told
from curation.evaluation.page import write_comparison
from curation.evaluation.samples import classes_apart, decisive, gather, kept_rows
from curation.evaluation.selections import Selected, select_budgets
from curation.evaluation.verdicts import RANDOM
from curation.manifests.exchange import submit
from curation.manifests.request import check_budget
from curation.manifests.schema import json_bytes
from curation.runtime import versions
from curation.selection.strategies import STRATEGIES
from curation.stages import VERSIONS, Run, config_without_urls
from curation.storage import public_url

log = logging.getLogger("curation")

TEST = "test_set"  # the test set's root name
SCORER = {"name": "random_conv", "seed": 1000}
UNLABELLED = (
    "stratified",
    "entropy",
    "rs_prune",
    "balanced",
    "hierarchical",
    "semdedup",
    "k_center",
    "facility_location",
)
LABELLED = ("el2n", "ccs", "margin", "sims", "oracle")
COLLAPSED = 0.1  # spread of pre-trained vectors below which they say nothing, see `pretraining.Pretrained`
FEW = 5  # seeds below which a warning is due
SHOWN = 5  # classes in a message
LEAST_TEST = 20  # samples that may decide

RESULTS = pa.schema(
    [
        pa.field("strategy", pa.string(), nullable=False),
        pa.field("budget", pa.float64(), nullable=False),  # share of the archive; 1: all of it
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("kept", pa.int64(), nullable=False),  # samples
        pa.field("measure", pa.string(), nullable=False),  # cheap, label or pretraining
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),  # that the measurement took, all its metrics together
    ]
)


class Comparison:
    """A comparison under way.

    Args:
        run: the job.
        arguments: that it was called with; each strategy's own go behind them.
    """

    def __init__(self, run: Run, arguments: Sequence[str]) -> None:
        self.run, self.config, self.settings = run, run.config, run.config.compare
        self.warnings: list[str] = []
        self.scorer = replace(self.config, encoder=_scorer(self.config))
        self.strategies = self._strategies(arguments)
        self.test_root = _test_root(self.config, run.roots)
        if self.settings.seeds < FEW:
            self.warn(
                f"with fewer than {FEW} seeds only large differences can be told (compare.seeds={self.settings.seeds})"
            )

    def warn(self, text: str) -> None:
        """Tell the user, now and on the page."""
        log.warning("compare: %s", text)
        self.warnings.append(text)

    def _strategies(self, arguments: Sequence[str]) -> dict[str, Config]:
        """The config of each strategy; `_labels_known` takes those away that the data cannot serve."""
        asked = self.settings.named_strategies
        if not asked:
            known = [name for name in (*UNLABELLED, *LABELLED) if name in options_of("select")]
            if self.config.references.url is None:
                known.remove("rs_prune")
            if self.config.encoder["name"] == "precomputed":
                known = [name for name in known if name not in ("entropy", "rs_prune")]
            asked = {name: [f"select={name}"] for name in known}
        asked = {RANDOM: [f"select={RANDOM}"], **asked}
        common = [text for text in arguments if text.partition("=")[0] not in ("select", "select.budget")]
        least, found = f"select.budget={min(self.settings.budgets)}", {}
        for name, keys in asked.items():
            try:
                found[name] = load_config([*common, *keys, least])
            except RequestError as error:
                if self.settings.strategies is not None or name == RANDOM:
                    raise
                self.warn(f"{name} is left out: {error}")
        return found

    # what the arms share

    def prepare(self) -> None:
        """Catalogs, the test set, and everything that is held of the samples.

        Raises:
            RequestError: scorer or test set cannot serve.
        """
        run, config = self.run, self.config
        self.catalog = run.catalog()
        self.scored = build_catalog(self.scorer, run.roots, run.bank, run.resources, filter=run.filter)
        same = self.scored.artefact.sha256 == self.catalog.artefact.sha256
        if same and self.scorer.encoder["name"] == config.encoder["name"] == "random_conv":
            raise RequestError(SAME)
        labels = Labels.of(config.score.label, run.tables)
        self.samples, self.count, labelled = gather(self.catalog.store, self.scored.store, self.catalog.shards, labels)
        if self.count < self.catalog.counts["kept"]:
            lacking = self.catalog.counts["kept"] - self.count
            raise CurationError(f"the scorer has no features of {lacking} samples: take another compare.scorer")
        self.counts = {"samples": self.count, "labelled": labelled}
        least = min(self.settings.budgets)
        if check_budget(least, self.count) < 2:
            raise RequestError(
                f"compare.budgets: {least:g} of {self.count} samples is not two, and trains nothing: raise it"
            )
        tested = self._catalog_of_test() if self.test_root else None
        made_of = [
            *(self.catalog.store.catalog_id, self.catalog.artefact.sha256, self.catalog.digest),
            *(self.scored.store.catalog_id, self.scored.artefact.sha256, self.catalog.bank_digest),
            *(tested.digest if tested else None, self.settings.size, VERSION),
            *([labels.identity] if labels.table else []),
        ]
        self.name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        self.folder = run.workspace.child(f"comparisons/{self.name}")
        self.reference = submit(refer, self.samples, 0)
        self.measures: list[str] = []
        self.about_test: list[Any] = [None] * 4
        if tested:
            self._prepare_test(tested)
        else:
            self.warn("there is no compare.test.url: only cheap measures are taken, and these decide nothing")
        if self.settings.strategies is None and not labelled:
            self.strategies = {name: one for name, one in self.strategies.items() if name not in LABELLED}

    def _catalog_of_test(self) -> Catalog:
        """The test set as one more root of the scorer's catalog.

        Raises:
            RequestError: its pixels are not the archive's kind, or cannot be read.
        """
        assert self.test_root
        check_bank(self.scorer, self.test_root, self.scored.artefact, "the test set")
        tested = build_catalog(self.scorer, [self.test_root], None, self.run.resources)
        if not tested.counts["kept"]:
            raise RequestError(f"none of the {tested.counts['read']} samples of compare.test.url can be used")
        return tested

    def _prepare_test(self, tested: Catalog) -> None:
        """See which test samples may decide, and make the tiles that are trained on."""
        test, count, _ = gather(None, self.scored.store, tested.shards, Labels())
        shared = self._shared(tested)
        rows, decide = submit(decisive, test, sorted(shared), returns=2)
        self.counts |= {"test": count, "test_shared": len(shared), **ray.get(decide)}
        if text := told(shared, count):
            self.warn(text)
        if bare := self.counts["test_unlabelled"]:
            self.warn(f"{bare} of {count} test samples have no label: they are left out")
        lacking, ours, several = ray.get(submit(classes_apart, self.samples, test, rows))
        if self.counts["test_deciding"] < LEAST_TEST or several < 2:
            raise RequestError(
                f"compare.test.url leaves {self.counts['test_deciding']} labelled samples of "
                f"{self.counts['test_classes']} classes that archive and bank do not have; {LEAST_TEST} samples, and "
                "two classes of two, are the least: give a labelled test set that is disjoint from the archive"
            )
        size, resources = self.settings.size, self.run.resources
        tiles = build_tiles(self.scorer, self.run.roots, self.scored, resources, size)
        assert self.test_root
        test_tiles = build_tiles(self.scorer, [self.test_root], tested, resources, size)
        self.about_test = [tiles, test, rows, test_tiles]
        self.measures = list(self.settings.measures)
        if "label" in self.measures and self.counts["labelled"] < 2:
            self.warn("the archive has no labels: the label measure is left out")
            self.measures.remove("label")
        if "label" in self.measures:
            self._check_classes(lacking, ours)

    def _check_classes(self, lacking: dict[str, int], ours: list[str]) -> None:
        """See that the archive's labels can teach the test set's classes.

        Raises:
            RequestError: they have none in common.
        """
        named = ", ".join(list(lacking)[:SHOWN])
        if len(lacking) == self.counts["test_classes"]:
            raise RequestError(
                f"archive and compare.test.url have no class in common (archive: {', '.join(ours[:SHOWN])}; "
                f"test: {named}): name them alike, say by score.label which column has the archive's, or take "
                "compare.measures=[pretraining]"
            )
        if lacking:
            count = sum(lacking.values())
            self.warn(
                f"{count} test samples are of classes that the archive lacks ({named}), and count as wrong by label"
            )

    def _shared(self, tested: Catalog) -> dict[str, str]:
        """Test samples that archive or bank have too; looked for once."""
        path = "disjoint.json"
        if not self.folder.exists(path):
            others = [*self.scored.shards, *self.scored.bank]
            found = find_shared(self.scored.store, tested.shards, others)
            self.folder.publish(path, json_bytes(found))
        return dict(json.loads(self.folder.read(path)))

    # selections

    def select(self) -> list[tuple[Arm, Any, str]]:
        """Every arm with a reference to its rows and a digest of its samples."""
        first, below = self.config.seed, f"comparisons/{self.name}"
        self.selected: dict[str, list[Selected]] = {name: [] for name in self.strategies}
        waiting = []
        for seed in range(first, first + self.settings.seeds):
            waiting.append((Arm(FULL, 1.0, seed, self.count), *self._prefix(None, self.count)))
            for name, strategy in self.strategies.items():
                config = replace(strategy, seed=seed)
                one = select_budgets(self.run, self.catalog, config, self.settings.budgets, below, name, first)
                self.selected[name].append(one)
                folders = {path: self.run.workspace.child(path) for path in one.manifests.values()}
                ranked = {path: submit(kept_rows, folder, self.samples) for path, folder in folders.items()}
                for budget, path in one.manifests.items():
                    count = check_budget(budget, self.count)
                    waiting.append((Arm(name, budget, seed, count), *self._prefix(ranked[path], count)))
        self._warn_of_refused()
        return [(arm, rows, ray.get(digest)) for arm, rows, digest in waiting]

    def _prefix(self, ranked: Any, count: int) -> tuple[Any, Any]:
        rows, digest = submit(prefix, self.samples, ranked, count, returns=2)
        return rows, digest

    def _warn_of_refused(self) -> None:
        """Leave out for all seeds what one of them has no selection for.

        Raises:
            RequestError: nothing is left of random, or of a strategy that was asked for.
        """
        for name, found in self.selected.items():
            refused = {budget: reason for one in found for budget, reason in one.refused.items()}
            if len(refused) == len(self.settings.budgets) and (self.settings.strategies or name == RANDOM):
                raise RequestError(f"{name} has no selection at any budget: {refused[min(refused)]}")
            for budget, reason in refused.items():
                self.warn(f"{name} has no selection at {verdicts.share(budget)} and is left out there: {reason}")
                for one in found:
                    one.refused.setdefault(budget, reason)

    # measurements

    def measure(self, arms: Sequence[tuple[Arm, Any, str]]) -> list[dict[str, Any]]:
        """The figures of every arm by every measure."""
        done, waiting = [], []
        lost = {(name, budget) for name, found in self.selected.items() for one in found for budget in one.refused}
        for arm, rows, digest in arms:
            if (arm.strategy, arm.budget) in lost:
                continue
            for name in ("cheap", *self.measures):
                task = task_of(arm, name, self.settings.steps, digest)
                if self.folder.exists(task.path):
                    done.append(self._reread(task))
                else:
                    waiting.append((task, rows))
        if waiting:
            log.info("compare: %d of %d measurements to take", len(waiting), len(done) + len(waiting))
        waiting.sort(key=lambda item: (item[0].measure != "cheap", -item[0].arm.budget))  # the longest first
        return done + list(_progress([self._submit(task, rows) for task, rows in waiting]))

    def _submit(self, task: Task, rows: Any) -> Any:
        others = [None] * 4 if task.measure == "cheap" else self.about_test
        return submit(measure, task, self.folder, self.samples, rows, self.reference, *others)

    def _reread(self, task: Task) -> dict[str, Any]:
        told = dict(json.loads(self.folder.read(task.path)))
        return told | {"arm": asdict(task.arm)}

    # what is told of it

    def publish(self, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Write results, verdicts and the page; the result line."""
        rows = sorted(
            (
                {**one["arm"], "measure": one["measure"], "metric": metric, "value": value, "seconds": one["seconds"]}
                for one in figures
                for metric, value in one["metrics"].items()
            ),
            key=lambda row: (row["strategy"], row["budget"], row["seed"], row["measure"], row["metric"]),
        )
        table = pa.Table.from_pylist(rows, RESULTS)
        self._warn_of_collapse(rows)
        self.folder.publish("results.parquet", parquet_bytes(table))
        judged = verdicts.judge_all(table, self.measures)
        costs = self._costs(figures)
        url = public_url(self.test_root.folder.url) if self.test_root else None
        told = {
            "id": self.name,
            "samples": self.counts,
            "config": {
                "compare": {**to_dict(self.settings), "scorer": portable_encoder(self.scorer), "test": {"url": url}},
                "seed": self.config.seed,
                "encoder": portable_encoder(self.config),
            },
            "strategies": {
                name: config_without_urls(config, self.run.tables)["select"] for name, config in self.strategies.items()
            },
            "refused": {
                f"{name}@{budget:g}": reason
                for name, found in self.selected.items()
                for budget, reason in found[0].refused.items()
            },
            "costs": costs,
            "warnings": self.warnings,
            **judged,
            "advice": verdicts.advice(judged, costs),
            "environment": {"python": platform.python_version(), "machine": platform.machine(), **versions(VERSIONS)},
        }
        self.folder.publish("comparison.json", json_bytes(verdicts.plain(told)))
        report = write_comparison(self.run.workspace, told, table)
        log.info("\n%s\n", verdicts.short_table(told))
        for line in told["advice"]:
            log.info("%s", line)
        log.info("report    %s", report)
        return {
            "comparison": self.folder.public("comparison.json"),
            "report": report,
            "verdict": told["verdict"],
            "best": told["best"],
            "advice": " ".join(told["advice"]),
        }

    def _warn_of_collapse(self, rows: Sequence[Mapping[str, Any]]) -> None:
        flat = [row for row in rows if row["metric"] == "spread" and row["value"] < COLLAPSED]
        if flat:
            self.warn(
                f"{len(flat)} pre-trainings collapsed into one direction, such as that of {flat[0]['strategy']}: their "
                "figures say nothing of what was kept; take more compare.steps"
            )

    def _costs(self, figures: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
        """Seconds a seed of each strategy: clusters, scores and selection; and of each measurement."""
        fits: dict[tuple[str, int], dict[str, float]] = {}
        for found in self.selected.values():
            for seed, one in enumerate(found):  # who came first has paid for all
                paid = fits.setdefault((one.clusters, seed), {"cluster": 0.0, "score": 0.0})
                paid["cluster"] = max(paid["cluster"], one.cluster_seconds)
                paid["score"] = max(paid["score"], one.score_seconds)
        costs: dict[str, dict[str, float | None]] = {FULL: {"cluster": 0.0, "score": 0.0, "select": 0.0}}
        for name, found in self.selected.items():
            paid_for = [fits[one.clusters, seed] for seed, one in enumerate(found)]
            strategy = STRATEGIES[self.strategies[name].select.strategy]
            costs[name] = {
                "cluster": _mean([paid["cluster"] for paid in paid_for]) if strategy.strata == "cluster" else 0.0,
                "score": _mean([paid["score"] for paid in paid_for]) if strategy.scored else 0.0,
                "select": _mean([one.select_seconds for one in found]),
            }
        for name, cost in costs.items():
            for way in ("cheap", *self.measures):
                taken = [
                    told["seconds"] for told in figures if (told["arm"]["strategy"], told["measure"]) == (name, way)
                ]
                cost[way] = _mean(taken) if taken else None
        return costs


SAME = (
    "compare.scorer is the encoder that selects, and would flatter what it chose: give it another seed or checkpoint, "
    "such as compare.scorer={name: random_conv, seed: 1000}"
)


def compare(run: Run, arguments: Sequence[str]) -> dict[str, Any]:
    """Compare strategies on a run's archive.

    Returns:
        The result line: ``comparison``, ``report``, ``verdict``, ``best``, ``advice``.

    Raises:
        RequestError: the request cannot be served.
    """
    comparison = Comparison(run, arguments)
    comparison.prepare()
    return comparison.publish(comparison.measure(comparison.select()))


def _scorer(config: Config) -> dict[str, Any]:
    """The encoder whose features score.

    Raises:
        RequestError: it is the one that selects, or a part of it.
    """
    said = config.compare.scorer
    scorer = described_encoder("compare.scorer", SCORER if said is None else said)
    if same_eyes(config.encoder, scorer):
        raise RequestError(SAME)
    return scorer


def _test_root(config: Config, roots: Sequence[Root]) -> Root | None:
    """The test set's listing."""
    if config.compare.test.url is None:
        return None
    if any(root.name == TEST for root in roots):
        raise RequestError(f"archive.url: no root of the archive may be called {TEST!r}: give it another name")
    (root,) = list_archive({TEST: config.compare.test.url}, config.runtime.storage, config.archive)
    return root


def _mean(seconds: Sequence[float]) -> float:
    return round(float(np.mean(seconds)), 1)


def _progress(running: list[Any]) -> Iterator[dict[str, Any]]:
    """Results as they come, and a line now and then."""
    total, began, shown = len(running), time.monotonic(), time.monotonic()
    while running:
        done, running = ray.wait(running)
        yield from ray.get(done)
        if (now := time.monotonic()) - shown > 15:
            finished = total - len(running)
            left = (now - began) * len(running) / finished
            log.info("compare: %d of %d measurements, about %.0f s left", finished, total, left)
            shown = now
