"""S3 as archives are kept there: who asks, who pays, what is asked for again; bytes are never lost or mixed."""

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.settings import ArchiveConfig
from curation.config import load_config
from curation.errors import AccessError, RequestError
from curation.manifests.reading import ManifestReader
from curation.storage import BLOCK, CHUNK, GAP, IN_FLIGHT, TRIES, Folder, coalesce, options_for, pause
from tests.faulty_proxy import Fault, Seen, Watched, first
from tests.kept import write_archive, write_header
from tests.s3 import S3, s3_server

IMAGE = b"an image, for all that listings know"
PAGE = 20  # keys in a page of a listing here; 1000 elsewhere
DATA = np.random.default_rng(0).bytes(3 << 20)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server(MOTO_S3_DEFAULT_MAX_KEYS=str(PAGE)) as server:
        server.client.put_object(Bucket=server.bucket, Key="data", Body=DATA, ACL="public-read")
        yield server


def folder_of(s3: S3, proxy: Watched, **options: object) -> Folder:
    return Folder(s3.url, {"s3": {**proxy.storage["s3"], **options}})


def use(folder: Folder) -> None:
    """Each kind of request of a reader."""
    folder.list()
    folder.list("below", recursive=False)
    file = folder.info("data")
    assert folder.exists("data") and folder.read("data") == folder.open(file, random=True).read() == DATA
    assert folder.read_ranges("data", [(5, 9)]) == [DATA[5:9]]


def write(folder: Folder) -> None:
    """Each kind of request of a writer."""
    folder.publish("written/x", b"1")
    folder.create("written/y", b"2")
    with folder.writer("written/z") as upload:
        upload.write(b"3")
    folder.move("written/z", "written/w")
    folder.discard("written")


# who asks


def test_whoever_pays_says_so_in_each_request(s3: S3, proxy: Watched) -> None:
    use(folder_of(s3, proxy, requester_pays=True))
    write(folder_of(s3, proxy, requester_pays=True))
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        asked = [one for one in proxy.seen if one.method == method]
        assert asked and all(one.headers.get("x-amz-request-payer") == "requester" for one in asked), method
    assert proxy.lists()
    proxy.seen.clear()
    use(folder_of(s3, proxy))
    assert not any("x-amz-request-payer" in one.headers for one in proxy.seen)


def test_anonymous_requests_are_not_signed(s3: S3, proxy: Watched) -> None:
    use(folder_of(s3, proxy, anon=True))
    assert proxy.seen and not any("authorization" in one.headers for one in proxy.seen)
    proxy.seen.clear()
    use(folder_of(s3, proxy))
    assert all("Credential=test/" in one.headers["authorization"] for one in proxy.seen)


@pytest.fixture
def profiles(tmp_path: Path, proxy: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    config, secrets = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[profile esa]\nregion = eu-central-1\nendpoint_url = {proxy.endpoint}\n")
    secrets.write_text("[esa]\naws_access_key_id = ESAKEY\naws_secret_access_key = hunter2\n")
    monkeypatch.setattr("curation.storage.folder._clients", {})  # clients of the same options have another endpoint
    monkeypatch.delenv("AWS_DEFAULT_REGION")  # it goes before the profile's
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(secrets))


@pytest.mark.usefixtures("profiles")
def test_a_profile_brings_its_credentials_region_and_endpoint(s3: S3, proxy: Watched) -> None:
    use(Folder(s3.url, {"s3": {"profile": "esa"}}))
    scope = [one.headers["authorization"] for one in proxy.seen]
    assert scope and all("Credential=ESAKEY/" in one and "/eu-central-1/s3/" in one for one in scope)


@pytest.mark.usefixtures("profiles")
def test_a_profile_that_is_not_there_is_a_wrong_request(s3: S3) -> None:
    with pytest.raises(RequestError, match=r"s3://bucket/x: The config profile \(eas\) could not be found"):
        list_archive(f"{s3.url}/x", {"s3": {"profile": "eas"}})


def test_an_option_that_s3_does_not_know_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match="cannot open s3://bucket: .*'requester_pay'"):
        Folder("s3://bucket", {"s3": {"requester_pay": True}})


@pytest.mark.usefixtures("profiles")
def test_each_worker_has_its_own_identity(s3: S3, proxy: Watched) -> None:
    profile = Folder(s3.url, {"s3": {"profile": "esa"}})
    plain = folder_of(s3, proxy)
    for folder in (profile, plain):
        folder.read("data")  # its credentials are known by now
        assert b"hunter2" not in pickle.dumps(folder) and b"ESAKEY" not in pickle.dumps(folder)
    assert b"test" not in pickle.dumps(plain)  # the secret in this process's environment
    program = "import pickle, sys; pickle.load(sys.stdin.buffer).read('data')"
    identity = {"AWS_ACCESS_KEY_ID": "WORKER", "AWS_SECRET_ACCESS_KEY": "own"}
    proxy.seen.clear()
    subprocess.run([sys.executable, "-c", program], input=pickle.dumps(plain), env=os.environ | identity, check=True)
    assert [one.headers["authorization"].partition("/")[0] for one in proxy.seen] == [
        "AWS4-HMAC-SHA256 Credential=WORKER"
    ]


# options a root


def test_a_roots_options_go_over_its_protocols() -> None:
    options = {
        "s3": {"endpoint_url": "http://x", "client_kwargs": {"region_name": "r", "verify": True}},
        "a": {"endpoint_url": None, "anon": True, "client_kwargs": {"verify": False}},
    }
    assert options_for(options, "a", "s3://x")["s3"] == {
        "endpoint_url": None,
        "anon": True,
        "client_kwargs": {"region_name": "r", "verify": False},
    }
    assert options_for(options, "b", "s3://x") == options_for(options, "a", "/local") == options
    assert options["s3"]["client_kwargs"] == {"region_name": "r", "verify": True}
    assert options_for(None, "a", "s3://x") == {}


def test_each_root_is_asked_for_as_it_wants(s3: S3, proxy: Watched) -> None:
    for name in ("a", "b"):
        s3.client.put_object(Bucket=s3.bucket, Key=f"roots/{name}/t/1.png", Body=IMAGE, ACL="public-read")
    options = {**s3.storage, "b": {"endpoint_url": proxy.endpoint, "anon": True}}
    roots = list_archive({name: f"{s3.url}/roots/{name}" for name in ("a", "b")}, options)
    for root in pickle.loads(pickle.dumps(roots)):
        (sample,) = read_shard(root.folder, root.shards[0], ArchiveConfig())
        assert isinstance(sample, RawSample)
    assert {one.path.split("/")[3] for one in proxy.gets("roots")} == {"b"}
    assert not any("authorization" in one.headers for one in proxy.seen)


def test_options_that_nobody_would_use_are_refused(tmp_path: Path) -> None:
    given = "runtime.storage={s3: {anon: true}, b: {profile: esa}, references: {anon: false}, workspace: {profile: me}}"
    config = load_config(["archive.url={a: s3://x, b: s3://y}", given])
    assert config.runtime.storage and config.runtime.storage["b"] == {"profile": "esa"}
    with pytest.raises(RequestError, match=r"'b', which is no protocol .* one of a, c, workspace, references, catalog"):
        load_config(["archive.url={a: s3://x, c: s3://y}", given])
    with pytest.raises(RequestError, match=r"runtime\.storage\.b\.secret is a secret"):
        load_config(["archive.url={b: s3://x}", "runtime.storage={b: {secret: hunter2}}"])
    archive = write_archive(tmp_path, shards=1, size=1000)
    write_header(archive.manifest, {"root0": str(archive.root)})
    ManifestReader(str(archive.manifest), {"root0": {"anon": True}})
    with pytest.raises(RequestError, match="'root1', which is no protocol"):
        ManifestReader(str(archive.manifest), {"root1": {"anon": True}})


# requests


def test_connections_are_used_again(s3: S3, proxy: Watched) -> None:
    for i in range(10):
        folder = folder_of(s3, proxy)  # made anew, as each task does
        folder.read_range("data", i, i + 100)
    assert len(proxy.seen) == 10 and len({one.connection for one in proxy.seen}) == 1
    folder.read_ranges("data", [(i * 100_000, i * 100_000 + 10) for i in range(30)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curation.storage.folder.GAP", 0)
        folder.read_ranges("data", [(i * 100_000, i * 100_000 + 10) for i in range(30)])
    assert len(proxy.seen) >= 40 and len({one.connection for one in proxy.seen}) <= IN_FLIGHT


def test_ranges_that_lie_close_are_one_request(s3: S3, proxy: Watched) -> None:
    ranges = [
        (2_000_000, 2_100_000),
        (0, 10),
        (1000, 1010),
        (5, 20),
        (7, 7),
        (2_100_000, 2_100_001),
        (len(DATA) - 1, len(DATA)),
    ]
    assert folder_of(s3, proxy).read_ranges("data", ranges) == [DATA[a:b] for a, b in ranges]
    asked = sorted(one.headers["range"] for one in proxy.seen)
    assert asked == ["bytes=0-1009", "bytes=2000000-2100000", f"bytes={len(DATA) - 1}-{len(DATA) - 1}"]
    assert folder_of(s3, proxy).read_ranges("data", []) == []


@given(st.lists(st.tuples(st.integers(0, 3 * CHUNK), st.integers(0, 2 * GAP)), max_size=40))
def test_what_is_fetched_holds_what_was_asked_for(pieces: list[tuple[int, int]]) -> None:
    ranges = [(start, start + size) for start, size in pieces]
    spans = coalesce(ranges, GAP)
    assert all(any(a <= start and stop <= b for a, b in spans) for start, stop in ranges)
    assert all(b <= c for (_, b), (c, _) in zip(spans, spans[1:], strict=False))
    assert {edge for span in spans for edge in span} <= {edge for one in ranges for edge in one}
    wasted = sum(b - a for a, b in spans) - len(set().union(*(range(a // 64, b // 64) for a, b in ranges))) * 64
    assert wasted <= GAP * max(0, len(ranges) - len(spans)) + 128 * len(ranges)


def test_two_columns_of_a_parquet_cost_their_bytes(s3: S3, proxy: Watched) -> None:
    random, sink = np.random.default_rng(1), io.BytesIO()
    schema = pa.schema([(f"B{i:02d}", pa.binary()) for i in range(13)])
    with pq.ParquetWriter(sink, schema, compression="none", use_dictionary=False) as writer:
        for _ in range(20):  # a row a row group, as in Major TOM
            writer.write_table(pa.table({name: [random.bytes(100_000)] for name in schema.names}, schema))
    s3.client.put_object(Bucket=s3.bucket, Key="table.parquet", Body=sink.getvalue())
    folder = folder_of(s3, proxy)
    info, want = folder.info("table.parquet"), 20 * 2 * 100_000
    cost = []

    def measure(file: BinaryIO, metadata: pq.FileMetaData | None = None) -> pq.FileMetaData:
        parquet = pq.ParquetFile(file, metadata=metadata)
        assert parquet.read(columns=["B02", "B08"]) == pq.read_table(sink, columns=["B02", "B08"])
        cost.append((len(proxy.gets()), sum(one.size for one in proxy.gets())))
        proxy.seen.clear()
        return parquet.metadata

    proxy.seen.clear()
    measure(folder.open(info))
    metadata = measure(folder.open(info, random=True))
    columns = [metadata.row_group(group).column(column) for group in range(20) for column in (2, 8)]
    chunks = [(one.data_page_offset, one.data_page_offset + one.total_compressed_size) for one in columns]
    measure(folder.open(info, random=True, ahead=chunks), metadata)
    assert cost[0][1] > 2 * want  # from wherever a column chunk begins, up to 8 MiB: how far depends on the sockets
    assert cost[1][0] == 41 and cost[1][1] < 1.1 * want  # the footer, and each column chunk
    assert cost[2][0] == 40 and cost[2][1] < 1.01 * want  # each column chunk, no footer


def test_a_random_reader_reads_as_a_file_does(s3: S3, proxy: Watched) -> None:
    folder = folder_of(s3, proxy)
    file, plain = folder.open(folder.info("data"), random=True), io.BytesIO(DATA)
    random = np.random.default_rng(2)
    for _ in range(60):
        start, size = int(random.integers(len(DATA))), int(random.choice([1, 100, BLOCK - 1, BLOCK, 3 * BLOCK]))
        assert (file.seek(start), file.read(size)) == (plain.seek(start), plain.read(size))
        assert file.tell() == plain.tell()
    file.seek(-10, io.SEEK_END)
    proxy.seen.clear()
    assert file.read(100) == DATA[-10:] and file.read(1) == file.read() == b""
    assert [one.headers["range"] for one in proxy.seen] in ([], [f"bytes={len(DATA) - BLOCK}-{len(DATA) - 1}"])


def test_ten_thousand_objects_take_a_request_a_page(s3: S3, proxy: Watched) -> None:
    count = 4 * PAGE - 8
    for i in range(count):
        s3.client.put_object(Bucket=s3.bucket, Key=f"many/{i % 3}/{i}.png", Body=IMAGE)
    (root,) = list_archive(f"{s3.url}/many", proxy.storage)
    assert len(proxy.lists()) == 4 + 1 and len(proxy.seen) == 4 + 2  # what is there: HEAD, and a page of one key
    assert sum(len(shard.files) for shard in root.shards) == count
    proxy.seen.clear()
    assert len(list(read_shard(root.folder, root.shards[0], ArchiveConfig()))) == count // 3
    assert len(proxy.gets()) == count // 3 and len(proxy.seen) == count // 3 + -(-count // 3 // PAGE)


# faults


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["unavailable", "internal", "reset", "short", "understated"])
def test_a_fault_now_and_then_changes_nothing(kind: str, s3: S3, proxy: Watched) -> None:
    folder = folder_of(s3, proxy)
    file = folder.info("data")
    ranges = [(i * 1_000_000, i * 1_000_000 + 1000) for i in range(3)]
    asks = {
        "list": lambda: [one for one in folder.list() if one.path == "data"] == [file],
        "info": lambda: folder.info("data") == file,
        "range": lambda: folder.read_range("data", 10, 2000) == DATA[10:2000],
        "ranges": lambda: folder.read_ranges("data", ranges) == [DATA[a:b] for a, b in ranges],
        "stream": lambda: folder.open(file).read() == DATA,
        "random": lambda: folder.open(file, random=True).read() == DATA,
        "read": lambda: folder.read("data") == DATA,
    }
    if kind == "understated":  # nothing but a listed size or a range can tell
        del asks["read"], asks["list"], asks["info"]
    for name, ask in asks.items():
        proxy.fault = first(kind, times=3, method="HEAD" if name == "info" else "GET")
        assert ask(), name


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["unavailable", "internal", "reset", "short", "understated"])
def test_what_fails_every_time_is_asked_for_so_often_and_named(kind: str, s3: S3, proxy: Watched) -> None:
    folder = folder_of(s3, proxy)
    folder.exists("data")
    proxy.seen.clear()
    proxy.fault = first(kind, times=1000)
    with pytest.raises(AccessError, match="s3://bucket/data"):
        folder.read_range("data", 0, 5000)
    assert TRIES <= len(proxy.seen) <= (2 if kind == "reset" else 1) * TRIES  # aiohttp, once on an old connection


def test_pauses_grow_are_bounded_and_the_same_every_time() -> None:
    pauses = [pause(attempt) for attempt in range(TRIES)]
    assert pauses == sorted(pauses) == [pause(attempt) for attempt in range(TRIES)]
    assert pauses[0] == 0.2 and 20 < sum(pauses[:-1]) < 30 and max(pauses) <= 10


def replaced(s3: S3, key: str, body: bytes, after: int) -> Fault:
    """Another object takes the key's place before a certain request for it."""
    count = 0

    def replace(one: Seen) -> None:
        nonlocal count
        if one.method == "GET" and one.path.endswith(key):
            if count == after:
                s3.client.put_object(Bucket=s3.bucket, Key=key, Body=body)
            count += 1

    return replace


@pytest.mark.parametrize("body", [DATA[::-1], DATA[: 1 << 20]], ids=["other", "shorter"])
@pytest.mark.parametrize("mode", ["stream", "random", "ranges"])
def test_two_versions_are_never_mixed(body: bytes, mode: str, s3: S3, proxy: Watched, monkeypatch) -> None:
    monkeypatch.setattr("curation.storage.ranges.CHUNK", 1 << 18)
    monkeypatch.setattr("curation.storage.folder.IN_FLIGHT", 1)
    key = f"replaced-{mode}"
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=DATA)
    folder = folder_of(s3, proxy)
    file = folder.info(key)
    proxy.fault = replaced(s3, key, body, after=2)
    with pytest.raises(AccessError, match=f"s3://bucket/{key}: it changed after it was listed; run again"):
        if mode == "ranges":
            folder.read_ranges(key, [(i << 20, (i << 20) + 100) for i in range(3)])  # no version was named
        else:
            reader = folder.open(file, random=mode == "random")
            while reader.read(1 << 18):
                pass
    assert len(proxy.gets()) <= 4


def test_a_file_that_goes_after_it_was_listed_is_named(s3: S3, proxy: Watched) -> None:
    s3.client.put_object(Bucket=s3.bucket, Key="gone/t/1.png", Body=IMAGE)
    s3.client.put_object(Bucket=s3.bucket, Key="gone/2.tar", Body=bytes(10240))
    (root,) = list_archive(f"{s3.url}/gone", proxy.storage)
    for key in ("gone/t/1.png", "gone/2.tar"):
        s3.client.delete_object(Bucket=s3.bucket, Key=key)
    for shard in root.shards:
        with pytest.raises(AccessError, match=f"{shard.contents[0].path}: it vanished after it was listed"):
            list(read_shard(root.folder, shard, ArchiveConfig()))


def test_an_empty_folder_of_a_console_is_empty(s3: S3, proxy: Watched) -> None:
    folder = folder_of(s3, proxy).child("console")
    assert folder.is_empty()
    s3.client.put_object(Bucket=s3.bucket, Key="console/", Body=b"")
    assert folder.is_empty() and folder.kind() == "directory" and folder.list() == []
    s3.client.put_object(Bucket=s3.bucket, Key="console/below/", Body=b"")
    assert folder.is_empty()
    s3.client.put_object(Bucket=s3.bucket, Key="console/below/file", Body=b"1")
    assert not folder.is_empty() and [file.path for file in folder.list()] == ["below/file"]


# writing


def test_create_leaves_what_is_there(s3: S3, proxy: Watched) -> None:
    folder = folder_of(s3, proxy)
    assert folder.create("made/once", b"1") and not folder.create("made/once", b"2")
    assert folder.read("made/once") == b"1"
    assert [one.headers.get("if-none-match") for one in proxy.seen if one.method == "PUT"] == ["*", "*"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["unavailable", "internal", "reset"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_upload_in_parts_survives_faults(kind: str, method: str, s3: S3, proxy: Watched) -> None:
    folder = folder_of(s3, proxy, default_block_size=5 << 20)
    path, data = f"parts/{kind}-{method}", os.urandom(12 << 20)
    with folder.writer(path) as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
            if start == 6 << 20:
                proxy.fault = first(kind, times=2, method=method)  # of a part, or what puts them together
    assert s3.client.get_object(Bucket=s3.bucket, Key=path)["Body"].read() == data
    assert sum(one.method == "PUT" for one in proxy.seen) >= 2
    assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")


@pytest.mark.usefixtures("quick")
def test_an_upload_that_fails_leaves_nothing(s3: S3, proxy: Watched) -> None:
    folder = folder_of(s3, proxy, default_block_size=5 << 20)
    with pytest.raises(AccessError, match="complete_multipart_upload failed"), folder.writer("failed") as file:
        file.write(bytes(12 << 20))
        proxy.fault = first("unavailable", times=1000, method="POST")
    assert not folder.exists("failed")
    assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")
