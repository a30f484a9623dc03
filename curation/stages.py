"""The stages in order, over one frozen listing: what the jobs are made of."""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from curation.archive.listing import Root, list_archive
from curation.archive.tables import Table, TableFilter, open_filter, open_tables
from curation.catalog.artefact import portable_encoder
from curation.catalog.build import BANK, Catalog, build_catalog, check_bad_fraction, warn_of_lost
from curation.catalog.calibration import load_calibration, summary
from curation.clustering.build import build_clusters
from curation.clustering.kmeans import default_k
from curation.clustering.settings import ClusterConfig
from curation.config import Config, load_config, to_dict
from curation.encoders import QUALITY
from curation.errors import ConflictError, CurationError, RequestError
from curation.manifests.access import LOCAL, OBJECT_STORE, reads_of_manifest
from curation.manifests.again import Again
from curation.manifests.build import select
from curation.manifests.latest import Latest, publish_latest, read_latest
from curation.manifests.request import check_budget, deciding_columns, read_list
from curation.manifests.schema import Manifest
from curation.report.page import write_report
from curation.runs import record_in, stage
from curation.runtime import Resources, ray_for_a_job, start_ray, versions
from curation.selection.lists import SampleList
from curation.selection.strategies import STRATEGIES
from curation.storage import Folder, file_name, path_below, public_url

log = logging.getLogger("curation")

DECIDES = ("seed", "archive", "encoder", "catalog", "cluster", "select")  # groups of keys that a manifest is made by;
# one that uses scores names their id
OWN = (
    "catalog/",
    "manifests/",
    "quarantine/",
    "clusters/",
    "distilled/",
    "tiles/",
)  # folders of a workspace with files
# that could be shards
VERSIONS = ("curation", "faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "numpy", "pyarrow", "ray", "torch")


@dataclass(frozen=True)
class Run:
    """A job under way: its config, its frozen listing, and the Ray it runs on."""

    config: Config
    workspace: Folder
    roots: list[Root]
    bank: Root | None
    tables: tuple[Table, ...] = ()
    filter: TableFilter | None = None
    begun: float = field(default_factory=time.time)

    @cached_property
    def resources(self) -> Resources:
        """What the cluster has; Ray starts when that is first asked for."""
        return start_ray(self.config.runtime)

    def latest(self) -> Latest:
        """The manifest in force, to be swapped for this run's in the end.

        Raises:
            RequestError: the workspace's store cannot swap.
        """
        self.workspace.check_swaps()
        return read_latest(self.workspace, self.config.name)

    @stage("catalog")
    def catalog(self, encode: bool = True) -> Catalog:
        """The complete catalog; ``encode=False`` only checks that it is there.

        Raises:
            CurationError: it has no row.
        """
        catalog = build_catalog(self.config, self.roots, self.bank, self.resources, encode, self.filter)
        if not catalog.counts["kept"]:
            raise CurationError(
                f"none of {catalog.counts['read']} samples could be used: each has its reason in "
                f"{catalog.store.workspace.public('quarantine')}"
            )
        measured = load_calibration(self.workspace, catalog.store.catalog_id)
        if measured and self.config.select.duplicates:
            log.info("%s", summary(measured))
        return catalog

    @stage("cluster")
    def clusters(self, catalog: Catalog, carried: Folder | None = None) -> Folder:
        """Centroids and assignments, fitted unless they are there; ``carried``: clusters whose ids go on."""
        mode, settings, seed = self.config.references_mode(), self._cluster_settings(catalog), self.config.seed
        made_of = [catalog.store.catalog_id, catalog.artefact.sha256, catalog.digest, catalog.bank_digest]
        if carried is not None:
            made_of.append(carried.base.rpartition("/")[2])
        name = hashlib.sha256(json.dumps([made_of, mode, to_dict(settings), seed]).encode()).hexdigest()[:16]
        folder = self.workspace.child(f"clusters/{name}")
        build_clusters(catalog, mode, settings, seed, folder, self.resources, carried)
        return folder

    def _cluster_settings(self, catalog: Catalog) -> ClusterConfig:
        """As configured; for a strategy that goes down levels two, where nothing says which."""
        settings = self.config.cluster
        if settings.levels is None and STRATEGIES[self.config.select.strategy].seats == "levels":
            k = settings.k or default_k(catalog.counts["kept"])
            settings = replace(settings, levels=[round(k**0.5), k] if k > 1 else [k])
        return settings

    @stage("score")
    def scores(self, catalog: Catalog) -> Folder:
        """What models trained on the labels say of each sample, made unless it is there."""
        from curation.scoring.build import build_scores  # two seconds of imports, which most jobs do not need

        return build_scores(self.config, self.roots, catalog, self.resources, self.tables)

    @stage("consistency")
    def consistency(self, catalog: Catalog) -> Folder:
        """How far each sample's image and what is said of it agree, judged unless that is there."""
        from curation.scoring.consistent import build_consistency  # likewise

        return build_consistency(self.config, catalog, self.resources, self.tables)

    @stage("select")
    def manifest(
        self, catalog: Catalog, clusters: Folder, again: Again | None = None, refit_of: str | None = None
    ) -> Manifest:
        """The drawn manifest, published; ``again``: what it goes on from, ``refit_of``: the parent of a refit."""
        settings, seed = self.config.select, self.config.seed
        content, scores = self._content(catalog, clusters), None
        if STRATEGIES[settings.strategy].scored:
            scores = self.scores(catalog)
            content["scores"] = scores.base.rpartition("/")[2]
        content["parent"] = refit_of if again is None else again.parent.base.rpartition("/")[2]
        if refit_of:
            content["refit"] = True
        header = {"content": content, "provenance": self.provenance()}
        told = self.config.score.label, catalog.sources, again
        return select(catalog.store, clusters, settings, seed, self.workspace, header, self.tables, scores, *told)

    def check_selection(self) -> None:
        """See that what ``select.*`` names is there, before anything is encoded.

        Raises:
            RequestError: there is no such list or column.
        """
        lists = [one for one in self.lists.values() if one]
        deciding_columns(self.config.select, lists, self.tables, self.config.score.label)

    @cached_property
    def lists(self) -> dict[str, SampleList | None]:
        """What ``select.exclude`` and ``select.require`` name, where they do.

        Raises:
            RequestError: there is no such list.
        """
        asked = self.config.select
        return {name: read_list(name, getattr(asked, name), self.workspace) for name in ("exclude", "require")}

    def list_digest(self, name: str) -> str | None:
        """Hash of the list ``select.exclude`` or ``select.require``, where there is one."""
        listed = self.lists[name]
        return listed.digest if listed else None

    @stage("report")
    def report(self, catalog: Catalog, clusters: Folder, manifest: Manifest) -> str:
        """The page's URL."""
        folder = self.workspace.child(manifest.folder)
        sizes = {shard.name: shard.size for root in self.roots for shard in root.shards}
        pixel = len(catalog.artefact.bands) * np.dtype(catalog.artefact.dtype or "u1").itemsize
        scenes = self.config.archive.scene is not None
        reads = ray.get(_reads.remote(folder, sizes, pixel, scenes, self.roots[0].folder.local))
        return write_report(catalog.store, catalog.shards, clusters, folder, self.workspace, reads)

    def _content(self, catalog: Catalog, clusters: Folder) -> dict[str, Any]:
        """What must be the same for the same archive, config, seed and encoder."""
        return {
            "archive": {"roots": [root.name for root in self.roots], "digest": catalog.digest},
            "references": catalog.bank_digest,
            "catalog": catalog.store.catalog_id,
            "artefact": catalog.artefact.sha256,
            "bands": list(catalog.artefact.bands),
            "dtype": catalog.artefact.dtype,
            "radiometry": catalog.artefact.radiometry,
            "speckle_entropy": list(catalog.artefact.speckle_entropy),
            "profiles": list(catalog.profiles),
            "clusters": clusters.base.rpartition("/")[2],
            "config": config_without_urls(
                replace(self.config, archive=catalog.artefact.settled(self.config.archive)), self.tables
            ),
            "counts": catalog.counts,
            "lists": {name: digest for name in ("exclude", "require") if (digest := self.list_digest(name))},
            "warnings": [*catalog.warnings, *warn_of_lost(catalog)],
            "parent": None,
        }

    def provenance(self) -> dict[str, Any]:
        """Where, with what and when it was made."""
        shared = self.config.catalog.url
        return {
            "roots": {root.name: public_url(root.folder.url) for root in self.roots},
            "references": public_url(self.bank.folder.url) if self.bank else None,
            "catalog": public_url(shared) if shared else None,
            "runtime": {name: value for name, value in to_dict(self.config.runtime).items() if name != "storage"},
            "encoder": {"note": QUALITY[self.config.encoder["name"]]},
            "versions": {"python": platform.python_version(), **versions(VERSIONS)},
            "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.begun)),
            "seconds": round(time.time() - self.begun, 1),
        }


@contextmanager
def open_run(arguments: Sequence[str]) -> Iterator[Run]:
    """Check the request and freeze the listing; what is wrong is said before any work, and Ray ends with the run.

    Raises:
        RequestError: the config, the archive, the bank or the workspace is wrong.
        IncompleteError: Ray was lost under way, as when the head's machine dies.
    """
    config = load_config(arguments)
    config.require("archive.url", "workspace")
    assert config.workspace
    workspace = Folder(config.workspace, config.runtime.storage, "workspace")
    workspace.check_writable()
    record_in(workspace, config.runtime.log_json)
    roots = list_archive(config.archive.url, config.runtime.storage, config.archive)
    tables = open_tables(config.archive.tables, config.runtime.storage)
    only = open_filter(tables, config.archive.filter)
    if any(root.name == BANK for root in roots):
        raise RequestError(f"archive.url: no root of the archive may be called {BANK!r}: give it another name")
    bank = None
    if config.references.url is not None:
        (bank,) = list_archive({BANK: config.references.url}, config.runtime.storage, config.archive)
    for root in (*roots, *([bank] if bank else [])):
        _check_apart(workspace, root)
    size = sum(shard.size for root in roots for shard in root.shards)
    log.info("archive: %d shards, %.4g GB", sum(len(root.shards) for root in roots), size / 1e9)
    with ray_for_a_job():
        yield Run(config, workspace, roots, bank, tables, only)


def _check_apart(workspace: Folder, root: Root) -> None:
    """Refuse an archive that has the workspace's own files among its shards: it would be another one after each run."""
    inside = path_below(workspace.url, root.folder.url)
    if inside is None:
        return
    below = (f"{inside}/",) if inside else OWN
    found = next((shard.path for shard in root.shards if f"{shard.path}/".startswith(below)), None)
    if found is not None:
        raise RequestError(
            f"the workspace {workspace.public()} lies in the archive, which would read {found} as a shard: move it "
            "to a folder beside the archive"
        )


def complete(run: Run, catalog: Catalog, latest: Latest) -> dict[str, Any]:
    """From the catalog to the result line: cluster, select, report, put in force.

    Args:
        run: the job.
        catalog: complete.
        latest: what was in force when the job began.

    Raises:
        RequestError: the archive has fewer samples than the budget.
        ConflictError: another manifest was put in force meanwhile; this one is published all the same.
    """
    check_budget(run.config.select.budget, catalog.counts["kept"])
    clusters = run.clusters(catalog)
    manifest = run.manifest(catalog, clusters)
    return finish(run, catalog, manifest, run.report(catalog, clusters, manifest), latest)


def finish(run: Run, catalog: Catalog, manifest: Manifest, report: str, latest: Latest | None = None) -> dict[str, Any]:
    """The result line, and a short table for people.

    Args:
        run: the job.
        catalog: complete.
        manifest: published.
        report: URL of its page.
        latest: what was in force when the job began, to be swapped for the manifest; None: it stays in force.

    Raises:
        CurationError: too many samples are quarantined; everything was written.
        ConflictError: another manifest was put in force meanwhile; everything was written.
    """
    bad = catalog.counts["quarantined"]
    result = {
        "manifest": manifest.url,
        "samples": manifest.samples,
        "kept": manifest.kept,
        "dropped": manifest.samples - manifest.kept,
        "quarantined": bad,
        "report": report,
    }
    dropped = [(f"dropped: {reason}", count) for reason, count in manifest.dropped.items()]
    passed = [("filtered out", catalog.counts["filtered"]), ("tiles without a pixel", catalog.counts["empty"])]
    passed = [row for row in passed if row[1]]
    rows = [*passed, ("read", catalog.counts["read"]), ("quarantined", bad), *dropped, ("kept", manifest.kept)]
    width = max(len(name) for name, _ in rows)
    log.info("\n%s\n", "\n".join(f"  {name:{width}}  {count:>12,}" for name, count in rows))
    log.info("manifest  %s\nreport    %s", result["manifest"], result["report"])
    if latest is not None:
        try:
            publish_latest(run.workspace, run.config.name, latest, manifest.folder.rpartition("/")[2])
        except ConflictError as error:
            error.result = result
            raise
    check_bad_fraction(run.config, catalog.sources, run.workspace, result)
    return result


@ray.remote(num_cpus=1)
def _reads(manifest: Folder, sizes: dict[str, int], pixel: int, scenes: bool, local: bool) -> dict[str, Any]:
    """What an epoch over the kept samples costs, out of the shards they lie in and after materialising."""
    columns = ["shard", "key", "offset", "size", "window"]
    rows = pq.read_table(pa.BufferReader(manifest.read("manifest.parquet")), columns=columns)
    gone = set(rows["shard"].unique().to_pylist()) - set(sizes)
    if gone:
        raise RequestError(f"{min(gone)} of the manifest is no longer in the archive: run curate prune again")
    return reads_of_manifest(rows, sizes, pixel, scenes, LOCAL if local else OBJECT_STORE)


def config_without_urls(config: Config, tables: Sequence[Table]) -> dict[str, Any]:
    """The resolved config without where anything lies or runs; of a list, table or checkpoint, its file's name."""
    content = {name: value for name, value in to_dict(config).items() if name in DECIDES}
    del content["archive"]["url"], content["catalog"]["url"]
    content["cluster"]["references"] = config.references_mode()
    for name in ("exclude", "require"):
        if content["select"][name]:
            content["select"][name] = file_name(content["select"][name])
    if tables:
        content["archive"]["tables"] = [table.identity for table in tables]
    content["encoder"] = portable_encoder(config)
    return content
