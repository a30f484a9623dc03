"""From a labelled catalog to its scores: tiles, experts, one table of all labelled samples, and parts for everybody.

``experts/<id>`` has what trained models say, ``scores/<id>`` what is made of it, so that another SIM of the same
experts costs no training. ``part-…`` lie parallel to the assignments: the same rows in the same order. Each step leaves
its file, ``score.json`` last; a run that was stopped goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import safetensors.numpy
from numpy.typing import NDArray

from curation.archive.listing import Root
from curation.archive.tables import Table
from curation.catalog.labels import Labels
from curation.catalog.store import chunks, parquet_bytes
from curation.catalog.tiles import build_tiles
from curation.clustering.assign import parts_of
from curation.config import Config, to_dict
from curation.errors import RequestError
from curation.runtime import Resources, numeric_profile
from curation.scoring.experts import Labelled, check_network, file_of, train_expert
from curation.scoring.settings import ScoreConfig
from curation.scoring.sim import DYNAMICS, SCORES, agreement, correlation, ranks, separability, sim
from curation.storage import Folder

if TYPE_CHECKING:  # it brings Ray Data and pandas along, which tasks need not load
    from curation.catalog.build import Catalog

log = logging.getLogger("curation")

VERSION = 2  # raise when the same samples would get other scores
COUNTED = 500  # shards whose labels are counted in one task
MAX_BYTES = 8 << 30  # of tiles, or of probabilities, that a task may hold
PER_PROBABILITY = 32  # bytes at the peak: float32, float64 and their sums
ALL = "labelled.parquet"
LOOKS = ("brightness", "texture")
COMBINED = ("experts", "eps", "terms", "combine")  # settings that no single expert's training depends on
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)  # of each score, in `score.json`

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        *(pa.field(score + kind, pa.float32()) for score in SCORES for kind in ("", "_rank", "_class_rank")),
    ]
)  # null where there is no label


def build_scores(
    config: Config, roots: Sequence[Root], catalog: Catalog, resources: Resources, tables: Sequence[Table] = ()
) -> Folder:
    """``scores/<id>``, complete.

    Args:
        config: of the run; ``config.score`` says how.
        roots: of the archive, for its pixels.
        catalog: complete.
        resources: what the cluster has; no result depends on how much.
        tables: beside the archive, that ``score.label`` may name a column of.

    Raises:
        RequestError: there are fewer than two classes, or more labelled samples than a task can hold.
    """
    settings = config.score
    source = Labels.of(settings.label, tables)
    weights = check_network(settings, len(catalog.artefact.bands))
    asked = to_dict(settings) | {"checkpoints": weights}
    trained = {name: value for name, value in asked.items() if name not in COMBINED}
    of = [VERSION, catalog.store.catalog_id, catalog.artefact.sha256, catalog.digest]
    of += [source.table and source.table.identity, config.seed]
    folder, experts = (
        catalog.store.workspace.child(f"{kind}/{_digest([*of, settled])}")
        for kind, settled in (("scores", asked), ("experts", trained))
    )
    if folder.exists("score.json"):
        return folder
    tiles = build_tiles(config, roots, catalog, resources, settings.size)
    labelled = Labelled(catalog.store, catalog.shards, source, tiles)
    counts: Counter[str] = Counter()
    for part in ray.get([count_labels.remote(labelled, list(part)) for part in chunks(catalog.shards, COUNTED)]):
        counts += part
    _check(settings, counts, tiles.nbytes)
    classes = tuple(sorted(counts))
    labelled = Labelled(catalog.store, catalog.shards, source, tiles, classes, counts.total())
    log.info(
        "scores: %d experts on %d labelled samples of %d classes",
        settings.experts,
        labelled.rows,
        len(labelled.classes),
    )
    task = train_expert.options(num_gpus=int(resources.device == "cuda"))
    numbers = range(settings.experts)
    ray.get([task.remote(labelled, settings, config.seed, number, experts, resources.device) for number in numbers])
    figures = ray.get(_combine.remote(labelled, settings, experts, folder))
    parts = parts_of(catalog.shards, catalog.counts["kept"])
    ray.get([_publish_part.remote(labelled, members, folder, number) for number, members in enumerate(parts)])
    about = {
        "settings": asked,
        "experts": experts.base.rpartition("/")[2],
        "seed": config.seed,
        "rows": catalog.counts["kept"],
        "labelled": labelled.rows,
        "classes": dict(sorted(counts.items())),
        **figures,
        "profile": numeric_profile(resources.device, "float32"),
    }
    folder.publish("score.json", json.dumps(about, indent=1).encode())
    return folder


def _digest(made_of: list[Any]) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _check(settings: ScoreConfig, counts: Mapping[str, int], nbytes: int) -> None:
    """See that there is something to learn, and that a task can hold it."""
    if len(counts) < 2:
        found = (
            f"all {sum(counts.values())} labelled samples are {next(iter(counts))!r}" if counts else "no sample has one"
        )
        raise RequestError(
            f"scores need labels of two classes or more, but by score.label={settings.label} {found}: give labels in "
            "sidecars, or in a table (archive.tables, score.label=COLUMN), or take a strategy that needs none"
        )
    rows = sum(counts.values())
    for what, size in (("tiles", rows * nbytes), ("probabilities", PER_PROBABILITY * rows * len(counts))):
        if size > MAX_BYTES:
            raise RequestError(
                f"an expert holds its labelled samples' {what} in memory: {size / 2**30:.1f} GiB of {rows} samples, "
                f"and {MAX_BYTES >> 30} GiB are the limit; "
                + ("lower score.size, or " if what == "tiles" else "")
                + "label fewer samples (score.label=COLUMN of a table of archive.tables that names only some)"
            )


@ray.remote(num_cpus=1)
def count_labels(labelled: Labelled, shards: Sequence[str]) -> Counter[str]:
    """How many samples of some shards have each label."""
    counts: Counter[str] = Counter()
    for shard in shards:
        for entry in labelled.source.read(labelled.store, shard).drop_null().value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    return counts


@ray.remote(num_cpus=1)
def _combine(labelled: Labelled, settings: ScoreConfig, experts: Folder, folder: Folder) -> dict[str, Any]:
    """Write the table of all labelled samples; what ``score.json`` says of it.

    It holds one row of 21 numbers a labelled sample, and the probabilities of two experts at a time.
    """
    codes = np.concatenate([own[own >= 0] for own in map(labelled.codes, labelled.shards)])
    values: dict[str, NDArray[Any]] = {
        name: np.zeros(len(codes)) for name in ("separability", "integrity", *DYNAMICS, *LOOKS)
    }
    accuracy = []

    def probabilities() -> Iterator[NDArray[np.float32]]:
        for expert in range(settings.experts):
            found = safetensors.numpy.load(experts.read(file_of(expert)))
            found["separability"] = separability(found["own_distance"], found["other_distance"], settings.eps)
            for name, total in values.items():
                total += found[name] / settings.experts
            accuracy.append(float((found["probabilities"].argmax(axis=1) == codes).mean()))
            yield found["probabilities"]

    agreed = agreement(probabilities())
    looks = {name: values.pop(name) for name in LOOKS}
    values["agreement"] = agreed
    values["sim"] = sim({name: values[name] for name in settings.terms}, settings.combine)
    columns: dict[str, Any] = {"sample_id": pa.concat_arrays([_ids(labelled, shard) for shard in labelled.shards])}
    for name in SCORES:
        columns[name] = values[name].astype(np.float32)
        columns[f"{name}_rank"] = ranks(columns[name]).astype(np.float32)
        columns[f"{name}_class_rank"] = ranks(columns[name], codes).astype(np.float32)
    folder.publish(ALL, parquet_bytes(pa.table(columns)))
    return {
        "accuracy": accuracy,  # of each expert on the samples that it was trained on
        "quantiles": {name: np.quantile(values[name], QUANTILES).tolist() for name in SCORES},
        "correlation": {
            f"{one}, {other}": correlation(values[one], values[other]) for one, other in combinations(SCORES, 2)
        },
        # an embedding may be long because its tile is bright or rough, and not because it is sound
        "integrity_correlation": {name: correlation(values["integrity"], looks[name]) for name in LOOKS},
    }


def _ids(labelled: Labelled, shard: str) -> pa.Array:
    """The ids of a shard's labelled rows."""
    column = labelled.store.read(shard, ["sample_id"])["sample_id"].combine_chunks()
    return column.filter(pa.array(labelled.codes(shard) >= 0))


@ray.remote(num_cpus=1)
def _publish_part(labelled: Labelled, shards: Sequence[str], folder: Folder, number: int) -> None:
    """All rows of some shards, with nulls where there is no label; a part that is there stays as it is."""
    path = f"part-{number:05}.parquet"
    if folder.exists(path):
        return
    scored = pq.read_table(pa.BufferReader(folder.read(ALL)))
    none = SCHEMA.empty_table().select(SCHEMA.names[:3])
    rows = pa.concat_tables([none, *(labelled.store.read(shard, SCHEMA.names[:3]) for shard in shards)])
    at = pc.index_in(rows["sample_id"], value_set=scored["sample_id"])
    columns = [scored[name].take(at) for name in SCHEMA.names[3:]]
    folder.publish(path, parquet_bytes(pa.table([*rows.columns, *columns], names=SCHEMA.names).cast(SCHEMA)))
