"""How a benchmark says what it measured: one JSON object as the last line."""

import json
import os
import platform
from typing import Any


def print_result(ratio: float, **figures: Any) -> None:
    """Print ``ratio`` and whatever else was measured, with what it was measured on."""
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps({"ratio": round(ratio, 4), **_rounded(figures), **machine}))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
