"""From raw samples to catalog rows: everything that the catalog says of a sample but its embedding.

Pure: the same chunk gives the same rows in the encoder's actor, in a task
elsewhere, or in a subprocess.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.decode import conform, decode
from curation.archive.names import IMAGES, extension
from curation.archive.sample import Member, RawSample, Rejection, Sample, sample_id
from curation.archive.sidecar import read_sidecars
from curation.config import ArchiveConfig
from curation.errors import BadSample
from curation.scoring.entropy import entropy
from curation.scoring.signature import signature_and_patch
from curation.scoring.thumbnail import in_share, thumbnail

SAID = ("label", "caption", "time", "footprint", "license", "source_id", "cloud_fraction")  # by the sidecars


@dataclass(slots=True)
class Row:
    """A sample's catalog columns, and its tile in the encoder's shape (bands, size, size), or its vector (dim,)."""

    columns: dict[str, Any]
    tile: NDArray[Any]


@dataclass(frozen=True)
class RowMaker:
    """Makes rows out of raw samples.

    Args:
        archive: how to decode.
        bands, dtype: what every sample must come to.
        ranges: float32 (bands, 2), the fixed radiometric range.
        prepare: the encoder's own preparation of a sample.
        thumbnails: share of the samples that get a thumbnail.
        lookup: gives a sample's vector by shard and key; then no pixels are looked at.
        decode: replaced in tests.
    """

    archive: ArchiveConfig
    bands: tuple[str, ...]
    dtype: str
    ranges: NDArray[np.float32]
    prepare: Callable[[Sample], NDArray[Any]]
    thumbnails: float
    lookup: Callable[[str, str], NDArray[np.float32]] | None = None
    decode: Callable[[RawSample, ArchiveConfig], Sample] = decode

    def rows(self, shard: str, chunk: Sequence[RawSample | Rejection]) -> list[Row | Rejection]:
        """One result a sample, in the order of the chunk."""
        return [raw if isinstance(raw, Rejection) else self._row(shard, raw) for raw in chunk]

    def _row(self, shard: str, raw: RawSample) -> Row | Rejection:
        try:
            if self.lookup is not None:
                return Row(_columns_without_pixels(shard, raw), self.lookup(shard, raw.key))
            sample = conform(self.decode(raw, self.archive), self.bands, self.dtype)
            return Row(self._columns(shard, sample), self.prepare(sample))
        except BadSample as error:
            return Rejection(raw.key, raw.index, error.stage, error.kind, error.message)

    def _columns(self, shard: str, sample: Sample) -> dict[str, Any]:
        fields = {name: getattr(sample, name) for name in SAID}
        columns = _place(shard, sample.key, sample.index, sample.members, sample.image, fields)
        pixels, mask = sample.pixels, sample.mask
        bits = entropy(pixels, mask, self.ranges)
        outline, patch = signature_and_patch(pixels, mask, self.ranges)
        shown = in_share(columns["sample_id"], self.thumbnails)
        return {
            **columns,
            "height": pixels.shape[1],
            "width": pixels.shape[2],
            "valid_fraction": float(mask.mean()),
            "entropy_bands": bits.tolist(),
            "entropy": float(bits.mean()),
            "thumbnail": thumbnail(pixels, mask, self.ranges, self.bands) if shown else None,
            "signature": outline.tolist(),
            "patch": patch,
        }


def _columns_without_pixels(shard: str, raw: RawSample) -> dict[str, Any]:
    images = [member for member in raw.members if extension(member.name) in IMAGES]
    image = (images or raw.members)[0]
    return _place(shard, raw.key, raw.index, raw.members, image, read_sidecars(raw.data))


def _place(
    shard: str, key: str, index: int, members: Sequence[Member], image: Member | None, said: dict[str, Any]
) -> dict[str, Any]:
    """What a sample is called, where it lies, and what its sidecars say."""
    footprint = said["footprint"]
    return {
        "sample_id": sample_id(shard, key),
        "shard": shard,
        "index": index,
        "key": key,
        "offset": image.offset if image else None,
        "size": image.size if image else None,
        "members": [{"name": member.name, "offset": member.offset, "size": member.size} for member in members],
        **said,
        "footprint": footprint and dict(zip(("west", "south", "east", "north"), footprint, strict=True)),
    }
