"""``curate submit`` against a real Ray head that asks for a token: submitted once, followed, ended as the job ends."""

import contextlib
import http.server
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from curation.jobs.submit import run
from ray.job_submission import JobStatus, JobSubmissionClient

import curation
from curation.deploy import submission
from curation.deploy.packing import Package, pack
from curation.deploy.request import read_request
from curation.deploy.settings import SubmitConfig
from curation.deploy.submission import Log, exit_status, identity
from curation.errors import AccessError, CurationError, JobError, RequestError
from tests.command import curate
from tests.recipes import write_sample_archive
from tests.s3 import free_port, wait_for

TOKEN = "a-token-of-the-tests-0123456789abcdef"


@dataclass
class Head:
    """A Ray head, an archive that its jobs can read, and a client."""

    address: str
    archive: str
    client: Any

    def submit(self, *arguments: str) -> dict[str, Any]:
        """``curate submit``, in this process."""
        return run([*arguments, "--address", self.address])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """One head for all tests, in a session of its own, so that nothing of it stays."""
    folder = tmp_path_factory.mktemp("submitted")
    write_sample_archive(folder, tiles=60)
    place = tempfile.mkdtemp(prefix="rh", dir="/tmp")  # short: sockets lie below it
    ports = {name: free_port() for name in ("dashboard-port", "dashboard-agent-listen-port", "metrics-export-port")}
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0", "--num-cpus=2"]
        + ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={place}", "--disable-usage-stats"]
        + ["--object-store-memory=200000000", f"--ray-client-server-port={free_port()}"]
        + [f"--{name}={port}" for name, port in ports.items()],
        env=os.environ
        | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_raylet_start_wait_time_s": "120"}
        | {"RAY_agent_register_timeout_ms": "120000"}
        | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for(f"{address}/api/version", process, 180)
        client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {TOKEN}"})
        yield Head(address, f"archive.url={folder / 'archive'}", client)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def let_in(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The token is in the environment; what is logged."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    caplog.set_level("INFO", "curation")
    return caplog


def test_the_result_is_the_jobs_and_a_key_is_done_once(head, let_in, tmp_path, capsys, monkeypatch):
    file = tmp_path / "mine.yaml"  # lies here, not there
    file.write_text(f"archive: {{url: '{head.archive.partition('=')[2]}'}}\n")
    monkeypatch.setenv("PLACE", "here")
    arguments = ("plan", f"config={file}", "submit.env=[PLACE]", "--key", "2026-11-26")
    result = head.submit(*arguments)
    assert result["shards"] == len(list(Path(head.archive.partition("=")[2]).rglob("*.tar")))
    shown = capsys.readouterr().err
    assert "Running entrypoint" in shown
    (name,) = re.findall(r"submitted as (\S+)", let_in.text)
    details = head.client.get_job_info(name)
    assert details.metadata == {
        "curate.job": "plan",
        "curate.version": curation.__version__,
        "curate.key": "2026-11-26",
    }
    assert TOKEN not in shown + let_in.text + json.dumps(details.dict(), default=str)
    before = len(head.client.list_jobs())
    assert head.submit(*arguments) == result
    assert f"{name} has succeeded" in let_in.text
    assert len(head.client.list_jobs()) == before


def test_a_refused_request_is_status_2_and_what_has_ended_is_submitted_anew(head, let_in):
    arguments = ("plan", "archive.url=/nowhere")
    refused = curate("submit", *arguments, "--address", head.address)
    assert refused.status == 2 and not refused.stdout
    assert "curate: cannot do that: there is nothing at file:///nowhere" in refused.stderr
    (name,) = re.findall(r"submitted as (\S+)", refused.stderr)
    assert head.submit(*arguments, "--detach")["submission"] == f"{name}-2"


class Terminal:
    """A command at a terminal."""

    def __init__(self, *arguments: str) -> None:
        self.end, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "curation.cli", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=self.take,
        )
        os.close(theirs)
        self.shown = ""

    @staticmethod
    def take() -> None:
        """Make the terminal that of a new session, so that Ctrl-C is a signal."""
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def wait(self, text: str, seconds: float = 90) -> None:
        """Until a text is shown."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.end], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.end, 4096).decode(errors="replace")
                except OSError:  # it has ended
                    assert text in self.shown, self.shown
            else:
                assert self.process.poll() is None, self.shown

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.end, text.encode())

    def interrupt(self, name: str, answer: str, then: str) -> None:
        """Press Ctrl-C under way, and answer what is asked; it ends with 130."""
        self.wait("Running entrypoint")
        self.type("\x03")
        self.wait(f"Stop {name}?")
        self.type(f"{answer}\n")
        self.wait(then)
        assert self.process.wait(30) == 130


def test_what_is_under_way_is_attached_to_and_ctrl_c_asks_whether_to_stop_it(head, let_in, tmp_path):
    arguments = ("prune", head.archive, f"workspace={tmp_path / 'w'}", "encoder.filters=4096", "catalog.fit_samples=64")
    name = head.submit(*arguments, "--detach")["submission"]
    first = Terminal("submit", *arguments, "--address", head.address)
    first.wait(f"attached to {name}")
    first.interrupt(name, "n", "goes on by itself")
    assert head.client.get_job_status(name) == JobStatus.RUNNING
    second = Terminal("submit", *arguments, "--address", head.address)
    second.interrupt(name, "y", "was stopped")
    assert head.client.get_job_status(name) == JobStatus.STOPPED


def test_who_is_not_let_in_is_told_so_and_a_token_file_lets_in(head, tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):  # Ray itself sets the mode where it was started in this process
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "token"
    token.write_text("another-token-of-the-tests-0123456789\n")
    with pytest.raises(RequestError, match="asks for a token"):
        head.submit("plan", head.archive)
    with pytest.raises(RequestError, match="refuses that token") as caught:
        head.submit("plan", head.archive, "--token-file", str(token))
    assert token.read_text().strip() not in str(caught.value)
    token.write_text(f"{TOKEN}\n")
    assert head.submit("plan", head.archive, "--token-file", str(token), "--detach")["submission"]


@contextlib.contextmanager
def answering(body: Any) -> Iterator[str]:
    """A server that answers every request with the same JSON."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_that_is_no_ray_head_is_told(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")  # Ray would prefer it
    with pytest.raises(RequestError, match=r"nobody answers at http://127\.0\.0\.1:9"):
        submission.connect("127.0.0.1:9", None)
    with answering({"ray_version": "1.8.0"}) as address, pytest.raises(RequestError, match=r"Ray 1\.9 or higher"):
        submission.connect(address, None)
    with answering([]) as address, pytest.raises(RequestError, match="does not answer as a Ray head"):
        submission.connect(address, None)
    for address, says in (
        ("ray://head:10001", "is not the Jobs API"),
        ("http://me:secret@head:8265", "does not belong in an address"),
        (None, "say where the cluster is"),
    ):
        with pytest.raises(RequestError, match=says) as caught:
            submission.connect(address, None)
        assert "secret" not in str(caught.value)


def test_the_token_is_one_word_from_a_file_or_the_environment(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    assert submission.headers(None) == {}
    file = tmp_path / "token"
    file.write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert submission.headers(None) == {"Authorization": "Bearer abc"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "def")
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Proxy": "p"}')
    assert submission.headers(None) == {"X-Proxy": "p", "Authorization": "Bearer def"}
    assert submission.headers(str(file))["Authorization"] == "Bearer abc"
    file.write_text("abc\nX-Other: 1")
    for path, says in ((str(file), "holds no token"), (str(tmp_path / "none"), "cannot read the token")):
        with pytest.raises(RequestError, match=says) as caught:
            submission.headers(path)
        assert "abc" not in str(caught.value)


def named(*arguments: str, key: str | None = None) -> str:
    request = read_request(arguments, "")
    with tempfile.TemporaryDirectory() as folder:
        return identity(request, pack(request.config.submit, request.file, Path(folder)), key)


def test_the_id_is_that_of_the_work_not_of_how_it_was_typed(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    file.write_text("archive: {url: s3://b/tiles}\nseed: 3\n")
    one = named("prune", "archive.url=s3://b/tiles", "seed=3", "workspace=s3://b/w")
    assert one == named("prune", "workspace=s3://b/w", "seed=3", "archive.url=s3://b/tiles")
    assert one == named("prune", "workspace=s3://b/w", f"config={file}", "select.budget=0.15")
    others = [
        named("prune", "archive.url=s3://b/tiles", "seed=4", "workspace=s3://b/w"),
        named("catalog", "archive.url=s3://b/tiles", "seed=3", "workspace=s3://b/w"),
        named("prune", "archive.url=s3://b/tiles", "seed=3", "workspace=s3://b/w", key="tonight"),
        named("prune", "archive.url=s3://b/tiles", "seed=3", "workspace=s3://b/w", "submit.pip=[a]"),
    ]
    monkeypatch.setattr(curation, "__version__", "9.9")
    others.append(named("prune", "archive.url=s3://b/tiles", "seed=3", "workspace=s3://b/w"))
    assert len({one, *others}) == 6
    with pytest.raises(RequestError, match="--key a/b"):
        named("prune", key="a/b")


def test_what_a_job_takes_besides_overrides_stays_its_own():
    typed = ["runs/a=1/manifest.json", "--deep", "archive.url=s3://b/x"]
    request = read_request(["verify", *typed, "submit.pip=[a]"], "")
    assert request.arguments == typed
    assert request.command().split() == ["python", "-m", "curation.cli", "verify", *typed, "runtime.address=auto"]
    assert named("verify", "a") != named("verify", "b")


@pytest.mark.parametrize(
    "typed",
    [
        ["archive.url=https://me:very-secret@host/x.tar"],
        ["archive.url={a: 's3://b/a', b: 'https://host/b?X-Amz-Signature=very-secret'}"],
        ["config=FILE"],
        ["https://me:very-secret@host/w/manifests/1/manifest.json", "--deep"],
    ],
)
def test_what_everybody_would_see_has_no_credentials(typed, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("references: {url: 'https://me:very-secret@host/bank'}")
    with pytest.raises(RequestError, match="would be shown to everybody who sees the job") as caught:
        read_request(["verify", *(text.replace("FILE", str(file)) for text in typed)], "")
    assert "very-secret" not in str(caught.value)
    harmless = (
        "submit.pip=['pkg @ https://h/x.whl#sha256=ab','git+ssh://git@h/x']",
        "archive.url=https://h/part-???.tar",
    )
    assert read_request(["prune", *harmless], "").job == "prune"


def test_nothing_is_uploaded_unless_something_is_needed(tmp_path, monkeypatch):
    assert pack(SubmitConfig(), None, tmp_path) == Package()
    folder, wheel, config = tmp_path / "job", tmp_path / "curation-1-py3-none-any.whl", tmp_path / "c.yaml"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("left out")
    (folder / "table.csv").write_text("a,b\n")
    for file in (wheel, config):
        file.write_text(file.name)
    monkeypatch.setenv("AWS_PROFILE", "me")
    settings = SubmitConfig(working_dir=str(folder), wheel=str(wheel), pip=["duckdb>=1"], env=["AWS_PROFILE"])
    one, two = pack(settings, config, tmp_path), pack(settings, config, tmp_path)
    assert one == two
    with zipfile.ZipFile(one.runtime_env["working_dir"]) as archive:
        assert archive.namelist() == ["curate-config.yaml", wheel.name, "table.csv"]
    assert one.runtime_env["pip"] == ["duckdb>=1", "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/" + wheel.name]
    assert one.runtime_env["env_vars"] == {"AWS_PROFILE": "me"}
    (folder / "table.csv").write_text("c,d\n")
    assert pack(settings, config, tmp_path).contents != one.contents
    remote = pack(SubmitConfig(working_dir="s3://b/code.zip"), None, tmp_path)
    assert remote.runtime_env == {"working_dir": "s3://b/code.zip"}


@pytest.mark.parametrize("with_it", ["submit.wheel", "config=FILE"])
def test_a_working_directory_elsewhere_takes_no_files_of_ours(with_it, tmp_path):
    (tmp_path / "file").write_text("")
    wheel, config = (str(tmp_path / "file"), None) if with_it == "submit.wheel" else (None, tmp_path / "file")
    with pytest.raises(RequestError, match=f"{with_it} goes with a local submit.working_dir"):
        pack(SubmitConfig(working_dir="s3://b/code.zip", wheel=wheel), config, tmp_path)


@pytest.mark.parametrize(
    "settings, says",
    [
        (SubmitConfig(env=["AWS_SECRET_ACCESS_KEY"]), "is a secret"),
        (SubmitConfig(env=["HF_TOKEN"]), "is a secret"),
        (SubmitConfig(env=["NOT_SET_ANYWHERE"]), "is not set here"),
        (SubmitConfig(wheel="/none.whl"), "cannot send /none.whl"),
        (SubmitConfig(working_dir="/none"), "there is no such folder"),
    ],
)
def test_what_cannot_go_along_is_refused(settings, says, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("HF_TOKEN", "very-secret")
    with pytest.raises(RequestError, match=says) as caught:
        pack(settings, None, tmp_path)
    assert "very-secret" not in str(caught.value)


class Details:
    """What a cluster says of a job."""

    submission_id = "curate-plan-0"

    def __init__(self, status: str, code: int | None = None, message: str = "") -> None:
        self.status, self.driver_exit_code, self.message = JobStatus(status), code, message


class Dropping:
    """A cluster whose log breaks off after so many characters each time, and which is away now and then."""

    text = 'curate: begins\n{"kept": 1}\nsomething else\n{"kept": 2}\n'

    def __init__(self, pieces: list[int], last: Details) -> None:
        self.pieces, self.last, self.away = pieces, last, False

    async def tail_job_logs(self, name: str) -> Any:
        end = self.pieces.pop(0) if self.pieces else len(self.text)
        for at in range(0, end, 7):
            yield self.text[at : min(at + 7, end)]
        if end < len(self.text):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, name: str) -> Details:
        self.away = not self.away
        if self.away and self.pieces:
            raise ConnectionError("no route")
        return Details("RUNNING") if self.pieces else self.last

    def get_job_logs(self, name: str) -> str:
        return self.text


def test_a_lost_connection_loses_and_repeats_nothing_of_the_log(monkeypatch):
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)
    shown: list[str] = []
    cluster = Dropping([9, 0, 30, 12], Details("SUCCEEDED", 0))
    assert submission.follow(cluster, "curate-plan-0", shown.append) == {"kept": 2}
    assert "".join(shown) == Dropping.text


@pytest.mark.parametrize(
    "last, status, says",
    [
        (Details("FAILED", 2), 2, "ended with status 2"),
        (Details("FAILED", None, "Job entrypoint command failed with exit code 130, last"), 130, "status 130"),
        (Details("FAILED", None, "runtime_env setup failed:\nno such package: duckdb>=99"), 1, "no such package"),
        (Details("STOPPED"), 130, "was stopped"),
    ],
)
def test_the_status_is_that_of_the_job(last, status, says):
    with pytest.raises(JobError, match=says) as caught:
        submission.follow(Dropping([], last), "curate-plan-0", len)
    assert caught.value.exit_status == status
    assert caught.value.result == {"kept": 2}


def test_a_cluster_that_stays_away_or_forgot_the_job_is_told(monkeypatch):
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(submission, "PATIENCE", -1.0)
    with pytest.raises(AccessError, match="no answer from the cluster"):
        submission.follow(Dropping([9, 9], Details("SUCCEEDED")), "curate-plan-0", len)
    forgetful = Dropping([9], Details("SUCCEEDED"))
    forgetful.get_job_info = lambda name: (_ for _ in ()).throw(RuntimeError("Request failed with status code 404: x"))
    with pytest.raises(CurationError, match="knows nothing of curate-plan-0"):
        submission.follow(forgetful, "curate-plan-0", len)


def test_the_result_of_a_failed_job_is_its_last_word_or_none():
    log = Log(len)
    log.follow()('{"run": 1}\nTraceback\n')
    assert not log.final
    log.follow()('{"run": 1}\nTraceback\n{"problems": 3}\ncurate: error: 3 problems\n')
    assert log.final and log.result == {"problems": 3}


def test_signals_are_told_as_a_shell_does():
    assert [exit_status(code, "") for code in (0, 1, 2, -15, None)] == [0, 1, 2, 143, None]


def test_a_cluster_that_is_lost_after_the_submission_is_told_as_such():
    class Away:
        def get_job_status(self, name: str) -> None:
            raise ConnectionError("no route")

    with pytest.raises(AccessError, match="curate-plan-0 is submitted, but the cluster was lost"):
        submission.status_of(Away(), "curate-plan-0")
