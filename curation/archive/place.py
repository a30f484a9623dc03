"""Where a grid of pixels lies on the ground: reference system, affine transform, footprints in degrees."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError, ProjError

Footprint = tuple[float, float, float, float]

EDGE_POINTS = 21  # points an edge of a footprint is bent by: straight edges in one system are curves in another
_SPHEROID = Geod(ellps="WGS84")


@dataclass(frozen=True, slots=True)
class Georeference:
    """The grid of an image.

    Attributes:
        crs: as ``EPSG:32633`` where it has a code, else as WKT.
        transform: ``(a, b, c, d, e, f)``; the corner of pixel (row, column) lies at
            x = a column + b row + c, y = d column + e row + f.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    def window(self, row: float, column: float) -> "Georeference":
        """The grid that begins at a pixel of this one."""
        a, b, c, d, e, f = self.transform
        return replace(self, transform=(a, b, a * column + b * row + c, d, e, d * column + e * row + f))

    def scaled(self, down: float, right: float) -> "Georeference":
        """The grid whose pixels are ``down`` times as high and ``right`` times as wide."""
        a, b, c, d, e, f = self.transform
        return replace(self, transform=(a * right, b * down, c, d * right, e * down, f))

    def bounds(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the reference system's own units."""
        a, b, c, d, e, f = self.transform
        xs = [a * x + b * y + c for x in (0, width) for y in (0, height)]
        ys = [d * x + e * y + f for x in (0, width) for y in (0, height)]
        return min(xs), min(ys), max(xs), max(ys)

    def footprint(self, height: int, width: int) -> Footprint | None:
        """West, south, east, north in degrees (WGS 84), of ``height`` x ``width`` pixels.

        West lies above east where it crosses the antimeridian; around a pole it
        is all longitudes. ``None`` where the coordinates lie outside of their system.
        """
        box = self.bounds(height, width)
        try:
            if _crs(self.crs).is_geographic:
                return _wrapped(box)
            west, south, east, north = _to_degrees(self.crs).transform_bounds(*box, densify_pts=EDGE_POINTS)
        except (CRSError, ProjError):
            return None
        return (west, south, east, north) if all(map(math.isfinite, (west, south, east, north))) else None

    def gsd(self, height: int, width: int) -> float | None:
        """Ground sampling distance in metres, at the middle of ``height`` x ``width`` pixels."""
        a, b, c, d, e, f = self.transform
        x, y = a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f
        try:
            to_degrees = _to_degrees(self.crs)
            (lon, lat), (lon_next, lat_next) = (to_degrees.transform(*at) for at in ((x, y), (x + a, y + d)))
            _, _, metres = _SPHEROID.inv(lon, lat, lon_next, lat_next)
        except (CRSError, ProjError):
            return None
        return float(metres) if math.isfinite(metres) else None


def named_crs(code: int | str) -> str | None:
    """The name of a reference system by EPSG code or WKT; ``None`` if PROJ does not know it."""
    text = f"EPSG:{code}" if isinstance(code, int) else code
    try:
        crs = _crs(text)
    except CRSError:
        return None
    epsg = None if isinstance(code, int) else crs.to_epsg()
    return text if epsg is None else f"EPSG:{epsg}"


def is_north_first(name: str) -> bool:
    """Whether a reference system, by its authority, names latitude or northing first."""
    return _crs(name).axis_info[0].direction == "north"


@lru_cache(maxsize=256)
def _crs(name: str) -> CRS:
    return CRS.from_user_input(name)


@lru_cache(maxsize=256)
def _to_degrees(name: str) -> Transformer:
    return Transformer.from_crs(_crs(name), "EPSG:4326", always_xy=True)


def _wrapped(box: Footprint) -> Footprint | None:
    """Longitudes between -180 and 180; beyond 180 they go on at -180."""
    west, south, east, north = box
    if not (-360 <= west <= east <= 540 and -90.001 <= south <= north <= 90.001):
        return None
    south, north = max(south, -90.0), min(north, 90.0)
    if east - west >= 360:
        return -180.0, south, 180.0, north
    if west < -180 or west >= 180:
        shift = -360 * math.floor((west + 180) / 360)
        west, east = west + shift, east + shift
    return west, south, (east - 360 if east > 180 else east), north
