"""``curate schedule render JOB [key=value …] [--output FOLDER]``: Kubernetes objects that run a job by the clock.

``schedule.*`` says when and on what (conf/schedule). ``curate schedule launch FILE`` is what the CronJob's pod does.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from curation.cli import execute, leave, take_option
from curation.deploy.kubernetes import as_yaml, render, write_files
from curation.deploy.launch import Api, launch
from curation.deploy.request import read_request
from curation.errors import RequestError

USAGE = "curate schedule render JOB schedule.image=IMAGE [key=value …] [--output FOLDER]"


def run(arguments: Sequence[str]) -> dict[str, Any] | str:
    """YAML on stdout, or files and their paths."""
    command, *rest = arguments or [""]
    if command == "launch" and len(rest) == 1:
        return launch(Api.of_pod(), yaml.safe_load(Path(rest[0]).read_text()), sys.stderr.write)
    if command != "render":
        raise RequestError(f"schedule takes render: {USAGE}")
    output = take_option(rest, "--output", "a folder")
    objects = render(read_request(rest, USAGE))
    if output is None:
        return as_yaml(objects)
    return {"files": [str(path) for path in write_files(objects, Path(output))]}


if __name__ == "__main__":
    leave(execute(run))
