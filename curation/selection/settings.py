"""The keys ``select.*``: their defaults, and every check that needs no data."""

import math
from dataclasses import dataclass, field
from typing import Any

from curation.errors import require
from curation.scoring.sim import SCORES
from curation.selection.guided import MOST
from curation.selection.strategies import STRATEGIES


@dataclass
class EntropyConfig:
    """The information stage."""

    keep: float | None = None

    def __post_init__(self) -> None:
        require(self.keep is None or 0 < self.keep <= 1, "select.entropy.keep must lie in (0, 1]")


@dataclass
class ClusterEdits:
    """Edits of the clusters that need no refit."""

    exclude: list[int] = field(default_factory=list)
    weight: dict[int, float] | None = None  # not {}: Hydra adds no keys to a dict that is there

    def __post_init__(self) -> None:
        self.weight = self.weight or {}
        ok = all(0 <= w < math.inf for w in self.weight.values())
        require(ok, "select.clusters.weight must be finite and not negative")


@dataclass
class PlaceConfig:
    """Near-duplicates by place."""

    overlap: float | None = None
    days: float = 1.0
    keep: Any = None

    def __post_init__(self) -> None:
        require(self.overlap is None or 0 < self.overlap <= 1, "select.place.overlap must lie in (0, 1]")
        require(0 < self.days < math.inf, f"select.place.days={self.days:g}: give a number of days above 0")
        ok = self.keep in (None, "season", "unit") or (type(self.keep) is int and self.keep > 0)
        require(ok, f"select.place.keep={self.keep}: choose season, unit, null, or how many of a place stay")
        require(
            self.overlap is not None or self.keep is None,
            f"select.place.keep={self.keep} needs select.place.overlap: add it, such as select.place.overlap=0.5",
        )


@dataclass
class CcsConfig:
    """Coverage-centric coreset selection."""

    beta: float = 0.3
    strata: int = 50

    def __post_init__(self) -> None:
        require(0 <= self.beta < 1, f"select.ccs.beta={self.beta:g}: give a share from 0 to below 1")
        require(1 <= self.strata <= 10_000, f"select.ccs.strata={self.strata}: give 1 to 10000")


@dataclass
class SimsConfig:
    """The ratio-aware importance sampler."""

    low: float = 0.3
    high: float = 0.7
    sigma: float = 0.2
    class_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("low", "high", "class_share"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"select.sims.{name}={value:g}: give a number from 0 to 1")
        require(0 < self.sigma < math.inf, f"select.sims.sigma={self.sigma:g}: give a positive number")


@dataclass
class MarginConfig:
    """Margin prototypes."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        ok = 0 <= self.alpha < math.inf
        require(ok, f"select.margin.alpha={self.alpha:g}: give a number that is not negative")


@dataclass
class SelectConfig:
    """Which samples stay."""

    strategy: str = "balanced"
    budget: float = 0.15
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    place: PlaceConfig = field(default_factory=PlaceConfig)
    duplicates: bool = True
    min_valid: float | None = None
    max_cloud: float | None = None
    splits: dict[str, float] | None = None  # as weight above
    split_by: str | None = None
    held_out: list[str] = field(default_factory=list)
    block_km: float = 50.0
    balance: float = 0.5
    by: list[str] = field(default_factory=list)
    region_km: float = 1000.0
    representativeness: float = 0.0
    guided: float | None = 0.0
    nearest: float = 0.5
    score: str = "sim"
    hard: bool = True
    ccs: CcsConfig = field(default_factory=CcsConfig)
    sims: SimsConfig = field(default_factory=SimsConfig)
    margin: MarginConfig = field(default_factory=MarginConfig)
    exclude: str | None = None
    require: str | None = None
    clusters: ClusterEdits = field(default_factory=ClusterEdits)
    unit: str | None = None

    def __post_init__(self) -> None:
        ok = self.strategy in STRATEGIES
        require(ok, f"select.strategy={self.strategy}: choose {', '.join(STRATEGIES)}")
        require(
            0 < self.budget < math.inf, f"select.budget={self.budget:g}: give a fraction below 1 or a count of samples"
        )
        require(
            self.budget < 1 or self.budget == int(self.budget),
            f"select.budget={self.budget:g}: a count of samples is a whole number; a fraction is below 1",
        )
        for name in ("min_valid", "max_cloud"):
            share = getattr(self, name)
            require(share is None or 0 <= share <= 1, f"select.{name}={share}: give a share between 0 and 1")
        self.splits = self.splits or {}
        shares = self.splits.values()
        ok = all(0.001 <= share < 1 for share in shares) and sum(shares) < 1 and "" not in self.splits
        require(ok, f"select.splits={self.splits}: give each a share from 0.001, together below 1")
        require(
            (self.split_by is None) == (not self.held_out) and not (self.splits and self.held_out),
            "select.split_by=COLUMN goes with select.held_out=[VALUE, …], and without select.splits",
        )
        ok = not {"train", "training"} & {*self.splits, *self.held_out}
        require(ok, "select.splits names what is held out: training is what it leaves")
        require(1 <= self.block_km <= 10_000, f"select.block_km={self.block_km:g}: give 1 to 10000")
        require(50 <= self.region_km <= 10_000, f"select.region_km={self.region_km:g}: give 50 to 10000")
        require(len(set(self.by)) == len(self.by), f"select.by={self.by}: name each key once")
        self._check_strategy()
        require(0 <= self.balance <= 1, "select.balance must lie between 0 (proportional) and 1 (uniform)")
        require(0 <= self.nearest <= 1, "select.nearest must lie between 0 and 1")
        require(math.isfinite(self.representativeness), "select.representativeness must be finite")
        require(
            self.unit is None or self.place.keep != "unit",
            f"select.unit={self.unit} and select.place.keep=unit: a sample belongs to one unit, so take one of them",
        )

    def _check_strategy(self) -> None:
        """What a strategy has no use for."""
        strategy = STRATEGIES[self.strategy]
        named = ", ".join(name for name, other in STRATEGIES.items() if other.balances)
        require(
            not self.by or strategy.balances,
            f"select.strategy={self.strategy} gives clusters no quotas, so that it has no use for select.by: "
            f"take one of {named}, or leave select.by out",
        )
        require(
            not any((self.clusters.weight or {}).values()) or (strategy.balances and strategy.seats == "quotas"),
            f"select.strategy={self.strategy} has no quotas by weight, so that it has no use for "
            "select.clusters.weight: take balanced, or give 0 for what is to be left out",
        )
        named = ", ".join(name for name, other in STRATEGIES.items() if other.whole)
        require(
            strategy.whole or self.grouped is None,
            f"select.strategy={self.strategy} goes by single samples and cannot keep units whole: "
            f"take one of {named}, or leave select.unit and select.place.keep=unit out",
        )
        guided = self.guided
        require(
            guided is None or 0 <= guided <= MOST,
            f"select.guided={guided}: give a share from 0 to {MOST}, or null: as far as the bank explains the archive",
        )
        require(
            not guided or (strategy.guided and self.grouped is None),
            f"select.guided={guided} is for balanced without units: take select.guided=0",
        )
        require(self.score in SCORES, f"select.score={self.score}: choose {', '.join(SCORES)}")

    @property
    def grouped(self) -> str | None:
        """What a unit of samples is, where they are kept or dropped together."""
        return "place" if self.place.keep == "unit" else self.unit
