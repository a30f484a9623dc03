"""The keys ``score.*`` and ``consistency.*``: their defaults, and every check that needs no data."""

import math
from dataclasses import dataclass, field

from curation.errors import require

SOURCES = ("text", "second_view", "modalities")
TEXTS = ("caption", "label")
MODEL = ("linear", "mlp")


@dataclass
class ConsistencyConfig:
    """How far each sample's image and what is said of it agree; see ``conf/config.yaml`` for each key."""

    source: str = "text"
    text: list[str] = field(default_factory=lambda: ["caption", "label"])
    templates: list[str] = field(default_factory=lambda: ["a satellite image of {}."])
    modalities: list[str] | None = None
    folds: int = 5
    sample: int = 200_000
    adapter: str = "linear"
    steps: int = 500
    batch: int = 256
    rate: float = 0.001
    temperature: float = 0.07
    ridge: float = 0.1

    def __post_init__(self) -> None:
        require(self.source in SOURCES, f"consistency.source={self.source}: choose {', '.join(SOURCES)}")
        ok = bool(self.text) and set(self.text) <= set(TEXTS) and len(set(self.text)) == len(self.text)
        require(ok, f"consistency.text={self.text}: choose of caption and label, the preferred first")
        ok = bool(self.templates) and all(template.count("{}") == 1 for template in self.templates)
        require(ok, f"consistency.templates={self.templates}: give texts with {{}} once each, in the label's place")
        ok = self.modalities is None or len(set(self.modalities)) == len(self.modalities) == 2
        require(
            ok, f"consistency.modalities={self.modalities}: name two parts of encoder=joined, or null where it has two"
        )
        require(2 <= self.folds <= 100, f"consistency.folds={self.folds}: give 2 to 100")
        require(self.adapter in MODEL, f"consistency.adapter={self.adapter}: choose linear or mlp")
        require(self.sample > 1, f"consistency.sample={self.sample}: give 2 or more")
        require(self.steps >= 0, f"consistency.steps={self.steps}: give a number of steps; 0: no adapters")
        require(self.batch > 1, f"consistency.batch={self.batch}: give 2 or more")
        for name in ("rate", "temperature", "ridge"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"consistency.{name}={value:g}: give a number above 0")


@dataclass
class ScoreConfig:
    """What models trained on the labels say of each sample; see ``conf/config.yaml`` for each key."""

    label: str = "label"
    size: int = 48
    network: str = "small"
    checkpoints: list[str] | None = None
    experts: int = 3
    epochs: int = 10
    early: int = 10
    batch: int = 64
    rate: float = 0.002
    decay: float = 0.05
    eps: float = 0.1
    terms: list[str] = field(default_factory=lambda: ["separability", "integrity", "agreement"])
    combine: str = "product"

    def __post_init__(self) -> None:
        require(8 <= self.size <= 512, f"score.size={self.size}: give 8 to 512 pixels a side")
        for name in ("experts", "epochs", "early", "batch"):
            require(getattr(self, name) > 0, f"score.{name} must be positive")
        require(0 < self.rate < math.inf, f"score.rate={self.rate:g}: give a number above 0")
        require(0 <= self.decay < math.inf, "score.decay must not be negative")
        require(0 < self.eps < math.inf, f"score.eps={self.eps:g}: give a number above 0")
        known = ("separability", "integrity", "agreement")
        ok = bool(self.terms) and set(self.terms) <= set(known) and len(set(self.terms)) == len(self.terms)
        require(ok, f"score.terms={self.terms}: choose of {', '.join(known)}, each once")
        require(self.combine in ("product", "sum"), f"score.combine={self.combine}: choose product or sum")
        require(
            self.network != "small" or not self.checkpoints,
            "score.checkpoints are weights of a timm architecture: name it in score.network",
        )
