"""From a catalog to the consistency of its samples: fit across folds, judge part by part, rank within classes.

``scores/<id>/part-…`` lie parallel to the assignments, as those of `curation.scoring.build`. Each step leaves its
files, ``consistency.json`` last; a run that was stopped goes on from there. Everything goes by the catalog's
embeddings: no pixel is read again. Only the text needs a model, the catalog's own, which must be ``open_clip``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import safetensors.numpy
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from curation.archive.tables import Table
from curation.catalog.artefact import Artefact, encoder_config
from curation.catalog.labels import Labels
from curation.catalog.store import chunks, parquet_bytes
from curation.clustering.assign import embeddings, parts_of
from curation.config import Config, to_dict
from curation.encoders.base import build_encoder, start_torch
from curation.errors import RequestError
from curation.runtime import Resources, numeric_profile
from curation.scoring.build import COUNTED, count_labels
from curation.scoring.consistency import (
    ABOUT,
    Codes,
    Pairs,
    by_adapters,
    by_maps,
    by_prototypes,
    class_sums,
    fit_adapters,
    fit_maps,
    fit_prototypes,
    moments,
)
from curation.scoring.experts import Labelled
from curation.scoring.settings import ConsistencyConfig
from curation.scoring.sim import ranks
from curation.selection.sampling import hash01
from curation.storage import Folder

if TYPE_CHECKING:  # it brings Ray Data and pandas along, which tasks need not load
    from curation.catalog.build import Catalog

log = logging.getLogger("curation")

VERSION = 1  # raise when the same samples would get other figures
MAX_BYTES = 2 << 30  # of sums, or of the sample that adapters are fitted on, that a task holds
MAX_ROWS = 200_000_000  # whose figures one task ranks, 16 bytes each and as many again while it sorts
SAID = {"second_view": "second_view", "modalities": "modality"}  # `source` of a row; of a text its own
FIT = "fit.safetensors"
COLUMNS = ["sample_id", "shard", "index", "embedding"]  # of the catalog
TEXT = np.array(["", "caption", "label"], object)  # and its code in a shard's texts
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)  # of the agreement, in `ABOUT`

JUDGEMENT = ("agreement", "source")

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("agreement", pa.float32()),  # as the source measures it; null where there is nothing to agree with
        pa.field("consistency", pa.float32()),  # its rank within the class, in (0, 1)
        pa.field("source", pa.string()),  # caption, label, second_view or modality: what the image was held against
    ]
)

JUDGED = pa.schema(
    [*(SCHEMA.field(name) for name in COLUMNS[:3]), ("class", pa.int32()), *(SCHEMA.field(n) for n in JUDGEMENT)]
)


@dataclass(frozen=True)
class Work:
    """What every task is sent."""

    config: Config
    artefact: Artefact
    labelled: Labelled
    folder: Folder
    device: str
    rows: int  # of the catalog

    @property
    def settings(self) -> ConsistencyConfig:
        """``consistency`` of the config."""
        return self.config.consistency

    def folds(self, ids: pa.Array | pa.ChunkedArray) -> Codes:
        """The fold of each sample, by a hash of its id."""
        return np.asarray(hash01(ids, self.config.seed) * self.settings.folds, np.int64)


def build_consistency(config: Config, catalog: Catalog, resources: Resources, tables: Sequence[Table] = ()) -> Folder:
    """``scores/<id>``, complete.

    Args:
        config: of the run; ``config.consistency`` says how, ``config.score.label`` what the label is.
        catalog: complete.
        resources: what the cluster has; no result depends on how much.
        tables: beside the archive, that ``score.label`` may name a column of.

    Raises:
        RequestError: there is nothing that the images could be held against.
    """
    settings, source = config.consistency, Labels.of(config.score.label, tables)
    check_encoder(config)
    made_of = [
        *(VERSION, catalog.store.catalog_id, catalog.artefact.sha256, catalog.digest),
        *(to_dict(settings), source.identity, config.seed),
    ]
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = catalog.store.workspace.child(f"scores/{name}")
    if folder.exists(ABOUT):
        return folder
    _check_rows(catalog.counts["kept"])
    labelled = Labelled(catalog.store, catalog.shards, source)
    counts: Counter[str] = Counter()
    for part in ray.get([count_labels.remote(labelled, list(part)) for part in chunks(catalog.shards, COUNTED)]):
        counts += part
    labelled = replace(labelled, classes=tuple(sorted(counts)), rows=counts.total())
    work = Work(config, catalog.artefact, labelled, folder, resources.device, catalog.counts["kept"])
    log.info("consistency: %s, %d of %d samples labelled", settings.source, labelled.rows, catalog.counts["kept"])
    _FITS[settings.source](work, resources)
    members = parts_of(catalog.shards, catalog.counts["kept"])
    ray.get([_judge.remote(work, shards, number) for number, shards in enumerate(members)])
    ranked: dict[str, Any] = ray.get(_rank.remote(work, len(members)))
    about = {
        "settings": to_dict(settings),
        "label": source.column,
        "caption": (config.archive.fields or {}).get("caption", "caption, text or .txt"),  # the field that it came from
        "seed": config.seed,
        "rows": catalog.counts["kept"],
        "classes": dict(sorted(counts.items())),
        **ranked,
        "profile": numeric_profile(resources.device, "float32"),
    }
    folder.publish(ABOUT, json.dumps(about, indent=1).encode())
    return folder


def check_encoder(config: Config) -> None:
    """See that the encoder fits the source.

    Raises:
        RequestError: it does not.
    """
    name, settings = config.encoder["name"], config.consistency
    if settings.source == "text" and name != "open_clip":
        raise RequestError(
            f"consistency.source=text: encoder={name} has no text tower; take a catalog by encoder=open_clip "
            "encoder.checkpoint=…, or consistency.source=second_view, which goes by labels alone"
        )
    parts, chosen = list(config.encoder.get("parts") or {}), _modalities(config)
    if settings.source == "modalities" and (name != "joined" or len(chosen) != 2 or not set(chosen) <= set(parts)):
        has = f"has the parts {', '.join(parts)}" if parts else f"is {name}"
        raise RequestError(
            f"consistency.source=modalities takes two parts of encoder=joined, one a modality, and this encoder {has}: "
            "name two in consistency.modalities, or take encoder=joined encoder.parts={…}"
        )


def _modalities(config: Config) -> list[str]:
    return config.consistency.modalities or list(config.encoder.get("parts") or {})


def _check_rows(rows: int) -> None:
    if rows > MAX_ROWS:
        raise RequestError(f"{rows} samples: one task ranks their figures, and {MAX_ROWS} are the limit")


# fitting: files of arrays whose first axis is the fold; of the text one a fold


def _fit_prototypes(work: Work, resources: Resources) -> None:
    labelled, settings = work.labelled, work.settings
    if len(labelled.classes) < 2:
        found = f"all labelled samples are {labelled.classes[0]!r}" if labelled.classes else "no sample has a label"
        raise RequestError(
            f"consistency.source=second_view tells classes apart, but by score.label={labelled.source.column} {found}: "
            "give labels in sidecars, or in a table (archive.tables, score.label=COLUMN)"
        )
    shape = (settings.folds, len(labelled.classes), _dimension(work))
    if 8 * np.prod(shape) > MAX_BYTES:
        raise RequestError(
            f"consistency: a task sums {shape[1]} classes' vectors in {shape[0]} folds, and {MAX_BYTES >> 30} GiB are "
            "the limit: lower consistency.folds, or take coarser labels (score.label)"
        )
    _fit_sums(work, [])


def _fit_modalities(work: Work, resources: Resources) -> None:
    _fit_sums(work, ray.get(_places.remote(work)))


def _fit_sums(work: Work, places: list[slice]) -> None:
    if not work.folder.exists(FIT):
        sums = [_sum_shards.remote(work, list(shards), places) for shards in chunks(work.labelled.shards, COUNTED)]
        ray.get(_fit.remote(work, sums, places))


def _fit_text(work: Work, resources: Resources) -> None:
    """Embed the texts, see that there are two at least, and train adapters for each fold."""
    settings, shards = work.settings, work.labelled.shards
    if 16 * settings.sample * _dimension(work) > MAX_BYTES:
        raise RequestError(f"consistency.sample={settings.sample}: a task holds its pairs, lower it")
    gpu = {"num_gpus": int(work.device == "cuda")}
    workers = max(1, int(resources.gpus if gpu["num_gpus"] else resources.cpus))
    texts = [
        _embed_texts.options(**gpu).remote(work, list(some)) for some in chunks(shards, -(-len(shards) // workers))
    ]
    if len(set().union(*ray.get(texts))) < 2:
        raise RequestError(
            f"consistency.source=text: by consistency.text={settings.text} and "
            f"score.label={work.labelled.source.column} there is no caption nor label, or the same for all samples: "
            "give captions or labels in sidecars (docs/formats.md), or labels in a table (archive.tables, "
            "score.label=COLUMN)"
        )
    folds = [number for number in range(settings.folds) if not work.folder.exists(_adapters_of(number))]
    if folds:
        pairs = [_sample_pairs.remote(work, list(some)) for some in chunks(shards, COUNTED)]
        ray.get([_train_fold.options(**gpu).remote(work, number, pairs) for number in folds])


_FITS = {"second_view": _fit_prototypes, "modalities": _fit_modalities, "text": _fit_text}


def _dimension(work: Work) -> int:
    return int(embeddings(work.labelled.store.read(work.labelled.shards[0], ["embedding"])).shape[1])


def _adapters_of(number: int) -> str:
    return f"adapters/{number:02}.safetensors"


def _texts_of(shard: str) -> str:
    return f"texts/{shard}.safetensors"


@ray.remote(num_cpus=1)
def _places(work: Work) -> list[slice]:
    """Where the two modalities' numbers lie in a joined embedding."""
    config, artefact = work.config, work.artefact
    encoder: Any = build_encoder(encoder_config(config), artefact.arrays, artefact.bands, artefact.dtype, "cpu", 1)
    ends = np.cumsum([0, *(part.dim for part in encoder.encoders)]).tolist()
    names = list(config.encoder["parts"])
    return [slice(ends[names.index(part)], ends[names.index(part) + 1]) for part in _modalities(config)]


@ray.remote(num_cpus=1)
def _sum_shards(work: Work, shards: Sequence[str], places: list[slice]) -> dict[str, NDArray[np.float64]]:
    """What some shards add to what is fitted."""
    total: dict[str, NDArray[np.float64]] = {}
    with threadpool_limits(1):
        for shard in shards:
            table = work.labelled.store.read(shard, ["sample_id", "embedding"])
            vectors, fold, folds = embeddings(table), work.folds(table["sample_id"]), work.settings.folds
            if places:
                one, other = places
                made = moments(vectors[:, one], vectors[:, other], fold, folds)
            else:
                classes = len(work.labelled.classes)
                made = {"sums": class_sums(vectors, work.labelled.codes(shard), fold, classes, folds)}
            total = {name: total.get(name, 0) + values for name, values in made.items()}
    return total


@ray.remote(num_cpus=1)
def _fit(work: Work, parts: list[Any], places: list[slice]) -> None:
    """Add up what the shards gave, in their order, and publish what judges each fold."""
    total: dict[str, NDArray[np.float64]] = {}
    for part in parts:
        total = {name: total.get(name, 0) + values for name, values in ray.get(part).items()}
    with threadpool_limits(1):
        if places:
            fitted = fit_maps(total, places[0].stop - places[0].start, work.settings.ridge)
            fitted["places"] = np.array([[place.start, place.stop] for place in places], np.float32)
        else:
            fitted = fit_prototypes(total["sums"])
    work.folder.publish(FIT, safetensors.numpy.save({name: np.ascontiguousarray(v) for name, v in fitted.items()}))


@ray.remote(num_cpus=1)
def _embed_texts(work: Work, shards: Sequence[str]) -> set[int]:
    """Publish the vector of each row's text, shard by shard; two of their texts' hashes, or fewer."""
    encoder: Any = None
    seen: set[int] = set()
    for shard in shards:
        path = _texts_of(shard)
        if not work.folder.exists(path):
            if encoder is None:
                config, artefact = work.config, work.artefact
                encoder = build_encoder(
                    encoder_config(config), artefact.arrays, artefact.bands, artefact.dtype, work.device, 1
                )
            captions = work.labelled.store.read(shard, ["caption"])["caption"].to_pylist()
            said = texts(
                captions, work.labelled.source.read(work.labelled.store, shard).to_pylist(), work.settings.text
            )
            work.folder.publish(path, safetensors.numpy.save(_text_arrays(encoder, said, work.settings.templates)))
        found = safetensors.numpy.load(work.folder.read(path))
        seen |= set(found["same"][found["source"] > 0].tolist())
        seen = set(sorted(seen)[:1] + sorted(seen)[-1:])
    return seen


def texts(captions: Sequence[str | None], labels: Sequence[str | None], prefer: Sequence[str]) -> list[tuple[str, str]]:
    """Of each row where its text comes from, caption or label, and that; two empty texts where there is none.

    Args:
        captions: (n,) of the rows.
        labels: (n,) the same.
        prefer: caption and label, or one of them; the first that a row has counts.
    """
    rows = ({"caption": caption, "label": label} for caption, label in zip(captions, labels, strict=True))
    return [next(((name, row[name] or "") for name in prefer if row[name]), ("", "")) for row in rows]


def _text_arrays(encoder: Any, said: Sequence[tuple[str, str]], templates: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Of each row ``vectors`` (n, d), ``same`` (a hash of the text) and ``source`` (an index into `TEXT`)."""
    known = sorted({row for row in said if row[0]})
    filled = [template.replace("{}", text) for source, text in known if source == "label" for template in templates]
    plain = sorted({*filled, *(text for source, text in known if source == "caption")})
    place = {text: number for number, text in enumerate(plain)}
    vectors = encode_texts(encoder, plain)
    own = {
        (source, text): vectors[[place[t.replace("{}", text)] for t in templates]].mean(axis=0)
        if source == "label"
        else vectors[place[text]]
        for source, text in known
    }
    none = np.zeros(encoder.dim, np.float32)
    hashes = {row: hashlib.blake2b("\0".join(row).encode(), digest_size=8).digest() for row in known}
    return {
        "vectors": np.stack([own.get(row, none) for row in said]).astype(np.float16),
        "same": np.array([int.from_bytes(hashes.get(row, b""), "little", signed=True) for row in said], np.int64),
        "source": np.array([list(TEXT).index(row[0]) for row in said], np.uint8),
    }


def encode_texts(encoder: Any, prompts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors (n, dim), forwarded in one constant shape, so that none hangs on its neighbours."""
    made = [np.empty((0, encoder.dim), np.float32)]
    for start in range(0, len(prompts), encoder.batch):
        some = list(prompts[start : start + encoder.batch])
        made.append(encoder.encode_text(some + [""] * (encoder.batch - len(some)))[: len(some)])
    return np.concatenate(made)


@ray.remote(num_cpus=1)
def _sample_pairs(work: Work, shards: Sequence[str]) -> Pairs:
    """Pairs of some shards for the adapters to learn from: a hashed share of those that have a text."""
    share = work.settings.sample / max(work.rows, 1)
    found = []
    for shard in shards:
        table = work.labelled.store.read(shard, ["sample_id", "embedding"])
        said = safetensors.numpy.load(work.folder.read(_texts_of(shard)))
        rows = np.flatnonzero((said["source"] > 0) & (hash01(table["sample_id"], work.config.seed + 1) < share))
        fold = work.folds(table["sample_id"])
        found.append((embeddings(table)[rows], said["vectors"][rows], said["same"][rows], fold[rows]))
    return Pairs(*(np.concatenate(values) for values in zip(*found, strict=True)))


@ray.remote(num_cpus=1)
def _train_fold(work: Work, number: int, parts: list[Any]) -> None:
    start_torch(work.device, 1)
    pairs = Pairs(*(np.concatenate(values) for values in zip(*ray.get(parts), strict=True)))
    fitted = fit_adapters(pairs, work.settings, work.config.seed, number, work.device)
    work.folder.publish(_adapters_of(number), safetensors.numpy.save(fitted))


# judging


@ray.remote(num_cpus=1)
def _judge(work: Work, shards: Sequence[str], number: int) -> None:
    """Publish the agreement of every row of some shards; a part that is there stays as it is."""
    path = f"agreement/part-{number:05}.parquet"
    if work.folder.exists(path):
        return
    judge = {"second_view": _by_prototypes, "modalities": _by_maps, "text": _by_adapters}[work.settings.source]
    start_torch("cpu", 1)
    with threadpool_limits(1):
        rows = [judge(work, work.labelled.store.read(shard, COLUMNS), shard) for shard in shards]
    work.folder.publish(path, parquet_bytes(pa.concat_tables([JUDGED.empty_table(), *rows])))


def _by_prototypes(work: Work, table: pa.Table, shard: str) -> pa.Table:
    codes, fold = work.labelled.codes(shard), work.folds(table["sample_id"])
    found = by_prototypes(_fitted(work), embeddings(table), codes, fold)
    return _judged(table, codes, found, SAID["second_view"])


def _by_maps(work: Work, table: pa.Table, shard: str) -> pa.Table:
    fitted, vectors = _fitted(work), embeddings(table)
    one, other = (vectors[:, int(start) : int(stop)] for start, stop in fitted["places"])
    found = by_maps(fitted, one, other, work.folds(table["sample_id"]))
    return _judged(table, work.labelled.codes(shard), found, SAID["modalities"])


def _by_adapters(work: Work, table: pa.Table, shard: str) -> pa.Table:
    said, fold = safetensors.numpy.load(work.folder.read(_texts_of(shard))), work.folds(table["sample_id"])
    found, vectors = np.full(table.num_rows, np.nan, np.float32), embeddings(table)
    for number in range(work.settings.folds):
        rows = np.flatnonzero((said["source"] > 0) & (fold == number))
        fitted = safetensors.numpy.load(work.folder.read(_adapters_of(number)))
        found[rows] = by_adapters(fitted, vectors[rows], said["vectors"][rows], work.settings.adapter)
    return _judged(table, work.labelled.codes(shard), found, TEXT[said["source"]])


def _fitted(work: Work) -> dict[str, NDArray[np.float32]]:
    fitted: dict[str, NDArray[np.float32]] = safetensors.numpy.load(work.folder.read(FIT))
    return fitted


def _judged(table: pa.Table, codes: Codes, found: NDArray[np.float32], source: Any) -> pa.Table:
    none = np.isnan(found)
    said = pa.array(np.broadcast_to(source, len(found)).astype(object), pa.string(), mask=none)
    columns = [codes.astype(np.int32), pa.array(found, mask=none), said]
    return pa.table([*(table[name] for name in COLUMNS[:3]), *columns], schema=JUDGED)


@ray.remote(num_cpus=1)
def _rank(work: Work, parts: int) -> dict[str, Any]:
    """Publish the parts with the rank of each row within its class; what `ABOUT` says of them."""

    def judged(number: int, columns: Sequence[str] | None = None) -> pa.Table:
        data = work.folder.read(f"agreement/part-{number:05}.parquet")
        return pq.read_table(pa.BufferReader(data), columns=columns)

    every = pa.concat_tables(judged(number, ["class", "agreement", "source"]) for number in range(parts))
    agreed = every["agreement"].fill_null(np.nan).to_numpy()
    known = np.flatnonzero(~np.isnan(agreed))
    ranked = np.full(len(agreed), np.nan, np.float32)
    ranked[known] = ranks(agreed[known], every["class"].to_numpy()[known].astype(np.int64) + 1)
    start = 0
    for number in range(parts):
        table = judged(number)
        own, start = ranked[start : start + table.num_rows], start + table.num_rows
        columns = {name: table[name] for name in table.column_names if name != "class"}
        columns["consistency"] = pa.array(own, mask=np.isnan(own))
        rows = pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)
        work.folder.publish(f"part-{number:05}.parquet", parquet_bytes(rows))
    sources = Counter(every["source"].drop_null().to_pylist())
    return {
        "scored": len(known),
        "sources": dict(sorted(sources.items())),
        "quantiles": np.quantile(agreed[known], QUANTILES).tolist() if len(known) else [],
        # share that agree more with their own than with what is not theirs
        "positive": float((agreed[known] > 0).mean()) if len(known) else None,
    }
