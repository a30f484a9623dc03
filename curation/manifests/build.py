"""Draws a manifest from a catalog and its clusters: Ray tasks over parts and cluster ranges.

Each stage adds a layer of columns to every part and gives the driver counts.
What a stage decides rests on sample ids, the seed and counts over everything,
so that it does not depend on how rows are spread or in which order tasks end.
"""

import dataclasses
import hashlib
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.archive.tables import Table, columns_by_table
from curation.catalog.schema import catalog_schema
from curation.catalog.sources import SOURCES_FILE
from curation.catalog.store import CatalogStore
from curation.catalog.store import parquet_bytes as catalog_bytes
from curation.clustering.classifier import CLASSIFIER, Classifier
from curation.config import SelectConfig
from curation.errors import CurationError, RequestError
from curation.manifests import again, grown, guided, order, steps
from curation.manifests.again import Again
from curation.manifests.drift import Drift, Spread, entropy_shift, far_share, share_shift
from curation.manifests.duplicates import RANGES, distinct_ids, find_alike, find_duplicates, mark
from curation.manifests.exchange import Layers, exchange, submit
from curation.manifests.places import Found, find_places, unite
from curation.manifests.schema import (
    DECISIONS,
    DROPPED,
    FILES_FILE,
    FILES_SCHEMA,
    HEADER_FILE,
    KEPT,
    ROW_GROUP,
    SKETCHES,
    File,
    Manifest,
    content_id,
    decisions_path,
    json_bytes,
    parquet_bytes,
)
from curation.manifests.steps import PARTITIONS, ROWS_A_PARTITION, Guide, Plan, Strata, Survey
from curation.manifests.write import Written, write_part, write_rows
from curation.selection import counting, groups
from curation.selection.greedy import LIMIT
from curation.selection.guided import CALM, LEAST, SAMPLE
from curation.selection.guided import LIMIT as GUIDED_LIMIT
from curation.selection.lists import SampleList, parse_list
from curation.selection.places import CROWD, Rule
from curation.selection.quotas import cluster_weights, quotas
from curation.selection.strategies import STRATEGIES
from curation.selection.tree import Tree, parents_of
from curation.storage import Folder, file_name, public_url

log = logging.getLogger("curation")

ROWS_A_RANGE = 8 * ROW_GROUP  # kept rows that are merged at once
ROWS_WITH_VECTORS = 1 << 16  # rows of a partition that holds embeddings
LOSS = 0.9  # share of a class that the entropy stage may take before a warning names it
NAMED = 20  # classes in one warning
DAY = 86_400  # seconds
AT_ONCE = 64  # counts that wait to be added
OPTICAL = re.compile("red|green|blue|nir|B[0-9]{1,2}A?")  # what bands are called that clouds hide the ground in


def select(
    store: CatalogStore,
    clusters: Folder,
    settings: SelectConfig,
    seed: int,
    workspace: Folder,
    header: dict[str, Any],
    tables: Sequence[Table] = (),
    scores: Folder | None = None,
    label: str = "label",
    sources: pa.Table | None = None,
    parent: Again | None = None,
) -> Manifest:
    """Decide over every sample, and publish the manifest under its id; `manifests.latest` puts it in force.

    Args:
        store: the complete catalog.
        clusters: ``clusters/<id>``.
        settings: what to keep.
        seed: of the draws.
        workspace: where ``manifests/<id>`` goes.
        header: what the job knows of ``content`` and ``provenance``; counts, hashes and more warnings are added.
        tables: beside the archive.
        scores: ``scores/<id>``, where the strategy goes by a score.
        label: the column of the catalog or a table that has the classes, where it goes by them.
        sources: the archive's ledger, to lie beside the manifest.
        parent: what it goes on from.

    Raises:
        RequestError: the archive cannot give what is asked for.
    """
    selection = _Selection(store, clusters, settings, seed, workspace, tables, scores, label, sources, parent)
    selection.warnings += header["content"].get("warnings", [])
    selection.load()
    if settings.by:
        selection.settle_names("group")
    if selection.plan.strategy.labelled:
        selection.settle_names("label")
    if settings.unit:
        selection.settle_units()
    splits = "select.splits, " if selection.plan.splits else ""
    known = ", and what has a label or score," if selection.unscored else ""
    selection.check(f"{splits}select.exclude and select.clusters{known} leave")
    if settings.min_valid is not None or settings.max_cloud is not None:
        selection.drop_unclear(header["content"].get("bands", []))
        selection.check("the validity and cloud stage (select.min_valid, select.max_cloud) leaves")
    if settings.entropy.keep is not None:
        selection.cut_entropy(settings.entropy.keep)
        selection.check("the entropy stage leaves")
    if settings.place.overlap is not None:
        selection.drop_places(settings.place.overlap)
        if settings.grouped:
            selection.settle_units()
        selection.check("the place stage leaves")
    if settings.duplicates:
        selection.drop_duplicates()
        if settings.grouped:
            selection.settle_units()
        selection.check("the near-duplicate stage leaves")
    selection.draw()
    if parent is not None and parent.grow:
        selection.grow()
    return selection.publish(header)


class _Selection:
    """A selection under way: references to the rows, and what the driver has learnt of them."""

    def __init__(
        self,
        store: CatalogStore,
        clusters: Folder,
        settings: SelectConfig,
        seed: int,
        workspace: Folder,
        tables: Sequence[Table],
        scores: Folder | None,
        label: str,
        sources: pa.Table | None,
        parent: Again | None,
    ) -> None:
        self.settings, self.workspace, self.sources, self.again = settings, workspace, sources, parent
        self.folder = workspace.child(_unfinished(workspace))
        self.sketches: list[File] = []
        self.paths = [file.path for file in clusters.list("assignments") if file.path.endswith(".parquet")]
        names = ["scene", "size", "distance_mean", "distance_std", "neighbours"]
        self.centroids = pq.read_table(pa.BufferReader(clusters.read("centroids.parquet")), columns=names)
        self.sizes = self.centroids["size"].to_numpy()
        lists = {name: read_list(name, getattr(settings, name), workspace) for name in ("exclude", "require")}
        self.told: dict[str, Any] = {}
        self.warnings: list[str] = []
        guide = self.find_guide(clusters)
        columns, joined = _columns(settings, [listed for listed in lists.values() if listed], tables, label)
        if guide is not None:
            columns = tuple(sorted({*columns, "entropy"}))
        self.learn(
            Plan(
                store=store,
                clusters=clusters,
                settings=settings,
                seed=seed,
                excluded=_excluded_clusters(settings, len(self.sizes)),
                mean=self.centroids["distance_mean"].to_numpy(),
                std=self.centroids["distance_std"].to_numpy(),
                scene=self.centroids["scene"].combine_chunks(),
                partition=_partitions(self.sizes),
                lists={name: listed for name, listed in lists.items() if listed},
                columns=columns,
                joined=joined,
                splits=tuple(sorted(settings.splits or settings.held_out)),
                scores=scores,
                label=label,
                guide=guide,
            )
        )
        if self.plan.strategy.seats == "levels":
            ancestors = pq.read_table(pa.BufferReader(clusters.read("centroids.parquet")), columns=["ancestors"])
            self.parents = parents_of(
                np.array(ancestors["ancestors"].to_pylist(), np.int64).reshape(len(self.sizes), -1)
            )

    def find_guide(self, clusters: Folder) -> Guide | None:
        """The classes of the bank, if they are to guide; the header tells why they cannot.

        Raises:
            RequestError: they were asked for by a number.
        """
        asked = self.settings.guided
        if asked == 0 or not STRATEGIES[self.settings.strategy].guided:
            return None
        why, found = None, None
        if self.settings.grouped:
            why = "units of samples are kept or dropped together"
        elif not clusters.exists(CLASSIFIER):
            why = "there is no bank (references.url) with two labels or more"
        else:
            found = Classifier.from_bytes(clusters.read(CLASSIFIER))
            if np.isnan(found.least_entropy):
                why, found = "the bank's samples have no entropy", None
        if found is not None:
            return Guide(tuple(found.classes.tolist()), float(found.least_entropy) - CALM)
        if asked:
            raise RequestError(f"select.guided={asked:g}: {why}; take select.guided=0")
        self.told["guided"] = {"share": 0.0, "why_not": why}
        return None

    def learn(self, plan: Plan) -> None:
        """Replace the plan that tasks are told."""
        self.plan, self.shared = plan, ray.put(plan)

    def load(self) -> None:
        """Read all parts and apply the lists.

        Raises:
            RequestError: the budget, the lists or the entropies do not fit the archive.
        """
        if self.again is None:
            loaded = [submit(steps.load, self.shared, path, returns=4) for path in self.paths]
        else:
            befores = [self.again.before(number) for number in range(len(self.again.pieces))]
            lost = submit(distinct_ids, *(submit(again.gone_ids, before) for before in befores))
            loaded = [
                submit(again.load, self.shared, before, assigned, lost, returns=4)
                for before, assigned in zip(befores, self.again.assigned, strict=True)
            ]
        self.parts: list[Layers] = [[part[0]] for part in loaded]
        self.shards = [part[1] for part in loaded]
        self.surveys: list[Survey] = ray.get([part[2] for part in loaded])
        self.names = [part[3] for part in loaded]
        self.samples = sum(survey.rows for survey in self.surveys)
        self.learn(dataclasses.replace(self.plan, budget=check_budget(self.settings.budget, self.samples)))
        by_entropy = self.settings.entropy.keep is not None or self.plan.strategy.order == "entropy"
        if by_entropy and (unknown := sum(survey.without_entropy for survey in self.surveys)):
            raise RequestError(
                f"{unknown} of {self.samples} samples have no entropy (their vectors were computed elsewhere): "
                "take select=balanced with select.entropy.keep=null"
            )
        self.unscored = sum(survey.unscored for survey in self.surveys)
        if self.unscored == self.samples:
            raise RequestError(
                f"select.strategy={self.settings.strategy} needs labels, but by score.label={self.plan.label} none of "
                f"{self.samples} samples has one: give labels in sidecars, or in a table (archive.tables, "
                "score.label=COLUMN), or take a strategy that needs none, such as balanced"
            )
        for name, listed in self.plan.lists.items():
            if not sum(survey.matched[name] for survey in self.surveys):
                self.warn(f"select.{name}: {listed.name} matches no sample of the archive")
        if both := sum(survey.both for survey in self.surveys):
            self.warn(f"{both} samples are in both select.exclude and select.require: they are excluded")
        if self.plan.splits:
            self._check_splits()

    def _check_splits(self) -> None:
        """Say what the splits could not do.

        Raises:
            RequestError: no sample has a place.
        """
        placed = sum(survey.footprints for survey in self.surveys)
        if self.settings.splits and not placed:
            raise RequestError(
                "select.splits cuts by place, but no sample of the archive has a footprint: leave it out"
            )
        if self.settings.splits and placed < self.samples:
            self.warn(f"{self.samples - placed} samples have no footprint: select.splits leaves them to training")
        counts = np.sum([survey.splits for survey in self.surveys], axis=0)
        for name, count in zip(self.plan.splits, counts, strict=False):
            if not count:
                by_block = f"no sample lies within a block of select.splits.{name}: try a smaller select.block_km"
                by_column = f"select.held_out: no sample has {self.settings.split_by}={name}"
                self.warn(by_column if self.settings.split_by else by_block)

    def settle_names(self, column: str) -> None:
        """Give every group or label one code for all parts.

        Raises:
            RequestError: there are too many.
        """
        known: set[str] = set()
        for names in self.names:
            known.update(ray.get(names)[column])
            steps.check_names(self.settings, column, len(known))
        if column == "group" and known == {groups.SEPARATOR.join([groups.UNKNOWN] * len(self.settings.by))}:
            keys = ", ".join(self.settings.by)
            self.warn(f"select.by=[{keys}]: nothing tells that of any sample, so that nothing is balanced")
        self.told[f"{column}s"] = len(known - {""})
        self.learn(dataclasses.replace(self.plan, names={**self.plan.names, column: tuple(sorted(known))}))
        for part, names in zip(self.parts, self.names, strict=True):
            part.append(submit(steps.code_names, self.shared, column, names, *part))

    def drop_unclear(self, bands: Sequence[str]) -> None:
        """Drop what has too few valid or too many cloudy pixels; ``bands``: of the archive."""
        for part in self.parts:
            part.append(submit(steps.drop_unclear, *part))
        if self.settings.unit:
            self.settle_units()
        optical = any("reflectance" in survey.states for survey in self.surveys)
        optical = optical or any(OPTICAL.fullmatch(band.rpartition(".")[2]) for band in bands)
        clouded = sum(survey.clouded for survey in self.surveys)
        if self.settings.max_cloud is not None and optical and not clouded:
            self.warn(
                "the data are optical, but nothing tells which samples are cloudy: "
                f"select.max_cloud={self.settings.max_cloud:g} has dropped none"
            )

    def settle_units(self) -> None:
        """Make the members of each unit share one fate and one place."""
        partitions = int(self.plan.partition.max()) + 1
        self.parts, _ = exchange(self.parts, partitions, self.shared, order.send_to_unit, order.settle_units)

    def cut_entropy(self, keep: float) -> None:
        """Keep the top share of what is left, by one exact threshold; of fresh rows those above the parent's."""
        if self.again is not None:
            least = self.again.content["selection"]["least_entropy"]
            self.parts = [[*part, submit(steps.cut_below, least, *part)] for part in self.parts]
            self.tell_least_entropy(least)
            return
        self.tell_least_entropy(-self.cut("entropy", -1, int(keep * self.left + 0.5), "entropy"))

    def cut(self, column: str, sign: int, keep: int, reason: str) -> float:
        """Keep the smallest values of a float32 column times ``sign``, exactly so many, and tell the last."""
        prefix = counting.threshold(lambda prefix: self.total(steps.count_keys, column, sign, prefix), max(keep, 1), 6)
        done = [submit(steps.cut, column, sign, prefix, reason, *part, returns=2) for part in self.parts]
        self.parts = [[*part, layer] for part, (layer, _) in zip(self.parts, done, strict=True)]
        return float(max(ray.get([last for _, last in done])))

    def drop_places(self, overlap: float) -> None:
        """Keep the best of the tiles of one place: of neighbouring days, then of all dates as configured.

        Raises:
            RequestError: no sample has a footprint.
        """
        settings = self.settings.place
        fallen, found = find_places(self.parts, self.shards, self.shared, Rule(overlap, settings.days))
        self._warn_of_footprints(found)
        self.mark(fallen, "place")
        self.told["place"] = {"copies": found.fallen}
        if settings.keep is None:
            return
        best = settings.keep if isinstance(settings.keep, int) else 1
        rule = Rule(overlap, season=settings.keep == "season", best=best)
        fallen, found = find_places(self.parts, self.shards, self.shared, rule)
        if settings.keep == "unit":
            self.parts = [[*part, submit(unite, fallen, *part)] for part in self.parts]
            self.told["place"]["units"] = found.rows - found.fallen
        else:
            self.mark(fallen, "place")
            self.told["place"]["dates"] = found.fallen

    def _warn_of_footprints(self, found: Found) -> None:
        if not found.tiles:
            raise RequestError(
                f"select.place.overlap needs footprints, but none of {found.rows} samples has one: "
                "add them to the sidecars (docs/formats.md), or take select.place.overlap=null"
            )
        if lacking := found.rows - found.tiles:
            self.warn(f"select.place: {lacking} of {found.rows} samples have no footprint and are of no place")
        if 2 * found.crowded > found.rows:
            self.warn(
                f"select.place: {found.crowded} of {found.rows} samples have exactly the footprint of more than "
                f"{CROWD} others: where it is a whole scene's, different tiles fall as one place, and "
                "select.place.overlap=null is right"
            )

    def mark(self, fallen: Any, reason: str) -> None:
        """Give rows their reason and who stands for them."""
        self.parts = [[*part, submit(mark, fallen, reason, *part)] for part in self.parts]

    def drop_duplicates(self) -> None:
        """Keep one of each group of near-duplicates."""
        listed = self.centroids["neighbours"].combine_chunks()
        lengths = pc.list_value_length(listed).to_numpy()
        width = int(lengths.max(initial=0))
        own = np.arange(len(lengths), dtype=np.int32)[:, None]
        neighbours = np.repeat(own, width, axis=1)  # itself, where few others are known
        neighbours[np.arange(width) < lengths[:, None]] = listed.flatten().to_numpy()
        sizes, fresh = self.sizes, None
        if self.again is not None:
            files = [file.path.removeprefix("../") for file in self.again.files(SKETCHES)]
            around = self.again.parent.parent
            self.parts, fresh = find_alike(self.parts, self.shards, self.shared, neighbours, around, files)
            sizes = self.total(steps.count_compared, len(sizes))
        groups, self.told["duplicates"], self.sketches = find_duplicates(
            self.parts, self.shards, self.shared, sizes, neighbours, self.folder, fresh
        )
        self.mark(groups, "duplicate")

    def draw(self) -> None:
        """Order the rows that are left, in their strata and overall, and rank those within the budget."""
        strategy = self.plan.strategy
        self.told["nested"] = strategy.nested
        if strategy.labelled:
            self.told["label"] = self.plan.label
        self.learn(dataclasses.replace(self.plan, running=self.left))
        if strategy.strata is not None:
            sizes, required = self.make_strata()
            if strategy.seats is not None:
                self.share_seats(sizes, required)
            self.order_strata()
        self.order_all()
        if self.plan.guide is not None and self.learn_guide(self.plan.guide):
            self.guide(sizes, required)

    def order_strata(self) -> None:
        """Order the rows in their strata."""
        partitions = int(self.plan.strata.partition.max()) + 1
        send, work = order.send_to_stratum, order.order_strata
        self.parts, _ = exchange(self.parts, partitions, self.shared, send, work, self.shards)

    def learn_guide(self, guide: Guide) -> bool:
        """How much of the selection goes by the bank's classes, and their shares; whether any does."""
        self.learn(dataclasses.replace(self.plan, guide=guide))
        rows = int(self.total(guided.count, self.shared)[0])
        guide = dataclasses.replace(guide, rows=rows, required=self.required, sampled=min(1.0, SAMPLE / max(rows, 1)))
        self.learn(dataclasses.replace(self.plan, guide=guide))
        learnt = self.learnt_before()
        if learnt is None:
            _, [learnt] = exchange(self.parts, 1, self.shared, guided.send_to_sample, guided.learn, self.shards)
        share = self.settings.guided
        if share is None:
            share = learnt.share if learnt.share >= LEAST else 0.0
        pieces = max(1, -(-rows // GUIDED_LIMIT))
        guide = dataclasses.replace(
            guide,
            share=share,
            class_shares=learnt.class_shares,
            pieces=pieces,
            partitions=min(pieces, RANGES),
        )
        self.learn(dataclasses.replace(self.plan, guide=guide if share else None))
        self.told["guided"] = {
            "share": share,
            "explained": learnt.share,
            "rows": rows,
            "pieces": pieces,
            "classes": list(guide.classes),
            "class_shares": learnt.class_shares.tolist(),
        }
        return share > 0

    def learnt_before(self) -> guided.Learnt | None:
        """What the parent had learnt of the archive, which stays with the clusters."""
        told = self.again.content["selection"].get("guided", {}) if self.again is not None else {}
        if "explained" not in told:
            return None
        return guided.Learnt(told["explained"], np.array(told["class_shares"]))

    def guide(self, sizes: NDArray[np.int64], required: NDArray[np.int64]) -> None:
        """Merge the draw's order with that of the bank's classes; the draw refuses from where its part ends."""
        assert self.plan.guide is not None
        send, work = guided.send_to_piece, guided.order_pieces
        self.parts, _ = exchange(self.parts, self.plan.guide.partitions, self.shared, send, work, self.shards)
        self.parts = [[*part, submit(guided.claim, self.shared, *part)] for part in self.parts]
        last = self.order_all()
        done = [submit(guided.settle, self.shared, last, *part, returns=2) for part in self.parts]
        self.parts = [[*part, layer] for part, (layer, _) in zip(self.parts, done, strict=True)]
        drawn = max(ray.get([end for _, end in done]))
        quota = quotas(self.plan.weights, sizes, drawn, required)
        self.learn(dataclasses.replace(self.plan, quotas=quota))
        self.order_strata()

    def make_strata(self) -> NDArray[np.int64]:
        """Say what rows are ordered in; (2, strata): how many are in each, and how many of them required."""
        strategy = self.plan.strategy
        if strategy.strata == "score":
            return self.cut_bins()
        number = len(self.plan.names["label"]) if strategy.strata == "label" else len(self.sizes)
        counts = self.total(order.count_strata, self.shared, number)
        partition = _partitions(counts[0]) if strategy.strata == "label" else self.plan.partition
        if not strategy.embedded:
            self.learn(dataclasses.replace(self.plan, strata=Strata(partition)))
            return counts
        pieces = np.maximum(-(-counts[0] // LIMIT), 1)
        sizes = np.repeat(counts[0] // pieces, pieces)
        strata = Strata(_partitions(sizes, ROWS_WITH_VECTORS, RANGES), pieces)
        self.learn(dataclasses.replace(self.plan, strata=strata))
        counts = self.total(order.count_strata, self.shared, len(sizes))
        self.told["pieces"] = int((counts[0] > 0).sum())
        return counts

    def cut_bins(self) -> NDArray[np.int64]:
        """Drop the hardest, and cut the rest into bins of equal width over the score, numbered by falling size."""
        number = self.settings.ccs.strata
        if hardest := round(self.settings.ccs.beta * self.left):
            sign = self.plan.hardness
            last = sign * self.cut("value", sign, self.left - hardest, "hard")
            self.told["hardest"] = last
            self.learn(dataclasses.replace(self.plan, hardest=last))
            self.check(f"select.ccs.beta={self.settings.ccs.beta:g} leaves")
        lows, highs = zip(*ray.get([submit(order.hard_range, self.shared, *part) for part in self.parts]), strict=True)
        strata = Strata(np.zeros(number + 1, np.int16), low=min(lows), high=max(highs))
        self.learn(dataclasses.replace(self.plan, strata=strata))
        counts = self.total(order.count_strata, self.shared, number + 1)
        fullest = np.argsort(counts[0], kind="stable")[::-1]  # these take what the published budgets leave over
        strata = dataclasses.replace(
            strata, bin=np.argsort(fullest).astype(np.int32), partition=_partitions(counts[0][fullest])
        )
        self.learn(dataclasses.replace(self.plan, strata=strata))
        return counts[:, fullest]

    def share_seats(self, sizes: NDArray[np.int64], required: NDArray[np.int64]) -> None:
        """Quotas of the strata, unless units must be cut overall."""
        plan, settings = self.plan, self.settings
        if plan.strategy.seats == "levels":
            tree = Tree(sizes, self.parents)
            quota = None if settings.grouped else tree.quotas(plan.budget, required)
            self.learn(dataclasses.replace(plan, tree=tree, quotas=quota))
            return
        if plan.strata.pieces is not None:
            self.share_pieces(sizes, required, plan.strata.pieces)
            return
        factors = np.ones(len(sizes))
        if plan.strategy.strata == "cluster":
            for cluster, factor in (settings.clusters.weight or {}).items():
                factors[cluster] = factor
        weights = cluster_weights(sizes, settings.balance, factors)
        budget = plan.budget
        if plan.strategy.order == "importance":
            budget = max(round(settings.sims.class_share * budget), int(required.sum()))
        quota = None if settings.grouped else quotas(weights, sizes, budget, required)
        self.learn(dataclasses.replace(plan, weights=weights, quotas=quota))

    def share_pieces(self, sizes: NDArray[np.int64], required: NDArray[np.int64], pieces: NDArray[np.int64]) -> None:
        """Quotas of classes, and of each class's in proportion to its pieces."""
        first = np.cumsum(pieces) - pieces
        of_class, floors = np.add.reduceat(sizes, first), np.add.reduceat(required, first)
        weights = cluster_weights(of_class, self.settings.balance)
        seats = quotas(weights, of_class, self.plan.budget, floors)
        quota = np.zeros(len(sizes), np.int64)
        for start, number, budget in zip(first, pieces, seats.tolist(), strict=True):
            own = slice(start, start + number)
            quota[own] = quotas(cluster_weights(sizes[own], 0), sizes[own], budget, required[own])
        self.learn(dataclasses.replace(self.plan, weights=np.repeat(weights, pieces), quotas=quota))

    def order_all(self) -> float:
        """Rank by score, and tell the last kept one.

        The bins of the scores tell which rows can fit, and what lies before each partition.

        Raises:
            RequestError: not even the first unit fits.
        """
        ends = np.cumsum(self.total(order.count_scores, self.shared))
        end = min(int(np.searchsorted(ends, self.plan.budget, side="right")), counting.BINS - 1)
        starts = np.concatenate([[0], ends[:-1]])
        partitions = _number_of_partitions(int(ends[end]), ROWS_A_PARTITION)
        bins = np.where(np.arange(counting.BINS) <= end, starts * partitions // max(ends[end], 1), -1)
        before = starts[np.searchsorted(bins[: end + 1], np.arange(partitions))]
        self.learn(dataclasses.replace(self.plan, bin_partition=bins.astype(np.int16), before=before))
        self.parts, told = exchange(self.parts, partitions, self.shared, order.send_to_score, order.order_all)
        if not sum(ordered.kept for ordered in told):
            raise RequestError(
                f"select.budget={self.settings.budget:g} comes to {self.plan.budget} samples, fewer than "
                f"the first {self.settings.grouped} has: raise it"
            )
        refused = min(ordered.refused for ordered in told)
        last: float = max(ordered.last for ordered in told)
        strategy = self.plan.strategy
        if strategy.order == "entropy" and np.isfinite(last):
            self.tell_least_entropy(-last)
        elif (strategy.seats is None or strategy.order == "importance") and np.isfinite(refused):
            self.learn(dataclasses.replace(self.plan, threshold=refused))
        if strategy.order == "semdedup" and np.isfinite(last):
            self.told["epsilon"] = 1 - last
        return last

    def publish(self, header: dict[str, Any]) -> Manifest:
        """Write everything; the header last, since its presence means that the rest is there."""
        name = f"unfinished/{self.folder.base.rpartition('/')[2]}"
        written, file = self._write(self.folder)
        reasons = sum((part.reasons for part in written), Counter())
        kept = self.samples - sum(reasons[reason] for reason in DROPPED)
        self._warn_of_classes(written)
        if self.plan.splits:
            held_out = sum((part.held_out for part in written), Counter())
            self.told["splits"] = {name: held_out[name] for name in self.plan.splits}
        if self.settings.grouped:
            self.told["left_free"] = self.plan.budget - kept  # the next unit did not fit
        if self.again is None:
            self.told["frozen"] = sum((part.spread for part in written), Spread()).frozen()
        else:
            self.tell_of_parent(self.again, kept, sum(part.came for part in written))
        own = [file, *(part.file for part in written if part.file is not None), *self.sketches]
        files = self._with_parents(file, written)
        listing = parquet_bytes(pa.Table.from_pylist([dataclasses.asdict(file) for file in files], schema=FILES_SCHEMA))
        content = {
            **header["content"],
            "counts": {
                **header["content"].get("counts", {}),
                **{"samples": self.samples, "kept": kept, "dropped": self.samples - kept},
                "reasons": {reason: count for reason, count in reasons.items() if count},
            },
            "selection": {"budget": self.plan.budget, **self.told},
            "warnings": self.warnings,
            "files": hashlib.sha256(listing).hexdigest(),
        }
        folder = f"manifests/{content_id(content)}"
        for file in own:
            self.workspace.move(f"{name}/{file.path}", f"{folder}/{file.path}")
        self.workspace.discard(name)
        self.workspace.publish(f"{folder}/{FILES_FILE}", listing)
        if self.sources is not None:
            self.workspace.publish(f"{folder}/{SOURCES_FILE}", catalog_bytes(self.sources))
        self.workspace.publish(f"{folder}/{HEADER_FILE}", json_bytes({**header, "content": content}))
        return Manifest(
            folder=folder,
            url=self.workspace.public(f"{folder}/{HEADER_FILE}"),
            samples=self.samples,
            kept=kept,
            dropped={reason: reasons[reason] for reason in DROPPED if reasons[reason]},
            warnings=self.warnings,
        )

    def _write(self, folder: Folder) -> tuple[list[Written], File]:
        """Decisions and kept rows.

        Raises:
            CurationError: samples were lost on the way.
        """
        splits = _splits(self.surveys, self.plan.budget)
        befores = [None if self.again is None else self.again.before(number) for number in range(len(self.parts))]
        parts = [
            submit(
                *(write_part, self.shared, number, folder, splits, befores[number], shards, *layers),
                returns=len(splits) + 2,
            )
            for number, (shards, layers) in enumerate(zip(self.shards, self.parts, strict=True))
        ]
        written: list[Written] = ray.get([part[0] for part in parts])
        ranges = list(zip(*(part[1:] for part in parts), strict=True))
        rows: File = ray.get(submit(write_rows, folder, ranges))
        decided = sum((part.reasons for part in written), Counter())
        kept = sum(decided[reason] for reason in KEPT)
        if decided.total() != self.samples or kept != rows.rows:
            counts = f"{decided.total()} decisions, {rows.rows} of {kept} kept rows"
            raise CurationError(f"of {self.samples} samples there are {counts}: this is a fault of the program")
        return written, rows

    def _with_parents(self, rows: File, written: list[Written]) -> list[File]:
        """All files that make the manifest up: of each part those of the parent that still hold, then its own."""
        files = [rows]
        kept: dict[str, list[File]] = {}
        if self.again is not None:
            for file in self.again.files(DECISIONS):
                kept.setdefault(file.path.rpartition("/")[2], []).append(file)
        for number, part in enumerate(written):
            if self.again is not None and not self.again.pieces[number].whole:
                files += kept.get(decisions_path(number).rpartition("/")[2], [])
            files += [part.file] if part.file is not None else []
        return files + (self.again.files(SKETCHES) if self.again is not None else []) + self.sketches

    def tell_of_parent(self, before: Again, kept: int, came: int) -> None:
        """What drift there is, held against what was frozen with the first draw; what came and went of the kept."""
        self.told["frozen"] = before.frozen
        now = self.total(steps.count_clusters, len(self.sizes))
        drift = Drift(
            samples=int(before.spread.distances.sum()),
            far_share=far_share(before.spread, before.frozen["reach"]),
            share_shift=share_shift(now, self.sizes),
            entropy_shift=entropy_shift(before.spread, before.frozen),
        )
        went = before.content["counts"]["kept"] - (kept - came)
        self.told["recurate"] = {**before.told, "drift": drift.figures(), "came": came, "went": went}

    def grow(self) -> None:
        """Keep what the parent kept and is still there; newcomers take what the draw leaves in each cluster."""
        partitions = int(self.plan.partition.max()) + 1
        self.learn(dataclasses.replace(self.plan, grown=True))
        self.parts, _ = exchange(self.parts, partitions, self.shared, grown.send_to_cluster, grown.grow)
        kept = int(self.total(grown.count)[0])
        if kept != self.plan.budget:
            self.warn(f"recurate.mode=grow: {kept} samples are kept where select.budget comes to {self.plan.budget}")
        self.told["draw"] = self.plan.budget
        self.learn(dataclasses.replace(self.plan, budget=kept))
        self.told["nested"] = False
        self.order_all()

    def check(self, stage: str) -> None:
        """Count what is left, and refuse a budget that a stage leaves too little for.

        Raises:
            RequestError: it does.
        """
        left, required = self.total(order.count_rows).tolist()
        self.left, self.required = left, required
        if left < self.samples:
            log.info("select: %s %d of %d samples", stage, left, self.samples)
        asked = f"select.budget={self.settings.budget:g} asks for {self.plan.budget} of {self.samples} samples"
        if left < self.plan.budget:
            raise RequestError(f"{asked}, but {stage} {left}: lower the budget, or let that stage keep more")
        if required > self.plan.budget:
            raise RequestError(f"{asked}, but select.require alone names {required}: raise the budget")

    def total(self, function: Callable[..., NDArray[np.int64]], *args: Any) -> NDArray[np.int64]:
        """A count over all parts, of which only so many are waiting to be added at any time."""
        total: Any = 0
        for start in range(0, len(self.parts), AT_ONCE):
            for count in [submit(function, *args, *part) for part in self.parts[start : start + AT_ONCE]]:
                total = total + ray.get(count)
        counts: NDArray[np.int64] = total
        return counts

    def tell_least_entropy(self, value: float) -> None:
        """Remember the entropy threshold for the decisions and the header."""
        self.told["least_entropy"] = value
        self.learn(dataclasses.replace(self.plan, least_entropy=value))

    def warn(self, text: str) -> None:
        """Tell the user, now and in the header."""
        log.warning("select: %s", text)
        self.warnings.append(text)

    def _warn_of_classes(self, written: list[Written]) -> None:
        before = sum((part.classes for part in written), Counter())
        fell = sum((part.calm for part in written), Counter())
        if lost := sorted(name for name, count in before.items() if fell[name] > LOSS * count):
            named = ", ".join(f"{name} ({fell[name]} of {before[name]})" for name in lost[:NAMED])
            more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
            self.warn(f"the entropy stage takes more than {LOSS:.0%} of: {named}{more}")


def read_list(name: str, url: str | None, workspace: Folder) -> SampleList | None:
    """The list that ``select.<name>`` names, if it names one.

    Raises:
        RequestError: there is no such file.
    """
    if url is None:
        return None
    folder, _, file = url.rpartition("/")
    try:
        return parse_list(
            file_name(url), Folder(folder or ("/" if url.startswith("/") else "."), workspace.options).read(file)
        )
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise RequestError(f"select.{name}={public_url(url)}: there is no such file") from error


def _excluded_clusters(settings: SelectConfig, number: int) -> NDArray[np.bool_]:
    factors = settings.clusters.weight or {}
    for cluster in (*settings.clusters.exclude, *factors):
        if not 0 <= cluster < number:
            raise RequestError(f"select.clusters names cluster {cluster}, but there are 0 to {number - 1}")
    excluded = np.zeros(number, bool)
    excluded[[*settings.clusters.exclude, *(cluster for cluster, factor in factors.items() if factor == 0)]] = True
    return excluded


def _columns(
    settings: SelectConfig, lists: list[SampleList], tables: Sequence[Table], label: str
) -> tuple[tuple[str, ...], dict[Table, tuple[str, ...]]]:
    """Columns that decide: of the catalog, and of tables.

    Raises:
        RequestError: there is no such column.
    """
    columns = {column for listed in lists for column in listed.columns}
    scalar = [field.name for field in catalog_schema(1) if _is_scalar(field.type)]
    if settings.entropy.keep is not None or STRATEGIES[settings.strategy].order == "entropy":
        columns.add("entropy")
    if settings.splits:
        columns.add("footprint")
    if settings.min_valid is not None:
        columns.add("valid_fraction")
    if settings.max_cloud is not None:
        columns.update({"cloud_fraction", "radiometry"} & set(scalar))
    more = [field.name for table in tables for field in table.schema if _is_scalar(field.type)]
    more = [name for name in more if name not in catalog_schema(1).names]
    if taken := {*settings.by} & {*groups.KEYS} & {*more}:
        raise RequestError(
            f"select.by={min(taken)} is told from time and footprint, but a table has a column of that name: rename it"
        )
    asked: list[tuple[str, str, Mapping[str, Any]]] = [("select.by", name, groups.KEYS) for name in settings.by]
    asked += [(f"select.{key}", name, {}) for key in ("unit", "split_by") if (name := getattr(settings, key))]
    asked += [("score.label", label, {})] * STRATEGIES[settings.strategy].labelled
    for option, name, keys in asked:
        if name not in (*keys, *scalar, *more):
            known = ", ".join([*keys, *scalar, *more])
            raise RequestError(f"{option}={name} is no column of catalog or tables; choose one of {known}")
        columns.update(keys.get(name, (name,)))
    joined = columns_by_table(tables, sorted(columns & set(more)), "select")
    columns.update(table.on for table in joined)
    return tuple(sorted(columns - set(more))), joined


def _is_scalar(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not pa.types.is_binary(kind)


def _partitions(sizes: NDArray[np.int64], rows: int | None = None, most: int = PARTITIONS) -> NDArray[np.int16]:
    """The partition of each stratum: ranges of about equal sizes, of so many ``rows`` each if they are not too many."""
    number = _number_of_partitions(int(sizes.sum()), rows or ROWS_A_PARTITION, most)
    before = np.cumsum(sizes) - sizes
    return (before * number // max(int(sizes.sum()), 1)).clip(max=number - 1).astype(np.int16)


def _number_of_partitions(rows: int, each: int, most: int = PARTITIONS) -> int:
    return int(np.clip(-(-rows // each), 1, most))


def check_budget(asked: float, samples: int) -> int:
    """Samples to keep: a fraction below 1, to the nearest sample, or a count.

    Raises:
        RequestError: the archive has fewer, or the fraction comes to none.
    """
    budget = int(asked * samples + 0.5) if asked < 1 else int(asked)
    if budget > samples:
        raise RequestError(f"select.budget={asked:g}, but the archive has {samples} readable samples: lower it")
    if budget == 0:
        raise RequestError(f"select.budget={asked:g} of {samples} readable samples is not one sample: raise it")
    return budget


def _unfinished(workspace: Folder) -> str:
    """A folder of this run's own, for files that have no id yet; what killed runs left of theirs goes after a day."""
    now = int(time.time())
    left = {file.path.split("/")[1] for file in workspace.list("unfinished")}
    for name in left:
        if now - int(name.partition("-")[0]) > DAY:
            workspace.discard(f"unfinished/{name}")
    return f"unfinished/{now}-{uuid.uuid4().hex}"


def _splits(surveys: list[Survey], budget: int) -> list[str]:
    """Shard names that cut the archive into ranges of about equally many rows, out of those that the parts gave."""
    known = sorted(pair for survey in surveys for pair in survey.shards)
    rows = np.cumsum([count for _, count in known])
    number = -(-budget // ROWS_A_RANGE)
    at = np.searchsorted(rows, rows[-1] * np.arange(1, number) / number)
    return sorted({known[i][0] for i in at})
