"""``curate compare``: which way of pruning is worth it on this archive, at which budget, and whether any is."""

from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.evaluation.compare import compare
from curation.stages import open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Select, train, judge, and write the page."""
    with open_run(arguments) as job:
        return compare(job, arguments)


if __name__ == "__main__":
    leave(execute(run))
