"""The keys ``submit.*`` and ``schedule.*``: their defaults, and every check that needs no data."""

import re
from dataclasses import dataclass, field
from typing import Any

from curation.errors import require

MEMORY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTP]i?)?")  # a Kubernetes quantity of bytes
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # a DNS label
NAME_LENGTH = 38  # KubeRay takes 47 characters, and a CronJob adds - and 8 digits


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
