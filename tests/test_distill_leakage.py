"""How near synthetic images come to real ones: what is found to be a copy and what is not, and what that tells."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from curation.archive.sample import Member, Sample, sample_id
from curation.catalog.tiles import Tiles
from curation.distillation import leakage
from curation.distillation.drawn import Candidate, Drawn, sift
from curation.distillation.leakage import (
    Baseline,
    Checker,
    Embed,
    Images,
    Limits,
    Membership,
    Stored,
    account,
    area,
    drawn,
    embed_rows,
    ssim,
)
from curation.encoders import build_encoder, fit_artefact
from curation.storage import Folder

SIDE, RGB = 32, ("red", "green", "blue")
RANGES = np.float32([[0, 255]] * 3)
CONV = {
    **{"name": "random_conv", "size": SIDE, "filters": 16, "patch": 6, "strides": [2, 1], "dim": 32, "seed": 0},
    **{"batch": 16, "threads": 1},
}


def scenes(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Pictures with structure of a scale and colour of their own, uint8 (count, 3, side, side)."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        noise = gaussian_filter(draw.normal(size=(3, side, side)), (0.6, *draw.uniform(0.7, 3, 2)), mode="wrap")
        scaled = noise / noise.std() * draw.uniform(20, 45) + draw.uniform(70, 180, (3, 1, 1))
        found.append(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
    return np.stack(found)


def names(count: int, what: str = "real") -> list[str]:
    return [sample_id("root0/a.tar", f"{what} {i}") for i in range(count)]


@pytest.fixture(scope="module")
def embed() -> Embed:
    """The catalog's usual encoder, small, fitted on such pictures."""
    tiles = [Sample("", 0, p, np.ones(p.shape[1:], bool), RGB, Member("", None, 0)) for p in scenes(64, 9)]
    artefact = fit_artefact(CONV, tiles, RGB, RANGES, 0)
    return Embed(build_encoder(CONV, artefact, RGB, "uint8", "cpu", 1), RGB, "uint8", RANGES)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return scenes(200)


@pytest.fixture(scope="module")
def checker(real: np.ndarray, embed: Embed) -> Checker:
    return Checker(Images.held(names(len(real)), real, embed), embed)


@pytest.fixture(scope="module")
def limits(checker: Checker) -> Limits:
    return Baseline.of(checker.among(np.arange(200))).limits(0.01)


def by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """SSIM place by place, as the paper has it: weighted means, variances and covariance under one Gaussian window."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for x, y in zip(one.astype(float), other.astype(float), strict=True):
        for row in range(x.shape[0] - 10):
            for column in range(x.shape[1] - 10):
                a, b = (band[row : row + 11, column : column + 11] for band in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                found.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(found))


def test_ssim_is_that_of_the_paper() -> None:
    one, other = scenes(2, 1, 18)[:, :2, :, :16]
    noisy = np.clip(one + np.random.default_rng(0).normal(0, 20, one.shape), 0, 255).astype(np.uint8)
    found = ssim(one, np.stack([one, noisy, other]))
    np.testing.assert_allclose(found, [1, by_hand(one, noisy), by_hand(one, other)], atol=1e-9)
    assert found[2] < 0.5 < found[1] < 1


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the same": lambda image: image,
    "mirrored": lambda image: image[:, :, ::-1],
    "turned by a quarter": lambda image: np.rot90(image, 1, (1, 2)),
    "brighter by 15": lambda image: np.clip(image.astype(int) + 15, 0, 255),
    "of less contrast": lambda image: np.rint(128 + 0.8 * (image.astype(float) - 128)),
}
HIDDEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # made of a real image, and yet not found
    "under strong noise": lambda image: np.clip(image + np.random.default_rng(2).normal(0, 60, image.shape), 0, 255),
    "enlarged from its middle": lambda image: np.kron(image[:, 8:24, 8:24], np.ones((1, 2, 2))),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_and_named(how: str, real: np.ndarray, checker: Checker, limits: Limits) -> None:
    places = np.arange(0, 200, 20)
    for place, seen in zip(
        places, checker.look(np.stack([COPIES[how](real[i]) for i in places]).astype(np.uint8)), strict=True
    ):
        assert limits.leaks(seen)
        assert names(200)[place] in (seen.nearest, seen.ssim_nearest)


@pytest.mark.parametrize("how", HIDDEN)
def test_what_the_measures_do_not_see(how: str, real: np.ndarray, checker: Checker, limits: Limits) -> None:
    changed = np.stack([HIDDEN[how](real[i]) for i in range(0, 200, 20)]).astype(np.uint8)
    assert sum(limits.leaks(seen) for seen in checker.look(changed)) <= 1


def test_new_pictures_leak_about_as_often_as_real_ones_do(checker: Checker) -> None:
    limits = Baseline.of(checker.among(np.arange(200))).limits(0.05)  # by either of two measures: at most one in ten
    assert sum(map(limits.leaks, checker.look(scenes(100, 5)))) <= 18


def test_the_limit_is_what_the_nearest_share_of_the_real_images_reach(checker: Checker) -> None:
    baseline = Baseline.of(checker.among(np.arange(200)))
    for quantile in (0.01, 0.05, 0.5):
        found = baseline.limits(quantile)
        assert np.mean(baseline.similarity >= found.similarity) == pytest.approx(quantile, abs=0.005)
        assert np.mean(baseline.ssim >= found.ssim) == pytest.approx(quantile, abs=0.005)
    assert baseline.limits(None) == Limits(None, None) and baseline.limits(None).as_dict() is None
    assert not Limits(None, None).leaks(leakage.Seen(1.0, "", 1.0, ""))
    assert not baseline.warnings(baseline.limits(0.01))


def test_an_archive_of_copies_is_warned_of(real: np.ndarray, embed: Embed) -> None:
    twice = Images.held(names(80), np.concatenate([real[:40], real[:40]]), embed)
    baseline = Baseline.of(Checker(twice).among(np.arange(80)))
    assert "near-copy among the others" in baseline.warnings(baseline.limits(0.01))[0]


def test_what_is_seen_does_not_depend_on_what_is_asked_at_once(
    real: np.ndarray, checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = scenes(20, 6)
    together = checker.look(images)
    assert [checker.look(image[None])[0] for image in images] == together
    monkeypatch.setattr(leakage, "BLOCK", 7)
    assert checker.look(images) == together
    ids = np.array(names(200))
    assert all(one.nearest != ids[i] != one.ssim_nearest for i, one in enumerate(checker.among(np.arange(200))))


def test_real_images_are_read_by_shard_a_few_tiles_at_a_time(
    tmp_path: Path, real: np.ndarray, checker: Checker
) -> None:
    assert checker.embed
    tiles, folder = Tiles(Folder(str(tmp_path)), 3, SIDE), Folder(str(tmp_path))
    shards = {"root0/a": real[:120], "root0/b": real[120:]}
    for shard, own in shards.items():
        folder.publish(tiles.path(shard), safetensors.numpy.save({"tiles": own}, metadata={"digest": "d"}))
    rows = [np.arange(0, 120, 3), np.arange(1, 80, 2)]
    vectors = [embed_rows(tiles, shard, own, checker.embed, 10) for shard, own in zip(shards, rows, strict=True)]
    place = np.concatenate([rows[0], 120 + rows[1]])
    np.testing.assert_array_equal(np.concatenate(vectors), checker.embed(real[place]).astype(np.float16))
    read = Stored(tiles, list(shards), np.repeat(np.int32([0, 1]), [40, 40]), np.concatenate(rows).astype(np.int32))
    ids = np.array(names(200), "S32")[place]
    stored = Checker(Images(ids, np.concatenate(vectors), read), checker.embed)
    held = Checker(Images(ids, np.concatenate(vectors), real[place].__getitem__), checker.embed)
    assert stored.look(scenes(5, 8)) == held.look(scenes(5, 8))


def test_real_and_synthetic_tiles_are_embedded_as_the_archives_samples_are() -> None:
    ranges, bands = np.float32([[0, 6000], [200, 4200]]), ("B04", "B08")
    config = {**CONV, "filters": 4, "dim": 8}
    pixels = (scenes(40, 3)[:, :2].astype(np.uint16) * 20).astype(np.uint16)
    samples = [Sample("", 0, p, np.ones(p.shape[1:], bool), bands, Member("", None, 0)) for p in pixels]
    artefact = fit_artefact(config, samples, bands, ranges, 0)
    encoder = build_encoder(config, artefact, bands, "uint16", "cpu", 1)
    low, high = ranges[:, 0, None, None], ranges[:, 1, None, None]
    tiles = np.rint(np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    own = encoder.encode(np.stack([encoder.prepare(sample) for sample in samples[:16]]))
    found = Embed(encoder, bands, "uint16", ranges)(tiles[:16])
    assert (own * found).sum(1).min() > 0.99


def test_the_surest_candidate_that_is_not_too_near_is_kept(real: np.ndarray, checker: Checker, limits: Limits) -> None:
    pixels = np.stack([scenes(1, 50)[0], real[3], real[4][:, ::-1], scenes(1, 51)[0]])
    looked: list[int] = []

    def give(number: int) -> np.ndarray:
        looked.append(number)
        return pixels[number]

    own = [Candidate(i, margin, 0.0) for i, margin in enumerate((1.0, 4.0, 3.0, 2.0))]
    found = sift(own, give, checker, limits)
    assert looked == [1, 2, 3] and [one.leaks for one in found] == [False, True, True, False]
    assert found[1].nearest == names(200)[3] and found[2].nearest == names(200)[4] and found[0].similarity is None
    told = Drawn("forest", 0, 0, 0, "id", "root0/a", 0, "key", found)
    assert told.chosen is found[3] and Drawn.from_dict(dataclasses.asdict(told)) == told
    pixels = np.stack([real[3], real[4]])
    leaking = sift(own[:2], give, checker, limits)
    assert Drawn("forest", 0, 0, 0, "id", "root0/a", 0, "key", leaking).chosen is None
    pixels = np.stack([real[3], real[4], scenes(1, 52)[0]])
    looked.clear()
    again = sift(
        [*leaking, Candidate(2, -1.0, 0.0)], give, checker, limits
    )  # drawn again: only the new one is looked at
    assert looked == [2] and Drawn("forest", 0, 0, 0, "id", "root0/a", 0, "key", again).chosen is again[2]


def test_a_hashed_sample_depends_on_its_members_and_the_seed_only() -> None:
    ids = np.array(names(300))
    some = set(ids[drawn(ids, 0, 50)])
    order = np.random.default_rng(0).permutation(300)
    assert set(ids[order][drawn(ids[order], 0, 50)]) == some and len(some) == 50
    assert some != set(ids[drawn(ids, 1, 50)])
    fewer = ids[:150]
    assert some & set(fewer) <= set(fewer[drawn(fewer, 0, 50)])


# membership


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=30), st.lists(st.integers(0, 8), min_size=2, max_size=30))
def test_the_area_is_that_of_scikit_learn_with_ties_too(members: list[int], others: list[int]) -> None:
    found = area(members, others)
    assert found
    truth = [1] * len(members) + [0] * len(others)
    assert found.auc == pytest.approx(roc_auc_score(truth, members + others))
    assert 0 <= found.low <= found.auc <= found.high <= 1


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    truth = 0.7602  # of normals one deviation apart: Phi(1 / sqrt(2))
    found = [area(draw.normal(1, 1, 60), draw.normal(0, 1, 80)) for _ in range(400)]
    assert 0.91 < np.mean([one is not None and one.low <= truth <= one.high for one in found]) < 0.98
    assert area([1.0], [0.0, 1.0]) is None


def test_copies_tell_members_and_new_pictures_do_not(real: np.ndarray, embed: Embed) -> None:
    prototypes, training, held_out = real[:20], real[20:110], real[110:]
    copies = np.clip(prototypes.astype(int) + 10, 0, 255).astype(np.uint8)
    for synthetic, telling in ((scenes(20, 70), False), (copies, True)):
        seer = Checker(Images.held(names(20, "synthetic"), synthetic, embed), embed)
        found = Membership.of(*(seer.look(images) for images in (training, held_out, prototypes)))
        assert found.training and found.prototypes
        for name in ("similarity", "ssim"):
            assert abs(found.training[name].auc - 0.5) < 0.15  # of the others nothing was learnt
            assert found.prototypes[name].telling is telling
            assert (found.prototypes[name].auc > 0.95) is telling


def test_the_account_does_not_grow_with_the_images(checker: Checker, limits: Limits) -> None:
    baseline = Baseline.of(checker.among(np.arange(100)))
    seen = checker.look(scenes(30, 5))
    told = account(seen, baseline, limits, Membership.of(seen[:10], seen[10:], []), 3, 1)
    for name, measure in told["measures"].items():
        assert sum(measure["synthetic"]) == 30 and sum(measure["real"]) == 100
        assert measure["limit"] == getattr(limits, name) and len(measure["edges"]) == 41
    assert told["membership"]["prototypes"] is None and told["membership"]["training"]["ssim"]["members"] == 10
