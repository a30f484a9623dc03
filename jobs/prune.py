"""``curate prune``: all stages, from the archive to the manifest and its page."""

from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.stages import complete, open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Catalog, cluster, select, report."""
    with open_run(arguments) as job:
        job.check_selection()
        latest = job.latest()
        return complete(job, job.catalog(), latest)


if __name__ == "__main__":
    leave(execute(run))
