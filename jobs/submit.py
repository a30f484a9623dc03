"""``curate submit JOB [key=value …] --address http://HEAD:8265``: run a job on a Ray cluster, over its Jobs API.

``--token-file FILE`` holds the cluster's token; ``--key NIGHT`` names the occasion, which succeeds once; ``--detach``
does not wait. What stands after ``--`` is the job's, whatever it is called.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation.cli import execute, leave, take_option
from curation.deploy.packing import pack
from curation.deploy.request import read_request
from curation.deploy.submission import connect, follow, status_of, submit

USAGE = "curate submit JOB [key=value …] --address http://HEAD:8265"


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Submit or attach, follow, and return the job's own result."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    ours, theirs = list(arguments[:at]), list(arguments[at + 1 :])
    address = take_option(ours, "--address", "the URL of the cluster's dashboard")
    token_file = take_option(ours, "--token-file", "a file with the cluster's token")
    key = take_option(ours, "--key", "a name for the occasion")
    detach = "--detach" in ours
    request = read_request([text for text in ours if text != "--detach"] + theirs, USAGE)
    with tempfile.TemporaryDirectory() as folder:
        package = pack(request.config.submit, request.file, Path(folder))
        client = connect(address, token_file)
        name = submit(client, request, package, key)
    if detach:
        return {"submission": name, "status": status_of(client, name)}
    return follow(client, name, sys.stderr.write)


if __name__ == "__main__":
    leave(execute(run))
