"""One worker's training and one actor's drawing, without Ray: both end the same whatever happens beside or between."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray

from curation.catalog.tiles import Tiles, header_of
from curation.config import Config, load_config
from curation.distillation import generator
from curation.distillation.autoencoder import new_autoencoder
from curation.distillation.classes import Classes
from curation.distillation.classifier import new_classifier
from curation.distillation.denoiser import new_denoiser
from curation.distillation.fit import Task
from curation.distillation.generate import Spec, path_of, pixels_of, read_drawn
from curation.distillation.generator import Generator
from curation.distillation.latents import LatentDataset, LatentEncoder, Latents
from curation.distillation.leakage import Images, Limits
from curation.distillation.learner import Learner
from curation.distillation.models import account_of, check_profile, fetched, publish
from curation.distillation.pool import Pool
from curation.errors import RequestError
from curation.runtime import Resources
from curation.storage import Folder

SHARDS = {"root0/a": 11, "root0/b": 0, "root0/c": 9}  # samples of each
ROWS = sum(SHARDS.values())
ANY = Limits(None, None)
PROFILE = {"device": "cpu", "kind": "a machine"}
KEYS = (
    "distill.size=16",
    "distill.ipc=2",
    "distill.candidates=3",
    "distill.batch=4",
    "distill.checkpoint=2",
    "distill.autoencoder.factor=2",
    "distill.autoencoder.steps=5",
    "distill.autoencoder.batch=4",
    "distill.classifier.steps=5",
    "distill.classifier.batch=4",
    "distill.diffusion.steps=5",
    "distill.diffusion.batch=4",
    "distill.diffusion.consistency=0.1",
    "distill.guidance.steps=3",
    "distill.leakage.redraws=2",
)


class Parts:
    """Tiles, classes and latents of a small archive, and untrained models."""

    def __init__(self, folder: Path) -> None:
        self.folder = Folder(str(folder))
        self.config: Config = load_config([*KEYS, f"workspace={folder}"])
        self.settings = self.config.distill
        self.tiles = Tiles(self.folder.child("tiles/t"), 3, 16)
        draw = np.random.default_rng(0)
        self.pixels = draw.integers(0, 256, (ROWS, 3, 16, 16), np.uint8)
        start = 0
        for shard, count in SHARDS.items():
            data = safetensors.numpy.save({"tiles": self.pixels[start : start + count]}, {"digest": f"of {shard}"})
            self.tiles.folder.publish(self.tiles.path(shard), data)
            start += count
        codes = (np.arange(ROWS) % 2).astype(np.int32)
        codes[3] = -1
        held = np.arange(ROWS) >= ROWS - 4
        rows = safetensors.numpy.save({"codes": codes, "held": held})
        self.classes = Classes(self.folder.child("classes"), ("pond", "town"), (8, 7), (2, 2))
        self.classes.folder.publish("rows.safetensors", rows)
        self.pool = Pool.of(self.config.runtime, Resources(1, 0, "cpu"), 1, 0)
        channels, size = self.settings.autoencoder.channels, 8
        models = {
            "autoencoder": new_autoencoder(3, self.settings.autoencoder, 0),
            "classifier": new_classifier(channels, 2, 0.0, 0),
            "denoiser": new_denoiser(channels, size, 2, 0),
        }
        self.models = {name: self.folder.child(f"models/m/{name}") for name in models}
        for name, model in models.items():
            publish(self.models[name], model.save, {"kind": name})
        self.latents = Latents(self.folder.child("latents/l"), (channels, size, size))
        encoder = LatentEncoder(self.latents, self.tiles, self.models["autoencoder"], self.pool)
        for shard in SHARDS:
            encoder.make(shard)

    def task(self, kind: str, folder: str) -> Task:
        common = kind, self.settings, 3, self.folder.child(folder), self.classes, tuple(SHARDS), 5, False
        if kind == "autoencoder":
            return Task(*common, tiles=self.tiles)
        teacher = self.models["classifier"] if kind == "denoiser" else None
        return Task(*common, latents=self.latents, teacher=teacher)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    torch.set_num_threads(1)
    return Parts(tmp_path_factory.mktemp("parts"))


def weights_of(folder: Folder) -> dict[str, bytes]:
    return {file.path: folder.read(file.path) for file in folder.list(recursive=False) if "account" not in file.path}


# latents


def test_a_latent_does_not_depend_on_its_shard(parts: Parts) -> None:
    mean, std = LatentDataset(parts.latents, tuple(SHARDS)).read(np.arange(ROWS))
    assert mean.shape == (ROWS, 4, 8, 8)
    assert (std > 0).all()
    alone = Latents(parts.folder.child("latents/one"), parts.latents.shape)
    tiles = Tiles(parts.folder.child("tiles/one"), 3, 16)
    tiles.folder.publish("one.safetensors", safetensors.numpy.save({"tiles": parts.pixels[15:16]}, {"digest": "x"}))
    LatentEncoder(alone, tiles, parts.models["autoencoder"], parts.pool).make("one")
    assert np.array_equal(LatentDataset(alone, ["one"]).read([0])[0][0], mean[15])
    assert parts.latents.digest("root0/c") == "of root0/c"
    assert parts.latents.digest("root0/none") is None


# training


class Broken(Exception):
    pass


@pytest.mark.parametrize("kind", ["autoencoder", "classifier", "denoiser"])
def test_a_training_that_was_broken_off_ends_with_the_same_bytes(parts: Parts, kind: str) -> None:
    whole, other = parts.task(kind, f"whole/{kind}"), parts.task(kind, f"other/{kind}")
    Learner(whole, "cpu", PROFILE).run()
    first = Learner(other, "cpu", PROFILE)
    fetch, asked = first.fetch, []

    def breaks(rows: NDArray[np.int64]) -> Any:
        asked.append(rows)
        if len(asked) == 5:
            raise Broken
        return fetch(rows)

    first.fetch = breaks
    with pytest.raises(Broken):
        first.run()
    assert account_of(other.folder) is None
    with pytest.raises(RequestError, match="another numeric profile"):
        Learner(other, "cpu", {"device": "cuda"})
    again = Learner(other, "cpu", PROFILE)
    assert again.course.done == 4
    again.run()
    assert weights_of(other.folder) == weights_of(whole.folder)
    accounts = [account_of(task.folder) or {} for task in (whole, other)]
    assert accounts[0]["loss"] == pytest.approx(accounts[1]["loss"])
    assert [account["steps"] for account in accounts] == [5, 5]
    assert not other.folder.exists("checkpoints")


def test_what_is_held_out_is_never_trained_on(parts: Parts) -> None:
    codes, held = parts.classes.read()
    for kind in ("autoencoder", "denoiser"):
        learner = Learner(parts.task(kind, f"unused/{kind}"), "cpu", PROFILE)
        seen = [learner.fetch(np.arange(15))[0]]
        assert len(seen[0]) == 15 == int(((codes >= 0) & ~held).sum())
        with pytest.raises(IndexError):
            learner.fetch(np.array([15]))


# drawing


def similar(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows = tiles.reshape(len(tiles), -1).astype(np.float32) - 100
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def drawing(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws for prototypes, in groups, into a folder; gives the files."""
    monkeypatch.setattr(generator, "embedder", lambda *arguments: similar)
    images = Images.held([f"{i:032x}" for i in range(ROWS)], parts.pixels, similar)  # type: ignore[arg-type]
    prototypes = [
        {"label": label, "number": number, "prototype": i, "cluster": 3 * number + i, "sample_id": f"{row:032x}"}
        | {"shard": "root0/a", "row": row, "key": f"key {row}", "members": 4, "margin": 0.5}
        for number, label in enumerate(["pond", "town"])
        for i, row in enumerate([number, number + 4, number + 8])
    ]

    def draw(name: str, *groups: list[int], limits: Limits = ANY, **more: Any) -> tuple[Any, ...]:
        folder = parts.folder.child(f"sets/{name}")
        settings = replace(parts.settings, **more)
        spec = Spec(
            parts.config, settings, folder, parts.latents, tuple(SHARDS), **parts.models, limits=limits, pool=parts.pool
        )
        actor = Generator(spec, images)
        for group in groups:
            assert actor.make([prototypes[i] for i in group]) == len(group)
        some = [prototypes[i] for group in groups for i in sorted(group)]
        return folder, {path_of(one): folder.read(path_of(one)) for one in prototypes if one in some}, some

    return draw


def test_an_image_does_not_depend_on_what_is_drawn_beside_it(drawing: Any) -> None:
    _, together, _ = drawing("together", [0, 1, 2, 3, 4, 5])
    _, apart, _ = drawing("apart", [4], [0, 5], [2, 1, 3])
    assert len(together) == 6
    assert apart == together


def test_fewer_candidates_are_the_first_ones(drawing: Any) -> None:
    folder, _, some = drawing("three", [1, 4])
    other, _, _ = drawing("one", [1, 4], candidates=1)
    for one in some:
        three, first = (safetensors.numpy.load(where.read(path_of(one)))["latents"] for where in (folder, other))
        assert len(three) == 3
        assert np.array_equal(first, three[:1])


def test_the_surest_is_kept_and_what_becomes_of_each_is_told(drawing: Any) -> None:
    folder, _, some = drawing("told", [0, 5])
    for one, drawn in zip(some, read_drawn(folder, some), strict=True):
        assert [candidate.number for candidate in drawn.candidates] == [0, 1, 2]
        chosen = drawn.chosen
        assert chosen is not None
        assert chosen.margin == max(candidate.margin for candidate in drawn.candidates)
        assert chosen.similarity is not None
        assert (drawn.label, drawn.sample_id) == (one["label"], one["sample_id"])
        pixels = pixels_of(folder, drawn)
        assert (pixels.shape, pixels.dtype) == ((3, 16, 16), np.uint8)
        assert chosen.similarity == pytest.approx(float((similar(pixels[None]) @ similar_all().T).max()), abs=1e-5)


def similar_all() -> NDArray[np.float32]:
    return similar(np.random.default_rng(0).integers(0, 256, (ROWS, 3, 16, 16), np.uint8))


def test_what_is_too_near_is_drawn_again_and_then_left_out(drawing: Any) -> None:
    folder, _, some = drawing("near", [0, 1, 2], limits=Limits(-1.0, -1.0))
    for drawn in read_drawn(folder, some):
        assert drawn.chosen is None
        assert [candidate.number for candidate in drawn.candidates] == [0, 1, 2, 3, 4]
        assert all(candidate.leaks for candidate in drawn.candidates)
    path = path_of(some[0])
    assert set(header_of(folder, path)[1]) == {"__metadata__", "latents"}


# folders of models


def test_a_remote_model_is_copied_once(parts: Parts) -> None:
    here = parts.models["classifier"]
    remote = Folder("memory://models/classifier")
    for file in here.list():
        remote.publish(file.path, here.read(file.path))
    copy = fetched(remote)
    assert (copy / "classifier.safetensors").read_bytes() == here.read("classifier.safetensors")
    assert fetched(remote) == copy
    assert fetched(here) == Path(here.base)


def test_files_of_two_profiles_do_not_mix_unless_they_may(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    check_profile(folder, PROFILE, False)
    check_profile(folder, PROFILE, False)
    with pytest.raises(RequestError, match="begun on another numeric profile"):
        check_profile(folder, {**PROFILE, "device": "cuda"}, False)
    check_profile(folder, {**PROFILE, "device": "cuda"}, True)
    assert json.loads(folder.read("profile.json")) == PROFILE
