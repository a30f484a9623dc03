"""Thumbnails: small JPEGs of the right bands, on one fixed scale."""

import io

import numpy as np
import pytest
from PIL import Image

from curation.scoring.thumbnail import in_share, thumbnail


def opened(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return np.asarray(image)


def drawn(pixels: np.ndarray, high: float, bands: tuple[str, ...], mask: np.ndarray | None = None) -> np.ndarray:
    mask = np.ones(pixels.shape[1:], bool) if mask is None else mask
    return opened(thumbnail(pixels, mask, np.array([[0, high]] * len(pixels), np.float32), bands))


def flat(*levels: int, dtype: str = "uint8", side: int = 32) -> np.ndarray:
    return np.stack([np.full((side, side), level, dtype) for level in levels])


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        (("red", "green", "blue"), (200, 100, 20)),
        (("B02", "B03", "B04", "B08"), (20, 100, 200)),  # B04, B03, B02
        (("S2L2A.B02", "S2L2A.B03", "S2L2A.B04", "S1GRD.vv"), (20, 100, 200)),
        (("a", "b", "c", "d"), (200, 100, 20)),
    ],
)
def test_red_green_and_blue_are_found_by_name(bands: tuple[str, ...], expected: tuple[int, ...]) -> None:
    pixels = flat(*(200, 100, 20, 60)[: len(bands)])
    np.testing.assert_allclose(drawn(pixels, 255, bands).reshape(-1, 3).mean(axis=0), expected, atol=4)


def test_one_or_two_bands_are_grey() -> None:
    assert drawn(flat(80), 255, ("gray",)).shape == (32, 32)
    np.testing.assert_allclose(drawn(flat(80, 200), 255, ("VV", "VH")).mean(), 80, atol=2)


def test_large_tiles_shrink_and_small_ones_stay() -> None:
    wide = np.zeros((3, 100, 300), np.uint8)
    assert drawn(wide, 255, ("red", "green", "blue")).shape == (32, 96, 3)
    assert drawn(wide[:, :40, :50], 255, ("red", "green", "blue")).shape == (40, 50, 3)


def test_the_scale_is_the_archives_not_the_tiles() -> None:
    dark, bright = (drawn(flat(*[level] * 3, dtype="uint16"), 4000, ("a", "b", "c")) for level in (400, 2000))
    assert 40 < dark.mean() < 80  # a tenth of the range: lifted, but not stretched to white
    assert 140 < bright.mean() < 190


def test_reflectance_is_drawn_as_bright_as_its_digital_numbers() -> None:
    dn = flat(*[400] * 3, dtype="uint16")
    reflectance = (dn / 10000).astype(np.float32)
    limits, mask = np.array([[0, 0.4]] * 3, np.float32), np.ones((32, 32), bool)
    bands = ("S2L2A.B02", "S2L2A.B03", "S2L2A.B04")
    drawn_so = opened(thumbnail(reflectance, mask, limits, bands, "S2L2A: reflectance"))
    np.testing.assert_allclose(drawn_so.mean(), drawn(dn, 4000, bands).mean(), atol=1)
    linear = opened(thumbnail(reflectance, mask, limits, bands, "db"))
    np.testing.assert_allclose(linear.mean(), 25.5, atol=1)


def test_invalid_pixels_are_grey_whatever_they_hold() -> None:
    pixels = np.full((3, 32, 32), np.nan, np.float32)
    pixels[:, :, :16] = 1
    mask = np.isfinite(pixels[0])
    shown = drawn(pixels, 1, ("a", "b", "c"), mask)
    assert shown[:, :12].mean() > 250
    np.testing.assert_allclose(shown[:, 20:].mean(), 128, atol=2)


def test_the_share_is_hashed_and_grows_with_itself() -> None:
    ids = [f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for i in range(20_000)]
    few, more = ({i for i in ids if in_share(i, share)} for share in (0.1, 0.3))
    assert few < more
    assert len(few) == pytest.approx(2000, rel=0.05)
    assert not any(in_share(i, 0) for i in ids)
    assert all(in_share(i, 1) for i in ids)
