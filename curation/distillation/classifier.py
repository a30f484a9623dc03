"""The classifier on latents: it chooses among candidates and, in the paper's first version, teaches the diffusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from curation.scoring.network import Block

WIDTHS = 64, 128, 256  # channels at 1/1, 1/2 and 1/4 of the latent's side
BLOCKS = 2  # of each
VALIDATION = 0.1  # share of each class that it does not learn from
EVALUATED = 256  # latents a forward without training
FILE = "classifier.safetensors"


class LatentClassifier(nn.Module):
    """A residual network (DPD's released code: its widths and blocks).

    Args:
        channels: of a latent.
        classes: how many.
        dropout: share of the features before the linear layer (where, is a choice).
    """

    def __init__(self, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[0], 3, 1, 1, bias=False)]
        inside = WIDTHS[0]
        for out in WIDTHS:
            for _ in range(BLOCKS):
                layers.append(Block(inside, out, 1 if inside == out else 2))
                inside = out
        self.layers, self.norm = nn.Sequential(*layers), nn.BatchNorm2d(inside)
        self.head = nn.Linear(inside, classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents (n, c, h, w) -> logits (n, classes); features are dropped where a generator is given."""
        x = latents.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm(self.layers(x))).mean((2, 3))
        if generator is not None and self.dropout:
            kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
            x = x * kept / (1 - self.dropout)
        made: Tensor = self.head(x)
        return made

    @torch.no_grad()
    def logits(self, latents: Tensor) -> Tensor:
        """Logits (n, classes) of scaled latents (n, c, h, w), without training."""
        self.eval()
        device = self.head.weight.device
        parts = [self(part.to(device, torch.float32)) for part in torch.split(latents, EVALUATED)]
        return torch.cat(parts) if parts else torch.zeros(0, self.head.out_features, device=device)

    def save(self, folder: Path) -> None:
        """Write ``classifier.safetensors``."""
        plain = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(plain, folder / FILE, metadata={"dropout": str(self.dropout)})

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> LatentClassifier:
        """What :meth:`save` wrote."""
        state = load_file(folder / FILE)
        classes, channels = state["head.weight"].shape[0], state["layers.0.weight"].shape[1]
        made = cls(channels, classes)
        made.load_state_dict(state)
        return made.to(device).eval()


def new_classifier(channels: int, classes: int, dropout: float, seed: int) -> LatentClassifier:
    """One with first weights, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn from torch's global state
        torch.manual_seed(seed)
        return LatentClassifier(channels, classes, dropout)


def validation_rows(codes: NDArray[np.integer], seed: int) -> NDArray[np.bool_]:
    """(n,) whether a row is for validation: of each class a tenth, rounded down, drawn by the seed."""
    chosen = np.zeros(len(codes), bool)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        some = np.random.default_rng([seed, int(code)]).permutation(len(rows))[: int(VALIDATION * len(rows))]
        chosen[rows[some]] = True
    return chosen


def accuracy(logits: Tensor, codes: NDArray[np.integer]) -> float:
    """Mean over classes of the share of each that has its class's logit highest; NaN of nothing."""
    right = logits.argmax(1).cpu().numpy() == codes
    return float(np.mean([right[codes == code].mean() for code in np.unique(codes)])) if len(codes) else float("nan")
