"""What a materialised folder will hold, frozen before the first shard is written: so that any run goes on from it."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curation.errors import RequestError
from curation.manifests.loaders.fetch import Fetcher
from curation.manifests.loaders.order import Order, Run
from curation.manifests.loaders.stream import changed, in_order
from curation.manifests.reading import ManifestReader, ShardIndex
from curation.manifests.schema import json_bytes
from curation.materialized.files import Files
from curation.materialized.settings import MaterializeConfig
from curation.materialized.shards import tar_bytes
from curation.storage import Folder

PLAN_FILE = "plan.json"
VERSION = 1  # of the bytes that are written
PROBED = 32  # samples that are read to see what a sample takes
HELD = 64 << 20  # bytes of samples that wait in a worker while the order is mixed, about
MOST_HELD = 10_000  # samples


@dataclass(frozen=True)
class Plan:
    """What is written.

    Attributes:
        manifest: its id.
        format: ``webdataset`` or ``parquet``.
        samples: how many.
        budget: only the first that many by rank; ``None``: all.
        asked: what decided ``shards``: bytes or samples of one.
        seed: of the order; ``None``: the manifest's order.
        name: its shards are called ``<name>-000000.tar``.
        shards: how many.
        held: samples by which one may move back in its shard.
        suffixes: the files that samples have, as far as some tell.
        version: of the writer.
    """

    manifest: str
    format: str
    samples: int
    budget: int | None
    asked: dict[str, int]
    seed: int | None
    name: str
    shards: int = 0
    held: int = 0
    suffixes: tuple[str, ...] = ()
    version: int = VERSION

    def shard(self, number: int) -> str:
        """The file name of a shard."""
        return f"{self.name}-{number:06d}.{'tar' if self.format == 'webdataset' else 'parquet'}"

    def edges(self, number: int) -> tuple[int, int]:
        """Positions of a shard's samples in the order: all shards have as many, or one more."""
        return number * self.samples // self.shards, (number + 1) * self.samples // self.shards

    @property
    def order(self) -> Order:
        """As in an epoch of the loaders: shards shuffled, and samples within a bounded distance."""
        return Order(self.seed or 0, 0, 0 if self.seed is None else self.held)

    def request(self) -> dict[str, Any]:
        """What two runs must agree in to write the same."""
        told = asdict(self)
        return {name: told[name] for name in ("manifest", "format", "budget", "asked", "seed", "name", "version")}


def asked_for(manifest: ManifestReader, options: MaterializeConfig, seed: int) -> Plan:
    """The plan as far as the request tells it.

    Raises:
        RequestError: the manifest has not that many samples, or none.
    """
    manifest.check_budget(options.budget)
    if not manifest.num_rows:
        raise RequestError(f"{manifest.folder.public()} keeps no sample: there is nothing to write")
    plan = Plan(
        manifest=manifest.id,
        format=options.format,
        samples=options.budget or manifest.num_rows,
        budget=None if options.budget == manifest.num_rows else options.budget,
        asked={"bytes": options.bytes} if options.samples is None else {"samples": options.samples},
        seed=seed if options.shuffle else None,
        name=options.name or "",
    )
    told = hashlib.blake2b(json_bytes(plan.request()), digest_size=4).hexdigest()
    return plan if plan.name else replace(plan, name=f"shard-{told}")


def measure(plan: Plan, fetcher: Fetcher) -> Plan:
    """The whole plan, from a look at some samples that lie evenly in the order."""
    manifest = fetcher.manifest
    index, files = manifest.shards(plan.budget), Files(manifest.archive)
    positions = np.unique(np.linspace(0, plan.samples - 1, PROBED).astype(np.int64))
    straight = Order(0, 0, 0)
    runs = [run for at in positions.tolist() for run in straight.runs(index, at, at + 1)]
    sizes: list[int] = []
    suffixes: set[str] = set()
    for kept in in_order(fetcher, runs, positions, plan.budget):
        with changed(kept):
            written = files.of(kept)
        sizes.append(tar_bytes(written))
        suffixes.update(written.raw.data)
    mean = sum(sizes) / len(sizes)
    wanted = (
        plan.samples / plan.asked["samples"] if "samples" in plan.asked else plan.samples * mean / plan.asked["bytes"]
    )
    return replace(
        plan,
        shards=min(max(1, int(-(-wanted // 1))), plan.samples),
        held=int(min(max(1, HELD // mean), MOST_HELD)),
        suffixes=tuple(sorted(suffixes)),
    )


def freeze(plan: Plan, dest: Folder) -> Plan:
    """Write the plan unless there is one by now; the one that holds."""
    dest.create(PLAN_FILE, json_bytes(asdict(plan)))
    found = find_plan(dest)
    assert found is not None
    return found


def find_plan(dest: Folder) -> Plan | None:
    """The plan that a folder was begun with.

    Raises:
        RequestError: there is a ``plan.json`` that is none.
    """
    try:
        told = json.loads(dest.read(PLAN_FILE))
        return Plan(**{**told, "suffixes": tuple(told["suffixes"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{dest.public(PLAN_FILE)} is no plan of curate materialize: take another folder") from error


@dataclass(frozen=True)
class Piece:
    """What goes into one shard.

    Attributes:
        number: the shard's.
        runs: of kept samples, in the order in which they are read.
        sources: the shards of the archive that they lie in.
    """

    number: int
    runs: list[Run]
    sources: list[str]


def pieces(plan: Plan, index: ShardIndex) -> Iterator[Piece]:
    """What goes into each shard, one after the other.

    Raises:
        RequestError: the manifest's ranks do not count what it keeps.
    """
    if int(index.counts.sum()) != plan.samples:
        raise RequestError(f"{int(index.counts.sum())} samples have a rank below {plan.samples}: take another budget")
    cut = _cut(plan.order.runs(index, 0, plan.samples), [plan.edges(i)[1] for i in range(plan.shards)])
    for number, runs in itertools.groupby(cut, key=lambda item: item[0]):
        own = [run for _, run in runs]
        sources = index.names.take(pa.array(np.searchsorted(index.first, [run.rows[0] for run in own])))
        yield Piece(number, own, list(dict.fromkeys(sources.to_pylist())))


def _cut(runs: Iterable[Run], stops: Sequence[int]) -> Iterator[tuple[int, Run]]:
    """Runs cut where a shard ends, with the shard's number."""
    number = 0
    for run in runs:
        done = 0
        while done < run.count:
            position = run.position + done
            while position >= stops[number]:
                number += 1
            count = min(run.count - done, stops[number] - position)
            yield number, replace(run, first=run.first + done, count=count, position=position)
            done += count
