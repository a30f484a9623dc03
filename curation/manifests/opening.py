"""Opens a draft: what is asked for, held against the clusters; the rows as they are read, and what they lack."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.archive.tables import Table, columns_by_table
from curation.catalog.schema import catalog_schema
from curation.catalog.store import CatalogStore
from curation.clustering.classifier import CLASSIFIER, Classifier
from curation.errors import RequestError
from curation.manifests import again, steps
from curation.manifests.again import Again
from curation.manifests.draft import Draft
from curation.manifests.duplicates import distinct_ids
from curation.manifests.exchange import submit
from curation.manifests.partitions import deal_strata
from curation.manifests.steps import Guide, Plan
from curation.selection import groups
from curation.selection.guided import CALM
from curation.selection.lists import SampleList, parse_list
from curation.selection.settings import SelectConfig
from curation.selection.strategies import STRATEGIES
from curation.storage import Folder, file_name, public_url

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
    named = ["scene", "size", "distance_mean", "distance_std"]
    centroids = pq.read_table(pa.BufferReader(clusters.read("centroids.parquet")), columns=named)
    sizes = centroids["size"].to_numpy()
    read = {name: read_list(name, getattr(settings, name), workspace) for name in ("exclude", "require")}
    lists = {name: listed for name, listed in read.items() if listed}
    guide, why_not = _find_guide(settings, clusters)
    columns, joined = _columns(settings, list(lists.values()), tables, label)
    plan = Plan(
        store=store,
        clusters=clusters,
        settings=settings,
        seed=seed,
        sizes=sizes,
        excluded=_excluded_clusters(settings, len(sizes)),
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
    draft = Draft(plan, workspace, workspace.child(_unfinished(workspace)), sources, parent)
    if why_not is not None:
        draft.told["guided"] = {"share": 0.0, "why_not": why_not}
    return draft


def _find_guide(settings: SelectConfig, clusters: Folder) -> tuple[Guide | None, str | None]:
    """The classes of the bank, if they are to guide; why they cannot.

    Raises:
        RequestError: they were asked for by a number.
    """
    asked = settings.guided
    if asked == 0 or not STRATEGIES[settings.strategy].guided:
        return None, None
    if settings.grouped:
        why = "units of samples are kept or dropped together"
    elif not clusters.exists(CLASSIFIER):
        why = "there is no bank (references.url) with two labels or more"
    else:
        found = Classifier.from_bytes(clusters.read(CLASSIFIER))
        if not np.isnan(found.least_entropy):
            return Guide(tuple(found.classes.tolist()), float(found.least_entropy) - CALM), None
        why = "the bank's samples have no entropy"
    if asked:
        raise RequestError(f"select.guided={asked:g}: {why}; take select.guided=0")
    return None, why


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


def _unfinished(workspace: Folder) -> str:
    """A folder of this run's own, for files that have no id yet; what killed runs left of theirs goes after a day."""
    now = int(time.time())
    left = {file.path.split("/")[1] for file in workspace.list("unfinished")}
    for name in left:
        if now - int(name.partition("-")[0]) > DAY:
            workspace.discard(f"unfinished/{name}")
    return f"unfinished/{now}-{uuid.uuid4().hex}"
