"""Radar's noise: averaged before entropy is taken; what it alone would report agrees with a simulation."""

import numpy as np
import pytest

from curation.scoring.entropy import entropy, information
from curation.scoring.speckle import equivalent_looks, multilook, speckle_entropy

VV = np.array([[-25, 5]], np.float32)


def speckle(looks: float, side: int, seed: int = 0, level: float = -10) -> np.ndarray:
    power = np.random.default_rng(seed).gamma(looks, 1 / looks, (1, side, side))
    return (10 * np.log10(power) + level).astype(np.float32)


def whole(side: int) -> np.ndarray:
    return np.ones((side, side), bool)


def test_the_mean_is_of_power_over_squares() -> None:
    decibels = 10 * np.log10(np.arange(1, 65, dtype=np.float32).reshape(1, 8, 8))
    made, mask = multilook(decibels, whole(8), 4)
    expected = [[np.arange(1, 65).reshape(8, 8)[r : r + 4, c : c + 4].mean() for c in (0, 4)] for r in (0, 4)]
    np.testing.assert_allclose(10 ** (made[0] / 10), expected, rtol=1e-5)
    assert mask.all()


def test_invalid_pixels_take_no_part_and_half_a_square_is_enough() -> None:
    decibels = np.full((1, 8, 9), -10, np.float32)
    mask = np.ones((8, 9), bool)
    mask[:2, :4], decibels[0, :2, :4] = False, np.nan
    mask[:3, 4:8] = False
    made, seen = multilook(decibels, mask, 4)
    assert made.shape == (1, 2, 2)
    np.testing.assert_array_equal(seen, [[True, False], [True, True]])
    np.testing.assert_allclose(made[0][seen], -10, atol=1e-4)


def test_a_picture_smaller_than_a_square_stays() -> None:
    decibels = speckle(1, 3)
    made, mask = multilook(decibels, whole(3), 4)
    np.testing.assert_array_equal(made, decibels)
    assert mask.shape == (3, 3)


@pytest.mark.parametrize(("looks", "side"), [(1, 64), (4.4, 64), (4.4, 256), (20, 64)])
def test_looks_and_entropy_of_pure_speckle_are_those_of_a_simulation(looks: float, side: int) -> None:
    tiles = [multilook(speckle(looks, side, seed), whole(side), 4) for seed in range(60)]
    found = float(equivalent_looks(tiles)[0])
    assert found == pytest.approx(looks * 16, rel=0.15)
    simulated = np.mean([entropy(made, mask, VV)[0] for made, mask in tiles])
    assert speckle_entropy(looks * 16, -25, 5, tiles[0][1].size) == pytest.approx(simulated, abs=0.03)
    assert speckle_entropy(found, -25, 5, tiles[0][1].size) == pytest.approx(simulated, abs=0.1)


def test_texture_and_edges_hardly_change_the_number_of_looks() -> None:
    tiles = []
    for seed in range(60):
        ground = speckle(4.4, 64, seed)
        ground[:, :, 30:] += 7  # another field
        if seed % 3:
            ground += np.random.default_rng(seed).normal(0, 4, ground.shape).astype(np.float32)  # a town
        tiles.append(multilook(ground, whole(64), 4))
    found = float(equivalent_looks(tiles)[0])
    assert 45 < found < 80  # of 70; where a third of the tiles is homogeneous
    assert speckle_entropy(found, -25, 5, 256) == pytest.approx(speckle_entropy(70.4, -25, 5, 256), abs=0.3)


def test_averaging_takes_speckle_out_of_the_entropy() -> None:
    sea = speckle(4.4, 64)
    raw = entropy(sea, whole(64), VV)[0]
    seen = information(sea, whole(64), VV, np.array([True]), 4)[0]
    assert seen < raw - 1.5
    assert seen == pytest.approx(speckle_entropy(4.4 * 16, -25, 5, 256), abs=0.25)
    np.testing.assert_array_equal(information(sea, whole(64), VV, np.array([False]), 4), [raw])


def test_optical_and_radar_bands_side_by_side() -> None:
    optical = np.random.default_rng(1).uniform(0, 0.6, (2, 64, 64)).astype(np.float32)
    both = np.concatenate([optical[:1], speckle(4.4, 64), optical[1:]])
    ranges = np.array([[0, 0.6], [-25, 5], [0, 0.6]], np.float32)
    bits = information(both, whole(64), ranges, np.array([False, True, False]), 4)
    np.testing.assert_array_equal(bits[[0, 2]], entropy(optical, whole(64), ranges[[0, 2]]))
    np.testing.assert_array_equal(bits[1:2], entropy(*multilook(speckle(4.4, 64), whole(64), 4), VV))


def test_a_tile_of_which_nothing_is_seen_says_nothing() -> None:
    mask = np.zeros((64, 64), bool)
    mask[0, :15] = True
    pixels = np.random.default_rng(0).uniform(0, 1, (2, 64, 64)).astype(np.float32)
    ranges = np.array([[0, 1]] * 2, np.float32)
    assert information(pixels, mask, ranges, np.zeros(2, bool), 4).tolist() == [0, 0]
    mask[0, 15] = True
    assert (information(pixels, mask, ranges, np.zeros(2, bool), 4) > 3).all()
