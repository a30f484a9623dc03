"""Parts of files in an object store: what comes are the bytes of what is read, once, by few requests."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.archive.keys import read_keys
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection, Wanted, Window
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.storage import BLOCK, CHUNK, Options
from tests.containers import major_tom_row, ssl4eo, write_major_tom, zip_store
from tests.faulty_proxy import Seen, Watched, every
from tests.recipes import geotiff, write_tar
from tests.s3 import S3, s3_server
from tests.test_archive_scene import ground, write

Items = list[RawSample | Rejection]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def read(
    url: Path | str, made: ArchiveConfig, storage: Options | None = None, only: list[Wanted] | None = None
) -> Items:
    return [
        item
        for root in list_archive(str(url), storage, made)
        for shard in root.shards
        for item in read_shard(root.folder, shard, made, only)
    ]


def same(found: Items, expected: Items) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, RawSample) and isinstance(other, RawSample)
        assert (one.key, one.window, one.position, one.data) == (other.key, other.window, other.position, other.data)
        assert one.images.keys() == other.images.keys()
        for name, image in one.images.items():
            np.testing.assert_array_equal(image.pixels, other.images[name].pixels)


def spans(seen: list[Seen]) -> list[tuple[int, int]]:
    """What was asked for, in order of its place."""
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", one.headers["range"]) for one in seen]
    return sorted((int(one[1]), int(one[2]) + 1) for one in found if one)


def put(s3: S3, path: Path) -> str:
    s3.client.upload_file(str(path), s3.bucket, f"{path.parent.name}/{path.name}")
    return f"{s3.url}/{path.parent.name}"


SCENES = {
    "COG": {"driver": "COG", "blocksize": 256, "compress": "deflate", "overviews": "none"},
    "band by band": {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band", "compress": "deflate"},
    "strips": {"blockysize": 4, "compress": "deflate"},
}


@pytest.mark.parametrize("stored", SCENES)
def test_each_block_of_a_scene_comes_once(tmp_path: Path, s3: S3, proxy: Watched, stored: str) -> None:
    path = write(tmp_path / f"scene {stored}" / "a.tif", ground(6, 1100, 1000), **SCENES[stored])
    made = ArchiveConfig(scene="file", tile=TileConfig(200, 150))
    url, size = put(s3, path), path.stat().st_size
    found = read(url, made, proxy.storage)
    same(found, read(path.parent, made))
    asked = spans(proxy.gets(".tif"))
    blocks = [span for span in asked if span[0] % BLOCK or (span[1] - span[0]) % BLOCK]  # all but the header
    assert all(first[1] <= second[0] for first, second in zip(blocks, blocks[1:], strict=False))
    assert sum(stop - start for start, stop in asked) < 1.05 * size > 5e6
    assert len(asked) <= {"COG": 10, "band by band": 40, "strips": 10}[stored]  # a row of blocks, of each plane


def test_a_window_costs_the_blocks_that_it_touches(tmp_path: Path, s3: S3, proxy: Watched) -> None:
    path = write(tmp_path / "window" / "a.tif", ground(6, 1100, 1000), **SCENES["COG"])
    made, wanted = (
        ArchiveConfig(scene="file", tile=TileConfig(200, 150)),
        [Wanted("a", None, Window(300, 300, 200, 200))],
    )
    same(read(put(s3, path), made, proxy.storage, wanted), read(path.parent, made, None, wanted))
    asked = spans(proxy.gets(".tif"))
    assert len(asked) <= 2  # the header, one block
    assert sum(stop - start for start, stop in asked) < BLOCK + path.stat().st_size / 10


@pytest.fixture(scope="module")
def major_tom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen columns of 100 kB or so a row, a row a row group."""
    rng = np.random.default_rng(0)
    rows = [major_tom_row(i) for i in range(8)]
    for row in rows:
        for name, cell in row.items():
            if isinstance(cell, bytes) and name.startswith("B"):
                row[name] = geotiff(rng.integers(0, 10_000, (1, 224, 224)).astype(np.uint16))
    return write_major_tom(tmp_path_factory.mktemp("parquet") / "images" / "part.parquet", rows)


def test_two_columns_of_a_parquet_cost_their_bytes(major_tom: Path, s3: S3, proxy: Watched) -> None:
    made = ArchiveConfig(members=["B02", "B8A"])
    found = read(put(s3, major_tom), made, proxy.storage)
    same(found, read(major_tom.parent, made))
    metadata = pq.read_metadata(major_tom)
    wanted = ("B02", "B8A", "cloud_mask", "product_id", "grid_cell", "product_datetime")
    cells = sum(
        metadata.row_group(group).column(i).total_compressed_size
        for group in range(metadata.num_row_groups)
        for i in range(metadata.num_columns)
        if metadata.schema.column(i).path in wanted
    )
    asked = spans(proxy.gets(".parquet"))
    assert sum(stop - start for start, stop in asked) < cells + BLOCK + metadata.serialized_size
    assert len(asked) <= 2 + 3 * metadata.num_row_groups  # the footer; of a row group both columns, and what is small


def test_wanted_rows_of_a_parquet_cost_their_row_groups(major_tom: Path, s3: S3, proxy: Watched) -> None:
    made, local = ArchiveConfig(members=["B02", "B8A"]), read(major_tom.parent, ArchiveConfig(members=["B02", "B8A"]))
    url = put(s3, major_tom)
    for wanted in (Wanted(local[5].key, (5, 0)), Wanted(local[5].key)):
        proxy.seen.clear()
        same(read(url, made, proxy.storage, [wanted]), local[5:6])
        assert sum(stop - start for start, stop in spans(proxy.gets(".parquet"))) < major_tom.stat().st_size / 15


@pytest.mark.parametrize("form", ["parquet", "zarr", "tar"])
def test_keys_cost_no_pixels(major_tom: Path, tmp_path: Path, s3: S3, proxy: Watched, form: str) -> None:
    path = tmp_path / f"keys {form}" / f"a.{'zarr.zip' if form == 'zarr' else form}"
    path.parent.mkdir()
    if form == "parquet":
        path.write_bytes(major_tom.read_bytes())
    elif form == "zarr":
        path.write_bytes(zip_store(ssl4eo("S2L2A", samples=24, times=2, size=96)))
    else:  # images beyond what a sequential reader asks for at once: they are skipped
        image = bytes(2 * CHUNK)
        write_tar(path, [member for i in range(3) for member in ((f"{i}.json", b"{}"), (f"{i}.tif", image))])
    local, remote = (
        [entry for root in list_archive(str(url), storage) for entry in read_keys(root.folder, root.shards[0], made)]
        for url, storage in ((path.parent, None), (put(s3, path), proxy.storage))
        for made in (ArchiveConfig(),)
    )
    assert local == remote and len(local) > 2
    assert sum(one.size for one in proxy.gets(path.suffix)) < path.stat().st_size * (0.8 if form == "tar" else 0.2)


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_chunks_of_a_zarr_come_once(tmp_path: Path, s3: S3, proxy: Watched, form: str) -> None:
    files = ssl4eo("S2L2A", samples=24, times=2, size=96)
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr" / "a.zarr.zip").write_bytes(zip_store(files))
    local = read(tmp_path / "zarr", ArchiveConfig())
    put(s3, tmp_path / "zarr" / "a.zarr.zip")
    for key, data in files.items():
        s3.client.put_object(Bucket=s3.bucket, Key=f"zarr in folder/a.zarr/{key}", Body=data)
    url = f"{s3.url}/{'zarr' if form == 'zip' else 'zarr in folder'}"
    same(read(url, ArchiveConfig(), proxy.storage), local)
    asked = proxy.gets(".zarr")
    if form == "zip":
        assert sum(one.size for one in asked) < 1.05 * len(zip_store(files)) > 2e6
        assert len(asked) < 10
    else:
        again = Counter(one.path for one in asked)
        assert set(again.values()) == {1} and len(again) <= len(files), again
    proxy.seen.clear()
    same(read(url, ArchiveConfig(), proxy.storage, [Wanted(local[9].key, (4, 1))]), local[9:10])
    assert sum(one.size for one in proxy.gets(".zarr")) < len(zip_store(files)) / 4


@pytest.mark.usefixtures("quick")
def test_faults_cost_requests_and_no_sample(tmp_path: Path, major_tom: Path, s3: S3, proxy: Watched) -> None:
    write(tmp_path / "faults" / "a.tif", ground(3, 600, 500), **SCENES["COG"])
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "a.zarr.zip").write_bytes(zip_store(ssl4eo("S2L2A", samples=4, times=2)))
    cut = ArchiveConfig(scene="file", tile=TileConfig(100))
    for path, made in (
        (tmp_path / "faults" / "a.tif", cut),
        (tmp_path / "zips" / "a.zarr.zip", ArchiveConfig()),
        (major_tom, ArchiveConfig(members=["B02"])),
    ):
        proxy.fault = every(3)
        same(read(put(s3, path), made, proxy.storage), read(path.parent, made))
        assert any(one.status == 503 for one in proxy.seen)
