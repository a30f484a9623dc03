"""Selections of several budgets, seeds and settings, by the code of ``curate prune``, but never put in force.

They go to a folder below the comparison's or the choice's; clusters are the workspace's own and shared. With a seed, a
selection keeps what ``curate prune`` with that seed keeps.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from curation.catalog.build import Catalog
from curation.config import Config, to_dict
from curation.errors import CurationError, RequestError
from curation.manifests.schema import json_bytes
from curation.selection.strategies import STRATEGIES
from curation.stages import Run, config_without_urls
from curation.storage import Folder

log = logging.getLogger("curation")


@dataclass(frozen=True)
class Selected:
    """The selections of one config at several budgets.

    Attributes:
        manifests: by budget, the folder below the workspace of a manifest whose first samples, by rank, they are.
        refused: by budget, why there is none.
        clusters: id of the clusters.
        clustered: whether the strategy needs them; else it keeps the same samples whatever they are.
        cluster_seconds: of their fit; next to nothing where they were there.
        score_seconds: of training the experts that a strategy goes by, likewise; 0 where it goes by none.
        select_seconds: of the selection itself.
    """

    manifests: dict[float, str]
    refused: dict[float, str]
    clusters: str
    clustered: bool
    cluster_seconds: float
    score_seconds: float
    select_seconds: float


def select_budgets(
    run: Run, catalog: Catalog, config: Config, budgets: Sequence[float], below: str, name: str, any_clusters: int = -1
) -> Selected:
    """Make the selections of a config, unless they are there.

    Args:
        run: the job.
        catalog: of the archive.
        config: what to keep, with which seed.
        budgets: shares of the archive.
        below: folder below the workspace that they go to.
        name: what the config is called in logs and file names.
        any_clusters: seed of the clusters for a strategy that needs none; -1: the config's own.
    """
    budgets = sorted(budgets, reverse=True)
    strategy = STRATEGIES[config.select.strategy]
    made_of = [config_without_urls(config, run.tables), budgets, catalog.store.catalog_id, any_clusters]
    run = replace(run, config=config)
    lists = [run.list_digest(name) for name in ("exclude", "require")]
    made_of += [to_dict(config.score)] if strategy.scored else []
    made_of += [lists] if any(lists) else []
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    folder, path = run.workspace.child(below), f"selections/{name}-{config.seed}-{digest}.json"
    if folder.exists(path):
        return _selected(json.loads(folder.read(path)))
    log.info("selecting with %s, seed %d", name, config.seed)
    clustered = strategy.strata == "cluster"
    seed = config.seed if clustered or any_clusters < 0 else any_clusters
    began = time.monotonic()
    clusters = replace(run, config=replace(config, seed=seed)).clusters(catalog)
    fitted = time.monotonic()
    _, why = _tried(run.scores, catalog) if strategy.scored else (None, None)
    scored = time.monotonic()
    if why is None:
        manifests, refused = _manifests(run, catalog, clusters, budgets, below)
    else:
        manifests, refused = {}, dict.fromkeys(budgets, why)
    made = Selected(
        manifests=manifests,
        refused=refused,
        clusters=clusters.base.rpartition("/")[2],
        clustered=clustered,
        cluster_seconds=round(fitted - began, 3),
        score_seconds=round(scored - fitted, 3),
        select_seconds=round(time.monotonic() - scored, 3),
    )
    folder.publish(path, json_bytes(asdict(made)))
    return made


def _manifests(
    run: Run, catalog: Catalog, clusters: Folder, budgets: Sequence[float], below: str
) -> tuple[dict[float, str], dict[float, str]]:
    """One manifest for all budgets where the smaller selections are the first of the larger ones."""
    manifests: dict[float, str] = {}
    refused: dict[float, str] = {}
    select = run.config.select
    nested = STRATEGIES[select.strategy].nested and not select.grouped
    elsewhere = replace(run, workspace=run.workspace.child(below))
    for budget in budgets:
        if nested and manifests:
            manifests[budget] = next(iter(manifests.values()))
            continue
        config = replace(run.config, select=replace(select, budget=budget))
        manifest, why = _tried(replace(elsewhere, config=config).manifest, catalog, clusters)
        if why is None:
            manifests[budget] = f"{below}/{manifest.folder}"
        else:
            refused[budget] = why
    return manifests, refused


def _tried(work: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """What comes of it; or why the data cannot give what is asked for."""
    try:
        return work(*arguments), None
    except CurationError as error:
        cause: CurationError = getattr(error, "cause", error)  # Ray wraps what a task raised
        if not isinstance(cause, RequestError):
            raise
        return None, " ".join(str(cause).split())


def _selected(said: dict[str, Any]) -> Selected:
    by_budget = {key: {float(budget): text for budget, text in said[key].items()} for key in ("manifests", "refused")}
    return Selected(**{**said, **by_budget})
