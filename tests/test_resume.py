"""A run that is killed at any moment with all its workers: started again, the same manifest, nothing paid twice."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import curate, start
from tests.recipes import write_sample_archive

KILLS = int(os.environ.get("KILLS", "3"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_archive(folder, tiles=400)
    return folder


def arguments(archive: Path, workspace: Path) -> list[str]:
    return [
        "prune",
        f"archive.url={archive / 'archive'}",
        f"references.url={archive / 'references'}",
        f"workspace={workspace}",
        "catalog.fit_samples=64",
        "encoder.filters=8",
    ]


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


def test_a_run_killed_at_any_moment_ends_with_the_same_manifest(archive, tmp_path):
    began = time.monotonic()
    undisturbed = curate(*arguments(archive, tmp_path / "undisturbed"))
    seconds = time.monotonic() - began
    assert undisturbed.status == 0, undisturbed.stderr
    workspace = tmp_path / "disturbed"
    finished: dict[Path, int] = {}
    for kill in range(KILLS):
        tag = f"{os.getpid()}-{kill}"
        process = start(*arguments(archive, workspace), CURATE_TEST_RUN=tag)
        time.sleep(seconds * (0.35 + 0.5 * kill / max(1, KILLS - 1)))
        kill_family(process, tag)
        process.communicate()
        now = {path: path.stat().st_mtime_ns for path in (workspace / "catalog").rglob("*.parquet")}
        assert finished.items() <= now.items(), "a finished shard was encoded again"
        finished = now
    outcome = curate(*arguments(archive, workspace))
    assert outcome.status == 0, outcome.stderr
    now = {path: path.stat().st_mtime_ns for path in (workspace / "catalog").rglob("*.parquet")}
    assert finished.items() <= now.items(), "a finished shard was encoded again"
    ours, theirs = outcome.file("manifest").parent, undisturbed.file("manifest").parent
    assert ours.name == theirs.name
    for path in theirs.rglob("*.parquet"):
        assert (ours / path.relative_to(theirs)).read_bytes() == path.read_bytes(), path.name
    assert not [path for path in workspace.rglob("*.parquet") if path.name.startswith(".")]
