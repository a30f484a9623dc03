"""``curate verify MANIFEST [--deep]``: hashes and counts; ``--deep``: every kept sample is still readable.

The same of a folder that ``curate materialize`` wrote, where it is all one.
``archive.url=URL`` says where the archive lies if it has moved since.
"""

from collections.abc import Sequence
from typing import Any

from curation.archive.listing import moved_roots
from curation.cli import execute, leave, split_arguments
from curation.config import load_config
from curation.errors import CurationError, RequestError
from curation.manifests.verify import verify
from curation.materialized.check import is_materialized, verify_materialized


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Check a manifest; the status is 1 where anything is wrong."""
    rest = [text for text in arguments if text != "--deep"]
    places, overrides = split_arguments(rest, 1)
    if not places:
        raise RequestError("verify takes a manifest: curate verify MANIFEST [--deep]")
    manifest = places[0]
    config = load_config(overrides)
    storage = config.runtime.storage
    if is_materialized(manifest, storage):
        result = verify_materialized(manifest, storage)
    else:
        result = verify(manifest, len(rest) < len(arguments), storage, moved_roots(storage, config.archive))
    if not result["ok"]:
        error = CurationError(f"{result['wrong']} problems, the first: {result['problems'][0]}")
        error.result = result
        raise error
    return result


if __name__ == "__main__":
    leave(execute(run))
