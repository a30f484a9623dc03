"""Cuts images into tiles: where the windows lie, and what a tile takes along of its image."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from curation.archive.sample import Sample, Window


def tiles(sample: Sample, size: int | None, stride: int | None) -> Iterator[Sample]:
    """The tiles of a sample; itself where nothing is to be cut, or a reader has cut it already."""
    if size is None or sample.window is not None:
        yield sample
        return
    height, width = sample.mask.shape
    for window in windows(height, width, size, stride or size):
        yield cut(sample, window)


def windows(height: int, width: int, size: int, stride: int) -> Iterator[Window]:
    """The tiles of an image, row by row.

    The last of a row or column is moved back to the image's edge where it
    would go beyond; a rest of less than half a stride is left out. An image
    smaller than a tile is one tile, as it is.
    """
    for row in _starts(height, size, stride):
        for column in _starts(width, size, stride):
            yield Window(row, column, min(size, height), min(size, width))


def _starts(length: int, size: int, stride: int) -> list[int]:
    if length <= size:
        return [0]
    count = int((length - size) / stride + 0.5) + 1
    return [min(i * stride, length - size) for i in range(count)]


def cut(sample: Sample, window: Window) -> Sample:
    """A tile of a sample: its pixels, masks and place; key and window say which."""
    rows, columns = slice(window.row, window.row + window.height), slice(window.column, window.column + window.width)
    mask, clouds = sample.mask[rows, columns], None if sample.clouds is None else sample.clouds[rows, columns]
    place = sample.place and sample.place.window(window.row, window.column)
    return replace(
        sample,
        key=sample.key + window.suffix,
        pixels=sample.pixels[:, rows, columns],
        mask=mask,
        clouds=clouds,
        cloud_fraction=None
        if clouds is None
        else cloudy(clouds, mask),  # what is said of the image is not true of a tile
        window=window,
        place=place,
        footprint=place.footprint(window.height, window.width) if place else None,
    )


def cloudy(clouds: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float | None:
    """The cloudy share of the valid pixels; ``None`` where none is valid."""
    valid = int(mask.sum())
    return float((clouds & mask).sum()) / valid if valid else None
