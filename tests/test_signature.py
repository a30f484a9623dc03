"""Signature and patch: the same for a tile and its copies, something else for other tiles."""

import numpy as np
import pytest

from curation.scoring.likeness import Patches, likeness
from curation.scoring.signature import PATCH_BYTES, patch_levels, signature_and_patch
from curation.selection.duplicates import RADIUS, THRESHOLD
from tests.duplicate_recipes import described, ground, recoded, relit, turned, window

ALIGNED = {
    "itself": lambda tile, scene: tile,
    "quarter turn": lambda tile, scene: turned(tile, 1),
    "mirrored": lambda tile, scene: turned(tile, 5),
    "recoded": lambda tile, scene: recoded(tile, 60),
    "brighter": lambda tile, scene: relit(tile, 1.1, 20),
    "dimmer": lambda tile, scene: relit(tile, 0.85, -5),
    "shifted": lambda tile, scene: window(scene, 3, -4),
    "far shifted": lambda tile, scene: window(scene, 5, 5),
    "all of it": lambda tile, scene: recoded(relit(turned(window(scene, -3, 2), 6), 0.9, 10), 75),
}


def compared(a: bytes, b: bytes) -> float:
    first, second = (Patches(np.frombuffer(p, np.uint8)[None]) for p in (a, b))
    return float(likeness(first, np.array([0]), second, np.array([0]), 0)[0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(("bands", "height", "width"), [(3, 150, 150), (1, 64, 64), (12, 64, 64), (2, 50, 131)])
def test_all_eight_symmetries_have_one_signature(dtype: str, bands: int, height: int, width: int) -> None:
    tile = ground(1, bands, 160)[:, :height, :width].astype(dtype)
    mask, limits = np.ones((height, width), bool), np.array([[10, 300]] * bands, np.float32)
    mask[: height // 3, : width // 4] = False
    plain = signature_and_patch(tile, mask, limits)[0]
    assert plain.dtype == np.float32
    assert plain.shape == (36,)
    for symmetry in range(1, 8):
        again = signature_and_patch(turned(tile, symmetry), turned(mask[None], symmetry)[0], limits)[0]
        np.testing.assert_allclose(again, plain, atol=1e-3)


@pytest.mark.parametrize("kind", ALIGNED)
def test_copies_lie_within_the_radius_and_above_the_threshold(kind: str) -> None:
    for seed in range(20):
        scene = ground(seed)
        one, other = described(window(scene)), described(ALIGNED[kind](window(scene), scene))
        assert np.linalg.norm(one[0] - other[0]) < RADIUS
        assert compared(one[1], other[1]) >= THRESHOLD
        assert compared(one[1], other[1]) == pytest.approx(compared(other[1], one[1]), abs=0.01)


def test_other_tiles_of_the_same_texture_are_far_below() -> None:
    patches = Patches(np.stack([np.frombuffer(described(window(ground(seed)))[1], np.uint8) for seed in range(60)]))
    i, j = np.triu_indices(60, 1)
    assert likeness(patches, i, patches, j, 0).max() < 0.7


def test_what_is_masked_is_not_seen() -> None:
    tile = window(ground(3)).astype(np.float32)
    mask = np.ones(tile.shape[1:], bool)
    mask[20:60, 10:40] = False
    spoilt = np.where(mask, tile, np.nan)
    limits = np.array([[0, 255]] * 3, np.float32)
    for one, other in zip(
        signature_and_patch(tile, mask, limits), signature_and_patch(spoilt, mask, limits), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_patch_holds_the_levels_of_the_bands_thirds() -> None:
    tile = np.stack([np.full((40, 40), 100 * i, np.uint16) for i in range(6)])
    _, made = signature_and_patch(tile, np.ones((40, 40), bool), np.array([[0, 1000]] * 6, np.float32))
    assert len(made) == PATCH_BYTES
    expected = np.array([50, 250, 450]) * 255 / 1000
    np.testing.assert_allclose(patch_levels(np.frombuffer(made, np.uint8)[None])[0], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 7), (3, 19, 400)])
def test_any_size_gives_finite_numbers(shape: tuple[int, int, int]) -> None:
    made, data = described(np.random.default_rng(0).integers(0, 255, shape, np.uint8))
    assert np.isfinite(made).all()
    assert len(data) == PATCH_BYTES
