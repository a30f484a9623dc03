"""What a run will take before it is paid for: shards, bytes, requests, hours, cost; and what reading will cost.

A probe in this process decodes and encodes the first samples of one shard. A
pilot brings whole shards into the catalog on Ray, where they count already.
"""

import hashlib
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curation.archive.audit import audit
from curation.archive.clouds import classes
from curation.archive.decode import conform, decode
from curation.archive.listing import Root
from curation.archive.radiometry import evidence
from curation.archive.reader import read_shard
from curation.archive.sample import Effort, RawSample, Sample
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.survey import survey
from curation.archive.tables import Sieve, TableFilter
from curation.archive.tiling import tiles
from curation.catalog.artefact import Artefact, catalog_id, encoder_config, needs_pixels, settled
from curation.catalog.build import build_catalog
from curation.catalog.encode import row_maker
from curation.catalog.fit import fixed_ranges, load_or_fit
from curation.catalog.rows import Row
from curation.config import Config
from curation.encoders.base import build_encoder, fit_artefact
from curation.errors import BadSample, RequestError
from curation.manifests.access import HEADER, LOCAL, OBJECT_STORE, plan_reads
from curation.runs import record_in
from curation.runtime import limit_threads, ray_for_a_job, start_ray
from curation.storage import Folder

PROBE = 128  # samples
SURVEYED = 32  # shards of a format whose headers are read
ROW_BYTES = 1500  # of a catalog row besides its embedding: measured on 64 px tiles with a tenth of thumbnails


@dataclass(frozen=True)
class Probe:
    """What one sample takes."""

    bytes_per_sample: float  # of a tile its share of its image
    seconds_per_sample: float | None  # on one core; None: nothing to encode
    dim: int
    measured: str
    tiles: float = 1.0  # of an image
    passed: float = 1.0  # share of the samples that a filter lets pass; bytes are those of all


def plan(config: Config, roots: Sequence[Root], pilot: int, filter: TableFilter | None = None) -> dict[str, Any]:
    """The plan as one JSON object.

    Args:
        config: of the run that is planned.
        roots: the listing.
        pilot: shards to encode first, on Ray; 0: a probe in this process.
        filter: which samples the run would read. What it spares of the bytes is not counted.

    Raises:
        RequestError: nothing in the archive can be read.
    """
    listed = [(root, shard) for root in roots for shard in root.shards]
    total = sum(shard.size for _, shard in listed)
    cores = config.runtime.num_cpus or len(os.sched_getaffinity(0))
    probe, gpus = _probe(config, roots, filter), 0.0
    if pilot:
        probe, cores, gpus = _pilot(config, roots, pilot, probe, filter)
    done = _done(config)
    todo = [(root, shard) for root, shard in listed if shard.name not in done]
    samples, _, _ = _expected(config, listed, probe)
    todo_samples, todo_bytes, requests = _expected(config, todo, probe)
    hours = None if probe.seconds_per_sample is None else todo_samples * probe.seconds_per_sample / cores / 3600
    written = int(todo_samples * (2 * probe.dim + ROW_BYTES))
    prices = config.plan
    cost = {
        "compute": (hours or 0) * (cores * prices.cpu_hour + gpus * prices.gpu_hour),
        "traffic": (todo_bytes + written) / 1e9 * prices.gigabyte,
        "requests": requests / 1e6 * prices.million_requests,
    }
    return {
        "shards": len(listed),
        "shards_to_encode": len(todo),
        "bytes": total,
        "bytes_to_read": round(todo_bytes),
        "bytes_to_write": written,
        "requests": round(requests),
        "samples_expected": round(samples),
        "hours": hours,
        "cores": cores,
        "gpus": gpus,
        "measured_on": probe.measured,
        "cost": {**cost, "total": sum(cost.values())},
        "reading_an_epoch": _reading(config, listed, probe),
    }


def _probe(config: Config, roots: Sequence[Root], filter: TableFilter | None) -> Probe:
    """Encode the first samples of one shard in this process, on one thread, whether a filter lets them pass or not."""
    root = roots[0]
    shard = min(root.shards, key=lambda item: _hash(item.name))
    head = list(itertools.islice(read_shard(root.folder, shard, config.archive), PROBE + 1))
    raws = [raw for raw in head[:PROBE] if isinstance(raw, RawSample)]
    if not raws:
        raise RequestError(f"no readable sample at the start of {shard.name}")
    size = (shard.size if len(head) <= PROBE else sum(map(_bytes, raws))) / len(raws)
    passed = sum(1 for _ in Sieve(filter, config.archive).sift(raws)) / len(raws) if filter else 1.0
    if not needs_pixels(config):
        artefact = fit_artefact(encoder_config(config), [], (), np.zeros((0, 2), np.float32), 0)
        encoder = build_encoder(encoder_config(config), artefact, (), "", "cpu", 1)
        return Probe(size, None, encoder.dim, "no pixels are read", passed=passed)
    limit_threads(1)
    samples, _ = _decoded(raws, shard.name, config.archive)
    config = replace(config, archive=_settled(samples, shard.name, config.archive))
    samples, each = _decoded(raws, shard.name, config.archive)
    bands, dtype = tuple(config.archive.bands or samples[0].bands), str(samples[0].pixels.dtype)
    alike = [sample for sample in samples if (sample.bands, str(sample.pixels.dtype)) == (samples[0].bands, dtype)]
    try:
        samples = [conform(sample, bands, dtype) for sample in alike]
    except BadSample as error:
        raise RequestError(f"archive.bands: {error.message}") from error
    ranges = fixed_ranges(samples, config.archive, dtype)
    artefact = fit_artefact(encoder_config(config), samples, bands, ranges, int(config.encoder.get("seed", 0)))
    found = {"radiometry": config.archive.radiometry.found or {}, "clouds": config.archive.clouds.found}
    fitted = Artefact({**artefact, "range": ranges}, bands, dtype, samples[0].radiometry, found)
    encoder = build_encoder(encoder_config(config), artefact, bands, dtype, "cpu", 1)
    maker = row_maker(config, fitted, encoder)
    start = time.perf_counter()
    rows = [row for results in maker.rows(shard.name, raws) for row in results if isinstance(row, Row)]
    for first in range(0, len(rows), encoder.batch):
        encoder.encode(np.stack([row.tile for row in rows[first : first + encoder.batch]]))
    seconds = (time.perf_counter() - start) / len(rows)
    measured = f"{len(rows)} samples of {shard.name} on one core of this machine, no GPU"
    return Probe(size / each, seconds, encoder.dim, measured, each, passed)


def _expected(config: Config, listed: Sequence[tuple[Root, Shard]], probe: Probe) -> tuple[float, float, float]:
    """Samples, bytes to read and requests, by the headers of some shards of each format."""
    kinds: dict[str, list[tuple[Root, Shard]]] = {}
    for root, shard in listed:
        kinds.setdefault(shard.format, []).append((root, shard))
    total = np.zeros(3)
    for kind, shards in kinds.items():
        some = sorted(shards, key=lambda item: _hash(item[1].name))[:SURVEYED]
        found = np.sum(
            [_taken(survey(root.folder, shard, config.archive), shard, probe) for root, shard in some], axis=0
        )
        if kind == "scene":  # of like size on the ground, however well they compress
            scale = len(shards) / len(some)
        else:
            scale = sum(shard.size for _, shard in shards) / max(1, sum(shard.size for _, shard in some))
        total += scale * found
    samples, size, requests = total.tolist()
    return samples, size, requests


def _taken(effort: Effort, shard: Shard, probe: Probe) -> tuple[float, float, float]:
    samples = shard.size / probe.bytes_per_sample
    if effort.samples is not None:
        samples = effort.samples * (1 if effort.cut else probe.tiles)
    return samples * probe.passed, effort.bytes, effort.requests


def _bytes(raw: RawSample) -> int:
    """What there is to read of a sample; of an array or a tile of a scene, as if it were not compressed."""
    if raw.images:
        return sum(image.pixels.nbytes for image in raw.images.values())
    return sum(member.size + HEADER for member in raw.members)


def _decoded(raws: Sequence[RawSample], shard: str, archive: ArchiveConfig) -> tuple[list[Sample], float]:
    """Tiles, and how many of them there are an image."""
    samples: list[Sample] = []
    decoded, reason = 0, ""
    for raw in raws:
        try:
            samples += tiles(decode(raw, archive), archive.tile.size, archive.tile.stride)
            decoded += 1
        except BadSample as error:
            reason = str(error)
    if not samples:
        raise RequestError(f"no sample at the start of {shard} can be decoded: {reason}")
    return samples, len(samples) / decoded


def _settled(samples: Sequence[Sample], shard: str, archive: ArchiveConfig) -> ArchiveConfig:
    """What the numbers mean, as far as some samples tell; what they do not is guessed, as only the time counts."""
    told = audit([one for sample in samples for one in evidence(shard, sample, archive.radiometry)], archive.radiometry)
    found = {prefix: {**said, "offset": said.get("offset") or 0} for prefix, said in told.found.items()}
    return settled(archive, found, classes([v for sample in samples for v in sample.hints.get("cloud_values", ())]))


def _pilot(
    config: Config, roots: Sequence[Root], count: int, probe: Probe, filter: TableFilter | None
) -> tuple[Probe, int, float]:
    """Bring ``count`` shards into the catalog and measure it; they need not be encoded again."""
    config.require("workspace")
    chosen = sorted((shard for root in roots for shard in root.shards), key=lambda item: _hash(item.name))[:count]
    names = {shard.name for shard in chosen}
    part = [
        replace(root, shards=tuple(shard for shard in root.shards if shard.name in names))
        for root in roots
        if any(shard.name in names for shard in root.shards)
    ]
    assert config.workspace
    shared = Folder(config.catalog.url, config.runtime.storage, "catalog") if config.catalog.url else None
    workspace = Folder(config.workspace, config.runtime.storage, "workspace")
    record_in(workspace, config.runtime.log_json)
    with ray_for_a_job():
        resources = start_ray(config.runtime)
        load_or_fit(config, roots, workspace, shared, filter)  # on all shards, as a run does
        start = time.perf_counter()
        catalog = build_catalog(config, part, None, resources, filter=filter)
        seconds = time.perf_counter() - start
    samples = max(1, catalog.counts["read"])
    every = samples + catalog.counts["filtered"] * probe.tiles
    cores = max(1, int(resources.cpus))
    gpus = resources.gpus if resources.device == "cuda" else 0
    measured = f"{len(chosen)} whole shards, {samples} samples, on {cores} cores and {gpus:g} GPUs"
    probe = replace(
        probe,
        bytes_per_sample=sum(shard.size for shard in chosen) / every,
        seconds_per_sample=seconds * cores / samples,
        measured=measured,
        passed=samples / every,
    )
    return probe, cores, gpus


def _done(config: Config) -> set[str]:
    """Names of the shards that have a catalog file already (whether it is current, only the run checks)."""
    storage, id = config.runtime.storage, catalog_id(config)
    folders = [Folder(config.catalog.url, storage, "catalog").child(id)] if config.catalog.url else []
    folders += [Folder(config.workspace, storage, "workspace").child(f"catalog/{id}")] if config.workspace else []
    files = [file for folder in folders if folder.exists() for file in folder.list()]
    return {file.path.removesuffix(".parquet") for file in files}


def _reading(config: Config, listed: Sequence[tuple[Root, Shard]], probe: Probe) -> dict[str, Any]:
    """What an epoch over the kept samples will cost, on one shard of mean size with samples kept by hash."""
    tars = [(root, shard) for root, shard in listed if shard.format == "tar"]
    if not tars:
        return {}
    mean = int(sum(shard.size for _, shard in tars) / len(tars))
    count = max(1, int(mean / probe.bytes_per_sample))
    budget = config.select.budget
    share = budget * probe.passed if budget < 1 else min(1.0, budget / max(1, count * len(tars)))
    kept = np.flatnonzero(np.random.default_rng(0).random(count) < share)
    image_bytes = probe.bytes_per_sample * probe.tiles
    image = (kept / probe.tiles).astype(np.int64)
    reads = plan_reads(
        pa.array(["shard"] * len(kept)),
        pa.array((image * image_bytes).astype(np.int64) + HEADER),
        pa.array(np.full(len(kept), max(1, int(image_bytes) - HEADER))),
        pa.array(np.full(len(kept), mean)),
        LOCAL if tars[0][0].folder.local else OBJECT_STORE,
        pa.array(image).cast(pa.string()),
    )
    scale = len(tars)
    each = ("ranged", "sequential", "chosen", "materialised")
    result = {name: {k: reads[name][k] * scale for k in ("bytes", "requests", "seconds")} for name in each}
    return {**result, "materialising_pays_after_epochs": reads["pays_after_epochs"]}


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
