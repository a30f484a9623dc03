"""Requests that cannot be: status 2, one line, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from curation.archive.listing import list_archive
from curation.errors import CurationError, RequestError
from curation.stages import _check_apart
from curation.storage import Folder
from jobs import prune
from tests.command import curate
from tests.conftest import Pruned
from tests.recipes import write_rgb_archive


def wrong(sample_archive: Path, tmp_path: Path, override: str) -> list[str]:
    """What ``prune`` is asked for, with one thing wrong."""
    given = override.replace("{none}", str(tmp_path / "none")).replace("{archive}", str(sample_archive))
    return [f"archive.url={sample_archive / 'archive'}", f"workspace={tmp_path / 'ws'}", given]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("archive.url={none}", "none"),
        ("references.url={none}", "none"),
        ("archive.url={references: {archive}}", "another name"),
        ("select.budget=-3", "select.budget=-3"),
        ("workspace=/proc/nowhere", "cannot write"),
        ("select.exclude={none}", "there is no such file"),
        ("select.by=[sensor]", "select.by=sensor is no column"),
        ("cluster.levels=[9,3]", "must rise"),
    ],
)
def test_a_wrong_request(sample_archive: Path, tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        prune.run(wrong(sample_archive, tmp_path, override))
    assert not (tmp_path / "ws" / "manifests").exists() and not (tmp_path / "ws" / "encoders").exists()


def test_a_workspace_that_the_archive_would_read(tmp_path: Path) -> None:
    write_rgb_archive(tmp_path / "tiles", tiles=4, size=32, shards=1)
    write_rgb_archive(tmp_path / "tiles/ws/distilled", tiles=4, size=32, shards=1)
    with pytest.raises(RequestError, match="lies in the archive, which would read ws/distilled/rgb-000.tar as a shard"):
        prune.run([f"archive.url={tmp_path / 'tiles'}", f"workspace={tmp_path / 'tiles/ws'}"])
    (root,) = list_archive(f"{tmp_path / 'tiles/rgb-000.tar'}")
    _check_apart(Folder(str(tmp_path / "tiles")), root)  # the one tar is all that is read


def test_parquet_that_a_picture_would_hide(tmp_path: Path) -> None:
    write_rgb_archive(tmp_path / "tiles", tiles=4, size=32, shards=1)
    (tmp_path / "tiles/data.parquet").write_bytes(bytes(10_000_000))
    with pytest.raises(RequestError, match="1 Parquet files would be passed over as tables, and they are most"):
        prune.run([f"archive.url={tmp_path / 'tiles'}", f"workspace={tmp_path / 'ws'}"])


def test_no_log_is_no_log(tmp_path: Path) -> None:
    outcome = curate("inspect", str(tmp_path / "none"), f"config={tmp_path / 'x'}", "runtime.log_json=null")
    assert outcome.status == 2 and not Path("null").exists()


def test_the_command_says_it_in_one_line(sample_archive: Path, tmp_path: Path) -> None:
    outcome = curate("prune", *wrong(sample_archive, tmp_path, "unknown.key=1"))
    assert outcome.status == 2
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert "unknown key" in outcome.stderr.splitlines()[-1]
    assert not (tmp_path / "ws" / "manifests").exists()


@pytest.mark.parametrize(("key", "status", "says"), [("", 2, "no credentials"), ("some", 1, "no-such-bucket")])
def test_a_store_without_credentials_or_an_answer(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, key: str, status: int, says: str
) -> None:
    monkeypatch.setattr("curation.storage.folder._clients", {})  # one with other credentials has the same options
    for name, value in {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": key, "HOME": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = "runtime.storage={s3:{endpoint_url:'http://127.0.0.1:9'}}"
    with pytest.raises(CurationError, match=says) as error:
        prune.run(["archive.url=s3://no-such-bucket/x", f"workspace={tmp_path}", storage])
    assert error.value.exit_status == status


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("archive.bands=[B99]", "no band B99"),
        ("archive.range=[[0,1],[0,1]]", "archive.range"),
        ("references.url={bank}", "bank"),
        ("select.budget=100000", "select.budget=100000"),
        ("runtime.device=cuda", "no GPU"),
    ],
)
def test_a_request_that_does_not_fit_the_data(
    ray_local: None, pruned: Pruned, tmp_path: Path, override: str, says: str
) -> None:
    write_rgb_archive(tmp_path / "bank", tiles=8)
    given = override.replace("{bank}", str(tmp_path / "bank"))
    before = sorted(pruned.workspace.glob("manifests/*"))
    with pytest.raises(RequestError, match=says):
        prune.run([*pruned.arguments, f"workspace={pruned.workspace}", given])
    assert before == sorted(pruned.workspace.glob("manifests/*"))


def test_what_a_task_finds_wrong_is_one_line_too(ray_local: None, tmp_path: Path) -> None:
    """On a cluster that runs already."""
    write_rgb_archive(tmp_path / "archive", tiles=1, shards=1)
    cluster = f"runtime.address={ray.get_runtime_context().gcs_address}"
    archive, workspace = f"archive.url={tmp_path / 'archive'}", f"workspace={tmp_path / 'ws'}"
    outcome = curate("prune", archive, workspace, "select.budget=1", cluster)
    assert outcome.status == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr and "ray::" not in outcome.stderr


def test_help_and_unknown_jobs() -> None:
    assert curate("--help").status == 0
    assert curate("prune", "--help").status == 0
    unknown = curate("prunne")
    assert unknown.status == 2
    assert "prune" in unknown.stderr


def test_an_unwritable_workspace(sample_archive: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    outcome = curate("prune", f"archive.url={sample_archive / 'archive'}", f"workspace={tmp_path / 'ws'}")
    assert outcome.status == 2


def test_a_process_ends_with_its_status_and_all_that_is_to_be_done_at_its_end() -> None:
    """Threads are waited for and functions for the end are called, though the interpreter is not taken down."""
    code = """
import atexit, threading, time
from curation.cli import leave
atexit.register(print, "ended")
threading.Thread(target=lambda: (time.sleep(0.5), print("waited for"))).start()
leave(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")) == (3, ["waited for", "ended", ""])
