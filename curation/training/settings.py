"""The keys ``pretrain.*``: their defaults, and every check that needs no data (imports neither torch nor Ray)."""

import math
from dataclasses import dataclass, field
from typing import Any

from curation.clustering.settings import check_levels
from curation.errors import require

METHODS = ("dino", "simsiam")
PRECISIONS = ("fp32", "bf16", "fp16")
STRATEGIES = ("none", "random", "balanced")


@dataclass
class PretrainTestConfig:
    """The labelled side set."""

    url: Any = None


@dataclass
class DinoConfig:
    """What only DINO has (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers")."""

    outputs: int = 2048
    local: int = 6
    momentum: float = 0.996
    temperature: float = 0.04

    def __post_init__(self) -> None:
        require(self.outputs > 1, f"pretrain.dino.outputs={self.outputs}: give 2 or more")
        require(self.local >= 0, f"pretrain.dino.local={self.local}: give a number of views, 0 or above")
        require(0 <= self.momentum < 1, f"pretrain.dino.momentum={self.momentum:g}: give a number from 0 to below 1")
        require(0 < self.temperature < 1, f"pretrain.dino.temperature={self.temperature:g}: give one between 0 and 1")


@dataclass
class PruneConfig:
    """What is left out while the model trains."""

    strategy: str = "none"
    keep: float = 0.25
    diversity: float = 0.0
    warm: float = 10
    every: float = 10
    sample: int = 200_000
    share: float = 1.0
    levels: list[int] | None = None
    lag: int = 0

    def __post_init__(self) -> None:
        choose = ", ".join(STRATEGIES)
        require(self.strategy in STRATEGIES, f"pretrain.prune.strategy={self.strategy}: choose {choose}")
        for name in ("keep", "share"):
            value = getattr(self, name)
            require(0 < value <= 1, f"pretrain.prune.{name}={value:g}: give a share above 0, at most 1")
        require(math.isfinite(self.diversity), "pretrain.prune.diversity must be finite")
        for name in ("warm", "every"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"pretrain.prune.{name}={value:g}: give a number of epochs, 0 or above")
        require(self.sample > 0, "pretrain.prune.sample must be positive")
        check_levels("pretrain.prune.levels", self.levels)
        require(self.lag in (0, 1), f"pretrain.prune.lag={self.lag}: choose 0 (training waits) or 1 (it goes on)")


@dataclass
class PretrainConfig:
    """``curate pretrain``; see ``conf/config.yaml`` for each key."""

    method: str = "dino"
    architecture: str = "resnet18"
    size: int = 64
    epochs: float = 100
    batch: int = 128
    rate: float | None = None
    decay: float | None = None
    precision: str = "fp32"
    workers: int = 1
    threads: int = 1
    checkpoint: int = 500
    probe: float = 10
    weighted: bool = False
    restarts: int = 3
    cache: str | None = None
    test: PretrainTestConfig = field(default_factory=PretrainTestConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        require(self.method in METHODS, f"pretrain.method={self.method}: choose {' or '.join(METHODS)}")
        choose = ", ".join(PRECISIONS)
        require(self.precision in PRECISIONS, f"pretrain.precision={self.precision}: choose {choose}")
        require(16 <= self.size <= 1024, f"pretrain.size={self.size}: give 16 to 1024 pixels a side")
        require(0 < self.epochs < math.inf, f"pretrain.epochs={self.epochs:g}: give a number above 0")
        require(self.batch > 1, f"pretrain.batch={self.batch}: give 2 or more")
        for name in ("workers", "threads", "checkpoint"):
            require(getattr(self, name) > 0, f"pretrain.{name} must be positive")
        require(
            self.batch % self.workers == 0 and self.batch > self.workers,
            f"pretrain.batch={self.batch} is shared by pretrain.workers={self.workers}: two tiles each and no rest",
        )
        ok = self.rate is None or 0 < self.rate < math.inf
        require(ok, f"pretrain.rate={self.rate}: give a number above 0")
        ok = self.decay is None or 0 <= self.decay < math.inf
        require(ok, f"pretrain.decay={self.decay}: give a number that is not negative")
        require(
            0 <= self.probe < math.inf, f"pretrain.probe={self.probe:g}: give a number of epochs; 0: at the end only"
        )
        require(self.restarts >= 0, "pretrain.restarts must not be negative")
