"""``curate recurate``: take in what is new since the last manifest, and draw one that goes on from it."""

from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.recurate import recurate
from curation.stages import open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Compare the listing with the last manifest's, and do what is to be done."""
    with open_run(arguments) as job:
        return recurate(job)


if __name__ == "__main__":
    leave(execute(run))
