"""An S3 server of its own for a test: moto in another process."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class S3:
    """A running server with one empty bucket."""

    endpoint: str
    bucket: str

    @property
    def port(self) -> int:
        """Where it listens, on this machine."""
        return int(self.endpoint.rpartition(":")[2])

    @property
    def url(self) -> str:
        """The bucket's URL."""
        return f"s3://{self.bucket}"

    @property
    def storage(self) -> dict[str, dict[str, Any]]:
        """Storage options that lead to it."""
        return {"s3": {"endpoint_url": self.endpoint}}

    @property
    def client(self) -> Any:
        """A plain client, for looking and meddling from outside."""
        return boto3.client("s3", endpoint_url=self.endpoint)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server(bucket: str = "bucket", **settings: str) -> Iterator[S3]:
    """Start a server, point ``AWS_*`` at its credentials (child processes too), and make a bucket.

    ``settings`` are moto's own, as it takes them from the environment.
    """
    port = free_port()
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | settings,
    )
    try:
        server = S3(f"http://127.0.0.1:{port}", bucket)
        wait_for(f"{server.endpoint}/moto-api/", process)
        server.client.create_bucket(Bucket=bucket)
        yield server
    finally:
        process.terminate()
        process.wait()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def wait_for(url: str, process: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    """Wait until a server that was started answers at all."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"nothing answers at {url} (status {process.poll()})")
