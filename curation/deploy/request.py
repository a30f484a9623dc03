"""What a job is asked for when another machine will run it: checked here, before anything is sent."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.cli import JOBS, OVERRIDE
from curation.config import Config, load_config, to_dict
from curation.errors import RequestError, require
from curation.storage import public_arguments

PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # requirements may have a user (git@) and hashes
CREDENTIALS = re.compile(r"://[^/\s]*@|https?://[^\s'\"?#]*[?#][^\s'\"]*=")  # but a ? alone is a pattern
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
        RequestError: there is no such job, its overrides are wrong, or a URL has credentials in it.
    """
    require(bool(arguments), f"name the job: {usage}")
    job, *rest = arguments
    allowed = [name for name in JOBS if name not in LOCAL]
    require(job in allowed, f"no job {job!r} for a cluster: choose one of {', '.join(allowed)}")
    files = [text for text in rest if text.startswith("config=") and job != "inspect"]  # inspect writes that file
    rest = [text for text in rest if text not in files]
    own = "config=" if job == "inspect" else None
    config = load_config(files + [text for text in rest if OVERRIDE.match(text) and not (own and text.startswith(own))])
    _refuse_credentials("", to_dict(config))
    _refuse_credentials("", [text for text in rest if not OVERRIDE.match(text)])
    ours = tuple(f"{prefix}{group}." for group in ("submit", "schedule") for prefix in ("", "+", "++"))
    kept = [text for text in rest if not text.startswith(ours)]
    return Request(job, kept, config, Path(files[-1].partition("=")[2]) if files else None)


def _refuse_credentials(key: str, value: Any) -> None:
    """Whoever may see the job, in Ray or Kubernetes, sees its arguments and its config."""
    if isinstance(value, dict):
        for name, below in value.items():
            _refuse_credentials(f"{key}.{name}" if key else str(name), below)
    elif isinstance(value, list):
        for below in value:
            _refuse_credentials(key, below)
    elif isinstance(value, str) and (PASSWORD if key == "submit.pip" else CREDENTIALS).search(value):
        shown = public_arguments([f"{key}={value}" if key else value])[0]
        raise RequestError(
            f"{shown}: a URL with a user or a query (a signature) in it would be shown to everybody who sees the job: "
            "give credentials to the cluster's nodes, by environment, profile or role"
        )
