"""Zarr stores, zips, and zips in tars: the numbers are zarr's own, each chunk is read once, what is missing is told."""

import io
import itertools
import json
import math
import tarfile
import warnings
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from rasterio.warp import transform_bounds
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.storage import MemoryStore, ZipStore

from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection, Sample, Wanted
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.archive.tiling import tiles
from curation.archive.zarr.arrays import unzip_arrays
from curation.archive.zarr.files import FolderFiles, ZipFiles
from curation.archive.zarr.member import decode_zarr
from curation.errors import AccessError, BadSample
from tests.archive_tools import decoded, read_all
from tests.containers import (
    S2,
    UTM,
    optical,
    ssl4eo,
    store,
    terramesh_sample,
    write_ssl4eo,
    write_store,
    zip_store,
)
from tests.recipes import write_tar
from tests.s3 import s3_server


def samples(items: list[RawSample | Rejection], **settings: Any) -> list[Sample]:
    return [decode(item, ArchiveConfig(**settings)) for item in items if isinstance(item, RawSample)]


def kinds(items: list[RawSample | Rejection]) -> list[str]:
    return [item.kind if isinstance(item, Rejection) else "" for item in items]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of a store was read."""
    counted: Counter[str] = Counter()
    for kind in (FolderFiles, ZipFiles):

        def read(self: Any, key: str, start: int, stop: int, plain: Any = kind.read) -> bytes:
            counted[key] += 1
            return bytes(plain(self, key, start, stop))

        monkeypatch.setattr(kind, "read", read)
    return counted


def chunks(reads: Counter[str], name: str = "bands") -> Counter[str]:
    found = {
        key: n for key, n in reads.items() if key.startswith(f"{name}/") and not key.endswith((".json", "ay", "rs"))
    }
    return Counter(found)


# shards


def test_a_shard_of_ssl4eo_is_a_sample_a_place_and_time(tmp_path: Path, reads: Counter[str]) -> None:
    write_ssl4eo(tmp_path, ["S2L2A"], shards=1)
    items = read_all(tmp_path / "S2L2A")
    path = next(tmp_path.rglob("*.zip"))
    group = zarr.open_group(ZipStore(path, mode="r"), mode="r")
    bands: Any = group["bands"]
    assert [item.key for item in items] == [f"{n:07d}_t{t}" for n in range(6) for t in range(4)]
    assert set(chunks(reads).values()) == {1} and len(chunks(reads)) == 6
    for item, sample in zip(items, samples(items), strict=True):
        assert isinstance(item, RawSample) and item.position is not None
        n, t = item.position
        np.testing.assert_array_equal(sample.pixels, bands[n, t])
        assert sample.bands == S2 and sample.pixels.dtype == np.int16
        assert sample.time == datetime.fromtimestamp(int(group["time_"][n, t]), UTC)  # type: ignore[index,arg-type]
        assert sample.source_id == f"S2L2A_{n}_{t}"
        west, south = 300_000 + 9000 * n, 5_000_040 + 9000 * n - 240
        expected = transform_bounds(f"EPSG:{UTM}", "EPSG:4326", west, south, west + 240, south + 240, densify_pts=21)
        assert sample.footprint == pytest.approx(expected, abs=1e-9)
        mask: Any = group["cloud_mask"]
        np.testing.assert_array_equal(item.images["cloud_mask"].pixels[0], mask[n, t])


@pytest.mark.parametrize("version", [2, 3])
def test_stores_in_folders_of_both_formats(tmp_path: Path, version: int, reads: Counter[str]) -> None:
    """Format 3 with shards: the shard is the unit, and each is read once."""
    values = np.stack([optical(n, 32) for n in range(10)])
    how: dict[str, Any] = {"chunks": (2, 12, 32, 32)}
    if version == 3:
        how = {"chunks": (1, 12, 16, 32), "shards": (4, 12, 32, 32), "compressors": ZstdCodec()}
    arrays = {
        "bands": (values, ("sample", "band", "y", "x"), how),
        "band": (np.array([f"X{i}" for i in range(12)]), ("band",), {}),
        "label": (np.arange(10), ("sample",), {}),
    }
    write_store(tmp_path / "a" / "part.zarr", store(arrays, version))
    items = read_all(tmp_path)
    assert [item.key for item in items] == [f"{i:06d}" for i in range(10)]
    found = samples(items)
    for sample, expected in zip(found, values, strict=True):
        np.testing.assert_array_equal(sample.pixels, expected)
    assert [sample.label for sample in found] == [str(i) for i in range(10)]
    assert found[0].bands == tuple(f"X{i}" for i in range(12))
    assert len(chunks(reads)) == (5 if version == 2 else 3)
    assert version == 3 or set(chunks(reads).values()) == {1}


@pytest.mark.parametrize("axes", [("y", "x"), ("band", "y", "x"), ("y", "x", "band"), ("lat", "lon")])
def test_a_store_of_one_image(tmp_path: Path, axes: tuple[str, ...]) -> None:
    values = optical(3, 40)[:3] if "band" in axes else optical(3, 40)[0]
    stored = values.transpose(1, 2, 0) if axes[-1] == "band" else values
    arrays: dict[str, Any] = {"scene": (stored, axes, {"chunks": (16,) * stored.ndim})}
    if axes[0] == "lat":
        arrays["lat"] = (50 - 0.001 * (np.arange(40) + 0.5), ("lat",), {})
        arrays["lon"] = (7 + 0.001 * (np.arange(40) + 0.5), ("lon",), {})
    write_store(tmp_path / "one.zarr", store(arrays))
    (item,) = read_all(tmp_path)
    (sample,) = samples([item])
    assert item.key == "one"
    np.testing.assert_array_equal(sample.pixels, np.atleast_3d(values.T).T)
    if axes[0] == "lat":
        assert sample.footprint == pytest.approx((7, 49.96, 7.04, 50))


def test_keys_of_stores_without_ids(tmp_path: Path) -> None:
    tile = optical(1, 8)[:2]
    for name, shape, dims, expected in (
        ("series", (3,), ("time",), ["series_t0", "series_t1", "series_t2"]),
        ("alone", (1,), ("time",), ["alone"]),
        ("grid", (2, 2), ("row_of_tiles", "t"), ["000000_t0", "000000_t1", "000001_t0", "000001_t1"]),
        ("unnamed", (2,), ("",), ["000000", "000001"]),
    ):
        axes = (*dims, "band", "y", "x") if dims != ("",) else ("",) * 4
        files = store(
            {"bands": (np.broadcast_to(tile, (*shape, *tile.shape)), axes, {"chunks": (1,) * len(shape) + tile.shape})}
        )
        write_store(tmp_path / name / f"{name}.zarr", files)
        assert [item.key for item in read_all(tmp_path / name)] == expected


def scene(tmp_path: Path, **how: Any) -> Path:
    arrays: dict[str, Any] = {
        "bands": (
            np.tile(optical(3, 64)[:3], (1, 2, 2))[:, :110, :120],
            ("band", "y", "x"),
            {"chunks": (3, 16, 32)} | how,
        ),
        "x": (300_000 + 10 * (np.arange(120) + 0.5), ("x",), {}),
        "y": (5_000_000 - 10 * (np.arange(110) + 0.5), ("y",), {}),
        "spatial_ref": (np.array(0), (), {"crs_wkt": f"EPSG:{UTM}"}),
        "scl": (np.arange(110 * 120, dtype=np.uint16).reshape(110, 120), ("y", "x"), {"chunks": (16, 32)}),
    }
    return write_store(tmp_path / "scene.zarr", store(arrays))


def test_a_scene_is_cut_by_windows_and_each_chunk_is_read_once(tmp_path: Path, reads: Counter[str]) -> None:
    path = scene(tmp_path)
    tile = TileConfig(40, 20)
    items = read_all(path, tile=tile)
    assert set(chunks(reads).values()) == {1} and len(chunks(reads)) == 7 * 4
    (whole,) = samples(read_all(path))
    expected = list(tiles(whole, 40, 20))
    found = samples(items, tile=tile)
    assert [sample.key for sample in found] == [sample.key for sample in expected]
    for sample, other, item in zip(found, expected, items, strict=True):
        np.testing.assert_array_equal(sample.pixels, other.pixels)
        assert (sample.window, sample.place, sample.footprint) == (other.window, other.place, other.footprint)
        assert isinstance(item, RawSample) and sample.window
        np.testing.assert_array_equal(
            item.images["scl"].pixels[0, 0], (sample.window.row * 120 + sample.window.column + np.arange(40))
        )
    root = list_archive(str(path))[0]
    reads.clear()
    wanted = [Wanted("scene", (), found[7].window)]
    (one,) = read_shard(root.folder, root.shards[0], ArchiveConfig(tile=tile), wanted)
    np.testing.assert_array_equal(samples([one])[0].pixels, found[7].pixels)
    assert len(chunks(reads)) < 28


def test_only_the_chunks_of_what_is_wanted_are_read(tmp_path: Path, reads: Counter[str]) -> None:
    write_ssl4eo(tmp_path, ["S2L2A"], shards=1, samples=8)
    everything = read_all(tmp_path)
    root = list_archive(str(tmp_path))[0]
    for wanted in (Wanted(everything[9].key, (2, 1)), Wanted(everything[9].key)):
        reads.clear()
        (item,) = read_shard(root.folder, root.shards[0], ArchiveConfig(), [wanted])
        assert list(chunks(reads)) == ["bands/2.0.0.0.0"]
        np.testing.assert_array_equal(samples([item])[0].pixels, samples([everything[9]])[0].pixels)


def test_a_missing_chunk_is_told(tmp_path: Path) -> None:
    """Zarr would fill it; we do only where what fills it says that there are no data."""
    files = ssl4eo("S2L2A", samples=4)
    lost = {key: data for key, data in files.items() if key != "bands/2.0.0.0.0"}
    write_store(tmp_path / "a.zarr", lost)
    items = read_all(tmp_path)
    assert kinds(items) == [""] * 8 + ["MissingChunk"] * 4 + [""] * 4
    assert isinstance(items[8], Rejection) and items[8].key == "0000002_t0" and "archive.nodata=0" in items[8].message
    empty = samples(read_all(tmp_path, nodata=0)[:8], nodata=0)
    assert len(empty) == 8
    with pytest.raises(BadSample, match="NoValidPixels"):
        samples(read_all(tmp_path, nodata=0)[8:9], nodata=0)
    radar = ssl4eo("S1GRD", samples=4, fill_value=float("nan"))
    del radar["bands/1.0.0.0.0"]
    write_store(tmp_path / "b" / "b.zarr", radar)
    assert kinds(read_all(tmp_path / "b")) == [""] * 16  # and decoding finds no valid pixel


def test_a_missing_chunk_of_a_scene_costs_the_tiles_that_it_touches(tmp_path: Path) -> None:
    path = scene(tmp_path)
    (path / "bands" / "0.3.1").unlink()
    damaged = path / "bands" / "0.0.0"
    damaged.write_bytes(b"\0" * 40)
    items = read_all(path, tile=TileConfig(20))
    spoilt = {item.key: item.kind for item in items if isinstance(item, Rejection)}
    touched = [f"scene_r{row:05d}_c{column:05d}" for row in (40, 60) for column in (20, 40, 60)]
    beginning = [f"scene_r00000_c{column:05d}" for column in (0, 20)]
    assert spoilt == dict.fromkeys(touched, "MissingChunk") | dict.fromkeys(beginning, "BadImage")
    assert len(items) == 6 * 6


def test_damage_costs_what_it_touches(tmp_path: Path) -> None:
    files = ssl4eo("S2L2A", samples=3)
    files["bands/1.0.0.0.0"] = files["bands/1.0.0.0.0"][:100]
    write_store(tmp_path / "a.zarr", files)
    assert kinds(read_all(tmp_path)) == [""] * 4 + ["BadImage"] * 4 + [""] * 4
    whole = zip_store(files)
    for name, content in {"cut": whole[:-100], "none": b"hello", "empty": zip_store({})}.items():
        (tmp_path / f"{name}.zarr.zip").write_bytes(content)
        (item,) = read_all(tmp_path / f"{name}.zarr.zip")
        assert isinstance(item, Rejection)
        assert item.kind == {"empty": "NoImage"}.get(name, "DamagedShard")


def test_a_store_that_changed_is_no_data_error(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", ssl4eo("S2L2A", samples=3))
    root = list_archive(str(tmp_path))[0]
    path = tmp_path / "a.zarr" / "bands" / "1.0.0.0.0"
    content = path.read_bytes()
    for change in (lambda: path.write_bytes(content[:50]), path.unlink, lambda: path.write_bytes(content[::-1])):
        change()
        with pytest.raises(AccessError):
            list(read_shard(root.folder, root.shards[0], ArchiveConfig()))


def test_pickles_are_refused(tmp_path: Path) -> None:
    files = ssl4eo("S2L2A", samples=2)
    metadata = json.loads(files["sample/.zarray"])
    metadata |= {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "fill_value": None}
    files["sample/.zarray"] = json.dumps(metadata).encode()
    write_store(tmp_path / "a.zarr", files)
    (item,) = read_all(tmp_path)
    assert isinstance(item, Rejection) and item.kind == "UnsafeFile"
    with pytest.raises(BadSample, match="UnsafeFile"):
        decode_zarr(zip_store(files), 1 << 20)


def test_two_samples_of_one_id(tmp_path: Path) -> None:
    values = np.stack([optical(n, 16) for n in range(3)])
    names = np.array(["a", "b", "a"])
    arrays = {
        "bands": (values, ("sample", "band", "y", "x"), {"chunks": (2, 12, 16, 16)}),
        "sample_id": (names, ("sample",), {}),
    }
    write_store(tmp_path / "a.zarr", store(arrays))
    items = read_all(tmp_path)
    assert kinds(items) == ["", "", "DuplicateKey"] and [item.key for item in items] == ["a", "b", "a"]


def test_from_an_object_store(tmp_path: Path) -> None:
    files = ssl4eo("S2L2A", samples=3)
    write_store(tmp_path / "a.zarr", files)
    local = samples(read_all(tmp_path))
    with s3_server() as s3:
        s3.client.put_object(Bucket=s3.bucket, Key="zip/a.zarr.zip", Body=zip_store(files))
        for key, data in files.items():
            s3.client.put_object(Bucket=s3.bucket, Key=f"folder/a.zarr/{key}", Body=data)
        for name in ("zip", "folder", "folder/a.zarr"):
            root = list_archive(f"{s3.url}/{name}", s3.storage)[0]
            found = samples(list(read_shard(root.folder, root.shards[0], ArchiveConfig())))
            for one, other in zip(found, local, strict=True):
                assert one.key == other.key
                np.testing.assert_array_equal(one.pixels, other.pixels)
            (item,) = read_shard(root.folder, root.shards[0], ArchiveConfig(), [Wanted("0000001_t2", (1, 2))])
            np.testing.assert_array_equal(samples([item])[0].pixels, local[6].pixels)


# zips in tars


def patch(**how: Any) -> dict[str, bytes]:
    values = optical(5, 30)[:4].astype(np.int16)
    return store({"bands": (values, ("band", "y", "x"), {"chunks": (2, 16, 30)} | how)})


def by_zarr(files: Mapping[str, bytes]) -> NDArray[Any]:
    buffers = {key: zarr.core.buffer.cpu.Buffer.from_bytes(data) for key, data in files.items()}
    array: Any = zarr.open_group(MemoryStore(buffers), mode="r")["bands"]  # type: ignore[arg-type]
    return np.asarray(array[...])


@pytest.mark.parametrize(
    "codec",
    [
        None,
        *(numcodecs.Blosc(name, 5, shuffle) for name, shuffle in itertools.product(("lz4", "zstd", "zlib"), (0, 1, 2))),
        numcodecs.Zstd(3),
        numcodecs.Zlib(),
        numcodecs.GZip(),
        numcodecs.BZ2(),
        numcodecs.LZMA(),
        numcodecs.LZ4(),
    ],
    ids=str,
)
def test_every_codec_gives_what_zarr_reads(codec: Any) -> None:
    files = patch(compressors=codec)
    np.testing.assert_array_equal(decode_zarr(zip_store(files), 1 << 20).pixels, by_zarr(files))


def test_filters_orders_and_separators() -> None:
    filtered = patch(filters=[numcodecs.Delta("<i2")])
    np.testing.assert_array_equal(decode_zarr(zip_store(filtered), 1 << 20).pixels, by_zarr(filtered))
    files = patch()
    metadata = json.loads(files["bands/.zarray"])
    turned = {**files, "bands/.zarray": json.dumps(metadata | {"order": "F"}).encode()}
    np.testing.assert_array_equal(decode_zarr(zip_store(turned), 1 << 20).pixels, by_zarr(turned))
    nested = {key.replace("0.", "0/").replace("1.", "1/"): data for key, data in files.items()}
    nested["bands/.zarray"] = json.dumps(metadata | {"dimension_separator": "/"}).encode()
    np.testing.assert_array_equal(decode_zarr(zip_store(nested), 1 << 20).pixels, by_zarr(files))
    prefixed = {f"tile.zarr/{key}": data for key, data in files.items()}
    np.testing.assert_array_equal(decode_zarr(zip_store(prefixed), 1 << 20).pixels, by_zarr(files))


@pytest.mark.parametrize(
    ("values", "how"),
    [
        (np.array(["ab", "c", "", "d\u00e9"]), {}),
        (np.array(["ab", "c", "", "d\u00e9"], np.dtypes.StringDType()), {}),
        (np.array([b"ab", b"c", b"", b"def"]), {"fill_value": b"xy"}),
        (np.array([0, 1, -5, 7], "<M8[ns]"), {"fill_value": 5}),
        (np.array([0, 1, -5, 7], "<i8"), {"filters": [numcodecs.Delta("<i8")], "fill_value": -9999}),
        (np.array([0, 1, 5, 7], ">f4"), {"fill_value": float("-inf")}),
        (np.array([True, False, True, True]), {"fill_value": True}),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_every_dtype_and_fill_value_gives_what_zarr_reads(values: NDArray[Any], how: dict[str, Any]) -> None:
    """The second chunk is not there, the third is cut by the edge."""
    long = np.tile(values, 3)[:11]
    files = store({"bands": (long, ("n",), {"chunks": (4,)} | how)})
    del files["bands/1"]
    array = unzip_arrays(zip_store(files), 1 << 20)["bands"]
    expected = by_zarr(files)
    assert array.dtype in (expected.dtype, object) and array.missing(array.everything) == ["bands/1"]
    np.testing.assert_array_equal(array.read(array.everything), expected)
    np.testing.assert_array_equal(array.read((slice(3, 9),)), expected[3:9])


def test_zstd_frames_that_do_not_say_their_size() -> None:
    """As TensorStore writes them; here as a block that is stored raw (RFC 8878, 3.1.1)."""
    files = patch(compressors=numcodecs.Zstd())
    raw = np.arange(2 * 16 * 30, dtype=np.int16).tobytes()
    header = b"\x28\xb5\x2f\xfd\x00\x58"  # no size of the content, a window of 2 MiB
    files["bands/0.0.0"] = header + (1 | len(raw) << 3).to_bytes(3, "little") + raw
    pixels = decode_zarr(zip_store(files), 1 << 20).pixels
    np.testing.assert_array_equal(pixels, by_zarr(files))
    assert pixels[1, 15, 29] == 2 * 16 * 30 - 1
    run = (2 | (1 << 17) << 3).to_bytes(3, "little") + b"\0"  # 128 KiB of one byte, by four
    files["bands/0.0.0"] = header + 4 * run + (1).to_bytes(3, "little")
    with pytest.raises(BadSample):
        decode_zarr(zip_store(files), 1 << 20)


def test_format_3_in_a_tar() -> None:
    values = optical(5, 30)
    arrays = {"bands": (values, ("band", "y", "x"), {"chunks": (12, 15, 15), "compressors": BloscCodec()})}
    np.testing.assert_array_equal(decode_zarr(zip_store(store(arrays, 3)), 1 << 20).pixels, values)


def test_a_patch_of_terramesh() -> None:
    """Its name says nothing, its bytes do."""
    sample = decoded(zarr_zip=terramesh_sample("S2L2A", 9))
    np.testing.assert_array_equal(sample.pixels, optical(9, 32).astype(np.int16))
    assert sample.bands == S2 and sample.time == datetime(2020, 1, 12, 10, 12, 31, tzinfo=UTC)
    assert sample.place and sample.place.crs == f"EPSG:{UTM}" and sample.footprint
    radar = decoded(zarr_zip=terramesh_sample("S1GRD", 9))
    assert radar.bands == ("vv", "vh") and radar.pixels.dtype == np.float32  # stored as float16


def test_a_member_of_several_times_is_as_many_samples(tmp_path: Path) -> None:
    members = [("a.zarr.zip", terramesh_sample("S2L2A", 1, times=3)), ("b.zarr.zip", terramesh_sample("S2L2A", 2))]
    write_tar(tmp_path / "a.tar", members)
    items = read_all(tmp_path)
    assert [item.key for item in items] == ["a_t0", "a_t1", "a_t2", "b"]
    found = samples(items)
    np.testing.assert_array_equal(found[1].pixels, optical(101, 32).astype(np.int16))
    assert [sample.time.month for sample in found[:3] if sample.time] == [1, 4, 7]
    root = list_archive(str(tmp_path))[0]
    (one,) = read_shard(root.folder, root.shards[0], ArchiveConfig(), [Wanted("a_t2", (2,))])
    np.testing.assert_array_equal(samples([one])[0].pixels, found[2].pixels)


@pytest.mark.parametrize(
    "codec", [numcodecs.Zlib(), numcodecs.Zstd(), numcodecs.Blosc("zstd"), numcodecs.LZ4()], ids=str
)
def test_bombs_are_refused_before_they_grow(codec: Any) -> None:
    files = patch(compressors=codec)
    files["bands/0.0.0"] = codec.encode(np.zeros(1 << 24, np.uint8))
    with pytest.raises(BadSample):
        decode_zarr(zip_store(files), 1 << 20)
    huge = json.loads(files["bands/.zarray"]) | {"shape": [4, 1 << 20, 1 << 20]}
    with pytest.raises(BadSample, match="TooManyPixels"):
        decode_zarr(zip_store({**files, "bands/.zarray": json.dumps(huge).encode()}), 1 << 20)
    chunk = json.loads(files["bands/.zarray"]) | {"chunks": [1 << 10, 1 << 10, 1 << 10]}
    with pytest.raises(BadSample, match="TooManyPixels"):
        decode_zarr(zip_store({**files, "bands/.zarray": json.dumps(chunk).encode()}), 1 << 20)


def test_damaged_members_are_bad_samples_whatever_the_damage() -> None:
    """Bytes flipped, cut, overwritten: an image or a reason, never another error."""
    whole = terramesh_sample("S2L2A", 4)
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for i in range(150):
        data = bytearray(whole)
        start = int(rng.integers(len(data)))
        if i % 3 == 0:
            data = data[:start]
        else:
            data[start : start + 4 * (i % 3)] = rng.bytes(4 * (i % 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                decoded(zarr_zip=bytes(data))
                outcomes["image"] += 1
            except BadSample as error:
                outcomes[error.kind] += 1
    assert outcomes["image"] and outcomes["TruncatedImage"] + outcomes["BadImage"] > 50


def test_what_is_no_image_is_told() -> None:
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w"):
        pass
    for files, kind in (
        ({"readme.txt": b"hello"}, "NoImage"),
        (store({"table": (np.zeros((3,)), ("n",), {})}), "NoImage"),
        (store({"b": (np.zeros((2, 3, 4, 5)), ("time", "band", "y", "x"), {"chunks": (1, 3, 4, 5)})}), "SeveralImages"),
    ):
        with pytest.raises(BadSample, match=kind):
            decode_zarr(zip_store(files), 1 << 20)
    assert math.prod(unzip_arrays(zip_store(patch()), 1 << 20)["bands"].shape) == 4 * 30 * 30


def test_a_chunk_that_a_member_lacks(tmp_path: Path) -> None:
    files = patch()
    del files["bands/0.1.0"]
    with pytest.raises(BadSample, match="MissingChunk"):
        decoded(zarr_zip=zip_store(files))
    sample = decoded({"nodata": 0}, zarr_zip=zip_store(files))
    assert sample.mask[:16].all() and not sample.mask[16:].any()
