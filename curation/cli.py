"""``curate JOB [key=value …]``: finds the job, prints its result, turns errors into one line and a status."""

import atexit
import importlib
import inspect
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from curation import runs
from curation.errors import CurationError, RequestError

JOBS = {
    "prune": "all stages: catalog, cluster, select, report",
    "catalog": "encode and score the shards that have no catalog file yet",
    "cluster": "fit centroids over the catalog and assign every sample",
    "select": "draw the manifest from a catalog and its clusters",
    "recurate": "take in what is new since the last manifest, and draw one that goes on from it",
    "report": "write the page of a manifest again",
    "consistency": "how far each sample's image agrees with its caption, its label or another modality",
    "compare": "strategies, budgets and seeds trained and judged: which way of pruning is worth it, if any",
    "choose": "sweep clusters, budgets and encoders: how stable the choice is, or that it is mostly noise",
    "pretrain": "train an encoder on the archive alone, perhaps pruning it on the way, for encoder=timm",
    "distill": "a labelled archive in a few synthetic images a class, and what they are worth",
    "inspect": "URL: what lies there, and a config to begin with",
    "plan": "shards, bytes, expected time and cost; --pilot N measures N shards first; --distill: curate distill's too",
    "explain": "MANIFEST SAMPLE: which rule decided, and which kept sample stands for it",
    "verify": "MANIFEST [--deep]: hashes and counts; --deep: every kept sample is still readable",
    "diff": "[A] B [--out FILE.parquet]: what came, what went and why, from manifest A (or B's parent) to B",
    "rollback": "workspace=W [--to ID], or MANIFEST: put the parent, or an older manifest, in force again",
    "gc": "workspace=W [--keep N] [--yes]: remove the manifests that nobody needs, and what only they need",
    "status": "WORKSPACE [--all] [--files]: its runs, what is under way and how far, its manifests and catalogs",
    "materialize": "MANIFEST DEST: write the kept samples as shards of their own, WebDataset tars or Parquet",
    "leakage": "MANIFEST --against TABLE: kept samples that a benchmark has too, by footprint and by embedding",
    "publish": "MANIFEST [DEST]: what may be shared: samples, licences, how it was made, nothing of where it lies",
    "apply": "PUBLISHED archive.url=COPY: a published manifest over another copy of the data; lists what is missing",
    "submit": "JOB … --address http://HEAD:8265: run a job on a Ray cluster, follow its log, end with its status",
    "schedule": "render JOB …: Kubernetes objects that run a job by the clock",
}
HELP = "usage: curate JOB [key=value ...]\n\njobs:\n" + "\n".join(f"  {n:11} {what}" for n, what in JOBS.items())

OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.-]*=")  # key=value; other arguments are a job's own

log = logging.getLogger("curation")

Job = Callable[[Sequence[str]], dict[str, Any] | str]


def main(argv: Sequence[str] | None = None) -> int:
    """The ``curate`` command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if arguments else 2
    name = arguments.pop(0)
    if name not in JOBS:
        print(f"curate: no job {name!r}; the jobs are {', '.join(JOBS)}", file=sys.stderr)
        return 2
    if "--help" in arguments or "-h" in arguments:
        print(f"curate {name}: {JOBS[name]}\nkeys and defaults: conf/config.yaml and its groups")
        return 0
    return execute(importlib.import_module(f"curation.jobs.{name}").run, arguments)


def execute(job: Job, arguments: Sequence[str] | None = None) -> int:
    """Run a job; people read stderr, programs read the one JSON line on stdout (or the text that a job is asked for).

    Returns:
        0 done; 2 the request is wrong; 1 anything else; 130 interrupted.
    """
    output = _claim_stdout()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = sys.argv[1:] if arguments is None else arguments
    run = runs.begin(Path(inspect.getfile(job)).stem, given)
    try:
        path = next((text.partition("=")[2] for text in given if text.startswith("runtime.log_json=")), "")
        run.open_log(path if path != "null" else None)
        result = job(given)
        _print(output, result)
        return run.end(0, result if isinstance(result, dict) else None)
    except CurationError as error:
        known: CurationError = getattr(error, "cause", error)  # Ray wraps what a task raised
        if known.result is not None:
            _print(output, known.result)
        kind = {2: "cannot do that", 130: "interrupted"}.get(known.exit_status, "error")
        log.error("curate: %s: %s", kind, " ".join(str(known).split()))
        return run.end(known.exit_status, known.result, known)
    except KeyboardInterrupt:
        log.error("curate: interrupted; what is done is kept, the same command goes on from there")
        return run.end(130)
    except Exception as error:  # noqa: BLE001 - a fault of ours: show all of it
        log.exception("curate: a fault of the program")
        return run.end(1, error=error)


def split_arguments(arguments: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """What a job is told before the first ``key=value``, so many places at most; and the rest, which is config."""
    number = next((i for i, text in enumerate(arguments[:most]) if OVERRIDE.match(text)), min(most, len(arguments)))
    return list(arguments[:number]), list(arguments[number:])


def take_option(arguments: list[str], name: str, value: str) -> str | None:
    """Remove ``name VALUE`` from the arguments; its value, None where it was not given.

    Raises:
        RequestError: it has none; ``value`` says what it would be.
    """
    if name not in arguments:
        return None
    at = arguments.index(name)
    if at + 1 == len(arguments):
        raise RequestError(f"{name} needs {value}: add it after {name}")
    del arguments[at]
    return arguments.pop(at)


def _claim_stdout() -> TextIO:
    """Keep stdout for the result: whatever libraries and child processes print goes to stderr."""
    sys.stdout.flush()
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return output


def _print(output: TextIO, result: dict[str, Any] | str) -> None:
    print(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False), file=output, flush=True)


def command() -> NoReturn:
    """The program ``curate``."""
    leave(main())


def leave(status: int) -> NoReturn:
    """End the process with all that an interpreter does at its end, but for taking itself down.

    A thread of Arrow's that lets go of a Python buffer in that moment aborts the process, with all done and said
    (apache/arrow, issue 34314): seen on a busy machine in one run of eight.
    """
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    command()
