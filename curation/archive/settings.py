"""The keys ``archive.*``: their defaults, and every check that needs no data."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from curation.archive.sidecar import FIELDS
from curation.errors import RequestError, require

RADIOMETRIES = ("sentinel2", "sentinel1")
UNITS = ("db", "linear", "amplitude", "digital")  # digital: amplitude as the digital number of a GRD product


@dataclass
class TileConfig:
    """How images are cut."""

    size: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        require(self.size is None or self.size > 0, "archive.tile.size must be positive")
        require(self.stride is None or self.stride > 0, "archive.tile.stride must be positive")
        require(self.stride is None or self.size is not None, "archive.tile.stride needs archive.tile.size")


@dataclass
class RadiometryConfig:
    """What the numbers of the archive mean, and what they become."""

    kind: Any = None
    offset: Any = "auto"
    scale: float = 10000
    units: str = "auto"
    conflict: str = "refuse"
    looks: int = 4
    found: dict[str, Any] | None = None  # by the fit, for decoding; nobody sets it

    def __post_init__(self) -> None:
        kinds = list(self.kind.values()) if isinstance(self.kind, dict) else [self.kind] if self.kind else []
        ok = all(kind in RADIOMETRIES for kind in kinds)
        choose = f"choose {' or '.join(RADIOMETRIES)}, or {{modality: kind}}"
        require(ok, f"archive.radiometry.kind={self.kind}: {choose}")
        ok = self.offset == "auto" or type(self.offset) is int
        require(ok, f"archive.radiometry.offset={self.offset}: give auto, 0 or -1000")
        require(0 < self.scale < math.inf, "archive.radiometry.scale must be positive")
        units = ("auto", *UNITS)
        require(self.units in units, f"archive.radiometry.units={self.units}: choose {', '.join(units)}")
        conflicts = ("refuse", "fix", "ignore")
        ok = self.conflict in conflicts
        require(ok, f"archive.radiometry.conflict={self.conflict}: choose {', '.join(conflicts)}")
        require(self.looks > 0, "archive.radiometry.looks must be positive")


@dataclass
class CloudsConfig:
    """Which bands tell clouds, and what their values mean."""

    band: str | None = None
    values: list[int] | None = None
    bits: list[int] | None = None
    above: float | None = None
    detector: str | None = None
    found: str | None = None  # the classes of `cloud_mask`, by the fit; nobody sets it

    def __post_init__(self) -> None:
        rules = [name for name in ("values", "bits", "above") if getattr(self, name) is not None]
        require(len(rules) < 2, f"archive.clouds: of {' and '.join(rules)} give one")
        require(self.band is None or bool(rules), "archive.clouds.band needs archive.clouds.values, bits or above")
        require(self.band is not None or not rules, "archive.clouds.values, bits and above need archive.clouds.band")
        ok = all(0 <= bit < 32 for bit in self.bits or [])
        require(ok, f"archive.clouds.bits={self.bits}: bits are numbered from 0 to 31")
        require(
            self.detector in (None, "omnicloudmask"), f"archive.clouds.detector={self.detector}: choose omnicloudmask"
        )


@dataclass
class ArchiveConfig:
    """How the shards are read; see ``conf/config.yaml`` for each key."""

    url: Any = None
    bands: list[str] | None = None
    band_names: list[str] | None = None
    members: list[str] | None = None
    nodata: float | None = None
    layout: str | None = None
    range: list[Any] | None = None
    scene: str | None = None
    tile: TileConfig = field(default_factory=TileConfig)
    grid: str | None = None
    resampling: str = "bilinear"
    radiometry: RadiometryConfig = field(default_factory=RadiometryConfig)
    clouds: CloudsConfig = field(default_factory=CloudsConfig)
    modalities: list[str] | None = None
    fields: dict[str, str] | None = None
    tables: list[Any] | None = None
    filter: str | None = None
    name_pattern: str | None = None
    max_pixels: int = 2**27
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        require(self.layout in (None, "hwc", "chw"), f"archive.layout={self.layout}: choose hwc or chw")
        methods = ("nearest", "bilinear", "cubic")
        require(self.resampling in methods, f"archive.resampling={self.resampling}: choose {', '.join(methods)}")
        _check_pattern("archive.scene", self.scene, ("file", "folder"), {"scene"})
        _check_pattern("archive.name_pattern", self.name_pattern, (), set())
        for name in self.fields or {}:
            require(name in FIELDS, f"archive.fields names {name!r}: choose of {', '.join(FIELDS)}")
        require(0 <= self.max_bad_fraction <= 1, "archive.max_bad_fraction must lie between 0 and 1")
        require(self.max_pixels > 0, "archive.max_pixels must be positive")
        if self.range is not None:
            rows = self.range if self.range and isinstance(self.range[0], list) else [self.range]
            ok = all(_is_interval(row) for row in rows)
            require(ok, f"archive.range={self.range}: give [low, high], or one such pair a band")


def _check_pattern(key: str, pattern: str | None, words: tuple[str, ...], needed: set[str]) -> None:
    """A regular expression with the groups that are needed, or one of some words."""
    if pattern is None or pattern in words:
        return
    try:
        groups = set(re.compile(pattern).groupindex)
    except re.error as error:
        raise RequestError(f"{key}={pattern} is no regular expression: {error}") from error
    asked = " and ".join(f"(?P<{name}>…)" for name in sorted(needed)) or "such as (?P<time>…)"
    require(groups >= needed and bool(groups), f"{key}={pattern}: give it the group {asked}")
    strange = sorted(groups - needed - {"band"} - set(FIELDS))
    require(not strange, f"{key} has the group {strange and strange[0]}: choose of {', '.join(FIELDS)}")


def _is_interval(row: Any) -> bool:
    numbers = isinstance(row, list) and len(row) == 2 and all(type(end) in (int, float) for end in row)
    return numbers and -math.inf < row[0] < row[1] < math.inf
