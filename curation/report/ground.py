"""Where the tiles lie on the ground, and how far clusters follow the incidence angle: from the tiles of the map."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.report.data import Tile

WIDTH, HEIGHT = 1000, 600  # of the canvas
LEAST = 3.0  # units a side of a footprint on the canvas
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 45)  # degrees between lines
LINES = 8  # along the longer side, at most
FEW = 30  # tiles from which a share of variance is told


def ground_map(points: Sequence[Tile]) -> dict[str, Any] | None:
    """Footprints as rectangles on a plate carrée that is true at its middle; ``None`` where hardly any are known.

    A footprint that crosses the antimeridian is drawn past it, and so are its
    neighbours beyond where the archive lies on both sides.
    """
    tiles = [tile for tile in points if tile.footprint]
    if len(tiles) < 3:
        return None
    west, south, east, north = np.array([_sides(tile) for tile in tiles]).T
    west, east = _unwrapped(west, east)
    left, right, bottom, top = west.min(), east.max(), south.min(), north.max()
    squeeze = max(math.cos(math.radians((bottom + top) / 2)), 0.05)
    scale = min(WIDTH / max((right - left) * squeeze, 1e-9), HEIGHT / max(top - bottom, 1e-9)) * 0.94
    middle = (left + right) / 2, (bottom + top) / 2

    def x(lon: Any) -> Any:
        return WIDTH / 2 + (lon - middle[0]) * squeeze * scale

    def y(lat: Any) -> Any:
        return HEIGHT / 2 - (lat - middle[1]) * scale

    places: dict[tuple[float, ...], list[Tile]] = {}  # tiles of one footprint, such as dates of one place, are one box
    for i, tile in enumerate(tiles):
        wide, high = max(x(east[i]) - x(west[i]), LEAST), max(y(south[i]) - y(north[i]), LEAST)
        centre = x((west[i] + east[i]) / 2), y((south[i] + north[i]) / 2)
        box = (centre[0] - wide / 2, centre[1] - high / 2, wide, high)
        places.setdefault(tuple(round(float(value), 1) for value in box), []).append(tile)
    boxes: list[dict[str, Any]] = []
    for sides, own in places.items():
        first = next((tile for tile in own if tile.kept), own[0])
        title = f"{first.key[:60]} · {'kept' if first.kept else f'dropped: {first.reason}'}"
        title += f" · {len(own)} tiles here, {sum(tile.kept for tile in own)} kept" if len(own) > 1 else ""
        named = dict(zip(("x", "y", "width", "height"), sides, strict=True))
        boxes.append({**named, "kept": first.kept, "title": title})
    boxes.sort(key=lambda box: bool(box["kept"]))  # kept ones on top
    shown = (
        middle[0] - WIDTH / 2 / squeeze / scale,
        middle[0] + WIDTH / 2 / squeeze / scale,
        middle[1] - HEIGHT / 2 / scale,
        middle[1] + HEIGHT / 2 / scale,
    )
    return {
        "boxes": boxes,
        "tiles": len(tiles),
        "kept": sum(tile.kept for tile in tiles),
        "unknown": len(points) - len(tiles),
        "meridians": [(round(float(x(lon)), 1), _degrees(lon, "E", "W")) for lon in _lines(shown[0], shown[1])],
        "parallels": [
            (round(float(y(lat)), 1), _degrees(lat, "N", "S")) for lat in _lines(max(shown[2], -90), min(shown[3], 90))
        ],
    }


def incidence_share(points: Sequence[Tile]) -> float | None:
    """How much of the incidence angle's variance the clusters explain, 0 to 1: epsilon squared, Kelley 1935.

    Eta squared less what as many clusters would explain of pure chance; ``None`` where too few angles are known.
    """
    known = [(tile.cluster, tile.incidence_angle) for tile in points if tile.incidence_angle is not None]
    clusters = np.unique([cluster for cluster, _ in known], return_inverse=True)[1] if known else np.empty(0, int)
    angles = np.array([angle for _, angle in known], np.float64)
    groups = int(clusters.max(initial=-1)) + 1
    total = float(((angles - angles.mean()) ** 2).sum()) if len(angles) else 0.0
    if len(angles) < FEW or groups >= len(angles) or total == 0:
        return None
    means = np.bincount(clusters, angles) / np.bincount(clusters)
    within = float(((angles - means[clusters]) ** 2).sum())
    return max(0.0, 1 - within / (len(angles) - groups) * (len(angles) - 1) / total)


def _sides(tile: Tile) -> tuple[float, float, float, float]:
    footprint = tile.footprint or {}
    return footprint["west"], footprint["south"], footprint["east"], footprint["north"]


def _unwrapped(west: NDArray[np.float64], east: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitudes that run on without a jump: cut open at the widest gap between the tiles."""
    east = np.where(east < west, east + 360, east)
    starts = np.sort(west % 360)
    gaps = np.diff(starts, append=starts[0] + 360)
    cut = starts[(int(gaps.argmax()) + 1) % len(starts)]  # the first tile after the gap
    begin = (west % 360 - cut) % 360 + cut
    shift = -360.0 if begin.min() >= 180 else 0.0
    return begin + shift, begin + (east - west) + shift


def _lines(low: float, high: float) -> list[float]:
    step = next((step for step in STEPS if (high - low) / step <= LINES), 90)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _degrees(value: float, positive: str, negative: str) -> str:
    value = (value + 180) % 360 - 180 if positive == "E" else value
    side = "" if round(value, 6) in (0, -180) else positive if value > 0 else negative
    return f"{abs(round(value, 6)):g}° {side}".strip()
