"""The keys ``catalog.*`` and ``references.*``: their defaults, and every check that needs no data."""

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
