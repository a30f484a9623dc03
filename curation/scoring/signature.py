"""What the catalog keeps of a tile so that its near-copies can be found without its pixels.

Both are made of one small grey picture: the mean of the bands, scaled by the
archive's fixed ranges, blurred by a Gaussian and sampled on a 20 x 20 grid. The
blur is what makes shifts by a fraction of a cell harmless: sampled without it
(block means), a copy shifted by half a cell correlates at 0.6 with its original,
with it at 0.95.

- The *signature* is the logarithm of the picture's power at each spatial
  frequency, taken together over the eight mirrorings and rotations: shifts change
  only the phases, brightness only the mean, contrast only the sum. It proposes.
- The *patch* is the picture itself, with the levels of up to three bands. It confirms.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

GRID = 20  # cells a side
CUTOFF = 7  # highest spatial frequency used, cycles a tile; the blur leaves the next ones too weak
LEVELS = 3  # band groups whose mean level stands in the patch
NOISE = 0.05  # what storing pixels as 8-bit numbers does to a cell, in levels of 255 (standard deviation; 64 px tiles)

_HEADER = 4 * (LEVELS + 1)
PATCH_BYTES = _HEADER + GRID * GRID
SPECTRUM = (2 * CUTOFF + 1) ** 2

REACH = 4  # how far the window can follow a shift: half of the shift, in 128ths of the tile
_SIDE = np.minimum(1, 2 * np.sin(np.pi * (np.arange(GRID) + 0.5) / GRID))
_WINDOW = np.outer(_SIDE, _SIDE).astype(np.float32)  # falls to nothing at the edges, where shifts bring in new ground
WINDOW_SUM = float(_WINDOW.sum())
WINDOW_ENERGY = float((_WINDOW**2).sum())


def signature_and_patch(
    pixels: NDArray[np.generic], mask: NDArray[np.bool_], ranges: NDArray[np.float32]
) -> tuple[NDArray[np.float32], bytes]:
    """The two catalog columns that near-duplicates are found by.

    Args:
        pixels: ``(bands, height, width)``, uint8, uint16, int16 or float32.
        mask: ``(height, width)``, True where valid; at least one pixel is.
        ranges: ``(bands, 2)`` low and high end of each band's fixed range, in the pixels' units.

    Returns:
        The signature, ``(36,)`` float32: 35 logarithms of power, then that of the
        contrast; the same for all eight mirrorings and rotations but for rounding.
        The patch, 416 bytes: four little-endian float32 (levels of the thirds of the
        bands, 0 to 255; levels a step) and 20 x 20 uint8 (128 is the mean level).
    """
    levels, grey = _picture(pixels, mask, ranges)
    deviation = grey - (grey * _WINDOW).sum() / WINDOW_SUM
    step = max(float(np.abs(deviation).max()) / 127, 1e-6)
    cells = np.rint(deviation / np.float32(step) + 128).astype(np.uint8)
    header = np.array([*levels, step], dtype="<f4")
    return _signature(deviation), header.tobytes() + cells.tobytes()


def patch_levels(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean levels ``(n, 3)`` of the thirds of the bands, 0 to 255, from patches ``(n, 416)``."""
    return np.ascontiguousarray(patches[:, : _HEADER - 4]).view("<f4").astype(np.float32)


def patch_spectra(
    patches: NDArray[np.uint8], down: NDArray[np.intp] | None = None, right: NDArray[np.intp] | None = None
) -> NDArray[np.complex64]:
    """Centred spectra of stored patches, seen through a window that falls to nothing at the edges.

    Args:
        patches: ``(n, 416)`` bytes.
        down: where the window's centre lies, ``(n,)`` -4 to 4 in 128ths of the tile from its centre; None is there.
        right: the same along the second axis.

    Returns:
        Fourier coefficients ``(n, 15 * 15)`` of the deviation from the mean, in levels, for
        frequencies -7 to 7 along each axis, phases about the window's centre: so mirroring
        negates a frequency, and transposing swaps the two.
    """
    step = np.ascontiguousarray(patches[:, _HEADER - 4 : _HEADER]).view("<f4").astype(np.float32)
    cells = patches[:, _HEADER:].reshape(-1, GRID, GRID).astype(np.float32) - 128
    waves = _waves()
    rows = waves[REACH] if down is None else waves[REACH + down]
    columns = waves[REACH] if right is None else waves[REACH + right]
    spectra = rows @ (cells * step[:, :, None]) @ columns.swapaxes(-1, -2)
    window = rows.sum(axis=-1)[..., :, None] * columns.sum(axis=-1)[..., None, :]
    centre = (..., slice(CUTOFF, CUTOFF + 1), slice(CUTOFF, CUTOFF + 1))
    spectra -= spectra[centre] / window[centre] * window
    return np.asarray(spectra).reshape(len(patches), SPECTRUM)


def _picture(
    pixels: NDArray[np.generic], mask: NDArray[np.bool_], ranges: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Levels ``(3,)`` and the blurred grey picture ``(20, 20)``, in levels of 0 to 255."""
    bands, height, width = pixels.shape
    low, high = ranges[:, 0], ranges[:, 1]
    valid = np.count_nonzero(mask)
    whole = valid == mask.size
    x = (pixels if whole else np.where(mask, pixels, 0)).astype(np.float32)
    if pixels.dtype != np.uint8 or low.any() or (high != 255).any():
        x -= low[:, None, None]
        x *= (255 / np.maximum(high - low, np.finfo(np.float32).tiny))[:, None, None]
        np.clip(x, 0, 255, out=x)
        if not whole:
            x *= mask
    flat = x.reshape(bands, -1)
    means = flat @ np.ones(height * width, np.float32) / np.float32(valid)
    mean = (np.full(bands, 1 / bands, np.float32) @ flat).reshape(height, width)
    rows, columns = _blur(height), _blur(width).T
    grey = rows @ mean @ columns
    if not whole:
        share = rows @ mask.astype(np.float32) @ columns
        grey = np.where(share > 0.1, grey / np.maximum(share, 0.1), means.mean())  # a cell of too few pixels is flat
    thirds = [bands * i // LEVELS for i in range(LEVELS + 1)]
    levels = (
        [means[i:j].mean() for i, j in pairwise(thirds)] if bands > LEVELS else means.take(range(LEVELS), mode="wrap")
    )
    return np.array(levels, dtype=np.float32), grey


def _signature(deviation: NDArray[np.float32]) -> NDArray[np.float32]:
    waves = _waves()[REACH]
    spectrum = waves[CUTOFF:] @ deviation @ waves.T
    power = _orbits() @ (spectrum.real**2 + spectrum.imag**2).ravel() / WINDOW_ENERGY
    logs = np.log(power + np.float32(NOISE**2))
    contrast = np.sqrt(((deviation * _WINDOW) ** 2).sum() / WINDOW_ENERGY)
    made = np.empty(len(logs) + 1, dtype=np.float32)
    made[:-1] = (logs - logs.mean()) * _trust()
    made[-1] = np.log(contrast + 2 * NOISE)
    return made


@lru_cache(maxsize=64)
def _blur(size: int) -> NDArray[np.float32]:
    """``(20, size)`` weights that blur by a Gaussian of 0.6 cells and sample at the cells' centres."""
    centres = (np.arange(GRID) + 0.5) * size / GRID
    sigma = max(0.6 * size / GRID, 0.5)
    weights = np.exp(-0.5 * ((np.arange(size) + 0.5 - centres[:, None]) / sigma) ** 2)
    weights[weights < 1e-6] = 0  # subnormal numbers are slow
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


@lru_cache(maxsize=1)
def _waves() -> NDArray[np.complex64]:
    """``(9, 15, 20)``: Fourier matrices that hold the window too, about centres displaced by -4 to 4 128ths."""
    moved = (np.arange(GRID) + 0.5) / GRID - np.arange(-REACH, REACH + 1)[:, None] / 128
    window = np.clip(2 * np.sin(np.pi * np.clip(moved, 0, 1)), 0, 1)[:, None, :]
    frequencies = np.arange(-CUTOFF, CUTOFF + 1)[:, None]
    waves = window * np.exp(-2j * np.pi * frequencies * (moved[:, None, :] - 0.5))
    return np.asarray(waves, dtype=np.complex64)


@lru_cache(maxsize=1)
def _orbits() -> NDArray[np.float32]:
    """``(35, 8 * 15)``: means over the frequencies that mirroring and rotation turn into each other."""
    rows, columns = np.meshgrid(np.arange(CUTOFF + 1), np.abs(np.arange(-CUTOFF, CUTOFF + 1)), indexing="ij")
    kinds = [(i, j) for i in range(1, CUTOFF + 1) for j in range(i + 1)]
    same = [(np.maximum(rows, columns) == i) & (np.minimum(rows, columns) == j) for i, j in kinds]
    weight = np.where(rows == 0, 0.5, 1.0)  # the half plane holds row 0 twice
    table = np.stack([(s * weight).ravel() for s in same])
    return np.asarray(table / table.sum(axis=1, keepdims=True), dtype=np.float32)


@lru_cache(maxsize=1)
def _trust() -> NDArray[np.float32]:
    """``(35,)``: orbits of four frequencies are noisier than those of eight."""
    kinds = [(i, j) for i in range(1, CUTOFF + 1) for j in range(i + 1)]
    return np.array([np.sqrt(0.5) if j in (0, i) else 1.0 for i, j in kinds], dtype=np.float32)
