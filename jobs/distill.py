"""``curate distill``: a labelled archive in a few synthetic images a class, and what they are worth."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from curation.cli import execute, leave
from curation.errors import require
from curation.stages import open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Distil, or go on where that stopped."""
    there = find_spec("diffusers") is not None
    require(there, "curate distill needs diffusers, peft and transformers: pip install curation[distill]")
    from curation.distillation.build import distill  # which needs them

    with open_run(arguments) as job:
        return distill(job)


if __name__ == "__main__":
    leave(execute(run))
