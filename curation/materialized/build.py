"""From a manifest to shards of just its samples, a Ray task a shard; resumes, and writes the same bytes every time.

Below the destination ``plan.json`` comes first; then the shards, each complete or absent, and beside each its receipt
in ``.receipts``; at the end ``index.json``, ``croissant.json`` and last ``SHA256SUMS``, whose presence means that the
rest is there. All that a run needs to go on are these files.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

from curation.archive.names import extension
from curation.config import Config
from curation.errors import AccessError, CurationError, IncompleteError, RequestError
from curation.manifests.loaders.container import find_shard
from curation.manifests.loaders.fetch import Fetcher
from curation.manifests.loaders.kept import Kept
from curation.manifests.loaders.order import Run
from curation.manifests.loaders.stream import changed, in_order
from curation.manifests.reading import ManifestReader
from curation.manifests.schema import json_bytes
from curation.materialized.croissant import describe
from curation.materialized.files import Files
from curation.materialized.plan import PLAN_FILE, Piece, Plan, asked_for, find_plan, freeze, measure, pieces
from curation.materialized.shards import Sink, parquet_schema, write_parquet, write_tar
from curation.runtime import start_ray
from curation.storage import Folder, path_below

log = logging.getLogger("curation")

INDEX_FILE = "index.json"
CROISSANT_FILE = "croissant.json"
SUMS_FILE = "SHA256SUMS"  # written last: its presence means that the rest is there
RECEIPTS = ".receipts"
AHEAD = 2  # tasks a CPU
LICENCES = 100  # that a receipt lists
FAILURES = 10  # shards that could not be written until a run gives up
STALE = 3600  # seconds after which what a killed run was writing is removed


@dataclass(frozen=True)
class Work:
    """What every task knows.

    Attributes:
        plan: what is written.
        manifest, dest: from where to where.
        roots: root name to URL, where the archive has moved.
        storage: as ``runtime.storage``.
    """

    plan: Plan
    manifest: ManifestReader
    dest: Folder
    roots: dict[str, str]
    storage: dict[str, Any] | None

    def fetcher(self) -> Fetcher:
        """What reads the samples, every file of each."""
        return Fetcher(self.manifest, "all", self.roots, self.storage)


def materialize(url: str, dest: str, config: Config, roots: dict[str, str] | None = None) -> dict[str, Any]:
    """Write the kept samples of a manifest as shards; see docs/materialize.md.

    Args:
        url: of the manifest.
        dest: URL of a folder that is empty, or that the same request began.
        config: ``materialize``, ``seed`` and ``runtime`` count.
        roots: root name to URL, where the archive has moved.

    Returns:
        ``destination``, ``manifest``, ``format``, ``shards``, ``samples``, ``bytes`` (of the shards), ``written``
        (shards that this run wrote), ``index``, ``croissant`` and ``sums`` (URLs).

    Raises:
        RequestError: the destination holds something else, or lies in the archive; the budget is none.
        IncompleteError: some shards could not be written; what is done is kept.
    """
    manifest = ManifestReader(url, config.runtime.storage)
    folder = Folder(dest, config.runtime.storage, "materialize")
    plan = asked_for(manifest, config.materialize, config.seed)
    work = Work(plan, manifest, folder, roots or {}, config.runtime.storage)
    _check_apart(folder, work.fetcher().urls)
    begun = _begun(plan, folder)
    lost = _lost_shards(folder) if begun and folder.exists(SUMS_FILE) else None  # None: it was never complete
    if begun and lost == set():
        log.info("%s is complete: nothing to do", folder.public())
        return _result(begun, folder, 0)
    cpus = max(1, int(start_ray(config.runtime).cpus))
    if begun is None:
        begun = _freeze(ray.get(_measure.remote(work)), folder)
    receipts = _write_all(replace(work, plan=begun), cpus, lost)
    if lost is None:
        finish(begun, manifest, folder, receipts)
    else:
        _check_same(folder, receipts)
    return _result(begun, folder, sum(receipt["new"] for receipt in receipts))


def _check_apart(dest: Folder, roots: dict[str, str]) -> None:
    """Refuse to write into the archive: the next run would take it for a part of it."""
    for name, url in roots.items():
        if path_below(dest.url, url) is not None:
            raise RequestError(f"{dest.public()} lies in the archive's root {name!r}: take a folder beside the archive")


def _begun(plan: Plan, dest: Folder) -> Plan | None:
    """The plan that a folder was begun with; ``None``: it is empty.

    Raises:
        RequestError: it holds something else.
    """
    begun = find_plan(dest)
    if begun is None:
        if dest.kind() == "file" or not dest.is_empty():
            raise RequestError(f"{dest.public()} holds something else: take an empty folder, or one that is not there")
        return None
    for name, value in plan.request().items():
        if (there := begun.request()[name]) != value:
            raise RequestError(
                f"{dest.public()} was begun with {name}={there}, not {value}: take another folder, or remove that one"
            )
    return begun


def _freeze(plan: Plan, dest: Folder) -> Plan:
    try:
        return freeze(plan, dest)
    except (OSError, AccessError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"cannot write to {dest.public()}: {why}") from error


# shards


def _write_all(work: Work, cpus: int, only: set[str] | None = None) -> list[dict[str, Any]]:
    """The receipt of every shard (or those named ``only``); a bounded number of tasks under way.

    Raises:
        IncompleteError: some could not be written.
    """
    plan, shared = work.plan, ray.put(work)
    shards = plan.shards if only is None else len(only)
    receipts: list[dict[str, Any]] = []
    failures: list[CurationError] = []
    running: dict[Any, str] = {}

    def settle() -> None:
        done, _ = ray.wait(list(running))
        for task in done:
            name = running.pop(task)
            try:
                receipts.append(ray.get(task))
            except AccessError as error:
                failures.append(getattr(error, "cause", error))
                log.warning("%s: %s", name, failures[-1])
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:  # each was tried again by Ray
                failures.append(IncompleteError(f"{name}: its worker died ({type(error).__name__})"))
                log.warning("%s", failures[-1])
            if len(receipts) % max(1, shards // 20) == 0:
                log.info("materialize: %d of %d shards", len(receipts), shards)

    log.info("materialize: %d samples as %d shards to %s", plan.samples, plan.shards, work.dest.public())
    for piece in pieces(plan, work.manifest.shards(plan.budget)):
        if only is not None and plan.shard(piece.number) not in only:
            continue
        if len(running) >= AHEAD * cpus:
            settle()
        if len(failures) >= FAILURES:
            break
        running[_write.remote(shared, piece)] = plan.shard(piece.number)
    while running:
        settle()
    if failures:
        told = f"{len(failures)} of {shards} shards could not be written, {len(receipts)} are"
        raise IncompleteError(f"{told}; the first: {failures[0]}")
    return sorted(receipts, key=lambda receipt: str(receipt["shard"]))


@ray.remote(num_cpus=1)
def _measure(work: Work) -> Plan:
    return measure(work.plan, work.fetcher())


@ray.remote(num_cpus=1)
def _write(work: Work, piece: Piece) -> dict[str, Any]:
    return write_shard(work, piece)


def write_shard(work: Work, piece: Piece) -> dict[str, Any]:
    """Publish a shard and its receipt, unless they are there; memory holds what waits in the mixing, and some ranges.

    Returns:
        The receipt: ``shard``, ``samples``, ``bytes``, ``md5``, ``sha256``, ``licences`` and ``unlicensed`` (samples
        of which none is stated); and whether it is ``new``.

    Raises:
        AccessError: a sample has gone, changed, or no longer decodes.
        IncompleteError: the destination takes no more.
    """
    plan, dest = work.plan, work.dest
    name = plan.shard(piece.number)
    if (receipt := _receipt(dest, name)) is not None:
        return {**receipt, "new": False}
    fetcher = work.fetcher()
    for source in piece.sources:
        check_source(fetcher, source, moved=bool(work.roots))
    samples = _Samples(work, fetcher, piece.runs)
    try:
        with dest.writer(name) as target:
            sink = Sink(target)
            if plan.format == "webdataset":
                count = write_tar(sink, samples.read())
            else:
                count = write_parquet(sink, samples.read(), parquet_schema(plan.suffixes))
        receipt = {
            "shard": name,
            "samples": count,
            "bytes": sink.size,
            "md5": sink.md5.hexdigest(),
            "sha256": sink.sha256.hexdigest(),
            "licences": sorted(samples.licences)[:LICENCES],
            "unlicensed": samples.unlicensed,
        }
        dest.publish(f"{RECEIPTS}/{name}.json", json_bytes(receipt))
    except OSError as error:
        raise IncompleteError(f"{dest.public(name)}: {error.strerror or error}; what is done is kept") from error
    return {**receipt, "new": True}


class _Samples:
    """The samples of a shard in its order, as they are written; notes their licences."""

    def __init__(self, work: Work, fetcher: Fetcher, runs: Sequence[Run]) -> None:
        self.work, self.fetcher, self.runs = work, fetcher, runs
        self.files = Files(work.manifest.archive)
        self.licences: set[str] = set()
        self.unlicensed = 0

    def read(self) -> Any:
        plan, first = self.work.plan, self.runs[0].position
        order = plan.order.shuffled(first, self.runs[-1].position + self.runs[-1].count)
        return in_order(self.fetcher, self.runs, order, plan.budget, self._arrive)

    def _arrive(self, kept: Kept) -> Kept:
        with changed(kept):
            written = self.files.of(kept)
        licence = self.files.licence(written.raw.said)
        if licence is None:
            self.unlicensed += 1
        else:
            self.licences.add(licence)
        return written


def check_source(fetcher: Fetcher, name: str, moved: bool) -> None:
    """Refuse a shard that is not the one that the catalog was made from, where that is one file (or one a modality).

    Of folders, scenes and Zarr stores each file that is read is held against its size. Without a catalog nothing is
    known of the shard; each sample is held against its own header all the same.

    Args:
        fetcher: whose.
        name: the shard's.
        moved: it lies elsewhere than it did, so that only its size can tell.

    Raises:
        AccessError: it has gone or changed.
    """
    root, _, path = name.partition("/")
    footer = fetcher.catalog and fetcher.catalog.footer(name)
    if not footer or extension(path) not in ("tar", "parquet", "zip"):
        return
    folder, told = fetcher.root(root), footer["fingerprint"]
    advice = "archive.url=URL says where the archive is now; if it was changed, run curate prune again"
    try:
        shard = find_shard(folder, name, fetcher.settings)
    except FileNotFoundError:
        shard = None
    if shard is None:
        raise AccessError(f"{folder.public(path)} is not there: {advice}")
    if shard.fingerprint["size"] != told["size"]:
        raise AccessError(f"{folder.public(path)} is of another size than when it was read for the manifest: {advice}")
    if not moved and shard.fingerprint["version"] != told["version"]:
        raise AccessError(f"{folder.public(path)} was written anew since it was read for the manifest: {advice}")


def _receipt(dest: Folder, name: str) -> dict[str, Any] | None:
    """What is known of a shard that is there."""
    try:
        receipt = dict(json.loads(dest.read(f"{RECEIPTS}/{name}.json")))
        return receipt if dest.info(name).size == receipt["bytes"] else None
    except FileNotFoundError:
        return None


# the end


def _lost_shards(dest: Folder) -> set[str]:
    """Shards of a complete folder that are no longer there, of another size, or that a run was writing again.

    Raises:
        RequestError: what describes them is not there.
    """
    there = {file.path: file.size for file in dest.list(recursive=False)}
    for name in (INDEX_FILE, CROISSANT_FILE):
        if name not in there:
            raise RequestError(f"{dest.public(name)} is gone: remove {SUMS_FILE} too, and all is written anew")
    shards = json.loads(dest.read(INDEX_FILE))["shardlist"]
    begun = {file.path.rpartition("/")[2].removesuffix(".json") for file in dest.list(RECEIPTS)}
    return begun | {shard["url"] for shard in shards if there.get(shard["url"]) != shard["filesize"]}


def _check_same(dest: Folder, receipts: list[dict[str, Any]]) -> None:
    """Shards that were lost and are written again have the bytes that they had.

    Raises:
        IncompleteError: one has not, as libraries of other versions may encode otherwise.
    """
    dest.discard(RECEIPTS)
    sums = dest.read(SUMS_FILE).decode().splitlines()
    other = [receipt["shard"] for receipt in receipts if f"{receipt['sha256']}  {receipt['shard']}" not in sums]
    for name in other:
        dest.remove(name)
    if other:
        raise IncompleteError(
            f"{dest.public(other[0])} would have other bytes than it had (are libraries of another version?): remove "
            "the folder, and all is written anew"
        )


def finish(plan: Plan, manifest: ManifestReader, dest: Folder, receipts: list[dict[str, Any]]) -> None:
    """Index, description, sums; then nothing is left of what only a run under way needs.

    Raises:
        IncompleteError: a shard is not where it was written to.
    """
    there = {file.path: file.size for file in dest.list(recursive=False)}
    lost = [receipt["shard"] for receipt in receipts if there.get(receipt["shard"]) != receipt["bytes"]]
    if lost:
        where = "every node must see the same folder there" if dest.local else "run the same command again"
        raise IncompleteError(f"{len(lost)} shards are not in {dest.public()}, {lost[0]} for one: {where}")
    index = {
        "__kind__": "wids-shard-index-v1" if plan.format == "webdataset" else "curation-shard-index-v1",
        "wids_version": 1,
        "name": dest.base.rpartition("/")[2],
        "manifest": plan.manifest,
        "nsamples": sum(receipt["samples"] for receipt in receipts),
        "filesize": sum(receipt["bytes"] for receipt in receipts),
        "shardlist": [
            {"url": r["shard"], "nsamples": r["samples"], "filesize": r["bytes"], "md5sum": r["md5"]} for r in receipts
        ],
    }
    texts = {
        PLAN_FILE: dest.read(PLAN_FILE),
        INDEX_FILE: json_bytes(index),
        CROISSANT_FILE: json_bytes(describe(dest.base.rpartition("/")[2], plan, manifest, receipts)),
    }
    sums = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    sums |= {receipt["shard"]: receipt["sha256"] for receipt in receipts}
    for name in (INDEX_FILE, CROISSANT_FILE):
        dest.publish(name, texts[name])
    dest.publish(SUMS_FILE, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode())
    dest.discard(RECEIPTS)
    if dest.local:
        _sweep(dest)


def _sweep(dest: Folder) -> None:
    """Remove what killed runs were writing."""
    for entry in os.scandir(dest.base):
        if _temporary(entry.name) and time.time() - entry.stat().st_mtime > STALE:
            os.unlink(entry.path)


def _temporary(name: str) -> bool:
    """Whether a file is one that was being written."""
    return name.startswith(".") and name.endswith(".tmp")


def _result(plan: Plan, dest: Folder, written: int) -> dict[str, Any]:
    index = json.loads(dest.read(INDEX_FILE))
    return {
        "destination": dest.public(),
        "manifest": plan.manifest,
        "format": plan.format,
        "shards": plan.shards,
        "samples": index["nsamples"],
        "bytes": index["filesize"],
        "written": written,
        "index": dest.public(INDEX_FILE),
        "croissant": dest.public(CROISSANT_FILE),
        "sums": dest.public(SUMS_FILE),
    }
