"""Opens a draft: its plan, the rows as they are read, and what they lack."""

import time
import uuid
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from curation.archive.tables import Table
from curation.catalog.store import CatalogStore
from curation.errors import RequestError
from curation.manifests import again, steps
from curation.manifests.again import Again
from curation.manifests.draft import Draft
from curation.manifests.duplicates import distinct_ids
from curation.manifests.exchange import submit
from curation.manifests.partitions import deal_strata
from curation.manifests.request import check_budget, deciding_columns, excluded_clusters, find_guide, read_list
from curation.manifests.steps import Plan
from curation.selection import groups
from curation.selection.settings import SelectConfig
from curation.selection.strategies import STRATEGIES
from curation.storage import Folder

DAY = 86_400  # seconds


def open_draft(
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
) -> Draft:
    """A draft that has no rows yet; the arguments are those of `build.select`.

    Raises:
        RequestError: the settings name a list, cluster, column or guide that there is not.
    """
    named = ["scene", "size", "distance_mean", "distance_std", "neighbours"]
    named += ["ancestors"] if STRATEGIES[settings.strategy].seats == "levels" else []
    centroids = pq.read_table(pa.BufferReader(clusters.read("centroids.parquet")), columns=named)
    sizes = centroids["size"].to_numpy()
    read = {name: read_list(name, getattr(settings, name), workspace) for name in ("exclude", "require")}
    lists = {name: listed for name, listed in read.items() if listed}
    guide, why_not = find_guide(settings, clusters)
    columns, joined = deciding_columns(settings, list(lists.values()), tables, label)
    plan = Plan(
        store=store,
        clusters=clusters,
        settings=settings,
        seed=seed,
        excluded=excluded_clusters(settings, len(sizes)),
        mean=centroids["distance_mean"].to_numpy(),
        std=centroids["distance_std"].to_numpy(),
        scene=centroids["scene"].combine_chunks(),
        partition=deal_strata(sizes),
        lists=lists,
        columns=columns if guide is None else tuple(sorted({*columns, "entropy"})),
        joined=joined,
        splits=tuple(sorted(settings.splits or settings.held_out)),
        scores=scores,
        label=label,
        guide=guide,
    )
    draft = Draft(plan, centroids, workspace, workspace.child(_unfinished(workspace)), sources, parent)
    if why_not is not None:
        draft.told["guided"] = {"share": 0.0, "why_not": why_not}
    return draft


def load(draft: Draft) -> None:
    """Read all parts and apply the lists.

    Raises:
        RequestError: the budget, the lists or the entropies do not fit the archive.
    """
    if draft.again is None:
        files = draft.plan.clusters.list("assignments")
        paths = [file.path for file in files if file.path.endswith(".parquet")]
        loaded = [submit(steps.load, draft.shared, path, returns=4) for path in paths]
    else:
        befores = [draft.again.before(number) for number in range(len(draft.again.pieces))]
        lost = submit(distinct_ids, *(submit(again.gone_ids, before) for before in befores))
        loaded = [
            submit(again.load, draft.shared, before, assigned, lost, returns=4)
            for before, assigned in zip(befores, draft.again.assigned, strict=True)
        ]
    draft.parts = [[part[0]] for part in loaded]
    draft.shards = [part[1] for part in loaded]
    draft.surveys = ray.get([part[2] for part in loaded])
    draft.names = [part[3] for part in loaded]
    draft.samples = sum(survey.rows for survey in draft.surveys)
    draft.learn(budget=check_budget(draft.settings.budget, draft.samples))
    by_entropy = draft.settings.entropy.keep is not None or draft.plan.strategy.order == "entropy"
    if by_entropy and (unknown := sum(survey.without_entropy for survey in draft.surveys)):
        raise RequestError(
            f"{unknown} of {draft.samples} samples have no entropy (their vectors were computed elsewhere): "
            "take select=balanced with select.entropy.keep=null"
        )
    draft.unscored = sum(survey.unscored for survey in draft.surveys)
    if draft.unscored == draft.samples:
        raise RequestError(
            f"select.strategy={draft.settings.strategy} needs labels, but by score.label={draft.plan.label} none of "
            f"{draft.samples} samples has one: give labels in sidecars, or in a table (archive.tables, "
            "score.label=COLUMN), or take a strategy that needs none, such as balanced"
        )
    for name, listed in draft.plan.lists.items():
        if not sum(survey.matched[name] for survey in draft.surveys):
            draft.warn(f"select.{name}: {listed.name} matches no sample of the archive")
    if both := sum(survey.both for survey in draft.surveys):
        draft.warn(f"{both} samples are in both select.exclude and select.require: they are excluded")
    if draft.plan.splits:
        _check_splits(draft)


def _check_splits(draft: Draft) -> None:
    """Say what the splits could not do.

    Raises:
        RequestError: no sample has a place.
    """
    placed = sum(survey.footprints for survey in draft.surveys)
    if draft.settings.splits and not placed:
        raise RequestError("select.splits cuts by place, but no sample of the archive has a footprint: leave it out")
    if draft.settings.splits and placed < draft.samples:
        draft.warn(f"{draft.samples - placed} samples have no footprint: select.splits leaves them to training")
    counts = np.sum([survey.splits for survey in draft.surveys], axis=0)
    for name, count in zip(draft.plan.splits, counts, strict=False):
        if not count:
            by_block = f"no sample lies within a block of select.splits.{name}: try a smaller select.block_km"
            by_column = f"select.held_out: no sample has {draft.settings.split_by}={name}"
            draft.warn(by_column if draft.settings.split_by else by_block)


def settle_names(draft: Draft, column: str) -> None:
    """Give every group or label one code for all parts.

    Raises:
        RequestError: there are too many.
    """
    known: set[str] = set()
    for names in draft.names:
        known.update(ray.get(names)[column])
        steps.check_names(draft.settings, column, len(known))
    if column == "group" and known == {groups.SEPARATOR.join([groups.UNKNOWN] * len(draft.settings.by))}:
        keys = ", ".join(draft.settings.by)
        draft.warn(f"select.by=[{keys}]: nothing tells that of any sample, so that nothing is balanced")
    draft.told[f"{column}s"] = len(known - {""})
    draft.learn(names={**draft.plan.names, column: tuple(sorted(known))})
    for part, names in zip(draft.parts, draft.names, strict=True):
        part.append(submit(steps.code_names, draft.shared, column, names, *part))


def _unfinished(workspace: Folder) -> str:
    """A folder of this run's own, for files that have no id yet; what killed runs left of theirs goes after a day."""
    now = int(time.time())
    left = {file.path.split("/")[1] for file in workspace.list("unfinished")}
    for name in left:
        begun = name.partition("-")[0]
        if begun.isdecimal() and now - int(begun) > DAY:
            workspace.discard(f"unfinished/{name}")
    return f"unfinished/{now}-{uuid.uuid4().hex}"
