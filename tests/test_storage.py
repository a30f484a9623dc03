"""What may be printed and configured of a store, and names that mean something to shells and URLs but not to us."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.errors import AccessError, RequestError
from curation.storage import FileInfo, Folder, check_storage_options, public_url, retry, without_secrets
from tests.s3 import S3, s3_server

NAMES = ["a[1]", "b*", "c?", "run#1", "d%20e", "f g+h", "{i,j}", "k=v&w", "~", "@m", "n::o", "雲"]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.mark.parametrize(
    "name",
    ["key", "Secret", "aws_secret_access_key", "PASSWORD", "passwd", "token", "sas_token", "credentials", "username"]
    + ["connection_string", "aws_access_key_id", "account_key", "Authorization"],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_secret_is_refused_at_any_depth(name: str, nested: bool) -> None:
    options = {name: "hunter2"}
    with pytest.raises(RequestError, match=f"{name} is a secret") as error:
        check_storage_options({"s3": {"client_kwargs": {"list": [options]}} if nested else options})
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["https://user:hunter2@host", "http://hunter2@host:9000/x", "https://u:hun#ter2@host"])
def test_a_url_with_a_user_is_refused(url: str) -> None:
    for options in ({"endpoint_url": url}, {"client_kwargs": {"proxies": [url]}}):
        with pytest.raises(RequestError, match="is a URL with a user") as error:
            check_storage_options({"s3": options})
        assert "ter2" not in str(error.value)


@pytest.mark.parametrize("value", [5, None, "hunter2", []])
def test_the_options_of_a_protocol_are_a_mapping(value: object) -> None:
    with pytest.raises(RequestError, match="runtime.storage.s3 is no mapping") as error:
        check_storage_options({"s3": value})
    assert "hunter2" not in str(error.value)


def test_harmless_options_are_allowed() -> None:
    check_storage_options(
        {
            "s3": {
                "anon": True,
                "endpoint_url": "http://127.0.0.1:9000/a@b",
                "client_kwargs": {"region_name": "eu-central-1"},
                "profile": "me",
                "use_ssl": False,
                "requester_pays": True,
                "key_prefix": "x",
                "config_kwargs": {"max_pool_connections": 50, "keys": ["a", 1, None]},
            },
            "file": {},
        }
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://b/run#1/tiles[2]", "s3://b/run#1/tiles[2]"),
        ("s3://b/a?b=c/d@e*", "s3://b/a?b=c/d@e*"),
        ("s3://b[1]/x", "s3://b[1]/x"),
        ("s3://key:secret@b/x#1", "s3://b/x#1"),
        ("sftp://u@h", "sftp://h"),
        ("https://u:p@h:1/a?sig=x#y", "https://h:1/a"),
        ("HTTP://u:p#q@h/a#y", "HTTP://h/a"),
        ("https://[::1]:80?sig=x", "https://[::1]:80"),
        ("simplecache::https://u:p@h/a?sig=x", "simplecache::https://h/a"),
        ("/a b#1?", "file:///a%20b%231%3F"),
    ],
)
def test_a_printed_url_has_its_name_and_no_credentials(url: str, shown: str) -> None:
    assert public_url(url) == shown


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_names_are_no_patterns(name: str, kind: str, s3: S3, tmp_path: Path) -> None:
    base = {"local": str(tmp_path), "s3": f"{s3.url}/{tmp_path.name}"}[kind]
    store = Folder(base, s3.storage)
    bystanders = ["a1/x", "bb/x", "cc/x", "i/x", "z"]  # what the names match as patterns
    for path in bystanders:
        store.publish(path, b"1")
    folder = store.child(name)
    folder.publish(f"{name}/{name}.bin", b"123")
    assert folder.create("new", b"1") and not folder.create("new", b"2")
    with folder.writer(f"w{name}") as file:
        file.write(b"12345")

    assert store.exists(name) and folder.exists() and folder.exists(f"{name}/{name}.bin")
    assert not store.exists(f"{name}{name}") and not folder.exists("[!z]*")
    paths = [("new", 1), (f"w{name}", 5), (f"{name}/{name}.bin", 3)]
    assert [(file.path, file.size) for file in folder.list()] == sorted(paths)
    assert [file.path for file in folder.list(recursive=False)] == sorted(["new", f"w{name}"])
    assert [file.path for file in store.list(name)] == [f"{name}/{path}" for path, _ in sorted(paths)]

    folder.move(f"{name}/{name}.bin", f"to/{name}")
    info = folder.info(f"to/{name}")
    assert info.size == 3 and folder.read(info.path) == folder.open(info).read() == b"123"
    folder.remove(f"w{name}")
    assert [file.path for file in folder.list()] == ["new", f"to/{name}"]
    store.discard(name)
    store.discard(name)
    assert not store.exists(name)
    assert [file.path for file in store.list()] == bystanders
    store.discard("")


def test_ranges_of_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    folder = Folder(str(tmp_path))
    file = folder.info("x")
    assert folder.read_ranges("x", [(90, 100), (0, 3), (5, 5)], file.version) == [bytes(range(90, 100)), b"\0\1\2", b""]
    assert folder.open(file, random=True, ahead=[(0, 3)]).read() == path.read_bytes()
    with pytest.raises(AccessError, match="10 bytes came where 11 were asked for"):
        folder.read_range("x", 90, 101)
    os.utime(path, (1, 1))
    with pytest.raises(AccessError, match="x: it changed after it was listed"):
        folder.read_ranges("x", [(0, 3)], file.version)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "gone.tar").symlink_to("nowhere")
    with pytest.raises(AccessError, match=r"deep/gone\.tar links to nothing: restore or remove it"):
        Folder(str(tmp_path)).list()


def test_an_entry_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(AccessError, match="self: Too many levels of symbolic links: mend or remove it"):
        Folder(str(tmp_path)).list()


def test_a_file_that_vanishes_while_it_is_listed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gone", "here"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "unlinked").symlink_to("nowhere")
    scandir = os.scandir

    def slow(path: str) -> list[os.DirEntry[str]]:
        entries = list(scandir(path))
        (tmp_path / "gone").unlink()
        (tmp_path / "unlinked").unlink()
        return entries

    monkeypatch.setattr(os, "scandir", slow)
    (file,) = Folder(str(tmp_path)).list()
    assert isinstance(file, FileInfo) and file.path == "here"


def test_what_libraries_say_is_told_without_users_and_signatures() -> None:
    said = "403, message='Forbidden',\n url='https://me:hunter2@host/a.tif?X-Amz-Signature=hunter2#x' and s3://b/c?d"
    assert without_secrets(said) == "403, message='Forbidden', url='https://host/a.tif' and s3://b/c?d"

    def refuse() -> None:
        raise ValueError(said)

    with pytest.raises(AccessError) as raised:
        retry(refuse, "x", tries=1)
    assert "hunter2" not in str(raised.value)
