"""Scenes cut into tiles by windowed reads, against rasterio's windows of the same files."""

import math
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow
from pyproj import Transformer
from rasterio.transform import Affine, from_origin

from curation.archive import blocks
from curation.archive.decode import conform, decode
from curation.archive.grid import Span, resample, resample_part
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection, Sample, Wanted, Window
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.errors import BadSample, RequestError
from curation.storage import Folder

UTM33 = from_origin(500_000, 5_100_000, 10, 10)


def ground(bands: int, height: int, width: int, dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    """Smooth pixels with some noise, above 0."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    wave = np.stack([np.sin(x / (9 + i)) + np.cos(y / (7 + i)) for i in range(bands)]) + 3
    scale = 20 if dtype == "uint8" else 1000
    return (wave * scale + rng.integers(0, scale // 5, wave.shape)).astype(dtype)


def write(path: Path, pixels: NDArray[Any], names: Any = (), mask: Any = None, **profile: Any) -> Path:
    """A raster as GDAL writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    about = {"driver": "GTiff", "crs": "EPSG:32633", "transform": UTM33, "dtype": pixels.dtype.name, **profile}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", count=count, height=height, width=width, **about) as file,
    ):
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)
        for i, name in enumerate(names):
            file.set_band_description(i + 1, name)
    return path


def config(size: int | None, stride: int | None = None, **more: Any) -> ArchiveConfig:
    return ArchiveConfig(**{"scene": "file", **more}, tile=TileConfig(size, stride))


def items(url: Path | str, made: ArchiveConfig) -> list[RawSample | Rejection]:
    """What comes out of every shard; numbers run from 0 in each."""
    found = []
    for root in list_archive(str(url), settings=made):
        for shard in root.shards:
            own = list(read_shard(root.folder, shard, made))
            assert [item.index for item in own] == list(range(len(own)))
            found += own
    return found


def tiles(url: Path, made: ArchiveConfig) -> list[Sample]:
    """All tiles of an archive with a valid pixel; there are no rejections."""
    found = []
    for raw in items(url, made):
        assert isinstance(raw, RawSample), raw
        try:
            found.append(decode(raw, made))
        except BadSample as error:
            assert error.kind == "NoValidPixels"
    return found


def rejected(url: Path, made: ArchiveConfig) -> list[Rejection]:
    return [item for item in items(url, made) if isinstance(item, Rejection)]


# every way of storing pixels

TILED = {"tiled": True, "blockxsize": 64, "blockysize": 48}
STORED = {
    "strips": {"blockysize": 16},
    "one strip": {"blockysize": 4096, "compress": "deflate"},
    "deflate strips band by band": {"blockysize": 8, "interleave": "band", "compress": "deflate"},
    "tiles": TILED,
    "big-endian strips": {"blockysize": 8, "endianness": "big", "interleave": "band", "compress": "deflate"},
    "band by band": {**TILED, "interleave": "band", "compress": "deflate"},
    "strips band by band": {"interleave": "band", "compress": "lzw", "predictor": 2},
    "chunky deflate, predicted": {**TILED, "interleave": "pixel", "compress": "deflate", "predictor": 2},
    "zstd": {**TILED, "compress": "zstd", "predictor": 2, "interleave": "pixel"},
    "packbits": {"compress": "packbits"},
    "lzma": {**TILED, "compress": "lzma"},
    "LERC": {**TILED, "compress": "lerc", "max_z_error": 0},
    "LERC in zstd": {**TILED, "compress": "lerc_zstd", "max_z_error": 0},
    "BigTIFF": {**TILED, "bigtiff": "yes", "compress": "deflate"},
    "big-endian": {**TILED, "endianness": "big", "compress": "deflate", "predictor": 2},
    "COG": {"driver": "COG", "blocksize": 64, "compress": "deflate", "predictor": "yes", "overviews": "auto"},
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", ["uint16", "float32", "uint8", "int16"])
def test_tiles_are_rasterio_windows(tmp_path: Path, stored: str, dtype: str) -> None:
    options: dict[str, Any] = dict(STORED[stored])
    if dtype == "float32" and options.get("predictor") == 2:
        options["predictor"] = 3
    pixels = ground(5, 150, 205, dtype)
    pixels[:, 60:100, 20:90] = 0
    path = write(tmp_path / "a" / "scene.tif", pixels, "ABCDE", nodata=0, **options)
    found = tiles(tmp_path / "a", config(64, 40))
    assert len(found) == 15 and {tile.bands for tile in found} == {tuple("ABCDE")}
    with rasterio.open(path) as file:
        for tile in found:
            at = tile.window
            assert at is not None and tile.key == "scene" + at.suffix
            window = rasterio.windows.Window(at.column, at.row, at.width, at.height)
            np.testing.assert_array_equal(tile.pixels, file.read(window=window))
            assert tile.pixels.dtype == dtype and tile.pixels.flags.owndata
            np.testing.assert_array_equal(tile.mask, file.dataset_mask(window=window) > 0)
            assert tile.place is not None
            assert tile.place.transform == pytest.approx(tuple(file.window_transform(window))[:6])
    assert min(tile.mask.mean() for tile in found) < 1  # some cross nodata


@pytest.mark.parametrize(
    "bands, options",
    [(3, {"photometric": "ycbcr"}), (3, {"interleave": "band"}), (1, {}), (3, {"jpeg_quality": 90})],
)
def test_jpeg_in_tiff(tmp_path: Path, bands: int, options: dict[str, Any]) -> None:
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "jpeg"}
    path = write(tmp_path / "a" / "scene.tif", ground(bands, 100, 130, "uint8"), **tiled, **options)
    with rasterio.open(path) as file:
        whole = file.read().astype(int)
    for tile in tiles(tmp_path / "a", config(64)):
        at = tile.window
        assert at is not None
        there = whole[:, at.row : at.row + at.height, at.column : at.column + at.width]
        assert np.abs(there - tile.pixels).max() <= 6  # two JPEG libraries differ in the last bits


def test_lossless_webp(tmp_path: Path) -> None:
    pixels = ground(3, 100, 130, "uint8")
    write(tmp_path / "a" / "scene.tif", pixels, **TILED | {"blockysize": 64}, compress="webp", webp_lossless=True)
    for tile in tiles(tmp_path / "a", config(64)):
        at = tile.window
        assert at is not None
        np.testing.assert_array_equal(
            tile.pixels, pixels[:, at.row : at.row + at.height, at.column : at.column + at.width]
        )


def test_mask_pages_and_alpha_are_masks(tmp_path: Path) -> None:
    pixels = ground(4, 100, 130, "uint8")
    pixels[3] = 255
    pixels[3, :50, :40] = 0
    mask = np.full((100, 130), 255, np.uint8)
    mask[30:, 100:] = 0
    write(tmp_path / "alpha" / "scene.tif", pixels, photometric="rgb", alpha="yes", **TILED)
    write(tmp_path / "page" / "scene.tif", pixels[:3], mask=mask, **TILED)
    write(tmp_path / "cog" / "scene.tif", pixels[:3], mask=mask, driver="COG", blocksize=64)
    for name in ("alpha", "page", "cog"):
        expected = pixels[3] > 0 if name == "alpha" else mask > 0
        found = tiles(tmp_path / name, config(50))
        assert {tile.pixels.shape[0] for tile in found} == {3}
        shown = np.zeros_like(expected)
        for tile in found:
            at = tile.window
            assert at is not None
            shown[at.row : at.row + at.height, at.column : at.column + at.width] |= tile.mask
        np.testing.assert_array_equal(shown, expected)


def test_jpeg_2000_is_cut_from_the_whole(tmp_path: Path) -> None:
    pixels = ground(1, 100, 130)
    write(tmp_path / "a" / "T33_B02.jp2", pixels, driver="JP2OpenJPEG", quality=100, reversible="yes")
    write(tmp_path / "a" / "T33_B03.jp2", pixels + 1, driver="JP2OpenJPEG", quality=100, reversible="yes")
    found = tiles(tmp_path / "a", config(50, scene="folder"))
    assert [tile.bands for tile in found] == [("B02", "B03")] * 6
    for tile in found:
        at = tile.window
        assert at is not None and tile.place is not None
        there = pixels[0, at.row : at.row + 50, at.column : at.column + 50]
        np.testing.assert_array_equal(tile.pixels, [there, there + 1])
        assert tile.place.crs == "EPSG:32633"
        assert tile.place.transform[2:6:3] == (500_000 + 10 * at.column, 5_100_000 - 10 * at.row)


# what is read


def test_each_block_is_read_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "a" / "scene.tif", ground(3, 1000, 300), tiled=True, blockxsize=64, blockysize=64, compress="deflate"
    )
    fetched: list[tuple[int, int]] = []
    decoded: Counter[int] = Counter()
    plain = Folder.read_ranges

    def read_ranges(self: Folder, path: str, ranges: Any, *more: Any) -> list[bytes]:
        fetched.extend(ranges)
        return plain(self, path, ranges, *more)

    monkeypatch.setattr(Folder, "read_ranges", read_ranges)
    before = blocks._Layer.__init__

    def counted(self: Any, *arguments: Any) -> None:
        before(self, *arguments)
        decoder = self.decoder

        def decode(data: bytes, index: int, **more: Any) -> Any:
            decoded[index] += 1
            return decoder(data, index, **more)

        self.decoder = decode

    monkeypatch.setattr(blocks._Layer, "__init__", counted)
    assert len(items(tmp_path / "a", config(100, 25))) == 37 * 9
    assert set(decoded.values()) == {1} and len(decoded) == 16 * 5
    header = [span for span in fetched if span[0] % blocks.PIECE == 0 and span[1] - span[0] == blocks.PIECE]
    rest = sorted(span for span in fetched if span not in header)
    assert all(first[1] <= second[0] for first, second in zip(rest, rest[1:], strict=False))
    assert sum(stop - start for start, stop in rest) < path.stat().st_size
    assert len(header) <= 2  # its beginning, and where the tags end


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    def peak(height: int) -> int:
        folder = tmp_path / str(height)
        write(folder / "scene.tif", ground(4, height, 512), **TILED | {"blockysize": 64}, compress="deflate")
        made = config(64, 32)
        (root,) = list_archive(str(folder), settings=made)
        tracemalloc.start()
        for raw in read_shard(root.folder, root.shards[0], made):
            assert isinstance(raw, RawSample)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(256)  # what is loaded once
    assert peak(2560) < 1.25 * peak(256)


def test_only_some_tiles_are_read(tmp_path: Path) -> None:
    pixels = ground(2, 400, 400)
    path = write(tmp_path / "a" / "scene.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
    made = config(50)
    (root,) = list_archive(str(tmp_path / "a"), settings=made)
    read: list[int] = []

    class Counting(Folder):
        def read_ranges(self, path: str, ranges: Any, *more: Any) -> list[bytes]:
            read.extend(stop - start for start, stop in ranges)
            return super().read_ranges(path, ranges, *more)

    wanted = [Window(300, 350, 50, 50), Window(0, 50, 50, 50), Window(0, 100, 50, 50)]
    found = list(
        read_shard(Counting(root.folder.url), root.shards[0], made, [Wanted("scene", None, w) for w in wanted])
    )
    assert [raw.window for raw in found if isinstance(raw, RawSample)] == [wanted[1], wanted[2], wanted[0]]
    for raw in found:
        assert isinstance(raw, RawSample) and raw.window is not None
        (image,) = raw.images.values()
        at = raw.window
        np.testing.assert_array_equal(image.pixels, pixels[:, at.row : at.row + 50, at.column : at.column + 50])
    assert 0 < sum(read) < path.stat().st_size / 2


def test_a_remote_scene_is_read_by_ranges(tmp_path: Path) -> None:
    scene_of_three_grids(tmp_path / "a")
    remote = fsspec.filesystem("memory")
    for file in (tmp_path / "a").iterdir():
        remote.pipe_file(f"/bucket/a/{file.name}", file.read_bytes())
    made = config(32, scene="folder")
    for here, there in zip(items(tmp_path / "a", made), items("memory://bucket/a", made), strict=True):
        assert isinstance(here, RawSample) and isinstance(there, RawSample) and here.window == there.window
        for name, image in here.images.items():
            np.testing.assert_array_equal(image.pixels, there.images[name].pixels)


def test_what_was_never_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "scene.tif"
    path.parent.mkdir()
    about = {"driver": "GTiff", "dtype": "uint16", "count": 2, "height": 256, "width": 256, "transform": UTM33}
    with rasterio.open(path, "w", crs="EPSG:32633", sparse_ok=True, **TILED | {"blockysize": 64}, **about) as file:
        file.write(ground(2, 64, 64), window=rasterio.windows.Window(64, 64, 64, 64))
    raws = items(tmp_path / "a", config(64))
    assert len(raws) == 16
    (tile,) = tiles(tmp_path / "a", config(64))
    assert tile.window == Window(64, 64, 64, 64) and tile.mask.all()
    assert sorted(tile.mask.mean() for tile in tiles(tmp_path / "a", config(96, 80))) == pytest.approx(
        [32 * 32 / 96**2, 32 * 48 / 96**2, 32 * 48 / 96**2, 48 * 48 / 96**2]
    )


# bands of several resolutions


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_part_is_the_same_as_the_whole_resampled_and_cut(data: st.DataObject) -> None:
    size = st.integers(1, 40)
    have, want = (data.draw(size), data.draw(size)), (data.draw(size), data.draw(size))
    method = data.draw(st.sampled_from(["nearest", "bilinear", "cubic"]))
    dtype = data.draw(st.sampled_from(["uint16", "float32", "int16"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    pixels = rng.integers(0, 9000, (2, *have)).astype(dtype)
    mask = rng.random(have) < data.draw(st.sampled_from([0.5, 0.97, 1]))
    whole, valid = resample(pixels, mask, want, method)
    spans, parts = [], []
    for before, after in zip(have, want, strict=True):
        start = data.draw(st.integers(0, after - 1))
        stop = data.draw(st.integers(start + 1, after))
        spans.append(Span(before, after, start, stop))
        parts.append(slice(*spans[-1].source(method)))
    inside = slice(spans[0].start, spans[0].stop), slice(spans[1].start, spans[1].stop)
    made, there = resample_part(pixels[:, *parts], mask[*parts], spans[0], spans[1], method)
    np.testing.assert_array_equal(made, whole[:, *inside])
    np.testing.assert_array_equal(there, valid[inside])


def test_resampling_against_references() -> None:
    pixels = ground(1, 60, 48, "float32")
    every = np.ones((60, 48), bool)
    area, _ = resample(pixels, every, (10, 12), "bilinear")
    np.testing.assert_allclose(area[0], pixels[0].reshape(10, 6, 12, 4).mean(axis=(1, 3)), rtol=1e-5)
    near, _ = resample(pixels, every, (120, 144), "nearest")
    np.testing.assert_array_equal(near[0], pixels[0].repeat(2, axis=0).repeat(3, axis=1))
    for method, filter in (("bilinear", Pillow.Resampling.BILINEAR), ("cubic", Pillow.Resampling.BICUBIC)):
        made, _ = resample(pixels, every, (120, 144), method)
        other = np.asarray(Pillow.fromarray(pixels[0]).resize((144, 120), filter))
        np.testing.assert_allclose(made[0, 8:-8, 8:-8], other[8:-8, 8:-8], rtol=1e-4)
    holed = every.copy()
    holed[20:30] = False
    flat, valid = resample(np.where(holed, 700.0, -9999.0)[None].astype("float32"), holed, (120, 96), "bilinear")
    assert not valid[40:60].any() and valid[:40].all() and np.allclose(flat[0][valid], 700)


def scene_of_three_grids(folder: Path) -> None:
    """10, 20 and 60 m, of sizes that are no multiples of each other, and a class map."""
    classes = np.random.default_rng(1).integers(0, 12, (1, 61, 80)).astype("uint8")
    for name, pixels, step in (
        ("B02", ground(1, 121, 160), 10),
        ("B05", ground(1, 61, 80, seed=1), 20),
        ("B01", ground(1, 21, 27, seed=2), 60),
        ("SCL", classes, 20),
    ):
        place = from_origin(500_000, 5_100_000, step, step)
        nodata = None if name == "SCL" else 0
        pixels[:, :3, :2] = 0
        write(folder / f"T33TUM_{name}.tif", pixels, transform=place, nodata=nodata, blockysize=8, compress="deflate")


@pytest.mark.parametrize("resampling", ["bilinear", "cubic", "nearest"])
def test_tiles_of_mixed_resolutions_are_cut_from_the_scene_on_one_grid(tmp_path: Path, resampling: str) -> None:
    scene_of_three_grids(tmp_path / "a")
    about = {"scene": "folder", "resampling": resampling, "grid": None}
    found = [raw for raw in items(tmp_path / "a", config(32, 20, **about)) if isinstance(raw, RawSample)]
    (whole,) = (raw for raw in items(tmp_path / "a", config(200, **about)) if isinstance(raw, RawSample))
    assert set(whole.images) == {"B01", "B02", "B05", "SCL"} and len(found) == 5 * 7
    with rasterio.open(tmp_path / "a" / "T33TUM_SCL.tif") as file:
        classes = file.read(1)
    for raw in found:
        at = raw.window
        assert at is not None
        inside = slice(at.row, at.row + 32), slice(at.column, at.column + 32)
        for name, image in raw.images.items():
            np.testing.assert_array_equal(image.pixels, whole.images[name].pixels[:, *inside])
            assert image.place is not None
            assert image.place.transform == (10, 0, 500_000 + 10 * at.column, 0, -10, 5_100_000 - 10 * at.row)
        rows, columns = ((np.arange(*at_) + 0.5) for at_ in ((at.row, at.row + 32), (at.column, at.column + 32)))
        nearest = classes[(rows * 61 / 121).astype(int)[:, None], (columns / 2).astype(int)]
        np.testing.assert_array_equal(raw.images["SCL"].pixels[0], nearest)


def test_another_grid_may_be_chosen(tmp_path: Path) -> None:
    scene_of_three_grids(tmp_path / "a")
    (sample,) = tiles(tmp_path / "a", config(30, scene="folder", grid="B01", members=["B02", "B05"]))
    assert sample.bands == ("B02", "B05") and sample.pixels.shape == (2, 21, 27)
    assert [r.kind for r in rejected(tmp_path / "a", config(30, scene="folder", grid="B99"))] == ["WrongBands"]


def test_chosen_bands_are_the_only_ones_read(tmp_path: Path) -> None:
    scene_of_three_grids(tmp_path / "a")
    (tmp_path / "a" / "T33TUM_B01.tif").write_bytes(b"II*\0 broken")
    found = tiles(tmp_path / "a", config(32, scene="folder", members=["B05", "B02"]))
    assert {tile.bands for tile in found} == {("B05", "B02")}
    made = config(32, scene="folder", bands=["B05"])
    raws = [raw for raw in items(tmp_path / "a", made) if isinstance(raw, RawSample)]
    assert {tuple(raw.images) for raw in raws} == {("B05", "SCL")}  # the mask may be needed
    assert raws[0].images["B05"].pixels.shape == (1, 32, 32) and len(raws) == 6


def test_sidecars_speak_of_every_tile(tmp_path: Path) -> None:
    write(tmp_path / "a" / "north.tif", ground(1, 64, 64))
    said = '{"label": "field", "datetime": "2019-04-16T10:00:29", "eo:cloud_cover": 40, "bbox": [0, 0, 1, 1]}'
    (tmp_path / "a" / "north.json").write_text(said)
    found = tiles(tmp_path / "a", config(32))
    assert [tile.label for tile in found] == ["field"] * 4
    assert {tile.time.isoformat() for tile in found if tile.time} == {"2019-04-16T10:00:29+00:00"}  # no zone: UTC
    assert all(tile.cloud_fraction is None for tile in found)  # the scene's is not the tile's
    assert all(tile.footprint and tile.footprint[0] > 14 for tile in found)
    assert [member.file for member in found[0].members] == ["north.tif", "north.json"]


def test_without_a_size_a_scene_is_one_sample(tmp_path: Path) -> None:
    scene_of_three_grids(tmp_path / "a" / "x")
    (sample,) = tiles(tmp_path / "a", config(None, scene="folder"))
    assert sample.key == "x" and sample.pixels.shape == (3, 121, 160) and sample.window is None


# bad input


def test_images_in_the_root_and_a_folder_called_scene_would_be_one_sample(tmp_path: Path) -> None:
    for folder in (".", "scene"):
        for band in ("B02", "B03"):
            write(tmp_path / "x" / folder / f"{band}.tif", ground(1, 64, 64))
    with pytest.raises(RequestError, match="both be the sample 'scene': rename the folder"):
        list_archive(str(tmp_path / "x"), settings=config(None, scene="folder"))
    assert len(tiles(tmp_path / "x", config(32, scene="folder"))) == 8  # each scene is a shard of its own


def test_a_band_missing(tmp_path: Path) -> None:
    for scene in "ab":
        for band in ("B02", "B03") if scene == "a" else ("B02",):
            write(tmp_path / "x" / scene / f"{scene}_{band}.tif", ground(1, 64, 64))
    pattern = r"(?P<scene>[ab])/._(?P<band>B\d+)\.tif"
    (row,) = rejected(tmp_path / "x", config(32, scene=pattern, bands=["B02", "B03"]))
    assert (row.key, row.kind) == ("b", "WrongBands") and "no band B03" in row.message
    (row,) = rejected(tmp_path / "x", config(32, scene=pattern, members=["B02", "B03"]))
    assert (row.key, row.kind) == ("b", "MissingMember")
    found = tiles(tmp_path / "x", config(32, scene=pattern))
    assert len(found) == 8
    for tile in found[4:]:
        with pytest.raises(BadSample, match="WrongBands: it has no band B03"):
            conform(tile, ("B02", "B03"), "uint16")


@pytest.mark.parametrize(
    "other",
    [
        {"transform": from_origin(500_100, 5_100_000, 10, 10)},
        {"crs": "EPSG:32634"},
        {"shape": (64, 50)},
        {"shape": (32, 64)},
        {"shape": (32, 50), "crs": None, "transform": Affine.identity()},
    ],
)
def test_bands_of_other_ground(tmp_path: Path, other: dict[str, Any]) -> None:
    shape = other.pop("shape", (64, 64))
    write(tmp_path / "x" / "a" / "B02.tif", ground(1, 64, 64))
    write(tmp_path / "x" / "a" / "B03.tif", ground(1, *shape), **other)
    write(tmp_path / "x" / "b" / "B02.tif", ground(1, 64, 64))
    found = items(tmp_path / "x", config(32, scene="folder"))
    assert [item.kind for item in found if isinstance(item, Rejection)] == ["BandMismatch"]
    assert len(found) == 1 + 4


def test_a_truncated_cog_gives_what_is_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 60_000, (2, 300, 256)).astype("uint16")
    path = write(tmp_path / "a" / "scene.tif", pixels, driver="COG", blocksize=64, compress="deflate")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.7)])
    found = items(tmp_path / "a", config(64))
    tiles_read = [decode(raw, config(64)) for raw in found if isinstance(raw, RawSample)]
    (row,) = [item for item in found if isinstance(item, Rejection)]
    assert (row.kind, row.key, row.index) == ("TruncatedImage", "scene", len(found) - 1)
    assert "from r00" in row.message and 4 <= len(tiles_read) < 16
    for tile in tiles_read:
        at = tile.window
        assert at is not None
        np.testing.assert_array_equal(tile.pixels, pixels[:, at.row : at.row + 64, at.column : at.column + 64])
    path.write_bytes(whole[:300])
    assert [item.kind for item in rejected(tmp_path / "a", config(64))] == ["TruncatedImage"]


def test_a_damaged_block_spoils_the_tiles_that_touch_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 60_000, (1, 256, 256)).astype("uint16")
    path = write(tmp_path / "a" / "scene.tif", pixels, **TILED | {"blockysize": 64}, compress="deflate")
    content = bytearray(path.read_bytes())
    (layer,) = blocks.open_blocks(folder := Folder(str(tmp_path / "a")), folder.info("scene.tif"), 2**27).layers  # type: ignore[union-attr]
    content[layer.offsets[5] + 100 : layer.offsets[5] + 200] = bytes(100)
    path.write_bytes(content)
    found = items(tmp_path / "a", config(64, 32))
    spoiled = {item.key for item in found if isinstance(item, Rejection)}
    assert len(found) == 49
    assert spoiled == {f"scene_r{r:05}_c{c:05}" for r in (32, 64, 96) for c in (32, 64, 96)}
    assert {item.kind for item in found if isinstance(item, Rejection)} == {"BadImage"}


def test_a_palette_is_read_whole_and_a_scene_too_wide_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "scene.tif", ground(1, 200, 5000), blockysize=1)
    (row,) = rejected(tmp_path / "a", config(160, max_pixels=5000 * 150))
    assert row.kind == "TooManyPixels"
    assert len(tiles(tmp_path / "a", config(64, max_pixels=5000 * 150))) == 3 * 78  # it is not the scene's size
    Pillow.fromarray(ground(1, 64, 64, "uint8")[0]).convert("P").save(tmp_path / "a" / "scene.tif")
    assert {tile.bands for tile in tiles(tmp_path / "a", config(32))} == {("red", "green", "blue")}


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_never_break_the_reader(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = ground(3, 100, 120, "uint8")
    kinds = [
        {**TILED, "compress": "deflate", "predictor": 2},
        {"compress": "lzw"},
        {"compress": "deflate", "blockysize": 8, "interleave": "band"},
        {**TILED, "compress": "zstd"},
        {**TILED, "blockysize": 64, "compress": "jpeg", "photometric": "ycbcr"},
        {**TILED, "compress": "lerc"},
        {"driver": "COG", "blocksize": 64, "compress": "webp"},
        {**TILED, "compress": "packbits", "bigtiff": "yes"},
        {**TILED, "compress": "lzma"},
    ]
    for number, kind in enumerate(kinds):
        path = write(tmp_path / "a" / "scene.tif", pixels, nodata=None, **kind)
        content = path.read_bytes()
        path.unlink()
        for turn in range(12):
            changed = bytearray(content)
            end = len(changed) if turn % 2 else min(len(changed), 600)  # every other one in the header
            for at in rng.integers(0, end, rng.integers(1, 20)):
                changed[at] = rng.integers(256)
            if turn % 4 == 3:
                changed = changed[: rng.integers(1, len(changed))]
            (tmp_path / "a" / f"s{number}_{turn}.tif").write_bytes(changed)
    made = config(32, 24)
    count = 0
    for root in list_archive(str(tmp_path / "a"), settings=made):
        for shard in root.shards:
            found = list(read_shard(root.folder, shard, made))
            assert [item.index for item in found] == list(range(len(found))) and found
            for item in found:
                if isinstance(item, RawSample):
                    try:
                        decode(item, made)
                    except BadSample:
                        continue
            count += 1
    assert count == len(kinds) * 12


# places

PLACES = {
    "east of the antimeridian, zone 60": ("EPSG:32660", from_origin(820_000, 1_800_000, 500, 500)),
    "west of it, zone 1": ("EPSG:32701", from_origin(150_000, 8_200_000, 500, 500)),
    "the south pole": ("EPSG:3031", from_origin(-30_000, 30_000, 1000, 1000)),
    "the north pole": ("EPSG:3995", from_origin(-31_000, 29_000, 1000, 1000)),
    "Greenland": ("EPSG:3413", from_origin(-200_000, -1_900_000, 1000, 1000)),
    "beside the pole, over the antimeridian": ("EPSG:3413", from_origin(-400_000, 700_000, 1000, 1000)),
    "turned": ("EPSG:32633", Affine(8, 6, 500_000, 6, -8, 5_100_000)),
    "degrees beyond 180": ("EPSG:4326", from_origin(179.7, 10, 0.01, 0.01)),
}


@pytest.mark.parametrize("name", PLACES)
def test_footprints_against_points_of_the_tile(tmp_path: Path, name: str) -> None:
    crs, transform = PLACES[name]
    write(tmp_path / "a" / "scene.tif", ground(1, 64, 64), crs=crs, transform=transform)
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    found = tiles(tmp_path / "a", config(32))
    assert len(found) == 4
    for tile in found:
        at = tile.window
        assert at is not None and tile.footprint is not None and tile.place is not None
        assert tile.place.crs == crs
        rows, columns = np.meshgrid(np.linspace(at.row, at.row + 32, 65), np.linspace(at.column, at.column + 32, 65))
        x, y = transform * (columns.ravel(), rows.ravel())
        lon, lat = (np.asarray(values) for values in to_degrees.transform(x, y))
        lon = (lon + 180) % 360 - 180
        west, south, east, north = tile.footprint
        assert south <= lat.min() + 1e-3 and north >= lat.max() - 1e-3  # a pole lies between the points of an edge
        right_of_west, left_of_east = lon >= west - 1e-6, lon <= east + 1e-6
        assert (right_of_west & left_of_east if west <= east else right_of_west | left_of_east).all()
        wide = (east - west) % 360 if (east - west) != 360 else 360
        gaps = np.diff(np.sort(lon), append=np.sort(lon)[0] + 360)
        if not math.isclose(wide, 360) and gaps.max() > 20:  # tight, where a box of the turned tile's can be
            assert wide <= (360 - gaps.max()) * (2.1 if name == "turned" else 1.02) + 1e-6


def test_a_scene_without_a_place(tmp_path: Path) -> None:
    write(tmp_path / "a" / "scene.tif", ground(1, 64, 64), crs=None, transform=Affine.identity())
    found = tiles(tmp_path / "a", config(32))
    assert len(found) == 4 and all(tile.place is None and tile.footprint is None for tile in found)


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("scene", [r"(?P<scene>\w)_\d+_(?P<band>B\d+)", r"(?P<scene>\w)_"])
def test_two_files_of_one_band_are_refused(tmp_path: Path, scene: str, size: int | None) -> None:
    for name in ("s_2020_B02.tif", "s_2021_B02.tif"):
        write(tmp_path / name, ground(1, 64, 64))
    with pytest.raises(RequestError, match=r"s_2020_B02.tif and s_2021_B02.tif .* tell them apart"):
        list_archive(str(tmp_path), settings=config(size, scene=scene))


def test_images_that_a_pattern_gives_no_scene_are_left_out(tmp_path: Path) -> None:
    for name in ("s_B02.tif", "other.tif"):
        write(tmp_path / name, ground(1, 64, 64))
    (root,) = list_archive(str(tmp_path), settings=config(32, scene="(?P<scene>s)_|other"))
    assert [shard.path for shard in root.shards] == ["s"]
