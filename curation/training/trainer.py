"""One process's part of a self-supervised training: network, optimiser, schedules, one step; no Ray, no files.

Everything that is drawn in a step comes of (seed, step, rank), so that a training that goes on from a checkpoint sees
the views that it would have seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist
from torch.backends import cudnn
from torch.nn import functional as F

from curation.encoders.base import in_batches
from curation.encoders.timm import create
from curation.errors import RequestError
from curation.evaluation.diversity import vendi_score
from curation.evaluation.moments import Moments
from curation.scoring.network import warm_cosine
from curation.training.augment import views
from curation.training.methods import Dino, Method, SimSiam
from curation.training.settings import PretrainConfig

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

GLOBAL, LOCAL = 2 / 3, 1 / 3  # side of the views, of the tile's: so things are as large in training as in use
EMBEDDED = 256  # tiles a forward without training
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """A method, its optimiser and where it stands.

    Args:
        settings: ``pretrain.*``.
        bands: of the tiles.
        mean, std: a number a band, of pixels in 0..255.
        steps: of the whole training, which the schedules go by.
        seed: of first weights and views; the same on every rank.
        device: ``cpu`` or ``cuda``.
        decibels: a number a band, what 1 dB is in steps of the 8-bit pixels; 0 for a band that is no radar.
        limits: for each band the least and largest 8-bit value; pixels beyond are cut to it.

    Where a process group of several ranks is there, gradients are its mean (and on GPUs batch normalisation's
    statistics are those of all ranks; on CPUs torch has no such layer, so that each rank takes its own).
    """

    def __init__(
        self,
        settings: PretrainConfig,
        bands: int,
        mean: Any,
        std: Any,
        *,
        steps: int,
        seed: int,
        device: str = "cpu",
        decibels: Any = None,
        limits: Any = None,
    ) -> None:
        self.settings, self.bands, self.steps, self.seed = settings, bands, steps, seed
        self.device = torch.device(device)
        self.done = 0
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self._mean, self._std = (self._a_band(values) for values in (mean, std))
        self._limits = None if limits is None else tuple(self._a_band(ends) for ends in zip(*limits, strict=True))
        self._decibels = None
        if decibels is not None and np.any(decibels):
            self._decibels = np.asarray(decibels, np.float32).reshape(bands) / np.asarray(std, np.float32).reshape(
                bands
            )
        with torch.random.fork_rng():  # the first weights are drawn from torch's global state
            torch.manual_seed(seed)
            self.method = make_method(settings, bands)
        if several and self.device.type == "cuda":
            self.method = nn.SyncBatchNorm.convert_sync_batchnorm(self.method)  # type: ignore[no-untyped-call]
        self.method.to(self.device).to(memory_format=torch.channels_last).train()
        self.sides = sides_of(self.method.encoder, settings.size)
        rate = settings.rate if settings.rate is not None else self.method.rate * settings.batch / 256
        decay = settings.decay if settings.decay is not None else self.method.decay
        self.optimiser = self.method.optimiser(rate, decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: float(warm_cosine(step, steps)))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self._noise = torch.Generator(self.device)
        self._forward: Any = self.method
        if several:
            self._forward = nn.parallel.DistributedDataParallel(self.method)

    def step(self, tiles: Tensor, weights: Tensor | None = None) -> float:
        """One step of the optimiser on this rank's share of a batch.

        Args:
            tiles: uint8 (n, bands, size, size), on any device.
            weights: float32 (n,), how much each counts, 1 on average; None: all the same.

        Returns:
            the loss, this rank's.
        """
        progress = self.done / max(1, self.steps)
        shown = self._views(tiles)
        if weights is not None:
            weights = weights.to(self.device, torch.float32)
        with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            with self._autocast():
                loss = self._forward(shown, weights)
            self.optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        self.method.ready(progress)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()
        self.method.stepped(progress)
        self.done += 1
        return float(loss.detach())

    def embed(self, tiles: Pixels) -> Floats:
        """Vectors of unit length (n, dim) of tiles uint8 (n, bands, size, size), by the encoder as it is now.

        Every forward has one constant, padded shape, so that a tile's vector does not depend on its neighbours.
        """
        encoder = self.method.encoder
        encoder.eval()
        parts = [
            in_batches(np.asarray(tiles[start : start + EMBEDDED]), EMBEDDED, self._features)
            for start in range(0, len(tiles), EMBEDDED)
        ]
        encoder.train()
        return np.concatenate(parts) if parts else np.zeros((0, encoder.num_features), np.float32)

    def spread(self) -> tuple[float, float]:
        """How far the encoder's vectors of the last batch are from being one vector.

        Returns:
            standard deviation of a number of vectors of unit length, mean over the numbers, times the root of how many
            there are (0: all are one vector), and their `vendi_score` (1: they lie along one direction).
        """
        rows = F.normalize(self.method.seen.float(), dim=1).cpu()
        small = rows.numpy() if len(rows) > rows.shape[1] else rows.numpy().T  # both have the same eigenvalues
        return float(rows.std(0).mean()) * rows.shape[1] ** 0.5, vendi_score(Moments.of(small))

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but the tiles: tensors and plain values."""
        return {
            "done": self.done,
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.done = int(state["done"])
        self.method.load_state_dict(state["method"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])

    def _views(self, tiles: Tensor) -> list[Tensor]:
        """For each of the method's areas a batch: all tiles' first view, then their second, …."""
        x = self._standardised(tiles)
        generator = np.random.default_rng([self.seed, self.done, self.rank])
        self._noise.manual_seed(int(generator.integers(2**62)))
        return [
            views(x.repeat(count, 1, 1, 1), side, area, generator, self._noise, self._decibels)
            for (count, area), side in zip(self.method.areas, self.sides, strict=False)
        ]

    def _features(self, tiles: NDArray[Any]) -> Floats:
        with torch.inference_mode(), self._autocast():
            x = self._standardised(torch.from_numpy(tiles))
            made = self.method.encoder(x.contiguous(memory_format=torch.channels_last))
            return np.asarray(made.float().cpu().numpy())

    def _standardised(self, tiles: Tensor) -> Tensor:
        x = tiles.to(self.device, non_blocking=True).float()
        if self._limits is not None:
            x = torch.minimum(torch.maximum(x, self._limits[0]), self._limits[1])
        return (x - self._mean) / self._std

    def _a_band(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.float32).reshape(self.bands, 1, 1), device=self.device)

    def _autocast(self) -> Any:
        precision = self.settings.precision
        return torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "fp32")


def make_method(settings: PretrainConfig, bands: int) -> Method:
    """The method with first weights drawn from torch's global state."""

    def backbone() -> Any:
        return create(settings.architecture, bands, settings.size, any_side=True)

    return Dino(backbone, settings.dino) if settings.method == "dino" else SimSiam(backbone)


def sides_of(encoder: Any, size: int) -> list[int]:
    """Pixels a side of the two kinds of views: multiples of a transformer's patch, of 4 for a convolutional network."""
    found = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
    patch = int(found[0]) if found is not None else 4
    return [patch * max(1, round(share * size / patch)) for share in (GLOBAL, LOCAL)]


def check_architecture(settings: PretrainConfig, bands: int) -> None:
    """See that the network can be made, and takes tiles and views of their sizes.

    Raises:
        RequestError: it cannot.
    """
    import timm

    if not timm.is_model(settings.architecture):
        raise RequestError(f"pretrain.architecture={settings.architecture} is none that timm knows")
    try:
        with torch.random.fork_rng(), torch.no_grad():
            encoder = make_method(settings, bands).encoder.eval()
            for side in (settings.size, *sides_of(encoder, settings.size)):
                encoder(torch.zeros(1, bands, side, side))
    except Exception as error:  # noqa: BLE001 - architectures raise whatever they like on a size that they do not take
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"pretrain.architecture={settings.architecture} takes no {bands} x {settings.size} x {settings.size} tile, "
            f"or no view of it: {reason}; set pretrain.size"
        ) from error
