"""The keys ``catalog.*``, ``references.*`` and ``plan.*``: their defaults, and every check that needs no data."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from curation.errors import require


@dataclass
class ReferencesConfig:
    """The labelled bank of scenes."""

    url: Any = None


@dataclass
class CatalogConfig:
    """Where the catalog is, and what it keeps besides embeddings."""

    url: str | None = None
    thumbnails: float = 0.1
    fit_samples: int = 2000

    def __post_init__(self) -> None:
        require(0 <= self.thumbnails <= 1, "catalog.thumbnails must lie between 0 and 1")
        require(self.fit_samples > 0, "catalog.fit_samples must be positive")


@dataclass
class PlanConfig:
    """Prices for ``curate plan``, in the user's currency."""

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    gigabyte: float = 0.0
    million_requests: float = 0.0

    def __post_init__(self) -> None:
        for name, price in dataclasses.asdict(self).items():
            require(0 <= price < math.inf, f"plan.{name}={price:g}: a price is finite and not negative")
