"""What a URL names: roots, shards, folders of images; paths as people have them are taken as typed."""

import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest

from curation.archive.decode import decode
from curation.archive.listing import _check_ids, list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection
from curation.archive.settings import ArchiveConfig
from curation.errors import AccessError, RequestError
from tests.archive_tools import read_all
from tests.recipes import encoded, npy, write_tar

AWKWARD = ["a b", "x,y", "data [2020]", "k=v", "100%25", "ünïcode 雲", "{a: b}", "[p,q]", "it's", "star*", "q?"]


def tar(path: Path) -> Path:
    return write_tar(path, [("k.jpg", b"x")])


def names(url: object) -> list[str]:
    return [shard.name for root in list_archive(url) for shard in root.shards]


def test_a_folder_of_tars_and_images(tmp_path: Path) -> None:
    tar(tmp_path / "b/two.tar")
    tar(tmp_path / "one.tar")
    for path in ("loose.PNG", "deep/er/x.tif", "deep/er/x.json", "deep/er/other.json", "deep/readme.md", ".hid/x.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    (root,) = list_archive(str(tmp_path))
    assert [(s.name, s.format) for s in root.shards] == [
        ("root0/.", "folder"),
        ("root0/b/two.tar", "tar"),
        ("root0/deep/er", "folder"),
        ("root0/one.tar", "tar"),
    ]
    assert [file.path for file in root.shards[2].files] == ["deep/er/x.json", "deep/er/x.tif"]
    assert root.shards[3].size == (tmp_path / "one.tar").stat().st_size


@pytest.mark.parametrize("part", AWKWARD)
def test_awkward_paths_are_taken_literally(tmp_path: Path, part: str) -> None:
    tar(tmp_path / part / "x.tar")
    (tmp_path / part / "tile 1.png").write_bytes(b"x")
    assert names(str(tmp_path / part)) == ["root0/.", "root0/x.tar"]
    assert names(str(tmp_path / part / "x.tar")) == ["root0/x.tar"]
    assert names(str(tmp_path / part / "*.tar")) == ["root0/x.tar"]
    assert names((tmp_path / part / "x.tar").as_uri()) == ["root0/x.tar"]
    assert len(read_all(tmp_path / part)) == 2


def test_an_existing_path_wins_over_list_and_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "[a,b]" / "x.tar")
    tar(tmp_path / "a" / "y.tar")
    tar(tmp_path / "b" / "z.tar")
    assert names("[a,b]") == ["root0/x.tar"]
    assert names("[a, b]") == ["root0/y.tar", "root1/z.tar"]


def test_lists_and_mappings_name_the_roots(tmp_path: Path) -> None:
    one, two = tar(tmp_path / "a,b" / "x.tar").parent, tar(tmp_path / "c" / "y.tar").parent
    assert names([str(one), str(two)]) == ["root0/x.tar", "root1/y.tar"]
    assert names({"s2": str(one), "s1": str(two)}) == ["s2/x.tar", "s1/y.tar"]
    assert names(f"{{s2: {two}, s1: '{one}'}}") == ["s2/y.tar", "s1/x.tar"]
    assert names(f'["{one}", {two}/*.tar]') == ["root0/x.tar", "root1/y.tar"]


def test_moving_the_archive_changes_no_name(tmp_path: Path) -> None:
    tar(tmp_path / "here" / "d" / "x.tar")
    before = names(str(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert names(str(tmp_path / "there")) == before == ["root0/d/x.tar"]


def test_patterns(tmp_path: Path) -> None:
    for path in ("2020/a-1.tar", "2020/a-2.tar", "2021/a-1.tar", "2021/deep/b.tar", "x.tar"):
        tar(tmp_path / path)
    (tmp_path / "2020" / "t1.jpg").write_bytes(b"x")
    (tmp_path / "2020" / "t1.json").write_bytes(b"{}")
    (tmp_path / "2020" / "u1.jpg").write_bytes(b"x")
    assert names(f"{tmp_path}/*/a-1.tar") == ["root0/2020/a-1.tar", "root0/2021/a-1.tar"]
    assert names(f"{tmp_path}/**/*.tar") == [
        f"root0/{p}" for p in sorted(("2020/a-1.tar", "2020/a-2.tar", "2021/a-1.tar", "2021/deep/b.tar", "x.tar"))
    ]
    assert names(f"{tmp_path}/2020/a-[2-9].tar") == ["root0/a-2.tar"]
    assert names(f"{tmp_path}/202?/deep") == ["root0/2021/deep/b.tar"]
    (root,) = list_archive(f"{tmp_path}/2020/t*.jpg")
    assert [file.path for file in root.shards[0].files] == ["t1.jpg", "t1.json"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("{tmp}/missing", "there is nothing at"),
        ("{tmp}/empty", "no shard found in"),
        ("{tmp}/*.tar", "no shard found in"),
        ("{tmp}/file.bin", "is no shard"),
        ("", "give a path"),
        (None, "give a path"),
        ([], "give a path"),
        ([3], "give a path"),
        ("{{a, b}}", "is no mapping"),
        ({"a/b": "{tmp}"}, "cannot name a root"),
        ("nosuch://x/y", "nosuch"),
        ("s3://my*/y", "a bucket's name cannot be a pattern"),
    ],
)
def test_a_wrong_url_is_one_clear_line(tmp_path: Path, url: object, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"")
    with pytest.raises(RequestError, match=said) as caught:
        list_archive(url.format(tmp=tmp_path) if isinstance(url, str) else url)
    assert "\n" not in str(caught.value)


def test_two_shards_of_one_id_stop_the_run(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar")
    listed = list_archive({"a": str(tmp_path)})
    with pytest.raises(RequestError, match="two shards would share the id a/x.tar"):
        _check_ids(listed + listed)
    with pytest.raises(RequestError, match="different names"):
        list_archive(f"{{a: {tmp_path}, a: {tmp_path}}}")


def test_a_folder_of_links(tmp_path: Path) -> None:
    tar(tmp_path / "store" / "x.tar")
    (tmp_path / "store" / "img").mkdir()
    (tmp_path / "store" / "img" / "a.png").write_bytes(b"x")
    farm = tmp_path / "farm"
    farm.mkdir()
    (farm / "one.tar").symlink_to(tmp_path / "store" / "x.tar")
    (farm / "first").symlink_to(tmp_path / "store" / "img")
    (farm / "second").symlink_to(tmp_path / "store" / "img")
    (farm / "loop").symlink_to(farm)
    (tmp_path / "store" / "img" / "up").symlink_to(tmp_path / "store")
    assert names(str(farm)) == [
        "root0/first",
        "root0/first/up/x.tar",
        "root0/one.tar",
        "root0/second",
        "root0/second/up/x.tar",
    ]
    assert len(read_all(farm)) == 5


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar(tmp_path / "x.tar")
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def denied(path: str) -> object:  # root, who may run this, may read everything
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(RequestError, match="check its mode"):
        list_archive(str(tmp_path))


def test_images_of_a_folder_find_their_sidecars(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
    for key in ("b", "a.v1", "a"):
        (tmp_path / f"{key}.png").write_bytes(encoded(pixels, "PNG"))
        (tmp_path / f"{key}.json").write_text(json.dumps({"label": key}))
    items = read_all(tmp_path)
    assert [item.key for item in items] == ["a", "a.v1", "b"]
    for item in items:
        assert isinstance(item, RawSample)
        sample = decode(item, ArchiveConfig())
        assert sample.label == item.key
        assert sample.image.name == f"{item.key}.png" and sample.image.offset is None
        np.testing.assert_array_equal(sample.pixels, pixels.transpose(2, 0, 1))


def test_empty_files_and_odd_names_of_a_folder_are_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(np.zeros((4, 4), np.uint8)))
    (tmp_path / "b.npy").write_bytes(b"")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.npy"))).write_bytes(b"x")
    items = read_all(tmp_path)
    rejected = {item.key: item.kind for item in items if isinstance(item, Rejection)}
    assert rejected == {"b": "EmptyMember", "caf\\xe9": "BadName"}
    assert len(items) == 3


@pytest.mark.parametrize("change", ["vanish", "grow", "touch"])
def test_a_folder_that_changes_while_it_is_read_is_an_access_error(tmp_path: Path, change: str) -> None:
    for key in "abc":
        (tmp_path / f"{key}.png").write_bytes(b"123")
    (root,) = list_archive(str(tmp_path))
    reading = read_shard(root.folder, root.shards[0], ArchiveConfig())
    assert next(reading).key == "a"
    if change == "vanish":
        (tmp_path / "c.png").unlink()
    elif change == "grow":
        (tmp_path / "c.png").write_bytes(b"1234")
    else:
        os.utime(tmp_path / "a.png", (1, 1))
    with pytest.raises(AccessError, match=r"[ac]\.png"):
        list(reading)


def test_the_fingerprint_of_a_folder_tells_a_changed_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"123")
    before = list_archive(str(tmp_path))[0].shards[0].fingerprint
    assert list_archive(str(tmp_path))[0].shards[0].fingerprint == before
    os.utime(tmp_path / "a.png", (1, 1))
    assert list_archive(str(tmp_path))[0].shards[0].fingerprint != before


def test_a_remote_folder_is_read_in_order_from_several_threads() -> None:
    store = fsspec.filesystem("memory")
    for i in range(100):
        store.pipe_file(f"/archive-test/t{i:03d}.png", b"%d" % i)
    try:
        (root,) = list_archive("memory://archive-test")
        items = list(read_shard(root.folder, root.shards[0], ArchiveConfig()))
        assert [item.data["png"] for item in items if isinstance(item, RawSample)] == [b"%d" % i for i in range(100)]
    finally:
        store.rm("/archive-test", recursive=True)
