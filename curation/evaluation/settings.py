"""The keys ``compare.*`` and ``choose.*``: their defaults, and every check that needs no data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from curation.errors import require
from curation.storage import PLAIN_NAME

OWN = ("select", "cluster", "score")  # keys that a strategy of a comparison may have
MEASURES = ("label", "pretraining")  # that decide; the cheap ones are always taken


@dataclass
class CompareTestConfig:
    """The labelled samples that decide, disjoint from archive and bank."""

    url: Any = None


@dataclass
class CompareConfig:
    """``curate compare``: strategies, budgets and seeds, and what they are measured by."""

    test: CompareTestConfig = field(default_factory=CompareTestConfig)
    strategies: Any = None
    budgets: list[float] = field(default_factory=lambda: [0.05, 0.15, 0.3])
    seeds: int = 5
    measures: list[str] = field(default_factory=lambda: list(MEASURES))
    scorer: Any = None
    size: int = 48
    steps: int = 500

    def __post_init__(self) -> None:
        _check_budgets("compare.budgets", self.budgets)
        require(self.seeds >= 2, f"compare.seeds={self.seeds}: an interval needs 2 or more, and means little below 5")
        ok = bool(self.measures) and all(name in MEASURES for name in self.measures)
        require(ok, f"compare.measures={self.measures}: choose of {', '.join(MEASURES)}")
        ok = len(set(self.measures)) == len(self.measures)
        require(ok, f"compare.measures={self.measures}: name each once; the first decides the verdict")
        require(16 <= self.size <= 256, f"compare.size={self.size}: give 16 to 256 pixels a side")
        require(self.steps > 0, f"compare.steps={self.steps}: give a positive number of gradient steps")
        ok = self.strategies is None or (isinstance(self.strategies, list | dict) and bool(self.strategies))
        ask = "give [names of presets], or {name: [key=value, …]}"
        require(ok, f"compare.strategies={self.strategies}: {ask}")
        for name, keys in self.named_strategies.items():
            ok = PLAIN_NAME.fullmatch(name) is not None and name != "full"
            require(ok, f"compare.strategies: {name!r} cannot name a strategy: take letters, digits, - and _")
            ok = isinstance(keys, list) and all(isinstance(key, str) and "=" in key for key in keys)
            require(ok, f"compare.strategies.{name}={keys}: give the keys that make it, such as [select=balanced]")
            require(
                name != "random" or keys == ["select=random"],
                "compare.strategies: random is what the others are held against",
            )
            other = [key for key in keys if re.split("[.=]", key.lstrip("+~"))[0] not in OWN]
            require(
                not other,
                f"compare.strategies.{name}: {other and other[0]} is the same for all strategies of a comparison; "
                f"their own are {', '.join(OWN)}: compare encoders by a comparison each, or by curate choose",
            )
            said = [key for key in keys if key.partition("=")[0] == "select.budget"]
            require(not said, f"compare.strategies.{name}: {said and said[0]} is not its to say: see compare.budgets")

    @property
    def named_strategies(self) -> dict[str, Any]:
        """What makes each strategy that was asked for; of a preset its name."""
        if isinstance(self.strategies, dict):
            return {str(name): keys for name, keys in self.strategies.items()}
        return {str(name): [f"select={name}"] for name in self.strategies or []}


@dataclass
class ChooseConfig:
    """``curate choose``: what is swept over the catalog."""

    k: list[int] | None = None
    budgets: list[float] = field(default_factory=lambda: [0.05, 0.15, 0.3])
    encoders: list[Any] | None = None
    seeds: int = 3

    def __post_init__(self) -> None:
        ok = self.k is None or (bool(self.k) and min(self.k) > 0 and len(set(self.k)) == len(self.k))
        require(ok, f"choose.k={self.k}: give different positive numbers of clusters")
        _check_budgets("choose.budgets", self.budgets)
        require(self.seeds >= 3, f"choose.seeds={self.seeds}: two selections and a third one's clusters are the least")
        require(self.encoders is None or bool(self.encoders), "choose.encoders=[]: give encoders, or null")


def _check_budgets(key: str, budgets: Sequence[float]) -> None:
    ok = bool(budgets) and all(0 < budget < 1 for budget in budgets) and len(set(budgets)) == len(budgets)
    require(ok, f"{key}={budgets}: give different shares of the archive, each between 0 and 1")
