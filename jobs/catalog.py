"""``curate catalog``: encode and score the shards that have no catalog file yet."""

from collections.abc import Sequence
from typing import Any

from curation.catalog.build import check_bad_fraction, warn_of_lost
from curation.cli import execute, leave
from curation.stages import open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Complete the catalog."""
    with open_run(arguments) as job:
        catalog = job.catalog()
        result = {
            "catalog": catalog.store.own.public(),
            "samples": catalog.counts["kept"],
            "quarantined": catalog.counts["quarantined"],
            "shards": len(catalog.shards),
        }
        warn_of_lost(catalog)
        check_bad_fraction(job.config, catalog.sources, job.workspace, result)
        return result


if __name__ == "__main__":
    leave(execute(run))
