"""What a kept sample is written as: files by suffix, under a key that a tar can hold.

Where a sample is a file (or several) or a cell, these are its original bytes.
Where it is a part of one (a tile, a slice of an array) it is a GeoTIFF of just
that part: the stored numbers on the sample's grid, with names of the bands,
place, nodata and mask; mask bands (``SCL``) are files of their own.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.decode import stored, valid_pixels
from curation.archive.geotiff import encode_geotiff, has_code
from curation.archive.names import IMAGES, SIDECARS, extension
from curation.archive.sample import Image, RawSample
from curation.archive.settings import ArchiveConfig
from curation.archive.sidecar import NAMES, OF_THE_WHOLE, gather
from curation.errors import BadSample
from curation.manifests.loaders.fetch import sniffed
from curation.manifests.loaders.kept import Kept, window_of
from curation.manifests.schema import MANIFEST_SCHEMA

OWN = "curation.json"  # suffix of the member with the manifest's columns
# of the manifest's columns those that are true of the sample wherever it lies; `radiometry` is what its numbers
# become when they are decoded as the manifest's archive was, not what its bytes hold
COLUMNS = [name for name in MANIFEST_SCHEMA.names if name not in ("offset", "size", "position", "radiometry")]

_SEPARATORS = re.compile(r"[/\\\0]")
_UP = re.compile(r"(?:^|(?<=/))\.\.(?=/|$)")


class Files:
    """Makes the files of kept samples; an image is decoded once for all of its tiles that follow each other.

    Args:
        settings: how the archive was read.
    """

    def __init__(self, settings: ArchiveConfig) -> None:
        self.settings = settings
        self._raw: RawSample | None = None
        self._stored: tuple[Image, dict[str, NDArray[Any]], dict[str, Any]] | None = None

    def of(self, kept: Kept) -> Kept:
        """The sample with the files that it is written as in ``raw.data``, and all that is said of it in ``raw.said``.

        Raises:
            BadSample: it can no longer be decoded, or not be written.
        """
        raw = kept.raw
        sliced = raw.position is not None and kept.row["offset"] is not None  # of a zipped Zarr with several times
        if raw.images or kept.row["window"] is not None or sliced:
            data, said = self._cut(kept)
        else:
            data, said = _whole(raw), gather(raw.data, raw.said)
        return replace(kept, raw=replace(raw, data=data, images={}, said=said), sample=None)

    def licence(self, said: Mapping[str, Any]) -> str | None:
        """The licence that is stated of a sample."""
        names = ((self.settings.fields or {}).get("license"), *NAMES["license"])
        return next((str(said[name]) for name in names if name and said.get(name) not in (None, "")), None)

    def _cut(self, kept: Kept) -> tuple[dict[str, bytes], dict[str, Any]]:
        """A part of a file as files of its own."""
        if kept.raw is not self._raw or self._stored is None:
            image, _, flags, said = stored(kept.raw, self.settings)
            self._raw, self._stored = kept.raw, (_with_nodata(image, kept.raw, flags), flags, said)
        image, flags, said = self._stored
        window = window_of(kept.row)
        if window is not None:
            said = {name: value for name, value in said.items() if name not in self._of_the_whole}
        if window is not None and kept.raw.window is None:
            height, width = image.pixels.shape[1:]
            if window.row + window.height > height or window.column + window.width > width:
                what = f"its image is of {width} x {height} pixels, {window} is not in it"
                raise BadSample("decode", "BadShape", what)
            at = slice(window.row, window.row + window.height), slice(window.column, window.column + window.width)
            place = image.place and image.place.window(window.row, window.column)
            mask = None if image.mask is None else image.mask[at]
            image = replace(image, pixels=image.pixels[:, *at], mask=mask, place=place)
            flags = {name: values[at] for name, values in flags.items()}
        said = {**said, **_unwritten_place(image, said)}
        files = {"tif": encode_geotiff(image)}
        for name, values in flags.items():
            files[f"{_plain(name)}.tif"] = encode_geotiff(Image(values[None], (name,), place=image.place))
        return files | _sidecar(said), said

    @property
    def _of_the_whole(self) -> set[str]:
        named = self.settings.fields or {}
        told = (named.get(name) for name in ("footprint", "cloud_fraction", "cloud_cover", "lon", "lat"))
        return {*OF_THE_WHOLE, *filter(None, told)}


def own_file(row: Mapping[str, Any]) -> bytes:
    """The manifest's columns of a sample as JSON."""
    return json.dumps({name: row[name] for name in COLUMNS}, ensure_ascii=False).encode()


def tar_key(key: str) -> str:
    """A key that stands before the suffix of a member's name: as it is, but for what WebDataset would read otherwise.

    >>> tar_key("north/S2A_N0500.SAFE"), tar_key("../up")
    ('north/S2A_N0500_SAFE', '_/up')
    """
    folder, slash, base = _UP.sub("_", key.replace("\\", "_").replace("\0", "_").lstrip("/")).rpartition("/")
    return folder + slash + (base.replace(".", "_") or "_")


def _whole(raw: RawSample) -> dict[str, bytes]:
    """The bytes of a sample's own files, cells by their columns' names with the suffix that their content asks for.

    What only the container said of it becomes a sidecar, unless it has one.
    """
    data: dict[str, bytes] = {}
    for name, content in raw.data.items():
        suffix = _plain(name)
        if raw.position is not None and extension(f".{name}") not in IMAGES | SIDECARS:
            suffix = f"{suffix}.{sniffed(content)}"
        if suffix in data:
            raise BadSample("read", "DuplicateMember", f"{name!r} and another file would both be written as {suffix}")
        data[suffix] = content
    data.pop(OWN, None)  # of a materialised archive that is materialised again
    return data if "json" in map(str.lower, data) else data | _sidecar(raw.said)


def _plain(name: str) -> str:
    return _SEPARATORS.sub("_", name).lstrip(".")


def _sidecar(said: Mapping[str, Any]) -> dict[str, bytes]:
    """What is said as ``json``; nothing where nothing is."""
    told = {name: value for name, value in said.items() if value is not None and not isinstance(value, bytes)}
    return {"json": json.dumps(told, ensure_ascii=False, default=_json, sort_keys=True).encode()} if told else {}


def _json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value.isoformat() if isinstance(value, date) else str(value)


def _with_nodata(image: Image, raw: RawSample, masks: Collection[str]) -> Image:
    """An image of several files with the nodata value that they state, where it marks no pixel that is valid."""
    stated = {one.nodata for name, one in raw.images.items() if name not in masks} - {None}
    if len(stated) != 1 or image.nodata is not None:
        return image
    (nodata,) = stated
    same = np.array_equal(valid_pixels(image.pixels, image.mask, nodata), valid_pixels(image.pixels, image.mask, None))
    return replace(image, nodata=nodata) if same else image


def _unwritten_place(image: Image, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a place that the GeoTIFF cannot hold."""
    if image.place is None or has_code(image.place):
        return {}
    told: dict[str, Any] = {"crs": image.place.crs, "transform": list(image.place.transform)}
    footprint = image.place.footprint(*image.pixels.shape[1:])
    return told if footprint is None or OF_THE_WHOLE & said.keys() else {**told, "footprint": list(footprint)}
