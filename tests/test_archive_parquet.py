"""Parquet with images in its cells: every row is a sample or a rejection, and its pixels are what rasterio reads."""

import io
import json
import random
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds

from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection, Sample, Wanted
from curation.archive.settings import ArchiveConfig
from curation.errors import AccessError
from tests.archive_tools import read_all
from tests.containers import S2, major_tom_row, write_major_tom
from tests.recipes import encoded, geotiff
from tests.s3 import s3_server

ROWS = 6


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [major_tom_row(number) for number in range(ROWS)]


@pytest.fixture(scope="module")
def major_tom(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    return write_major_tom(tmp_path_factory.mktemp("major-tom") / "images" / "part_00001.parquet", rows)


def samples(items: list[RawSample | Rejection], **settings: Any) -> list[Sample]:
    return [decode(item, ArchiveConfig(**settings)) for item in items if isinstance(item, RawSample)]


def kinds(items: list[RawSample | Rejection]) -> list[str]:
    return [item.kind if isinstance(item, Rejection) else "" for item in items]


def picture(value: int = 0) -> bytes:
    return encoded(np.full((8, 8, 3), value, np.uint8), "PNG")


def write(path: Path, table: pa.Table, **how: Any) -> Path:
    pq.write_table(table, path, **how)
    return path


def test_a_row_of_major_tom_is_one_sample_of_all_bands(major_tom: Path, rows: list[dict[str, Any]]) -> None:
    items = read_all(major_tom.parent.parent)
    for number, (row, item) in enumerate(zip(rows, items, strict=True)):
        assert isinstance(item, RawSample)
        assert item.key == f"{row['grid_cell']}_{row['product_id']}"
        assert item.position == (number, 0)
        assert set(item.data) == {*S2, "cloud_mask"}
        assert item.data["cloud_mask"] == row["cloud_mask"]
        assert {member.name: member.size for member in item.members} == {name: len(row[name]) for name in item.data}
        (sample,) = samples([item])
        assert set(sample.bands) == set(S2)
        for band in ("B02", "B08"):
            with MemoryFile(row[band]) as file, file.open() as image:
                np.testing.assert_array_equal(sample.pixels[sample.bands.index(band)], image.read(1))
                expected = transform_bounds(image.crs, "EPSG:4326", *image.bounds, densify_pts=21)
                assert sample.place and sample.place.crs == str(image.crs)
                assert sample.place.transform == tuple(image.transform)[:6]
        assert sample.footprint == pytest.approx(expected, abs=1e-9)
        assert sample.time == datetime.fromisoformat(row["product_datetime"]).replace(tzinfo=UTC)
        assert sample.source_id == row["product_id"]
        assert sample.image.name in S2 and sample.image.offset is None


def test_coarse_bands_are_brought_to_the_finest_or_the_one_asked_for(major_tom: Path) -> None:
    fine, coarse = samples(read_all(major_tom))[0], samples(read_all(major_tom, grid="B11"), grid="B11")[0]
    assert fine.pixels.shape == (12, 66, 66) and coarse.pixels.shape == (12, 33, 33)
    nearest = samples(read_all(major_tom), resampling="nearest")[0]
    index = nearest.bands.index("B01")
    np.testing.assert_array_equal(nearest.pixels[index, ::6, ::6], nearest.pixels[index, 5::6, 5::6])


def test_members_are_columns_and_nothing_else_is_read(major_tom: Path) -> None:
    (item, *_) = read_all(major_tom, members=["B04", "B03", "B02"])
    assert isinstance(item, RawSample) and list(item.data) == ["B04", "B03", "B02", "cloud_mask"]
    assert samples([item], members=["B04", "B03", "B02"])[0].bands == ("B04", "B03", "B02")
    (wrong,) = read_all(major_tom, members=["B04", "product_id"])
    assert isinstance(wrong, Rejection) and wrong.kind == "WrongSchema" and "product_id (string)" in wrong.message


def test_images_of_hugging_face(tmp_path: Path) -> None:
    """A struct of bytes and path; labels are numbers whose names stand in the schema."""
    image = pa.array([{"bytes": picture(i), "path": f"{i}.png"} for i in range(50)])
    features = {"info": {"features": {"label": {"names": ["river", "town"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": image, "label": pa.array([i % 2 for i in range(50)])})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    write(tmp_path / "train-00000.parquet", table, row_group_size=20)
    items = read_all(tmp_path)
    assert [item.key for item in items] == [f"{i:09d}" for i in range(50)]
    assert [item.position for item in items if isinstance(item, RawSample)][19:21] == [(0, 19), (1, 0)]
    found = samples(items)
    assert [sample.label for sample in found[:3]] == ["river", "town", "river"]
    assert [int(sample.pixels[0, 0, 0]) for sample in found] == list(range(50))
    assert found[0].bands == ("red", "green", "blue")


def test_columns_say_what_sidecars_say(tmp_path: Path) -> None:
    """Whatever type they have: times of any unit, dates, decimals, categories, extension types, NaN for nothing."""
    uuid = pa.array([b"0123456789abcdef"], pa.binary(16))
    table = pa.table(
        {
            "sample_id": pa.array([17]),
            "tif": pa.array([geotiff(np.ones((2, 4, 4), np.uint16))], pa.large_binary()),
            "timestamp": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "Europe/Paris")),
            "cloud_cover": pa.array([Decimal("12.50")]),
            "label": pa.array(["field"]).dictionary_encode(),
            "license": pa.array([float("nan")]),
            "bbox": pa.array([[1.0, 2.0, 3.0, 4.0]]),
            "vector": pa.array([[0.0] * 8]),
            "uuid": pa.ExtensionArray.from_storage(pa.uuid(), uuid) if hasattr(pa, "uuid") else uuid,
        }
    )
    (item,) = read_all(write(tmp_path / "a.parquet", table))
    assert isinstance(item, RawSample) and item.key == "17" and "vector" not in item.said
    (sample,) = samples([item])
    assert sample.time == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert (sample.cloud_fraction, sample.label, sample.license) == (0.125, "field", None)
    assert sample.footprint == (1.0, 2.0, 3.0, 4.0)
    days = table.set_column(2, "day", pa.array([date(2024, 2, 29)]))
    (item,) = read_all(write(tmp_path / "a.parquet", days), fields={"time": "day"})
    assert samples([item], fields={"time": "day"})[0].time == datetime(2024, 2, 29, tzinfo=UTC)


def test_cells_and_keys_that_are_wrong_cost_their_row_alone(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b", "b", None, "c", "d"],
            "image": [None, picture(), picture(), picture(), b"", b"<html>"],
            "thumbnail": [picture()] * 6,
            "note": [b"\x00\x01"] * 6,
        }
    )
    items = read_all(write(tmp_path / "a.parquet", table))
    assert kinds(items) == ["MissingMember", "", "DuplicateKey", "BadName", "EmptyMember", ""]
    assert [item.key for item in items] == ["a", "b", "b", "000000003", "c", "d"]


def test_a_file_of_another_schema_is_one_rejection(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write_major_tom(tmp_path / "a.parquet", rows[:2])
    write(tmp_path / "b.parquet", pa.table({"embedding": [[1.0, 2.0]], "grid_cell": ["1U_1R"], "blob": [b"x"]}))
    items = []
    for shard in list_archive(str(tmp_path))[0].shards:
        items += list(read_shard(list_archive(str(tmp_path))[0].folder, shard, ArchiveConfig()))
    assert kinds(items) == ["", "", "WrongSchema"]
    assert isinstance(items[2], Rejection)
    assert all(name in items[2].message for name in ("embedding", "grid_cell (string)", "archive.members"))


def test_what_is_wanted_alone_is_read_alone(major_tom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = list_archive(str(major_tom))[0]
    everything = list(read_shard(root.folder, root.shards[0], ArchiveConfig()))
    read: list[int] = []
    plain = pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, *args: Any, **more: Any) -> Any:
        read.extend(more["row_groups"])
        return plain(self, *args, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    for wanted in (Wanted(everything[4].key, (4, 0)), Wanted(everything[4].key)):
        read.clear()
        (item,) = read_shard(root.folder, root.shards[0], ArchiveConfig(), [wanted])
        assert isinstance(item, RawSample) and isinstance(everything[4], RawSample)
        assert (item.key, item.data, item.position) == (everything[4].key, everything[4].data, (4, 0))
        assert set(read) == {0, 4}  # the first to see which columns hold images


def test_a_damaged_file_is_one_rejection(major_tom: Path, tmp_path: Path) -> None:
    data = major_tom.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    broken = data[:footer] + b"\xff" * 64 + data[footer + 64 :]
    for name, content in {"cut": data[:-500], "footer": broken, "none": b"hello"}.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
    items = read_all(tmp_path / "*.parquet")
    assert kinds(items) == ["DamagedShard"] * 3


def test_a_row_group_that_is_damaged_costs_its_rest(tmp_path: Path) -> None:
    table = pa.table({"image": [picture(i) for i in range(60)], "id": [str(i) for i in range(60)]})
    path = write(tmp_path / "a.parquet", table, row_group_size=20, compression="zstd", use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset + 40
    data[start : start + 200] = random.Random(0).randbytes(200)
    path.write_bytes(bytes(data))
    items = read_all(path)
    assert kinds(items) == [""] * 20 + ["DamagedShard"] + [""] * 20
    assert isinstance(items[20], Rejection) and "row group 1" in items[20].message and items[20].key == ""


def test_a_file_that_is_shorter_than_listed_is_no_data_error(major_tom: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.parquet"
    copy.write_bytes(major_tom.read_bytes())
    root = list_archive(str(copy))[0]
    copy.write_bytes(major_tom.read_bytes()[:-1000])
    with pytest.raises(AccessError, match="bytes came where the listing said"):
        list(read_shard(root.folder, root.shards[0], ArchiveConfig()))


def test_from_an_object_store(major_tom: Path, rows: list[dict[str, Any]]) -> None:
    with s3_server() as s3:
        s3.client.upload_file(str(major_tom), s3.bucket, "images/part_00001.parquet")
        root = list_archive(f"{s3.url}/images", s3.storage)[0]
        items = list(read_shard(root.folder, root.shards[0], ArchiveConfig()))
        local = read_all(major_tom)
        assert [item.data for item in items if isinstance(item, RawSample)] == [
            item.data for item in local if isinstance(item, RawSample)
        ]
        (one,) = read_shard(root.folder, root.shards[0], ArchiveConfig(), [Wanted(items[3].key, (3, 0))])
        assert isinstance(one, RawSample) and one.data["B02"] == rows[3]["B02"]
        s3.client.put_object(Bucket=s3.bucket, Key="images/part_00001.parquet", Body=major_tom.read_bytes()[:-100])
        with pytest.raises(AccessError):
            list(read_shard(root.folder, root.shards[0], ArchiveConfig()))


def test_the_recipe_is_what_rasterio_reads(rows: list[dict[str, Any]]) -> None:
    with rasterio.open(io.BytesIO(rows[0]["B11"])) as image:
        assert (image.height, image.res, str(image.crs)) == (33, (20.0, 20.0), "EPSG:32633")
