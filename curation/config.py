"""The configuration: its schema, how the command line overrides it, and every check that needs no data.

The defaults stand in ``conf/``; Hydra composes them with the groups that were
chosen. A value that is a path or URL is taken as it was typed, so that commas,
brackets, ``=`` and ``%`` in it mean nothing to anybody.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import curation
from curation.archive.clouds import check_detector
from curation.archive.listing import root_names
from curation.archive.radiometry import KINDS as RADIOMETRIES
from curation.archive.radiometry import UNITS
from curation.archive.sidecar import FIELDS
from curation.distillation.settings import DistillConfig
from curation.errors import RequestError, require
from curation.scoring.settings import ConsistencyConfig
from curation.scoring.sim import SCORES
from curation.selection.guided import MOST
from curation.selection.strategies import STRATEGIES
from curation.storage import check_storage_names, check_storage_options
from curation.training.settings import PretrainConfig

# Their values are never parsed.
LITERAL = {
    "archive.url",
    "archive.filter",
    "references.url",
    "workspace",
    "catalog.url",
    "archive.scene",
    "archive.name_pattern",
    "encoder.checkpoint",
    "encoder.path",
    "encoder.keys",
    "select.exclude",
    "select.require",
    "compare.test.url",
    "pretrain.test.url",
    "pretrain.cache",
    "distill.test.url",
    "distill.weights",
    "runtime.log_json",
    "submit.working_dir",
    "submit.wheel",
    "schedule.cron",
    "schedule.image",
}
GROUPS = ("encoder", "select", "cluster", "runtime", "schedule", "distill")
MEMORY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTP]i?)?")  # a Kubernetes quantity of bytes
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # a DNS label
NAME_LENGTH = 38  # KubeRay takes 47 characters, and a CronJob adds - and 8 digits
NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")  # of a strategy: it becomes part of file names
CURATION = re.compile(r"[A-Za-z0-9._-]{1,60}")  # of a curation, likewise


@dataclass
class TileConfig:
    """How images are cut."""

    size: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        require(self.size is None or self.size > 0, "archive.tile.size must be positive")
        require(self.stride is None or self.stride > 0, "archive.tile.stride must be positive")
        require(self.stride is None or self.size is not None, "archive.tile.stride needs archive.tile.size")


@dataclass
class RadiometryConfig:
    """What the numbers of the archive mean, and what they become."""

    kind: Any = None
    offset: Any = "auto"
    scale: float = 10000
    units: str = "auto"
    conflict: str = "refuse"
    looks: int = 4
    found: dict[str, Any] | None = None  # by the fit, for decoding; nobody sets it

    def __post_init__(self) -> None:
        kinds = list(self.kind.values()) if isinstance(self.kind, dict) else [self.kind] if self.kind else []
        ok = all(kind in RADIOMETRIES for kind in kinds)
        choose = f"choose {' or '.join(RADIOMETRIES)}, or {{modality: kind}}"
        require(ok, f"archive.radiometry.kind={self.kind}: {choose}")
        ok = self.offset == "auto" or type(self.offset) is int
        require(ok, f"archive.radiometry.offset={self.offset}: give auto, 0 or -1000")
        require(0 < self.scale < math.inf, "archive.radiometry.scale must be positive")
        units = ("auto", *UNITS)
        require(self.units in units, f"archive.radiometry.units={self.units}: choose {', '.join(units)}")
        conflicts = ("refuse", "fix", "ignore")
        ok = self.conflict in conflicts
        require(ok, f"archive.radiometry.conflict={self.conflict}: choose {', '.join(conflicts)}")
        require(self.looks > 0, "archive.radiometry.looks must be positive")


@dataclass
class CloudsConfig:
    """Which bands tell clouds, and what their values mean."""

    band: str | None = None
    values: list[int] | None = None
    bits: list[int] | None = None
    above: float | None = None
    detector: str | None = None
    found: str | None = None  # the classes of `cloud_mask`, by the fit; nobody sets it

    def __post_init__(self) -> None:
        rules = [name for name in ("values", "bits", "above") if getattr(self, name) is not None]
        require(len(rules) < 2, f"archive.clouds: of {' and '.join(rules)} give one")
        require(self.band is None or bool(rules), "archive.clouds.band needs archive.clouds.values, bits or above")
        require(self.band is not None or not rules, "archive.clouds.values, bits and above need archive.clouds.band")
        ok = all(0 <= bit < 32 for bit in self.bits or [])
        require(ok, f"archive.clouds.bits={self.bits}: bits are numbered from 0 to 31")
        require(
            self.detector in (None, "omnicloudmask"), f"archive.clouds.detector={self.detector}: choose omnicloudmask"
        )


@dataclass
class ArchiveConfig:
    """How the shards are read; see ``conf/config.yaml`` for each key."""

    url: Any = None
    bands: list[str] | None = None
    band_names: list[str] | None = None
    members: list[str] | None = None
    nodata: float | None = None
    layout: str | None = None
    range: list[Any] | None = None
    scene: str | None = None
    tile: TileConfig = field(default_factory=TileConfig)
    grid: str | None = None
    resampling: str = "bilinear"
    radiometry: RadiometryConfig = field(default_factory=RadiometryConfig)
    clouds: CloudsConfig = field(default_factory=CloudsConfig)
    modalities: list[str] | None = None
    fields: dict[str, str] | None = None
    tables: list[Any] | None = None
    filter: str | None = None
    name_pattern: str | None = None
    max_pixels: int = 2**27
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        require(self.layout in (None, "hwc", "chw"), f"archive.layout={self.layout}: choose hwc or chw")
        methods = ("nearest", "bilinear", "cubic")
        require(self.resampling in methods, f"archive.resampling={self.resampling}: choose {', '.join(methods)}")
        _check_pattern("archive.scene", self.scene, ("file", "folder"), {"scene"})
        _check_pattern("archive.name_pattern", self.name_pattern, (), set())
        for name in self.fields or {}:
            require(name in FIELDS, f"archive.fields names {name!r}: choose of {', '.join(FIELDS)}")
        require(0 <= self.max_bad_fraction <= 1, "archive.max_bad_fraction must lie between 0 and 1")
        require(self.max_pixels > 0, "archive.max_pixels must be positive")
        if self.range is not None:
            rows = self.range if self.range and isinstance(self.range[0], list) else [self.range]
            ok = all(_is_interval(row) for row in rows)
            require(ok, f"archive.range={self.range}: give [low, high], or one such pair a band")


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


@dataclass
class RuntimeConfig:
    """Where and how wide it runs; nothing here may change a result."""

    address: str = ""
    num_cpus: int | None = None
    device: str = "auto"
    min_actors: int = 1
    max_actors: int | None = None
    gpus_per_actor: float = 1.0
    decode_ahead: int | None = None
    max_hours: float | None = None
    mix_profiles: bool = False
    log_json: str | None = None
    autoscale: dict[str, int] | None = None
    storage: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.storage = self.storage or {}
        ok = all(name in ("CPU", "GPU") and count >= 0 for name, count in (self.autoscale or {}).items())
        require(
            ok, f"runtime.autoscale={self.autoscale}: give what the cluster may grow to, such as {{CPU: 64, GPU: 2}}"
        )
        require(self.device in ("auto", "cpu", "cuda"), f"runtime.device={self.device}: choose auto, cpu or cuda")
        require(self.num_cpus is None or self.num_cpus > 0, "runtime.num_cpus must be positive")
        require(self.min_actors > 0, "runtime.min_actors must be positive")
        require(
            self.max_actors is None or self.max_actors >= self.min_actors,
            "runtime.max_actors must not be below runtime.min_actors",
        )
        require(
            0 < self.gpus_per_actor < 1 or (self.gpus_per_actor > 0 and self.gpus_per_actor % 1 == 0),
            f"runtime.gpus_per_actor={self.gpus_per_actor:g}: give a whole number, or a fraction between 0 and 1",
        )
        require(self.decode_ahead is None or self.decode_ahead >= 0, "runtime.decode_ahead must not be negative")
        require(self.max_hours is None or self.max_hours > 0, "runtime.max_hours must be positive")
        check_storage_options(self.storage)


@dataclass
class RecurateConfig:
    """How ``curate recurate`` goes on from the last manifest."""

    mode: str = "rebalance"
    free_at: float | None = 0.05
    share_shift: float | None = 0.2
    entropy_shift: float | None = 1.0

    def __post_init__(self) -> None:
        ok = self.mode in ("grow", "rebalance", "refit")
        require(ok, f"recurate.mode={self.mode}: choose grow, rebalance or refit")
        ok = self.free_at is None or 0 < self.free_at <= 1
        require(ok, f"recurate.free_at={self.free_at}: give a share of the new samples, or null")
        for name in ("share_shift", "entropy_shift"):
            limit = getattr(self, name)
            require(limit is None or limit > 0, f"recurate.{name}={limit}: give a positive limit, or null")


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


@dataclass
class CompareTestConfig:
    """The labelled samples that decide, disjoint from archive and bank."""

    url: Any = None


MEASURES = ("label", "pretraining")  # that decide; the cheap ones are always taken


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
            ok = NAME.fullmatch(name) is not None and name != "full"
            require(ok, f"compare.strategies: {name!r} cannot name a strategy: take letters, digits, - and _")
            ok = isinstance(keys, list) and all(isinstance(key, str) and "=" in key for key in keys)
            require(ok, f"compare.strategies.{name}={keys}: give the keys that make it, such as [select=balanced]")
            said = [key for key in keys if key.partition("=")[0] in ("seed", "select.budget")]
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


@dataclass
class MaterializeConfig:
    """``curate materialize``: how kept samples are written out."""

    format: str = "webdataset"
    budget: int | None = None
    bytes: int = 256 << 20
    samples: int | None = None
    shuffle: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        forms = ("webdataset", "parquet")
        require(self.format in forms, f"materialize.format={self.format}: choose {' or '.join(forms)}")
        require(self.bytes > 0, f"materialize.bytes={self.bytes}: give a positive number of bytes a shard")
        ok = self.samples is None or self.samples > 0
        require(ok, f"materialize.samples={self.samples}: give a positive number of samples a shard")
        ok = self.name is None or NAME.fullmatch(self.name) is not None
        require(ok, f"materialize.name={self.name}: take letters, digits, - and _")


@dataclass
class SubmitConfig:
    """``curate submit``: what goes along with the job."""

    working_dir: str | None = None
    wheel: str | None = None
    pip: list[str] | None = None
    env: list[str] | None = None


@dataclass
class PodConfig:
    """What a pod asks for, and may use at most."""

    cpu: int = 8
    memory: str = "32Gi"

    def __post_init__(self) -> None:
        require(self.cpu > 0, f"schedule: a pod of cpu={self.cpu}: give a whole number above 0")
        ok = MEMORY.fullmatch(self.memory) is not None
        require(ok, f"schedule: a pod of memory={self.memory}: give a quantity, such as 32Gi")


@dataclass
class PoolConfig(PodConfig):
    """A group of equal pods; ``max`` of them at most, none while there is no work for them."""

    max: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max >= 0, f"schedule: a group of max={self.max} pods: give 0 or more")


@dataclass
class GpuPoolConfig(PoolConfig):
    """Likewise, with GPUs."""

    max: int = 0
    gpu: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gpu > 0, f"schedule.gpu.gpu={self.gpu}: give the GPUs of a pod, 1 or more")


@dataclass
class SpotConfig:
    """Where preemptible nodes are: labels that workers need, and taints that they bear."""

    selector: dict[str, Any] | None = None
    tolerations: list[dict[str, Any]] | None = None


@dataclass
class ScheduleConfig:
    """``curate schedule render``: a job that Kubernetes runs by the clock."""

    name: str | None = None
    cron: str = "0 3 * * *"
    time_zone: str = "Etc/UTC"
    image: str | None = None
    namespace: str = "default"
    service_account: str | None = None
    secret: str | None = None
    head: PodConfig = field(default_factory=lambda: PodConfig(2, "8Gi"))
    cpu: PoolConfig = field(default_factory=PoolConfig)
    gpu: GpuPoolConfig = field(default_factory=GpuPoolConfig)
    spot: SpotConfig = field(default_factory=SpotConfig)
    retries: int = 0
    keep: int = 600

    def __post_init__(self) -> None:
        require(self.cpu.max > 0, "schedule.cpu.max=0: the head runs no tasks, so give 1 or more")
        for name in ("name", "namespace", "service_account"):
            value = getattr(self, name)
            ok = value is None or LABEL.fullmatch(value) is not None
            require(ok, f"schedule.{name}={value}: take small letters, digits and -, a letter first")
        ok = self.name is None or len(self.name) <= NAME_LENGTH
        require(ok, f"schedule.name={self.name}: {NAME_LENGTH} characters at most, KubeRay needs the rest")
        for name in ("retries", "keep"):
            require(getattr(self, name) >= 0, f"schedule.{name}={getattr(self, name)}: give 0 or more")


@dataclass
class Config:
    """Everything that a job is told."""

    workspace: str | None = None
    name: str | None = None
    seed: int = 0
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    references: ReferencesConfig = field(default_factory=ReferencesConfig)
    encoder: dict[str, Any] = field(default_factory=dict)
    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    recurate: RecurateConfig = field(default_factory=RecurateConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    materialize: MaterializeConfig = field(default_factory=MaterializeConfig)
    submit: SubmitConfig = field(default_factory=SubmitConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed={self.seed}: give a whole number, 0 or above")
        ok = self.name is None or CURATION.fullmatch(self.name) is not None
        require(ok, f"name={self.name}: take up to 60 letters, digits, -, _ and . for what the curation is called")
        for name, least in (("threads", 1), ("batch", 1), ("seed", 0)):
            value = self.encoder.get(name, least)
            ok = type(value) is int and value >= least
            require(ok, f"encoder.{name}={value}: give a whole number, {least} or above")

    def require(self, *keys: str) -> None:
        """Check that keys without a default were given.

        Raises:
            RequestError: one was not.
        """
        for key in keys:
            value: Any = self
            for part in key.split("."):
                value = getattr(value, part)
            require(value is not None, f"{key} is missing: add {key}=URL to the command")

    def references_mode(self) -> str:
        """What the bank does in the clustering: as configured, else by what there is.

        The published method assigns to the bank's centroids and stops; every
        other strategy lets them start a k-means over the archive.
        """
        if self.references.url is None:
            return "none"
        return self.cluster.references or ("frozen" if self.select.strategy == "rs_prune" else "seed")


def load_config(overrides: Sequence[str]) -> Config:
    """Compose the configuration from ``conf/``, the file of ``config=FILE``, and ``key=value`` overrides.

    Raises:
        RequestError: an override is malformed, names no key, or has a value that cannot be.
    """
    parsed: list[str] = []
    literal: dict[str, str | None] = {}
    described: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RequestError(f"{text!r} is not key=value")
        if key == "config":
            described = _read_file(value)
        elif key in LITERAL:
            literal[key] = value if value not in ("", "null") else None
        else:
            parsed.append(text)
    try:
        with initialize_config_dir(str(_config_dir()), version_base="1.3"):
            composed = compose("config", overrides=parsed)
        if described:
            named = [text.partition("=")[0] for text in parsed]
            described = _without(described, named)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), composed, described))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(_explain(error, parsed)) from error
    assert isinstance(config, Config)
    for key, path in literal.items():
        _set_literal(config, key, path)
    if config.encoder.get("name") == "joined":
        config.encoder["parts"] = _parts(config.encoder)
    _check_together(config)
    return config


def _read_file(path: str) -> dict[str, Any]:
    """A YAML file of the same structure as ``conf/config.yaml``."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise RequestError(f"config={path}: there is no such file") from error
    except (OSError, ValueError, YAMLError) as error:
        raise RequestError(f"config={path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise RequestError(f"config={path}: write keys as in conf/config.yaml, such as archive: {{url: …}}")
    return {str(name): value for name, value in found.items()}


def _without(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A nested mapping without the keys that the command line gives."""
    found = {}
    for name, value in values.items():
        below = [key.partition(".")[2] for key in keys if key.partition(".")[0] == name]
        if "" not in below:
            found[name] = _without(value, below) if isinstance(value, dict) else value
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values, ready for JSON."""
    return dataclasses.asdict(config)


def _check_together(config: Config) -> None:
    """What no key can tell alone."""
    if config.runtime.storage and config.archive.url is not None:  # else a manifest names the roots
        check_storage_names(config.runtime.storage, root_names(config.archive.url))
    check_detector(config.archive.clouds.detector)
    mode, select, keep = config.cluster.references, config.select, config.select.entropy.keep
    require(
        config.references.url is not None or mode not in ("frozen", "seed"),
        f"cluster.references={mode} needs a bank: add references.url=URL, or take cluster.references=none",
    )
    require(
        config.encoder.get("name") != "precomputed" or (keep is None and select.strategy != "entropy"),
        "encoder=precomputed reads no pixels, so there is no entropy to select by: "
        "take select.entropy.keep=null and another select.strategy than entropy",
    )
    cuts = config.encoder.get("name") == "precomputed" and config.archive.tile.size is not None
    require(
        not cuts or config.encoder.get("several") == "tiles",
        "encoder=precomputed reads no pixels, so that archive.tile.size cuts nothing: leave it out, or take "
        "the windows that have vectors, encoder.several=tiles",
    )
    require(
        config.archive.filter is None or bool(config.archive.tables),
        "archive.filter says what tables must say of a sample: add archive.tables=[{path: URL, key: column, on: key}]",
    )
    require(
        keep is None or not keep < select.budget < 1,
        f"select.budget={select.budget:g} is more than the entropy stage leaves, select.entropy.keep={keep}: "
        "lower select.budget, or raise select.entropy.keep (null: no cut)",
    )


def _parts(encoder: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of ``encoder=joined``, each with its defaults."""
    parts, weights = encoder["parts"], encoder["weights"]
    require(
        isinstance(parts, dict) and bool(parts),
        "encoder=joined needs encoder.parts={name: {name: random_conv, bands: […]}, …}",
    )
    made = {}
    for part, said in parts.items():
        require("." not in str(part), f"encoder.parts.{part}: a part's name has no dot")
        made[str(part)] = described_encoder(f"encoder.parts.{part}", said, {"bands": None})
    ok = weights is None or (isinstance(weights, dict) and all(name in made for name in weights))
    ok = ok and all(type(w) in (int, float) and 0 < w < math.inf for w in (weights or {}).values())
    require(ok, f"encoder.weights={weights}: give positive numbers for parts of {', '.join(made)}")
    return made


def described_encoder(where: str, said: Any, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """An encoder that a key describes, ``{name: …, …}``, with its defaults.

    Args:
        where: the key, for messages.
        said: its value.
        more: keys beside the encoder's own, with their defaults.

    Raises:
        RequestError: there is no such encoder or key.
    """
    may = [name for name in options_of("encoder") if name not in ("joined", "precomputed")]
    name = said.get("name") if isinstance(said, dict) else None
    require(name in may, f"{where}.name={name}: choose one of {', '.join(may)}")
    defaults = OmegaConf.to_container(OmegaConf.load(_config_dir() / "encoder" / f"{name}.yaml"))
    assert isinstance(defaults, dict)
    known: dict[str, Any] = {**{str(key): value for key, value in defaults.items()}, **(more or {})}
    for key, value in said.items():
        require(key in known, f"{where}: unknown key {key!r} for {name}")
        ok = key not in ("batch", "threads", "seed") or (type(value) is int and value >= (key != "seed"))
        require(ok, f"{where}.{key}={value}: give a whole number")
    return {**known, **said}


def options_of(group: str) -> list[str]:
    """What may be chosen of a group, such as the presets of ``select``."""
    return sorted(path.stem for path in (_config_dir() / group).glob("*.yaml"))


def _config_dir() -> Path:
    """``conf`` lies inside the package in the wheel, beside it in the checkout."""
    package = Path(curation.__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def _set_literal(config: Config, key: str, value: str | None) -> None:
    *sections, name = key.split(".")
    target: Any = config
    for section in sections:
        target = getattr(target, section)
    if isinstance(target, dict):
        if name not in target:
            raise RequestError(f"unknown key {key!r} for encoder={target.get('name')}")
        target[name] = value
    else:
        setattr(target, name, value)


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line out of Hydra's several."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = " ".join(" ".join(str(part) for part in causes).split())
    known = _known_keys()
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in GROUPS and f"'{key}/" in text:
            return f"{override}: no such option; choose {key}= one of {', '.join(options_of(key))}"
        if f"override '{key}'" in text or (key not in known and f"{key}" in text and key not in GROUPS):
            near = difflib.get_close_matches(key, known, 1)
            return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return " ".join(str(error).split())


def _known_keys() -> list[str]:
    def walk(prefix: str, node: Any) -> list[str]:
        if not isinstance(node, dict) or not node:
            return [prefix]
        return [key for name, below in node.items() for key in walk(f"{prefix}.{name}" if prefix else name, below)]

    return walk("", to_dict(Config()))


def _check_pattern(key: str, pattern: str | None, words: tuple[str, ...], needed: set[str]) -> None:
    """A regular expression with the groups that are needed, or one of some words."""
    if pattern is None or pattern in words:
        return
    try:
        groups = set(re.compile(pattern).groupindex)
    except re.error as error:
        raise RequestError(f"{key}={pattern} is no regular expression: {error}") from error
    asked = " and ".join(f"(?P<{name}>…)" for name in sorted(needed)) or "such as (?P<time>…)"
    require(groups >= needed and bool(groups), f"{key}={pattern}: give it the group {asked}")
    strange = sorted(groups - needed - {"band"} - set(FIELDS))
    require(not strange, f"{key} has the group {strange and strange[0]}: choose of {', '.join(FIELDS)}")


def _check_budgets(key: str, budgets: Sequence[float]) -> None:
    ok = bool(budgets) and all(0 < budget < 1 for budget in budgets) and len(set(budgets)) == len(budgets)
    require(ok, f"{key}={budgets}: give different shares of the archive, each between 0 and 1")


def _is_interval(row: Any) -> bool:
    numbers = isinstance(row, list) and len(row) == 2 and all(type(end) in (int, float) for end in row)
    return numbers and -math.inf < row[0] < row[1] < math.inf
