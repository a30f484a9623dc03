"""Figures of the run under way for Prometheus, by Ray's metrics agent (docs/watching.md).

Only the driver tells them, a few times a minute: of a thousand encoders there is one series a root. Ray puts ``ray_``
before the names and ``_total`` after those of counters.
"""

import sys
from typing import Any

COUNTERS = {
    "curation_shards": ("shards that are in the catalog since this run", ("root",)),
    "curation_samples": ("samples that encoders have gone through; a shard that is read again counts again", ("root",)),
    "curation_quarantined": ("of these, those that could not be used", ("root",)),
    "curation_bytes": ("sizes of the shards that are in the catalog since this run", ("root",)),
    "curation_encoder_seconds": ("of all encoders, by whether they waited for decoded tiles or encoded", ("doing",)),
}
GAUGES = {
    "curation_stage": ("1: under way, 0: over", ("stage",)),
    "curation_stage_progress": ("share of the stage that is done, 0 to 1", ("stage",)),
    "curation_drift": ("of the newcomers against the clusters", ("measure",)),
}
COMMON = ("curate_job", "run")  # "job" is Prometheus's own


class Metrics:
    """Counters and gauges of one run; where there is no Ray, nothing happens.

    Args:
        job: the job's name.
        run: the run's id.
    """

    def __init__(self, job: str, run: str) -> None:
        self.tags = {"curate_job": job, "run": run}
        self.made: dict[str, Any] = {}

    def add(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter of `COUNTERS`."""
        if value > 0 and _ray_is_there():
            self._metric(name).inc(value, {**self.tags, **tags})

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge of `GAUGES`."""
        if _ray_is_there():
            self._metric(name).set(value, {**self.tags, **tags})

    def _metric(self, name: str) -> Any:
        if name not in self.made:
            from ray.util.metrics import Counter, Gauge

            kind: Any = Counter if name in COUNTERS else Gauge
            description, keys = (COUNTERS | GAUGES)[name]
            self.made[name] = kind(name, description, (*COMMON, *keys))
        return self.made[name]


def _ray_is_there() -> bool:
    ray = sys.modules.get("ray")  # a job that needs none does not load it
    return ray is not None and ray.is_initialized()
