"""Fits the artefact: samples shards and tiles by hash, tells what their numbers mean, fits ranges and encoder.

The driver sees what the sampled tiles are, not their pixels. A reference bank
is held against what was fitted.
"""

import hashlib
import heapq
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import WorkerCrashedError

from curation.archive.audit import audit, contradiction
from curation.archive.clouds import MEANING, classes
from curation.archive.decode import conform, decode
from curation.archive.listing import Root
from curation.archive.radiometry import Evidence, evidence, fixed_range, in_decibels, in_units, state
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection, Sample
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.tables import Sieve, TableFilter
from curation.archive.tiling import tiles
from curation.catalog.artefact import (
    ARTEFACT,
    AUDIT,
    Artefact,
    artefact_path,
    catalog_id,
    encoder_config,
    load_artefact,
    needs_pixels,
    settled,
)
from curation.catalog.calibration import CALIBRATION, calibrate
from curation.catalog.careful import Subprocess
from curation.catalog.store import chunks
from curation.config import Config
from curation.encoders.base import fit_artefact
from curation.errors import AccessError, BadSample, RequestError
from curation.runtime import limit_threads
from curation.scoring.speckle import equivalent_looks, multilook, speckle_entropy
from curation.storage import Folder

log = logging.getLogger("curation")

FIT_SHARDS = 32  # shards sampled at once; more rounds follow while samples are wanting
FIT_ROUNDS = 8
BANK_TILES = 64  # of the reference bank, looked at before it is used
OTHER_GSD = 1.5  # times the ground sampling distance, from which on a bank's is warned of
FIT_BYTES = 512 << 20  # decoded pixels the fit may hold


def load_or_fit(
    config: Config,
    roots: Sequence[Root],
    workspace: Folder,
    shared: Folder | None,
    filter: TableFilter | None = None,
    fit: bool = True,
) -> Artefact:
    """The artefact of this catalog-id: from the workspace, from beside a shared catalog, or fitted now, if it may be.

    Raises:
        RequestError: there is none, no sample could be read, or the bands asked for are not there.
    """
    for folder in [workspace] + ([shared.parent] if shared else []):
        files = _read_fitted(config, folder)
        if ARTEFACT in files:
            _publish(config, workspace, files)
            return Artefact.from_bytes(files[ARTEFACT])
    if shared:
        raise RequestError(
            f"catalog.url={shared.public()} has no encoder artefact beside it ({artefact_path(config)}): "
            "its rows were made with another encoder config, or the folder was moved alone"
        )
    if not fit:
        raise RequestError(
            f"{workspace.public()} has no catalog of this encoder and archive.* config: give those that it was made "
            "with, or run curate catalog first"
        )
    _publish(config, workspace, _fit(config, roots, filter))
    return load_artefact(config, workspace)  # another run may have been first


def _read_fitted(config: Config, folder: Folder) -> dict[str, bytes]:
    """What a workspace has of the files that a fit makes."""
    found, where = {}, f"encoders/{catalog_id(config)}"
    for name in (ARTEFACT, AUDIT, CALIBRATION):
        with suppress(FileNotFoundError):
            found[name] = folder.read(f"{where}/{name}")
    return found


def _publish(config: Config, workspace: Folder, files: dict[str, bytes]) -> None:
    """The artefact last: where it is, nothing is measured again."""
    where = f"encoders/{catalog_id(config)}"
    for name in sorted(files, key=lambda name: name == ARTEFACT):
        workspace.create(f"{where}/{name}", files[name])


# the fit


@dataclass(frozen=True)
class Seen:
    """What a fitted tile is, without its pixels: bands, dtype and state as they will be, and what tells of these."""

    bands: tuple[str, ...]
    dtype: str
    radiometry: str
    evidence: tuple[Evidence, ...]
    cloud_values: tuple[int, ...]
    masked: bool  # a mask tells of clouds
    cloudless: bool  # nothing does
    gsd: float | None  # ground sampling distance, metres

    @property
    def kind(self) -> tuple[tuple[str, ...], str, str]:
        """What must be the same for a whole archive."""
        return self.bands, self.dtype, self.radiometry


def _look_at(shard: str, sample: Sample, archive: ArchiveConfig) -> Seen:
    dtype = str(sample.pixels.dtype)
    becomes = state(sample.bands, dtype, archive.radiometry)
    values = sample.hints.get("cloud_values", ())
    return Seen(
        bands=sample.bands,
        dtype=dtype if becomes is None else "float32",
        radiometry=becomes or sample.radiometry,
        evidence=tuple(evidence(shard, sample, archive.radiometry)),
        cloud_values=values,
        masked=sample.clouds is not None,
        cloudless=sample.clouds is None and sample.cloud_fraction is None and not values,
        gsd=None if sample.place is None else sample.place.gsd(*sample.pixels.shape[1:]),
    )


def _fit(config: Config, roots: Sequence[Root], filter: TableFilter | None) -> dict[str, bytes]:
    """Sample shards and tiles by hash, then fit in one task, so that the driver holds neither.

    Returns:
        The artefact's file and those beside it, by name.
    """
    if not needs_pixels(config):
        return {ARTEFACT: ray.get(_fit_vectors.remote(config))}
    archive = _without_detector(config.archive)
    found, everything = _sample(archive, roots, config.catalog.fit_samples, filter)
    # the commonest kind is the archive's; of two equally common the first by name
    kinds = Counter(seen.kind for seen in everything)
    (bands, dtype, radiometry), _ = min(kinds.items(), key=lambda item: (-item[1], item[0]))
    alike = [seen for seen in everything if seen.kind == (bands, dtype, radiometry)]
    archive, table = _settle(archive, alike)
    radiometry = state(bands, dtype, archive.radiometry) or radiometry
    if archive.bands:
        missing = [name for name in archive.bands if name not in bands]
        if missing:
            raise RequestError(f"archive.bands: no band {missing[0]!r}; the archive has {', '.join(bands)}")
        bands = tuple(archive.bands)
    if archive.range and isinstance(archive.range[0], list) and len(archive.range) != len(bands):
        raise RequestError(f"archive.range has {len(archive.range)} pairs for {len(bands)} bands")
    known = [seen.gsd for seen in alike if seen.gsd is not None]
    gsd = float(f"{np.median(known):.4g}") if known else None
    fitted: Any = _fit_samples.remote(replace(config, archive=archive), bands, dtype, radiometry, gsd, *found)
    return {AUDIT: json.dumps(table, indent=1).encode(), **ray.get(fitted)} if table else ray.get(fitted)


def _sample(
    archive: ArchiveConfig, roots: Sequence[Root], number: int, filter: TableFilter | None
) -> tuple[list[Any], list[Seen]]:
    """References to the tiles of some shards, about so many in all, and what each tile is.

    Raises:
        RequestError: none can be read.
    """
    shards = [(root.folder, shard) for root in roots for shard in root.shards]
    shards.sort(key=lambda item: _hash(item[1].name))
    found: list[Any] = []
    reasons: list[str] = []
    everything: list[Seen] = []
    for chunk in itertools.islice(chunks(shards, FIT_SHARDS), FIT_ROUNDS):
        want = -(-number // len(chunk))
        drawn = [(folder, shard, archive, want, FIT_BYTES // len(chunk), filter) for folder, shard in chunk]
        tasks: list[Any] = [_sample_shard.remote(*draw) for draw in drawn]  # type: ignore[call-arg]
        for draw, task in zip(drawn, tasks, strict=True):
            samples, why, seen = _survived(draw, task)
            found.append(samples)
            reasons += why
            everything += seen
        if len(everything) >= number:
            break
    if not everything:
        raise RequestError(f"no readable sample in {roots[0].folder.public()}: {_first(reasons)}")
    return found, everything


def _settle(archive: ArchiveConfig, seen: Sequence[Seen]) -> tuple[ArchiveConfig, list[dict[str, Any]]]:
    """What the numbers and mask bands of an archive mean, by what was seen of it, and the audit's table.

    Raises:
        RequestError: its states are mixed or contradict its metadata, or cannot be told.
    """
    kind = archive.radiometry.kind
    for prefix in kind if isinstance(kind, dict) else ():
        if not any(band.startswith(f"{prefix}.") for band in seen[0].bands):
            have = ", ".join(seen[0].bands)
            raise RequestError(f"archive.radiometry.kind: no band is called {prefix}.…; the archive has {have}")
    told = audit([one for tile in seen for one in tile.evidence], archive.radiometry)
    if told.problem:
        raise RequestError(f"archive.radiometry: {told.problem}")
    for note in told.notes:
        log.warning("archive.radiometry: %s", note)
    clouds = classes([value for tile in seen for value in tile.cloud_values])
    if archive.clouds.band is not None and not any(tile.masked for tile in seen):
        raise RequestError(f"archive.clouds.band={archive.clouds.band}: no tile has a band of that name")
    if clouds is not None and archive.clouds.band is None:
        log.info(
            "archive.clouds: cloud_mask is read as %s; if it is not: archive.clouds.band=cloud_mask "
            "archive.clouds.values=[…]",
            MEANING[clouds],
        )
    optical = "reflectance" in seen[0].radiometry
    if optical and archive.clouds.detector is None and all(tile.cloudless for tile in seen):
        log.warning("archive.clouds: nothing tells of clouds: name a mask in archive.clouds.band, or take a detector")
    return settled(archive, told.found, clouds), told.table


def _without_detector(archive: ArchiveConfig) -> ArchiveConfig:
    """The fit looks at no clouds that a model would have to find."""
    return replace(archive, clouds=replace(archive.clouds, detector=None))


def _survived(draw: tuple[Any, ...], task: list[Any]) -> tuple[Any, list[str], list[Seen]]:
    """What a task drew; again, sample by sample in a subprocess, where a sample killed it every time."""
    try:
        return task[0], *ray.get(task[1:])
    except WorkerCrashedError:
        again: Any = _sample_shard.remote(*draw, True)  # type: ignore[call-arg]  # Ray's types know no defaults
        return again[0], *ray.get(again[1:])


@ray.remote(num_cpus=1, num_returns=3)
def _sample_shard(
    folder: Folder,
    shard: Shard,
    archive: ArchiveConfig,
    want: int,
    max_bytes: int,
    filter: TableFilter | None = None,
    careful: bool = False,
) -> tuple[list[Sample], list[str], list[Seen]]:
    """Up to ``want`` decoded samples of a shard, those of smallest hash among its first ``4 * want``.

    Fewer where they come to more than ``max_bytes``, as stored or decoded.

    Returns:
        The samples; why one could not be decoded; what each is.
    """
    kept: list[tuple[int, int, RawSample]] = []  # a heap: the largest hash on top
    reasons: list[str] = []
    size = 0
    for raw in itertools.islice(_raw_samples(folder, shard, archive, filter, reasons), 4 * want):
        for image in raw.images.values():
            image.pixels = image.pixels.copy()  # else all of the chunk that it was read with stays
        heapq.heappush(kept, (-_hash(f"{shard.name}\0{raw.key}{raw.window}"), raw.index, raw))
        size += raw.nbytes
        while len(kept) > want or (size > max_bytes and len(kept) > 1):
            size -= heapq.heappop(kept)[2].nbytes
    samples: list[Sample] = []
    size, subprocess = 0, Subprocess()
    for _, _, raw in sorted(kept, key=lambda item: (-item[0], item[1])):
        try:
            sample = subprocess.call(decode, raw, archive) if careful else decode(raw, archive)
        except BadSample as error:
            reasons.append(str(error))
            continue
        for tile in _some_tiles(shard.name, sample, archive, -(-want // len(kept))):
            samples.append(tile)
            size += tile.pixels.nbytes
        if size > max_bytes:
            break
    subprocess.close()
    return samples, reasons[:1], [_look_at(shard.name, sample, archive) for sample in samples]


def _some_tiles(shard: str, sample: Sample, archive: ArchiveConfig, want: int) -> list[Sample]:
    """A sample, or the ``want`` tiles of smallest hash that it is cut into."""
    found = [tile for tile in tiles(sample, archive.tile.size, archive.tile.stride) if tile.mask.any()]
    return sorted(found, key=lambda tile: _hash(f"{shard}\0{tile.key}"))[:want]


def _raw_samples(
    folder: Folder, shard: Shard, archive: ArchiveConfig, filter: TableFilter | None, reasons: list[str]
) -> Iterator[RawSample]:
    sieve = Sieve(filter, archive) if filter else None
    try:
        for raw in read_shard(folder, shard, archive, sieve=sieve):
            if isinstance(raw, Rejection):
                reasons.append(f"{raw.kind}: {raw.message}")
            else:
                yield raw
    except AccessError as error:
        raise AccessError(f"{error} (while sampling the archive for the encoder's fit)") from error
    if sieve and sieve.refused:
        what = f"archive.filter allows none of the {sieve.refused} samples of {shard.name}, such as {sieve.first!r}"
        reasons.append(f"{what}; does archive.tables' key name samples so?")


@ray.remote(num_cpus=1)
def _fit_samples(
    config: Config, bands: tuple[str, ...], dtype: str, radiometry: str, gsd: float | None, *found: list[Sample]
) -> dict[str, bytes]:
    """Fit ranges and encoder on the sampled tiles, in the order of their ids, and measure how copies are told."""
    limit_threads(1)
    settings = config.archive.radiometry
    samples: list[Sample] = []
    for sample in itertools.chain.from_iterable(found):
        try:
            samples.append(conform(in_units(sample, settings), bands, dtype, radiometry))
        except BadSample:
            continue
    ranges = fixed_ranges(samples, config.archive, dtype)
    arrays = fit_artefact(encoder_config(config), samples, bands, ranges, int(config.encoder.get("seed", 0)))
    what = {"radiometry": settings.found, "clouds": config.archive.clouds.found}
    speckle = _speckle(samples, ranges, config.archive)
    artefact = Artefact({**arrays, "range": ranges}, bands, dtype, radiometry, what, speckle, gsd)
    measured = json.dumps(calibrate(samples, ranges), indent=1).encode()
    return {CALIBRATION: measured, ARTEFACT: artefact.to_bytes()}


def _speckle(
    samples: Sequence[Sample], ranges: NDArray[np.float32], archive: ArchiveConfig
) -> tuple[float | None, ...]:
    """The entropy that speckle alone would have in each of radar's bands, by the looks found in the fitted tiles."""
    radar = in_decibels(samples[0].bands, str(samples[0].pixels.dtype), samples[0].radiometry)
    if not radar.any():
        return ()
    tiles = [
        multilook(sample.pixels[radar].astype(np.float32), sample.mask, archive.radiometry.looks) for sample in samples
    ]
    pixels = max(1, int(np.median([mask.sum() for _, mask in tiles])))
    found: list[float | None] = [None] * len(radar)
    for band, looks in zip(np.flatnonzero(radar), equivalent_looks(tiles), strict=True):
        if np.isfinite(looks):
            low, high = ranges[band].tolist()
            found[band] = round(speckle_entropy(float(looks), low, high, pixels), 3)
    return tuple(found)


@ray.remote(num_cpus=1)
def _fit_vectors(config: Config) -> bytes:
    """The artefact of an encoder that reads no pixels."""
    arrays = fit_artefact(encoder_config(config), [], (), np.zeros((0, 2), np.float32), 0)
    return Artefact(arrays, (), "").to_bytes()


def fixed_ranges(samples: Sequence[Sample], archive: ArchiveConfig, dtype: str) -> NDArray[np.float32]:
    """The fixed radiometric range a band, float32 (bands, 2).

    As declared; 0 to 255 for uint8; that of its state (reflectance, dB) where that
    is known; else the 0.5th and 99.5th percentile of the fitted tiles' valid
    pixels, widened where a band is constant.
    """
    bands = samples[0].bands
    if archive.range is not None:
        return np.broadcast_to(np.asarray(archive.range, np.float32).reshape(-1, 2), (len(bands), 2)).copy()
    if dtype == "uint8":
        return np.tile(np.array([0, 255], np.float32), (len(bands), 1))
    known = fixed_range(bands, dtype, samples[0].radiometry)
    if None not in known:
        return np.array(known, np.float32)
    pixels = [sample.pixels[:, sample.mask] for sample in samples]
    thinned = [values[:, :: max(1, values.shape[1] // 1024)] for values in pixels]
    low, high = np.percentile(np.concatenate(thinned, axis=1).astype(np.float64), [0.5, 99.5], axis=1)
    found = np.stack([low, np.maximum(high, low + 1e-6 * np.maximum(1, abs(low)))], axis=1)
    for band, limits in enumerate(known):
        if limits is not None:
            found[band] = limits
    return found.astype(np.float32)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _first(reasons: Sequence[str]) -> str:
    return reasons[0] if reasons else "it is empty"


# the reference bank


def check_bank(config: Config, bank: Root, artefact: Artefact, name: str = "the reference bank") -> None:
    """See that the bank's tiles have the archive's bands, dtype and radiometry; warn of another ground resolution.

    Args:
        config: of the run.
        bank: its root, or that of a test set.
        artefact: of the archive.
        name: what it is called in messages.

    Raises:
        RequestError: they do not, or none could be read.
    """
    if not needs_pixels(config):
        return
    archive = artefact.settled(_without_detector(config.archive))
    undecided = replace(archive, radiometry=replace(archive.radiometry, found=None))
    advice = "use one of the same bands, dtype and radiometry, or ask for the shared bands with archive.bands=[…]"
    for settings in (undecided, archive):  # what its numbers say, then what becomes of them
        draw = (bank.folder, bank.shards[0], settings, BANK_TILES, FIT_BYTES, None)
        drawn: Any = _sample_shard.remote(*draw)  # type: ignore[call-arg]  # Ray's types know no defaults
        task, reasons, seen = _survived(draw, drawn)
        if not seen:
            raise RequestError(f"no readable sample in {name} {bank.folder.public()}: {_first(reasons)}")
        try:
            if settings is archive:
                conform(ray.get(task)[0], artefact.bands, artefact.dtype, artefact.radiometry)
                if warning := other_resolution(artefact.gsd, [tile.gsd for tile in seen]):
                    log.warning("%s", warning)
            elif wrong := contradiction([told for one in seen for told in one.evidence], archive.radiometry):
                raise BadSample("decode", "WrongRadiometry", wrong)
        except BadSample as error:
            raise RequestError(
                f"{name} {bank.folder.public()} does not match the archive ({error.message}); {advice}"
            ) from error


def other_resolution(archive: float | None, bank: Sequence[float | None]) -> str | None:
    """A warning if tiles of a bank have another ground resolution than the archive.

    Args:
        archive: median of its ground sampling distances, metres.
        bank: ground sampling distances of the bank's tiles, metres.
    """
    known = [gsd for gsd in bank if gsd is not None]
    if archive is None or not known:
        return None
    median = float(np.median(known))
    if max(median, archive) <= OTHER_GSD * min(median, archive):
        return None
    return (
        f"The reference bank has {median:.3g} m a pixel, the archive {archive:.3g} m: scenes look otherwise at another "
        "scale; take a bank of about the archive's resolution."
    )
