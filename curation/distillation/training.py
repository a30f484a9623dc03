"""One loop that trains all three models: autoencoder, classifier on latents, diffusion model; no Ray, no files.

Everything that is drawn in a step comes of (seed, step, rank), and its rows of (seed, step): so a training that goes on
from a state ends with the same weights, bit for bit, on one numeric profile and with as many ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist
from torch.backends import cudnn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from curation.distillation.autoencoder import Autoencoder, normalised
from curation.distillation.classifier import LatentClassifier
from curation.distillation.denoiser import Denoiser
from curation.distillation.settings import AutoencoderConfig, ClassifierConfig, DiffusionConfig

Codes = NDArray[np.integer[Any]]
Fetch = Callable[[NDArray[np.int64]], tuple[Tensor, ...]]
Loss = Callable[[tuple[Tensor, ...], torch.Generator], Tensor]

STATISTICS = "running_mean", "running_var", "num_batches_tracked"
CLIP = 1.0  # longest gradient
WARM_EPOCHS = 5  # of the classifier (DPD's released code)
WARM_SHARE = 0.1  # of its steps, at most
KL = 1e-4  # weight of the autoencoder's, per number of the latent
EDGES = 1.0  # weight of the differences between neighbouring pixels
AVERAGED = 0.999  # decay of the average of a diffusion model's weights that is trained from scratch


class Draws:
    """Which rows each step trains on, a function of the step alone.

    Args:
        codes: int (n,) the class of each row; classes then come equally often, each going through its rows in
            shuffled passes (a choice; DPD's data sets have equal classes). None: all rows are one class.
        n: rows, where there are no codes.
        batch: rows a step, of all ranks together.
        seed: of the order.
    """

    def __init__(self, codes: Codes | None, batch: int, seed: int, n: int | None = None) -> None:
        codes = np.zeros(n or 0, np.int64) if codes is None else codes
        if not len(codes):
            raise ValueError("no row to train on")
        self.batch, self.seed = batch, seed
        order = np.argsort(codes, kind="stable")
        self._members = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        self._passes: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def rows(self, step: int) -> NDArray[np.int64]:
        """int64 (batch,)."""
        count = len(self._members)
        first, last = step * self.batch // count, ((step + 1) * self.batch - 1) // count
        turns = np.concatenate([self._turn(number) for number in range(first, last + 1)])
        return turns[step * self.batch - first * count :][: self.batch]

    def _turn(self, number: int) -> NDArray[np.int64]:
        """A row of each class, the classes in a shuffled order."""
        count = len(self._members)
        if count == 1:
            return np.array([self._member(0, number)])
        order = np.random.default_rng([self.seed, 0, number]).permutation(count)
        return np.array([self._member(int(code), number) for code in order])

    def _member(self, code: int, number: int) -> np.int64:
        members = self._members[code]
        passed, place = divmod(number, len(members))
        if code not in self._passes or self._passes[code][0] != passed:
            shuffled = np.random.default_rng([self.seed, 1, code, passed]).permutation(members)
            self._passes[code] = passed, shuffled
        return np.int64(self._passes[code][1][place])


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: of the optimiser.
        batch: rows a step, of all ranks together.
        rate: of AdamW, at its highest.
        warm: steps in which it rises.
        falls: whether it falls as a cosine then, to 0; else it stays.
        decay: of weights with two dimensions or more.
        average: decay of the average of weights that the model ends with; None: it ends with its last weights.
    """

    steps: int
    batch: int
    rate: float
    warm: int
    falls: bool = True
    decay: float = 0.0
    average: float | None = None


class Course:
    """A model's training, and where it stands.

    Where a process group of several ranks is there, each has its part of every batch and gradients are those of the
    whole, as are the statistics of batch normalisation (means over ranks).

    Args:
        model: moved to the device; of it what requires gradients is trained.
        loss: of a part of a batch (what ``fetch`` gave for its rows, on the device), a mean over its rows; draws from
            the generator it is given alone.
        recipe: how.
        draws: which rows.
        seed: of what the loss draws; the same on every rank.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, recipe: Recipe, draws: Draws, seed: int, device: str = "cpu"
    ) -> None:
        self.model, self.loss, self.recipe, self.draws, self.seed = model, loss, recipe, draws, seed
        self.device = torch.device(device)
        self.done = 0
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        model.to(self.device)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._names, self._weights = [name for name, _ in named], [p for _, p in named]
        wide, flat = ([p for p in self._weights if (p.ndim >= 2) is is_wide] for is_wide in (True, False))
        groups = [{"params": wide, "weight_decay": recipe.decay}, {"params": flat, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.rate)
        self._average = None if recipe.average is None else [p.detach().clone() for p in self._weights]
        self._generator = torch.Generator(self.device)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.recipe.steps

    def train(self, fetch: Fetch, until: int | None = None) -> float:
        """Train up to a step, or to the end.

        Args:
            fetch: tensors of some rows, (m, …) each.
            until: steps done in all.

        Returns:
            mean loss of the steps, this rank's; NaN of none.
        """
        total, count, end = torch.zeros((), device=self.device), 0, min(until or self.recipe.steps, self.recipe.steps)
        while self.done < end:
            total += self.step(fetch(self.rows()))
            count += 1
        return float(total) / count if count else math.nan

    def rows(self) -> NDArray[np.int64]:
        """This rank's rows of the next step."""
        return np.array_split(self.draws.rows(self.done), self.world)[self.rank]

    def step(self, part: tuple[Tensor, ...]) -> Tensor:
        """One step of the optimiser on what was fetched for :meth:`rows`; the loss, on the device."""
        self.model.train()
        part = tuple(x.to(self.device, non_blocking=True) for x in part)
        drawn = np.random.default_rng([self.seed, self.done, self.rank]).integers(2**62)
        self._generator.manual_seed(int(drawn))
        rate = self.recipe.rate * rate_share(self.done, self.recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        with deterministic(self.device):
            loss = self.loss(part, self._generator)
            loss.backward()  # type: ignore[no-untyped-call]
        self._gather(len(part[0]) / self.recipe.batch)
        nn.utils.clip_grad_norm_(self._weights, CLIP)
        self.optimiser.step()
        self.done += 1
        if self._average is not None:
            assert self.recipe.average is not None
            decay = min(self.recipe.average, (1 + self.done) / (10 + self.done))  # the first weights are forgotten soon
            with torch.no_grad():
                get_ema_multi_avg_fn(decay)(  # type: ignore[no-untyped-call]
                    self._average, [p.detach() for p in self._weights], 0
                )
        return loss.detach()

    def finish(self) -> None:
        """Leave the averaged weights, where there are any, in the model, and the model out of training."""
        if self._average is not None:
            with torch.no_grad():
                for weight, average in zip(self._weights, self._average, strict=True):
                    weight.copy_(average)
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but the data: tensors and plain values.

        No generator's state is among them, for each step seeds its own.
        """
        return {
            "done": self.done,
            "weights": {name: p.detach() for name, p in zip(self._names, self._weights, strict=True)},
            "statistics": dict(self._statistics()),
            "optimiser": self.optimiser.state_dict(),
            "average": self._average,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.done = int(state["done"])
        with torch.no_grad():
            for name, weight in zip(self._names, self._weights, strict=True):
                weight.copy_(state["weights"][name])
            for name, values in self._statistics():
                values.copy_(state["statistics"][name])
            for average, values in zip(self._average or [], state["average"] or [], strict=True):
                average.copy_(values)
        self.optimiser.load_state_dict(state["optimiser"])

    def _statistics(self) -> list[tuple[str, Tensor]]:
        """Those of batch normalisation."""
        return [(name, b) for name, b in self.model.named_buffers() if name.rsplit(".", 1)[-1] in STATISTICS]

    def _gather(self, share: float) -> None:
        """Make gradients those of the whole batch, and statistics the ranks' mean."""
        if self.world == 1:
            return
        summed = [p.grad for p in self._weights if p.grad is not None]
        meant = [b for _, b in self._statistics() if b.is_floating_point()]
        parts = [g * share for g in summed] + [b / self.world for b in meant]
        whole = torch.cat([x.flatten() for x in parts])
        dist.all_reduce(whole)
        for x, y in zip(summed + meant, torch.split(whole, [x.numel() for x in parts]), strict=True):
            x.copy_(y.view_as(x))


def rate_share(step: int, recipe: Recipe) -> float:
    """What the highest rate is multiplied by at a step."""
    if step < recipe.warm:
        return (step + 1) / recipe.warm
    if not recipe.falls:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warm) / max(1, recipe.steps - recipe.warm)))


@contextlib.contextmanager
def deterministic(device: torch.device) -> Any:
    """Kernels that give the same bits each time."""
    with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        if device.type == "cuda":
            with sdpa_kernel(SDPBackend.MATH):  # the other's gradients are sums in no order
                yield
        else:
            yield


# the models' losses


def autoencoder_loss(model: Autoencoder, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """|x - x_hat| + (x - x_hat)^2 + the differences of neighbouring pixels |d x - d x_hat| + a little KL.

    Latents are mirrored at random and must give the mirrored tile (after EQ-VAE, arXiv 2502.09509): the other models
    mirror latents in training.

    Args:
        model: in training.
        pixels: uint8 (n, bands, s, s).
        generator: of the latents, drawn from the posterior.
    """
    x, found = normalised(pixels), model.posterior(pixels)
    z, x = mirrored(generator, found.sample(generator), x)
    wrong: Tensor = model.net.decode(z).sample - x
    edges = sum((wrong.diff(dim=dim).abs().mean() for dim in (2, 3)), torch.zeros((), device=x.device))
    kl: Tensor = 0.5 * (found.mean**2 + found.var - 1 - found.logvar).mean()
    return wrong.abs().mean() + (wrong**2).mean() + EDGES * edges + KL * kl


def classifier_loss(
    model: LatentClassifier, mean: Tensor, std: Tensor, codes: Tensor, generator: torch.Generator
) -> Tensor:
    """Cross entropy of latents drawn from their posterior and mirrored at random, features dropped.

    A mirrored latent is only about that of the mirrored tile.

    Args:
        model: in training.
        mean: (n, c, h, w) scaled latents.
        std: (n, c, h, w) of their posterior.
        codes: int64 (n,).
        generator: of all that is drawn.
    """
    (z,) = mirrored(generator, sampled(mean, std, generator))
    return F.cross_entropy(model(z, generator), codes)


def diffusion_loss(
    model: Denoiser,
    mean: Tensor,
    std: Tensor,
    codes: Tensor,
    generator: torch.Generator,
    *,
    settings: DiffusionConfig,
    teacher: LatentClassifier | None = None,
) -> Tensor:
    """Squared error of the prediction, weighted; and in the paper's first version what the classifier makes of it.

    With snr = abar_t / (1 - abar_t) the weight is min(snr, gamma) / snr of noise and min(snr, gamma) / (snr + 1) of
    velocity: both weigh the error of z0_hat by min(snr, gamma) (Hang et al. 2023). The second term is lambda times the
    mean over rows of abar_t CE(f(z0_hat), y), over the rows that are told their class. The factor abar_t is a choice,
    as the paper does not say at which t the term applies: of nearly pure noise z0_hat is a blur that no classifier was
    trained on.

    Args:
        model: in training.
        mean: (n, c, h, w) scaled latents.
        std: (n, c, h, w) of their posterior.
        codes: int64 (n,).
        generator: of all that is drawn.
        settings: gamma, lambda, the share of rows that are not told their class.
        teacher: f, frozen; where lambda is above 0.
    """
    clean, n, device = sampled(mean, std, generator), len(mean), mean.device
    if not model.given:
        (clean,) = mirrored(generator, clean)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    times = torch.randint(len(model.signal), (n,), generator=generator, device=device)
    untold = torch.rand(n, generator=generator, device=device) < settings.unconditional
    noisy, target = model.noised(clean, noise, times)
    predicted = model(noisy, times, torch.where(untold, model.classes, codes))
    weights = snr_weights(model.signal[times], settings.snr, model.velocity)
    loss: Tensor = (weights * (predicted - target).square().mean((1, 2, 3))).mean()
    if settings.consistency:
        assert teacher is not None
        teacher.eval()
        wrong = F.cross_entropy(teacher(model.clean(predicted, noisy, times)), codes, reduction="none")
        loss = loss + settings.consistency * (model.signal[times] * wrong * ~untold).mean()
    return loss


def snr_weights(signal: Tensor, gamma: float | None, velocity: bool) -> Tensor:
    """min-SNR weights of rows whose cumulated signal is abar; 1 without gamma."""
    if gamma is None:
        return torch.ones_like(signal)
    snr = signal / (1 - signal)
    weights: Tensor = snr.clamp_max(gamma) / (snr + 1 if velocity else snr)
    return weights


def sampled(mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """Latents float32 drawn from their posterior."""
    mean, std = mean.float(), std.float()
    return mean + std * torch.randn(mean.shape, generator=generator, device=mean.device)


def mirrored(generator: torch.Generator, *images: Tensor) -> tuple[Tensor, ...]:
    """Each row mirrored or not, each way, in all of the (n, …, h, w) alike."""
    for dim in (2, 3):
        turned = torch.rand(len(images[0]), 1, 1, 1, generator=generator, device=images[0].device) < 0.5
        images = tuple(torch.where(turned, x.flip(dim), x) for x in images)
    return images


# the models' courses


def autoencoder_course(
    model: Autoencoder, n: int, settings: AutoencoderConfig, seed: int, device: str = "cpu"
) -> Course:
    """Of n tiles in shuffled passes; ``fetch`` gives (pixels,)."""
    recipe = Recipe(settings.steps, settings.batch, settings.rate, warm=settings.steps // 20)

    def loss(part: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        return autoencoder_loss(model, part[0], generator)

    return Course(model, loss, recipe, Draws(None, settings.batch, seed, n), seed, device)


def classifier_course(
    model: LatentClassifier, codes: Codes, settings: ClassifierConfig, seed: int, device: str = "cpu"
) -> Course:
    """Of the rows with these classes; ``fetch`` gives (mean, std, codes). No more steps than told epochs and steps."""
    epoch = math.ceil(len(codes) / settings.batch)
    steps = min(settings.steps, settings.epochs * epoch)
    warm = min(WARM_EPOCHS * epoch, int(WARM_SHARE * steps))
    recipe = Recipe(steps, settings.batch, settings.rate, warm, decay=settings.decay)

    def loss(part: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        return classifier_loss(model, part[0], part[1], part[2], generator)

    return Course(model, loss, recipe, Draws(codes, settings.batch, seed), seed, device)


def diffusion_course(
    model: Denoiser,
    codes: Codes,
    settings: DiffusionConfig,
    seed: int,
    device: str = "cpu",
    teacher: LatentClassifier | None = None,
) -> Course:
    """Of the rows with these classes; ``fetch`` gives (mean, std, codes).

    Weights that were given are trained as the paper's: the rate rises, then stays. From scratch (all of it a choice)
    it falls as a cosine, and the model ends with an average of its weights.
    """
    settings = settings.filled(model.given)
    assert settings.steps and settings.batch and settings.rate
    average = None if model.given else AVERAGED
    warm = min(settings.warm, settings.steps)
    recipe = Recipe(
        settings.steps, settings.batch, settings.rate, warm, falls=not model.given, decay=0.01, average=average
    )
    if teacher is not None:
        teacher.to(device).requires_grad_(False)
    told = partial(diffusion_loss, model, settings=settings, teacher=teacher)

    def loss(part: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        return told(part[0], part[1], part[2], generator)

    return Course(model, loss, recipe, Draws(codes, settings.batch, seed), seed, device)
