"""``curate select``: draw the manifest from a complete catalog and its clusters, and write its page."""

from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.stages import complete, open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Cluster where that is not done yet, then select and report."""
    with open_run(arguments) as job:
        job.check_selection()
        latest = job.latest()
        return complete(job, job.catalog(encode=False), latest)


if __name__ == "__main__":
    leave(execute(run))
