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
from curation.archive.sample import RawSample, Rejection, Sample, sample_id
from curation.config import ArchiveConfig
from curation.errors import BadSample
from curation.scoring.entropy import entropy
from curation.scoring.signature import patch, signature
from curation.scoring.thumbnail import in_share, thumbnail


@dataclass(slots=True)
class Row:
    """A sample's catalog columns, and its tile in the encoder's shape (bands, size, size)."""

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
        decode: replaced in tests.
    """

    archive: ArchiveConfig
    bands: tuple[str, ...]
    dtype: str
    ranges: NDArray[np.float32]
    prepare: Callable[[Sample], NDArray[Any]]
    thumbnails: float
    decode: Callable[[RawSample, ArchiveConfig], Sample] = decode

    def rows(self, shard: str, chunk: Sequence[RawSample | Rejection]) -> list[Row | Rejection]:
        """One result a sample, in the order of the chunk."""
        return [raw if isinstance(raw, Rejection) else self._row(shard, raw) for raw in chunk]

    def _row(self, shard: str, raw: RawSample) -> Row | Rejection:
        try:
            sample = conform(self.decode(raw, self.archive), self.bands, self.dtype)
            return Row(self._columns(shard, sample), self.prepare(sample))
        except BadSample as error:
            return Rejection(raw.key, raw.index, error.stage, error.kind, error.message)

    def _columns(self, shard: str, sample: Sample) -> dict[str, Any]:
        name = sample_id(shard, sample.key)
        pixels, mask = sample.pixels, sample.mask
        bits = entropy(pixels, mask, self.ranges)
        shown = in_share(name, self.thumbnails)
        west_south_east_north = sample.footprint
        return {
            "sample_id": name,
            "shard": shard,
            "index": sample.index,
            "key": sample.key,
            "offset": sample.image.offset,
            "size": sample.image.size,
            "members": [{"name": m.name, "offset": m.offset, "size": m.size} for m in sample.members],
            "source_id": sample.source_id,
            "label": sample.label,
            "caption": sample.caption,
            "time": sample.time,
            "footprint": west_south_east_north
            and dict(zip(("west", "south", "east", "north"), west_south_east_north, strict=True)),
            "license": sample.license,
            "height": pixels.shape[1],
            "width": pixels.shape[2],
            "valid_fraction": float(mask.mean()),
            "cloud_fraction": sample.cloud_fraction,
            "entropy_bands": bits.tolist(),
            "entropy": float(bits.mean()),
            "thumbnail": thumbnail(pixels, mask, self.ranges, self.bands) if shown else None,
            "signature": signature(pixels, mask, self.ranges).tolist(),
            "patch": patch(pixels, mask, self.ranges),
        }
