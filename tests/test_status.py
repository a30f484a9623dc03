"""``curate status``: what is under way and how far, what was killed, what is in force; the same on disk and in S3."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation import runs
from curation.errors import RequestError
from curation.runs import utc
from curation.status import LOOKED, SHOWN, SILENT, status, table
from curation.storage import Folder
from jobs import status as job
from tests.command import curate
from tests.s3 import S3, s3_server
from tests.test_runs import begin, wait_until_it_waits

NIGHT = 1_800_000_000.0


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["disk", "s3"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path))
    s3: S3 = request.getfixturevalue("s3")
    return Folder(f"{s3.url}/{tmp_path.name}", s3.storage)


def write_run(workspace: Folder, number: int, **told: Any) -> str:
    name = f"20270115T0{number:05}Z-prune-{number:04x}"
    record = {"run": name, "job": "prune", "state": "done", "exit_status": 0, "seconds": 3700.0, **told}
    workspace.publish(f"runs/{name}.json", json.dumps(record).encode())
    return name


def write_manifest(workspace: Folder, pointer: str, name: str, parent: str | None = None) -> None:
    counts = {"samples": 2000, "kept": 300, "quarantined": 1}
    header = {"content": {"counts": counts, "parent": parent}, "provenance": {"begun": "2027-01-15T08:00:00Z"}}
    workspace.publish(f"manifests/{name}/manifest.json", json.dumps(header).encode())
    workspace.publish(f"manifests/{pointer}.json", json.dumps({"id": name}).encode())


def test_a_workspace(workspace: Folder) -> None:
    stage = {"name": "encode", "share": 0.37, "left": 185.0, "samples": 5200, "rate": 41.5}
    running = {"state": "running", "exit_status": None, "stage": stage, "quarantined": 2, "warned": 1}
    error = {"class": "AccessError", "message": "it answers 503 " * 20}
    write_run(workspace, 1, state="failed", exit_status=1, error=error)
    write_run(workspace, 2, result={"samples": 2000, "kept": 300})
    killed = write_run(workspace, 3, **running, heartbeat=utc(NIGHT - SILENT - 1))
    alive = write_run(workspace, 4, **running, heartbeat=utc(NIGHT - SILENT + 1))
    workspace.publish("runs/20270115T000005Z-prune-0005.json", b"{half")
    write_manifest(workspace, "latest", "m2", "m1")
    write_manifest(workspace, "latest-north_sea", "n1")
    workspace.publish("manifests/latest-broken.json", b'{"id": "gone"}')
    workspace.publish("manifests/m1/decisions/part-00000.parquet", b"")
    workspace.publish("encoders/c1/artefact.safetensors", b"")
    for shard in ("a", "b"):
        workspace.publish(f"catalog/c1/root0/{shard}.parquet", b"")

    found = status(workspace, files=True, now=NIGHT)
    assert found["under_way"] == 1 and found["recorded"] == 5
    assert [run["state"] for run in found["runs"]] == ["unreadable", "running", "running", "done", "failed"]
    by_name = {run["run"]: run for run in found["runs"]}
    assert (by_name[alive]["alive"], by_name[alive]["silent"]) == (True, SILENT - 1)
    assert (by_name[killed]["alive"], by_name[killed]["silent"]) == (False, SILENT + 1)
    assert found["manifests"] == [
        {"name": None, "id": "m2", "samples": 2000, "kept": 300, "parent": "m1", "begun": "2027-01-15T08:00:00Z"},
        {"name": "broken", "id": "gone", "broken": True},
        {
            "name": "north_sea",
            "id": "n1",
            "samples": 2000,
            "kept": 300,
            "parent": None,
            "begun": "2027-01-15T08:00:00Z",
        },
    ]
    assert found["catalogs"] == [{"id": "c1", "files": 2}]
    assert status(workspace, now=NIGHT)["catalogs"] == [{"id": "c1"}]

    lines = table(found).splitlines()
    assert "unreadable" in lines[1]
    assert alive in lines[2] and "under way" in lines[2]
    assert lines[2].endswith("encode, 37%, 5,200 samples, 42/s, 3 min 05 s left, 2 quarantined, 1 warning")
    assert f"no sign of life since {utc(NIGHT - SILENT - 1)}" in lines[3] and "left" not in lines[3]
    assert "2,000 samples, 300 kept" in lines[4]
    assert "failed (1)" in lines[5] and lines[5].endswith("…")
    assert [line.split()[:4] for line in lines[7:10]] == [
        ["latest", "m2", "300", "of"],
        ["broken", "gone", "cannot", "be"],
        ["north_sea", "n1", "300", "of"],
    ]
    assert lines[7].endswith("300 of 2,000 kept, 2027-01-15T08:00:00Z               parent m1")


def test_old_runs_are_counted_and_those_under_way_are_shown(tmp_path: Path) -> None:
    workspace = Folder(str(tmp_path))
    for number in range(LOOKED + 30):
        write_run(workspace, number)
    early = write_run(workspace, 5, state="running", heartbeat=utc(NIGHT))
    late = write_run(workspace, LOOKED, state="running", heartbeat=utc(NIGHT))
    found = status(workspace, now=NIGHT)
    assert len(found["runs"]) == SHOWN + 1 and found["runs"][-1]["run"] == late
    assert f"({SHOWN + 1} of {LOOKED + 30}; --all shows them all)" in table(found)
    everything = status(workspace, everything=True, now=NIGHT)
    assert len(everything["runs"]) == LOOKED + 30 and everything["under_way"] == 2
    assert early in table(everything)


def test_a_killed_run(tmp_path: Path) -> None:
    process = begin(tmp_path, "wait")
    wait_until_it_waits(process)
    (run,) = status(Folder(str(tmp_path)))["runs"]
    assert run["alive"] and run["pid"] == process.pid
    process.kill()
    process.wait()
    found = status(Folder(str(tmp_path)), now=time.time() + SILENT + 1)
    assert not found["under_way"] and found["runs"][0]["state"] == "running"
    assert "no sign of life since" in table(found) and "part, 40%, 40 samples" in table(found)


def test_a_record_in_s3(s3: S3) -> None:
    workspace = Folder(f"{s3.url}/recorded", s3.storage)
    run = runs.begin("recurate", ["workspace=s3://bucket/recorded"])
    runs.record_in(workspace)
    assert status(workspace)["under_way"] == 1
    run.end(1, {"kept": 5}, ValueError("x"))
    (found,) = status(workspace)["runs"]
    assert (found["run"], found["state"], found["result"]) == (run.id, "failed", {"kept": 5})


def test_the_command(tmp_path: Path) -> None:
    write_run(Folder(str(tmp_path)), 1, result={"kept": 3})
    outcome = curate("status", str(tmp_path))
    assert outcome.status == 0, outcome.stderr
    assert outcome.result["runs"][0]["result"] == {"kept": 3} and "3 kept" in outcome.stderr
    assert len(list(tmp_path.rglob("*.json"))) == 1, "looking leaves no record"
    code = "import sys, jobs.status; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--all"], ["{none}"], ["{file}"], ["{there}", "nothing=1"]])
def test_a_wrong_request(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "file").write_text("")
    places = {"none": tmp_path / "none", "file": tmp_path / "file", "there": tmp_path}
    with pytest.raises(RequestError):
        job.run([text.format(**places) for text in arguments])
