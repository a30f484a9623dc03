"""A Ray cluster of several nodes on this machine, of processes of their own, that can be killed and started again."""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.s3 import free_port

MARK = "CURATE_TEST_NODE"  # of the environment, says which node a process is of


class Node:
    """One node: a raylet with its workers; of the head the cluster's own services too."""

    def __init__(self, folder: Path, name: str, cpus: int, environment: Mapping[str, str]) -> None:
        self.folder, self.name, self.cpus = folder / name, name, cpus
        self.environment = environment

    def start(self, *arguments: str) -> None:
        """Start it and wait until it is up.

        Raises:
            RuntimeError: it did not come up.
        """
        self.mark = f"{self.name}-{secrets.token_hex(8)}"
        options = {
            "num-cpus": self.cpus,
            "temp-dir": self.folder,
            "object-store-memory": 160 << 20,
            "dashboard-agent-listen-port": free_port(),  # each node has an agent, on the same port unless told
            "include-log-monitor": "false",
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
        command += [f"--{key}={value}" for key, value in options.items()]
        said = self.folder.with_suffix(".log")
        with said.open("wb") as file:  # no pipe: what it leaves behind would hold it open
            status = subprocess.run(
                command, stdout=file, stderr=file, env=self.environment | {MARK: self.mark}, timeout=180
            ).returncode
        if status:
            raise RuntimeError(f"{self.name} did not start:\n{said.read_text()[-2000:]}")

    def processes(self) -> list[psutil.Process]:
        """What runs of it: all that have its mark, and what the raylet started (Ray's titles overwrite the mark)."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        return list(found.values())

    def busy(self, what: str) -> bool:
        """Whether one of its workers is in a call of an actor with this in its name; its title then has the method."""
        for process in self.processes():
            with suppress(psutil.Error):
                if re.match(rf"ray::.*{what}.*\.\w+ *$", " ".join(process.cmdline())):
                    return True
        return False

    def kill(self) -> None:
        """SIGKILL to all of it at once, as when a machine loses power."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)


class Cluster:
    """A head, and workers of one CPU each.

    Args:
        folder: for sessions and logs; its path is short, for sockets lie in it.
        workers: nodes beside the head.
        head_cpus: of the head; 0: it does no work.
        settings: Ray's own, as nodes and runs take them from their environment.
    """

    def __init__(self, folder: Path, workers: int = 2, head_cpus: int = 1, **settings: str) -> None:
        self.port = free_port()
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **settings}
        own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}
        own |= {"RAY_agent_register_timeout_ms": "120000"}
        environment = os.environ | own | self.environment
        self.head = Node(folder, "head", head_cpus, environment)
        self.workers = [Node(folder, f"worker{number}", 1, environment) for number in range(1, workers + 1)]

    @property
    def address(self) -> str:
        """For ``runtime.address``; who connects needs `environment` too."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """The head, then the workers side by side."""
        client = f"--ray-client-server-port={free_port()}"
        self.head.start("--head", f"--port={self.port}", "--include-dashboard=false", client)
        failed: list[Exception] = []

        def join(node: Node) -> None:
            try:
                self.join(node)
            except Exception as error:  # noqa: BLE001 - it is raised below
                failed.append(error)

        threads = [threading.Thread(target=join, args=(node,)) for node in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in failed:
            raise error

    def join(self, node: Node) -> None:
        """Start a worker."""
        node.start(f"--address={self.address}")

    def kill(self) -> None:
        """All nodes."""
        for node in (*self.workers, self.head):
            if hasattr(node, "mark"):
                node.kill()


@contextmanager
def small_cluster(head_cpus: int = 1, **settings: str) -> Iterator[Cluster]:
    """Three nodes; see `Cluster`."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder), head_cpus=head_cpus, **settings)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()
