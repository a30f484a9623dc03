"""``curate verify MANIFEST [--deep]``: hashes and counts; ``--deep``: every kept sample is still readable.

``archive.url=URL`` says where the archive lies if it has moved since.
"""

import sys
from collections.abc import Sequence
from typing import Any

from curation.archive.listing import list_archive
from curation.cli import execute
from curation.config import load_config
from curation.errors import CurationError, RequestError
from curation.manifests.verify import verify


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Check a manifest; the status is 1 where anything is wrong."""
    rest = [text for text in arguments if text != "--deep"]
    if not rest:
        raise RequestError("verify takes a manifest: curate verify MANIFEST [--deep]")
    manifest, *overrides = rest
    config = load_config(overrides)
    roots = None
    if config.archive.url is not None:
        listed = list_archive(config.archive.url, config.runtime.storage, config.archive)
        roots = {root.name: root.folder.url for root in listed}
    result = verify(manifest, len(rest) < len(arguments), config.runtime.storage, roots)
    if not result["ok"]:
        error = CurationError(f"{len(result['problems'])} problems, the first: {result['problems'][0]}")
        error.result = result
        raise error
    return result


if __name__ == "__main__":
    sys.exit(execute(run))
