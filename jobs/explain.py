"""``curate explain MANIFEST SAMPLE``: which rule decided, and which kept sample stands for it."""

import logging
from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.config import load_config
from curation.errors import RequestError
from curation.manifests.explain import explain


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Explain one sample, by id or key."""
    if len(arguments) < 2:
        raise RequestError("explain takes a manifest and a sample: curate explain MANIFEST SAMPLE")
    manifest, sample, *overrides = arguments  # a sample may be called anything
    found = explain(manifest, sample, load_config(overrides).runtime.storage)
    logging.getLogger("curation").info("%s", found["why"])
    return found


if __name__ == "__main__":
    leave(execute(run))
