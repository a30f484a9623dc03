"""Where a JPEG 2000 lies on the ground: its GMLJP2 box (OGC 05-047r3), as ESA and GDAL write it."""

import html
import re

from curation.archive.place import Georeference, is_north_first, named_crs

_GRID = re.compile(r"<gml:RectifiedGrid\b.*?</gml:RectifiedGrid>", re.DOTALL)
_ORIGIN = re.compile(r"<gml:(?:pos|coordinates)\b[^>]*>([^<]*)<")
_STEP = re.compile(r"<gml:offsetVector\b[^>]*>([^<]*)<")
_EPSG = re.compile(r'srsName="[^"]*EPSG:[^":]*:?(\d+)"')
_WKT = re.compile(r"<gml:description>[^<]*?(PROJCS\[[^<]*)</gml:description>")  # GDAL's, of a system without a code


def read_gmljp2(boxes: bytes) -> Georeference | None:
    """The grid's place by what stands before the codestream, in a reference system that PROJ knows."""
    start = boxes.find(b"<gml:")
    text = boxes[start:].decode("utf-8", "replace") if start >= 0 else ""
    grid = _GRID.search(text)
    if not grid:
        return None
    epsg, wkt = _EPSG.search(grid[0]), _WKT.search(text)
    crs = named_crs(int(epsg[1])) if epsg else named_crs(html.unescape(wkt[1]).strip()) if wkt else None
    try:
        origin = _pair(_ORIGIN.findall(grid[0])[0])
        right, down = (_pair(step) for step in _STEP.findall(grid[0])[:2])
    except (ValueError, IndexError):
        return None
    if crs is None:
        return None
    if is_north_first(crs):
        origin, right, down = origin[::-1], right[::-1], down[::-1]
    (a, d), (b, e) = right, down
    c, f = (at - (x + y) / 2 for at, x, y in zip(origin, right, down, strict=True))  # the origin is a pixel's centre
    return Georeference(crs, (a, b, c, d, e, f))


def _pair(text: str) -> tuple[float, ...]:
    x, y = text.replace(",", " ").split()
    return float(x), float(y)
