"""The real images that the distilled ones are held against: their vectors, and how near they come to each other.

``distilled/vectors/<id>/<shard>.safetensors`` has ``vectors`` float16 (n, dim) of the shard's tiles, by the catalog's
encoder at the size that is distilled; ``distilled/real/<id>/baseline.safetensors`` the nearness of a sample (Ray).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import safetensors.numpy
from numpy.typing import NDArray

from curation.catalog.artefact import encoder_config, load_artefact
from curation.catalog.store import CatalogStore
from curation.catalog.tiles import Tiles
from curation.config import Config
from curation.distillation.classes import Classes
from curation.distillation.latents import Derived, derive
from curation.distillation.leakage import BASELINE, Baseline, Checker, Embed, Images, Seen, Stored, drawn, embed_rows
from curation.distillation.models import id_of
from curation.distillation.pool import Pool
from curation.encoders.base import build_encoder
from curation.manifests.exchange import submit
from curation.runs import stage
from curation.storage import Folder

if TYPE_CHECKING:  # it brings Ray Data and pandas along, which tasks need not load
    from curation.catalog.build import Catalog

VERSION = 1  # raise when the same tiles would be found nearer or farther
LOOKED = 50  # images whose nearest are looked for in one task
FILE = "baseline.safetensors"


@dataclass(frozen=True)
class Real:
    """The real images.

    Attributes:
        images: reference to those that are learned from, as `leakage.Images`.
        held: reference to those held out, likewise.
        baseline: how near the former come to each other.
    """

    images: Any
    held: Any
    baseline: Baseline


def build_real(config: Config, catalog: Catalog, tiles: Tiles, classes: Classes, pool: Pool) -> Real:
    """Embed the tiles that are not yet, and measure the baseline unless that was done.

    Args:
        config: of the run.
        catalog: complete.
        tiles: of the archive, of the size that is distilled.
        classes: which images are learned from.
        pool: room for actors.
    """
    threads = int(config.encoder.get("threads", 1))
    made_of = [VERSION, threads, id_of(tiles.folder), catalog.artefact.sha256]
    workspace = catalog.store.workspace
    vectors = Derived(workspace.child(f"distilled/vectors/{_digest(made_of)}"))
    derive(vectors, tiles, catalog.shards, TileEmbedder, (vectors, tiles, config, pool), pool)
    arguments = catalog.store, sorted(catalog.shards), tiles, vectors, classes
    images, held = (submit(_images, *arguments, part) for part in (False, True))
    folder = workspace.child(f"distilled/real/{_digest([*made_of, id_of(classes.folder), config.seed])}")
    if not folder.exists(FILE):
        with stage("baseline"):
            count = ray.get(submit(_count, images))
            looks = [submit(_look, images, config.seed, start) for start in range(0, min(BASELINE, count), LOOKED)]
            found = Baseline.of([seen for part in ray.get(looks) for seen in part])
            folder.publish(FILE, safetensors.numpy.save(vars(found)))
    return Real(images, held, Baseline(**safetensors.numpy.load(folder.read(FILE))))


def embedder(config: Config, workspace: Folder, device: str) -> Embed:
    """Embeds tiles as the catalog embeds samples, on a device of this process."""
    artefact, threads = load_artefact(config, workspace), int(config.encoder.get("threads", 1))
    arguments = artefact.arrays, artefact.bands, artefact.dtype, device, threads
    return Embed.of(build_encoder(encoder_config(config), *arguments), artefact)


class TileEmbedder:
    """An actor with the encoder."""

    def __init__(self, vectors: Derived, tiles: Tiles, config: Config, pool: Pool) -> None:
        self.vectors, self.tiles = vectors, tiles
        pool.begin(vectors.folder)
        self.embed = embedder(config, Folder(str(config.workspace), config.runtime.storage, "workspace"), pool.device)

    def make(self, shard: str) -> None:
        """Publish the vectors of one shard's tiles."""
        _, count = self.tiles.place(shard)
        found = embed_rows(self.tiles, shard, np.arange(count), self.embed)
        self.vectors.publish(shard, {"vectors": found}, self.tiles)


def _digest(made_of: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


# tasks


def _images(
    store: CatalogStore, shards: list[str], tiles: Tiles, vectors: Derived, classes: Classes, held: bool
) -> Images:
    """Those that are learned from, or held out, in the order of the archive."""
    codes, out = classes.read()
    ids, found, numbers, rows, start = [], [], [], [], 0
    for number, shard in enumerate(shards):
        names = store.read(shard, ["sample_id"])["sample_id"].to_numpy()
        own = np.flatnonzero((codes >= 0)[start : start + len(names)] & (out[start : start + len(names)] == held))
        start += len(names)
        ids.append(names[own].astype("S32"))
        found.append(safetensors.numpy.load(vectors.folder.read(vectors.path(shard)))["vectors"][own])
        numbers.append(np.full(len(own), number, np.int32))
        rows.append(own.astype(np.int32))
    joined: list[NDArray[Any]] = [np.concatenate(parts) for parts in (ids, found, numbers, rows)]
    return Images(joined[0], joined[1], Stored(tiles, shards, joined[2], joined[3]))


def _count(images: Images) -> int:
    return len(images)


def _look(images: Images, seed: int, start: int) -> list[Seen]:
    """The nearest of a few of the baseline's images."""
    return Checker(images).among(drawn(images.ids, seed, BASELINE)[start : start + LOOKED])
