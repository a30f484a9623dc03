"""The stages in order, over one frozen listing: what the jobs are made of."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from curation.archive.listing import Root, list_archive
from curation.catalog.build import BANK, Catalog, build_catalog, check_bad_fraction
from curation.clustering.stage import cluster
from curation.config import Config, load_config
from curation.manifests.build import Manifest, select
from curation.report.page import write_report
from curation.runtime import Resources, start_ray
from curation.storage import Folder, public_url

log = logging.getLogger("curation")


@dataclass(frozen=True)
class Run:
    """A job under way: its config, its frozen listing, and the Ray it runs on."""

    config: Config
    workspace: Folder
    roots: list[Root]
    bank: Root | None
    resources: Resources

    def catalog(self, encode: bool = True) -> Catalog:
        """The complete catalog; ``encode=False`` only checks that it is there."""
        return build_catalog(self.config, self.roots, self.bank, self.resources, encode)

    def clusters(self, catalog: Catalog) -> Folder:
        """Centroids and assignments, fitted unless they are there."""
        return cluster(self.config, catalog, self.workspace, self.resources)

    def manifest(self, catalog: Catalog, clusters: Folder) -> Manifest:
        """The drawn manifest, published."""
        return select(self.config, catalog, clusters, self.workspace, self.resources)

    def report(self, catalog: Catalog, clusters: Folder, manifest: Manifest) -> str:
        """The page's URL."""
        return write_report(self.config, catalog, clusters, manifest, self.workspace)


@contextmanager
def open_run(arguments: Sequence[str]) -> Iterator[Run]:
    """Check the request, freeze the listing, start Ray; what is wrong is said before any work.

    Raises:
        RequestError: the config, the archive, the bank or the workspace is wrong.
    """
    config = load_config(arguments)
    config.require("archive.url", "workspace")
    assert config.workspace
    workspace = Folder(config.workspace, config.runtime.storage)
    workspace.check_writable()
    roots = list_archive(config.archive.url, config.runtime.storage)
    bank = None
    if config.references.url is not None:
        (bank,) = list_archive({BANK: config.references.url}, config.runtime.storage)
    shards = sum(len(root.shards) for root in roots)
    log.info("archive: %d shards, %s", shards, _size(sum(s.size for root in roots for s in root.shards)))
    resources = start_ray(config.runtime)
    try:
        yield Run(config, workspace, roots, bank, resources)
    finally:
        ray.shutdown()


def finish(run: Run, catalog: Catalog, manifest: Manifest, report: str) -> dict[str, Any]:
    """The result line, and a short table for people.

    Raises:
        CurationError: too many samples are quarantined; everything was written.
    """
    samples, bad = catalog.counts["kept"], catalog.counts["quarantined"]
    result = {
        "manifest": manifest.url,
        "samples": samples,
        "kept": manifest.kept,
        "dropped": samples - manifest.kept,
        "quarantined": bad,
        "report": report,
    }
    rows = [("read", catalog.counts["read"]), ("quarantined", bad), *manifest.dropped.items(), ("kept", manifest.kept)]
    width = max(len(name) for name, _ in rows)
    log.info("\n%s\n", "\n".join(f"  {name:{width}}  {count:>12,}" for name, count in rows))
    log.info("manifest  %s\nreport    %s", result["manifest"], result["report"])
    check_bad_fraction(run.config, catalog, result)
    return result


def read_header(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """A manifest's header.

    Args:
        url: of ``manifest.json`` or of the folder that it lies in.
        options: storage options.
    """
    folder = Folder(url.removesuffix("/manifest.json"), options)
    return dict(json.loads(folder.read("manifest.json")))


def _size(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value /= 1000
    return f"{value:.3g} {unit}"


__all__ = ["Run", "finish", "open_run", "public_url", "read_header"]
