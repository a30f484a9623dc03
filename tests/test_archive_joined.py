"""Modalities side by side: a sample is a key of all of them, and every key of any is accounted for."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.archive.decode import decode
from curation.archive.joined import LAG, read_joined
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import Member, RawSample, Rejection, Sample, Wanted
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.archive.shards import Shard
from curation.errors import AccessError, RequestError
from curation.storage import Folder
from tests.archive_tools import read_all
from tests.containers import S2, optical, radar, terramesh_sample, write_ssl4eo, write_terramesh
from tests.recipes import encoded, geotiff, write_tar
from tests.s3 import s3_server

BOTH = ["S2L2A", "S1GRD"]


def samples(items: list[RawSample | Rejection], **settings: Any) -> list[Sample]:
    return [decode(item, ArchiveConfig(**settings)) for item in items if isinstance(item, RawSample)]


def outcomes(items: Sequence[RawSample | Rejection]) -> dict[str, str]:
    found = {item.key: item.kind if isinstance(item, Rejection) else "" for item in items}
    assert len(found) == len(items)
    return found


def members(modality: str, numbers: Sequence[int]) -> list[tuple[str, bytes]]:
    return [(f"tm_{n:06d}.zarr.zip", terramesh_sample(modality, n, size=16)) for n in numbers]


def test_terramesh_has_names_that_repeat_across_modalities_and_splits(tmp_path: Path) -> None:
    modalities = [*BOTH, "DEM"]
    write_terramesh(tmp_path, modalities, shards=2, each=4)
    roots = list_archive(str(tmp_path), settings=ArchiveConfig(modalities=modalities))
    assert [shard.path for shard in roots[0].shards] == [
        f"{split}/S2L2A/majortom_shard_{n:06d}.tar" for split in ("train", "val") for n in (1, 2)
    ]
    items = read_all(tmp_path, modalities=modalities)
    assert len(items) == 16
    for number, sample in enumerate(samples(items, modalities=modalities)):
        assert sample.key == f"tm_{number:06d}"
        assert sample.bands == (*(f"S2L2A.{band}" for band in S2), "S1GRD.vv", "S1GRD.vh", "DEM")
        assert sample.pixels.dtype == np.float32
        np.testing.assert_array_equal(sample.pixels[:12], optical(number, 32))
        np.testing.assert_array_equal(sample.pixels[12:14], radar(number, 32).astype(np.float16))
        assert sample.time == datetime(2020, 1, 3 + number, 10, 12, 31, tzinfo=UTC)
        files = {member.file for member in sample.members}
        assert len(files) == 3 and sample.image.file in files and "/S2L2A/" in str(sample.image.file)
        with open(tmp_path / str(sample.members[1].file), "rb") as file:
            file.seek(sample.members[1].offset or 0)
            assert file.read(sample.members[1].size) == terramesh_sample("S1GRD", number)
    (dem, *_) = samples(read_all(tmp_path, modalities=modalities, members=["DEM.zarr.zip", "S1GRD.zarr.zip"]), **{
        "modalities": modalities, "members": ["DEM.zarr.zip", "S1GRD.zarr.zip"]
    })  # fmt: skip
    assert dem.bands == ("DEM", "S1GRD.vv", "S1GRD.vh")


def test_zarr_of_both_modalities(tmp_path: Path) -> None:
    write_ssl4eo(tmp_path, BOTH, samples=3)
    items = read_all(tmp_path, modalities=BOTH)
    found = samples(items, modalities=BOTH)
    assert len(found) == 2 * 3 * 4
    sample = found[5]
    assert sample.key == "0000001_t1" and sample.position == (1, 1)
    np.testing.assert_array_equal(sample.pixels[:12], optical(8, 24))
    np.testing.assert_array_equal(sample.pixels[12:], radar(8, 24).astype(np.float16))
    tile = TileConfig(12)
    cut = samples(read_all(tmp_path, modalities=BOTH, tile=tile), modalities=BOTH, tile=tile)
    assert len(cut) == 24 and cut[0].window is None  # whole: chunks are no rows of tiles here
    root = list_archive(str(tmp_path), settings=ArchiveConfig(modalities=BOTH))[0]
    (one,) = read_shard(root.folder, root.shards[0], ArchiveConfig(modalities=BOTH), [Wanted("0000001_t1", (1, 1))])
    np.testing.assert_array_equal(samples([one], modalities=BOTH)[0].pixels, sample.pixels)


def test_modalities_of_different_formats_sizes_and_sidecars(tmp_path: Path) -> None:
    """A tar beside a tar with sidecars of its own, and finer pixels."""
    names = ["a", "b"]
    optical_files = [(f"{n}.tif", geotiff(np.full((2, 8, 8), 7, np.uint16), ("red", "nir"))) for n in names]
    said = [(f"{n}.json", json.dumps({"label": "field", "time": "2020-01-01"}).encode()) for n in names]
    other = [(f"{n}.json", json.dumps({"label": "other", "license": "CC0"}).encode()) for n in names]
    fine = [(f"{n}.png", encoded(np.full((16, 16), 3, np.uint8), "PNG")) for n in names]
    write_tar(tmp_path / "S2" / "0.tar", sorted(optical_files + said))
    write_tar(tmp_path / "PAN" / "0.tar", sorted(fine + other))
    for grid, size in ((None, 16), ("S2.tif", 8)):
        how: dict[str, Any] = {"modalities": ["S2", "PAN"], "grid": grid}
        (sample, _) = samples(read_all(tmp_path, **how), **how)
        assert sample.bands == ("S2.red", "S2.nir", "PAN") and sample.pixels.shape == (3, size, size)
        assert (sample.label, sample.license, sample.time) == ("field", "CC0", datetime(2020, 1, 1, tzinfo=UTC))
        assert sample.image.name == "a.tif"


def test_parquet_of_both_modalities(tmp_path: Path) -> None:
    for modality, tile in (("S2L2A", optical), ("S1GRD", radar)):
        (tmp_path / modality).mkdir()
        names = [f"{n:03d}" for n in range(20)]
        table = pa.table({"id": names, "image": [geotiff(tile(n, 16)) for n in range(20)], "x": list(range(20))})
        if modality == "S1GRD":
            table = table.take([n for n in reversed(range(20)) if n != 3])
        pq.write_table(table, tmp_path / modality / "0.parquet", row_group_size=4)
    items = read_all(tmp_path, modalities=BOTH)
    assert outcomes(items) == {f"{n:03d}": "MissingModality" if n == 3 else "" for n in range(20)}
    found = {sample.key: sample for sample in samples(items, modalities=BOTH)}
    assert found["007"].bands[0] == "S2L2A.image.b1" and found["007"].position == (1, 3)
    np.testing.assert_array_equal(found["007"].pixels[12:], radar(7, 16))
    root = list_archive(str(tmp_path), settings=ArchiveConfig(modalities=BOTH))[0]
    (one,) = read_shard(root.folder, root.shards[0], ArchiveConfig(modalities=BOTH), [Wanted("007", (1, 3))])
    np.testing.assert_array_equal(samples([one], modalities=BOTH)[0].pixels, found["007"].pixels)


def test_a_key_that_one_lacks_and_a_member_that_is_broken(tmp_path: Path) -> None:
    write_tar(tmp_path / "S2L2A" / "0.tar", members("S2L2A", [0, 1, 2, 3, 5]))
    broken = members("S1GRD", [0, 2, 3, 4, 5])
    broken[2] = (broken[2][0], b"")
    write_tar(tmp_path / "S1GRD" / "0.tar", broken)
    items = read_all(tmp_path, modalities=BOTH)
    missing = dict.fromkeys(("tm_000001", "tm_000004"), "MissingModality")
    whole = dict.fromkeys(("tm_000000", "tm_000002", "tm_000005"), "")
    assert outcomes(items) == missing | whole | {"tm_000003": "EmptyMember"}
    said = {item.key: item.message for item in items if isinstance(item, Rejection)}
    assert said["tm_000001"].startswith("S1GRD has no such key") and said["tm_000003"].startswith("S1GRD: ")


def test_a_part_that_breaks_off_is_one_rejection_for_the_rest(tmp_path: Path) -> None:
    write_tar(tmp_path / "S2L2A" / "0.tar", members("S2L2A", range(60)))
    path = write_tar(tmp_path / "S1GRD" / "0.tar", members("S1GRD", range(60)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    items = read_all(tmp_path, modalities=BOTH)
    assert [item.kind for item in items if isinstance(item, Rejection)] == ["TruncatedShard"]
    assert isinstance(items[-1], Rejection) and items[-1].message.startswith("S1GRD: ")
    assert 25 < len(items) < 35
    root = list_archive(str(tmp_path), settings=ArchiveConfig(modalities=BOTH))[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AccessError):
        list(read_shard(root.folder, root.shards[0], ArchiveConfig(modalities=BOTH)))


def test_a_row_group_that_is_lost_is_one_rejection(tmp_path: Path) -> None:
    for modality in BOTH:
        (tmp_path / modality).mkdir()
        names = [f"{n:03d}" for n in range(60) if (modality, n) != ("S1GRD", 50)]
        table = pa.table({"id": names, "image": [geotiff(radar(n, 8)) for n in range(len(names))]})
        how: dict[str, Any] = {"row_group_size": 20, "compression": "zstd", "use_dictionary": False}
        pq.write_table(table, tmp_path / modality / "0.parquet", **how)
    path = tmp_path / "S1GRD" / "0.parquet"
    chunk = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 16] = b"\xff" * 16
    path.write_bytes(bytes(data))
    items = read_all(tmp_path, modalities=BOTH)
    kinds = [item.kind for item in items if isinstance(item, Rejection)]
    assert sorted(kinds) == ["DamagedShard"] and len(items) == 1 + 20 + 19
    path.write_bytes(path.read_bytes()[:-1])
    assert [item.kind for item in read_all(tmp_path, modalities=BOTH) if isinstance(item, Rejection)] == [
        "DamagedShard"
    ]


def test_a_shard_without_its_counterpart_is_a_wrong_request(tmp_path: Path) -> None:
    write_terramesh(tmp_path, BOTH, shards=2, each=1)
    (tmp_path / "val" / "S1GRD" / "majortom_shard_000002.tar").unlink()
    with pytest.raises(RequestError, match="no counterpart val/S1GRD/majortom_shard_000002.tar"):
        list_archive(str(tmp_path), settings=ArchiveConfig(modalities=BOTH))


def test_from_an_object_store(tmp_path: Path) -> None:
    write_terramesh(tmp_path, BOTH, shards=1, each=3, splits=["train"])
    config = ArchiveConfig(modalities=BOTH)
    with s3_server() as s3:
        for path in tmp_path.rglob("*.tar"):
            s3.client.upload_file(str(path), s3.bucket, str(path.relative_to(tmp_path)))
        root = list_archive(s3.url, s3.storage, config)[0]
        found = list(read_shard(root.folder, root.shards[0], config))
    local = read_all(tmp_path, modalities=BOTH)
    assert [item.data for item in found if isinstance(item, RawSample)] == [
        item.data for item in local if isinstance(item, RawSample)
    ]


# any order, any gap


def join(*keys: Sequence[str]) -> list[RawSample | Rejection]:
    """Modalities of samples without pixels."""
    names = [f"M{i}" for i in range(len(keys))]

    def read(folder: Any, shard: Shard, settings: Any, only: Any, sieve: Any) -> Iterator[RawSample | Rejection]:
        own = keys[int(shard.path)]
        for index, key in enumerate(own):
            if key in own[:index]:
                yield Rejection(key, index, "read", "DuplicateKey", "it came before")
            else:
                yield RawSample(key, index, [Member(key, 0, 1)], {"npy": key.encode()})

    parts = tuple((name, Shard("r", str(i), "x")) for i, name in enumerate(names))
    shard = Shard("r", "0", "joined", parts=parts)
    found = list(read_joined({"x": read}, Folder("/"), shard, ArchiveConfig(modalities=names)))
    assert [item.index for item in found] == list(range(len(found)))
    for item in found:
        if isinstance(item, RawSample):
            assert item.data == {f"{name}.npy": item.key.encode() for name in names}
    return found


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(2, 3), st.integers(0, 120))
def test_every_key_of_any_modality_comes_out_once(data: st.DataObject, count: int, keys: int) -> None:
    """Whatever each lacks, in orders that differ by less than the lag."""
    every = [f"{n:05d}" for n in range(keys)]
    own = []
    for _ in range(count):
        lost = data.draw(st.sets(st.sampled_from(every))) if every else set()
        shift = data.draw(st.lists(st.integers(0, LAG // 4), min_size=keys, max_size=keys))
        order = [key for _, key in sorted(zip((n + s for n, s in enumerate(shift)), every, strict=True))]
        own.append([key for key in order if key not in lost])
    found = outcomes(join(*own))
    there = set.intersection(*map(set, own))
    assert set(found) == set.union(*map(set, own))
    assert {key for key, kind in found.items() if not kind} == there


@pytest.mark.parametrize("first", [["a", "a", "b", "c"], ["b", "a", "a", "c"], ["b", "c", "a", "a"]])
@pytest.mark.parametrize("second", [["a", "b", "c"], ["c", "b", "a"]])
def test_a_key_that_comes_twice_in_one_modality(first: list[str], second: list[str]) -> None:
    for own in ((first, second), (second, first)):
        found = [(item.key, isinstance(item, Rejection)) for item in join(*own)]
        assert sorted(found) == [("a", False), ("a", True), ("b", False), ("c", False)]


@pytest.mark.parametrize("gap", [10, 70, 1000])
def test_gaps_of_any_length_in_sorted_keys(gap: int) -> None:
    every = [f"{n:05d}" for n in range(2000)]
    short = every[:100] + every[100 + gap :]
    for own in ((every, short), (short, every)):
        found = outcomes(join(*own))
        assert {key for key, kind in found.items() if not kind} == set(short) and len(found) == 2000


def test_orders_that_have_nothing_in_common_are_told() -> None:
    every = [f"{n:05d}" for n in range(500)]
    found = outcomes(join(every, every[::-1]))
    assert set(found) == set(every) and "MissingModality" in found.values()
