"""What the labelled bank gives: centroids, how far they reach, and the names of scenes."""

import numpy as np
import pytest

from curation.clustering.references import EXPLAINED, _held_out, fit_references, name_scenes


def bank(classes: int = 6, members: int = 30, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.standard_normal((classes, d)), members, axis=0) + 0.2 * rng.standard_normal(
        (classes * members, d)
    )
    labels = np.repeat([f"class {c}" for c in range(classes)], members)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16), labels


@pytest.mark.parametrize(("k", "expected"), [(20, 20), (1000, 90), (1, 1)])
def test_no_more_centroids_than_half_of_the_bank(k: int, expected: int) -> None:
    x, _ = bank()
    assert fit_references(x, k, seed=0, spherical=True).centroids.shape == (expected, 12)


def test_reach_is_that_of_samples_which_the_fit_did_not_see() -> None:
    x, _ = bank(members=60)
    half = np.arange(len(x)) % 2 == 0
    references = fit_references(x[half], 90, seed=0, spherical=False)
    distances = np.linalg.norm(x[~half][:, None].astype(float) - references.centroids, axis=2).min(1)
    own = np.linalg.norm(x[half][:, None].astype(float) - references.centroids, axis=2).min(1)
    unseen = np.percentile(distances, EXPLAINED)
    assert abs(references.reach - unseen) < 0.4 * abs(np.percentile(own, EXPLAINED) - unseen)


def test_held_out_distances_are_those_of_fits_without_the_sample() -> None:
    x, _ = bank(members=5)
    x = x.astype(np.float32)
    labels = np.arange(len(x)) // 5
    labels[-1] = 6  # alone
    centroids = np.stack([x[labels == c].mean(0) for c in range(7)])
    held_out = _held_out(x, centroids)
    for row in (0, 7, 23):
        others = (labels == labels[row]) & (np.arange(len(x)) != row)
        assert held_out[row] == pytest.approx(np.linalg.norm(x[row] - x[others].mean(0)), rel=1e-3)
    assert held_out[-1] == pytest.approx(np.linalg.norm(x[-1] - centroids[:6], axis=1).min(), rel=1e-3)


def test_scenes_are_named_by_the_majority_of_the_bank() -> None:
    x, labels = bank()
    labels[:10] = "another"
    centroids = np.stack([x[c * 30 : (c + 1) * 30].mean(0) for c in range(6)] + [-x[:30].mean(0)]).astype(np.float32)
    scenes, shares = name_scenes(x, labels, centroids)
    assert scenes == [f"class {c}" for c in range(6)] + [None]
    assert shares == [pytest.approx(20 / 30), *[1.0] * 5, None]


def test_a_tie_is_named_by_the_first_class() -> None:
    x = np.ones((4, 3), np.float16)
    assert name_scenes(x, np.array(["b", "a", "a", "b"]), np.ones((1, 3), np.float32)) == (["a"], [0.5])
