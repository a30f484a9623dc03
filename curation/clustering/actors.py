"""The points that k-means sees, held by Ray actors; who needs no Ray holds them in `clustering.points.Rows`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from curation.clustering.nearest import Floats
from curation.clustering.points import Loader, Rows
from curation.clustering.sums import Sums


class ActorRows:
    """Points in Ray actors, the matrices dealt out in turn; see :class:`Rows`.

    Args:
        loaders: one for each matrix. They are what is fixed; the number of actors is not.
        seed: of the shuffling.
        actors: how many; no more than there are matrices are started.
        device: ``cuda`` gives each actor a GPU.
        num_cpus, num_gpus: of each actor, where others hold a part of the cluster.
    """

    def __init__(
        self,
        loaders: Sequence[Loader],
        seed: int,
        actors: int,
        device: str = "cpu",
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
    ) -> None:
        actors = min(actors, len(loaders))
        cpus = float(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        options: dict[str, Any] = {
            "num_cpus": min(1.0, cpus / actors) if num_cpus is None else num_cpus,  # more actors than cores find room
            "num_gpus": int(device == "cuda") if num_gpus is None else num_gpus,
            "max_restarts": -1,  # a lost actor starts again and answers again:
            "max_task_retries": -1,  # it holds nothing that its loaders do not give
        }
        actor = ray.remote(**options)(Rows)
        dealt = [dict(list(enumerate(loaders))[number::actors]) for number in range(actors)]
        self.actors: list[Any] = [actor.remote(mine, seed, device) for mine in dealt]
        self.rows = sum(ray.get([a.count.remote() for a in self.actors]))

    def head(self, rows: int) -> Floats:
        """See :class:`Points`."""
        heads: dict[int, Floats] = {}
        for reference in [a.heads.remote(min(1.0, rows / max(1, self.rows))) for a in self.actors]:
            heads |= ray.get(reference)
        return np.concatenate([heads[number] for number in sorted(heads)])

    def sums(self, centroids: Floats, share: float) -> Sums:
        """See :class:`Points`."""
        shared, total = ray.put(centroids), Sums.zero(*centroids.shape)
        for reference in [a.sums.remote(shared, share) for a in self.actors]:
            total += ray.get(reference)
        return total

    def split(self, centroids: Floats) -> list[tuple[Any, ...]]:
        """For each centroid, references to what each actor holds nearest to it."""
        shared = ray.put(centroids)
        held = [a.split.options(num_returns=len(centroids)).remote(shared) for a in self.actors]
        return list(zip(*held, strict=True))

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run a function once for each tuple of arguments, in the actors: they hold the cores that tasks would need."""
        turns = [self.actors[turn % len(self.actors)] for turn in range(len(arguments))]
        results: list[Any] = ray.get(
            [a.call.remote(function, *given) for a, given in zip(turns, arguments, strict=True)]
        )
        return results
