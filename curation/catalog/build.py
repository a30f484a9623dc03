"""The catalog stage: which shards are wanting, the Ray Data stream that fills them, and the reckoning after.

The driver holds the listing and counts; footers are read and checked in tasks.
"""

import logging
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Event, Thread
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayActorError

from curation.archive.listing import Root
from curation.archive.shards import Shard
from curation.archive.tables import TableFilter
from curation.catalog.artefact import Artefact, catalog_id, encoder_config, needs_pixels
from curation.catalog.encode import EncodeSpec, Ledger, ShardEncoder
from curation.catalog.fit import check_bank, load_or_fit, other_resolution
from curation.catalog.sources import SOURCES_SCHEMA, counts_of, digest_of, lost_shards, merged, source_row
from curation.catalog.store import CatalogStore, chunks
from curation.config import Config
from curation.encoders import precomputed
from curation.encoders.base import compute_dtype
from curation.errors import CurationError, IncompleteError, RequestError
from curation.runs import count, duration, stage
from curation.runtime import Resources, numeric_profile
from curation.storage import Folder

log = logging.getLogger("curation")

BANK = "references"  # the bank's root name
FOOTERS = 500  # footers read in one task
BLOCKS = 10_000  # blocks that Ray Data is handed at most
LOOK = 5.0  # seconds between two looks at what the encoders have done


@dataclass(frozen=True)
class Catalog:
    """A complete catalog of a frozen listing.

    Attributes:
        shards: names of the archive's shards, sorted.
        bank: names of the reference bank's shards.
        counts: samples read, kept and quarantined; those that a filter refused, and tiles without a valid pixel, which
            do not count as read; over the archive (not the bank).
        digest: hash over the shards' names and content digests.
        sources: the archive's ledger, `catalog.sources.SOURCES_SCHEMA`.
        profile: the numeric profile, or several where mixing was allowed.
    """

    store: CatalogStore
    artefact: Artefact
    shards: tuple[str, ...]
    bank: tuple[str, ...]
    counts: dict[str, int]
    digest: str
    bank_digest: str | None
    profiles: tuple[dict[str, str], ...]
    sources: pa.Table
    warnings: tuple[str, ...] = ()


def build_catalog(
    config: Config,
    roots: Sequence[Root],
    bank: Root | None,
    resources: Resources,
    encode: bool = True,
    filter: TableFilter | None = None,
) -> Catalog:
    """Bring every shard of the listing into the catalog.

    Args:
        config: of the run.
        roots: the frozen listing.
        bank: the root of the reference bank.
        resources: what the cluster has.
        encode: ``False``: only check that it is complete.
        filter: which of the archive's samples are read (of the bank all are).

    Raises:
        RequestError: the config does not fit the data, or numeric profiles would be mixed.
        IncompleteError: shards could not be read, or ``runtime.max_hours`` is over.
    """
    assert config.workspace
    workspace = Folder(config.workspace, config.runtime.storage, "workspace")
    shared = Folder(config.catalog.url, config.runtime.storage, "catalog") if config.catalog.url else None
    artefact = load_or_fit(config, roots, workspace, shared, filter, fit=encode)
    store = CatalogStore(workspace, catalog_id(config), shared)
    listed = sources_of(config, (*roots, *([bank] if bank else [])), filter)
    state = _reckon(store, artefact, [shard for _, shard in listed])
    pending = [(folder, shard) for folder, shard in listed if shard.name in state.pending]
    if pending and not encode:
        raise RequestError(f"{len(pending)} of {len(listed)} shards have no catalog file: run curate catalog first")
    if pending:
        check_profiles(config, [*state.profiles, ray.get(_worker_profile(config, resources))])
        if bank and any(shard.root == BANK for _, shard in pending):
            check_bank(config, bank, artefact)
        log.info("catalog: %d of %d shards to encode", len(pending), len(listed))
        _encode(config, store, pending, resources, filter)
        state = _reckon(store, artefact, [shard for _, shard in listed])
    if state.pending:
        raise IncompleteError(f"{sorted(state.pending)[0]} and {len(state.pending) - 1} more are not in the catalog")
    check_profiles(config, state.profiles)
    of_bank = pc.starts_with(state.sources["shard"], f"{BANK}/")
    sources, of_bank = state.sources.filter(pc.invert(of_bank)), state.sources.filter(of_bank)
    counts = counts_of(sources)
    if (refused := counts["filtered"]) and not counts["read"]:
        raise RequestError(f"archive.filter={config.archive.filter} allows none of the {refused} samples: widen it")
    names = tuple(sorted(shard.name for shard in bank.shards)) if bank else ()
    return Catalog(
        store=store,
        artefact=artefact,
        shards=tuple(sorted(shard.name for root in roots for shard in root.shards)),
        bank=names,
        counts=counts,
        digest=digest_of(sources),
        bank_digest=digest_of(of_bank) if names else None,
        profiles=tuple(state.profiles),
        sources=sources,
        warnings=_warnings(store, artefact, names),
    )


def sources_of(config: Config, roots: Sequence[Root], filter: TableFilter | None) -> list[tuple[Folder, Shard]]:
    """Every shard with its root's folder; its fingerprint has the vectors' version and the filter too."""
    listed = [(root.folder, shard) for root in roots for shard in root.shards]
    if not needs_pixels(config):
        version = precomputed.versions(encoder_config(config))
        listed = [(folder, replace(shard, vectors=version(shard.name))) for folder, shard in listed]
    if filter is not None:
        listed = [(f, shard if shard.root == BANK else replace(shard, filter=filter.digest)) for f, shard in listed]
    return listed


def _warnings(store: CatalogStore, artefact: Artefact, bank: tuple[str, ...]) -> tuple[str, ...]:
    """What is to be said of the bank's shards."""
    gsds = ray.get(_ground_sampling.remote(store, bank[:FOOTERS])) if bank else []
    warning = other_resolution(artefact.gsd, gsds)
    return (warning,) if warning else ()


def warn_of_lost(catalog: Catalog) -> tuple[str, ...]:
    """What is to be said, and is said here, of shards of which nothing can be used."""
    lost = lost_shards(catalog.sources)
    if not lost:
        return ()
    why = next(iter(catalog.store.quarantine(lost[0])["message"].to_pylist()), "see the quarantine")
    text = f"{len(lost)} of {len(catalog.sources)} shards have no usable sample, {lost[0]} for one: {why}"
    log.warning("catalog: %s", text)
    return (text,)


@ray.remote(num_cpus=1)
def _ground_sampling(store: CatalogStore, shards: Sequence[str]) -> list[float | None]:
    """Ground sampling distances of some shards' samples, metres."""
    return [gsd for shard in shards for gsd in store.read(shard, ["gsd"])["gsd"].to_pylist()]


def check_bad_fraction(config: Config, sources: pa.Table, workspace: Folder, result: dict[str, Any]) -> None:
    """Exit status 1 for an archive of which too much is quarantined, after everything was written.

    A shard that cannot be opened is one entry, however many samples it has: so shards of which nothing can be used are
    held against the shards.

    Raises:
        CurationError: more than ``archive.max_bad_fraction`` of the samples, or of the shards.
    """
    counts, lost = counts_of(sources), len(lost_shards(sources))
    for bad, of, what in (
        (counts["quarantined"], counts["read"], "samples are quarantined"),
        (lost, len(sources), "shards have no usable sample"),
    ):
        if bad > config.archive.max_bad_fraction * of:
            error = CurationError(
                f"{bad} of {of} {what}, more than archive.max_bad_fraction={config.archive.max_bad_fraction:g} allows "
                f"(everything is written all the same); see {workspace.public('quarantine')}"
            )
            error.result = result
            raise error


# what is there already


@dataclass
class _State:
    pending: set[str]
    sources: pa.Table
    profiles: list[dict[str, str]]


def _reckon(store: CatalogStore, artefact: Artefact, shards: Sequence[Shard]) -> _State:
    """Which shards are wanting, and the ledger of the others."""
    sha256 = artefact.sha256
    parts = ray.get([_footers.remote(store, sha256, list(chunk)) for chunk in chunks(shards, FOOTERS)])
    pending = {name for part in parts for name in part.pending}
    profiles = [profile for part in parts for profile in part.profiles]
    profiles = [profile for i, profile in enumerate(profiles) if profile not in profiles[:i]]
    return _State(pending, merged([part.sources for part in parts]), profiles)


@ray.remote(num_cpus=1)
def _footers(store: CatalogStore, artefact: str, shards: list[Shard]) -> _State:
    pending: set[str] = set()
    rows: list[dict[str, Any]] = []
    profiles: list[dict[str, str]] = []
    for shard in shards:
        footer = store.footer(shard.name)
        if footer is None or footer["fingerprint"] != shard.fingerprint:
            pending.add(shard.name)
            continue
        if footer["artefact"] != artefact:
            raise RequestError(
                f"the catalog file of {shard.name} was made with another encoder artefact; "
                "take a fresh workspace, or a catalog.url whose encoders folder lies beside it"
            )
        if footer["read"] != footer["kept"] + footer["quarantined"]:
            raise CurationError(f"the counts of {shard.name} do not add up: {footer}")
        rows.append(source_row(shard.name, footer))
        if footer["profile"] not in profiles:
            profiles.append(footer["profile"])
    return _State(pending, pa.Table.from_pylist(rows, SOURCES_SCHEMA), profiles)


def check_profiles(config: Config, profiles: Sequence[dict[str, str]]) -> None:
    """Refuse to mix numeric profiles.

    Raises:
        RequestError: there are several, and ``runtime.mix_profiles`` does not allow it.
    """
    first = profiles[0]
    for other in profiles[1:]:
        differing = sorted(name for name in first if first[name] != other.get(name))
        if differing and not config.runtime.mix_profiles:
            name = differing[0]
            raise RequestError(
                f"the catalog has files of another numeric profile ({name}: {first[name]} and {other.get(name)}): "
                "their embeddings differ in the last bits; run on the same kind of machine, take a fresh workspace, "
                "or allow it with runtime.mix_profiles=true"
            )


def _worker_profile(config: Config, resources: Resources) -> Any:
    gpus, dtype = 0.001 if resources.device == "cuda" else 0, compute_dtype(config.encoder, resources.device)
    return ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus)(numeric_profile).remote(resources.device, dtype)


# the stream


def _encode(
    config: Config,
    store: CatalogStore,
    pending: Sequence[tuple[Folder, Shard]],
    resources: Resources,
    filter: TableFilter | None,
) -> None:
    from ray.data import ActorPoolStrategy  # half a second of imports, which no worker that takes tasks from here needs

    runtime = config.runtime
    actors, cpus, ahead = _pool(config, resources, len(pending))
    deadline = time.time() + runtime.max_hours * 3600 if runtime.max_hours else None
    ledger: Any = Ledger.remote()  # type: ignore[attr-defined]
    # the largest first, so that the last shards to finish are small
    ordered = sorted(pending, key=lambda item: (-item[1].size, item[1].name))
    items = [{"task": pickle.dumps(item)} for item in ordered]
    stream = ray.data.from_items(items, override_num_blocks=min(len(items), BLOCKS)).map_batches(
        ShardEncoder,
        fn_constructor_args=(EncodeSpec(config, store, resources.device, ahead, deadline, filter), ledger),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=min(runtime.min_actors, actors), max_size=actors, initial_size=actors),
        num_cpus=cpus,
        num_gpus=runtime.gpus_per_actor if resources.device == "cuda" else None,
    )
    sizes = {shard.name: shard.size for _, shard in pending}
    failed: list[tuple[str, str]] = []
    stopped = 0
    with _progress(ledger, sizes) as done:
        for row in stream.iter_rows():
            if row["outcome"] == "stopped":
                stopped += 1
            elif row["outcome"] == "done":
                done(row["shard"])
            else:
                failed.append((row["shard"], row["outcome"]))
                log.warning("catalog: %s", row["outcome"])
    if failed:
        name, why = min(failed)
        raise IncompleteError(
            f"{len(failed)} shards could not be read, the first is {name} ({why}); nothing was published, "
            "the same command tries them again"
        )
    if stopped:
        raise IncompleteError(
            f"runtime.max_hours={runtime.max_hours:g} is over with {stopped} shards to go; "
            "the same command goes on from there"
        )


def _pool(config: Config, resources: Resources, shards: int) -> tuple[int, float, int]:
    """Actors, CPUs an actor and chunks decoded ahead, such that no task is ever left without a CPU.

    Raises:
        RequestError: the smallest pool asked for does not fit the cluster.
    """
    runtime = config.runtime
    cpus = float(config.encoder.get("threads", 1))
    gpu = resources.device == "cuda"
    ahead = runtime.decode_ahead if runtime.decode_ahead is not None else (8 if gpu else 0)
    room = int(resources.gpus / runtime.gpus_per_actor) if gpu else sys.maxsize
    by_cpu = int((resources.cpus - (1 if ahead else 0)) / cpus)
    if ahead and by_cpu < 1:
        log.warning("no CPU is left for decoding tasks: the encoders decode themselves")
        ahead, by_cpu = 0, int(resources.cpus / cpus)
    actors = min(room, by_cpu, runtime.max_actors or sys.maxsize, shards)
    if actors < min(runtime.min_actors, shards):
        raise RequestError(
            f"{runtime.min_actors} encoder actors of {cpus:g} CPUs do not fit a cluster of {resources.cpus:g} CPUs "
            f"and {resources.gpus:g} GPUs: lower runtime.min_actors or encoder.threads"
        )
    return actors, cpus, ahead


@contextmanager
def _progress(ledger: Any, sizes: dict[str, int]) -> Iterator[Callable[[str], None]]:
    """A line now and then: shards, samples a second, time left, quarantined; all of it for the run's record too."""
    start, total = time.monotonic(), sum(sizes.values())
    sums: Counter[str] = Counter()
    over = Event()

    def done(shard: str) -> None:
        sums.update(shards=1, bytes=sizes[shard])
        count(shard.partition("/")[0], shards=1, size=sizes[shard])
        more(sizes[shard])

    def look() -> None:
        with suppress(RayActorError):  # the counts are for looking at: the run does without
            for root, told in ray.get(ledger.take.remote()).items():
                sums.update(told)
                count(root, **told)

    def line() -> None:
        elapsed = time.monotonic() - start
        left = duration(elapsed * (total - sums["bytes"]) / sums["bytes"]) if sums["bytes"] else "?"
        log.info(
            f"catalog: {sums['shards']}/{len(sizes)} shards, {sums['samples']} samples, "
            f"{sums['samples'] / elapsed:.0f}/s, {left} left, {sums['quarantined']} quarantined"
        )

    def show() -> None:
        pause, due = 1.0, start + 1
        while not over.wait(min(pause, LOOK)):
            look()
            if sums["samples"] and time.monotonic() >= due:  # before, the encoders are starting
                line()
                pause = min(30.0, pause * 1.5)
                due = time.monotonic() + pause

    thread = Thread(target=show, daemon=True)
    with stage("encode", total, "bytes") as more:
        thread.start()
        try:
            yield done
            over.set()
            thread.join()
            look()
            line()
        finally:
            over.set()
            thread.join()
            ray.kill(ledger)
