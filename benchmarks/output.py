"""How a benchmark says what it measured, one JSON object as the last line, and keeps what it goes on from."""

import json
import os
import platform
from pathlib import Path
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


def write_json(path: Path, value: Any) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(value))
    path.with_suffix(".part").rename(path)
