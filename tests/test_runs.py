"""Run records and the log for programs: whatever becomes of a run can be read afterwards, and no secret with it."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation import runs
from curation.errors import AccessError
from curation.storage import Folder, public_arguments
from tests.command import curate


def begin(workspace: Path, how: str, *more: str) -> "subprocess.Popen[str]":
    arguments = [f"workspace={workspace}", f"how={how}", *more]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "tests.watched_job", *arguments], **pipes)


def wait_until_it_waits(process: "subprocess.Popen[str]") -> None:
    assert process.stderr
    for line in process.stderr:
        if "waiting" in line:
            return
    raise AssertionError("it ended")


def records(workspace: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(workspace.glob("runs/*.json"))]


@pytest.mark.parametrize(
    ("how", "status", "state", "error"),
    [
        ("done", 0, "done", None),
        ("refused", 2, "refused", {"class": "RequestError", "message": "archive.url=https://h/x there is nothing"}),
        ("failed", 1, "failed", {"class": "CurationError", "message": "too many are quarantined"}),
        ("fault", 1, "failed", {"class": "ValueError", "message": "a fault of ours"}),
    ],
)
def test_how_a_run_ended(tmp_path: Path, how: str, status: int, state: str, error: dict[str, str] | None) -> None:
    process = begin(tmp_path, how)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert ("Traceback" in stderr) == (how == "fault")
    (record,) = records(tmp_path)
    result = {"samples": 39, "kept": 10} if how in ("done", "failed") else None
    assert (json.loads(stdout) if stdout else None) == result
    expected = {
        "job": "watched_job",
        "state": state,
        "exit_status": status,
        "error": error,
        "result": result,
        "pid": process.pid,
        "overrides": [f"workspace={tmp_path}", f"how={how}"],
        "stage": None,
        "shards": 1,
        "samples": 40,
        "quarantined": 1,
        "bytes": 1000,
        "drift": {"far_share": 0.25, "share_shift": 0.5, "entropy_shift": None},
        "warnings": ["take s3://bucket/x with care"],
        "warned": 1,
    }
    assert record.items() >= expected.items()
    assert set(record["stages"]) == {"work", "part"}
    assert record["begun"] <= record["ended"] == record["heartbeat"]
    assert record["run"] in stderr


def test_a_real_job_that_is_refused(tmp_path: Path) -> None:
    given = [f"archive.url={tmp_path / 'none'}", "runtime.storage={s3: {profile: me}}"]
    outcome = curate("prune", f"workspace={tmp_path}", *given)
    assert outcome.status == 2, outcome.stderr
    (record,) = records(tmp_path)
    assert (record["job"], record["state"], record["error"]["class"]) == ("prune", "refused", "RequestError")
    assert record["overrides"] == [f"workspace={tmp_path}", given[0], "runtime.storage=…"]
    assert record["error"]["message"] in outcome.stderr
    assert curate("prune", f"workspace={tmp_path}", "nothing=1").status == 2
    assert len(records(tmp_path)) == 1, "nobody knew where it would have belonged"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run(tmp_path: Path, number: int) -> None:
    process = begin(tmp_path, "wait")
    wait_until_it_waits(process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    (record,) = records(tmp_path)
    assert (record["state"], record["exit_status"], record["error"]) == ("interrupted", 130, None)


def test_two_at_once_while_they_run_and_one_killed(tmp_path: Path) -> None:
    first, second = begin(tmp_path, "wait"), begin(tmp_path, "wait")
    wait_until_it_waits(first)
    wait_until_it_waits(second)
    assert {record["pid"] for record in records(tmp_path)} == {first.pid, second.pid}
    for record in records(tmp_path):
        assert record["state"] == "running"
        stage = record["stage"]
        assert (stage["name"], stage["within"], stage["share"], stage["unit"]) == ("part", ["work"], 0.4, "parts")
        assert stage["samples"] == 40
        assert stage["left"] == pytest.approx(1.5 * stage["seconds"], abs=0.1)
    first.kill()
    first.wait()
    before = {record["pid"]: record["heartbeat"] for record in records(tmp_path)}
    after, end = before, time.monotonic() + 30
    while after[second.pid] == before[second.pid] and time.monotonic() < end:  # they are told to the second
        time.sleep(0.3)
        after = {record["pid"]: record["heartbeat"] for record in records(tmp_path)}
    assert after[first.pid] == before[first.pid] and after[second.pid] > before[second.pid]
    second.terminate()
    second.communicate(timeout=60)
    assert sorted(record["state"] for record in records(tmp_path)) == ["interrupted", "running"]


@pytest.fixture
def record() -> Iterator[runs.RunRecord]:
    run = runs.begin("prune", [])
    yield run
    run.end(0)


def test_a_store_that_fails_for_a_while(
    record: runs.RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish, asked = Folder.publish, 0

    def failing(self: Folder, path: str, data: bytes) -> None:
        nonlocal asked
        asked += 1
        if asked <= 4:
            raise AccessError("it answers 503")
        publish(self, path, data)

    monkeypatch.setattr(Folder, "publish", failing)
    monkeypatch.setattr(runs, "HEARTBEAT", 0.01)
    runs.record_in(Folder(str(tmp_path)))
    end = time.monotonic() + 10
    while not records(tmp_path) and time.monotonic() < end:
        time.sleep(0.01)
    assert records(tmp_path)[0]["state"] == "running"
    assert [line for line in caplog.messages if "503" in line] == [
        f"file://{tmp_path}/runs/{record.id}.json cannot be written; the run goes on: it answers 503"
    ]


def test_a_slow_writing_does_not_come_after_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Folder.publish

    def slow(self: Folder, path: str, data: bytes) -> None:
        time.sleep(0.3 if json.loads(data)["state"] == "running" else 0)
        publish(self, path, data)

    monkeypatch.setattr(Folder, "publish", slow)
    run = runs.begin("prune", [])
    runs.record_in(Folder(str(tmp_path)))
    with runs.stage("select"):  # writes
        time.sleep(0.05)
    assert run.end(0, {"kept": 1}) == 0
    time.sleep(0.5)
    assert records(tmp_path)[0]["state"] == "done"


def test_a_stage_as_a_decorator_and_without_a_run(tmp_path: Path) -> None:
    @runs.stage("draw")
    def draw() -> int:
        return 3

    with runs.stage("select", total=4) as done:
        done(1)
    runs.count("root0", samples=1)
    runs.observe_drift(far_share=0.0)
    assert draw() == 3
    run = runs.begin("select", [])
    assert draw() + draw() == 6
    assert list(run.seconds) == ["draw"]
    run.end(0)
    assert not list(tmp_path.iterdir())


def test_many_warnings(record: runs.RunRecord) -> None:
    for number in range(runs.WARNINGS + 7):
        logging.getLogger("curation").warning("the %d.", number)
    found = record.as_dict()
    assert (len(found["warnings"]), found["warned"]) == (runs.WARNINGS, runs.WARNINGS + 7)


# the log for programs


def test_a_log_for_programs(tmp_path: Path) -> None:
    log = tmp_path / "a, b=[log].jsonl"
    plain = [begin(tmp_path, how, f"runtime.log_json={log}").communicate(timeout=60)[1] for how in ("done", "fault")]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ids = list(dict.fromkeys(line["run"] for line in lines))
    assert [record["run"] for record in records(tmp_path)] == sorted(ids) and len(ids) == 2
    for line in lines:
        assert line.keys() >= {"time", "level", "run", "job", "stage", "message"}
    ends = {line["stage"]: line for line in lines if line["message"] == "part ends" and line["run"] == ids[0]}
    assert ends["part"].items() >= {"done": 4, "total": 10, "share": 0.4, "samples": 40}.items()
    last = [line for line in lines if line["run"] == ids[0]][-1]
    assert last.items() >= {"state": "done", "exit_status": 0, "result": {"samples": 39, "kept": 10}}.items()
    (fault,) = (line for line in lines if "traceback" in line)
    assert fault["level"] == "error" and fault["traceback"].endswith("ValueError: a fault of ours")
    assert "hunter2" not in log.read_text()
    for text in plain:
        assert "part ends" not in text and "{" not in text.splitlines()[0]


def test_the_log_takes_the_place_of_lines_for_people(tmp_path: Path) -> None:
    stderr = begin(tmp_path, "refused", "runtime.log_json=-").communicate(timeout=60)[1]
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert lines[-2]["message"].startswith("curate: cannot do that: archive.url=")
    assert lines[-1]["exit_status"] == 2


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    process = begin(tmp_path, "done", f"runtime.log_json={tmp_path}/none/log.jsonl")
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert stderr.splitlines()[-1].startswith("curate: cannot do that: runtime.log_json=")
    assert not records(tmp_path)


def test_a_log_that_was_rotated(record: runs.RunRecord, tmp_path: Path) -> None:
    record.open_log(str(tmp_path / "log"))
    logging.getLogger("curation").warning("before")
    os.rename(tmp_path / "log", tmp_path / "log.1")
    logging.getLogger("curation").warning("after")
    assert [json.loads((tmp_path / name).read_text())["message"] for name in ("log.1", "log")] == ["before", "after"]


# secrets

ACCOUNT = st.text("abcXYZ019-._~!$&'()*+,;=:/%@?#", max_size=12).map(lambda text: "hunter2" + text)
TRICKY = [
    "archive.url=s3://AKIA:{}@bucket/x",
    "archive.url={{a: s3://me:{}@b/x, b: https://h/y}}",
    "archive.url=[https://h/x,https://me:{}@h/y]",
    "references.url=zip::https://me:{}@h/x.zip",
    "workspace=https://h/x?X-Amz-Signature={}",
    "catalog.url=az://c/x?sv=1&sig={}",
    "encoder.checkpoint=hf://{}@models/x",
    "encoder.path=https://h/v.parquet#token={}",
    "runtime.storage={{s3: {{key: {}}}}}",
    "runtime.storage.s3.client_kwargs.aws_session={}",
    "+runtime.storage.esa.profile={}",
    "++runtime.storage={}",
    "runtime={{storage: {{s3: {{profile: {}}}}}}}",
    "encoder.hf_token={}",
    "select.by={{api_key: {}}}",
    'select.by={{"client_secret":"{}"}}',
    "https://h/manifest.json?X-Amz-Signature={}",
    "s3://me:{}@b/manifests/latest.json",
    "--token={}",
    "--header=Authorization: Bearer {}",
]


@given(ACCOUNT, st.sampled_from(TRICKY))
def test_no_secret_is_kept(secret: str, tricky: str) -> None:
    shown = public_arguments([tricky.format(secret), "select.budget=0.1"])
    assert "hunter2" not in shown[0] and shown[1] == "select.budget=0.1"


@given(ACCOUNT)
def test_nor_one_after_its_option(secret: str) -> None:
    assert public_arguments(["--token", secret, "select.budget=0.1"]) == ["--token", "…", "select.budget=0.1"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("runtime.storage={s3:{key:hunter2", "no viable alternative at input '{s3:{key:hunter2'"),
        ("runtime.storage={s3:{key:'a:hunter2/b'}}", "hunter2/b is not there"),
        ("archive.url=s3://me:hunter2@no_where/x", 'Invalid bucket name "me:hunter2@no_where"'),
        ("archive.url=s3://me:ab/hunter2@no_where/x", 'key "hunter2@no_where/x"'),
        ("config=https://h/x?sig=hunter2", "no such file: hunter2"),
    ],
)
def test_nor_one_that_an_error_quotes(given: str, says: str) -> None:
    run = runs.begin("prune", [given, "select.budget=0.1"])
    logging.getLogger("curation").warning(says)
    run.end(2, {"manifest": "s3://no_where/x"}, ValueError(says))
    told = run.as_dict()
    assert "hunter2" not in json.dumps(told) and told["warnings"] == [told["error"]["message"]]
    assert told["result"] == {"manifest": "s3://no_where/x"}, "what is no secret and names files stays as it is"


def test_nor_is_it_in_the_log_of_a_request_that_cannot_be(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = curate("prune", "runtime.storage={s3:{key:hunter2", f"workspace={tmp_path}", f"runtime.log_json={log}")
    assert outcome.status == 2
    assert "no viable alternative" in log.read_text() and "hunter2" not in log.read_text()


def test_what_is_no_secret_is_kept() -> None:
    plain = [
        "archive.url={ours: s3://bucket/tiles-{00..10}.tar, esa: s3://eodata/x}",
        "workspace=s3://bucket/curated",
        "archive.url=/data/a,  b=[1]?.tar",
        "archive.filter=time >= '2020-01-01' and cloud < 5",
        "encoder=random_conv",
        "cluster.k=[8,64]",
        "runtime.address=auto",
        "s3://bucket/manifests/latest.json",
        "--deep",
    ]
    assert public_arguments(plain) == plain
