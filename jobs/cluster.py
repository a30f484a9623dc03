"""``curate cluster``: fit centroids over a complete catalog and assign every sample."""

import json
from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.stages import open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Fit and assign; the result is the fit's statistics."""
    with open_run(arguments) as job:
        clusters = job.clusters(job.catalog(encode=False))
        fit = json.loads(clusters.read("fit.json"))
        return {"clusters": clusters.public(), "k": fit["k"], "samples": fit["rows"]}


if __name__ == "__main__":
    leave(execute(run))
