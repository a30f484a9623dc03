"""Tars: the samples are those that tarfile finds, and whatever is wrong with a shard is told, never swallowed."""

import dataclasses
import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import webdataset.tariterators
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.archive.listing import list_archive
from curation.archive.names import split_name
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection
from curation.archive.settings import ArchiveConfig
from curation.errors import AccessError
from tests.archive_tools import read_all
from tests.recipes import write_tar

PAIRS = [(f"tile_{i}.{suffix}", f"{suffix} of {i}".encode() * 40) for i in range(5) for suffix in ("jpg", "json")]


def keys(items: list[RawSample | Rejection]) -> list[str]:
    return [item.key for item in items if isinstance(item, RawSample)]


def faults(items: list[RawSample | Rejection]) -> list[tuple[str, str]]:
    return [(item.kind, item.key) for item in items if isinstance(item, Rejection)]


def with_special(path: Path, name: str, kind: bytes, target: str = "") -> Path:
    """A tar of two good samples with a special member between them."""
    with tarfile.open(path, "w") as tar:
        for member in ("a.jpg", None, "z.jpg"):
            info = tarfile.TarInfo(member or name)
            if member is None:
                info.type, info.linkname = kind, target
                tar.addfile(info)
            else:
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
    return path


def test_members_of_a_key_come_together_with_their_places(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    items = read_all(path)
    assert keys(items) == [f"tile_{i}" for i in range(5)]
    data = path.read_bytes()
    for item in items:
        assert isinstance(item, RawSample)
        assert list(item.data) == ["jpg", "json"]
        for member in item.members:
            assert member.offset is not None
            content = data[member.offset : member.offset + member.size]
            assert content == dict(PAIRS)[member.name] == item.data[split_name(member.name)[1]]


@pytest.mark.parametrize("name", ["a/b.c/key.B02.tif", "key.jpg", "./x/y.tar.gz", "a b/ü,[1]=%20.json", "d.e/f.g.h"])
def test_keys_are_those_of_webdataset(name: str) -> None:
    assert split_name(name) == webdataset.tariterators.base_plus_ext(name)


letters = "abZ09._- ,[]=%ü雲\
😀"
part = st.text(letters, min_size=1, max_size=120).filter(lambda text: not text.startswith("."))
names = st.lists(part, min_size=1, max_size=3).map("/".join)
contents = st.binary(min_size=1, max_size=1500)
archives = st.lists(
    st.tuples(names, contents), min_size=1, max_size=6, unique_by=lambda member: split_name(member[0])[0]
)


def tar_bytes(members: list[tuple[str, bytes]], style: int, ended: bool = True) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=style) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    return file.getvalue() if ended else file.getvalue()[:end]


@settings(max_examples=40, deadline=None)
@given(members=archives, style=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_any_name_and_content_is_read_as_tarfile_reads_it(
    members: list[tuple[str, bytes]], style: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.tar"
    path.write_bytes(tar_bytes(members, style))
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    items = read_all(path)
    found = [(m.name, m.offset, m.size) for item in items if isinstance(item, RawSample) for m in item.members]
    safe = [member for member in expected if not member[0].startswith("\\") and ".." not in member[0]]
    assert [member for member in found if member in safe] == safe
    assert len(items) == len(members)


@settings(max_examples=100, deadline=None)
@given(members=st.lists(st.tuples(contents, contents), min_size=1, max_size=4), data=st.data())
def test_a_tar_cut_anywhere_gives_its_whole_samples_and_one_row_for_the_rest(
    members: list[tuple[bytes, bytes]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    named = enumerate(members)
    listed = [(f"k{i}.{suffix}", c) for i, pair in named for suffix, c in zip(("jpg", "json"), pair, strict=True)]
    whole = tar_bytes(listed, tarfile.PAX_FORMAT)
    end = len(tar_bytes(listed, tarfile.PAX_FORMAT, ended=False))
    path = tmp_path_factory.mktemp("cut") / "x.tar"
    path.write_bytes(whole)
    full = read_all(path)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    items = read_all(path)
    broken = [item for item in items if isinstance(item, Rejection)]
    good = items[: len(items) - len(broken)]
    assert all(isinstance(item, RawSample) for item in good)
    first_data = good[0].data if good else {}
    if set(first_data) == {"jpg", "json"} or not good:
        assert good == full[: len(good)]
    else:  # only the first image was there: nothing tells that a sidecar was to follow
        assert len(good) == 1 and first_data == {"jpg": members[0][0]}
    whole_ones = sum(bool(m.members[-1].offset + m.members[-1].size <= cut) for m in full)  # type: ignore[union-attr,operator]
    assert len(good) >= whole_ones
    assert [item.kind for item in broken] == ([] if cut >= end + 512 else ["TruncatedShard"])


@pytest.mark.parametrize(
    ("cut", "said", "kept"),
    [
        (512 + 100, "in the middle of member tile_0.jpg", 0),
        (1024 * 6 + 700, "in the middle of member tile_3.jpg", 3),
        (1024 * 5 + 700, "tile_2 is incomplete and lost with the rest", 2),
        (1024 * 5, "tile_2 is incomplete and lost with the rest", 2),
        (1024 * 6, "without its end-of-archive blocks", 3),
        (1024 * 6 + 200, "in the middle of a header", 3),
        (1024 * 10, "without its end-of-archive blocks", 5),
        (0, "without its end-of-archive blocks", 0),
    ],
)
def test_a_truncated_tar_says_where(tmp_path: Path, cut: int, said: str, kept: int) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    path.write_bytes(path.read_bytes()[:cut])
    items = read_all(path)
    assert len(items) == kept + 1
    assert isinstance(items[-1], Rejection)
    assert (items[-1].kind, items[-1].key, items[-1].index) == ("TruncatedShard", "", kept)
    assert said in items[-1].message


def test_a_damaged_header_ends_the_shard_with_one_row(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    data = bytearray(path.read_bytes())
    data[1024 * 4 + 10] ^= 0xFF
    path.write_bytes(data)
    items = read_all(path)
    assert keys(items) == ["tile_0", "tile_1"]
    assert faults(items) == [("TruncatedShard", "")]
    assert "no valid tar header at byte 4096" in items[-1].message  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [b"nothing of a tar" * 100, gzip.compress(bytes(range(256)) * 20, mtime=0), gzip.compress(b"", mtime=0)],
    ids=["text", "gzip", "empty gzip"],
)
def test_what_is_no_tar_is_one_row(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    items = read_all(tmp_path)
    assert faults(items) == [("NotATar", "")]
    assert ("gzip" in items[0].message) == (data[:2] == b"\x1f\x8b")  # type: ignore[union-attr]


def test_tars_joined_by_cat_are_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    path.write_bytes(path.read_bytes() * 2)
    items = read_all(path)
    assert len(keys(items)) == 5
    assert faults(items) == [("TrailingData", "")]


@pytest.mark.parametrize("name", ["../up.jpg", "/root.jpg", "a/../../up.jpg", "..", "..\\up.jpg"])
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    items = read_all(write_tar(tmp_path / "x.tar", [("a.jpg", b"a"), (name, b"b"), ("z.jpg", b"z")]))
    if not name.rpartition("/")[2].startswith("."):
        assert [kind for kind, _ in faults(items)] == ["UnsafeName"]
    assert keys(items) == ["a", "z"]


def test_dots_inside_a_name_are_no_way_out(tmp_path: Path) -> None:
    assert keys(read_all(write_tar(tmp_path / "x.tar", [("a..b/c...jpg", b"a")]))) == ["a..b/c"]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(tarfile.SYMTYPE, "LinkMember"), (tarfile.LNKTYPE, "LinkMember"), (tarfile.FIFOTYPE, "NotAFile")],
)
def test_links_and_special_files_are_refused(tmp_path: Path, kind: bytes, fault: str) -> None:
    items = read_all(with_special(tmp_path / "x.tar", "bad.jpg", kind, "/etc/passwd"))
    assert faults(items) == [(fault, "bad")]
    assert keys(items) == ["a", "z"]


def test_folders_and_hidden_files_are_no_samples(tmp_path: Path) -> None:
    path = with_special(tmp_path / "x.tar", "folder", tarfile.DIRTYPE)
    assert [item.key for item in read_all(path)] == ["a", "z"]
    path = write_tar(path, [("._a.jpg", b"x"), ("d/.DS_Store", b"x"), ("a.jpg", b"x")])
    assert [item.key for item in read_all(path)] == ["a"]


def test_an_empty_member_spoils_its_sample_only(tmp_path: Path) -> None:
    members = [("a.jpg", b"a"), ("b.jpg", b""), ("b.json", b"{}"), ("c.jpg", b"c"), ("c.txt", b""), ("d.bin", b"")]
    items = read_all(write_tar(tmp_path / "x.tar", members))
    assert faults(items) == [("EmptyMember", "b")]
    assert keys(items) == ["a", "c", "d"]  # an empty caption is no fault; what nobody uses may be empty


def test_of_two_members_of_one_name_the_first_stays(tmp_path: Path) -> None:
    items = read_all(write_tar(tmp_path / "x.tar", [("a.jpg", b"first"), ("a.jpg", b"second"), ("b.jpg", b"b")]))
    assert faults(items) == [("DuplicateMember", "a")]
    assert isinstance(items[0], RawSample) and items[0].data == {"jpg": b"first"}
    assert keys(items) == ["a", "b"]


def test_a_key_that_comes_again_later_is_told(tmp_path: Path) -> None:
    members = [("a.jpg", b"first"), ("b.jpg", b"b"), ("a.jpg", b"second"), ("a.json", b"{}")]
    items = read_all(write_tar(tmp_path / "x.tar", members))
    assert faults(items) == [("DuplicateKey", "a")]
    assert keys(items) == ["a", "b"]


def test_a_name_that_is_not_utf8_is_quarantined_in_printable_form(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes([("caf\udce9.jpg", b"x"), ("b.jpg", b"b")], tarfile.GNU_FORMAT))
    items = read_all(path)
    assert faults(items) == [("BadName", "caf\\xe9")]
    assert keys(items) == ["b"]


@pytest.mark.parametrize("size", [1 << 30, 1 << 60])
def test_a_member_of_more_bytes_than_the_shard_is_not_allocated(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = size
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 2048)
    assert faults(read_all(path)) == [("TooLarge", "a")] * (size > 1 << 31) + [("TruncatedShard", "")]


def test_a_vanished_shard_is_an_access_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    (root,) = list_archive(str(path))
    path.unlink()
    with pytest.raises(AccessError, match="x.tar"):
        list(read_shard(root.folder, root.shards[0], ArchiveConfig()))


@pytest.mark.parametrize("change", ["shrink", "grow", "touch", "vanish"])
def test_a_shard_that_changes_while_it_is_read_is_an_access_error(tmp_path: Path, change: str) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    (root,) = list_archive(str(path))
    reading = read_shard(root.folder, root.shards[0], ArchiveConfig())
    next(reading)
    if change == "shrink":
        os.truncate(path, 3000)
    elif change == "grow":
        path.write_bytes(path.read_bytes() + bytes(512))
    elif change == "touch":
        os.utime(path, (1, 1))
    else:
        path.unlink()
    with pytest.raises(AccessError):
        list(reading)


def test_fewer_bytes_than_listed_is_an_access_error_and_not_a_truncated_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    (root,) = list_archive(str(path))
    (shard,) = root.shards
    assert shard.file is not None
    longer = dataclasses.replace(shard, file=dataclasses.replace(shard.file, size=shard.size + 10240))
    with pytest.raises(AccessError, match="where the listing said"):
        list(read_shard(root.folder, longer, ArchiveConfig()))


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    def peak(samples: int) -> int:
        path = write_tar(tmp_path / f"{samples}.tar", ((f"{i}.npy", bytes(50_000)) for i in range(samples)))
        (root,) = list_archive(str(path))
        tracemalloc.start()
        for _ in read_shard(root.folder, root.shards[0], ArchiveConfig()):
            pass
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    assert peak(400) < peak(20) + 150_000
