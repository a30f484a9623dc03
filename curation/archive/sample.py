"""What a reader yields: a raw sample as it lies in the shard, and the sample decoded from it."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.place import Footprint, Georeference

TILE_SUFFIX = r"_r\d{5,}_c\d{5,}$"  # a pattern for what `Window.suffix` makes


def sample_id(shard: str, key: str) -> str:
    """The id of a sample: 128-bit BLAKE2b of its shard (``<root>/<path below it>``) and key, as 32 hex digits."""
    return hashlib.blake2b(f"{shard}\0{key}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample.

    Attributes:
        name: its name in the shard; of a Parquet file the column.
        offset: where its data begin in the file, in bytes; ``None`` where it is no run of bytes of a tar.
        size: bytes.
        file: the file that it lies in, below the root; ``None``: the shard itself.
    """

    name: str
    offset: int | None
    size: int
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """A tile's place in its image, in pixels of the image's grid."""

    row: int
    column: int
    height: int
    width: int

    @property
    def suffix(self) -> str:
        """What a tile's key adds to that of its image."""
        return f"_r{self.row:05d}_c{self.column:05d}"


@dataclass(slots=True)
class Image:
    """A decoded file.

    Attributes:
        pixels: ``(bands, height, width)``.
        bands: one name a band.
        mask: ``(height, width)``, True where the file says that a pixel is valid; ``None`` where it says nothing.
        nodata: the number that stands for no data, by the file.
        place: where its grid lies on the ground.
        masks: mask bands that lie in the same file, ``(height, width)`` by name, as stored.
        said: what the file says of the sample, by the sidecars' names.
    """

    pixels: NDArray[Any]
    bands: tuple[str, ...]
    mask: NDArray[np.bool_] | None = None
    nodata: float | None = None
    place: Georeference | None = None
    masks: dict[str, NDArray[Any]] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RawSample:
    """A key as it lies in the shard, not decoded (or, out of scenes and arrays, decoded but not interpreted).

    Attributes:
        key: by the reader's rule; of a tile that a reader cut, its image's.
        index: counts the keys of the shard from 0, quarantined ones too.
        members: its files.
        data: a member's suffix (``jpg``, ``B02.tif``, ``json``), or column, to its bytes; of several modalities behind
            theirs (``S2L2A.tif``).
        images: a band's or member's name to its pixels, where a reader decodes what it reads.
        said: what the container says of the sample (columns, STAC properties), by the sidecars' names.
        position: where it lies in a container: row group and row, or indices along sample axes (in a tar, those of
            its zipped Zarr).
        window: the tile that ``images`` hold, where the reader cuts.
    """

    key: str
    index: int
    members: list[Member]
    data: dict[str, bytes]
    images: dict[str, Image] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    position: tuple[int, ...] | None = None
    window: Window | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its files and pixels."""
        return sum(map(len, self.data.values())) + sum(image.pixels.nbytes for image in self.images.values())


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sample that is asked for alone, by what the catalog says of where it lies.

    Attributes:
        key: of a tile, its image's.
        position, window: see :class:`RawSample`.
    """

    key: str
    position: tuple[int, ...] | None = None
    window: Window | None = None


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
    """A decoded tile; pixels, masks and metadata travel together.

    Attributes:
        pixels: ``(bands, height, width)``, dtype as stored (uint8, uint16, int16 or float32), or float32 in the units
            of ``radiometry``.
        mask: ``(height, width)`` bool, True where every band is valid.
        bands: one name a band.
        image: the member that ``offset`` and ``size`` of the catalog speak of.
        position, window: see :class:`RawSample`.
        place: where its grid lies on the ground, where a file says so.
        clouds: ``(height, width)`` bool, True where a mask band says cloud; ``None`` where there is none.
        time: acquisition time, in UTC.
        footprint: west, south, east, north in degrees; west above east crosses the antimeridian.
        cloud_fraction: cloudy share of the valid pixels, 0 to 1, where the data say so.
        incidence_angle: degrees.
        radiometry: what the numbers mean (``unknown`` where nothing says).
        hints: what the fit looks at besides: ``offset``, declared for Sentinel-2 DN; ``cloud_values`` of a cloud mask.
    """

    key: str
    index: int
    pixels: NDArray[np.generic]
    mask: NDArray[np.bool_]
    bands: tuple[str, ...]
    image: Member
    members: list[Member] = field(default_factory=list)
    position: tuple[int, ...] | None = None
    window: Window | None = None
    place: Georeference | None = None
    clouds: NDArray[np.bool_] | None = None
    source_id: str | None = None
    label: str | None = None
    caption: str | None = None
    time: datetime | None = None
    footprint: Footprint | None = None
    license: str | None = None
    cloud_fraction: float | None = None
    incidence_angle: float | None = None
    radiometry: str = "unknown"
    hints: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effort:
    """What reading a shard takes.

    Attributes:
        samples: how many it has; ``None`` where its headers do not tell.
        bytes, requests: what is asked of an object store.
        cut: whether ``samples`` are tiles already, where images are cut.
    """

    samples: int | None
    bytes: int
    requests: int
    cut: bool = False
