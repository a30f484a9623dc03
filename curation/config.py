"""The configuration: all its keys, how the command line overrides them, and what no key can tell alone.

Each stage's keys and their checks stand in its folder's ``settings.py``, those
of no stage here. The defaults stand in ``conf/``; Hydra composes them with the
groups that were chosen. A value that is a path or URL is taken as it was typed,
so that commas, brackets, ``=`` and ``%`` in it mean nothing to anybody.
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
from curation.archive.settings import ArchiveConfig
from curation.catalog.settings import CatalogConfig, PlanConfig, ReferencesConfig
from curation.clustering.settings import ClusterConfig
from curation.deploy.settings import ScheduleConfig, SubmitConfig
from curation.distillation.settings import DistillConfig
from curation.errors import RequestError, require
from curation.evaluation.settings import ChooseConfig, CompareConfig
from curation.materialized.settings import MaterializeConfig
from curation.scoring.settings import ConsistencyConfig, ScoreConfig
from curation.selection.settings import SelectConfig
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
NAMED = ("encoder", "select", "distill")  # of which a file may choose by a name among the keys
PLAIN = ("workspace", "name", "seed")  # keys that have none below them
CURATION = re.compile(r"[A-Za-z0-9._-]{1,60}")  # what a curation may be called: it becomes part of file names


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
    chosen, described = _chosen(described, parsed)
    parsed = [*chosen, *parsed]
    try:
        with initialize_config_dir(str(_config_dir()), version_base="1.3"):
            composed = compose("config", overrides=parsed)
        OmegaConf.set_struct(composed, False)  # the file may fill mappings; keys are held against the schema
        encoder = composed["encoder"]
        unknown = [key for key in described.get("encoder", {}) if key not in encoder]
        require(not unknown, f"unknown key 'encoder.{unknown and unknown[0]}' for encoder={encoder['name']}")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), composed, described))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(_explain(error, parsed)) from error
    assert isinstance(config, Config)
    for key, path in literal.items():
        _set_literal(config, key, path)
    config.archive.__post_init__()  # its patterns are among these
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
    said = {str(name): value for name, value in found.items() if value is not None}  # a heading alone says nothing
    known = [one.name for one in dataclasses.fields(Config)]
    for name in said:
        near = "".join(f"; did you mean {one!r}?" for one in difflib.get_close_matches(name, known, 1))
        require(name in known, f"config={path}: unknown key {name!r}{near}")
    for name, value in said.items():
        ok = name in PLAIN or isinstance(value, dict) or (name in GROUPS and isinstance(value, str))
        ok = ok and (name not in NAMED or isinstance(value, str) or isinstance(value.get("name", ""), str))
        require(ok, f"config={path}: {name} has no keys: write {name}: {{key: value, …}}, or {name}: PRESET")
    return said


def _chosen(described: dict[str, Any], parsed: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """What a config file chooses of the groups, as overrides; and the rest of it, less what the command line says.

    A group's name, or a ``name`` among its keys, chooses. Where the command line chooses another encoder,
    the file's keys for it fall; of another preset (``select=…``) those that the preset itself sets.
    """
    given = dict(text.lstrip("+").partition("=")[::2] for text in parsed)
    chosen, rest = [], _without(described, [key for key in given if key not in GROUPS])
    for group in GROUPS:
        section = rest.get(group)
        name = section.get("name") if group in NAMED and isinstance(section, dict) else None
        if isinstance(section, str):
            name = rest.pop(group)
        elif isinstance(section, dict) and name is not None and group != "encoder":
            section = rest[group] = {key: value for key, value in section.items() if key != "name"}
        if group not in given:
            chosen += [f"{group}={name}"] if name is not None else []
        elif isinstance(section, dict) and group == "encoder":
            if name is not None and name != given[group]:
                del rest[group]
        elif isinstance(section, dict) and given[group] in options_of(group):
            preset = OmegaConf.to_container(OmegaConf.load(_config_dir() / group / f"{given[group]}.yaml"))
            assert isinstance(preset, dict)
            rest[group] = _without(section, _leaves({key: preset[key] for key in preset if key != "defaults"}))
    return chosen, rest


def _leaves(values: dict[Any, Any], prefix: str = "") -> list[str]:
    """The keys of a nested mapping that have a value, with dots."""
    return [
        key
        for name, value in values.items()
        for key in (_leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [f"{prefix}{name}"])
    ]


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
    return _leaves(to_dict(Config()))
