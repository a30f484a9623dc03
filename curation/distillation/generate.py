"""Draws the images: candidates of every prototype in a pool of actors, the best of them that is not too near (Ray).

An image depends on (seed, class, prototype, candidate) alone: a forward of the generator always has ``distill.batch``
rows, candidates of several prototypes side by side. What was drawn for a prototype is one file,
``candidates/<class>-<prototype>.safetensors``, complete or absent: ``latents`` float32 of every candidate, the chosen
one's ``pixels`` uint8 (bands, s, s), and in its header what became of each. A run that was killed goes on from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import safetensors.numpy
from numpy.typing import NDArray

from curation.catalog.store import CatalogStore, parquet_bytes
from curation.catalog.tiles import header_of
from curation.config import Config
from curation.distillation.classes import Classes
from curation.distillation.drawn import Drawn
from curation.distillation.latents import LatentDataset, Latents
from curation.distillation.leakage import Limits
from curation.distillation.pool import Pool
from curation.distillation.prototypes import class_prototypes
from curation.distillation.settings import DistillConfig, PrototypesConfig
from curation.manifests.exchange import submit
from curation.runs import stage
from curation.storage import Folder

PROTOTYPES = "prototypes.parquet"
CANDIDATES = "candidates"

SCHEMA = pa.schema(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),  # of the class, in the order of their names
        pa.field("prototype", pa.int32(), nullable=False),  # from 0 within the class
        pa.field("cluster", pa.int32(), nullable=False),  # from 0 over all classes
        pa.field("sample_id", pa.string(), nullable=False),  # of the real image
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # in the shard's catalog file
        pa.field("key", pa.string(), nullable=False),
        pa.field("members", pa.int64(), nullable=False),  # images of its part of the class
        pa.field("margin", pa.float64(), nullable=False),
    ]
)

Pixels = NDArray[np.uint8]


# prototypes


def build_prototypes(
    folder: Folder,
    latents: Latents,
    store: CatalogStore,
    shards: Sequence[str],
    classes: Classes,
    ipc: int,
    settings: PrototypesConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """The real images that stand for each class, a Ray task a class; rows of `SCHEMA`, in the order of ``cluster``.

    Args:
        folder: ``distilled/<id>``.
        latents: of the archive.
        store: its catalog.
        shards: all of it.
        classes: of these those that are learned from.
        ipc: how many of each.
        settings: how they are found.
        seed: of k-means.
    """
    if not folder.exists(PROTOTYPES):
        with stage("prototypes", len(classes.names), "classes") as done:
            arguments = latents, tuple(shards), classes, settings, seed
            tasks = [submit(_of_class, code, count, *arguments) for code, count in enumerate(classes.images(ipc))]
            for task in tasks:
                ray.wait([task])
                done(1)
            ray.get(submit(_publish_prototypes, folder, latents, store, tuple(shards), classes.names, *tasks))
    return list(pq.read_table(pa.BufferReader(folder.read(PROTOTYPES))).to_pylist())


def _of_class(
    code: int,
    count: int,
    latents: Latents,
    shards: Sequence[str],
    classes: Classes,
    settings: PrototypesConfig,
    seed: int,
) -> list[tuple[int, int, int, float]]:
    """Of a class: its number, and of each prototype row, members and margin."""
    rows = classes.members().of(code)
    mean, _ = LatentDataset(latents, shards).read(rows)
    found = class_prototypes(mean, count, settings, seed)
    return [
        (code, int(rows[row]), int(members), float(margin))
        for row, members, margin in zip(found.rows, found.members, found.margin, strict=True)
    ]


def _publish_prototypes(
    folder: Folder,
    latents: Latents,
    store: CatalogStore,
    shards: Sequence[str],
    names: Sequence[str],
    *found: list[tuple[int, int, int, float]],
) -> None:
    dataset = LatentDataset(latents, shards).mean
    flat = [(number, *one) for own in found for number, one in enumerate(own)]
    numbers, places = dataset.locate(np.array([row for _, _, row, _, _ in flat], np.int64))
    known = {int(n): store.read(dataset.shards[n], ["sample_id", "key"]).to_pydict() for n in np.unique(numbers)}
    rows = []
    for cluster, ((prototype, code, _, members, margin), shard, place) in enumerate(
        zip(flat, numbers.tolist(), places.tolist(), strict=True)
    ):
        told = {"label": names[code], "number": code, "prototype": prototype, "cluster": cluster}
        told |= {"sample_id": known[shard]["sample_id"][place], "key": known[shard]["key"][place]}
        rows.append({**told, "shard": dataset.shards[shard], "row": place, "members": members, "margin": margin})
    folder.publish(PROTOTYPES, parquet_bytes(pa.Table.from_pylist(rows, SCHEMA)))


# images


@dataclass(frozen=True)
class Spec:
    """What the images are drawn by.

    Attributes:
        config: of the run.
        settings: ``distill.*``.
        folder: ``distilled/<id>``.
        latents: of the archive.
        shards: all of it.
        autoencoder, classifier, denoiser: folders of the models.
        limits: from where on an image is too near a real one.
        pool: room for actors.
    """

    config: Config
    settings: DistillConfig
    folder: Folder
    latents: Latents
    shards: tuple[str, ...]
    autoencoder: Folder
    classifier: Folder
    denoiser: Folder
    limits: Limits
    pool: Pool


def generate(spec: Spec, prototypes: Sequence[dict[str, Any]], images: Any) -> None:
    """Draw for every prototype that has no file yet.

    Args:
        spec: how.
        prototypes: rows of `SCHEMA`.
        images: reference to the real images.

    Raises:
        RequestError: those that are there were drawn on another numeric profile.
    """
    there = {file.path for file in spec.folder.list(CANDIDATES)}
    wanting = [one for one in prototypes if path_of(one) not in there]
    size = together(len(wanting), spec.settings.candidates, spec.settings.batch, spec.pool.actors)
    groups = [wanting[start : start + size] for start in range(0, len(wanting), size)]
    with stage("generate", len(prototypes), "prototypes") as done:
        done(len(prototypes) - len(wanting))
        for count in spec.pool.work(_generator, (spec, images), groups):
            done(count)


def together(prototypes: int, candidates: int, batch: int, actors: int) -> int:
    """How many prototypes an actor draws for at once: such that whole batches are full, and no actor has nothing."""
    full = batch // math.gcd(batch, candidates)
    return max(1, min(full, math.ceil(prototypes / actors)))


def path_of(prototype: dict[str, Any]) -> str:
    """Where what was drawn for a prototype lies."""
    return f"{CANDIDATES}/{prototype['number']:05d}-{prototype['prototype']:05d}.safetensors"


def read_drawn(folder: Folder, prototypes: Iterable[dict[str, Any]]) -> list[Drawn]:
    """What was drawn for some prototypes, of each the header alone."""
    headers = [header_of(folder, path_of(one))[1]["__metadata__"] for one in prototypes]
    return [Drawn.from_dict(json.loads(header["drawn"])) for header in headers]


def pixels_of(folder: Folder, drawn: Drawn) -> Pixels:
    """The image that was chosen for a prototype, uint8 (bands, s, s)."""
    path = path_of({"number": drawn.number, "prototype": drawn.prototype})
    found: Pixels = safetensors.numpy.load(folder.read(path))["pixels"]
    return found


def _generator(spec: Spec, images: Any) -> Any:
    from curation.distillation.generator import Generator  # diffusers takes seconds to import, and few need it

    return Generator(spec, images)
