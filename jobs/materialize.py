"""``curate materialize MANIFEST DEST``: the kept samples as shards of their own, WebDataset tars or Parquet.

``archive.url=URL`` says where the archive lies if it has moved since.
"""

from collections.abc import Sequence
from typing import Any

from curation.archive.listing import moved_roots
from curation.cli import execute, leave, split_arguments
from curation.config import load_config
from curation.errors import RequestError
from curation.materialized.build import materialize
from curation.runtime import ray_for_a_job


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Write what is not there yet."""
    places, overrides = split_arguments(arguments, 2)
    if len(places) < 2:
        raise RequestError(
            "materialize takes a manifest and a folder (./a=b for one with =): curate materialize MANIFEST DEST "
            "[key=value …]"
        )
    manifest, dest = places
    config = load_config(overrides)
    with ray_for_a_job():
        return materialize(manifest, dest, config, moved_roots(config.runtime.storage, config.archive))


if __name__ == "__main__":
    leave(execute(run))
