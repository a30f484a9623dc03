"""A run that is killed at any moment with all its workers: started again, the same manifest, nothing paid twice."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import curate, start
from tests.conftest import Pruned

KILLS = int(os.environ.get("KILLS", "1"))


def kill_family(process: subprocess.Popen[str], tag: str) -> None:
    """SIGKILL to the run and to everything that Ray started for it."""
    os.killpg(process.pid, signal.SIGKILL)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"CURATE_TEST_RUN={tag}".encode() in environment.split(b"\0"):
                try:
                    os.kill(int(entry.name), signal.SIGKILL)
                except ProcessLookupError:
                    pass


def catalogued(workspace: Path) -> dict[Path, int]:
    """The shards that are done, and when they were."""
    return {path: path.stat().st_mtime_ns for path in (workspace / "catalog").rglob("*.parquet") if path.name[0] != "."}


@pytest.mark.timeout(240 + 60 * KILLS)
def test_a_run_killed_at_any_moment_ends_with_the_same_manifest(pruned: Pruned, tmp_path: Path) -> None:
    """First when a shard is done, then at other moments; on one core, to the same bytes as on two in one go."""
    finished: dict[Path, int] = {}
    asked = [*pruned.arguments, f"workspace={tmp_path}", "runtime.num_cpus=1"]
    for kill in range(KILLS):
        tag = f"{os.getpid()}-{kill}"
        process = start("prune", *asked, CURATE_TEST_RUN=tag)
        while not kill and not catalogued(tmp_path) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(pruned.seconds * (0.3 + 0.5 * kill / KILLS) if kill else 0)
        kill_family(process, tag)
        process.communicate()
        now = catalogued(tmp_path)
        assert finished.items() <= now.items(), "a finished shard was encoded again"
        finished = now
    assert finished
    outcome = curate("prune", *asked)
    assert outcome.status == 0, outcome.stderr
    assert finished.items() <= catalogued(tmp_path).items(), "a finished shard was encoded again"
    ours, theirs = outcome.file("manifest").parent, pruned.folder
    assert ours.name == theirs.name
    for path in theirs.rglob("*.parquet"):
        assert (ours / path.relative_to(theirs)).read_bytes() == path.read_bytes(), path.name
    assert not [path for path in tmp_path.rglob("*.parquet") if path.name.startswith(".")]
