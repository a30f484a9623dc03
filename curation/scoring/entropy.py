"""Stage I: how much a tile says, as the Shannon entropy of its grey levels.

The histogram's range is fixed for the archive. A stretch to each image's own
range would turn sensor noise over open ocean into information.
"""

import numpy as np
from numpy.typing import NDArray

from curation.scoring.speckle import BINS, multilook

LEAST = 16  # pixels below which nothing is seen


def entropy(pixels: NDArray[np.generic], mask: NDArray[np.bool_], ranges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shannon entropy of each band, H = -sum_b p_b log2 p_b over a histogram of 256 equal bins.

    Values outside the range count in the end bins. For integers the range's end is
    the last value of the last bin: uint8 with 0..255 has one bin a value.

    Args:
        pixels: ``(bands, height, width)``, uint8, uint16, int16 or float32.
        mask: ``(height, width)``, True where a pixel counts (valid, and clear); at least one does.
        ranges: ``(bands, 2)`` low and high end of each band's fixed range, in the pixels' units.

    Returns:
        ``(bands,)`` float32, bits, 0 to 8.
    """
    bands = len(pixels)
    low = ranges[:, :1]
    width = ranges[:, 1:] - low + (0 if pixels.dtype.kind == "f" else 1)
    valid = mask.ravel()
    whole = bool(valid.all())
    values = pixels.reshape(bands, -1)
    if pixels.dtype == np.uint8 and not low.any() and (width == BINS).all():
        bins = values.astype(np.intp)
    else:
        scaled = np.subtract(values if whole else np.where(valid, values, 0), low, dtype=np.float32)  # NaN has no bin
        scaled *= BINS / np.maximum(width, np.finfo(np.float32).tiny)
        bins = np.clip(scaled, 0, BINS - 1, out=scaled).astype(np.intp)
    if not whole:
        bins[:, ~valid] = BINS  # a bin of their own, left out
    counts = np.stack([np.bincount(band, minlength=BINS)[:BINS] for band in bins])
    n = counts[0].sum()
    bits = np.log2(n) - (counts * np.log2(np.maximum(counts, 1))).sum(axis=1) / n
    return np.asarray(np.maximum(bits, 0), dtype=np.float32)


def information(
    pixels: NDArray[np.generic],
    seen: NDArray[np.bool_],
    ranges: NDArray[np.float32],
    decibels: NDArray[np.bool_],
    looks: int,
) -> NDArray[np.float32]:
    """The entropy of each band over what is seen of the ground, of radar after its speckle was averaged.

    Args:
        pixels: ``(bands, height, width)``.
        seen: ``(height, width)``, True where valid and clear.
        ranges: as for :func:`entropy`.
        decibels: ``(bands,)``, True where the numbers are dB.
        looks: pixels a side that radar's power is averaged over.

    Returns:
        ``(bands,)`` float32, bits; 0 where fewer than 16 pixels (after averaging) are seen: they say nothing.
    """
    bits = np.zeros(len(pixels), np.float32)
    for chosen in (np.flatnonzero(~decibels), np.flatnonzero(decibels)):
        if len(chosen):
            part, mask = (pixels, seen) if len(chosen) == len(pixels) else (pixels[chosen], seen)
            if decibels[chosen[0]]:
                part, mask = multilook(np.asarray(part, np.float32), seen, looks)
            if np.count_nonzero(mask) >= LEAST:
                bits[chosen] = entropy(part, mask, ranges[chosen])
    return bits
