"""Speckle: radar's noise, averaged before its entropy is taken, and the entropy that it alone would have reported.

The power of a homogeneous ground is gamma-distributed, mean 1 and variance 1 over the equivalent number of looks (Lee
and Pottier 2009, "Polarimetric Radar Imaging", 4.2). A tile of nothing but speckle has the entropy of its logarithm.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

BINS = 256  # of the entropy's histogram
WINDOW = 4  # averaged pixels a side of the windows that the number of looks is estimated in
SHARE = 0.05  # of the windows, taken to be homogeneous: those of the most looks
MOST_LOOKS = 1e4

Floats = NDArray[np.float32]


def multilook(decibels: Floats, mask: NDArray[np.bool_], looks: int) -> tuple[Floats, NDArray[np.bool_]]:
    """The mean of the power over squares of ``looks`` x ``looks`` pixels, in dB again.

    Pixels left over at the right and lower edge are left out; a picture smaller
    than a square stays as it is.

    Args:
        decibels: ``(bands, height, width)``.
        mask: ``(height, width)``, True where a pixel counts.
        looks: pixels a side.

    Returns:
        ``(bands, height // looks, width // looks)``, and the mask, True where at least half of a square counts.
    """
    bands, height, width = decibels.shape
    rows, columns = height // looks, width // looks
    if looks == 1 or not rows or not columns:
        return decibels, mask
    cut = (slice(rows * looks), slice(columns * looks))
    share = mask[cut].reshape(rows, looks, columns, looks).mean(axis=(1, 3), dtype=np.float32)
    power = np.where(mask[cut], np.float32(10) ** (np.where(mask, decibels, 0)[(slice(None), *cut)] / 10), 0)
    mean = power.reshape(bands, rows, looks, columns, looks).mean(axis=(2, 4), dtype=np.float32)
    made = 10 * np.log10(np.maximum(mean / np.maximum(share, 1e-6), 1e-30))
    return made.astype(np.float32), share >= 0.5


def equivalent_looks(tiles: Sequence[tuple[Floats, NDArray[np.bool_]]]) -> NDArray[np.float64]:
    """The equivalent number of looks of averaged tiles, a band, by mean² / variance over small windows.

    Texture only lowers the quotient of a window, so the upper end of its
    distribution is that of homogeneous ground: the estimate is its 95th percentile,
    over how far that lies above the truth where all is homogeneous (the variance of
    a window is then distributed as chi-squared). So it is without bias for pure
    speckle, and too low, its entropy too high, where hardly any ground is homogeneous.

    Args:
        tiles: dB ``(bands, height, width)`` and mask each, as :func:`multilook` gives them.

    Returns:
        ``(bands,)``; NaN where there is no window without invalid pixels.
    """
    logs = [np.log(looks) for decibels, mask in tiles for looks in _window_looks(decibels, mask)]
    if not logs:
        return np.full(len(tiles[0][0]) if tiles else 0, np.nan)
    upper = np.quantile(np.stack(logs), 1 - SHARE, axis=0)
    return np.asarray(np.exp(upper) * _chi_squared(WINDOW**2 - 1, SHARE))


def _window_looks(decibels: Floats, mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    power = 10 ** (decibels.astype(np.float64) / 10)
    for row in range(0, mask.shape[0] - WINDOW + 1, WINDOW):
        for column in range(0, mask.shape[1] - WINDOW + 1, WINDOW):
            at = (slice(row, row + WINDOW), slice(column, column + WINDOW))
            if mask[at].all():
                values = power[(slice(None), *at)].reshape(len(power), -1)
                variance = np.maximum(values.var(axis=1, ddof=1), 1e-300)
                yield np.clip(values.mean(axis=1) ** 2 / variance, 1 / MOST_LOOKS, MOST_LOOKS)


def _chi_squared(freedom: int, share: float) -> float:
    """The quantile of chi-squared over its degrees of freedom (Wilson and Hilferty 1931)."""
    ninth = 2 / (9 * freedom)
    return float((1 - ninth + NormalDist().inv_cdf(share) * math.sqrt(ninth)) ** 3)


def speckle_entropy(looks: float, low: float, high: float, pixels: int) -> float:
    """The entropy, in bits, that a tile of nothing but speckle has on average, over 256 bins between two ends in dB.

    Its mean lies in the middle of the range. The expectation is over tiles of ``pixels`` independent pixels:
    log2 n - (1/n) sum_b E[k_b log2 k_b], k_b binomial; few pixels cannot fill 256 bins.
    """
    import torch

    edges = np.linspace(low, high, BINS + 1)[1:-1] - (low + high) / 2  # the end bins are open
    power = torch.as_tensor(10 ** (edges / 10) * looks, dtype=torch.float64)
    below = torch.special.gammainc(torch.full_like(power, looks), power).numpy()
    shares = np.diff(below, prepend=0.0, append=1.0)
    shares = shares[shares > 1e-12]
    counts = np.arange(1, pixels + 1)
    logs = np.cumsum(np.log(counts))
    choose = logs[-1] - np.concatenate([[0], logs])[counts] - np.concatenate([[0], logs])[pixels - counts]
    expected = 0.0
    for share in shares:
        rest = math.log1p(-share) if share < 1 else -math.inf
        chance = np.exp(choose + counts * math.log(share) + np.where(counts < pixels, (pixels - counts) * rest, 0))
        expected += float((chance * counts * np.log2(counts)).sum())
    return max(0.0, math.log2(pixels) - expected / pixels)
