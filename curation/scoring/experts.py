"""Experts: models trained on the labelled tiles, each a Ray task that leaves one file.

Each is trained on the very samples that it scores, as published; there is no cross-fitting.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import safetensors.numpy
import torch
from numpy.typing import NDArray

from curation.catalog.labels import Labels
from curation.catalog.store import CatalogStore
from curation.catalog.tiles import Tiles
from curation.encoders.base import start_torch
from curation.encoders.timm import create, load
from curation.errors import RequestError
from curation.scoring.network import Small, train_classifier
from curation.scoring.settings import ScoreConfig
from curation.scoring.sim import Codes, Dynamics, brightness, integrity, softmax, texture, to_centres
from curation.storage import Folder

READ = 8192  # rows of a shard read at once


@dataclass(frozen=True)
class Labelled:
    """Where the labelled tiles are; what an expert is sent.

    Attributes:
        shards: sorted; the order of the rows is theirs.
        source: of the labels.
        tiles: of the samples; ``None`` where nobody loads them.
        classes: their names, sorted.
        rows: labelled samples in all.
    """

    store: CatalogStore
    shards: tuple[str, ...]
    source: Labels
    tiles: Tiles | None = None
    classes: tuple[str, ...] = ()
    rows: int = 0

    def codes(self, shard: str) -> Codes:
        """The class of each row of a shard, -1 where it has no label."""
        found = pc.index_in(self.source.read(self.store, shard), value_set=pa.array(self.classes, pa.string()))
        codes: Codes = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes

    def load(self) -> tuple[NDArray[np.uint8], Codes]:
        """All labelled tiles and their classes."""
        assert self.tiles
        tiles = np.empty((self.rows, self.tiles.bands, self.tiles.size, self.tiles.size), np.uint8)
        codes, at = np.empty(self.rows, np.int64), 0
        for shard in self.shards:
            own = self.codes(shard)
            for start in range(0, len(own), READ):
                part = own[start : start + READ]
                count = int((part >= 0).sum())
                if count:
                    tiles[at : at + count] = self.tiles.read(shard, slice(start, start + READ))[part >= 0]
                    codes[at : at + count] = part[part >= 0]
                at += count
        return tiles, codes


def file_of(expert: int) -> str:
    """Where an expert's arrays lie, below the folder of the experts."""
    return f"{expert:02}.safetensors"


@ray.remote(num_cpus=1)
def train_expert(
    labelled: Labelled, settings: ScoreConfig, seed: int, expert: int, folder: Folder, device: str
) -> None:
    """Train one expert and publish what it makes of every labelled sample, unless that is there."""
    if folder.exists(file_of(expert)):
        return
    start_torch(device, 1)
    tiles, codes = labelled.load()
    found = expert_arrays(tiles, codes, len(labelled.classes), settings, seed, expert, device)
    folder.publish(file_of(expert), safetensors.numpy.save(found))


def expert_arrays(
    tiles: NDArray[np.uint8],
    codes: Codes,
    classes: int,
    settings: ScoreConfig,
    seed: int,
    expert: int,
    device: str = "cpu",
) -> dict[str, NDArray[np.float32]]:
    """What one expert says of the samples that it is trained on: float32, each ``(n,)``, and ``probabilities``."""
    dynamics = Dynamics(codes, settings.epochs, settings.early)
    network = train_classifier(
        tiles,
        codes,
        classes,
        steps=-(-settings.epochs * len(tiles) // settings.batch),
        seed=int(np.random.SeedSequence([seed, expert]).generate_state(1)[0]),
        batch=settings.batch,
        rate=settings.rate,
        decay=settings.decay,
        device=device,
        body=body_of(settings, expert),
        watch=dynamics,
    )
    features = network.features(tiles)
    own, other = to_centres(features, codes, classes)
    found = {
        "own_distance": own,
        "other_distance": other,
        "integrity": integrity(features),
        "probabilities": softmax(network.classify(features)),
        "el2n": dynamics.el2n,
        "forgetting": dynamics.forgetting,
        "aum": dynamics.aum,
        "brightness": brightness(tiles),
        "texture": texture(tiles),
    }
    return {name: np.ascontiguousarray(values, np.float32) for name, values in found.items()}


def body_of(settings: ScoreConfig, expert: int) -> Callable[[int], Any]:
    """Makes an expert's network without its classifier, out of the number of bands."""
    if settings.network == "small":
        return Small

    def make(bands: int) -> Any:
        if settings.checkpoints:
            checkpoint = settings.checkpoints[expert % len(settings.checkpoints)]
            model = given(settings, checkpoint, bands)[0]
        else:
            model = create(settings.network, bands, settings.size)
        model.eval()
        with torch.inference_mode():
            model.dim = model(torch.zeros(1, bands, settings.size, settings.size)).shape[1]
        return model

    return make


def given(settings: ScoreConfig, checkpoint: str, bands: int) -> tuple[Any, NDArray[np.uint8]]:
    """A model that somebody has trained, and the hash of its weights.

    Raises:
        RequestError: it does not load.
    """
    asked = {"architecture": settings.network, "checkpoint": checkpoint, "size": settings.size}
    try:
        model, weights = load(asked, bands)
    except RequestError as error:
        text = str(error).replace("encoder.checkpoint", "score.checkpoints")
        raise RequestError(text.replace("encoder.architecture", "score.network")) from error
    return model, np.asarray(weights)


def check_network(settings: ScoreConfig, bands: int) -> list[str]:
    """See that the experts can be made; the hashes of the weights that they begin with.

    Raises:
        RequestError: they cannot.
    """
    import timm

    if settings.network == "small":
        return []
    if not timm.is_model(settings.network):
        raise RequestError(f"score.network={settings.network} is neither small nor one that timm knows")
    hashes = [given(settings, checkpoint, bands)[1].tobytes().hex() for checkpoint in settings.checkpoints or []]
    try:
        with torch.random.fork_rng():
            body_of(settings, 0)(bands)
    except Exception as error:  # noqa: BLE001 - architectures raise whatever they like on a size that they do not take
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"score.network={settings.network} takes no {bands} x {settings.size} x {settings.size} tile: {reason}; "
            "set score.size"
        ) from error
    return hashes
