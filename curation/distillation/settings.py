"""The keys ``distill.*``: their defaults, and every check that needs no data (imports neither torch nor Ray)."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from curation.errors import require

ADAPT = ("lora", "full")
CAPTIONS = ("template", "aggregated")
GIVEN, SCRATCH = (20000, 8, 5e-4), (2000, 32, 1e-3)  # steps, batch and rate of diffusion; the second a choice


@dataclass
class DistillTestConfig:
    """The labelled samples that students are tested on."""

    url: Any = None


@dataclass
class AutoencoderConfig:
    """The autoencoder that is trained where no weights are given."""

    channels: int = 4
    factor: int = 2
    steps: int = 1200
    batch: int = 32
    rate: float = 2e-3

    def __post_init__(self) -> None:
        _positive("autoencoder", self, "channels", "steps", "batch", "rate")
        require(
            self.factor in (1, 2, 4, 8), f"distill.autoencoder.factor={self.factor}: choose 1, 2, 4 or 8 pixels a place"
        )


@dataclass
class ClassifierConfig:
    """The classifier on latents, which chooses among candidates and teaches consistency."""

    epochs: int = 200
    steps: int = 400
    batch: int = 64
    rate: float = 1e-3
    decay: float = 1e-3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _positive("classifier", self, "epochs", "steps", "batch", "rate")
        require(self.decay >= 0, "distill.classifier.decay must not be negative")
        require(0 <= self.dropout < 1, f"distill.classifier.dropout={self.dropout:g}: give a share below 1")


@dataclass
class DiffusionConfig:
    """The training of the diffusion model."""

    steps: int | None = None
    batch: int | None = None
    rate: float | None = None
    warm: int = 200
    snr: float | None = 5.0
    consistency: float = 0.0
    unconditional: float = 0.1
    adapt: str = "lora"
    rank: int = 4

    def __post_init__(self) -> None:
        _positive("diffusion", self, "steps", "batch", "rate", "snr", "rank")
        require(self.warm >= 0, "distill.diffusion.warm must not be negative")
        ok = 0 <= self.consistency < math.inf
        require(ok, f"distill.diffusion.consistency={self.consistency:g}: give a weight, 0 or above")
        ok = 0 <= self.unconditional < 1
        require(ok, f"distill.diffusion.unconditional={self.unconditional:g}: give a share below 1")
        require(self.adapt in ADAPT, f"distill.diffusion.adapt={self.adapt}: choose {' or '.join(ADAPT)}")

    def filled(self, given: bool) -> "DiffusionConfig":
        """With numbers for those that are null: one set for weights that were given, one for a model from scratch."""
        steps, batch, rate = GIVEN if given else SCRATCH
        return replace(self, steps=self.steps or steps, batch=self.batch or batch, rate=self.rate or rate)


@dataclass
class PrototypesConfig:
    """How real images are chosen to stand for their class."""

    pool: int = 8
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _positive("prototypes", self, "pool")
        ok = 0 <= self.alpha < math.inf
        require(ok, f"distill.prototypes.alpha={self.alpha:g}: give a weight, 0 or above")


@dataclass
class GuidanceConfig:
    """How images are sampled."""

    steps: int = 50
    strength: float | None = None
    until: float = 0.8
    classes: float | None = None

    def __post_init__(self) -> None:
        _positive("guidance", self, "steps")
        ok = self.strength is None or 0 <= self.strength < math.inf
        require(ok, f"distill.guidance.strength={self.strength}: give a number, 0 (no prototypes) or above")
        require(0 <= self.until <= 1, f"distill.guidance.until={self.until:g}: give a share of the steps, 0 to 1")
        ok = self.classes is None or 0 <= self.classes < math.inf
        require(ok, f"distill.guidance.classes={self.classes}: give the scale of classifier-free guidance, 1 for none")


@dataclass
class LeakageConfig:
    """When an image is too near to a real one, and what follows."""

    quantile: float | None = 0.01
    redraws: int = 5

    def __post_init__(self) -> None:
        ok = self.quantile is None or 0 < self.quantile < 1
        require(ok, f"distill.leakage.quantile={self.quantile}: give a share of the real images, or null to drop none")
        require(self.redraws >= 0, "distill.leakage.redraws must not be negative")


@dataclass
class StudentsConfig:
    """The classifiers that tell what the distilled set is worth."""

    seeds: int = 5
    steps: int = 500

    def __post_init__(self) -> None:
        ok = self.seeds == 0 or self.seeds >= 2
        require(ok, f"distill.students.seeds={self.seeds}: give 2 or more, for an interval; 0: no students")
        _positive("students", self, "steps")


@dataclass
class DistillConfig:
    """``curate distill``; see ``conf/distill`` for each key."""

    ipc: int = 10
    label: str = "label"
    size: int | None = None
    holdout: float = 0.2
    weights: str | None = None
    captions: str = "template"
    template: str = "A satellite image of {}"
    candidates: int = 5
    batch: int = 10
    workers: int = 1
    threads: int = 1
    checkpoint: int = 500
    restarts: int = 3
    test: DistillTestConfig = field(default_factory=DistillTestConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    prototypes: PrototypesConfig = field(default_factory=PrototypesConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    leakage: LeakageConfig = field(default_factory=LeakageConfig)
    students: StudentsConfig = field(default_factory=StudentsConfig)

    def __post_init__(self) -> None:
        for name in ("ipc", "candidates", "batch", "workers", "threads", "checkpoint"):
            require(getattr(self, name) > 0, f"distill.{name} must be positive")
        ok = self.size is None or 16 <= self.size <= 1024
        require(ok, f"distill.size={self.size}: give 16 to 1024 pixels a side")
        require(0 <= self.holdout < 1, f"distill.holdout={self.holdout:g}: give a share of each class, 0 to below 1")
        choose = " or ".join(CAPTIONS)
        require(self.captions in CAPTIONS, f"distill.captions={self.captions}: choose {choose}")
        ok = self.template.count("{}") == 1
        require(ok, f"distill.template={self.template!r}: write {{}} once, where the class's name belongs")
        require(self.restarts >= 0, "distill.restarts must not be negative")


def _positive(group: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        ok = value is None or 0 < value < math.inf
        require(ok, f"distill.{group}.{name}={value}: give a number above 0")
