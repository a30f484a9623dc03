"""Compare-and-swap of a small file, on disk and in S3: one winner, nothing lost, no lock that a killed writer leaves.

moto knows If-Match of a PUT, but compares in one step and writes in another; between them and the writers stands the
proxy, which lets one conditional PUT through at a time (tests/faulty_proxy.py).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.errors import RequestError
from curation.storage import Folder
from tests.faulty_proxy import Seen, Watched
from tests.s3 import S3, s3_server

COUNT = """
import json, sys
from curation.storage import Folder
url, options, writer, times = sys.argv[1:]
folder, left = Folder(url, json.loads(options)), int(times)
sys.stdin.readline()  # all begin together
while left:
    data, version = folder.versioned("a/count") or (b'{"count": 0}', None)
    after = {"count": json.loads(data)["count"] + 1, "by": writer, "left": left}
    if folder.swap("a/count", json.dumps(after).encode(), version):
        left -= 1
        print(after["count"])
"""
HOLD = """
import sys, time
from curation.storage import Folder
with Folder(sys.argv[1])._lock("a/count"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path))
    s3, proxy = request.getfixturevalue("s3"), request.getfixturevalue("proxy")
    return Folder(f"{s3.url}/{tmp_path.name}", proxy.storage)


def test_only_what_was_read_is_replaced(folder: Folder) -> None:
    assert folder.versioned("a/x") is None
    assert folder.swap("a/x", b"1", None)
    assert not folder.swap("a/x", b"2", None)
    data, first = folder.versioned("a/x") or (b"", "")
    assert data == b"1"
    assert folder.swap("a/x", b"2", first)
    assert not folder.swap("a/x", b"3", first)
    data, second = folder.versioned("a/x") or (b"", "")
    assert data == b"2"
    folder.remove("a/x")
    assert not folder.swap("a/x", b"3", second)
    assert folder.swap("a/x", b"3", None)
    assert [file.path for file in folder.list()] == ["a/x"]  # neither locks nor probes show


def test_writers_at_once_lose_no_update(folder: Folder) -> None:
    writers, times = (4, 40) if folder.local else (3, 8)
    arguments = [folder.url, json.dumps(folder.options)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, *arguments, str(number), str(times)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(writers)
    ]
    for process in started:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0].split() for process in started]
    assert [process.returncode for process in started] == [0] * writers
    won = sorted(int(count) for output in outputs for count in output)
    assert won == list(range(1, writers * times + 1))  # each count was won by one writer, and none was lost
    assert json.loads(folder.read("a/count"))["count"] == writers * times


def test_a_writer_killed_while_it_holds_the_lock_blocks_nobody(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert folder.swap("a/count", b"1", None)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    code = "import sys; from curation.storage import Folder; f = Folder(sys.argv[1]); "
    code += "print(f.swap('a/count', b'2', f.versioned('a/count')[1]))"
    waiting = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    time.sleep(1.5)
    assert waiting.poll() is None and folder.read("a/count") == b"1"
    os.kill(holder.pid, signal.SIGKILL)
    assert waiting.communicate(timeout=30)[0] == "True\n"
    assert holder.wait() == -signal.SIGKILL
    assert folder.read("a/count") == b"2"


@pytest.mark.usefixtures("quick")
def test_a_lost_answer_is_settled_by_what_is_there(s3: S3, proxy: Watched) -> None:
    folder = Folder(f"{s3.url}/lost", proxy.storage)
    assert folder.swap("x", b"1", None)

    def lose(then: bytes | None) -> None:
        puts = 0

        def fault(one: Seen) -> str | None:
            nonlocal puts
            puts += one.method == "PUT"
            if one.method == "PUT" and puts == 2 and then:
                s3.client.put_object(Bucket=s3.bucket, Key="lost/x", Body=then)
            return "reset" if one.method == "PUT" and puts == 1 else None  # it got there; its answer does not come back

        proxy.fault = fault

    version = (folder.versioned("x") or (b"", ""))[1]
    lose(then=None)
    assert folder.swap("x", b"2", version)
    assert proxy.seen[-1].method == "GET" and folder.read("x") == b"2"
    version = (folder.versioned("x") or (b"", ""))[1]
    lose(then=b"other")
    assert not folder.swap("x", b"3", version)
    assert folder.read("x") == b"other"


@pytest.mark.parametrize(
    ("kind", "said"), [("unimplemented", "has no PUT with If-Match"), ("unconditional", "ignores If-Match")]
)
def test_a_store_that_cannot_compare_is_refused(kind: str, said: str, s3: S3, proxy: Watched) -> None:
    s3.client.put_object(Bucket=s3.bucket, Key="plain/x", Body=b"theirs")
    folder = Folder(f"{s3.url}/plain", proxy.storage)
    proxy.fault = lambda one: kind if {"if-match", "if-none-match"} & one.headers.keys() else None
    with pytest.raises(RequestError, match=f"s3://bucket: this store {said}"):
        folder.swap("x", b"ours", "0" * 32)
    assert folder.read("x") == b"theirs"
    assert [file.path for file in folder.list()] == ["x"]


def test_a_store_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(RequestError, match="memory://x/y: no compare-and-swap is known of this store"):
        Folder("memory://x/y").swap("z", b"1", None)
