"""An archive that moved, changed or lost something since the manifest was made: one error that names the sample."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from curation.errors import AccessError, RequestError
from curation.manifests.loaders.webdataset import WebDatasetSamples
from tests.kept import Archive, write_archive, write_header

WAYS = [("image", True), ("all", True), ("all", False)]  # by offset; by the catalog's offsets; by a pass


@pytest.fixture(params=WAYS, ids=["image", "catalog", "pass"])
def case(request, tmp_path) -> tuple[Archive, str]:
    members, catalog = request.param
    return write_archive(tmp_path, shards=1, samples=12, loose=3, catalog=catalog, share=0.9), members


def read(archive: Archive, members: str, **options) -> list[dict]:
    return list(WebDatasetSamples(str(archive.manifest), members=members, rank=0, world_size=1, **options))


def the_tar(archive: Archive) -> Path:
    (path,) = archive.root.rglob("*.tar")
    return path


def test_a_vanished_shard(case):
    archive, members = case
    the_tar(archive).unlink()
    with pytest.raises(AccessError, match=r"sample 's00/tile_\d+.*' of file://.*shard-000.tar has gone or changed"):
        read(archive, members)


def test_a_vanished_file_of_a_folder(case):
    archive, members = case
    (archive.root / "loose" / "tile_0001.png").unlink()
    with pytest.raises(AccessError, match="sample 'tile_0001' of .*loose"):
        read(archive, members)


def test_a_shorter_file_of_a_folder(case):
    archive, members = case
    path = archive.root / "loose" / "tile_0002.png"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AccessError, match="sample 'tile_0002' of .*loose"):
        read(archive, members)


def test_a_truncated_shard_names_the_first_sample_that_is_not_there(case):
    archive, members = case
    path = the_tar(archive)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with tarfile.open(path) as tar:
        names = []
        try:
            for member in tar:
                names.append((member.name.partition(".")[0], member.offset_data + member.size))
        except tarfile.ReadError:
            pass
    lost = [key for key, end in names if end > path.stat().st_size]
    with pytest.raises(AccessError, match="has gone or changed") as caught:
        read(archive, members, shuffle=0)
    if members == "image" and lost:
        assert int(str(caught.value).partition("tile_")[2][:4]) >= int(lost[0][-4:])


def test_a_shard_written_again_in_another_order(case):
    archive, members = case
    path = the_tar(archive)
    with tarfile.open(path) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, content in sorted(files, reverse=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(AccessError, match="has gone or changed"):
        read(archive, members)


def test_another_sample_of_the_same_size_in_its_place(case):
    archive, members = case
    path = the_tar(archive)
    content = path.read_bytes()
    assert content.count(b"s00/tile_0004.") == 4
    for suffix in (b"cls", b"png", b"json", b"pkl"):
        content = _renamed(content, b"s00/tile_0004." + suffix, b"s00/tile_9994." + suffix)
    path.write_bytes(content)
    with pytest.raises(AccessError, match="sample 's00/tile_0004'.*('s00/tile_9994.*lies in its place|is not there)"):
        read(archive, members)


def test_an_archive_that_moved(case, tmp_path):
    archive, members = case
    there = read(archive, members)
    moved = tmp_path / "moved here"
    shutil.move(archive.root, moved)
    with pytest.raises(AccessError, match="roots="):
        read(archive, members)
    here = read(archive, members, roots={"root0": str(moved)})
    assert [sample["png"] for sample in here] == [sample["png"] for sample in there]


def test_a_root_without_a_url(case):
    archive, members = case
    write_header(archive.manifest, {"other": archive.root.as_uri()})
    with pytest.raises(RequestError, match="root 'root0' lies: give roots="):
        read(archive, members)


def test_members_is_all_or_image(case):
    with pytest.raises(RequestError, match="choose all or image"):
        read(case[0], "some")


def _renamed(content: bytes, name: bytes, new: bytes) -> bytes:
    """Another name in a member's header, with the checksum put right."""
    start = content.index(name)
    block = bytearray(content[start : start + 512])
    block[: len(new)] = new
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:start] + bytes(block) + content[start + 512 :]
