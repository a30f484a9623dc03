"""What a plan says before anything is paid for, against what reading then takes: samples, bytes, requests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.tables import open_filter, open_tables
from curation.archive.tiling import tiles
from curation.catalog.plan import plan
from curation.config import load_config
from tests.containers import major_tom_row, write_major_tom, write_ssl4eo, write_terramesh
from tests.faulty_proxy import watched
from tests.s3 import S3, s3_server
from tests.test_archive_scene import ground, scene_of_three_grids, write

SMALL = ("encoder.filters=4", "runtime.num_cpus=1")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def cogs(folder: Path) -> None:
    for i in range(3):
        more = {"driver": "COG", "blocksize": 256, "compress": "deflate", "overviews": "none"}
        write(folder / f"{i}.tif", ground(3, 700 + 100 * i, 800, seed=i), **more)


def wholes(folder: Path) -> None:
    for i in range(3):
        write(folder / f"{i}.jp2", ground(1, 500, 600, seed=i), driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")


def parquet(folder: Path) -> None:
    for part in range(3):
        write_major_tom(folder / f"part_{part}.parquet", [major_tom_row(6 * part + i) for i in range(6)])


def stores(folder: Path) -> None:
    write_ssl4eo(folder, ["S2L2A"], shards=2, samples=6, size=48)


def joined_stores(folder: Path) -> None:
    write_ssl4eo(folder, ["S2L2A", "S1GRD"], shards=2, samples=6)


def joined_tars(folder: Path) -> None:
    write_terramesh(folder, ["S2L2A", "S1RTC", "DEM"], shards=2, each=10, splits=["train"])


ARCHIVES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "scenes": (cogs, ("archive.scene=file", "archive.tile.size=100", "archive.tile.stride=60")),
    "scenes of several files": (scene_of_three_grids, ("archive.scene=folder", "archive.tile.size=32")),
    "JPEG 2000": (wholes, ("archive.scene=file", "archive.tile.size=100")),
    "Parquet, two columns": (parquet, ("archive.members=[B02,B03]",)),
    "Parquet, cut": (parquet, ("archive.members=[B02]", "archive.tile.size=32")),
    "Parquet": (parquet, ()),
    "Zarr": (stores, ()),
    "Zarr, cut": (stores, ("archive.tile.size=24",)),
    "joined Zarr": (joined_stores, ("archive.modalities=[S2L2A,S1GRD]",)),
    "joined tars": (joined_tars, ("archive.modalities=[S2L2A,S1RTC,DEM]",)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_plan_says_what_reading_takes(tmp_path: Path, s3: S3, name: str) -> None:
    make, options = ARCHIVES[name]
    make(tmp_path)
    prefix = name.replace(" ", "-")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            s3.client.upload_file(str(file), s3.bucket, f"{prefix}/{file.relative_to(tmp_path)}")
    with watched(s3) as proxy:
        config = load_config([f"archive.url={s3.url}/{prefix}", *SMALL, *options])
        roots = list_archive(config.archive.url, proxy.storage, config.archive)
        planned = plan(config, roots, 0)
        proxy.seen.clear()
        samples = 0
        for root in roots:
            for shard in root.shards:
                for raw in read_shard(root.folder, shard, config.archive):
                    assert isinstance(raw, RawSample)
                    tile = config.archive.tile
                    samples += sum(1 for _ in tiles(decode(raw, config.archive), tile.size, tile.stride))
        assert planned["samples_expected"] == pytest.approx(samples, rel=0.1)
        assert planned["bytes_to_read"] == pytest.approx(sum(one.size for one in proxy.gets()), rel=0.1)
        assert planned["requests"] == pytest.approx(len(proxy.seen), rel=0.1, abs=1)


@pytest.mark.parametrize("name", ["Parquet", "joined tars"])
def test_a_plan_counts_what_a_filter_lets_pass(tmp_path: Path, name: str) -> None:
    make, options = ARCHIVES[name]
    make(tmp_path)
    config = load_config([f"archive.url={tmp_path}", *SMALL, *options])
    roots = list_archive(config.archive.url, None, config.archive)
    keys = [
        raw.key
        for root in roots
        for shard in root.shards
        for raw in read_shard(root.folder, shard, config.archive)
        if isinstance(raw, RawSample)
    ]
    (tmp_path / "half.csv").write_text("id,x\n" + "".join(f"{key},{i % 2}\n" for i, key in enumerate(keys)))
    tables = open_tables([{"path": str(tmp_path / "half.csv"), "key": "id", "on": "key"}])
    whole, half = (plan(config, roots, 0, open_filter(tables, text)) for text in (None, "x == 1"))
    assert half["samples_expected"] == pytest.approx(whole["samples_expected"] / 2, abs=1)
    assert half["bytes_to_read"] == whole["bytes_to_read"]
