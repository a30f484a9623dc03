"""What a number, text or time in a coordinate or attribute means: CF times, reference systems, plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np

from curation.archive.place import named_crs

_SINCE = re.compile(r"(\w+?)s? since (\d{4}-\d\d?-\d\d?(?:[T ][\d:.]+)?)")
_UNITS: dict[str, float] = {"day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000, "second": 1_000_000}
_UNITS |= {"millisecond": 1000, "microsecond": 1, "nanosecond": 1 / 1000}  # all in microseconds
_known_crs = lru_cache(maxsize=256)(named_crs)  # which takes PROJ a while, and is the same for a store's samples


def plain_text(value: Any) -> str:
    """A name, as of a sample or a band."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value)


def plain_value(value: Any, attrs: Mapping[str, Any]) -> Any:
    """A number, text or time as the sidecars would say it; ``None`` where it says nothing."""
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            return None
        return datetime.fromisoformat(str(value.astype("datetime64[us]"))).replace(tzinfo=UTC)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    since = _SINCE.match(str(attrs.get("units", "")))
    if since and isinstance(value, int | float) and since[1] in _UNITS:
        after = np.timedelta64(round(value * _UNITS[since[1]]), "us")
        return plain_value(np.datetime64(_iso(since[2]), "us") + after, {})
    return plain_text(value) if isinstance(value, bytes) else value


def _iso(text: str) -> str:
    """A date as ``2024-1-1 0:0:0`` in ISO 8601."""
    date, _, time = text.replace("T", " ").partition(" ")
    year, month, day = date.split("-")
    clock = [f"{float(part):02.0f}" for part in time.split(":") if part]
    return f"{year}-{int(month):02}-{int(day):02}T{':'.join([*clock, '00', '00', '00'][:3])}"


def crs_of(value: Any) -> str | None:
    """The reference system that an EPSG code or WKT names; ``None`` where it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return _known_crs(value) if isinstance(value, int | str) and value not in ("", 0) else None


def nodata_of(attrs: Mapping[str, Any]) -> float | None:
    """The number that an array's attributes declare to be no data."""
    for name in ("_FillValue", "nodata", "missing_value", "nodatavals"):
        value = attrs.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
