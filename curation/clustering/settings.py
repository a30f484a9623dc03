"""The keys ``cluster.*``: their defaults, and every check that needs no data."""

from dataclasses import dataclass
from itertools import pairwise

from curation.errors import require


@dataclass
class ClusterConfig:
    """K-means over the catalog."""

    references: str | None = None
    k: int | None = None
    free: int | None = None
    spherical: bool = True
    max_iter: int = 50
    tol: float = 1e-4
    sample: int = 2_000_000
    levels: list[int] | None = None

    def __post_init__(self) -> None:
        modes = (None, "frozen", "seed", "none")
        require(self.references in modes, f"cluster.references={self.references}: choose frozen, seed or none")
        require(self.k is None or self.k > 0, "cluster.k must be positive")
        require(self.free is None or self.free >= 0, "cluster.free must not be negative")
        require(self.max_iter > 0, "cluster.max_iter must be positive")
        require(self.tol >= 0, "cluster.tol must not be negative")
        require(self.sample > 0, "cluster.sample must be positive")
        check_levels("cluster.levels", self.levels)
        ok = not self.levels or self.k in (None, self.levels[-1])
        require(ok, f"cluster.k={self.k} is not the last of cluster.levels={self.levels}: leave one out")


def check_levels(key: str, levels: list[int] | None) -> None:
    """See that there can be so many clusters on each level, from the top; ``key``: the setting, for messages.

    Raises:
        RequestError: they are not positive, or do not rise.
    """
    require(min(levels or [1]) > 0, f"{key}={levels}: give positive numbers")
    rise = all(above < below for above, below in pairwise(levels or []))
    require(rise, f"{key}={levels} must rise from the top level's clusters to the lowest's")
