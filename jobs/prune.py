"""``curate prune``: all stages, from the archive to the manifest and its page."""

import sys
from collections.abc import Sequence
from typing import Any

from curation.cli import execute
from curation.manifests.build import check_budget
from curation.stages import finish, open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Catalog, cluster, select, report."""
    with open_run(arguments) as job:
        catalog = job.catalog()
        check_budget(job.config.select.budget, catalog.counts["kept"])
        clusters = job.clusters(catalog)
        manifest = job.manifest(catalog, clusters)
        return finish(job, catalog, manifest, job.report(catalog, clusters, manifest))


if __name__ == "__main__":
    sys.exit(execute(run))
