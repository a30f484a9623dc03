"""The autoencoder between tiles and latents: a small one that is trained on the archive, or one that was loaded.

Everything else sees *scaled* latents: of each channel ``(z - shift) * scale``, so that over the archive its mean is 0
and its variance 1, as the schedules of diffusion presume (Rombach et al. 2022, appendix G, who scale all channels by
one number and do not shift).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from curation.distillation.settings import AutoencoderConfig

WIDTHS = 16, 32, 64, 64  # channels at 1/1, 1/2, 1/4 and 1/8 of the tile's side
GROUPS = 8  # of normalisation
LATENTS = "latents.json"  # shift and scale, a number a channel each


class Autoencoder(nn.Module):
    """An `AutoencoderKL` of diffusers and how its latents are scaled.

    Args:
        net: of as many channels in as out.
        shift, scale: a number a channel of the latent; None: what the network's own config says.

    Attributes:
        bands: of tiles.
        factor: pixels a side that a place of the latent stands for.
        channels: of a latent.
    """

    def __init__(self, net: Any, shift: Any = None, scale: Any = None) -> None:
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        config = net.config
        self.net = net.to(memory_format=torch.channels_last)  # as trained, so as loaded: bits depend on it
        self.bands, self.channels = int(config.in_channels), int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        shift = config.shift_factor or 0.0 if shift is None else shift
        scale = config.scaling_factor if scale is None else scale
        for name, values in (("shift", shift), ("scale", scale)):
            row = torch.as_tensor(values, dtype=torch.float32).expand(self.channels)
            self.register_buffer(name, row.clone()[:, None, None])

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (n, bands, s, s) -> mean and standard deviation of the scaled latent, float32 (n, c, s / factor, …)."""
        found = self.posterior(pixels)
        return (found.mean.float() - self.shift) * self.scale, found.std.float() * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (n, c, h, w) -> uint8 (n, bands, h * factor, w * factor)."""
        z = latents.to(self.scale) / self.scale + self.shift
        made = self.net.decode(z.to(self.net.dtype)).sample
        pixels: Tensor = (made.float() + 1).mul(127.5).round().clamp(0, 255).byte()
        return pixels

    def posterior(self, pixels: Tensor) -> Any:
        """The distribution over latents, unscaled, of uint8 (n, bands, s, s)."""
        return self.net.encode(normalised(pixels, self.net.dtype)).latent_dist

    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Set shift and scale by some of the tiles, uint8 (n, bands, s, s) each on the autoencoder's device."""
        self.shift.zero_()
        self.scale.fill_(1)
        count, total, squares = 0, torch.zeros(self.channels), torch.zeros(self.channels)
        total, squares = total.double(), squares.double()
        for part in parts:
            mean, std = (x.double().cpu() for x in self.encode(part))
            total += mean.sum((0, 2, 3))
            squares += (mean**2 + std**2).sum((0, 2, 3))
            count += mean[:, 0].numel()
        middle = total / max(1, count)
        spread = (squares / max(1, count) - middle**2).clamp_min(1e-12).sqrt()
        self.shift.copy_(middle[:, None, None])
        self.scale.copy_(1 / spread[:, None, None])

    def save(self, folder: Path) -> None:
        """Write the format of diffusers, and ``latents.json``."""
        self.net.save_pretrained(folder)
        values = {name: getattr(self, name).flatten().tolist() for name in ("shift", "scale")}
        (folder / LATENTS).write_text(json.dumps(values))

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Autoencoder:
        """What :meth:`save` wrote, or a network of diffusers without ``latents.json``."""
        net = AutoencoderKL.from_pretrained(folder, local_files_only=True)
        path = folder / LATENTS
        values = json.loads(path.read_text()) if path.exists() else {}
        return cls(net, values.get("shift"), values.get("scale")).to(device).eval()


def new_autoencoder(bands: int, settings: AutoencoderConfig, seed: int) -> Autoencoder:
    """A small one with first weights, on the CPU; to be trained, then calibrated."""
    widths = WIDTHS[: int(math.log2(settings.factor)) + 1]
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn from torch's global state
        torch.manual_seed(seed)
        net = AutoencoderKL(
            in_channels=bands,
            out_channels=bands,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=1,
            latent_channels=settings.channels,
            norm_num_groups=GROUPS,
            mid_block_add_attention=False,
        )
    return Autoencoder(net, 0.0, 1.0)


def normalised(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 -> -1..1, channels last."""
    return (pixels.to(dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
