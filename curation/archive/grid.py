"""Brings bands of several resolutions to one grid."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

Box = tuple[float, float, float, float]

METHODS = {
    "nearest": Pillow.Resampling.NEAREST,
    "bilinear": Pillow.Resampling.BILINEAR,
    "cubic": Pillow.Resampling.BICUBIC,
}


def resample(
    pixels: NDArray[Any], mask: NDArray[np.bool_], shape: tuple[int, int], method: str, box: Box | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels on another grid over the same ground.

    Finer ones by ``method``, coarser ones as the mean over their area. Invalid
    pixels take no part: what is interpolated is pixels times mask over mask.

    Args:
        pixels: ``(bands, height, width)``.
        mask: ``(height, width)``, True where valid.
        shape: height and width to come to.
        method: ``nearest``, ``bilinear`` or ``cubic``.
        box: left, top, right, bottom of the ground in question, in the pixels' own coordinates; what lies beyond
            still counts at its edges. ``None``: all of it.

    Returns:
        Pixels of the same dtype, rounded where they are integers, and the mask, True where the nearest pixel is valid.
    """
    height, width = pixels.shape[1:]
    box = box or (0, 0, width, height)
    valid = _nearest(mask, shape, box)
    if method == "nearest":
        return np.stack([_nearest(band, shape, box) for band in pixels]), valid
    coarser = box[3] - box[1] > shape[0] or box[2] - box[0] > shape[1]
    how = Pillow.Resampling.BOX if coarser else METHODS[method]
    if mask.all():
        made = np.stack([_resize(band, shape, how, box) for band in pixels])
    else:
        share = _resize(mask, shape, how, box)
        made = np.stack([_resize(np.where(mask, band, 0), shape, how, box) for band in pixels])
        made /= np.where(np.abs(share) > 1e-3, share, 1)
    if pixels.dtype.kind in "ui":
        info = np.iinfo(pixels.dtype)
        made = np.clip(np.rint(made), info.min, info.max)
    return made.astype(pixels.dtype), valid


def _resize(band: NDArray[Any], shape: tuple[int, int], how: Pillow.Resampling, box: Box) -> NDArray[np.float32]:
    image = Pillow.fromarray(np.ascontiguousarray(band, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), how, box))


def _nearest(band: NDArray[Any], shape: tuple[int, int], box: Box) -> NDArray[Any]:
    """The pixel that each new one's centre lies in."""
    left, top, right, bottom = box
    rows = top + (np.arange(shape[0]) + 0.5) * (bottom - top) / shape[0]
    columns = left + (np.arange(shape[1]) + 0.5) * (right - left) / shape[1]
    rows, columns = (np.clip(at.astype(int), 0, most - 1) for at, most in zip((rows, columns), band.shape, strict=True))
    found: NDArray[Any] = band[rows[:, None], columns]
    return found
