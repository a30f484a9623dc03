"""The small network learns, in the same way every time, and tells what it saw on the way."""

import numpy as np
import pytest
import torch

from curation.scoring.network import train_classifier

SEED = 3


def stripes(n: int, bands: int = 4, size: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a texture of one of three scales: turning and mirroring leave the class alone."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, n)
    coarse = [rng.integers(0, 2, (bands, size // 2**c, size // 2**c)).repeat(2**c, 1).repeat(2**c, 2) for c in codes]
    tiles = np.stack(coarse) * 120 + rng.integers(0, 100, (n, bands, size, size))
    return tiles.astype(np.uint8), codes


def test_it_learns_and_gives_the_same_for_the_same_seed():
    tiles, codes = stripes(160)
    state = torch.random.get_rng_state()
    net = train_classifier(tiles, codes, 3, steps=40, batch=32, seed=SEED)
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's draws are moved
    unseen, truth = stripes(100, seed=1)
    assert (net.logits(unseen).argmax(1) == truth).mean() > 0.8
    again = train_classifier(tiles, codes, 3, steps=40, batch=32, seed=SEED)
    assert np.array_equal(net.logits(unseen), again.logits(unseen))
    other = train_classifier(tiles, codes, 3, steps=40, batch=32, seed=SEED + 1)
    assert not np.array_equal(net.logits(unseen), other.logits(unseen))
    features = net.features(unseen)
    assert features.shape == (100, 128)
    assert np.allclose(net.classify(features), net.logits(unseen), atol=1e-5)


@pytest.mark.parametrize("n", [5, 20])
def test_every_row_is_watched_once_a_pass(n):
    tiles, codes = stripes(n)
    seen: dict[int, list[int]] = {}

    def watch(epoch, rows, logits):
        assert logits.shape == (len(rows), 3)
        seen.setdefault(epoch, []).extend(rows.tolist())

    train_classifier(tiles, codes, 3, steps=7, batch=8, seed=SEED, watch=watch)
    assert sum(map(len, seen.values())) == 7 * 8
    whole = [epoch for epoch in seen if (epoch + 1) * n <= 7 * 8]
    assert len(whole) == 7 * 8 // n
    assert all(sorted(seen[epoch]) == list(range(n)) for epoch in whole)


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="no tile"):
        train_classifier(np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, int), 2, steps=1, seed=0)
