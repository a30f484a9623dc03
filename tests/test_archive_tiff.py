"""GeoTIFF: pixels as tifffile reads them, and the names, nodata, masks and places that GDAL writes."""

import io
import struct
import time

import numpy as np
import pytest
import tifffile

from curation.archive.tiff import read_pages
from curation.errors import BadSample
from tests.archive_tools import decoded
from tests.recipes import geotiff

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(1, 3000, (4, 48, 37))


def written(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "minisblack", "metadata": None, **options})  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_every_usual_layout_is_exact(dtype: str, planar: str, compression: str | None, tile: tuple[int, int]) -> None:
    pixels = PIXELS.astype(dtype)
    predictor = None if compression is None else 3 if dtype == "float32" else 2
    arranged = pixels if planar == "separate" else pixels.transpose(1, 2, 0)
    options = {"planarconfig": planar, "compression": compression, "predictor": predictor}
    content = written(arranged, **options, **({"tile": tile} if tile else {"rowsperstrip": 7}))
    sample = decoded(tif=content)
    assert sample.bands == ("b1", "b2", "b3", "b4")
    assert sample.pixels.dtype == dtype and sample.pixels.flags.c_contiguous
    np.testing.assert_array_equal(sample.pixels, pixels)


@pytest.mark.parametrize("options", [{"byteorder": ">"}, {"bigtiff": True}, {"byteorder": ">", "bigtiff": True}])
def test_byte_orders_and_big_files(options: dict) -> None:
    sample = decoded(tif=written(PIXELS.astype(np.uint16), **options))  # four pages, one a band
    assert sample.pixels.dtype.isnative
    np.testing.assert_array_equal(sample.pixels, PIXELS)
    single = decoded(tif=written(PIXELS[0].astype(np.float32), **options))
    np.testing.assert_array_equal(single.pixels, PIXELS[:1])


@pytest.mark.parametrize("compression", ["lerc", "jpeg2000", "lzma"])
def test_rarer_compressions_are_read_too(compression: str) -> None:
    pixels = PIXELS[0].astype(np.uint16)
    content = written(pixels, compression=compression, compressionargs={"level": 0} if compression != "lzma" else {})
    np.testing.assert_array_equal(decoded(tif=content).pixels[0], pixels)


def test_the_recipe_writes_what_tifffile_reads() -> None:
    for dtype in ("uint8", "uint16", "int16", "float32"):
        for compress in (True, False):
            content = geotiff(PIXELS.astype(dtype), compress=compress)
            np.testing.assert_array_equal(tifffile.imread(io.BytesIO(content)), PIXELS.astype(dtype).transpose(1, 2, 0))


def test_names_nodata_and_place_come_from_the_tags() -> None:
    pixels = PIXELS.astype(np.uint16)
    pixels[:, :3] = 0
    pixels[2, 10, 11] = 0
    content = geotiff(pixels, ["B02", "B03", "B04 &amp; red", "B08"], "0", (12.5, 45.25), (0.01, 0.02))
    sample = decoded(tif=content)
    assert sample.bands == ("B02", "B03", "B04 & red", "B08")
    expected = np.ones((48, 37), bool)
    expected[:3] = expected[10, 11] = False
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.footprint == pytest.approx((12.5, 45.25 - 48 * 0.02, 12.5 + 37 * 0.01, 45.25))
    assert decoded({"nodata": -1.0}, tif=content).mask.all()


@pytest.mark.parametrize("names", [["a", "a", "b", "c"], ["a", "", "b", "c"]])
def test_names_that_do_not_tell_the_bands_apart_are_not_used(names: list[str]) -> None:
    assert decoded(tif=geotiff(PIXELS.astype(np.uint16), names)).bands == ("b1", "b2", "b3", "b4")


@pytest.mark.parametrize(("text", "invalid"), [("nan", 1), ("-9999", 2), ("-3.4028234663852886e+38", 1), ("x", 0)])
def test_nodata_as_gdal_writes_it(text: str, invalid: int) -> None:
    pixels = PIXELS.astype(np.float32)
    pixels[0, 0, 0] = np.nan if text == "nan" else np.float32(-3.4028235e38) if "e+38" in text else 5
    if text == "-9999":
        pixels[1, 4, 4] = pixels[3, 4, 5] = -9999
    assert (~decoded(tif=geotiff(pixels, nodata=text)).mask).sum() == invalid


def test_an_all_nodata_tile_is_quarantined() -> None:
    with pytest.raises(BadSample) as caught:
        decoded(tif=geotiff(np.zeros((3, 8, 8), np.uint16), nodata="0"))
    assert caught.value.kind == "NoValidPixels"


def test_overviews_are_left_and_a_mask_page_is_used() -> None:
    pixels = PIXELS[:3].astype(np.uint16)
    valid = RNG.random((48, 37)) < 0.7
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(pixels, planarconfig="separate", photometric="minisblack", metadata=None)
        tiff.write(pixels[:, ::2, ::2], planarconfig="separate", photometric="minisblack", subfiletype=1, metadata=None)
        tiff.write(valid, photometric="mask", subfiletype=4, metadata=None)
        tiff.write(valid[::2, ::2], photometric="mask", subfiletype=5, metadata=None)
    sample = decoded(tif=file.getvalue())
    np.testing.assert_array_equal(sample.pixels, pixels)
    np.testing.assert_array_equal(sample.mask, valid)


def test_alpha_is_a_mask_unless_it_has_a_name() -> None:
    pixels = PIXELS.astype(np.uint8)
    pixels[3] = RNG.integers(0, 2, (48, 37)) * 255
    content = written(pixels.transpose(1, 2, 0), photometric="rgb", extrasamples=["unassalpha"])
    sample = decoded(tif=content)
    assert sample.bands == ("red", "green", "blue")
    np.testing.assert_array_equal(sample.mask, pixels[3] > 0)
    named = b"".join(b'<Item name="DESCRIPTION" sample="%d" role="description">B%d</Item>' % (i, i) for i in range(4))
    xml = b"<GDALMetadata>" + named + b"</GDALMetadata>\0"
    content = written(
        pixels.transpose(1, 2, 0),
        photometric="rgb",
        extrasamples=["unassalpha"],
        extratags=[(42112, 2, len(xml), xml, True)],
    )
    sample = decoded(tif=content)
    assert sample.bands == ("B0", "B1", "B2", "B3") and sample.mask.all()


def test_rgb_and_inverted_and_ycbcr() -> None:
    rgb = np.stack([np.add.outer(np.arange(40), np.arange(32)) * k % 200 for k in (1, 2, 1)], -1).astype(np.uint8)
    assert decoded(tif=written(rgb, photometric="rgb")).bands == ("red", "green", "blue")
    inverted = decoded(tif=written(rgb[..., 0], photometric="miniswhite"))
    np.testing.assert_array_equal(inverted.pixels[0], 255 - rgb[..., 0])
    coded = written(np.repeat(np.repeat(rgb, 2, 0), 2, 1), photometric="rgb", compression="jpeg")
    sample = decoded(tif=coded)
    assert sample.bands == ("red", "green", "blue")
    assert np.abs(sample.pixels.astype(int) - tifffile.imread(io.BytesIO(coded)).transpose(2, 0, 1)).mean() < 3


def test_pages_of_different_kinds_are_ambiguous() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(PIXELS[0].astype(np.uint16), photometric="minisblack", metadata=None)
        tiff.write(PIXELS[0, ::2].astype(np.uint16), photometric="minisblack", metadata=None)
    with pytest.raises(BadSample) as caught:
        decoded(tif=file.getvalue())
    assert caught.value.kind == "SeveralImages"


@pytest.mark.parametrize(("tag", "value", "kind"), [(322, 1 << 20, "TooManyPixels"), (323, 0, "BadShape")])
def test_a_tile_that_claims_too_much_is_not_allocated(tag: int, value: int, kind: str) -> None:
    content = written(PIXELS[0].astype(np.uint16), tile=(4096, 4096), compression="zlib")
    place = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
    content = content[:place] + struct.pack("<I", value) + content[place + 4 :]
    with pytest.raises(BadSample) as caught:
        decoded(tif=content)
    assert caught.value.kind == kind


def test_strips_that_are_left_out_hold_nodata() -> None:
    pixels = np.full((48, 37), 9, np.uint16)
    content = bytearray(written(pixels, rowsperstrip=24, extratags=[(42113, 2, 2, b"0\0", True)]))
    for tag in (273, 279):  # offset and byte count of the second strip
        place = content.index(struct.pack("<HH", tag, 4 if tag == 273 else 3))
        count, at = struct.unpack_from("<II", content, place + 4)
        size = 4 if tag == 273 else 2
        assert count == 2
        start = place + 8 if count * size <= 4 else at
        content[start + size : start + 2 * size] = bytes(size)
    sample = decoded(tif=bytes(content))
    assert sample.mask[:24].all() and not sample.mask[24:].any()
    assert (sample.pixels[0, :24] == 9).all()


def test_a_directory_that_loops_ends() -> None:
    content = bytearray(geotiff(PIXELS.astype(np.uint16)))
    count = int.from_bytes(content[8:10], "little")
    content[10 + 12 * count : 14 + 12 * count] = (8).to_bytes(4, "little")
    assert len(read_pages(bytes(content))) == 1


def test_a_tile_takes_less_time_than_with_tifffile() -> None:
    content = geotiff(
        RNG.integers(1, 3000, (4, 64, 64)).astype(np.uint16), ["B02", "B03", "B04", "B08"], "0", (1.0, 2.0)
    )

    def seconds(call: object) -> float:
        times = []
        for _ in range(60):
            start = time.thread_time()
            call()  # type: ignore[operator]
            times.append(time.thread_time() - start)
        return sorted(times)[20]

    ours = seconds(lambda: decoded(tif=content))
    assert ours < seconds(lambda: np.ascontiguousarray(tifffile.imread(io.BytesIO(content)).T))
