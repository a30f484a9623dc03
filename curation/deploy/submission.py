"""One job on a Ray cluster, over its Jobs API: named after the work, submitted once, followed to its end."""

import asyncio
import hashlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import curation
from curation.deploy.packing import Package
from curation.deploy.request import Request
from curation.errors import AccessError, CurationError, JobError, RequestError, require
from curation.storage import without_secrets

log = logging.getLogger("curation")

PATIENCE = 300.0  # seconds without an answer before following is given up
EXIT_CODE = re.compile(r"exit code (-?\d+)")
KEY = re.compile(r"[A-Za-z0-9._-]{1,60}")
NEEDED = 'curate submit needs the client of Ray\'s Jobs API: pip install "curation[submit]"'


class Left(JobError):
    """The job goes on, and is no longer followed."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: nobody is there to be asked."""


def connect(address: str | None, token_file: str | None) -> Any:
    """A client of the cluster's Jobs API.

    Args:
        address: ``http://HEAD:8265``; None: what ``RAY_API_SERVER_ADDRESS`` or ``RAY_ADDRESS`` says.
        token_file: holds the cluster's token; None: as :func:`headers` finds it.

    Raises:
        RequestError: nobody answers there as a Ray head, it is too old, or it does not let us in.
    """
    said = [os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")]  # Ray prefers them
    address = address or said[0] or said[1]
    require(bool(address), "say where the cluster is: --address http://HEAD:8265")
    assert address is not None
    url = address if "://" in address else f"http://{address}"
    ok = url.startswith(("http://", "https://"))
    require(ok, f"{url.partition('://')[0]}:// is not the Jobs API: give the dashboard, --address http://HEAD:8265")
    require(
        "@" not in urlsplit(url).netloc, "a token or password does not belong in an address: give --token-file FILE"
    )
    try:
        import requests
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise RequestError(NEEDED) from error
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    sent = headers(token_file)
    try:
        return JobSubmissionClient(url, headers=sent)
    except AuthenticationError as error:
        what = "refuses that token" if sent or os.environ.get("RAY_AUTH_MODE") else "asks for a token"
        raise RequestError(f"{url} {what}: give --token-file FILE, or RAY_AUTH_TOKEN in the environment") from error
    except ConnectionError as error:
        raise RequestError(
            f"nobody answers at {url}: is the head up, and its dashboard reachable from here?"
        ) from error
    except requests.RequestException as error:
        raise RequestError(f"{url} does not answer as a Ray head: {without_secrets(str(error))}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{url} does not answer as a Ray head") from error
    except RuntimeError as error:  # a version that does not fit, or no client
        raise RequestError(NEEDED if "ray[default]" in str(error) else without_secrets(str(error))) from error


def headers(token_file: str | None) -> dict[str, str]:
    """The headers that let us in: the token of a file, of ``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH``.

    With ``RAY_AUTH_MODE=token`` Ray itself looks into ``~/.ray/auth_token``; ``RAY_JOB_HEADERS`` (JSON) are sent as by
    ``ray job submit``. A token is never logged, stored or sent along with the job.

    Raises:
        RequestError: the file cannot be read, or holds no token.
    """
    try:
        found = dict(json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}"))
    except (TypeError, ValueError) as error:
        raise RequestError('RAY_JOB_HEADERS is no JSON object: write {"Name": "value"}') from error
    token, where = os.environ.get("RAY_AUTH_TOKEN") or None, "RAY_AUTH_TOKEN"
    path = token_file or (None if token else os.environ.get("RAY_AUTH_TOKEN_PATH"))
    if path:
        try:
            token, where = Path(path).expanduser().read_text(), path
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read the token in {path}: {getattr(error, 'strerror', 'no text')}") from error
    if token is None:
        return found
    token = token.strip()
    require(token.isascii() and len(token.split()) == 1, f"{where} holds no token: it is one word")
    return {**found, "Authorization": f"Bearer {token}"}


def identity(request: Request, package: Package, key: str | None) -> str:
    """The submission id of this work: of the same job, config, package version, files and key the same.

    Raises:
        RequestError: the key has other characters than letters, digits, ``.``, ``_`` and ``-``.
    """
    require(key is None or KEY.fullmatch(key) is not None, f"--key {key}: take letters, digits, '.', '_' and '-'")
    work = {**request.resolved(), "version": curation.__version__, "environment": package.contents, "key": key}
    digest = hashlib.sha256(json.dumps(work, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return "-".join(["curate", request.job, digest, *([key] if key else [])])


def submit(client: Any, request: Request, package: Package, key: str | None) -> str:
    """See that the work is under way, and return the submission id to follow.

    What is under way is attached to. What has ended is submitted anew, as ``ID-2``, ``ID-3``, …: a job that has
    nothing left to do knows it best itself. Only with a key, which names one occasion (a night), is success final.

    Raises:
        RequestError: the cluster refuses it.
        AccessError: the connection was lost.
    """
    name = identity(request, package, key)
    try:
        jobs = client.list_jobs()
    except _lost() as error:
        raise AccessError(f"the cluster does not say what it runs: {_last_line(str(error))}") from error
    number, last = 1, None
    for details in jobs:
        found = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", details.submission_id or "")
        if found and int(found[1] or 1) >= number:
            number, last = int(found[1] or 1), details
    if last is not None:
        if not last.status.is_terminal():
            log.info("attached to %s, which is under way", last.submission_id)
            return str(last.submission_id)
        if key is not None and last.status == "SUCCEEDED":
            log.info("%s has succeeded: nothing is submitted under that key again", last.submission_id)
            return str(last.submission_id)
        name = f"{name}-{number + 1}"
    refused: tuple[type[Exception], ...] = (*_lost(), ValueError)
    try:
        client.submit_job(
            entrypoint=request.command(package.config),
            submission_id=name,
            runtime_env=package.runtime_env,
            metadata={"curate.job": request.job, "curate.version": curation.__version__, "curate.key": key or ""},
        )
    except refused as error:
        if isinstance(error, OSError):  # as requests' are
            raise AccessError("lost the cluster while submitting: the same command tries again, or attaches") from error
        if "already exists" in str(error):  # somebody else submitted the same work a moment ago
            log.info("attached to %s, which is under way", name)
            return name
        raise RequestError(f"the cluster refuses the job: {_last_line(str(error))}") from error
    log.info("submitted as %s", name)
    return name


def status_of(client: Any, name: str) -> str:
    """What the cluster says of a job, such as ``RUNNING``.

    Raises:
        AccessError: the connection was lost; the job goes on.
    """
    try:
        return str(client.get_job_status(name).value)
    except _lost() as error:
        raise AccessError(f"{name} is submitted, but the cluster was lost: the same command attaches to it") from error


class Log:
    """What a job prints, as far as it has been seen.

    Attributes:
        result: the last line that is a JSON object: stdout and stderr of a job are one stream.
        final: whether nothing but messages of ours came after it.
        missing: whether Python found no such package there.
    """

    def __init__(self, write: Callable[[str], Any]) -> None:
        self.write, self.seen, self.rest = write, 0, ""
        self.result: dict[str, Any] | None = None
        self.final = False
        self.missing = False

    def follow(self) -> Callable[[str], None]:
        """What takes the pieces of a stream that begins at the log's beginning; what was seen is not shown again."""
        at = 0

        def take(text: str) -> None:
            nonlocal at
            new = text[max(0, self.seen - at) :]
            at += len(text)
            if new:
                self.seen += len(new)
                self.write(new)
                *lines, self.rest = (self.rest + new).split("\n")
                for line in lines:
                    self._read(line)

        return take

    def _read(self, line: str) -> None:
        self.missing |= "No module named 'curation'" in line
        found = None
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                pass
        if isinstance(found, dict):
            self.result, self.final = found, True
        elif line.strip() and not line.startswith("curate: "):
            self.final = False


def follow(client: Any, name: str, write: Callable[[str], Any]) -> dict[str, Any]:
    """Show a job's log to its end, over lost connections; its result.

    Ctrl-C asks whether to stop the job where there is a terminal, and else leaves it to itself, as SIGTERM does.

    Args:
        client: of :func:`connect`.
        name: the submission id.
        write: takes pieces of the log.

    Raises:
        JobError: the job failed (with its exit status) or was stopped, or is left to itself (130).
        AccessError: the cluster gave no answer for :data:`PATIENCE`, or no longer lets us in.
        CurationError: the cluster knows nothing of the job.
    """
    shown = Log(write)
    with _terminable():
        while True:
            try:
                return _outcome(_until_end(client, name, shown), shown)
            except KeyboardInterrupt as stop:
                if isinstance(stop, Terminated) or not _wants_stop(name):
                    _leave(name)
                try:
                    client.stop_job(name)
                except _lost() as error:
                    log.warning("it is not stopped: %s", _last_line(str(error)))


def _lost() -> tuple[type[Exception], ...]:
    """What a connection that breaks raises."""
    import aiohttp
    import requests

    return RuntimeError, OSError, aiohttp.ClientError, requests.RequestException


def _until_end(client: Any, name: str, shown: Log) -> Any:
    """Follow the log and ask for the state until the job has ended; what the cluster says of it."""
    from ray.exceptions import AuthenticationError

    lost, heard, pause, told = _lost(), time.monotonic(), 0.5, False
    while True:
        before = shown.seen
        with suppress(*lost, AuthenticationError):  # whether the cluster is there, the next question tells
            asyncio.run(_tail(client, name, shown))
        try:
            details = client.get_job_info(name)
            if details.status.is_terminal():
                with suppress(*lost):  # its node may be gone, and the log with it
                    shown.follow()(client.get_job_logs(name))
                return details
            heard, told = time.monotonic(), False
        except AuthenticationError as error:
            raise AccessError(f"the cluster no longer lets us in; {name} goes on by itself") from error
        except lost as error:
            if "status code 404" in str(error):
                raise CurationError(
                    f"the cluster knows nothing of {name}: was its head started anew? The same command submits it again"
                ) from error
            if time.monotonic() - heard > PATIENCE:
                raise AccessError(
                    f"no answer from the cluster for {PATIENCE:.0f} s; {name} may go on: the same command follows it"
                ) from error
            if not told:
                log.warning("no answer from the cluster: asking again for %.0f s", PATIENCE)
                told = True
        pause = 0.5 if shown.seen > before else min(2 * pause, 10.0)
        time.sleep(pause)


async def _tail(client: Any, name: str, shown: Log) -> None:
    take = shown.follow()
    async for text in client.tail_job_logs(name):
        take(text)


def _outcome(details: Any, shown: Log) -> dict[str, Any]:
    """The result of a job that succeeded.

    Raises:
        JobError: it did not.
    """
    name, status = details.submission_id, str(details.status.value)
    if status == "SUCCEEDED":
        return shown.result or {"submission": name, "status": status}
    result = shown.result if shown.final else None
    if status == "STOPPED":
        raise JobError(f"{name} was stopped; what is done is kept, the same command goes on from there", 130, result)
    code = exit_status(getattr(details, "driver_exit_code", None), details.message or "")
    if code is None:
        raise JobError(f"{name} did not run: {_last_line(details.message or 'no reason given')}", 1, result)
    require(
        not shown.missing, "the cluster has no such package: add submit.wheel=FILE.whl, or install it on every node"
    )
    raise JobError(f"{name} ended with status {code}; its own last words are above", code, result)


def exit_status(code: int | None, message: str) -> int | None:
    """The exit status that a job ended with, of the figure or else the message that Ray gives; None: it never ran.

    A signal becomes 128 and its number, as in a shell.
    """
    found = EXIT_CODE.search(message)
    if code is None and found:
        code = int(found[1])
    return code if code is None or code >= 0 else 128 - code


@contextmanager
def _terminable() -> Iterator[None]:
    """Within, SIGTERM raises :class:`Terminated`."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wants_stop(name: str) -> bool:
    """Ask, where somebody can answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"\nStop {name}? No: it goes on, and is no longer followed. [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def _leave(name: str) -> NoReturn:
    raise Left(
        f"{name} goes on by itself. The same command follows it again; `ray job stop --address … {name}` stops it", 130
    ) from None


def _last_line(text: str) -> str:
    """What an error ends with: Ray sends whole tracebacks."""
    lines: Sequence[str] = [line for line in text.strip().splitlines() if line.strip(" .")]
    return without_secrets(lines[-1])[:500] if lines else ""
