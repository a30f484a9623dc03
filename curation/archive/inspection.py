"""Looks at an archive that nobody has described: its layout, a few of its samples, and a config to begin with.

Nothing is guessed in silence: what cannot be told from the files is a question
to the user.
"""

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from curation.archive.audit import audit
from curation.archive.clouds import MEANING, classes, is_mask
from curation.archive.decode import decode
from curation.archive.listing import Root, list_archive, list_files
from curation.archive.names import IMAGES, SHARDS, extension, is_categorical
from curation.archive.radiometry import evidence, polarisation
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection, Sample, sample_id
from curation.archive.settings import ArchiveConfig, RadiometryConfig, TileConfig
from curation.archive.shards import is_table
from curation.archive.sidecar import KNOWN_NAMES, gather
from curation.archive.tiling import tiles
from curation.errors import BadSample, RequestError
from curation.storage import FileInfo, Options, is_local, public_url

SHARDS_LOOKED_AT = 3
SAMPLES_A_SHARD = 16
LARGE = 512  # pixels a side from which cutting into tiles is advised
LARGE_FILE = 16 << 20  # bytes of an image that is not decoded whole
TILE = 256
_FIGURES = ("min", "p1", "median", "p99", "max")
_BAND = r"(?:B\d{1,2}A?|SCL|TCI|AOT|WVP|VV|VH|HH|HV|red|green|blue|nir\d*|swir\d*|QA\w*)"
_BAND_FILE = re.compile(rf"^(?P<scene>.*?)(?:^|[_.\-])(?P<band>{_BAND})(?P<rest>(?:[_.\-]\d+m)?)$", re.IGNORECASE)
_DATE = re.compile(r"(?P<time>(?:19|20)\d{2}-[01]\d-[0-3]\d|(?:19|20)\d{2}[01]\d[0-3]\d(?:T\d{6})?)(?!\d)")
_RADAR_FILE = re.compile(r"(?:^|[_.\-])(?:VV|VH|HH|HV)(?:[_.\-]|$)|(?:^|[_/])S1[A-D]_", re.IGNORECASE)
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


@dataclass
class Findings:
    """What was found.

    Attributes:
        config: keys of the group ``archive`` that differ from the defaults.
        facts: what was seen, for programs.
        notes: the same for people, a line each.
        questions: what could not be told.
    """

    config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)


def inspect_archive(url: str, options: Options | None = None) -> Findings:
    """Look at an archive; credentials in its URL do not come into the findings.

    Raises:
        RequestError: there is nothing, or nothing that can be read.
    """
    shown = url if is_local(url) else public_url(url)
    found = Findings(config={"url": shown})
    if shown != url:
        found.notes.append(
            "archive.url stands here without its user, password or query (it may be a signature): give credentials by "
            "environment, profile or instance role, other options in runtime.storage (docs/storage.md)"
        )
    files = list_files(url, options)
    _layout(files, found)
    settings = _settings(found.config)
    roots = list_archive(url, options, settings)
    shards = [(root, shard) for root in roots for shard in root.shards]
    formats = Counter(shard.format for _, shard in shards)
    size = sum(shard.size for _, shard in shards)
    found.facts |= {"shards": len(shards), "bytes": size, "formats": dict(formats)}
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
    found.notes.append(f"{len(shards)} shard{'s' * (len(shards) > 1)} ({kinds}), {size / 1e9:.4g} GB")
    _samples(roots, settings, found)
    return found


def _settings(config: dict[str, Any]) -> ArchiveConfig:
    return ArchiveConfig(**{**config, "tile": TileConfig(**config.get("tile", {}))})


# layout


def _layout(files: Sequence[FileInfo], found: Findings) -> None:
    """Scenes, modalities and tables by the names of files."""
    paths = [file.path for file in files if not file.path.startswith(".") and "/." not in file.path]
    kinds = Counter(extension(path) for path in paths)
    found.facts["files"] = dict(kinds.most_common(12))
    modalities = find_modalities([path for path in paths if extension(path) in SHARDS])
    if modalities:
        found.config["modalities"] = modalities
        found.notes.append(
            f"shards of the same names lie side by side in {', '.join(modalities)}: one sample has a key of each"
        )
    images = [path for path in paths if extension(path) in IMAGES and ".zarr/" not in path]
    largest = max((file.size for file in files if file.path in set(images)), default=0)
    alone = not any(extension(path) in SHARDS - {"parquet"} for path in paths)
    scene = (find_scene(images) or ("file" if largest > LARGE_FILE else None)) if alone else None
    listed = len(paths) == 1 and extension(paths[0]) in ("txt", "json", "geojson")  # of scenes, which are large
    if listed or (scene and largest > LARGE_FILE):
        found.config["tile"] = {"size": TILE}
    if scene and scene != "file":
        found.notes.append(f"bands lie in files of their own: archive.scene={scene}")
    if scene:
        found.config["scene"] = scene
    tables = [path for path in paths if extension(path) == "csv" or is_table(path)]
    if tables:
        found.facts["tables"] = tables[:20]
        found.notes.append(f"tables: {', '.join(tables[:5])}" + (" …" if len(tables) > 5 else ""))
        found.questions.append(
            f"Which column of {tables[0]} names the samples? Then archive.tables=[{{path: …, key: COLUMN, on: key}}] "
            "joins it."
        )


def find_modalities(paths: Iterable[str]) -> list[str]:
    """Names of folders that hold shards of the same names, where they are not splits of one set.

    >>> find_modalities(["train/S2L2A/a.tar", "train/S1GRD/a.tar", "val/S2L2A/a.tar", "val/S1GRD/a.tar"])
    ['S1GRD', 'S2L2A']
    """
    alike: dict[tuple[int, str], set[str]] = defaultdict(set)
    for path in paths:
        parts = path.split("/")
        for i, part in enumerate(parts[:-1]):
            if part.lower() not in _SPLITS:
                alike[i, "/".join([*parts[:i], "*", *parts[i + 1 :]])].add(part)
    votes = Counter(tuple(sorted(names)) for names in alike.values() if len(names) > 1)
    return list(votes.most_common(1)[0][0]) if votes else []


def find_scene(images: Sequence[str]) -> str | None:
    """``archive.scene`` for images that are named by bands: ``folder``, or a pattern where a folder has several scenes.

    >>> find_scene(["a/B02.tif", "a/B03.tif", "b/B02.tif", "b/B03.tif"])
    'folder'
    """
    folders: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    rests, kinds = set(), set()
    for path in images:
        stem = os.path.basename(path).rpartition(".")[0]
        match = _BAND_FILE.match(stem)
        if match is None:
            return None
        folders[os.path.dirname(path)][match["scene"]].add(match["band"])
        rests.add(match["rest"])
        kinds.add(extension(path))
    several = [scenes for scenes in folders.values() if len(scenes) > 1]
    if not folders or max(len(bands) for scenes in folders.values() for bands in scenes.values()) < 2:
        return None
    if not several:
        return "folder"
    rest = r"(?:[_.\-]\d+m)?" if rests != {""} else ""
    return rf"(?P<scene>.+)[_.\-](?P<band>{_BAND}){rest}\.(?:{'|'.join(sorted(kinds))})$"


# samples


def _samples(roots: Sequence[Root], settings: ArchiveConfig, found: Findings) -> None:
    """Read the first samples of some shards, chosen by hash."""
    samples: list[Sample] = []
    names: list[str] = []  # of the shard of each
    masks: set[str] = set()
    reasons: Counter[str] = Counter()
    said: dict[str, Any] = {}
    shards = sorted(
        ((root, shard) for root in roots for shard in root.shards), key=lambda pair: sample_id(pair[1].name, "")
    )
    for root, shard in shards[:SHARDS_LOOKED_AT]:
        for raw in itertools.islice(read_shard(root.folder, shard, settings), SAMPLES_A_SHARD):
            result = _decoded(raw, settings)
            if isinstance(result, str):
                reasons[result] += 1
            else:
                assert isinstance(raw, RawSample)
                samples.append(result)
                names.append(shard.name)
                masks |= {name for name in (*raw.data, *raw.images) if is_mask(name)}
                said = {**gather(raw.data, raw.said), **said}
    if not samples:
        raise RequestError(f"no sample could be read: {reasons.most_common(1)[0][0] if reasons else 'it is empty'}")
    if reasons:
        reason, count = reasons.most_common(1)[0]
        of = f"{reasons.total()} of {len(samples) + reasons.total()} samples"
        found.notes.append(f"{of} were unusable, most often {reason} ({count})")
    _numbers(samples, names, found)
    _meaning(samples, names, found)
    _masks(samples, masks, found)
    _fields(samples, said, found)


def _decoded(raw: RawSample | Rejection, settings: ArchiveConfig) -> Sample | str:
    if isinstance(raw, Rejection):
        return f"{raw.kind}: {raw.message}"
    try:
        return decode(raw, settings)
    except BadSample as error:
        return str(error)


def _numbers(samples: Sequence[Sample], names: Sequence[str], found: Findings) -> None:
    """Bands, dtypes, sizes and value ranges."""
    kinds = Counter((sample.bands, str(sample.pixels.dtype)) for sample in samples)
    (bands, dtype), count = kinds.most_common(1)[0]
    alike = [sample for sample in samples if (sample.bands, str(sample.pixels.dtype)) == (bands, dtype)]
    values = np.concatenate([sample.pixels[:, sample.mask][:, ::7] for sample in alike], axis=1).astype(np.float64)
    percentiles = np.percentile(values, [0, 1, 50, 99, 100], axis=1).T.tolist()
    sizes = Counter(sample.mask.shape for sample in samples)
    found.facts |= {
        "samples": len(samples),
        "dtype": dtype,
        "bands": {name: dict(zip(_FIGURES, row, strict=True)) for name, row in zip(bands, percentiles, strict=True)},
        "sizes": {f"{width}x{height}": n for (height, width), n in sizes.most_common(5)},
        "crs": sorted({sample.place.crs for sample in samples if sample.place}),
        "valid": float(np.mean([sample.mask.mean() for sample in samples])),
    }
    found.notes.append(f"{len(bands)} band{'s' * (len(bands) > 1)} of {dtype}: {', '.join(bands[:16])}")
    if len(kinds) > 1:
        others = "; ".join(f"{n} of {len(b)} bands, {d}" for (b, d), n in kinds.most_common()[1:4])
        found.questions.append(
            f"Samples differ ({count} as above, {others}): which do you want? archive.bands=[…] takes bands that all "
            "have; the rest is quarantined, unless archive.url is narrowed to one kind."
        )
        where = {shard: (sample.bands, str(sample.pixels.dtype)) for shard, sample in zip(names, samples, strict=True)}
        if "scene" not in found.config and len(set(where.values())) > 1:
            found.questions.append(
                f"Do {', '.join(sorted(where))} show the same places? Then archive.scene=PATTERN, a regular expression "
                "over the paths with (?P<scene>…) and (?P<band>…), makes one sample of their files (or, if files are "
                "called the same in each, archive.modalities=[…])."
            )
    if all(re.fullmatch(r"b\d+|gray", band) for band in bands) and len(bands) > 1:
        found.questions.append(f"The files do not name their {len(bands)} bands: archive.band_names=[…] does.")
    height, width = max(sizes)
    if max(height, width) > LARGE:
        found.config["tile"] = {"size": TILE}
    if "tile" in found.config:
        found.notes.append(f"large images are cut into tiles of {TILE} x {TILE} pixels")


def _meaning(samples: Sequence[Sample], names: Sequence[str], found: Findings) -> None:
    """``archive.radiometry.kind`` by the bands' names, held against the pixels by the audit of the fit."""
    bands = tuple(found.facts["bands"])
    alike = [(shard, sample) for shard, sample in zip(names, samples, strict=True) if sample.bands == bands]
    prefixes = dict.fromkeys(band.rpartition(".")[0] for band in bands)
    kinds = {p: _kind([b for b in bands if b.rpartition(".")[0] == p], alike[0][1]) for p in prefixes}
    kinds = {prefix: kind for prefix, kind in kinds.items() if kind}
    found.facts["radiometry"] = kinds
    if not kinds:
        if found.facts["dtype"] != "uint8":
            found.questions.append(
                "What do the numbers mean? archive.radiometry.kind=sentinel2 makes them reflectance, sentinel1 "
                "decibels; without it they stay as they are."
            )
        return
    kind: Any = kinds.get("") or kinds
    found.config["radiometry"] = {"kind": kind}
    settings = RadiometryConfig(kind=kind)
    cut = [(shard, tile) for shard, sample in alike for tile in tiles(sample, _tile_size(found), None)]
    told = audit([one for shard, tile in cut for one in evidence(shard, tile, settings)], settings)
    found.notes += [f"archive.radiometry: {note}" for note in told.notes]
    if told.problem:
        found.questions.append(f"archive.radiometry: {told.problem}")


def _kind(bands: Sequence[str], sample: Sample) -> str | None:
    """What bands of these names are, of Sentinel-1 and Sentinel-2."""
    short = {band.rpartition(".")[2].upper() for band in bands}
    if sample.pixels.dtype == np.uint8:
        return None  # a picture
    if all(map(polarisation, bands)):
        return "sentinel1"
    if len(bands) == 1 and sample.pixels.dtype == np.float32 and _RADAR_FILE.search(sample.key):
        return "sentinel1"
    return "sentinel2" if "B8A" in short or {"B02", "B08"} <= short or {"B2", "B3", "B4", "B12"} <= short else None


def _tile_size(found: Findings) -> int | None:
    size: int | None = found.config.get("tile", {}).get("size")
    return size


def _masks(samples: Sequence[Sample], masks: Iterable[str], found: Findings) -> None:
    """Bands that tell of clouds, and those that might."""
    known = sorted(masks) or ["a band of its own"] * any(sample.clouds is not None for sample in samples)
    found.facts["masks"] = known
    if known:
        found.notes.append(f"clouds and validity are told by {', '.join(known)}")
    if meant := classes([value for sample in samples for value in sample.hints.get("cloud_values", ())]):
        found.questions.append(
            f"By the values seen cloud_mask is {MEANING[meant]}: is it so? Else archive.clouds.band=cloud_mask with "
            "archive.clouds.values=[…]."
        )
    for band in sorted({band for sample in samples for band in sample.bands if is_categorical(band)}):
        found.questions.append(
            f"{band} looks like classes or flags: if it tells clouds, archive.clouds.band={band} with "
            "archive.clouds.values=[…], bits=[…] or above=NUMBER; else name the bands to read in archive.bands."
        )


def _fields(samples: Sequence[Sample], said: dict[str, Any], found: Findings) -> None:
    """What sidecars, columns or properties say, and what they do not."""
    _times_in_names(samples, found)
    there = {name: sum(getattr(sample, name) is not None for sample in samples) for name in _TOLD}
    found.facts["fields"] = {name: count for name, count in there.items() if count}
    known = [name for name, count in there.items() if count]
    found.notes.append(f"known of samples: {', '.join(known) or 'nothing but their pixels'}")
    strange = {
        name: value for name, value in said.items() if name not in KNOWN_NAMES and isinstance(value, str | int | float)
    }
    if strange:
        found.facts["other_fields"] = {name: str(value)[:80] for name, value in list(strange.items())[:40]}
        shown = ", ".join(f"{name} ({str(value)[:24]})" for name, value in list(strange.items())[:6])
        found.questions.append(
            f"Do any of these say what we need? {shown}. archive.fields={{time: NAME, …}} tells which."
        )
    for name, why in _TOLD.items():
        known_otherwise = (name == "time" and "name_pattern" in found.config) or (
            name == "cloud_fraction"
            and (found.facts["masks"] or set(found.facts["radiometry"].values()) == {"sentinel1"})
        )
        if not there[name] and why and not known_otherwise:
            found.questions.append(why)


def _times_in_names(samples: Sequence[Sample], found: Findings) -> None:
    """Dates that stand in the keys, where nothing else gives a time."""
    if all(sample.time is None and _DATE.search(sample.key) for sample in samples):
        found.config["name_pattern"] = _DATE.pattern
        found.notes.append(f"times are read from the keys, such as {samples[0].key}")


_TOLD = {
    "label": "",
    "caption": "",
    "source_id": "",
    "license": "",
    "time": "Nothing gives a time: seasons, and the same place on many dates, cannot be told apart.",
    "footprint": "Nothing gives a place: overlapping tiles, regions and splits by block cannot be told.",
    "cloud_fraction": "Nothing tells of clouds: no mask band, no cloud cover. Cloudy tiles stay, unless you name one "
    "(archive.tables) or archive.clouds.detector=omnicloudmask looks for them.",
}


def as_yaml(found: Findings) -> str:
    """The config as a file that the user corrects: findings and questions are comments."""
    lines = ["# What `curate inspect` found; correct it, then: curate prune config=THIS_FILE workspace=URL"]
    lines += [f"# - {note}" for note in found.notes]
    if found.questions:
        lines += ["#", "# Not to be told from the files:", *(f"# - {question}" for question in found.questions)]
    lines += ["", OmegaConf.to_yaml(OmegaConf.create({"archive": found.config})).rstrip(), "  # values seen:"]
    for name, row in found.facts["bands"].items():
        lines.append(f"  #   {name}: {row['min']:g} to {row['max']:g}, mostly {row['p1']:g} to {row['p99']:g}")
    return "\n".join(lines) + "\n"
