"""Zipped stores as files of a sample: the images of a zip in a tar or folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.image import bad_image, check_pixels
from curation.archive.sample import Image, RawSample, Rejection
from curation.archive.zarr.arrays import unzip_arrays
from curation.archive.zarr.axes import Position, base
from curation.archive.zarr.layout import Layout


def decode_zarr(data: bytes, max_pixels: int, position: Position = (), nodata: float | None = None) -> Image:
    """Decode the image in the bytes of a zipped store: ``(band, y, x)``, ``(y, x)``, or one of several times.

    Args:
        data: the zip.
        max_pixels: limit of height times width.
        position: which one along the sample axes; where there is but one it does not matter.
        nodata: ``archive.nodata``, else what the file declares: a chunk that is not there may hold nothing else.

    Raises:
        BadSample: it is damaged, too large, or holds no image, several, or pickles.
    """
    layout = Layout(unzip_arrays(data, 64 * max_pixels), None, "")
    count = math.prod(layout.samples)
    at = (0,) * len(layout.samples) if count == 1 else tuple(position)
    if len(at) != len(layout.samples):
        raise bad_image(f"zarr: {count} images in one file", "SeveralImages")
    images = [layout.image(name, _read_one(layout, name, at, max_pixels, nodata), at) for name in layout.pixels]
    if len({image.pixels.shape[1:] for image in images}) > 1 or len({image.pixels.dtype for image in images}) > 1:
        raise bad_image(f"zarr: {', '.join(layout.pixels)} differ in size or dtype", "SeveralImages")
    image = images[0]
    if len(images) > 1:
        image.bands = tuple(band for one in images for band in one.bands)
        image.pixels = np.concatenate([one.pixels for one in images])
    image.masks = {base(name): _read_one(layout, name, at, max_pixels, None)[0] for name in layout.masks}
    image.said = layout.said(at)
    return image


def _read_one(layout: Layout, name: str, at: Position, max_pixels: int, nodata: float | None) -> NDArray[Any]:
    pixels = layout.images[name]
    (height, width), block = pixels.size, [slice(i, i + 1) for i in at]
    check_pixels(height, width, pixels.bands, max_pixels)
    part = block, slice(0, height), slice(0, width)
    layout.check_there(name, *part, nodata)
    values: NDArray[Any] = pixels.read(*part)[(0,) * len(at)]
    return values


def by_time(items: Iterator[RawSample | Rejection]) -> Iterator[RawSample | Rejection]:
    """Samples of a tar, numbered anew: one whose zipped Zarr holds several times becomes one a time.

    Its key gets ``_t0``, ``_t1``, … (the indices along the sample axes), its position says which it is.
    """
    index = 0
    for item in items:
        places = _times(item) if isinstance(item, RawSample) else [()]
        for place in places:
            one = replace(item, index=index)
            if place:
                assert isinstance(one, RawSample)
                one.key, one.position = item.key + "_t" + "_".join(map(str, place)), place
            yield one
            index += 1


def _times(raw: RawSample) -> Sequence[tuple[int, ...]]:
    """The places of a sample's images along their sample axes; one empty place for a single image."""
    for suffix, data in raw.data.items():
        if suffix.endswith("zip"):
            try:
                samples = Layout(unzip_arrays(data, 0), None, "").samples
            except Exception:  # noqa: BLE001 - decoding will tell
                break
            if math.prod(samples) > 1:
                return list(itertools.product(*map(range, samples)))
    return [()]
