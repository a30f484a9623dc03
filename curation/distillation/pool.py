"""Actors that each hold what the work needs, and work that any of them may do (Ray)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError
from ray.util import ActorPool

from curation.config import RuntimeConfig
from curation.distillation.models import check_profile
from curation.encoders.base import start_torch
from curation.errors import CurationError
from curation.runtime import Resources, numeric_profile
from curation.storage import Folder


class Maker(Protocol):
    """What an actor holds."""

    def make(self, item: Any) -> Any:
        """Do one item of the work."""


@dataclass(frozen=True)
class Pool:
    """How many actors there is room for, and what each is given.

    Attributes:
        actors: how many at most.
        cpus, gpus: of each, as Ray is asked for them.
        device: that they compute on.
        threads: of torch, each.
        restarts: of an actor that died.
        mix: whether what they write may be of several numeric profiles.
    """

    actors: int
    cpus: float
    gpus: float
    device: str
    threads: int
    restarts: int
    mix: bool

    @classmethod
    def of(cls, runtime: RuntimeConfig, resources: Resources, threads: int, restarts: int) -> "Pool":
        """An actor for each GPU (or the configured part of one), else for each ``threads`` cores; at least one."""
        cuda = resources.device == "cuda"
        gpus = runtime.gpus_per_actor if cuda else 0.0
        room = int(resources.gpus / gpus if cuda else resources.cpus / threads)
        actors = max(1, min(room, runtime.max_actors or room))
        cpus = min(1.0 if cuda else float(threads), math.floor(resources.cpus / actors * 100) / 100)
        return cls(actors, cpus, gpus, resources.device, threads, restarts, runtime.mix_profiles)

    def begin(self, folder: Folder) -> Any:
        """What an actor that writes to a folder does first; the torch device.

        Raises:
            RequestError: others wrote there on another numeric profile.
        """
        device = start_torch(self.device, self.threads)
        check_profile(folder, numeric_profile(self.device, "float32"), self.mix)
        return device

    def work(self, maker: Callable[..., Maker], arguments: Sequence[Any], items: Sequence[Any]) -> Iterator[Any]:
        """Do all items, each in one of the actors; what they give, in the order in which it is done.

        Args:
            maker: a class whose ``make(item)`` does an item.
            arguments: that each actor makes one with; references arrive as what they refer to.
            items: the work; an actor has one at a time, and begins it again where it died.

        Raises:
            CurationError: a maker's own, or that an actor died too often.
        """
        actor: Any = ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=self.restarts, max_task_retries=self.restarts
        )(_Actor)
        actors: list[Any] = [actor.remote(maker, *arguments) for _ in range(min(self.actors, len(items)))]
        pool: Any = ActorPool(actors)
        try:
            yield from pool.map_unordered(lambda one, item: one.make.remote(item), items)
        except RayActorError as error:
            reason = " ".join(str(error).split())[-300:]
            raise CurationError(
                f"an actor ({maker.__name__}) died more than distill.restarts={self.restarts} times; the same command "
                f"goes on from what is done: {reason}"
            ) from error
        finally:
            for one in actors:
                with suppress(Exception):
                    ray.kill(one)


class _Actor:
    """Has its maker from the first item on: an error while one is made is then a task's, and told as it is."""

    def __init__(self, maker: Callable[..., Maker], *arguments: Any) -> None:
        self.maker, self.arguments = maker, arguments
        self.made: Maker | None = None

    def make(self, item: Any) -> Any:
        """Do an item."""
        if self.made is None:
            self.made = self.maker(*self.arguments)
        return self.made.make(item)
