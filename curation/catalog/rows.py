"""From raw samples to catalog rows: everything that the catalog says of a sample but its embedding.

Pure: the same chunk gives the same rows in the encoder's actor, in a task
elsewhere, or in a subprocess.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.decode import conform, decode
from curation.archive.names import IMAGES, extension
from curation.archive.radiometry import in_decibels
from curation.archive.sample import Member, RawSample, Rejection, Sample, Window, sample_id
from curation.archive.settings import ArchiveConfig
from curation.archive.sidecar import gather, in_name, read_fields
from curation.archive.tiling import tiles
from curation.encoders.precomputed import Vectors
from curation.errors import BadSample
from curation.scoring.entropy import information
from curation.scoring.signature import signature_and_patch
from curation.scoring.thumbnail import in_share, thumbnail

SAID = ("label", "caption", "time", "footprint", "license", "source_id", "cloud_fraction", "incidence_angle")


@dataclass(slots=True)
class Row:
    """A sample's catalog columns, and its tile in the encoder's shape (bands, size, size), or its vector (dim,)."""

    columns: dict[str, Any]
    tile: NDArray[Any]


Result = Row | Rejection | None  # None: a tile without a valid pixel, which is no sample


@dataclass(frozen=True)
class RowMaker:
    """Makes rows out of raw samples.

    Args:
        archive: how to decode, with what the fit found.
        bands, dtype, radiometry: what every sample must come to.
        ranges: float32 (bands, 2), the fixed radiometric range.
        prepare: the encoder's own preparation of a sample.
        thumbnails: share of the samples that get a thumbnail.
        lookup: gives a sample's vectors by shard, key and window; then no pixels are looked at.
        decode: replaced in tests.
    """

    archive: ArchiveConfig
    bands: tuple[str, ...]
    dtype: str
    radiometry: str
    ranges: NDArray[np.float32]
    prepare: Callable[[Sample], NDArray[Any]]
    thumbnails: float
    lookup: Callable[[str, str, Window | None], Vectors] | None = None
    decode: Callable[[RawSample, ArchiveConfig], Sample] = decode

    def rows(self, shard: str, chunk: Sequence[RawSample | Rejection]) -> list[list[Result]]:
        """For each raw sample of the chunk what comes of it: one result, or one a tile."""
        return [[raw] if isinstance(raw, Rejection) else self._rows(shard, raw) for raw in chunk]

    def _rows(self, shard: str, raw: RawSample) -> list[Result]:
        try:
            if self.lookup is not None:
                return self._looked_up(shard, raw, self.lookup(shard, raw.key, raw.window))
            sample = self.decode(raw, self.archive)
        except BadSample as error:
            empty = raw.window is not None and error.kind == "NoValidPixels"
            return [None if empty else Rejection(raw.key, raw.index, error.stage, error.kind, error.message)]
        tile = self.archive.tile
        return [self._row(shard, sample) for sample in tiles(sample, tile.size, tile.stride)]

    def _looked_up(self, shard: str, raw: RawSample, vectors: Vectors) -> list[Result]:
        results: list[Result] = []
        for window, vector in vectors:
            one = dataclasses.replace(raw, key=raw.key + (window.suffix if window else ""), window=window)
            if isinstance(vector, BadSample):
                results.append(Rejection(one.key, raw.index, vector.stage, vector.kind, vector.message))
            else:
                results.append(Row(_columns_without_pixels(shard, one, self.archive), vector))
        return results

    def _row(self, shard: str, sample: Sample) -> Result:
        if not sample.mask.any():
            return None
        try:
            sample = conform(sample, self.bands, self.dtype, self.radiometry)
            return Row(self._columns(shard, sample), self.prepare(sample))
        except BadSample as error:
            return Rejection(sample.key, sample.index, error.stage, error.kind, error.message)

    def _columns(self, shard: str, sample: Sample) -> dict[str, Any]:
        fields = {name: getattr(sample, name) for name in SAID}
        columns = _place(shard, sample, sample.image, fields)
        pixels, mask = sample.pixels, sample.mask
        height, width = mask.shape
        seen = mask if sample.clouds is None else mask & ~sample.clouds
        radar = in_decibels(self.bands, self.dtype, self.radiometry)
        bits = information(pixels, seen, self.ranges, radar, self.archive.radiometry.looks)
        outline, patch = signature_and_patch(pixels, mask, self.ranges)
        shown = in_share(columns["sample_id"], self.thumbnails)
        return {
            **columns,
            "crs": sample.place and sample.place.crs,
            "gsd": sample.place and sample.place.gsd(height, width),
            "height": height,
            "width": width,
            "radiometry": sample.radiometry,
            "valid_fraction": float(mask.mean()),
            "entropy_bands": bits.tolist(),
            "entropy": float(bits.mean()),
            "thumbnail": thumbnail(pixels, mask, self.ranges, self.bands, self.radiometry) if shown else None,
            "signature": outline.tolist(),
            "patch": patch,
        }


def _columns_without_pixels(shard: str, raw: RawSample, archive: ArchiveConfig) -> dict[str, Any]:
    images = [member for member in raw.members if extension(member.name) in IMAGES]
    said = gather(raw.data, {**in_name(raw.key, archive.name_pattern), **raw.said})
    image = next(iter(images or raw.members), None)
    fields = read_fields(said, archive.fields)
    if raw.window is not None:  # what is said of an image is not true of a tile
        fields |= {"footprint": None, "cloud_fraction": None}
    return _place(shard, raw, image, fields)


def _place(shard: str, sample: RawSample | Sample, image: Member | None, said: dict[str, Any]) -> dict[str, Any]:
    """What a sample is called, where it lies, and what is said of it."""
    footprint = said["footprint"]
    return {
        "sample_id": sample_id(shard, sample.key),
        "shard": shard,
        "index": sample.index,
        "key": sample.key,
        "offset": image.offset if image else None,
        "size": image.size if image else None,
        "members": [
            {"name": member.name, "offset": member.offset, "size": member.size, "file": member.file}
            for member in sample.members
        ],
        "position": sample.position and list(sample.position),
        "window": sample.window and dataclasses.asdict(sample.window),
        **said,
        "footprint": footprint and dict(zip(("west", "south", "east", "north"), footprint, strict=True)),
    }
