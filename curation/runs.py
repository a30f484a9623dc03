"""What is known of a run while it goes and after: its record in the workspace, its log for programs, its metrics.

One process runs one job: the command line begins the record and ends it, a job says with `record_in` in which
workspace it lies, and with `stage` and `count` how far it is. Only the driver tells, and none of this makes a run fail.
docs/watching.md has the fields.
"""

import json
import logging
import math
import os
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging.handlers import WatchedFileHandler
from threading import Event, RLock, Thread
from typing import Any

import curation
from curation.errors import RequestError
from curation.metrics import Metrics
from curation.storage import HIDDEN, Folder, hidden_parts, public_arguments, without_credentials

log = logging.getLogger("curation")

RUNS = "runs"  # the folder of the workspace
HEARTBEAT = 10.0  # seconds from one writing of the record to the next
WARNINGS = 50  # that a record holds; the others are counted
STATES = {0: "done", 2: "refused", 130: "interrupted"}  # by exit status; any other: failed

_current: "RunRecord | None" = None


@dataclass
class _Stage:
    """A part of a run that is under way."""

    name: str
    total: float | None
    unit: str
    begun: float = field(default_factory=time.time)
    done: float = 0
    samples: int = 0

    def told(self) -> dict[str, Any]:
        """As it stands in the record; the time left is as if it went on at its mean pace."""
        seconds = time.time() - self.begun
        share = min(self.done / self.total, 1.0) if self.total else None
        return {
            "name": self.name,
            "begun": utc(self.begun),
            "seconds": round(seconds, 1),
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "share": None if share is None else round(share, 4),
            "left": round(seconds * (1 - share) / share, 1) if share else None,
            "samples": self.samples,
            "rate": round(self.samples / seconds, 1) if self.samples and seconds else None,
        }


class RunRecord:
    """``runs/<run-id>.json``: written whole at the start, every `HEARTBEAT` seconds, and at the end.

    Args:
        job: the job's name.
        arguments: of the command line; no secret of them is kept.
    """

    def __init__(self, job: str, arguments: Sequence[str]) -> None:
        begun = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(begun))
        self.id, self.job = f"{stamp}-{job}-{secrets.token_hex(2)}", job
        self.metrics = Metrics(job, self.id)
        self.hidden = hidden_parts(arguments)
        self.state: dict[str, Any] = {
            "run": self.id,
            "job": job,
            "state": "running",
            "begun": utc(begun),
            "heartbeat": utc(begun),
            "ended": None,
            "seconds": 0.0,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": curation.__version__,
            "overrides": public_arguments(arguments),
            "drift": None,
            "exit_status": None,
            "error": None,
            "result": None,
        }
        self.begun = time.monotonic()
        self.counts: Counter[str] = Counter(shards=0, samples=0, quarantined=0, bytes=0)
        self.seconds: Counter[str] = Counter()  # of the stages that are over
        self.warnings: list[str] = []
        self.warned = 0
        self.stages: list[_Stage] = []  # those under way, the outermost first
        self.lock = RLock()
        self.folder: Folder | None = None
        self.failing = False  # the last writing did
        self.wake, self.over = Event(), False
        self.thread: Thread | None = None
        self.handlers: list[tuple[logging.Logger, logging.Handler]] = []
        self._listen(log, _Warnings(self))

    def masked(self, text: str) -> str:
        """What an error or a warning says; it may quote the arguments."""
        for part in self.hidden:
            text = text.replace(part, HIDDEN)
        return without_credentials(text)

    def _listen(self, to: logging.Logger, handler: logging.Handler) -> None:
        to.addHandler(handler)
        self.handlers.append((to, handler))

    # the log for programs

    def open_log(self, path: str | None) -> None:
        """Write the log as JSON lines to a file too; ``-``: to stderr, in the place of the lines for people.

        Raises:
            RequestError: it cannot be written.
        """
        if not path or any(isinstance(handler.formatter, _JsonLines) for _, handler in self.handlers):
            return
        root = logging.getLogger()
        for handler in root.handlers:
            handler.setLevel(logging.INFO)
        if path == "-":
            handler = logging.StreamHandler(sys.stderr)
            root.handlers.clear()
        else:
            try:
                handler = WatchedFileHandler(path, encoding="utf-8")
            except OSError as error:
                raise RequestError(f"runtime.log_json={path}: {error.strerror}: name a file, or -") from error
        handler.setFormatter(_JsonLines(self))
        self._listen(root, handler)
        log.setLevel(logging.DEBUG)  # the steps that people need not see

    # the record

    def keep_in(self, workspace: Folder) -> None:
        """Write the record below a workspace from now on."""
        if self.folder is not None:
            return
        self.folder = workspace
        log.info("run %s", self.id)
        self._write()
        self.thread = Thread(target=self._beat, daemon=True)
        self.thread.start()

    def _beat(self) -> None:
        while not self.over:
            woken = self.wake.wait(HEARTBEAT)  # by the begin of a stage, or by the end
            self.wake.clear()
            if not self.over:
                if not woken:
                    self._tell_progress()
                self._write()

    def _tell_progress(self) -> None:
        with self.lock:
            told = self.stages[-1].told() if self.stages else None
            counts = dict(self.counts)
        if told:
            if told["share"] is not None:
                self.metrics.set("curation_stage_progress", told["share"], stage=told["name"])
            log.debug("%s is under way", told["name"], extra={"figures": {**counts, **_figures(told)}})

    def as_dict(self) -> dict[str, Any]:
        """What the file holds."""
        with self.lock:
            self.state["seconds"] = round(time.monotonic() - self.begun, 1)
            stage = {**self.stages[-1].told(), "within": [s.name for s in self.stages[:-1]]} if self.stages else None
            seconds = {name: round(spent, 1) for name, spent in self.seconds.items()}
            told = {"warnings": list(self.warnings), "warned": self.warned}
            return {**self.state, "stage": stage, "stages": seconds, **self.counts, **told}

    def _write(self) -> None:
        if self.folder is None:
            return
        path = f"{RUNS}/{self.id}.json"
        try:
            self.state["heartbeat"] = utc()
            self.folder.publish(path, json.dumps(self.as_dict(), ensure_ascii=False, indent=1).encode())
            self.failing = False
        except Exception as error:  # noqa: BLE001 - whatever it is: the run goes on
            if not self.failing:
                self.failing = True
                said = self.masked(str(error))
                log.warning("%s cannot be written; the run goes on: %s", self.folder.public(path), said)

    def begin_stage(self, stage: _Stage) -> None:
        """Go into a stage."""
        with self.lock:
            self.stages.append(stage)
        self.metrics.set("curation_stage", 1, stage=stage.name)
        log.debug("%s begins", stage.name)
        self.wake.set()

    def end_stage(self, stage: _Stage) -> None:
        """Leave it; what it took is added to what others of its name took."""
        told = stage.told()
        log.debug("%s ends", stage.name, extra={"figures": _figures(told)})
        with self.lock:
            self.stages.remove(stage)
            self.seconds[stage.name] += told["seconds"]
        self.metrics.set("curation_stage", 0, stage=stage.name)

    def count(self, counts: dict[str, int]) -> None:
        """Add to the counts of the run, and to the samples of the stages."""
        with self.lock:
            self.counts.update(counts)
            for stage in self.stages:
                stage.samples += counts.get("samples", 0)

    def end(self, status: int, result: dict[str, Any] | None = None, error: BaseException | None = None) -> int:
        """Write the record a last time, and close the log; the exit status that was given."""
        global _current
        self.over = True
        self.wake.set()
        if self.thread:
            self.thread.join()  # an older record must not come after this one
        state = STATES.get(status, "failed")
        if error is not None:
            self.state["error"] = {"class": type(error).__name__, "message": self.masked(str(error))}
        self.state |= {"state": state, "exit_status": status, "result": plain(result), "ended": utc()}
        self._write()
        figures = {"state": state, "exit_status": status, "error": self.state["error"], "result": plain(result)}
        log.debug("the run ends: %s", state, extra={"figures": figures})
        for logger, handler in self.handlers:
            logger.removeHandler(handler)
            handler.close()
        log.setLevel(logging.NOTSET)
        _current = None
        return status


def begin(job: str, arguments: Sequence[str]) -> RunRecord:
    """The record of the run that this process is."""
    global _current
    _current = RunRecord(job, arguments)
    return _current


# what jobs call; without a run (a library's call, a test) nothing happens


def record_in(workspace: Folder, log_json: str | None = None) -> None:
    """Keep the record of the run below ``workspace``, which is writable; its log also goes to ``log_json``.

    Raises:
        RequestError: ``log_json`` cannot be written.
    """
    if _current:
        _current.open_log(log_json)
        _current.keep_in(workspace)


@contextmanager
def stage(name: str, total: float | None = None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Say what the run is at, and by calling what this gives how much more of ``total`` is done.

    ``with stage("assign", total=len(parts), unit="parts") as done: … done(1)``; also ``@stage("assign")``.
    """
    run = _current
    if run is None:
        yield lambda more: None
        return
    under_way = _Stage(name, total, unit)

    def done(more: float) -> None:
        with run.lock:
            under_way.done += more

    run.begin_stage(under_way)
    try:
        yield done
    finally:
        run.end_stage(under_way)


def count(
    root: str,
    *,
    shards: int = 0,
    samples: int = 0,
    quarantined: int = 0,
    size: int = 0,
    waiting: float = 0.0,
    encoding: float = 0.0,
) -> None:
    """Add to the figures of the run.

    Args:
        root: of the archive.
        shards: that are done.
        samples: gone through, quarantined ones too.
        quarantined: those that cannot be used.
        size: of the shards that are done, bytes.
        waiting: seconds that encoders waited for decoded tiles.
        encoding: seconds that they encoded.
    """
    if _current is None:
        return
    counts = {"shards": shards, "samples": samples, "quarantined": quarantined, "bytes": size}
    _current.count(counts)
    for name, value in counts.items():
        _current.metrics.add(f"curation_{name}", value, root=root)
    for doing, seconds in (("waiting", waiting), ("encoding", encoding)):
        _current.metrics.add("curation_encoder_seconds", seconds, doing=doing)


def observe_drift(**measures: float | None) -> None:
    """Tell how far newcomers are from what the clusters know: ``far_share``, ``share_shift``, ``entropy_shift``."""
    if _current is None:
        return
    told = {measure: None if value is None else float(value) for measure, value in measures.items()}
    with _current.lock:
        _current.state["drift"] = plain(told)
    for measure, value in told.items():
        if value is not None:
            _current.metrics.set("curation_drift", value, measure=measure)
    log.debug("drift", extra={"figures": told})


# as it is written


def utc(seconds: float | None = None) -> str:
    """A time as it stands in records."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def duration(seconds: float) -> str:
    """Seconds for people: ``2 h 05 min``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


class _JsonLines(logging.Formatter):
    """A log line as a JSON object: time, level, run, job, stage, message, and the figures that come with it."""

    def __init__(self, run: RunRecord) -> None:
        super().__init__()
        self.run = run

    def format(self, record: logging.LogRecord) -> str:
        with self.run.lock:
            stage = self.run.stages[-1].name if self.run.stages else None
        message = without_credentials(record.getMessage())
        told: dict[str, Any] = {
            "time": utc(record.created)[:-1] + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "run": self.run.id,
            "job": self.run.job,
            "stage": stage,
            "message": message if record.levelno < logging.WARNING else self.run.masked(message),
        }
        if record.exc_info:
            told["traceback"] = self.run.masked(self.formatException(record.exc_info))
        return json.dumps(told | plain(getattr(record, "figures", {})) | told, ensure_ascii=False)


class _Warnings(logging.Handler):
    """Keeps what people were warned of."""

    def __init__(self, run: RunRecord) -> None:
        super().__init__(logging.WARNING)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            with self.run.lock:
                self.run.warned += 1
                if len(self.run.warnings) < WARNINGS:
                    self.run.warnings.append(self.run.masked(record.getMessage()))


def _figures(stage: dict[str, Any]) -> dict[str, Any]:
    """What a stage has to tell in numbers."""
    return {name: value for name, value in stage.items() if isinstance(value, int | float)}


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it, without credentials in URLs; what is no finite number is null."""
    if isinstance(value, dict):
        return {str(name): plain(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain(below) for below in value]
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return without_credentials(str(value))
