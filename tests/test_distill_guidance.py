"""Sampling of distilled images: DDIM, guidance to classes and prototypes, pure noise, margins; and the prototypes."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from curation.distillation.denoiser import Denoiser, new_denoiser
from curation.distillation.guidance import draw, margin, noise
from curation.distillation.prototypes import class_prototypes, nearest_real, pooled
from curation.distillation.settings import GuidanceConfig, PrototypesConfig
from tests.test_distill_models import CLASSES, Oracle, schedule

torch.set_num_threads(1)

N, SHAPE = 6, (4, 4, 4)
CODES = torch.arange(N) % CLASSES
CLEAN = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(1))
START = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(2))
WANTED = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(3))


def untrained() -> Denoiser:
    """Of predictions that are not 0: what a new network's are about."""
    made = new_denoiser(4, 4, CLASSES, seed=0).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return made


# sampling


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_an_oracle_is_followed_to_the_clean_latents(predicts: str, steps: int) -> None:
    scheduler = schedule(predicts)
    denoiser = Denoiser(Oracle(scheduler, CLEAN), scheduler)
    kept, lost = denoiser.shares(torch.tensor([scheduler.config.num_train_timesteps // steps * (steps - 1)]))
    made = draw(denoiser, kept * CLEAN + lost * START, CODES, None, GuidanceConfig(steps=steps, classes=1.0))
    assert torch.allclose(made, CLEAN, atol=1e-3)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_a_pull_is_one_length_towards_the_prototype_before_the_step_with_the_old_prediction(predicts: str) -> None:
    """The formula, written out with the schedule's numbers, over two steps of which one is pulled."""
    scheduler = schedule(predicts)
    denoiser = Denoiser(Oracle(scheduler, CLEAN), scheduler)
    settings = GuidanceConfig(steps=2, strength=0.7, until=0.5, classes=1.0)
    made = draw(denoiser, START, CODES, WANTED, settings)
    first, second = (scheduler.alphas_cumprod[t] for t in (500, 0))
    noised = (START - first.sqrt() * CLEAN) / (1 - first).sqrt()  # what the oracle says of it, and z0_hat is CLEAN
    way = WANTED - CLEAN
    z = START + 0.7 * (1 - first).sqrt() * way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    if predicts == "epsilon":
        guess = (z - (1 - first).sqrt() * noised) / first.sqrt()
    else:
        velocity = first.sqrt() * noised - (1 - first).sqrt() * CLEAN
        guess = first.sqrt() * z - (1 - first).sqrt() * velocity
        noised = first.sqrt() * velocity + (1 - first).sqrt() * z
    z = second.sqrt() * guess + (1 - second).sqrt() * noised
    noised = (z - second.sqrt() * CLEAN) / (1 - second).sqrt()
    assert torch.allclose(made, (z - (1 - second).sqrt() * noised) / second.sqrt(), atol=2e-3)


def test_strength_brings_images_nearer_to_their_prototypes_and_none_is_none() -> None:
    denoiser = untrained()
    plain = draw(denoiser, START, CODES, None, GuidanceConfig(steps=10))
    assert torch.equal(draw(denoiser, START, CODES, WANTED, GuidanceConfig(steps=10, strength=0.0)), plain)
    assert torch.equal(draw(denoiser, START, CODES, WANTED, GuidanceConfig(steps=10, until=0.0)), plain)
    far = [(plain - WANTED).flatten(1).norm(dim=1)]
    for strength in (0.2, 0.5):
        made = draw(denoiser, START, CODES, WANTED, GuidanceConfig(steps=10, strength=strength))
        far.append((made - WANTED).flatten(1).norm(dim=1))
    assert bool((far[1] < far[0]).all()) and bool((far[2] < far[1]).all())


def test_by_default_a_small_latent_is_pulled_as_far_as_the_paper_s_for_its_length() -> None:
    """64 numbers against 4096: an eighth; that of weights that were given stays the paper's."""
    denoiser = untrained()
    assert torch.equal(
        draw(denoiser, START, CODES, WANTED, GuidanceConfig(steps=4)),
        draw(denoiser, START, CODES, WANTED, GuidanceConfig(steps=4, strength=0.125)),
    )
    denoiser.given = True
    own = {"steps": 4, "classes": 3.0}
    assert torch.equal(
        draw(denoiser, START, CODES, WANTED, GuidanceConfig(**own)),
        draw(denoiser, START, CODES, WANTED, GuidanceConfig(**own, strength=1.0)),
    )


def test_the_class_s_scale_is_told_once_not_at_all_and_more() -> None:
    denoiser, seen = untrained(), []
    inner = denoiser.net.forward

    def forward(noisy: Tensor, times: Tensor, class_labels: Tensor) -> Any:
        seen.append(class_labels.tolist())
        return inner(noisy, times, class_labels=class_labels)

    denoiser.net.forward = forward
    one = draw(denoiser, START, CODES, None, GuidanceConfig(steps=1, classes=1.0))
    none = draw(denoiser, START, torch.full_like(CODES, CLASSES), None, GuidanceConfig(steps=1, classes=1.0))
    three = draw(denoiser, START, CODES, None, GuidanceConfig(steps=1, classes=3.0))
    assert seen[0] == CODES.tolist() and seen[2] == [CLASSES] * N + CODES.tolist()
    assert torch.allclose(three, none + 3 * (one - none), atol=1e-4)  # one step is linear in the prediction
    assert torch.equal(draw(denoiser, START, CODES, None, GuidanceConfig(steps=1)), three)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    denoiser, settings = untrained(), GuidanceConfig(steps=4)
    made = draw(denoiser, START, CODES, WANTED, settings)
    turned = torch.tensor([3, 1, 5, 0, 2, 4])
    again = draw(denoiser, START[turned], CODES[turned], WANTED[turned], settings)
    assert torch.equal(again, made[turned])
    lonely = [x.clone() for x in (START, CODES, WANTED)]
    for rows, filler in zip(lonely, (0, 0, 1), strict=True):
        rows[1:] = filler
    assert torch.equal(draw(denoiser, lonely[0], lonely[1], lonely[2], settings)[0], made[0])
    assert made.isfinite().all()


def test_noise_is_of_nothing_but_what_is_told() -> None:
    told = (7, "Farm land", 3, 1)
    one = noise(*told, (4, 16, 16))
    torch.manual_seed(5)
    assert torch.equal(one, noise(*told, (4, 16, 16))) and one.dtype == torch.float32
    others = [(8, "Farm land", 3, 1), (7, "Farm", 3, 1), (7, "Farm land", 4, 1), (7, "Farm land", 3, 2)]
    made = [one, *(noise(*other, (4, 16, 16)) for other in others), noise(7, "Farm land", 1, 3, (4, 16, 16))]
    near = torch.corrcoef(torch.stack(made).flatten(1)) - torch.eye(len(made))
    assert near.abs().max() < 0.15
    assert abs(float(one.mean())) < 0.15 and abs(float(one.std()) - 1) < 0.1


def test_a_margin_is_the_own_class_s_lead() -> None:
    logits = torch.tensor([[3.0, 1, 2], [3, 1, 2], [3, 1, 2]])
    assert margin(logits, torch.tensor([0, 1, 2])).tolist() == [1, -2, -1]
    assert margin(torch.ones(1, 1), torch.tensor([0])).tolist() == [float("inf")]


# prototypes


def by_hand(latents: np.ndarray, k: int, alpha: float) -> tuple[list[int], list[float], list[int]]:
    """By the definition, a row at a time."""
    x = latents.reshape(len(latents), 4, 2, 2, 2, 2).mean((3, 5)).reshape(len(latents), -1).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    fit = KMeans(k, n_init=10, random_state=5).fit(x)
    rows, scores = [], []
    for cluster in range(k):
        best = (-1, -np.inf)
        for row in np.flatnonzero(fit.labels_ == cluster):
            far = np.linalg.norm(fit.cluster_centers_ - x[row], axis=1)
            score = np.delete(far, cluster).min() - alpha * far[cluster]
            best = max(best, (int(row), float(score)), key=lambda pair: pair[1])
        rows.append(best[0])
        scores.append(best[1])
    return rows, scores, fit.labels_.tolist()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_prototypes_are_the_definition_s(alpha: float) -> None:
    latents = np.random.default_rng(0).normal(size=(40, 4, 4, 4)).astype(np.float32)
    found = class_prototypes(latents, 5, PrototypesConfig(pool=2, alpha=alpha), seed=5)
    rows, scores, assignment = by_hand(latents, 5, alpha)
    assert found.rows.tolist() == rows and found.assignment.tolist() == assignment
    assert np.allclose(found.margin, scores)
    assert found.members.tolist() == np.bincount(assignment).tolist()


def test_the_control_is_the_image_nearest_to_its_centre() -> None:
    latents = np.random.default_rng(0).normal(size=(40, 4, 4, 4))
    settings = PrototypesConfig(pool=4)
    found = nearest_real(latents, 5, settings, seed=5)
    x = pooled(latents, 4)
    assert np.allclose(np.linalg.norm(x, axis=1), 1)
    fit = KMeans(5, n_init=10, random_state=5).fit(x)
    far = fit.transform(x)
    assert found.rows.tolist() == [int(np.where(fit.labels_ == j, far[:, j], np.inf).argmin()) for j in range(5)]
    assert found.assignment.tolist() == class_prototypes(latents, 5, settings, seed=5).assignment.tolist()


def test_a_class_has_as_many_prototypes_as_it_has_images_that_differ() -> None:
    latents = np.random.default_rng(0).normal(size=(3, 4, 4, 4))
    settings = PrototypesConfig()
    assert sorted(class_prototypes(latents, 10, settings, seed=0).rows) == [0, 1, 2]
    alone = class_prototypes(latents[:1], 10, settings, seed=0)
    assert (alone.rows.tolist(), alone.members.tolist(), alone.assignment.tolist()) == ([0], [1], [0])
    assert alone.margin.tolist() == pytest.approx([0], abs=1e-6)
    again = class_prototypes(latents[[0, 0, 1, 1, 1]], 10, settings, seed=0)
    assert sorted(again.rows) == [0, 2] and sorted(again.members) == [2, 3]
