"""``curate pretrain``: an encoder learned from the archive alone, which ``encoder=timm`` then takes by path."""

from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.stages import open_run
from curation.training.pretrain import pretrain


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Train, or go on where training stopped."""
    with open_run(arguments) as job:
        return pretrain(job)


if __name__ == "__main__":
    leave(execute(run))
