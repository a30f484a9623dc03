"""A job that does nothing but tell how far it is: what tests of run records start, wait for and kill."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from curation import runs
from curation.cli import execute
from curation.errors import CurationError, RequestError
from curation.storage import Folder


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """``workspace=URL how=END``; a hundred heartbeats in ten seconds; says that it waits when its record says so."""
    runs.HEARTBEAT = 0.1
    given = dict(text.split("=", 1) for text in arguments)
    workspace = Folder(given["workspace"])
    runs.record_in(workspace)
    log = logging.getLogger("curation")
    with runs.stage("work"), runs.stage("part", total=10, unit="parts") as done:
        done(4)
        runs.count("root0", shards=1, samples=40, quarantined=1, size=1000)
        runs.observe_drift(far_share=0.25, share_shift=0.5, entropy_shift=float("nan"))
        log.warning("take s3://me:hunter2@bucket/x with care")
        result = {"samples": 39, "kept": 10}
        match given["how"]:
            case "done":
                return result
            case "refused":
                raise RequestError("archive.url=https://h/x?signature=hunter2: there is nothing")
            case "failed":
                error = CurationError("too many are quarantined")
                error.result = result
                raise error
            case "fault":
                raise ValueError("a fault of ours")
        assert runs._current
        while not json.loads(workspace.read(f"runs/{runs._current.id}.json"))["warned"]:
            time.sleep(0.05)
        log.info("waiting")
        time.sleep(60)
    raise AssertionError("nobody stopped it")


if __name__ == "__main__":
    sys.exit(execute(run))
