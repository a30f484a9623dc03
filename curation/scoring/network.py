"""A small residual network for any number of bands, trained from scratch by one fixed recipe on small tiles.

It is what scores samples where labels are, and what tells kept sets apart: the same recipe and as many steps for all.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn import functional as F

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Watch = Callable[[int, NDArray[np.int64], Floats], None]

WIDTHS = (32, 64, 128)  # channels at 1/4, 1/8 and 1/16 of the tile's side
BATCH = 64
RATE = 2e-3  # of AdamW, at its highest
DECAY = 0.05
WARM = 0.1  # share of the steps in which the rate rises
EVALUATED = 256  # tiles a forward without training


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2016, with normalisation first)."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.short = None if (inside, stride) == (out, 1) else nn.Conv2d(inside, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inside, h, w)`` -> ``(n, out, h / stride, w / stride)``."""
        y = F.relu(self.norm1(x))
        short = x if self.short is None else self.short(y)
        made: Tensor = short + self.conv2(F.relu(self.norm2(self.conv1(y))))
        return made


class Small(nn.Module):
    """The residual network without its classifier: ``(n, bands, size, size)`` -> ``(n, WIDTHS[-1])``."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.dim = WIDTHS[-1]
        layers: list[nn.Module] = [nn.Conv2d(bands, WIDTHS[0], 4, 4, bias=False)]
        for inside, out in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False):
            layers.append(Block(inside, out, 1 if inside == out else 2))
        self.layers, self.norm = nn.Sequential(*layers), nn.BatchNorm2d(self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Means over the last feature maps."""
        return F.relu(self.norm(self.layers(x))).mean((2, 3))


class Network(nn.Module):
    """A body, and a linear classifier on what it makes of tiles whose bands are standardised.

    Args:
        body: float32 ``(n, bands, size, size)`` -> ``(n, dim)``.
        dim: numbers that it makes of a tile.
        classes: how many.
        mean, std: a number a band, of pixels in 0..255.
    """

    def __init__(self, body: nn.Module, dim: int, classes: int, mean: Floats, std: Floats) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.body, self.head = body, nn.Linear(dim, classes)
        self.register_buffer("mean", torch.as_tensor(mean)[:, None, None])
        self.register_buffer("std", torch.as_tensor(std)[:, None, None])

    def embed(self, x: Tensor) -> Tensor:
        """uint8 ``(n, bands, size, size)`` -> ``(n, dim)``."""
        made: Tensor = self.body(((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last))
        return made

    def forward(self, x: Tensor) -> Tensor:
        """uint8 ``(n, bands, size, size)`` -> logits ``(n, classes)``."""
        made: Tensor = self.head(self.embed(x))
        return made

    def features(self, tiles: Pixels) -> Floats:
        """The embedding before any normalisation, ``(n, dim)``."""
        return self._in_batches(self.embed, tiles)

    def logits(self, tiles: Pixels) -> Floats:
        """``(n, classes)``."""
        return self._in_batches(self, tiles)

    def classify(self, features: Floats) -> Floats:
        """The logits that go with :meth:`features`."""
        return self._in_batches(self.head, features)

    def _in_batches(self, function: Callable[[Tensor], Tensor], rows: NDArray[Any]) -> Floats:
        device = self.head.weight.device
        self.eval()
        with torch.inference_mode():
            made = [function(torch.from_numpy(part).to(device)).cpu().numpy() for part in _parts(rows)]
        return np.concatenate(made).astype(np.float32, copy=False)


def _parts(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Copies of runs of rows; one of none where there is none."""
    return (np.array(rows[start : start + EVALUATED]) for start in range(0, max(1, len(rows)), EVALUATED))


def train_classifier(
    tiles: Pixels,
    codes: NDArray[np.integer[Any]],
    classes: int,
    *,
    steps: int,
    seed: int,
    batch: int = BATCH,
    rate: float = RATE,
    decay: float = DECAY,
    device: str = "cpu",
    body: Callable[[int], Any] = Small,
    watch: Watch | None = None,
) -> Network:
    """Train a network from scratch (or from a body's weights): AdamW, a rate that rises, then falls as a cosine.

    Every step sees ``batch`` tiles, however few there are: they are the next ones of one shuffled pass after the
    other. Each is mirrored and turned at random, for nothing on the ground has an upper end. The same arguments give
    the same network with the same number of torch's threads.

    Args:
        tiles: ``(n, bands, size, size)``.
        codes: ``(n,)`` from 0 to ``classes`` - 1.
        classes: how many.
        steps: of the optimiser.
        seed: of the first weights, the order and the mirroring.
        batch: tiles a step.
        rate: the highest.
        decay: of the weights.
        device: ``cpu`` or ``cuda``.
        body: makes the network without its classifier out of the number of bands; has ``dim``.
        watch: is told of every pass over the tiles, piece by piece: which pass (from 0), the rows (each once a pass)
            and their logits ``(rows, classes)``, as they were when trained on, before the step.

    Raises:
        ValueError: there is nothing to train on.
    """
    if not len(tiles):
        raise ValueError("no tile to train on")
    with torch.random.fork_rng():  # the first weights are drawn from torch's global state
        torch.manual_seed(seed)
        made = body(tiles.shape[1])
        network = Network(made, made.dim, classes, *band_statistics(tiles))
    network.to(device).to(memory_format=torch.channels_last)
    kept = [p for p in network.parameters() if p.ndim < 2]
    decayed = [p for p in network.parameters() if p.ndim >= 2]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": kept, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, steps))
    truth = torch.as_tensor(np.asarray(codes, np.int64))
    generator = np.random.default_rng(seed)
    network.train()
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for at, rows in batches(len(tiles), steps, batch, generator):
            x = _turned(torch.from_numpy(tiles[rows]), generator).to(device)
            logits = network(x)
            loss = F.cross_entropy(logits, truth[rows].to(device))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if watch:
                told = logits.detach().cpu().numpy()
                for epoch in np.unique(at):
                    watch(int(epoch), rows[at == epoch], told[at == epoch])
    network.eval()
    return network


def band_statistics(tiles: Pixels) -> tuple[Floats, Floats]:
    """Mean and standard deviation a band, of some of the tiles."""
    some = tiles[:: max(1, len(tiles) // 1000)].astype(np.float64)
    return some.mean((0, 2, 3)).astype(np.float32), np.maximum(some.std((0, 2, 3)), 1).astype(np.float32)


def warm_cosine(step: int, steps: int) -> float:
    """What the highest rate is multiplied by at a step."""
    warm = max(1, round(WARM * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm)))


def batches(
    n: int, steps: int, batch: int, generator: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each step the pass that each of its rows belongs to, and the rows."""
    waiting = np.zeros(0, np.int64)
    for step in range(steps):
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, generator.permutation(n)])
        rows, waiting = waiting[:batch], waiting[batch:]
        yield np.arange(step * batch, (step + 1) * batch) // n, rows


def _turned(x: Tensor, generator: np.random.Generator) -> Tensor:
    """Each tile in one of its eight positions: mirrored or not, and turned by quarters."""
    ways = torch.from_numpy(generator.integers(8, size=len(x)))
    turned = torch.empty_like(x)
    for way in range(8):
        one = x[ways == way]
        one = one.flip(-1) if way & 1 else one
        one = one.flip(-2) if way & 2 else one
        turned[ways == way] = one.transpose(-1, -2) if way & 4 else one
    return turned
