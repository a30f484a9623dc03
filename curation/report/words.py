"""How the page writes figures and long texts."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def count(value: float) -> str:
    """12,345."""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """A share as a percentage with two or three telling digits."""
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1\u00a0%"
    return f"{value:.0f}\u00a0%" if value == 0 or value >= 99.95 else f"{value:.1f}\u00a0%"


def interval(low: float, high: float) -> str:
    """Two shares as percentages, with digits enough to tell them from 0 and 100."""
    return " to ".join(f"{100 * share:.2f}".rstrip("0").rstrip(".") for share in (low, high)) + "\u00a0%"


def number(value: float | None, digits: int = 2) -> str:
    """A figure with so many decimals; a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:,.{digits}f}"


def p_value(value: float) -> str:
    """A chance of error, which is never none."""
    return "< 0.001" if value < 0.001 else number(value, 3)


def size(value: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} PB"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for unit, length in (("s", 60.0), ("min", 60.0), ("h", 48.0)):
        if seconds < length:
            return f"{seconds:.3g} {unit}"
        seconds /= 24 if unit == "h" else 60
    return f"{seconds:,.1f} days"


def short(text: str, length: int = 80) -> str:
    """A long text without its middle."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-length // 2 :]}"


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """A nested mapping as (dotted key, text) pairs."""
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for i, item in enumerate(value):
            yield from flat(item, f"{prefix}[{i}]")
    elif isinstance(value, list):
        yield prefix, ", ".join(map(str, value)) or "–"
    else:
        yield prefix, "–" if value in (None, "", {}) else str(value)
