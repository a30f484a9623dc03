"""Pre-training without labels: it learns what textures have in common, the same for a seed; views stay ground."""

import numpy as np
import pytest
import torch

from curation.evaluation import pretraining
from curation.evaluation.pretraining import pretrain, probe, view
from curation.scoring.network import Network, Small
from tests.evaluation_recipes import gratings


def test_frozen_features_tell_textures_that_nobody_labelled() -> None:
    train, test = gratings(15, 1), gratings(25, 2)
    pool = gratings(100, 0).tiles
    found = pretrain(pool, seed=0, steps=60, batch=32)
    assert found.loss < np.log(2 * 32 - 1)
    assert found.spread > 0.5
    assert found.rank > 4
    scores = probe(found.network, (train.tiles, train.codes), (test.tiles, test.codes), 0)
    assert scores["linear"].macro > 0.6  # chance is 0.25
    assert scores["knn"].macro > 0.5


def test_equal_seeds_are_equal_and_others_are_not() -> None:
    tiles = gratings(10, 0).tiles
    before = torch.random.get_rng_state()
    one, same, other = (pretrain(tiles, seed=seed, steps=3, batch=8).network.features(tiles) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (torch.random.get_rng_state() == before).all()


def test_fewer_tiles_than_a_batch_make_as_many_steps() -> None:
    tiles = gratings(1, 0).tiles
    assert np.isfinite(pretrain(tiles, seed=0, steps=2, batch=16).loss)
    with pytest.raises(ValueError, match="at least two tiles"):
        pretrain(tiles[:1], seed=0, steps=2)


def test_a_view_of_the_whole_tile_is_one_of_its_eight_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "CROP", (1.0, 1.0))
    monkeypatch.setattr(pretraining, "ASPECT", 1.0)
    tile = torch.arange(2 * 36.0).reshape(1, 2, 6, 6)
    eight = [t.flip(f) for t in (tile, tile.transpose(-1, -2)) for f in ((), (-1,), (-2,), (-1, -2))]
    seen = set()
    for made in pretraining.cropped(tile.repeat(64, 1, 1, 1), 6, pretraining.CROP, np.random.default_rng(0)):
        distances = [float((made - way).abs().max()) for way in eight]
        assert min(distances) < 1e-3
        seen.add(int(np.argmin(distances)))
    assert seen == set(range(8))


def test_a_view_relights_each_band_by_a_gain_and_an_offset() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 8, 8))).float()
    made = pretraining.relit(x, np.random.default_rng(1))
    for one, other in zip(x.flatten(0, 1), made.flatten(0, 1), strict=True):
        (gain, offset), residual, *_ = np.polyfit(one.ravel(), other.ravel(), 1, full=True)
        assert gain > 0
        assert residual.sum() < 1e-8
        assert abs(offset) < 3
    gains = made.std((2, 3)) / x.std((2, 3))
    assert gains.std() > 0.05  # bands and tiles each have their own


def test_a_flat_tile_stays_flat() -> None:
    x = torch.ones(5, 2, 12, 12) * torch.arange(5.0)[:, None, None, None]
    made = view(x, np.random.default_rng(0))
    assert made.shape == (5, 2, 8, 8)
    assert float(made.std((2, 3)).max()) < 1e-5


def test_a_body_that_never_trained_is_probed_alike() -> None:
    tiles = gratings(10, 0)
    torch.manual_seed(0)
    network = Network(Small(2), Small(2).dim, 1, np.zeros(2, np.float32), np.ones(2, np.float32)).eval()
    labelled = tiles.tiles, tiles.codes
    assert probe(network, labelled, labelled, 0) == probe(network, labelled, labelled, 0)
