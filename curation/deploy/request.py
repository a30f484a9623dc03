"""What a job is asked for when another machine will run it: checked here, before anything is sent."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.cli import JOBS
from curation.config import Config, load_config, to_dict
from curation.errors import require

OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.-]*=")  # key=value; other arguments are a job's own
LOCAL = ("submit", "schedule", "status")  # jobs about other jobs


@dataclass(frozen=True)
class Request:
    """One job and its arguments, valid as far as can be told without the data.

    Attributes:
        job: its name.
        arguments: what it gets, as typed, but for ``config=FILE``.
        config: what its overrides make.
        file: of ``config=FILE``: it lies here, so that its content has to go along.
    """

    job: str
    arguments: list[str]
    config: Config
    file: Path | None

    def command(self, file: str | None = None, *more: str) -> str:
        """The line that a shell of the cluster runs.

        Args:
            file: where the config file will lie there.
            more: overrides that the place brings along.
        """
        named = [f"config={file}"] if file else []
        cluster = ["runtime.address=auto"] if not self.config.runtime.address else []
        return shlex.join(["python", "-m", "curation.cli", self.job, *self.arguments, *named, *cluster, *more])

    def resolved(self) -> dict[str, Any]:
        """What decides what the job does, however it was typed."""
        config = to_dict(self.config)
        for about_us in ("submit", "schedule"):
            del config[about_us]
        own = [text for text in self.arguments if not OVERRIDE.match(text)]
        return {"job": self.job, "arguments": own, "config": config}


def read_request(arguments: Sequence[str], usage: str) -> Request:
    """Take a job and its arguments apart, and check them.

    Args:
        arguments: the job's name, then what it gets.
        usage: how the command is used, for messages.

    Raises:
        RequestError: there is no such job, or its overrides are wrong.
    """
    require(bool(arguments), f"name the job: {usage}")
    job, *rest = arguments
    allowed = [name for name in JOBS if name not in LOCAL]
    require(job in allowed, f"no job {job!r} for a cluster: choose one of {', '.join(allowed)}")
    files = [text for text in rest if text.startswith("config=") and job != "inspect"]  # inspect writes that file
    rest = [text for text in rest if text not in files]
    own = "config=" if job == "inspect" else None
    config = load_config(files + [text for text in rest if OVERRIDE.match(text) and not (own and text.startswith(own))])
    ours = tuple(f"{prefix}{group}." for group in ("submit", "schedule") for prefix in ("", "+", "++"))
    kept = [text for text in rest if not text.startswith(ours)]
    return Request(job, kept, config, Path(files[-1].partition("=")[2]) if files else None)


def take_option(arguments: list[str], name: str) -> str | None:
    """Remove ``--name VALUE`` from the arguments; None if it is not among them.

    Raises:
        RequestError: it has no value.
    """
    if name not in arguments:
        return None
    at = arguments.index(name)
    require(at + 1 < len(arguments), f"{name} takes a value: {name} VALUE")
    value = arguments.pop(at + 1)
    del arguments[at]
    return value
