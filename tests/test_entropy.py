"""Entropy says how much a tile holds: checked against NumPy's histogram, and by what must not change it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.scoring.entropy import entropy

WHOLE = np.ones((16, 16), bool)


def reference(band: np.ndarray, mask: np.ndarray, low: float, high: float) -> float:
    """The definition, through np.histogram in float64."""
    x = band[mask].astype(np.float64)
    end = high if band.dtype.kind == "f" else high + 1
    counts, _ = np.histogram(np.clip(x, low, np.nextafter(end, low)), bins=256, range=(low, end))
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def ranges(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, np.float32)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("uint8", 0, 255), ("uint8", 20, 147), ("uint16", 0, 4095), ("int16", -512, 511)]
)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), valid=st.floats(0.05, 1))
def test_integers_agree_with_numpys_histogram(dtype: str, low: int, high: int, seed: int, valid: float) -> None:
    rng = np.random.default_rng(seed)
    span = np.iinfo(dtype)
    centre, width = rng.uniform(low, high), rng.uniform(0, high - low)
    pixels = np.clip(rng.normal(centre, width, (3, 16, 16)), span.min, span.max).astype(dtype)
    mask = rng.random((16, 16)) < valid
    mask[0, 0] = True
    found = entropy(pixels, mask, ranges(*[(low, high)] * 3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [reference(band, mask, low, high) for band in pixels], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_floats_agree_with_numpys_histogram(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(-300, 300, (2, 16, 16)) / 8 + 1 / 16).astype(np.float32)  # away from the bins' edges
    found = entropy(pixels, WHOLE, ranges((-32, 32), (-64, 64)))
    expected = [reference(pixels[0], WHOLE, -32, 32), reference(pixels[1], WHOLE, -64, 64)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_all_grey_levels_alike_are_eight_bits_and_one_level_is_none() -> None:
    even = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(entropy(np.concatenate([even, even * 0 + 7]), WHOLE, ranges(*[(0, 255)] * 2)), [8, 0])


def test_what_is_masked_does_not_count() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 1, (2, 16, 16)).astype(np.float32)
    mask = rng.random((16, 16)) < 0.6
    spoilt = pixels.copy()
    spoilt[0, ~mask], spoilt[1, ~mask] = np.nan, np.inf
    limits = ranges(*[(-3, 3)] * 2)
    np.testing.assert_array_equal(entropy(spoilt, mask, limits), entropy(pixels, mask, limits))
    assert (entropy(pixels, mask, limits) != entropy(pixels, WHOLE, limits)).all()


def test_values_beyond_the_range_fall_into_the_end_bins() -> None:
    pixels = np.array([0, 100, 5000, 65535] * 64, np.uint16).reshape(1, 16, 16)
    assert entropy(pixels, WHOLE, ranges((100, 1123)))[0] == 1.0  # two bins, half each


def test_sensor_noise_over_open_ocean_is_little_information() -> None:
    rng = np.random.default_rng(1)
    ocean = rng.normal(300, 4, (1, 64, 64)).astype(np.uint16)
    land = rng.normal(2000, 700, (1, 64, 64)).clip(0, 65535).astype(np.uint16)
    mask, limits = np.ones((64, 64), bool), ranges((0, 4000))
    assert entropy(ocean, mask, limits)[0] < 2 < 6 < entropy(land, mask, limits)[0]


def test_where_a_pixel_lies_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    pixels, mask = rng.integers(0, 255, (3, 16, 16), np.uint8), rng.random((16, 16)) < 0.7
    order = rng.permutation(256)
    moved, moved_mask = pixels.reshape(3, 256)[:, order].reshape(3, 16, 16), mask.ravel()[order].reshape(16, 16)
    limits = ranges(*[(0, 255)] * 3)
    np.testing.assert_array_equal(entropy(moved, moved_mask, limits), entropy(pixels, mask, limits))
