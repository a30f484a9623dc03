"""The models of distillation: autoencoder, denoiser, classifier, and the loop that trains them."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from curation.distillation import training
from curation.distillation.autoencoder import Autoencoder, new_autoencoder
from curation.distillation.classifier import LatentClassifier, accuracy, new_classifier, validation_rows
from curation.distillation.denoiser import Denoiser, new_denoiser
from curation.distillation.settings import AutoencoderConfig, ClassifierConfig, DiffusionConfig
from curation.distillation.training import (
    Course,
    Draws,
    Recipe,
    autoencoder_course,
    classifier_course,
    diffusion_course,
    diffusion_loss,
    mirrored,
    rate_share,
    snr_weights,
)

torch.set_num_threads(1)

N, CLASSES, SHAPE = 24, 3, (4, 4, 4)
CODES = np.arange(N) % CLASSES
TILES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, 4, 16, 16), dtype=np.uint8))
MEAN = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(1))
STD = torch.full_like(MEAN, 0.1)
ROWS = torch.arange(N)


def latents_of(rows: Any) -> tuple[Tensor, ...]:
    return MEAN[rows].half(), STD[rows].half(), torch.from_numpy(CODES)[rows]


class Oracle(nn.Module):
    """Predicts without a flaw what a denoiser that knows the clean latents would."""

    def __init__(self, scheduler: DDIMScheduler, clean: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_class_embeds=CLASSES + 1)
        self.signal, self.clean = scheduler.alphas_cumprod, clean
        self.velocity = scheduler.config.prediction_type == "v_prediction"

    def forward(self, noisy: Tensor, times: Tensor, class_labels: Tensor) -> Any:
        kept, clean = self.signal[times].view(-1, 1, 1, 1), self.clean.repeat(len(noisy) // len(self.clean), 1, 1, 1)
        noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
        return SimpleNamespace(sample=kept.sqrt() * noise - (1 - kept).sqrt() * clean if self.velocity else noise)


def schedule(predicts: str) -> DDIMScheduler:
    return DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type=predicts, clip_sample=False)


@pytest.fixture(params=["epsilon", "v_prediction"])
def oracle(request: Any) -> Denoiser:
    scheduler = schedule(request.param)
    return Denoiser(Oracle(scheduler, MEAN), scheduler)


# autoencoder


def test_its_scaled_latents_have_mean_0_and_variance_1_and_come_back_of_a_folder(tmp_path: Path) -> None:
    made = new_autoencoder(4, AutoencoderConfig(channels=3, factor=4), seed=1)
    made.calibrate(TILES.split(7))
    mean, std = made.encode(TILES)
    assert mean.shape == std.shape == (N, 3, 4, 4)
    assert mean.mean((0, 2, 3)).abs().max() < 1e-4
    spread = mean.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))
    assert torch.allclose(spread, torch.ones(3), atol=1e-3)
    made.save(tmp_path)
    again = Autoencoder.load(tmp_path)
    assert (again.bands, again.factor, again.channels) == (4, 4, 3)
    assert all(torch.equal(x, y) for x, y in zip(again.encode(TILES), (mean, std), strict=True))
    decoded = again.decode(mean)
    assert decoded.dtype == torch.uint8 and torch.equal(decoded, made.decode(mean)) and decoded.shape == TILES.shape


def test_a_folder_of_diffusers_without_our_file_is_scaled_as_its_config_says(tmp_path: Path) -> None:
    made = new_autoencoder(3, AutoencoderConfig(factor=2), seed=1)
    made.net.register_to_config(scaling_factor=0.5)
    made.net.save_pretrained(tmp_path)
    pixels = TILES[:2, :3]
    found = made.posterior(pixels)
    mean, std = Autoencoder.load(tmp_path).encode(pixels)
    assert torch.allclose(mean, found.mean * 0.5) and torch.allclose(std, found.std * 0.5)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_place_stands_for_as_many_pixels_as_told(factor: int) -> None:
    made = new_autoencoder(2, AutoencoderConfig(channels=2, factor=factor), seed=0)
    mean, _ = made.encode(TILES[:1, :2])
    assert mean.shape == (1, 2, 16 // factor, 16 // factor)
    assert made.decode(mean).shape == (1, 2, 16, 16)


def test_it_learns_to_give_back_tiles() -> None:
    ramp = np.linspace(0, 200, 16)
    plain = [np.add.outer(ramp * a, ramp * (1 - a))[None].repeat(2, 0) for a in np.linspace(0, 1, N)]
    tiles = torch.from_numpy(np.array(plain).astype(np.uint8))
    settings = AutoencoderConfig(factor=2, steps=40, batch=8, rate=3e-3)
    made = new_autoencoder(2, settings, seed=0)
    course = autoencoder_course(made, N, settings, seed=0)
    first = course.train(lambda rows: (tiles[rows],), until=5)
    course.train(lambda rows: (tiles[rows],), until=35)
    last = course.train(lambda rows: (tiles[rows],))
    assert course.finished and math.isnan(course.train(lambda rows: (tiles[rows],)))
    course.finish()
    assert not made.training and last < first / 3
    wrong = made.decode(made.encode(tiles)[0]).float() - tiles.float()
    assert wrong.square().mean() < tiles.float().var() / 4


# denoiser and diffusion's loss


def test_the_clean_latent_that_an_oracle_stands_for_is_the_true_one(oracle: Denoiser) -> None:
    times = torch.linspace(0, 960, N).long()  # at the end of the schedule there is no signal left
    noise = torch.randn(MEAN.shape, generator=torch.Generator().manual_seed(3))
    noisy, target = oracle.noised(MEAN, noise, times)
    assert torch.allclose(noisy, oracle.scheduler.add_noise(MEAN, noise, times), atol=1e-5)
    if oracle.velocity:
        assert torch.allclose(target, oracle.scheduler.get_velocity(MEAN, noise, times), atol=1e-5)
    predicted = oracle(noisy, times, ROWS % CLASSES)
    assert torch.allclose(predicted, target, atol=1e-3)
    assert torch.allclose(oracle.clean(predicted, noisy, times), MEAN, atol=1e-3)


def test_min_snr_weighs_the_error_of_the_clean_latent_by_the_lesser_of_snr_and_gamma() -> None:
    signal = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    snr = signal / (1 - signal)
    wanted = snr.clamp(max=5)
    assert torch.allclose(snr_weights(signal, 5, velocity=False), wanted / snr)
    assert torch.allclose(snr_weights(signal, 5, velocity=True), wanted / (snr + 1))
    # an error d of z0 is one of sqrt(snr) d in noise and of d / sqrt(1 - abar) in velocity
    assert torch.allclose(snr_weights(signal, 5, velocity=False) * snr, wanted)
    assert torch.allclose(snr_weights(signal, 5, velocity=True) / (1 - signal), wanted)
    assert torch.equal(snr_weights(signal, None, velocity=True), torch.ones_like(signal))


def test_an_oracle_s_loss_is_nothing_and_consistency_is_the_classifier_s_on_the_clean_latents() -> None:
    scheduler = schedule("v_prediction")
    mean = torch.ones(N, *SHAPE) * torch.arange(N)[:, None, None, None] / N  # the same, mirrored
    denoiser = Denoiser(Oracle(scheduler, mean), scheduler)
    teacher = new_classifier(SHAPE[0], CLASSES, 0.0, seed=0).eval()
    codes = torch.from_numpy(CODES)

    def loss(**settings: Any) -> float:
        generator = torch.Generator().manual_seed(0)
        told = DiffusionConfig(**settings)
        made = diffusion_loss(denoiser, mean, 0 * STD, codes, generator, settings=told, teacher=teacher)
        return float(made.detach())

    assert loss() < 1e-6
    once, twice = loss(consistency=1.0, unconditional=0.0), loss(consistency=2.0, unconditional=0.0)
    assert twice == pytest.approx(2 * once, rel=1e-3)
    worst = F.cross_entropy(teacher.logits(mean), codes, reduction="none").max()
    assert 0 < once < float(worst)  # rows are weighed by abar, between 0 and 1


def test_all_samples_are_untold_their_class_where_the_share_is_nearly_1() -> None:
    told: list[Tensor] = []

    class Listening(Oracle):
        def forward(self, noisy: Tensor, times: Tensor, class_labels: Tensor) -> Any:
            told.append(class_labels)
            return super().forward(noisy, times, class_labels)

    scheduler = schedule("v_prediction")
    denoiser, codes = Denoiser(Listening(scheduler, MEAN), scheduler), torch.from_numpy(CODES)
    for share in (0.0, 0.3, 0.999999):
        settings = DiffusionConfig(unconditional=share)
        diffusion_loss(denoiser, MEAN, STD, codes, torch.Generator().manual_seed(0), settings=settings)
    assert torch.equal(told[0], codes)
    assert 1 <= int((told[1] == CLASSES).sum()) <= N / 2
    assert bool((told[2] == CLASSES).all())


@pytest.mark.parametrize("side", [4, 6, 8, 16])
def test_a_denoiser_comes_back_of_a_folder(side: int, tmp_path: Path) -> None:
    made = new_denoiser(4, side, CLASSES, seed=0).eval()
    made.save(tmp_path)
    again = Denoiser.load(tmp_path)
    assert again.classes == CLASSES and not again.given and again.velocity
    noisy, times, codes = torch.randn(2, 4, side, side), torch.tensor([0, 999]), torch.tensor([0, CLASSES])
    with torch.no_grad():
        assert torch.equal(made(noisy, times, codes), again(noisy, times, codes))
    same = [(m.signal.tolist(), m.scheduler.config.timestep_spacing) for m in (made, again)]
    assert same[0] == same[1]


def test_texts_are_what_a_model_of_texts_is_told(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
    )
    texts = torch.randn(CLASSES + 1, 5, 6)
    made = Denoiser(net, schedule("epsilon"), texts).eval()
    assert made.given and made.classes == CLASSES and not made.velocity
    noisy, times, codes = MEAN[:2], torch.tensor([10, 900]), torch.tensor([1, CLASSES])
    made.save(tmp_path)
    with torch.no_grad():
        wanted = net(noisy, times, encoder_hidden_states=texts[[1, CLASSES]]).sample
        assert torch.equal(made(noisy, times, codes), wanted)
        assert torch.equal(Denoiser.load(tmp_path)(noisy, times, codes), wanted)


def test_what_a_model_predicts_is_known_or_refused() -> None:
    scheduler = schedule("sample")
    with pytest.raises(ValueError, match="predicts sample"):
        Denoiser(Oracle(scheduler, MEAN), scheduler)


# classifier


def test_the_classifier_learns_and_comes_back_of_a_folder(tmp_path: Path) -> None:
    apart = MEAN * 0.3
    apart[ROWS, torch.from_numpy(CODES)] += 1  # a class's channel is brighter

    def fetch(rows: Any) -> tuple[Tensor, ...]:
        return apart[rows], STD[rows], torch.from_numpy(CODES)[rows]

    made = new_classifier(4, CLASSES, 0.1, seed=0)
    settings = ClassifierConfig(epochs=15, batch=12)
    course = classifier_course(made, CODES, settings, seed=0)
    assert course.recipe.steps == 30  # epochs of two steps; fewer than the steps allowed
    course.train(fetch)
    course.finish()
    assert accuracy(made.logits(apart), CODES) == 1
    made.save(tmp_path)
    again = LatentClassifier.load(tmp_path)
    assert torch.equal(again.logits(apart), made.logits(apart))
    assert torch.allclose(again.logits(apart[:5]), made.logits(apart)[:5], atol=1e-5)


def test_a_tenth_of_each_class_is_for_validation() -> None:
    codes = np.repeat([0, 1, 2], [50, 19, 1])
    chosen = validation_rows(codes, seed=3)
    assert [int(chosen[codes == code].sum()) for code in range(3)] == [5, 1, 0]
    assert np.array_equal(chosen, validation_rows(codes, seed=3))
    assert not np.array_equal(chosen, validation_rows(codes, seed=4))


def test_accuracy_is_the_mean_over_classes() -> None:
    logits = torch.tensor([[2.0, 1], [2, 1], [2, 1], [2, 1]])
    assert accuracy(logits, np.array([0, 0, 0, 1])) == 0.5
    assert math.isnan(accuracy(logits[:0], np.zeros(0, np.int64)))


# the loop


def test_classes_come_equally_often_and_each_goes_through_its_rows() -> None:
    codes = np.repeat([0, 1, 2], [1000, 7, 1])
    draws = Draws(codes, batch=5, seed=0)
    drawn = np.concatenate([draws.rows(step) for step in range(42)])
    assert np.bincount(codes[drawn]).tolist() == [70, 70, 70]
    assert len(np.unique(drawn[codes[drawn] == 0])) == 70
    assert np.bincount(drawn)[1000:].tolist() == [10] * 7 + [70]
    backwards = [Draws(codes, batch=5, seed=0).rows(step) for step in reversed(range(42))]
    assert np.array_equal(np.concatenate(backwards[::-1]), drawn)


def test_without_classes_every_row_comes_once_a_pass() -> None:
    draws = Draws(None, batch=4, seed=0, n=10)
    drawn = np.concatenate([draws.rows(step) for step in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    with pytest.raises(ValueError, match="no row"):
        Draws(None, batch=4, seed=0, n=0)


def test_the_rate_rises_then_falls_or_stays() -> None:
    falls = Recipe(100, 1, 1.0, warm=10)
    assert [rate_share(step, falls) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
    assert rate_share(55, falls) == pytest.approx(0.5) and rate_share(99, falls) < 0.01
    assert rate_share(99, Recipe(100, 1, 1.0, warm=10, falls=False)) == 1


def test_rows_are_mirrored_alike() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(40, 2, 1, 1)
    one, other = mirrored(torch.Generator().manual_seed(0), x, 2 * x)
    assert torch.equal(2 * one, other)
    seen = {tuple(row[0, 0].tolist()) for row in one}
    assert len(seen) == 4 or len({tuple(row[0].flatten().tolist()) for row in one}) == 4


def courses() -> dict[str, Callable[[], tuple[Course, Any]]]:
    def autoencoder() -> tuple[Course, Any]:
        settings = AutoencoderConfig(factor=2, steps=5, batch=4)
        return autoencoder_course(new_autoencoder(4, settings, 0), N, settings, 0), lambda rows: (TILES[rows],)

    def classifier() -> tuple[Course, Any]:
        settings = ClassifierConfig(steps=5, batch=4)
        return classifier_course(new_classifier(4, CLASSES, 0.1, 0), CODES, settings, 0), latents_of

    def diffusion() -> tuple[Course, Any]:
        teacher = new_classifier(4, CLASSES, 0.0, 0)
        settings = DiffusionConfig(steps=5, batch=4, warm=2, consistency=0.1)
        return diffusion_course(new_denoiser(4, 4, CLASSES, 0), CODES, settings, 0, teacher=teacher), latents_of

    return {"autoencoder": autoencoder, "classifier": classifier, "diffusion": diffusion}


@pytest.mark.parametrize("name", ["autoencoder", "classifier", "diffusion"])
def test_a_training_that_goes_on_from_a_state_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    make = courses()[name]
    whole, fetch = make()
    whole.train(fetch)
    whole.finish()
    broken, fetch = make()
    broken.train(fetch, until=2)
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    torch.randn(7)  # the global state of random numbers is another
    resumed, fetch = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.done == 2
    resumed.train(fetch)
    resumed.finish()
    told, wanted = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(told[key], wanted[key]) for key in wanted)
    fresh = make()[0].model.state_dict()
    assert not all(torch.equal(fresh[key], wanted[key]) for key in wanted)


def test_the_teacher_learns_nothing_and_weights_that_need_no_gradient_stay() -> None:
    teacher, denoiser = new_classifier(4, CLASSES, 0.0, 0), new_denoiser(4, 4, CLASSES, 0)
    denoiser.net.conv_in.requires_grad_(False)
    before = {key: value.clone() for key, value in (teacher.state_dict() | denoiser.state_dict()).items()}
    settings = DiffusionConfig(steps=2, batch=4, warm=0, consistency=0.1)
    course = diffusion_course(denoiser, CODES, settings, 0, teacher=teacher)
    assert "net.conv_in.weight" not in course.state_dict()["weights"]
    course.train(latents_of)
    course.finish()
    after = teacher.state_dict() | denoiser.state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert set(teacher.state_dict()) | {"net.conv_in.weight", "net.conv_in.bias"} <= same
    assert "net.conv_out.weight" not in same


def test_given_weights_are_trained_as_the_paper_s() -> None:
    given, scratch = DiffusionConfig().filled(True), DiffusionConfig(batch=16).filled(False)
    assert (given.steps, given.batch, given.rate) == (20000, 8, 5e-4)
    assert scratch.batch == 16 and scratch.steps and scratch.rate


class Ranks(threading.local):
    """Processes of a group as threads of one: what the loop asks of `torch.distributed`."""

    world = 2

    def __init__(self, meet: threading.Barrier, given: list[Tensor]) -> None:
        self.meet, self.given, self.rank = meet, given, 0
        self.is_available = self.is_initialized = lambda: True
        self.get_world_size, self.get_rank = lambda: self.world, lambda: self.rank

    def all_reduce(self, x: Tensor) -> None:
        self.given[self.rank] = x.clone()
        self.meet.wait()
        x.copy_(self.given[0] + self.given[1])
        self.meet.wait()


def linear_course() -> Course:
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(0)

    def loss(part: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        return (model(part[0]).squeeze(1) - part[1]).square().mean()

    return Course(model, loss, Recipe(20, 5, 1e-2, warm=2), Draws(None, 5, seed=0, n=N), seed=0)


def linear_rows(rows: Any) -> tuple[Tensor, ...]:
    x = MEAN.flatten(1)[rows, :3]
    return x, x.sum(1)


def test_two_ranks_train_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = linear_course()
    ranks = Ranks(threading.Barrier(2), [torch.zeros(0)] * 2)
    monkeypatch.setattr(training, "dist", ranks)

    def train(rank: int) -> tuple[list[int], dict[str, Tensor]]:
        ranks.rank = rank
        course = linear_course()
        rows = course.rows().tolist()
        course.train(linear_rows)
        return rows, course.model.state_dict()

    with ThreadPoolExecutor(2) as pool:
        (first_rows, first), (second_rows, second) = pool.map(train, range(2))
    assert first_rows + second_rows == whole.rows().tolist()
    whole.train(linear_rows)
    for key, wanted in whole.model.state_dict().items():
        assert torch.equal(first[key], second[key])
        assert torch.allclose(first[key], wanted, atol=1e-6)  # of a batch of 5 one rank has 3 rows
