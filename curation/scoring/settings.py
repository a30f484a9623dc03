"""What ``curate consistency`` is told, and the checks that need no data."""

import math
from dataclasses import dataclass, field

from curation.errors import RequestError

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
        _require(self.source in SOURCES, f"source={self.source}: choose {', '.join(SOURCES)}")
        ok = bool(self.text) and set(self.text) <= set(TEXTS) and len(set(self.text)) == len(self.text)
        _require(ok, f"text={self.text}: choose of caption and label, the preferred first")
        ok = bool(self.templates) and all(template.count("{}") == 1 for template in self.templates)
        _require(ok, f"templates={self.templates}: give texts with {{}} once each, in the label's place")
        ok = self.modalities is None or len(set(self.modalities)) == len(self.modalities) == 2
        _require(ok, f"modalities={self.modalities}: name two parts of encoder=joined, or null where it has two")
        _require(2 <= self.folds <= 100, f"folds={self.folds}: give 2 to 100")
        _require(self.adapter in MODEL, f"adapter={self.adapter}: choose linear or mlp")
        _require(self.sample > 1, f"sample={self.sample}: give 2 or more")
        _require(self.steps >= 0, f"steps={self.steps}: give a number of steps; 0: no adapters")
        _require(self.batch > 1, f"batch={self.batch}: give 2 or more")
        for name in ("rate", "temperature", "ridge"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name}={value:g}: give a number above 0")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RequestError(f"consistency.{message}")
