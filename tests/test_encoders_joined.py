"""Encoders side by side: each sees its bands as if it were alone, and the cosine is the weighted mean of theirs."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from curation.archive.sample import Member, Sample
from curation.catalog.artefact import catalog_id, portable_encoder
from curation.config import load_config
from curation.encoders import build_encoder, fit_artefact
from curation.errors import RequestError

BANDS = ("S2L2A.B02", "S2L2A.B03", "S2L2A.B04", "S1GRD.vv", "S1GRD.vh")
RANGES = np.array([[0, 0.6]] * 3 + [[-25, 5], [-32, -2]], np.float32)
OPTICAL = "{name:random_conv,bands:S2L2A,filters:8,batch:8,dim:16}"
RADAR = "{name:random_conv,bands:[S1GRD.vv,vh],filters:4,dim:8,seed:3}"
PARTS = f"{{s2:{OPTICAL},s1:{RADAR}}}"


def config_of(*more: str) -> dict:
    return load_config(["encoder=joined", f"encoder.parts={PARTS}", *more]).encoder


def samples(n: int) -> list[Sample]:
    made = []
    for i in range(n):
        rng = np.random.default_rng(i)
        grain = 2 ** (i % 4)
        rough = np.kron(rng.normal(0, 1, (5, 48 // grain, 48 // grain)), np.ones((grain, grain)))
        pixels = np.concatenate([0.3 + 0.1 * rough[:3], -12 + 3 * rough[3:]]).astype(np.float32)
        mask = np.ones((48, 48), bool)
        mask[: i % 3] = False
        made.append(Sample(f"k{i}", i, pixels, mask, BANDS, Member("k.tif", None, 0), radiometry="db"))
    return made


def alone(config: dict, part: str, at: list[int], tiles: list[Sample]) -> np.ndarray:
    own = [replace(one, pixels=one.pixels[at], bands=tuple(BANDS[i] for i in at)) for one in tiles]
    settings = config["parts"][part]
    artefact = fit_artefact(settings, own, own[0].bands, RANGES[at], settings["seed"])
    encoder = build_encoder(settings, artefact, own[0].bands, "float32", "cpu", 1)
    return np.concatenate([encoder.encode(np.stack([encoder.prepare(one)])) for one in own])


def joined(config: dict, tiles: list[Sample]):
    artefact = fit_artefact(config, tiles, BANDS, RANGES, 0)
    return build_encoder(config, artefact, BANDS, "float32", "cpu", 1), artefact


@pytest.mark.parametrize("weights", [{}, {"s1": 0.25}])
def test_the_cosine_is_the_weighted_mean_of_the_parts(weights: dict[str, float]) -> None:
    config = config_of(*([f"encoder.weights={{s1:{weights['s1']}}}"] if weights else []))
    tiles = samples(40)
    encoder, artefact = joined(config, tiles)
    assert {name.partition(".")[0] for name in artefact} == {"range", "s2", "s1"}
    prepared = np.stack([encoder.prepare(one) for one in tiles[:8]])
    vectors = encoder.encode(prepared)
    assert encoder.batch == 8 and vectors.shape == (8, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    optical, radar = (alone(config, "s2", [0, 1, 2], tiles)[:8], alone(config, "s1", [3, 4], tiles)[:8])
    w = weights.get("s1", 1.0)
    expected = (optical @ optical.T + w * radar @ radar.T) / (1 + w)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=2e-5)


def test_a_row_does_not_depend_on_its_neighbours_and_preparing_is_cheap_to_send() -> None:
    config = config_of()
    tiles = samples(20)
    encoder, _ = joined(config, tiles)
    prepare = pickle.loads(pickle.dumps(encoder.prepare))
    prepared = np.stack([prepare(one) for one in tiles[:8]])
    assert prepared.dtype == np.uint8 and len(pickle.dumps(encoder.prepare)) < 2000
    np.testing.assert_array_equal(encoder.encode(prepared)[5], encoder.encode(prepared[5:6])[0])


def test_parts_have_the_defaults_of_their_encoder_and_count_in_the_catalogs_id() -> None:
    config = load_config(["encoder=joined", f"encoder.parts={PARTS}"])
    assert config.encoder["parts"]["s2"]["patch"] == 6 and config.encoder["parts"]["s2"]["bands"] == "S2L2A"
    assert portable_encoder(config)["parts"]["s1"]["seed"] == 3
    other = load_config(["encoder=joined", f"encoder.parts={PARTS.replace('seed:3', 'seed:4')}"])
    assert catalog_id(config) != catalog_id(other)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "encoder=joined needs encoder.parts"),
        (["encoder.parts={a:{name:precomputed}}"], "choose one of open_clip, random_conv, timm"),
        (["encoder.parts={a:{name:random_conv,colour:red}}"], "unknown key 'colour' for random_conv"),
        (["encoder.parts={a:{name:random_conv,batch:0}}"], "encoder.parts.a.batch=0"),
        (["encoder.parts={a:{name:random_conv}}", "encoder.weights={b:1}"], "encoder.weights"),
        (["encoder.parts={a:{name:random_conv}}", "encoder.weights={a:-1}"], "encoder.weights"),
    ],
)
def test_wrong_parts_are_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        load_config(["encoder=joined", *overrides])


def test_a_band_that_is_not_there_is_named() -> None:
    config = load_config(["encoder=joined", "encoder.parts={a:{name:random_conv,bands:[S3.B01]}}"]).encoder
    with pytest.raises(RequestError, match=r"encoder\.parts\.a\.bands: no band 'S3\.B01'; the archive has S2L2A\.B02"):
        fit_artefact(config, samples(4), BANDS, RANGES, 0)
