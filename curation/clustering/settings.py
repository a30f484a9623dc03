"""The keys ``cluster.*``: their defaults, and every check that needs no data."""

from dataclasses import dataclass

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
        require(min(self.levels or [1]) > 0, f"cluster.levels={self.levels}: give positive numbers")
