"""``curate choose``: how stable a selection is over seeds, K and encoders, or that it would be mostly noise."""

from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.evaluation.choose import choose
from curation.stages import open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Sweep, recommend, and write the page."""
    with open_run(arguments) as job:
        return choose(job)


if __name__ == "__main__":
    leave(execute(run))
