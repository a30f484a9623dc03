"""Ray workers that start in no time: forks of one process, which has imported what is slow to import.

A worker that imports torch takes seconds of a core before it does anything, and the tests need hundreds. The Ray that
is started within `forked_workers` starts each worker by this file in the place of its own ``setup_worker.py``: a client
that hands arguments, environment and outputs to the process that forks. The Ray of a command that a test runs starts
its workers as everywhere.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SOCKET = "CURATE_TEST_FORKS"  # of the environment: where the process that forks listens
IMPORTED = (  # nothing of Ray: when it is imported it reads from the environment which worker it is
    "curation.archive.reader",
    "curation.archive.tables",
    "curation.encoders.random_conv",
    "curation.selection.strategies",
    "faiss",
    "grpc",
    "jsonschema",
    "pandas",
    "pyarrow.dataset",
    "requests",
    "torch",
)


@contextmanager
def forked_workers() -> Iterator[None]:
    """Workers of the Ray that is started in here are forks."""
    from ray._private.parameter import RayParams

    own = RayParams.__init__

    def init(self: RayParams, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        self.setup_worker_path = __file__

    with tempfile.TemporaryDirectory(prefix="forks-", dir="/tmp") as folder:  # short, for a socket lies in it
        os.environ[SOCKET] = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.environ[SOCKET])
            server.listen(64)
            command = [sys.executable, "-m", "tests.forked_workers", str(server.fileno())]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[server.fileno()])
        RayParams.__init__ = init
        try:
            yield
        finally:
            RayParams.__init__ = own
            del os.environ[SOCKET]
            process.communicate()  # when its stdin ends, so does it


def serve(server: socket.socket) -> None:
    """Fork for each client, until stdin ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
        client, _ = server.accept()
        with client:
            message, outputs, _, _ = socket.recv_fds(client, 1 << 16, 3)
            while more := client.recv(1 << 16):
                message += more
        if not os.fork():
            server.close()
            work(json.loads(message), outputs)
        for output in outputs:
            os.close(output)


def work(told: dict[str, Any], outputs: list[int]) -> None:
    """Be the worker that a client was started as."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for place, output in enumerate(outputs):
        os.dup2(output, place)
        os.close(output)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.argv = told["arguments"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        atexit._run_exitfuncs()
        os._exit(int(end.code or 0))  # a second of taking modules apart less


def hand_over(arguments: list[str]) -> None:
    """What Ray starts as a worker; of a ``runtime_env`` the worker gets its variables."""
    options = dict(text.split("=", 1) for text in arguments[1:] if "=" in text)
    context = json.loads(options.get("--serialized-runtime-env-context", "{}"))
    own = ("--language", "--serialized-runtime-env-context")  # of what is started here, the worker does not know them
    told = {
        "arguments": [text for text in arguments if not text.startswith(own)],
        "environment": dict(os.environ) | context.get("env_vars", {}),
        "folder": os.getcwd(),
    }
    with socket.socket(socket.AF_UNIX) as forks:
        forks.connect(os.environ[SOCKET])
        socket.send_fds(forks, [json.dumps(told).encode()], [0, 1, 2])


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(socket.socket(fileno=int(sys.argv[1])))
    else:
        hand_over(sys.argv[1:])
