"""``curate verify MANIFEST [--deep]``: hashes and counts; ``--deep``: every kept sample is still readable."""

import sys
from collections.abc import Sequence
from typing import Any

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
    result = verify(manifest, len(rest) < len(arguments), load_config(overrides).runtime.storage)
    if not result["ok"]:
        error = CurationError(f"{len(result['problems'])} problems, the first: {result['problems'][0]}")
        error.result = result
        raise error
    return result


if __name__ == "__main__":
    sys.exit(execute(run))
