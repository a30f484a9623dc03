"""What is said of an image beside its pixels: label, caption, time, place, licence, source, clouds, incidence angle.

``.json`` may be a flat object or a STAC item; ``.cls`` holds a label, ``.txt``
a caption. Fields that nobody here knows are left alone; a known field with a
value that cannot be right spoils the sample, as selections by area and time
would silently miss it.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from curation.archive.place import Footprint
from curation.errors import BadSample

NAMES = {  # of a field in sidecars, columns and STAC properties; the first that says anything counts
    "label": ("label",),
    "caption": ("caption", "text"),
    "time": ("time", "datetime", "date", "product_datetime", "timestamp", "start_datetime"),
    "license": ("license", "licence"),
    "source_id": ("source_id", "product_id", "scene_id", "file_id"),
    "incidence_angle": ("incidence_angle", "view:incidence_angle"),
}
# the name under which `archive.fields` puts a value: the first that is looked at
_CANONICAL = {
    **{field: field for field in ("label", "caption", "time", "footprint", "license", "source_id")},
    **{field: field for field in ("cloud_fraction", "cloud_cover", "incidence_angle", "lon", "lat")},
}
_LON, _LAT = ("lon", "longitude", "centre_lon", "center_lon"), ("lat", "latitude", "centre_lat", "center_lat")
_PLACE = ("footprint", "bbox", "geometry")
_CLOUDS = ("cloud_fraction", "cloud_cover", "eo:cloud_cover")
OF_THE_WHOLE = frozenset((*_PLACE, *_CLOUDS, *_LON, *_LAT))  # what is said of an image is not true of a tile of it
KNOWN_NAMES = frozenset(itertools.chain(*NAMES.values(), _LON, _LAT, _PLACE, _CLOUDS))  # whatever is looked at
FIELDS = tuple(_CANONICAL)  # what `archive.fields` may name

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
NESTED = ("footprint", "bbox", "geometry", "label")  # fields whose values may have parts


def gather(data: Mapping[str, bytes], said: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is said of a sample: by its container, and over that by its sidecars.

    Raises:
        BadSample: ``BadSidecar``, a file cannot be read.
    """
    files = {suffix.lower(): content for suffix, content in data.items() if suffix.lower() in ("json", "cls", "txt")}
    found = {**said, **(_json(files["json"]) if "json" in files else {})}
    for field, suffix in (("label", "cls"), ("caption", "txt")):
        if suffix in files and _first(found, *NAMES[field])[1] is None:
            found[NAMES[field][0]] = _plain(files[suffix], suffix)
    return found


def in_name(key: str, pattern: str | None) -> dict[str, Any]:
    """What a key's own letters say, by ``archive.name_pattern``."""
    match = re.search(pattern, key) if pattern else None
    return {field: text for field, text in match.groupdict().items() if text} if match else {}


def read_fields(said: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The metadata fields of a :class:`~curation.archive.sample.Sample`.

    Args:
        said: what :func:`gather` found.
        names: ``archive.fields``: of a field, the one name that counts for it.

    Returns:
        ``label``, ``caption``, ``time`` (UTC), ``footprint`` (degrees), ``license``, ``source_id``,
        ``cloud_fraction`` (0 to 1), ``incidence_angle`` (degrees), each ``None`` where nothing says.

    Raises:
        BadSample: ``BadSidecar``, a value cannot be right.
    """
    said = {**said, **{_CANONICAL[field]: said.get(name) for field, name in (names or {}).items()}}
    return {
        "label": _label(said),
        "caption": _text(said, *NAMES["caption"]),
        "time": _time(said),
        "footprint": _footprint(said),
        "license": _text(said, *NAMES["license"]),
        "source_id": _text(said, *NAMES["source_id"]),
        "cloud_fraction": _clouds(said),
        "incidence_angle": _angle(said),
    }


def source_id(said: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str | None:
    """The one field that tables are joined on besides the key; ``None`` too where it cannot be right."""
    value = _first(said, *((names or {}).get(name, name) for name in NAMES["source_id"]))[1]
    return str(value) if isinstance(value, str | int) else None


def _bad(message: str) -> BadSample:
    return BadSample("decode", "BadSidecar", message)


def _json(content: bytes) -> dict[str, Any]:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad(f"json: {error}") from None
    if not isinstance(said, dict):
        return {}
    inner = said.get("properties")  # of a STAC item
    return {**inner, **said} if isinstance(inner, dict) else said


def _plain(content: bytes, suffix: str) -> str | None:
    try:
        return content.decode("utf-8-sig").strip() or None
    except UnicodeDecodeError:
        raise _bad(f"{suffix}: the text is not UTF-8") from None


def _first(said: Mapping[str, Any], *names: str) -> tuple[str, Any]:
    """The first of some fields that says anything, with its name."""
    for name in names:
        if said.get(name) not in (None, ""):
            return name, said[name]
    return "", None


def _text(said: Mapping[str, Any], *names: str) -> str | None:
    name, value = _first(said, *names)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise _bad(f"json: {name} is neither text nor a number")
    text = str(value)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _bad(f"json: {name} is not valid Unicode")
    return text


def _label(said: Mapping[str, Any]) -> str | None:
    """The label; several of one sample are joined by semicolons."""
    _, value = _first(said, "label")
    if not isinstance(value, list):
        return _text(said, "label")
    return "; ".join(filter(None, (_text({"label": one}, "label") for one in value))) or None


def _time(said: Mapping[str, Any]) -> datetime | None:
    """ISO 8601 (UTC where no zone is given), or seconds since 1970."""
    name, value = _first(said, *NAMES["time"])
    if value is None:
        return None
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value.strip())
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, bool):
            raise TypeError
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        raise _bad(f"json: {name}={value!r:.80} is no time: write ISO 8601, 2024-05-01T10:30:00Z") from None


def _footprint(said: Mapping[str, Any]) -> Footprint | None:
    """West, south, east, north from a box, GeoJSON or WKT polygon, or a point; west > east crosses the antimeridian."""
    name, value = _first(said, *_PLACE)
    lon, lat = (_first(said, *names)[1] for names in (_LON, _LAT))
    try:
        if value is not None:
            box = _box(value)
        elif lon is not None and lat is not None:
            name, box = "lon, lat", (float(lon), float(lat), float(lon), float(lat))
        else:
            return None
        west, south, east, north = box
        if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
            raise ValueError
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise _bad(f"json: {name} is no area in degrees: write [west, south, east, north]") from None
    return box


def _box(value: Any) -> Footprint:
    if isinstance(value, Mapping) and "west" in value:
        west, south, east, north = (float(value[side]) for side in ("west", "south", "east", "north"))
        return west, south, east, north
    if isinstance(value, list) and len(value) in (4, 6) and not isinstance(value[0], list):
        half = len(value) // 2
        return float(value[0]), float(value[1]), float(value[half]), float(value[half + 1])
    if isinstance(value, Mapping):
        points = list(_points(value["coordinates"]))
    elif isinstance(value, str):
        numbers = [[float(n) for n in _NUMBER.findall(point)] for point in value.split(",")]
        points = [(point[0], point[1]) for point in numbers if len(point) >= 2]
    elif isinstance(value[0], list):
        points = list(_points(value))
    else:
        raise ValueError
    xs, ys = [x for x, _ in points], [y for _, y in points]
    west, east = min(xs), max(xs)
    if east - west > 180:  # no tile is that wide: it crosses the antimeridian, or goes around the globe
        first, last = min(x for x in xs if x >= 0), max(x for x in xs if x < 0)
        if 0 < last + 360 - first < 180:
            west, east = first, last
    return west, min(ys), east, max(ys)


def _points(value: Any) -> Iterator[tuple[float, float]]:
    """The points of GeoJSON coordinates, however deep they lie."""
    if not isinstance(value[0], list):
        yield float(value[0]), float(value[1])
        return
    for inner in value:
        yield from _points(inner)


def _clouds(said: Mapping[str, Any]) -> float | None:
    """``cloud_fraction`` from 0 to 1, or ``cloud_cover`` in percent."""
    name, value = _first(said, *_CLOUDS)
    if value is None:
        return None
    scale = 1.0 if name == "cloud_fraction" else 100.0
    try:
        share = float(value) / scale
    except (ValueError, TypeError, OverflowError):
        share = math.nan
    if not 0 <= share <= 1:
        raise _bad(f"json: {name}={value!r:.80} lies outside 0 to {scale:g}")
    return share


def _angle(said: Mapping[str, Any]) -> float | None:
    name, value = _first(said, *NAMES["incidence_angle"])
    if value is None:
        return None
    try:
        angle = float(value)
    except (ValueError, TypeError):
        angle = math.nan
    if not 0 <= angle <= 90:
        raise _bad(f"json: {name}={value!r:.80} is no angle between 0 and 90 degrees")
    return angle
