"""Writes an image as a GeoTIFF that reads back as the same image: what a tile that was cut becomes as a file."""

import html
import io
from typing import Any

import numpy as np
import tifffile
from pyproj import CRS

from curation.archive.place import Georeference
from curation.archive.sample import Image
from curation.errors import BadSample

_LEVEL = 1  # of deflate: the higher ones take thrice the time for some per cent
_EPSG = "EPSG:"


def has_code(place: Georeference) -> bool:
    """Whether the reference system of a place can stand in a GeoTIFF that everybody reads."""
    return place.crs.startswith(_EPSG)


def encode_geotiff(image: Image) -> bytes:
    """A deflated GeoTIFF, band after band; its bytes depend on the image (and the version of zlib) only.

    Bands are named as GDAL names them, ``nodata`` is GDAL's tag, a mask is a mask page. A place is written where
    its reference system has an EPSG code (:func:`has_code`).

    Raises:
        BadSample: ``Unsupported``, its numbers are of a kind that a TIFF cannot hold.
    """
    pixels = np.asarray(image.pixels)
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8) * np.uint8(255)  # as it is decoded
    if pixels.dtype.kind not in "iuf":
        raise BadSample("decode", "Unsupported", f"a TIFF cannot hold {pixels.dtype}")
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    bands, file = len(pixels), io.BytesIO()
    tags: list[tuple[Any, ...]] = [(42112, 2, None, _descriptions(image.bands), True)]
    if image.nodata is not None:
        tags.append((42113, 2, None, f"{image.nodata:.17g}", True))
    if image.place is not None and has_code(image.place):
        tags += _place_tags(image.place)
    common: dict[str, Any] = {
        "compression": "adobe_deflate",
        "compressionargs": {"level": _LEVEL},
        "metadata": None,
        "software": "",
        "contiguous": False,
    }
    with tifffile.TiffWriter(file, byteorder="<") as writer:
        writer.write(
            pixels if bands > 1 else pixels[0],
            photometric="minisblack",
            planarconfig="separate" if bands > 1 else None,
            extrasamples=["unspecified"] * (bands - 1) if bands > 1 else None,
            predictor=2 if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 4 else None,
            extratags=tags,
            **common,
        )
        if image.mask is not None and not image.mask.all():
            writer.write(np.asarray(image.mask, bool), photometric="mask", subfiletype=4, **common)
    return file.getvalue()


def _descriptions(bands: tuple[str, ...]) -> str:
    items = (
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{html.escape(band)}</Item>'
        for i, band in enumerate(bands)
    )
    return f"<GDALMetadata>{''.join(items)}</GDALMetadata>"


def _place_tags(place: Georeference) -> list[tuple[Any, ...]]:
    """The tags that say where the grid lies."""
    a, b, c, d, e, f = place.transform
    if b == d == 0 and a > 0 > e:
        tags: list[tuple[Any, ...]] = [(33550, 12, 3, (a, -e, 0.0)), (33922, 12, 6, (0.0, 0.0, 0.0, c, f, 0.0))]
    else:
        tags = [(34264, 12, 16, (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))]
    geographic = CRS.from_user_input(place.crs).is_geographic
    keys = [(1024, 0, 1, 2 if geographic else 1), (1025, 0, 1, 1)]
    keys.append((2048 if geographic else 3072, 0, 1, int(place.crs.removeprefix(_EPSG))))
    flat = [number for entry in [(1, 1, 0, len(keys)), *keys] for number in entry]
    return [(*tag, True) for tag in tags] + [(34735, 3, len(flat), tuple(flat), True)]
