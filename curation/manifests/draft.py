"""A manifest under way: references to the rows, and what the driver has learnt of them."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from curation.errors import RequestError
from curation.manifests import order, steps
from curation.manifests.again import Again
from curation.manifests.duplicates import mark
from curation.manifests.exchange import Layers, Send, Work, exchange, submit
from curation.manifests.schema import File
from curation.manifests.steps import Plan, Survey
from curation.selection import counting
from curation.storage import Folder

log = logging.getLogger("curation")

AT_ONCE = 64  # counts that wait to be added


class Draft:
    """What one selection has come to.

    Args:
        plan: what is known before the first row is read.
        centroids: of the clusters, a row each, without the vectors.
        workspace: where ``manifests/<id>`` goes.
        folder: of this run's own in there, for files that have no id yet.
        sources: the archive's ledger, to lie beside the manifest.
        again: what it goes on from.

    Attributes:
        plan: what tasks are told; see `learn`.
        shared: a reference to it.
        settings: what is asked for.
        parts: the rows, layer upon layer.
        shards: of each part a reference to which shards its rows are of.
        names: of each part a reference to its groups and labels.
        surveys: what each part told of itself.
        samples: of the archive.
        unscored: samples without the label or score that the strategy needs.
        left: samples that no stage has dropped, and
        required: how many of these are on `select.require`.
        sketches: files for near-duplicates, that the manifest takes along.
        told: what the header will say of the selection.
        warnings: for the user, in the header too.
    """

    parts: list[Layers]
    shards: list[Any]
    names: list[Any]
    surveys: list[Survey]
    samples: int
    unscored: int
    left: int
    required: int

    def __init__(
        self,
        plan: Plan,
        centroids: pa.Table,
        workspace: Folder,
        folder: Folder,
        sources: pa.Table | None,
        again: Again | None,
    ) -> None:
        self.settings, self.centroids, self.workspace, self.folder = plan.settings, centroids, workspace, folder
        self.sources, self.again = sources, again
        self.sketches: list[File] = []
        self.told: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.plan, self.shared = plan, ray.put(plan)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(K,) samples when the clusters were assigned."""
        sizes: NDArray[np.int64] = self.centroids["size"].to_numpy()
        return sizes

    def learn(self, **found: Any) -> None:
        """Fill in what tasks are told: fields of the plan."""
        self.plan = dataclasses.replace(self.plan, **found)
        self.shared = ray.put(self.plan)

    def add(self, function: Callable[..., Any], *args: Any) -> None:
        """Lay the columns that ``function`` makes of ``args`` and a part's layers on every part."""
        self.parts = [[*part, submit(function, *args, *part)] for part in self.parts]

    def add_told(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Likewise, of a function that makes columns and something for the driver: the latter, of each part."""
        done = [submit(function, *args, *part, returns=2) for part in self.parts]
        self.parts = [[*part, layer] for part, (layer, _) in zip(self.parts, done, strict=True)]
        return ray.get([told for _, told in done])

    def exchange(self, partitions: int, send: Send, work: Work, shards: bool = False) -> list[Any]:
        """Lay the columns that ``work`` makes of each partition on every part; see `exchange.exchange`.

        Args:
            partitions: how many pieces of work.
            send: what of a part is sent where.
            work: on one partition.
            shards: whether ``send`` is told the part's shards too.

        Returns:
            what each partition tells the driver.
        """
        self.parts, told = exchange(self.parts, partitions, self.shared, send, work, self.shards if shards else ())
        return told

    def total(self, function: Callable[..., NDArray[np.int64]], *args: Any) -> NDArray[np.int64]:
        """A count over all parts, of which only so many are waiting to be added at any time."""
        total: Any = 0
        for start in range(0, len(self.parts), AT_ONCE):
            for count in [submit(function, *args, *part) for part in self.parts[start : start + AT_ONCE]]:
                total = total + ray.get(count)
        counts: NDArray[np.int64] = total
        return counts

    def cut(self, column: str, sign: int, keep: int, reason: str) -> float:
        """Keep the smallest values of a float32 column times ``sign``, exactly so many, and tell the last."""
        prefix = counting.threshold(lambda prefix: self.total(steps.count_keys, column, sign, prefix), max(keep, 1), 6)
        return float(max(self.add_told(steps.cut, column, sign, prefix, reason)))

    def mark(self, fallen: Any, reason: str) -> None:
        """Give rows their reason and who stands for them."""
        self.add(mark, fallen, reason)

    def settle_units(self) -> None:
        """Make the members of each unit share one fate and one place."""
        self.exchange(int(self.plan.partition.max()) + 1, order.send_to_unit, order.settle_units)

    def check(self, stage: str) -> None:
        """Count what is left, and refuse a budget that a stage leaves too little for.

        Raises:
            RequestError: it does.
        """
        left, required = self.total(order.count_rows).tolist()
        self.left, self.required = left, required
        if left < self.samples:
            log.info("select: %s %d of %d samples", stage, left, self.samples)
        budget = self.plan.budget
        asked = f"select.budget={self.settings.budget:g} asks for {budget} of {self.samples} samples"
        if left < budget:
            raise RequestError(f"{asked}, but {stage} {left}: lower the budget, or let that stage keep more")
        if required > budget:
            raise RequestError(f"{asked}, but select.require alone names {required}: raise the budget")

    def tell_least_entropy(self, value: float) -> None:
        """Remember the entropy threshold for the decisions and the header."""
        self.told["least_entropy"] = value
        self.learn(least_entropy=value)

    def warn(self, text: str) -> None:
        """Tell the user, now and in the header."""
        log.warning("select: %s", text)
        self.warnings.append(text)
