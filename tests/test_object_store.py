"""Archive and workspace in an object store that answers 503, resets connections and cuts bodies short."""

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from curation.errors import RequestError
from curation.manifests.verify import verify
from jobs import prune
from tests.command import curate
from tests.conftest import Pruned
from tests.s3 import S3, free_port, s3_server, wait_for


@contextmanager
def faulty_proxy(server: S3, every: int) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.faulty_proxy", str(port), str(server.port), str(every)])
    try:
        wait_for(f"http://127.0.0.1:{port}/moto-api/", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def largest(folder: Path) -> Iterator[list[int]]:
    """The most bytes that lie below a folder at once, as the first of a list."""
    found, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            sizes = []
            for path in folder.rglob("*"):
                try:
                    sizes.append(path.lstat().st_size if path.is_file() else 0)
                except OSError:  # gone by now
                    continue
            found[0] = max(found[0], sum(sizes))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_the_manifest_is_the_same_as_on_disk(pruned: Pruned, tmp_path: Path) -> None:
    with s3_server() as server:
        for path in pruned.archive.rglob("*.tar"):
            server.client.upload_file(str(path), server.bucket, f"in put/{path.relative_to(pruned.archive)}")
        size = sum(path.stat().st_size for path in pruned.archive.rglob("*.tar"))
        with faulty_proxy(server, every=20) as endpoint, largest(tmp_path) as scratch:
            remote = curate(
                "prune",
                *pruned.arguments,
                f"archive.url={server.url}/in put/archive",
                f"references.url={server.url}/in put/references",
                f"workspace={server.url}/workspace",
                "runtime.storage={s3:{endpoint_url:'"
                + endpoint
                + "'}, root0:{max_concurrency:2}, workspace:{use_ssl:false}}",
                "runtime.max_actors=1",
                TMPDIR=str(tmp_path),
                RAY_TMPDIR="/tmp",  # it puts sockets there, whose names must be short
            )
            assert remote.status == 0, remote.stderr
        assert scratch[0] < size / 100, "scratch on the local disk"
        assert "test" not in json.dumps(remote.result)  # the secret
        name = remote.result["manifest"].removeprefix(f"{server.url}/").rpartition("/")[0]
        assert name.rpartition("/")[2] == pruned.folder.name
        for part in ("manifest.parquet", "files.parquet"):
            body = server.client.get_object(Bucket=server.bucket, Key=f"{name}/{part}")["Body"].read()
            assert body == (pruned.folder / part).read_bytes()
        assert verify(remote.result["manifest"], deep=True, storage=server.storage)["ok"]


def test_a_bucket_that_is_not_there_is_a_wrong_request(tmp_path: Path) -> None:
    with s3_server() as server:
        storage = "runtime.storage={s3:{endpoint_url:'" + server.endpoint + "'}}"
        with pytest.raises(RequestError, match="no-such-bucket"):
            prune.run(["archive.url=s3://no-such-bucket/x", f"workspace={tmp_path}", storage])
        urllib.request.urlopen(server.endpoint).close()  # it does answer
