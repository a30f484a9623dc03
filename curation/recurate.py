"""``recurate``: finds what is new, changed or gone since the last manifest, and draws one that goes on from it.

Encoder, clusters and thresholds stay as they were fitted; only new and changed shards are encoded and assigned. What
they show of drift is measured; samples that no centroid explains can get clusters of their own, and a full refit
carries the ids of old clusters over.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curation.catalog.artefact import catalog_id, load_artefact
from curation.catalog.build import Catalog, build_catalog, check_bad_fraction, check_profiles, sources_of
from curation.catalog.sources import Changes, compare, counts_of, digest_of, listed_table, merged, read_sources
from curation.catalog.store import CatalogStore
from curation.clustering.assign import COLUMNS, SCHEMA, assign_rows, embeddings, part_of
from curation.clustering.extend import add_free, read_centroids
from curation.clustering.kmeans import default_k
from curation.clustering.nearest import Nearest, Vectors, one_thread
from curation.errors import RequestError
from curation.manifests.again import Again, Piece
from curation.manifests.chain import decision_parts
from curation.manifests.drift import Spread, far_share
from curation.manifests.latest import Latest, content_in_force, latest_path
from curation.manifests.request import check_budget
from curation.manifests.schema import HEADER_FILE
from curation.report.recurate import write_page
from curation.runs import observe_drift, stage
from curation.selection.strategies import STRATEGIES
from curation.stages import Run, config_without_urls, finish
from curation.storage import Folder

log = logging.getLogger("curation")

FREE = ("select.budget", "archive.max_bad_fraction")  # keys that may change from night to night
FOUND = ("archive.radiometry.found", "archive.clouds.found")  # by the fit, of the parent's config
MOST_FILES = 12  # of a part's decisions; then they are written anew as one
FAR_ROWS = 65_536  # that new centroids are fitted on, at most


@dataclass(frozen=True)
class Parent:
    """The manifest that a run goes on from.

    Attributes:
        id: its own.
        folder: ``manifests/<id>``.
        content: of its header.
        sources: its ledger.
    """

    id: str
    folder: Folder
    content: dict[str, Any]
    sources: pa.Table


def recurate(run: Run) -> dict[str, Any]:
    """Take in what is new; the result line.

    Raises:
        RequestError: there is nothing to go on from, or the config is not the parent's.
    """
    run.check_selection()
    latest = run.latest()
    parent = find_parent(run, latest)
    changes = find_changes(run, parent)
    mode = run.config.recurate.mode
    log.info(
        "recurate: %d new, %d changed, %d vanished of %d shards",
        *(*changes.counts.values(), len(parent.sources)),
    )
    other = other_keys(run, parent)
    if mode != "refit":
        check_goes_on(run, other)
    stands = nothing_to_do(run, parent, changes, other)
    if mode == "refit":
        return _refit(run, parent, changes, latest, stands)
    if stands:
        return _unchanged(run, parent, changes)
    log.info("recurate: on %g CPUs and %g GPUs", run.resources.cpus, run.resources.gpus)  # which starts Ray
    catalog = take_in(run, parent, changes)
    check_budget(run.config.select.budget, catalog.counts["kept"])
    clusters, again = place(run, parent, changes, catalog)
    manifest = run.manifest(catalog, clusters, again)
    content = json.loads(run.workspace.read(f"{manifest.folder}/{HEADER_FILE}"))["content"]
    observe_drift(**content["selection"]["recurate"]["drift"])
    page = write_page(run.workspace, manifest, parent.content, content)
    result = finish(run, catalog, manifest, page, latest)
    _warn_of_drift(run, content)
    return {**result, **_told(parent, content, changes), "changed": True}


def find_parent(run: Run, latest: Latest) -> Parent:
    """The manifest in force.

    Raises:
        RequestError: there is none.
    """
    name = latest.id
    if name is None:
        path = run.workspace.public(latest_path(run.config.name))
        raise RequestError(f"there is no {path} to go on from: run curate prune first")
    folder = run.workspace.child(f"manifests/{name}")
    content = content_in_force(run.workspace, run.config.name, name)
    if "frozen" not in content.get("selection", {}):
        raise RequestError(f"{folder.public()} was made by an earlier version: run curate prune again")
    return Parent(name, folder, content, read_sources(folder))


def find_changes(run: Run, parent: Parent) -> Changes:
    """How today's listing differs from the parent's."""
    listed = listed_table(shard for _, shard in sources_of(run.config, run.roots, run.filter))
    return compare(parent.sources, listed)


def other_keys(run: Run, parent: Parent) -> dict[str, tuple[Any, Any]]:
    """Keys of the config that are other than they were for the parent, each with its value then and now.

    ``catalog`` stands for what makes another catalog and is no key: weights, or our way of reading.
    """
    config, id = run.config, catalog_id(run.config)
    same = id == parent.content["catalog"]
    archive = load_artefact(config, run.workspace).settled(config.archive) if same else config.archive
    now = _flat(config_without_urls(replace(config, archive=archive), run.tables))
    then = _flat(parent.content["config"])
    other = {key: (then.get(key), now.get(key)) for key in sorted({*now, *then}) if now.get(key) != then.get(key)}
    if not same:  # then nobody knows yet what a fit would find
        other = {key: values for key, values in other.items() if not key.startswith(FOUND)}
        other = {**other, "catalog": (parent.content["catalog"], id)}
    return other


def check_goes_on(run: Run, other: Mapping[str, tuple[Any, Any]]) -> None:
    """What decided the parent decides still: all but the budget.

    Raises:
        RequestError: a key is other than it was, or what decides cannot go on.
    """
    config = run.config
    strategy = STRATEGIES[config.select.strategy]
    if strategy.scored or config.select.grouped:
        what = f"select.strategy={config.select.strategy}" if strategy.scored else "units of samples"
        raise RequestError(f"{what}: what decides there is measured over everything; take recurate.mode=refit")
    keys = [key for key in other if key not in (*FREE, "catalog")]
    if keys:
        then, now = other[keys[0]]
        by = " (by references.url)" if keys[0] == "cluster.references" else ""
        raise RequestError(
            f"{keys[0]}{by} is {now}, but was {then} when the last manifest was drawn"
            + (f" ({len(keys) - 1} more keys differ)" if len(keys) > 1 else "")
            + ": give the same, or take recurate.mode=refit"
        )
    if "catalog" in other:
        raise RequestError(
            "the encoder's weights, or this version's way of reading, are not those of the last manifest: give the "
            "same ones, or take recurate.mode=refit"
        )


def nothing_to_do(run: Run, parent: Parent, changes: Changes, other: Mapping[str, tuple[Any, Any]]) -> bool:
    """Whether the parent is what this run would make, as far as can be told without a bank or scores."""
    if changes.any or [key for key in other if key != "archive.max_bad_fraction"]:
        return False
    if any(run.list_digest(name) != parent.content.get("lists", {}).get(name) for name in ("exclude", "require")):
        return False
    mode, was = run.config.recurate.mode, parent.content["selection"].get("recurate", {}).get("mode")
    if parent.content.get("refit"):
        was = "refit"
    return mode == "grow" or (mode == "rebalance" and was != "grow") or mode == was


@stage("catalog")
def take_in(run: Run, parent: Parent, changes: Changes) -> Catalog:
    """The catalog of today's listing, of which only what is new or changed is read and encoded."""
    wanted = {*changes.added, *changes.changed}
    roots = [replace(root, shards=tuple(s for s in root.shards if s.name in wanted)) for root in run.roots]
    config, told = run.config, parent.content
    shared = Folder(config.catalog.url, config.runtime.storage, "catalog") if config.catalog.url else None
    catalog = Catalog(
        store=CatalogStore(run.workspace, catalog_id(config), shared),
        artefact=load_artefact(config, run.workspace),
        shards=(),
        bank=(),
        counts={},
        digest="",
        bank_digest=None,
        profiles=(),
        sources=changes.same.slice(0, 0),
    )
    if wanted:
        catalog = build_catalog(config, [root for root in roots if root.shards], None, run.resources, filter=run.filter)
    profiles = [*told["profiles"], *(profile for profile in catalog.profiles if profile not in told["profiles"])]
    check_profiles(config, profiles)
    sources = merged([changes.same, catalog.sources])
    return replace(
        catalog,
        shards=tuple(sources["shard"].to_pylist()),
        counts=counts_of(sources),
        digest=digest_of(sources),
        bank_digest=told["references"],
        profiles=tuple(profiles),
        sources=sources,
    )


@stage("assign")
def place(run: Run, parent: Parent, changes: Changes, catalog: Catalog) -> tuple[Folder, Again]:
    """Assign the new samples, and fit clusters to those that are far from all where there are many."""
    clusters = run.workspace.child(f"clusters/{parent.content['clusters']}")
    parts = decision_parts(parent.folder)
    new: list[list[str]] = [[] for _ in parts]
    for shard in sorted({*changes.added, *changes.changed}):
        new[part_of(shard, len(parts))].append(shard)
    assigned, spread = _assign(run, catalog, clusters, new)
    reach, free_at = parent.content["selection"]["frozen"]["reach"], run.config.recurate.free_at
    far, added = far_share(spread, reach), 0
    if free_at is not None and far > free_at:
        vectors: Vectors = ray.get(_far_vectors.remote(catalog.store, reach, *assigned))
        added = default_k(round(far * int(spread.distances.sum())))
        log.info("recurate: %.0f %% of the new samples are far from every centroid: %d clusters more", 100 * far, added)
        target, spherical = run.workspace.child("clusters"), run.config.cluster.spherical
        clusters = add_free(clusters, target, vectors, min(added, len(vectors)), run.config.seed, spherical)
        assigned, _ = _assign(run, catalog, clusters, new)  # what was far is told by the clusters of before
    lost: list[set[str]] = [set() for _ in parts]
    for shard in (*changes.gone, *changes.changed):
        lost[part_of(shard, len(parts))].add(shard)
    pieces = [
        Piece(tuple(files), frozenset(gone), bool(gone) or len(files) >= MOST_FILES)
        for files, gone in zip(parts, lost, strict=True)
    ]
    told = {
        "mode": run.config.recurate.mode,
        "shards": changes.counts,
        "free_clusters": added,
    }
    grow = run.config.recurate.mode == "grow"
    return clusters, Again(parent.folder, parent.content, pieces, assigned, spread, told, grow)


def _assign(run: Run, catalog: Catalog, clusters: Folder, new: list[list[str]]) -> tuple[list[Any], Spread]:
    """References to the new rows of each part, and how they lie."""
    centroids = ray.put(read_centroids(clusters))
    task: Any = _assign_part.options(num_returns=2)
    done = [task.remote(catalog.store, shards, centroids) for shards in new]
    return [table for table, _ in done], sum(ray.get([spread for _, spread in done]), Spread())


@ray.remote(num_cpus=1)
def _assign_part(
    store: CatalogStore, shards: list[str], shared: tuple[Vectors, NDArray[np.int32]]
) -> tuple[pa.Table, Spread]:
    centroids, ids = shared
    pieces, spread = [SCHEMA.empty_table()], Spread()
    search = Nearest(centroids)
    with one_thread():
        for shard in shards:
            table = store.read(shard, [*COLUMNS, "entropy"])
            pieces.append(assign_rows(table, search, ids))
            spread += Spread.of(pieces[-1]["distance"].to_numpy(), table["entropy"].to_numpy())
    return pa.concat_tables(pieces), spread


@ray.remote(num_cpus=1)
def _far_vectors(store: CatalogStore, reach: float, *assigned: pa.Table) -> Vectors:
    """Embeddings of the new samples beyond the reach, up to `FAR_ROWS` by id (which is a hash)."""
    far = pa.concat_tables([table.filter(pc.greater(table["distance"], reach)) for table in assigned])
    far = far.sort_by([("sample_id", "ascending")]).slice(0, FAR_ROWS)
    found: dict[str, Any] = {}
    for shard in pc.unique(far["shard"]).to_pylist():
        table = store.read(shard, ["sample_id", "embedding"])
        table = table.filter(pc.is_in(table["sample_id"], value_set=far["sample_id"].combine_chunks()))
        found |= dict(zip(table["sample_id"].to_pylist(), embeddings(table), strict=True))
    return np.stack([found[name] for name in far["sample_id"].to_pylist()])


def _unchanged(run: Run, parent: Parent, changes: Changes) -> dict[str, Any]:
    """The result line of a run that finds the parent up to date.

    Raises:
        CurationError: too many of its samples are quarantined, as was said when it was drawn.
    """
    log.info("recurate: nothing to do: %s is up to date", parent.id)
    told = {**_told(parent, parent.content, changes), "drift": None, "came": 0, "went": 0}  # those are of last time
    result = {**_result_of(run, parent), **told, "changed": False}
    check_bad_fraction(run.config, parent.sources, run.workspace, result)
    return result


def _refit(run: Run, parent: Parent, changes: Changes, latest: Latest, stands: bool) -> dict[str, Any]:
    """Everything fitted anew, but the ids of clusters that go on; not where the parent ``stands``."""
    catalog = run.catalog()
    if stands and catalog.bank_digest == parent.content["references"]:
        scored = STRATEGIES[run.config.select.strategy].scored
        if not scored or run.scores(catalog).base.rpartition("/")[2] == parent.content["scores"]:
            return _unchanged(run, parent, changes)
    check_budget(run.config.select.budget, catalog.counts["kept"])
    clusters = run.clusters(catalog, run.workspace.child(f"clusters/{parent.content['clusters']}"))
    manifest = run.manifest(catalog, clusters, refit_of=parent.id)
    content = json.loads(run.workspace.read(f"{manifest.folder}/{HEADER_FILE}"))["content"]
    result = finish(run, catalog, manifest, run.report(catalog, clusters, manifest), latest)
    return {**result, **_told(parent, content, changes), "changed": True}


def _told(parent: Parent, content: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """What a program wants to know of the run."""
    told = content["selection"].get("recurate", {})
    return {
        "parent": content["parent"],
        "shards": changes.counts,
        "drift": told.get("drift"),
        "came": told.get("came"),
        "went": told.get("went"),
    }


def _result_of(run: Run, parent: Parent) -> dict[str, Any]:
    counts = parent.content["counts"]
    return {
        "manifest": parent.folder.public(HEADER_FILE),
        "samples": counts["samples"],
        "kept": counts["kept"],
        "dropped": counts["dropped"],
        "quarantined": counts["quarantined"],
        "report": run.workspace.public(f"reports/{parent.id}/index.html"),
    }


def _warn_of_drift(run: Run, content: dict[str, Any]) -> None:
    """Propose a refit where drift passes what was asked for."""
    drift, limits = content["selection"]["recurate"]["drift"], run.config.recurate
    passed = [
        f"{what} {value:.3g} above recurate.{key}={limit:g}"
        for what, value, key, limit in (
            ("clusters' shares have moved by", drift["share_shift"], "share_shift", limits.share_shift),
            ("entropy has shifted by", abs(drift["entropy_shift"] or 0.0), "entropy_shift", limits.entropy_shift),
        )
        if limit is not None and value > limit
    ]
    if passed:
        log.warning("recurate: %s: run it once with recurate.mode=refit", "; ".join(passed))


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
