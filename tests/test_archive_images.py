"""Image files: each kind is decoded rightly or refused with a reason, and a broken one never passes for a picture."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from curation.archive.decode import conform, decode
from curation.archive.sample import Sample
from curation.archive.settings import ArchiveConfig
from curation.errors import BadSample
from tests.archive_tools import decoded, raw
from tests.recipes import encoded, geotiff, npy

RNG = np.random.default_rng(0)
# Smooth, so that a lossy coder changes little.
Y, X = np.mgrid[:24, :31]
RGB = np.stack([4 * X + 2 * Y, 150 - 3 * Y, 40 + 2 * X + 3 * Y], -1).astype(np.uint8)
GRAY = RGB[..., 0]
DEEP = RNG.integers(0, 65535, (24, 31, 4)).astype(np.uint16)


def chw(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def fault(content: bytes, suffix: str = "png", **settings: object) -> str:
    with pytest.raises(BadSample) as caught:
        decoded(settings, **{suffix: content})
    assert caught.value.stage == "decode" and "\n" not in caught.value.message
    return caught.value.kind


# what the colours of a file become


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "TIFF"])
def test_lossless_rgb_is_exact_whatever_the_suffix_says(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    sample = decoded(jpg=encoded(RGB, format, **options))
    assert sample.bands == ("red", "green", "blue")
    assert sample.pixels.dtype == np.uint8 and sample.pixels.flags.c_contiguous
    np.testing.assert_array_equal(sample.pixels, chw(RGB))
    assert sample.mask.all() and sample.mask.shape == (24, 31)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_jpeg_is_decoded_to_the_bit_as_pillow_does(options: dict) -> None:
    content = encoded(RGB, "JPEG", quality=90, **options)
    np.testing.assert_array_equal(decoded(jpg=content).pixels, chw(np.asarray(Image.open(io.BytesIO(content)))))
    grey = decoded(jpg=encoded(GRAY, "JPEG"))
    assert grey.bands == ("gray",) and grey.pixels.shape == (1, 24, 31)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).convert("CMYK").save(file, format)
    sample = decoded(jpg=file.getvalue())
    assert sample.bands == ("red", "green", "blue")
    assert np.abs(sample.pixels.astype(int) - chw(RGB)).mean() < 4


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_palette_images_become_rgb(format: str) -> None:
    image = Image.fromarray(RGB).quantize(16)
    file = io.BytesIO()
    image.save(file, format)
    np.testing.assert_array_equal(decoded(png=file.getvalue()).pixels, chw(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_one_bit_images_become_0_and_255(format: str) -> None:
    bits = GRAY > 60
    sample = decoded(png=encoded(bits, format))
    assert sample.bands == ("gray",) and sample.pixels.dtype == np.uint8
    np.testing.assert_array_equal(sample.pixels[0], bits * 255)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_0_is_invalid_and_the_colours_stay(format: str) -> None:
    alpha = np.where(X > 10, 200, 0).astype(np.uint8)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    sample = decoded(png=encoded(np.dstack([RGB, alpha]), format, **options))
    assert sample.bands == ("red", "green", "blue")
    np.testing.assert_array_equal(sample.mask, X > 10)
    np.testing.assert_array_equal(sample.pixels, chw(RGB))


def test_grey_with_alpha_and_transparent_colours() -> None:
    sample = decoded(png=encoded(np.dstack([GRAY, np.where(X > 3, 255, 0).astype(np.uint8)]), "PNG"))
    assert sample.bands == ("gray",)
    np.testing.assert_array_equal(sample.mask, X > 3)
    np.testing.assert_array_equal(decoded(png=encoded(GRAY, "PNG", transparency=20)).mask, GRAY != 20)
    colour = decoded(png=encoded(RGB, "PNG", transparency=tuple(int(v) for v in RGB[3, 4])))
    np.testing.assert_array_equal(colour.mask, (RGB[3, 4] != RGB).any(-1))
    file = io.BytesIO()
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(file, "PNG", transparency=3)
    np.testing.assert_array_equal(decoded(png=file.getvalue()).mask, np.asarray(palette) != 3)


def test_16_bits_stay_16_bits() -> None:
    grey = decoded(png=encoded(DEEP[..., 0], "PNG"))
    assert grey.bands == ("gray",) and grey.pixels.dtype == np.uint16
    np.testing.assert_array_equal(grey.pixels[0], DEEP[..., 0])
    for channels in (2, 3, 4):
        pixels = np.ascontiguousarray(DEEP[..., :channels])
        pixels[:5, :, -1] = 0
        sample = decoded(png=imagecodecs.png_encode(pixels))
        colours = channels if channels % 2 else channels - 1
        assert sample.pixels.dtype == np.uint16 and len(sample.bands) == colours
        np.testing.assert_array_equal(sample.pixels, chw(pixels[..., :colours]))
        assert sample.mask[:5].any() == (channels == 3) and sample.mask[5:].all()


@pytest.mark.parametrize("pixels", [RGB, GRAY, DEEP[..., 0], DEEP[..., :3], DEEP[..., 0].astype(np.int16)])
def test_jpeg_2000_keeps_its_depth(pixels: np.ndarray) -> None:
    sample = decoded(jp2=imagecodecs.jpeg2k_encode(np.ascontiguousarray(pixels), level=0))
    assert sample.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(sample.pixels, chw(pixels))


def test_modes_that_are_no_colours_are_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).convert("LAB").save(file, "TIFF")
    assert fault(file.getvalue()) == "Unsupported"


# arrays


@pytest.mark.parametrize("shape", [(9, 12), (3, 9, 12), (9, 12, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2", ">f4"])
def test_npy_arrays_in_either_layout(shape: tuple[int, ...], dtype: str) -> None:
    array = RNG.integers(0, 200, shape).astype(dtype)
    for order in "CF":
        sample = decoded(npy=npy(np.asarray(array, order=order)))
        expected = array if shape[0] == 3 else chw(array)
        assert sample.pixels.dtype == np.dtype(dtype).newbyteorder("=")
        assert sample.bands == tuple(f"b{i + 1}" for i in range(len(expected)))
        np.testing.assert_array_equal(sample.pixels, expected)


def test_an_ambiguous_layout_is_told_and_can_be_set() -> None:
    array = RNG.integers(0, 200, (5, 7, 5)).astype(np.uint8)
    assert fault(npy(array), "npy") == "AmbiguousLayout"
    np.testing.assert_array_equal(decoded({"layout": "chw"}, npy=npy(array)).pixels, array)
    np.testing.assert_array_equal(decoded({"layout": "hwc"}, npy=npy(array)).pixels, chw(array))
    wide = RNG.integers(0, 200, (3, 8, 13)).astype(np.uint8)
    assert decoded({"layout": "hwc"}, npy=npy(wide)).pixels.shape == (13, 3, 8)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[0, 1], [1, 0]], bool), "uint8"),
        (np.array([[-5, 1], [1, 0]], np.int8), "int16"),
        (np.array([[0.5, 1], [1, 0]], np.float16), "float32"),
        (np.array([[0.1, 1], [1, 0]], np.float64), "float32"),
        (np.array([[70000, 1], [1, -(2**24)]], np.int32), "float32"),
        (np.array([[2**24, 1], [1, 0]], np.uint64), "float32"),
    ],
)
def test_other_dtypes_become_one_that_holds_them(array: np.ndarray, dtype: str) -> None:
    sample = decoded(npy=npy(array))
    assert sample.pixels.dtype == dtype
    expected = array * 255.0 if array.dtype == bool else array
    np.testing.assert_array_equal(sample.pixels[0], expected.astype(dtype))


def test_numbers_that_nothing_holds_are_refused() -> None:
    assert fault(npy(np.full((4, 4), 2**24 + 1, np.int64)), "npy") == "LossyDtype"
    assert fault(npy(np.zeros((4, 4), complex)), "npy") == "WrongDtype"
    assert fault(npy(np.zeros((4, 4), "U3")), "npy") == "WrongDtype"
    assert fault(npy(np.zeros(4)), "npy") == "BadShape"
    assert fault(npy(np.zeros((2, 3, 4, 5))), "npy") == "BadShape"
    assert fault(npy(np.zeros((0, 5))), "npy") == "BadShape"


class Trap:
    """Unpickling it would fail the test."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return pytest.fail, ("a pickle was read",)


def test_pickles_are_never_read() -> None:
    import pickle

    trap = pickle.dumps(Trap())
    assert fault(npy(np.array([Trap()], object)), "npy") == "UnsafeFile"
    assert fault(npy(np.zeros(3, [("a", object)])), "npy") == "UnsafeFile"
    assert fault(trap, "npy") == "UnsafeFile"
    for suffix in ("pkl", "pt", "pth", "features_pickle"):
        assert fault(trap, suffix) == "UnsafeFile"
    beside = {"png": encoded(RGB, "PNG"), "pth": trap}
    with pytest.raises(BadSample, match="archive.members") as caught:
        decoded(**beside)
    assert caught.value.kind == "UnsafeFile"
    assert decoded({"members": ["png"]}, **beside).pixels.shape == (3, 24, 31)


# what is broken


def png_claiming(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def npy_claiming(shape: tuple[int, ...]) -> bytes:
    return npy(np.zeros((3, 3), np.uint8)).replace(b"(3, 3), }" + b" " * 20, f"{shape}, }}".encode().ljust(29))


def jpeg_claiming(width: int, height: int) -> bytes:
    content = bytearray(encoded(RGB, "JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def tiff_claiming(width: int, height: int, bands: int = 3) -> bytes:
    content = geotiff(np.zeros((3, 24, 31), np.uint8))
    for tag, value in ((256, width), (257, height), (277, bands)):
        place = content.index(struct.pack("<HHI", tag, 3, 1)) + 8
        content = content[:place] + struct.pack("<I", value) + content[place + 4 :]
    return content


@pytest.mark.parametrize(
    "content",
    [
        png_claiming(30_000, 30_000),
        png_claiming(30_000, 30_000, 16),
        npy_claiming((30_000, 30_000)),
        npy_claiming((30_000, 30_000, 4)),
        jpeg_claiming(30_000, 30_000),
        tiff_claiming(30_000, 30_000),
        tiff_claiming(10_000, 10_000, 60_000),
        encoded(RGB, "BMP").replace(struct.pack("<ii", 31, 24), struct.pack("<ii", 30_000, 30_000)),
        imagecodecs.jpeg2k_encode(RGB, codecformat="j2k").replace(
            struct.pack(">II", 31, 24), struct.pack(">II", 30_000, 30_000), 1
        ),
    ],
)
def test_an_image_that_claims_30000_by_30000_pixels_takes_no_memory(content: bytes) -> None:
    tracemalloc.start()
    assert fault(content) == "TooManyPixels"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_pixel_limit_can_be_set() -> None:
    content = encoded(RGB, "PNG")
    assert fault(content, max_pixels=24 * 31 - 1) == "TooManyPixels"
    assert decoded({"max_pixels": 24 * 31}, png=content).mask.all()


FILES = {
    "jpg": encoded(RGB, "JPEG", quality=80),
    "progressive.jpg": encoded(RGB, "JPEG", quality=80, progressive=True),
    "png": encoded(RGB, "PNG"),
    "deep.png": imagecodecs.png_encode(DEEP[:9, :9, :3].copy()),
    "deflate.tif": geotiff(DEEP.transpose(2, 0, 1), ["a", "b", "c", "d"]),
    "raw.tif": geotiff(DEEP.transpose(2, 0, 1), compress=False),
    "webp": encoded(RGB, "WEBP", lossless=True),
    "bmp": encoded(RGB, "BMP"),
    "jp2": imagecodecs.jpeg2k_encode(RGB, level=0),
    "npy": npy(RGB),
}


@pytest.mark.parametrize("suffix", FILES)
def test_a_file_cut_short_at_any_byte_is_quarantined_or_whole(suffix: str) -> None:
    content = FILES[suffix]
    whole = decoded(**{suffix.replace(".", "_"): content})
    passed = []
    for cut in range(0, len(content), max(1, len(content) // 200)):
        try:
            sample = decoded(**{suffix.replace(".", "_"): content[:cut]})
        except BadSample as error:
            assert error.stage == "decode"
            continue
        np.testing.assert_array_equal(sample.pixels, whole.pixels, err_msg=f"{suffix} cut at {cut}")
        passed.append(cut)
    assert all(cut > len(content) - 24 for cut in passed)  # only checksums and trailers may be missing


@pytest.mark.parametrize("suffix", FILES)
def test_a_damaged_file_never_ends_the_run(suffix: str) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        content = bytearray(FILES[suffix])
        for place in rng.integers(0, len(content), 8):
            content[place] = rng.integers(256)
        try:
            decoded({"max_pixels": 10_000}, **{suffix.replace(".", "_"): bytes(content)})
        except BadSample as error:
            assert error.kind and " at 0x" not in error.message


def test_many_broken_deep_pngs_leave_the_interpreter_whole() -> None:
    import gc
    import sys

    gc.collect()  # whatever other tests left holds many
    gc.disable()
    before = sys.getrefcount(None)
    for cut in range(100, 160):
        assert fault(FILES["deep.png"][:cut]) == "TruncatedImage"
    damaged = bytearray(FILES["deep.png"])
    damaged[120] ^= 0xFF
    for _ in range(100):
        assert fault(bytes(damaged)) == "TruncatedImage"
    after = sys.getrefcount(None)
    gc.enable()
    assert after > before - 50


def test_other_files_are_told() -> None:
    assert fault(b"<html>503 Slow Down</html>", "jpg") == "BadImage"
    assert fault(b"\xff\xd8\xff") == "TruncatedImage"
    assert fault(b"{}", "json") == "NoImage"
    assert fault(b"\x93NUMPY\x01\x00\x10", "npy") == "BadImage"


# validity


def test_nan_and_infinity_are_invalid_pixels() -> None:
    pixels = RNG.normal(0, 1, (2, 6, 7)).astype(np.float32)
    pixels[0, 1, 2], pixels[1, 3, 3], pixels[1, 5, 5] = np.nan, np.inf, -np.inf
    sample = decoded(npy=npy(pixels))
    assert np.argwhere(~sample.mask).tolist() == [[1, 2], [3, 3], [5, 5]]
    np.testing.assert_array_equal(sample.pixels, pixels)
    assert fault(npy(np.full((3, 4, 4), np.nan, np.float32)), "npy") == "NoValidPixels"


def test_a_nodata_value_may_be_set() -> None:
    pixels = RNG.integers(1, 90, (2, 6, 7)).astype(np.int16)
    pixels[0, 2, 2] = -99
    sample = decoded({"nodata": -99.0}, npy=npy(pixels))
    assert np.argwhere(~sample.mask).tolist() == [[2, 2]]
    assert decoded({"nodata": 0.5}, npy=npy(pixels)).mask.all()
    assert decoded({"nodata": 1e9}, npy=npy(pixels)).mask.all()
    assert fault(npy(np.zeros((4, 4), np.uint16)), "npy", nodata=0.0) == "NoValidPixels"


# bands


def single(value: int, dtype: str = "uint16") -> bytes:
    return npy(np.full((6, 7), value, dtype))


def test_several_files_of_a_key_are_stacked_in_the_order_of_their_names() -> None:
    sample = decoded(B08_npy=single(8), B02_npy=single(2), B03_npy=single(3), json=b"{}")
    assert sample.bands == ("B02", "B03", "B08")
    assert sample.pixels[:, 0, 0].tolist() == [2, 3, 8]
    assert sample.image.name == "key.B02.npy"
    assert [member.name for member in sample.members] == ["key.B08.npy", "key.B02.npy", "key.B03.npy", "key.json"]


def test_the_members_that_hold_pixels_can_be_chosen() -> None:
    files = {"s2_npy": npy(np.ones((3, 6, 7), np.uint16)), "s1_npy": single(9), "label_png": encoded(GRAY, "PNG")}
    with pytest.raises(BadSample, match=r"archive.members") as caught:
        decoded(**files)
    assert caught.value.kind == "SeveralImages"
    sample = decoded({"members": ["s2.npy", "s1.npy"]}, **files)
    assert sample.bands == ("s2.b1", "s2.b2", "s2.b3", "s1")
    assert sample.pixels[:, 0, 0].tolist() == [1, 1, 1, 9]
    assert decoded({"members": ["label.png"]}, **files).bands == ("gray",)
    with pytest.raises(BadSample, match="no member dem.npy"):
        decoded({"members": ["dem.npy"]}, **files)
    mixed = decoded({"members": ["s2.npy", "label.png"]}, **files)
    assert (mixed.bands, mixed.pixels.dtype) == (("s2.b1", "s2.b2", "s2.b3", "label"), np.uint16)


def test_two_images_of_one_name_are_ambiguous() -> None:
    with pytest.raises(BadSample) as caught:
        decoded(jpg=encoded(RGB), png=encoded(RGB, "PNG"))
    assert caught.value.kind == "SeveralImages"


def test_bands_are_named_chosen_and_ordered() -> None:
    content = npy(np.arange(3 * 6 * 7, dtype=np.uint16).reshape(3, 6, 7))
    sample = decoded({"band_names": ["r", "g", "nir"], "bands": ["nir", "r"]}, npy=content)
    assert sample.bands == ("nir", "r")
    assert sample.pixels[:, 0, 0].tolist() == [84, 0]
    assert fault(content, "npy", band_names=["r"]) == "WrongBands"
    assert fault(content, "npy", bands=["b9"]) == "WrongBands"


def test_a_band_that_is_not_chosen_spoils_no_pixel() -> None:
    pixels = np.ones((2, 6, 7), np.float32)
    pixels[1] = np.nan
    assert decoded({"bands": ["b1"]}, npy=npy(pixels)).mask.all()


def test_conform_gives_the_archives_bands_and_dtype() -> None:
    def sample(content: bytes) -> Sample:
        return decode(raw(png=content), ArchiveConfig())

    colour = sample(encoded(RGB, "PNG"))
    assert conform(colour, ("red", "green", "blue"), "uint8") is colour
    assert conform(colour, ("blue",), "uint8").pixels[0, 3, 4] == RGB[3, 4, 2]
    grey = conform(sample(encoded(GRAY, "PNG")), ("red", "green", "blue"), "uint8")
    assert grey.bands == ("red", "green", "blue")
    np.testing.assert_array_equal(grey.pixels, np.stack([GRAY] * 3))
    for bands, dtype, kind in ((("nir",), "uint8", "WrongBands"), (("red",), "uint16", "WrongDtype")):
        with pytest.raises(BadSample) as caught:
            conform(colour, bands, dtype)
        assert caught.value.kind == kind
    with pytest.raises(BadSample) as caught:
        conform(sample(encoded(DEEP[..., 0], "PNG")), ("red", "green", "blue"), "uint16")
    assert caught.value.kind == "WrongBands"
