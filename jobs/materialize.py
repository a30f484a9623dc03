"""``curate materialize MANIFEST DEST``: the kept samples as shards of their own, WebDataset tars or Parquet.

``archive.url=URL`` says where the archive lies if it has moved since.
"""

import re
from collections.abc import Sequence
from typing import Any

from curation.archive.listing import moved_roots
from curation.cli import execute, leave
from curation.config import load_config
from curation.errors import RequestError
from curation.materialized.build import materialize


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Write what is not there yet."""
    if len(arguments) < 2 or re.match(r"[a-z_.]+=", arguments[1]):
        raise RequestError("materialize takes a manifest and a folder: curate materialize MANIFEST DEST [key=value …]")
    manifest, dest, *overrides = arguments
    config = load_config(overrides)
    return materialize(manifest, dest, config, moved_roots(config.runtime.storage, config.archive))


if __name__ == "__main__":
    leave(execute(run))
