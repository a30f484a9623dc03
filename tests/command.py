"""Runs ``curate`` as people do: a process, its status, its last line."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object of the last line."""
        return dict(json.loads(self.stdout.splitlines()[-1]))

    def file(self, key: str) -> Path:
        """The local file that a URL of the result names."""
        return Path(unquote(urlsplit(self.result[key]).path))


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``curate``; its own session, so that it can be killed with all its children."""
    return subprocess.Popen(
        [sys.executable, "-m", "curation.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment,
        start_new_session=True,
    )


def curate(*arguments: str, timeout: float = 240, **environment: str) -> Outcome:
    """Run ``curate`` to its end."""
    process = start(*arguments, **environment)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    return Outcome(process.returncode, stdout, stderr)
