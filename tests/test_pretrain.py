"""Self-supervised training without Ray: methods, views, the trainer's state."""

import numpy as np
import pytest
import torch

from curation.errors import RequestError
from curation.training.augment import speckled, views
from curation.training.settings import DinoConfig, PretrainConfig, PruneConfig
from curation.training.trainer import Trainer, check_architecture

RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (48, 2, 32, 32), np.uint8)


def trainer(**keys: object) -> Trainer:
    """Small enough for a test."""
    settings = PretrainConfig(
        **{"method": "simsiam", "architecture": "test_resnet", "size": 32, "batch": 16, **keys}  # type: ignore[arg-type]
    )
    return Trainer(settings, 2, [128, 128], [64, 64], steps=6, seed=3)


def batch(step: int) -> torch.Tensor:
    return torch.from_numpy(TILES[16 * (step % 3) : 16 * (step % 3) + 16])


def weights_of(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.method.state_dict().items()}


@pytest.mark.parametrize("method", ["simsiam", "dino"])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_a_training_goes_on_bit_for_bit(method: str, architecture: str) -> None:
    keys = {"method": method, "architecture": architecture, "dino": DinoConfig(outputs=32, local=1)}
    whole, first, second = (trainer(**keys) for _ in range(3))
    for step in range(4):
        whole.step(batch(step))
    for step in range(2):
        first.step(batch(step))
    second.load_state_dict(first.state_dict())
    for step in range(2, 4):
        second.step(batch(step))
    assert second.done == 4
    assert second.rate == whole.rate
    for name, value in weights_of(whole).items():
        assert torch.equal(value, second.method.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_the_same_in_short(precision: str) -> None:
    """Weights stay float32; the scale of float16's loss is part of the state."""
    plain, mixed, again = trainer(), trainer(precision=precision), trainer(precision=precision)
    losses = [[made.step(batch(step)) for step in range(3)] for made in (plain, mixed)]
    np.testing.assert_allclose(losses[1], losses[0], atol=0.05)
    assert all(p.dtype == torch.float32 for p in mixed.method.parameters())
    again.load_state_dict(mixed.state_dict())
    assert again.step(batch(3)) == mixed.step(batch(3))
    assert np.isfinite(mixed.embed(TILES)).all()


def test_a_vector_does_not_depend_on_its_neighbours() -> None:
    made = trainer()
    made.step(batch(0))
    vectors = made.embed(TILES)
    assert vectors.shape == (48, made.method.encoder.num_features)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert np.array_equal(made.embed(TILES[7:9]), vectors[7:9])
    assert made.method.training


def test_a_weighted_step_is_the_gradient_of_the_weighted_loss() -> None:
    """Weights of 2 and 0 are the gradient over the tiles that are left, where no normalisation mixes tiles."""
    keys = {"method": "dino", "architecture": "test_vit", "dino": DinoConfig(outputs=32, local=0)}
    whole, part = trainer(**keys), trainer(**keys)
    x = torch.randn(8, 2, 32, 32)
    shown = torch.cat([x, x + 0.1])
    whole.method([shown], torch.tensor([2.0] * 4 + [0.0] * 4)).backward()
    part.method([torch.cat([x[:4], x[:4] + 0.1])]).backward()
    other = dict(part.method.named_parameters())
    for name, p in whole.method.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, other[name].grad, rtol=1e-3, atol=1e-6)


def test_radar_gets_an_offset_and_speckle_but_no_gain() -> None:
    """A flat tile in dB stays flat but for speckle, whose power keeps its mean; an optical band is never noisy."""
    flat = torch.ones(400, 2, 8, 8)
    noise = torch.Generator().manual_seed(0)
    made = views(flat, 8, (0.2, 0.7), np.random.default_rng(0), noise, np.array([0.5, 0.0]))
    inner = made[:, :, 1:-1, 1:-1]
    noisy = inner.std((2, 3)) > 1e-4
    assert 0.4 < noisy[:, 0].float().mean() < 0.6
    assert not noisy[:, 1].any()
    x = torch.zeros(4000, 1, 4, 4)
    power = 10 ** (speckled(x, np.array([0.5]), np.random.default_rng(1), noise) / 0.5 / 10)
    assert abs(float(power.mean()) - 1) < 0.01


def test_views_are_those_of_seed_and_step() -> None:
    one, other = trainer(), trainer()
    other.done = 1
    x = batch(0)
    assert torch.equal(one._views(x)[0], trainer()._views(x)[0])
    assert not torch.equal(one._views(x)[0], other._views(x)[0])
    assert one._views(x)[0].shape == (32, 2, 20, 20)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"method": "mae"}, "pretrain.method=mae"),
        ({"precision": "fp8"}, "pretrain.precision=fp8"),
        ({"batch": 15, "workers": 2}, "pretrain.batch=15"),
        ({"size": 8}, "pretrain.size=8"),
    ],
)
def test_wrong_settings_are_one_line(keys: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        PretrainConfig(**keys)  # type: ignore[arg-type]


def test_levels_that_do_not_rise_are_told_without_data() -> None:
    with pytest.raises(RequestError, match="must rise"):
        PruneConfig(levels=[9, 3])


def test_a_network_that_cannot_be_is_told_before_the_tiles_are_made() -> None:
    check_architecture(PretrainConfig(architecture="test_vit", size=32), 2)
    with pytest.raises(RequestError, match="pretrain.architecture=resnet81 is none that timm knows"):
        check_architecture(PretrainConfig(architecture="resnet81"), 3)
    with pytest.raises(RequestError, match="takes no 3 x 50 x 50 tile, or no view of it: .*; set pretrain.size"):
        check_architecture(PretrainConfig(architecture="test_vit", size=50), 3)
