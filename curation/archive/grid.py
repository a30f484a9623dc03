"""Brings bands of several resolutions to one grid.

A pixel of the new grid is made of the same source pixels with the same weights
however small the part that is asked for: a tile is what the whole image would
be there, bit by bit.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.place import Georeference

CUBIC = -0.5  # Keys 1981, "Cubic convolution interpolation": third-order accurate


@dataclass(frozen=True, slots=True)
class Span:
    """Some pixels of one axis of a grid, and the axis of another grid over the same ground that they are made of.

    Attributes:
        have, want: pixels of the whole axis there and here.
        start, stop: those in question, here.
    """

    have: int
    want: int
    start: int
    stop: int

    def source(self, method: str) -> tuple[int, int]:
        """First and last (exclusive) pixel there that these are made of."""
        at = _taps(self, method)[0]
        return int(at.min()), int(at.max()) + 1


def resample(
    pixels: NDArray[Any], mask: NDArray[np.bool_], shape: tuple[int, int], method: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """All of an image on another grid over the same ground.

    Finer ones by ``method``, coarser ones as the mean over their area. Invalid
    pixels take no part: what is interpolated is pixels times mask over mask.

    Args:
        pixels: ``(bands, height, width)``.
        mask: ``(height, width)``, True where valid.
        shape: height and width to come to.
        method: ``nearest``, ``bilinear`` or ``cubic``.

    Returns:
        Pixels of the same dtype, rounded where they are integers, and the mask, True where the nearest pixel is valid.
    """
    rows, columns = (Span(have, want, 0, want) for have, want in zip(mask.shape, shape, strict=True))
    used = slice(*rows.source(method)), slice(*columns.source(method))
    return resample_part(pixels[:, used[0], used[1]], mask[used], rows, columns, method)


def resample_part(
    pixels: NDArray[Any], mask: NDArray[np.bool_], rows: Span, columns: Span, method: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A part of what :func:`resample` makes, of those pixels alone that the spans' ``source`` names."""
    nearest = _Axis(rows, "nearest", method), _Axis(columns, "nearest", method)
    valid = nearest[0].pick(nearest[1].pick(mask, -1), -2)
    if method == "nearest":
        return nearest[0].pick(nearest[1].pick(pixels, -1), -2), valid
    down, right = _Axis(rows, method, method), _Axis(columns, method, method)
    if mask.all():
        made = down.blend(right.blend(pixels, -1), -2)
    else:
        made = down.blend(right.blend(np.where(mask, pixels, 0), -1), -2)
        share = down.blend(right.blend(mask, -1), -2)
        whole, none = np.abs(share - 1) < 1e-5, np.abs(share) < 1e-3
        made /= np.where(whole | none, np.float32(1), share)
    if pixels.dtype.kind in "ui":
        info = np.iinfo(pixels.dtype)
        made = np.clip(np.rint(made), info.min, info.max)
    return made.astype(pixels.dtype), valid


class _Axis:
    """One axis of a part: of which of its source pixels each pixel is made."""

    def __init__(self, span: Span, method: str, cut_for: str) -> None:
        at, self.weights = _taps(span, method)
        self.at = at - span.source(cut_for)[0]

    def pick(self, values: NDArray[Any], axis: int) -> NDArray[Any]:
        picked: NDArray[Any] = values.take(self.at[0], axis)
        return picked

    def blend(self, values: NDArray[Any], axis: int) -> NDArray[np.float32]:
        """Weighted sums, always in the same order."""
        values = values.astype(np.float32, copy=False)
        made: NDArray[np.float32] = values.take(self.at[0], axis)
        if len(self.at) == 1:
            return made
        shape = (-1,) if axis == -1 else (-1, 1)
        made *= self.weights[0].reshape(shape)
        for at, weight in zip(self.at[1:], self.weights[1:], strict=True):
            made += values.take(at, axis) * weight.reshape(shape)
        return made


@lru_cache(maxsize=1024)
def _taps(span: Span, method: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each pixel the source pixels (taps, n) and their weights, of sum 1; beyond the edge its pixels go on."""
    scale = span.have / span.want
    centre = (np.arange(span.start, span.stop) + 0.5) * scale
    if method == "nearest" or scale == 1:
        at, weights = np.floor(centre)[None], np.ones((1, len(centre)))
    elif scale > 1:  # the mean over its area
        left, right = centre - scale / 2, centre + scale / 2
        at = np.floor(left) + np.arange(int(np.ceil(scale)) + 1)[:, None]
        weights = np.clip(np.minimum(right, at + 1) - np.maximum(left, at), 0, None) / scale
    else:
        first = np.floor(centre - 0.5)
        after = centre - 0.5 - first
        if method == "bilinear":
            at, weights = np.stack([first, first + 1]), np.stack([1 - after, after])
        else:
            at = first + np.arange(-1, 3)[:, None]
            weights = _cubic(np.abs(after - np.arange(-1, 3)[:, None]))
    return np.clip(at, 0, span.have - 1).astype(np.int64), weights.astype(np.float32)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)


def same_ground(
    shape: tuple[int, int], place: Georeference | None, other_shape: tuple[int, int], other_place: Georeference | None
) -> bool:
    """Whether two grids' edges are the same to a pixel of the coarser one, as far as can be told."""
    (height, width), (rows, columns) = shape, other_shape
    if place and other_place:
        if place.crs != other_place.crs:
            return False
        edges = np.subtract(place.bounds(height, width), other_place.bounds(rows, columns))
        a, b, _, d, e, _ = (place if height * width < rows * columns else other_place).transform
        return bool(np.abs(edges).max() <= max(abs(a) + abs(b), abs(d) + abs(e)))
    return bool(abs(height * columns - width * rows) <= max(height, width, rows, columns))
