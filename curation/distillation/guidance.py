"""Sampling: DDIM from pure noise, guided to classes and, over the first steps, to prototypes (DPD's released code)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from curation.distillation.denoiser import Denoiser
from curation.distillation.settings import GuidanceConfig

SCALE, SCALE_GIVEN = 3.0, 7.5  # of classifier-free guidance: of a model trained from scratch (choice); of given weights
PAPER = 4 * 32 * 32  # numbers of the paper's latent, in which its strength is 1


@torch.no_grad()
def draw(
    denoiser: Denoiser, noise: Tensor, classes: Tensor, prototypes: Tensor | None, settings: GuidanceConfig
) -> Tensor:
    """Clean latents, drawn by DDIM without noise of its own (Song et al. 2021).

    While fewer than ``until`` of the steps are done, each row is pulled to its prototype p by one length, whatever is
    left of the way: z_t <- z_t + s sqrt(1 - abar_t) (p - z0_hat) / ||p - z0_hat||, the norm taken over the row. Then
    comes the scheduler's step, with what the network predicted *before* the pull. With s = 1, 40 pulls in a latent of
    4 x 32 x 32 numbers (of the paper's size, of length 64) go less far than in one of 4 x 8 x 8 (of length 16), so
    strengths of other sizes compare as s / sqrt(numbers). Where none is given, s is the paper's 1 with given weights;
    of a model trained from scratch it goes as far as that does in the paper's latent (choice).

    The class's scale w is that of classifier-free guidance (Ho and Salimans 2022): the prediction is that without the
    class plus w times what the class adds; z0_hat comes of it.

    A row depends on its neighbours by nothing but the last bits, and not even so where their number is the same: give
    every call as many rows.

    Args:
        denoiser: on any device, where all is computed.
        noise: float32 (n, c, h, w).
        classes: int64 (n,).
        prototypes: float32 (n, c, h, w), scaled latents; None: no pull.
        settings: steps, strength, until, scale.
    """
    device = denoiser.signal.device
    z, told = noise.to(device), classes.to(device)
    z = z.contiguous(memory_format=torch.channels_last)
    strength = settings.strength
    if strength is None:
        strength = 1.0 if denoiser.given else math.sqrt(noise[0].numel() / PAPER)
    wanted = prototypes.to(device) if prototypes is not None and strength else None
    scale = settings.classes if settings.classes is not None else SCALE_GIVEN if denoiser.given else SCALE
    untold = torch.full_like(told, denoiser.classes)
    scheduler = copy.deepcopy(denoiser.scheduler)  # it keeps the times of a sampling
    scheduler.set_timesteps(settings.steps)
    denoiser.eval()
    z = z * float(scheduler.init_noise_sigma)
    for number, now in enumerate(scheduler.timesteps.tolist()):
        times = torch.full_like(told, now)
        if scale == 1:
            predicted = denoiser(z, times, told)
        else:
            both = denoiser(torch.cat([z, z]), torch.cat([times, times]), torch.cat([untold, told]))
            without, with_class = both.float().chunk(2)
            predicted = without + scale * (with_class - without)
        if wanted is not None and number < settings.until * settings.steps:
            way = wanted - denoiser.clean(predicted, z, times)
            length = way.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            z = z + strength * denoiser.shares(times)[1] * way / length
        stepped: Tensor = scheduler.step(predicted, now, z).prev_sample
        z = stepped
    return z


def noise(seed: int, label: str, prototype: int, candidate: int, shape: Sequence[int]) -> Tensor:
    """The pure noise that a candidate begins as, float32; of nothing but what is told."""
    words = f"{seed}\n{prototype}\n{candidate}\n{label}".encode()
    number = int.from_bytes(hashlib.sha256(words).digest()[:8], "big", signed=True)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number))


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """(n,) how much a row's own class has over the next of the others, of logits (n, k); infinite where k is 1."""
    own = logits.gather(1, classes[:, None])[:, 0]
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return own - others.amax(1)
