"""The encoder without weights: what it computes, what it must not notice, and what it must."""

import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from curation.archive.sample import Member, Sample
from curation.encoders import build_encoder, fit_artefact
from curation.encoders import random_conv as module
from curation.errors import RequestError

CONFIG = {
    "name": "random_conv", "size": 48, "filters": 8, "patch": 6, "strides": [3, 2, 1, 1], "dim": 24, "seed": 0,
    "batch": 8, "threads": 1,
}  # fmt: skip
RGB = ("red", "green", "blue")
BYTE = np.tile(np.float32([0, 255]), (3, 1))


def sample(pixels: NDArray, mask: NDArray | None = None) -> Sample:
    bands = tuple(f"b{i}" for i in range(len(pixels)))
    mask = np.ones(pixels.shape[1:], bool) if mask is None else mask
    return Sample("key", 0, pixels, mask, bands, Member("key.png", None, 0))


def textured(n: int, size: int = 48, bands: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Noise of several grains and contrasts: (n, bands, size, size)."""
    rng = np.random.default_rng(seed)
    tiles = []
    for i in range(n):
        grain = 2 ** (i % 4)
        small = rng.normal(128, rng.uniform(5, 60), (bands, -(-size // grain), -(-size // grain)))
        tiles.append(np.kron(small, np.ones((grain, grain)))[:, :size, :size])
    return np.clip(tiles, 0, 255).astype(np.uint8)


def made(tiles: NDArray, ranges: NDArray = BYTE, config: dict = CONFIG, seed: int = 0, threads: int = 1):
    bands = tuple(f"b{i}" for i in range(tiles.shape[1]))
    artefact = fit_artefact(config, [sample(tile) for tile in tiles], bands, ranges, seed)
    return build_encoder(config, artefact, bands, str(tiles.dtype), "cpu", threads), artefact


def embed(encoder, tiles: NDArray) -> NDArray[np.float32]:
    prepared = np.stack([encoder.prepare(sample(tile)) for tile in tiles])
    step = encoder.batch
    return np.concatenate([encoder.encode(prepared[start : start + step]) for start in range(0, len(tiles), step)])


def naive_features(tile: NDArray, artefact: dict, config: dict) -> NDArray[np.float64]:
    """The formulas of the module's docstring, patch by patch, in float64."""
    x = tile.astype(np.float64) / 255
    levels = [x]
    while levels[-1].shape[-1] // 2 >= config["patch"] and len(levels) < len(config["strides"]):
        last = levels[-1]
        levels.append(last.reshape(len(x), last.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4)))
    features = []
    for i, (level, stride) in enumerate(zip(levels, config["strides"], strict=False)):
        k, size = config["patch"], level.shape[-1]
        while (size - k) % stride % 2:
            stride -= 1
        corners = range((size - k) % stride // 2, size - k + 1, stride)
        patches = np.stack([level[:, y : y + k, x : x + k].ravel() for y in corners for x in corners])
        patches -= patches.mean(axis=1, keepdims=True)
        patches /= np.sqrt(patches.var(axis=1, keepdims=True) + module.CONTRAST)
        whiten = artefact[f"components_{i}"].reshape(len(artefact[f"offset_{i}"]), -1).T
        answers = (patches @ whiten - artefact[f"offset_{i}"]) @ artefact[f"filters_{i}"]
        for side in (answers, -answers):
            beyond = np.maximum(side - module.THRESHOLD, 0).mean(axis=0)
            features.append(np.sqrt(beyond.reshape(-1, 8).mean(axis=1) + module.FLOOR))
    coarse = np.sort(levels[min(2, len(levels) - 1)].reshape(len(x), -1), axis=1)
    features.append(coarse[:, np.rint(module.QUANTILES * (coarse.shape[1] - 1)).astype(int)].ravel())
    return np.concatenate(features)


@pytest.fixture(scope="module", autouse=True)
def few_patches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PATCHES", 2000)
        yield


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    return textured(64)


@pytest.fixture(scope="module")
def fitted(tiles: NDArray[np.uint8]):
    return made(tiles)


def test_the_features_are_those_of_the_formulas(tiles, fitted):
    encoder, artefact = fitted
    for tile in tiles[:6]:
        raw = naive_features(tile, artefact, CONFIG) @ artefact["projection"] - artefact["centre"]
        np.testing.assert_allclose(embed(encoder, tile[None])[0], raw / np.linalg.norm(raw), atol=2e-4)


def test_whitened_patches_are_white(tiles):
    """With all components and no ridge to speak of, the covariance after whitening is the identity."""
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(4000, 1, 3, 3)).cumsum(axis=2) * 50 / 255
    flat = patches.reshape(len(patches), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.sqrt(flat.var(axis=1, keepdims=True) + module.CONTRAST)
    components, offset, filters = module._filters(patches, 5, rng)
    eight = np.concatenate([flat[:, view] for view in module._eight_views((1, 3, 3))])
    white = eight @ components.reshape(len(components), -1).T - offset
    variances = np.sort(np.linalg.eigvalsh(np.cov(white.T)))
    assert variances.max() < 1.05 and variances[1:].min() > 0.5  # one direction, the mean, is taken out
    np.testing.assert_allclose(np.linalg.norm(filters, axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("size", [48, 45, 37, 96])
def test_mirrored_and_rotated_tiles_have_the_same_vector(size):
    tiles = textured(24, size)
    encoder, _ = made(tiles, config={**CONFIG, "size": size})
    tile = tiles[3]
    views = [np.rot90(side, turn, (1, 2)) for side in (tile, tile[:, :, ::-1]) for turn in range(4)]
    vectors = embed(encoder, np.stack(views))
    assert np.abs(vectors - vectors[0]).max() < 1e-3
    assert np.abs(embed(encoder, tiles[4:5]) - vectors[0]).max() > 1e-2


def test_a_row_depends_on_nothing_but_its_tile(tiles, fitted):
    encoder, _ = fitted
    whole = embed(encoder, tiles)
    order = np.random.default_rng(1).permutation(len(tiles))
    assert np.array_equal(embed(encoder, tiles[order]), whole[order])
    assert np.array_equal(np.concatenate([embed(encoder, tiles[i : i + 3]) for i in range(0, len(tiles), 3)]), whole)


def test_the_bits_do_not_depend_on_the_number_of_threads(tiles, fitted):
    encoder, artefact = fitted
    bands = ("b0", "b1", "b2")
    two = build_encoder({**CONFIG, "batch": 32}, artefact, bands, "uint8", "cpu", 2)
    one = build_encoder({**CONFIG, "batch": 32}, artefact, bands, "uint8", "cpu", 1)
    assert np.array_equal(embed(two, tiles), embed(one, tiles))


def test_vectors_have_unit_length_and_survive_float16(tiles, fitted):
    encoder, _ = fitted
    vectors = embed(encoder, tiles)
    assert vectors.dtype == np.float32 and vectors.shape == (64, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float16).astype(np.float32), axis=1), 1, atol=1e-3)


def test_the_same_seed_gives_the_same_artefact_and_another_another(tiles, fitted):
    _, artefact = fitted
    _, again = made(tiles)
    _, other = made(tiles, seed=1)
    assert artefact.keys() == again.keys()
    assert all(np.array_equal(artefact[name], again[name]) for name in artefact)
    assert not np.array_equal(artefact["filters_0"], other["filters_0"])
    assert all(array.dtype in (np.float32, np.int32) for array in artefact.values())


def test_flat_tiles_differ_by_their_colour(fitted):
    encoder, _ = fitted
    colours = np.array([[0, 0, 0], [20, 60, 120], [200, 180, 120], [255, 255, 255]], np.uint8)
    flat = np.broadcast_to(colours[:, :, None, None], (4, 3, 48, 48))
    vectors = embed(encoder, flat)
    assert np.isfinite(vectors).all()
    cosine = vectors @ vectors.T
    assert cosine[np.triu_indices(4, 1)].max() < 0.999


def test_an_archive_of_flat_tiles_only_is_no_error():
    flat = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[:, None, None, None], (16, 3, 48, 48))
    encoder, artefact = made(flat)
    assert all(np.isfinite(array).all() for array in artefact.values())
    np.testing.assert_allclose(np.linalg.norm(embed(encoder, flat), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("dtype,bands", [("uint16", 13), ("int16", 1), ("float32", 2)])
def test_any_bands_and_any_dtype(dtype, bands):
    eight_bit = textured(24, bands=bands)
    low, high = {"uint16": (1000, 9000), "int16": (-2000, 2000), "float32": (-25.0, 0.0)}[dtype]
    tiles = (low + eight_bit / 255.0 * (high - low)).astype(dtype)
    ranges = np.tile(np.float32([low, high]), (bands, 1))
    encoder, _ = made(tiles, ranges)
    prepared = encoder.prepare(sample(tiles[0]))
    assert prepared.dtype == np.float32 and prepared.shape == (bands, 48, 48)
    assert prepared.min() >= -1e-6 and prepared.max() <= 1 + 1e-6
    reference, _ = made(eight_bit, np.tile(np.float32([0, 255]), (bands, 1)))
    assert (embed(encoder, tiles) * embed(reference, eight_bit)).sum(axis=1).min() > 0.95


def test_values_outside_the_fixed_range_count_as_its_ends(fitted):
    encoder, _ = made(textured(24).astype(np.float32), BYTE)
    tile = textured(1).astype(np.float32)
    beyond = np.where(tile > 200, 5000, tile).astype(np.float32)
    ends = np.where(tile > 200, 255, tile).astype(np.float32)
    assert np.array_equal(embed(encoder, beyond), embed(encoder, ends))


def test_tiles_are_resized_to_the_smaller_of_the_config_and_the_archive():
    encoder, artefact = made(textured(16, size=40))
    assert artefact["size"].tolist() == [40]
    assert encoder.prepare(sample(textured(1, size=100)[0])).shape == (3, 40, 40)
    assert encoder.prepare(sample(textured(1, size=17)[0])).shape == (3, 40, 40)
    encoder, artefact = made(textured(16, size=90))
    assert artefact["size"].tolist() == [48]
    half = np.kron(textured(1, size=48)[0], np.ones((2, 2), np.uint8))
    np.testing.assert_allclose(encoder.prepare(sample(half)).mean(), half.mean(), atol=0.5)


def test_invalid_pixels_take_the_mean_of_the_valid_ones(fitted):
    encoder, _ = fitted
    tile = textured(1)[0]
    mask = np.ones((48, 48), bool)
    mask[:10] = False
    broken = tile.copy()
    broken[:, :10] = 255
    mended = tile.copy()
    mended[:, :10] = np.rint(tile[:, 10:].mean(axis=(1, 2)))[:, None, None]
    assert np.array_equal(encoder.prepare(sample(broken, mask)), mended)


def test_textures_of_one_histogram_are_told_apart():
    """Grain decides the class; shuffling pixels would change nothing but the texture."""
    rng = np.random.default_rng(0)
    tiles, labels = [], []
    for i in range(90):
        grain = (1, 3, 8)[i % 3]
        small = rng.permuted(np.linspace(40, 215, (48 // grain) ** 2)).reshape(48 // grain, 48 // grain)
        tiles.append(np.kron(small, np.ones((grain, grain)))[None].repeat(3, 0))
        labels.append(i % 3)
    tiles, labels = np.array(tiles).astype(np.uint8), np.array(labels)
    encoder, _ = made(tiles)
    cosine = (vectors := embed(encoder, tiles)) @ vectors.T
    np.fill_diagonal(cosine, -1)
    assert (labels[cosine.argmax(axis=1)] == labels).mean() > 0.95


def test_the_preparation_is_small_enough_to_send_around(fitted):
    encoder, _ = fitted
    tile = textured(1)[0]
    sent = pickle.dumps(encoder.prepare)
    assert len(sent) < 2000
    assert np.array_equal(pickle.loads(sent)(sample(tile)), encoder.prepare(sample(tile)))


def test_what_cannot_be_fitted_is_refused_in_one_line(tiles):
    for config, samples, word in (
        (CONFIG, tiles[:1], "at least 2"),
        ({**CONFIG, "patch": 60}, tiles, "encoder.patch=60"),
        ({**CONFIG, "name": "resnet"}, tiles, "encoder.name"),
    ):
        with pytest.raises(RequestError, match=word) as error:
            made(samples, config=config)
        assert "\n" not in str(error.value)
    with pytest.raises(RequestError, match=r"archive\.range"):
        made(tiles, BYTE[:, ::-1])


def test_encoders_are_imported_without_ray_or_torch():
    code = "import sys, curation.encoders; sys.exit(bool({'ray', 'torch', 'timm', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
