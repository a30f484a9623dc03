"""What a reader yields: a raw sample as it lies in the shard, and the sample decoded from it."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray


def sample_id(shard: str, key: str) -> str:
    """The id of a sample: 128-bit BLAKE2b of its shard (``<root>/<path below it>``) and key, as 32 hex digits."""
    return hashlib.blake2b(f"{shard}\0{key}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample; ``offset`` is where its data begin in the shard, in bytes (``None`` in a folder)."""

    name: str
    offset: int | None
    size: int


@dataclass(slots=True)
class RawSample:
    """A key's files as they lie in the shard, not decoded.

    ``index`` counts the keys of the shard from 0, quarantined ones too;
    ``data`` maps a member's suffix (``jpg``, ``B02.tif``, ``json``) to its bytes.
    """

    key: str
    index: int
    members: list[Member]
    data: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A sample that cannot be used, and why: one row of the quarantine."""

    key: str
    index: int
    stage: str
    kind: str
    message: str


@dataclass(slots=True)
class Sample:
    """A decoded tile; pixels, mask and metadata travel together.

    Attributes:
        pixels: ``(bands, height, width)``, dtype as stored (uint8, uint16, int16 or float32).
        mask: ``(height, width)`` bool, True where every band is valid.
        bands: one name a band.
        image: the member that ``offset`` and ``size`` of the catalog speak of.
        time: acquisition time, in UTC.
        footprint: west, south, east, north in degrees.
        cloud_fraction: cloudy share of the valid pixels, 0 to 1, where the data say so.
        radiometry: what the numbers mean (``unknown`` where nothing says).
    """

    key: str
    index: int
    pixels: NDArray[np.generic]
    mask: NDArray[np.bool_]
    bands: tuple[str, ...]
    image: Member
    members: list[Member] = field(default_factory=list)
    source_id: str | None = None
    label: str | None = None
    caption: str | None = None
    time: datetime | None = None
    footprint: tuple[float, float, float, float] | None = None
    license: str | None = None
    cloud_fraction: float | None = None
    radiometry: str = "unknown"
