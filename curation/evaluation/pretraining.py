"""The pre-training measure: one small self-supervised recipe from scratch on each kept set, then frozen and probed.

SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"), head and loss by
lightly, on the body `curation.scoring.network.Small`. (In the 20 s in which SimCLR learned, SimSiam did no better than
a network that never trained: docs/method.md.) Every arm has as many steps of as many tiles, however many it keeps;
copies in one batch are wrong negatives, as in any contrastive training. Views are made on batches of tensors, of what
an overhead image may undergo: a random resized crop, mirroring, quarter turns, a gain and an offset a band, blur; no
hue (bands are physical), no JPEG.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn import functional as F

from curation.evaluation.diversity import vendi_score
from curation.evaluation.moments import Moments
from curation.evaluation.probe import Codes, Features, Score, linear, nearest_neighbours
from curation.scoring.network import DECAY, RATE, Network, Small, band_statistics, batches, warm_cosine

Pixels = NDArray[np.uint8]

STEPS = 500
BATCH = 128
PROJECTED = 256  # numbers that views are compared by, and hidden ones of the head
TEMPERATURE = 0.2

SIDE = 2 / 3  # of a view, of the tile's
CROP = (0.2, 0.7)  # share of the tile's area that a view shows
ASPECT = 4 / 3  # of a view's sides on the ground, at most
GAIN = 0.3  # standard deviation of a view's logarithmic gain
OFFSET = 0.3  # and of its offset, in standard deviations of the band
BLURRED = 0.5  # share of the views that are blurred


@dataclass(frozen=True)
class Pretrained:
    """A frozen body.

    Attributes:
        network: its `features` are vectors (n, 128) of tiles.
        loss: mean of the last tenth of the steps; log(2 x batch - 1) where nothing was learned.
        spread: standard deviation of a number of the last batch's projections, of unit length, mean over the numbers,
            times the square root of how many there are: near 1 where directions fill the space, 0 where all views are
            one vector (Chen and He 2021, "Exploring Simple Siamese Representation Learning", section 4.1).
        rank: `vendi_score` of the same projections: the spread is 1 along a single line too, the rank then 1.
    """

    network: Network
    loss: float
    spread: float
    rank: float


def pretrain(
    tiles: Pixels,
    *,
    seed: int,
    steps: int = STEPS,
    batch: int = BATCH,
    device: str = "cpu",
    body: Callable[[int], Any] = Small,
) -> Pretrained:
    """Train a body from scratch on tiles without labels: AdamW, a rate that rises, then falls as a cosine.

    The same arguments give the same body with the same number of torch's threads.

    Args:
        tiles: uint8 (n, bands, size, size), n at least 2.
        seed: of the first weights, the order and the views.
        steps: of the optimiser.
        batch: tiles a step, two views of each; all of them, where there are fewer (a tile is no negative of its own).
        device: ``cpu`` or ``cuda``.
        body: makes the network out of the number of bands; has ``dim``.

    Raises:
        ValueError: fewer than two tiles, or no step.
    """
    if len(tiles) < 2 or steps < 1:
        raise ValueError(f"{len(tiles)} tiles, {steps} steps: at least two tiles and one step are needed")
    with torch.random.fork_rng():  # the first weights are drawn from torch's global state
        torch.manual_seed(seed)
        made = body(tiles.shape[1])
        network = Network(made, made.dim, 1, *band_statistics(tiles))
        project = SimCLRProjectionHead(made.dim, PROJECTED, PROJECTED)
    trained = nn.ModuleList([network.body, project]).to(device).to(memory_format=torch.channels_last)
    network.to(device)
    optimiser = torch.optim.AdamW(trained.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, steps))
    criterion, generator = NTXentLoss(TEMPERATURE), np.random.default_rng(seed)
    losses = []
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for _, rows in batches(len(tiles), steps, min(batch, len(tiles)), generator):
            x = (torch.from_numpy(tiles[rows]).to(device) - network.mean) / network.std
            one, other = (project(network.body(view(x, generator))) for _ in range(2))
            loss = criterion(one, other)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
    last = F.normalize(one.detach()).cpu()
    spread = float(last.std(0).mean()) * PROJECTED**0.5
    return Pretrained(
        network.eval(), float(np.mean(losses[-max(1, steps // 10) :])), spread, vendi_score(Moments.of(last.numpy()))
    )


def view(x: Tensor, generator: np.random.Generator) -> Tensor:
    """A random view of each tile of a batch.

    Args:
        x: float32 (n, bands, size, size), bands standardised.
        generator: draws what happens to each tile.

    Returns:
        float32 (n, bands, side, side), `SIDE` of the tile's, to the nearest multiple of 4, which the body's stem takes.
    """
    made = relit(cropped(x, 4 * round(SIDE * x.shape[-1] / 4), CROP, generator), generator)
    return blurred(made, generator).contiguous(memory_format=torch.channels_last)


def cropped(x: Tensor, side: int, area: tuple[float, float], generator: np.random.Generator) -> Tensor:
    """A random rectangle of each tile, mirrored or not, turned by quarters, resampled to ``side`` pixels.

    Args:
        x: float32 (n, bands, size, size).
        side: pixels a side of what is made.
        area: least and largest share of the tile's area that it shows.
        generator: draws the rectangles.
    """
    n = len(x)
    shares, aspect = generator.uniform(*area, n), np.exp(generator.uniform(-1, 1, n) * np.log(ASPECT))
    sides = np.minimum(np.sqrt(shares * np.stack([aspect, 1 / aspect])), 1)  # (2, n), of the tile's own
    centre = generator.uniform(-1, 1, (2, n)) * (1 - sides)  # affine_grid counts from -1 to 1
    mirror, turn = generator.choice([-1, 1], n), generator.integers(4, size=n)
    cos, sin = np.array([1, 0, -1, 0])[turn], np.array([0, 1, 0, -1])[turn]
    rows = [sides[0] * cos * mirror, -sides[0] * sin, centre[0], sides[1] * sin * mirror, sides[1] * cos, centre[1]]
    theta = _beside(np.stack(rows, 1).reshape(n, 2, 3), x)
    grid = F.affine_grid(theta, [*x.shape[:2], side, side], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def relit(x: Tensor, generator: np.random.Generator) -> Tensor:
    """Another gain and offset: one for all bands of a tile, and half as much again for each band."""
    gain, offset = (
        scale * (generator.normal(size=(len(x), 1)) + generator.normal(size=x.shape[:2]) / 2)
        for scale in (GAIN, OFFSET)
    )
    return torch.addcmul(numbers(offset, x), x, numbers(np.exp(gain), x))


def blurred(x: Tensor, generator: np.random.Generator) -> Tensor:
    """`BLURRED` of the tiles, each to a degree of its own."""
    made = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = generator.uniform(0, 1, len(x)) * (generator.uniform(0, 1, len(x)) < BLURRED)
    return torch.lerp(x, made, numbers(share, x))


def numbers(values: NDArray[np.float64], x: Tensor) -> Tensor:
    """A number a tile, or a tile and band, that broadcasts over the batch."""
    return _beside(values.reshape(len(x), -1, 1, 1), x)


def _beside(values: NDArray[np.float64], x: Tensor) -> Tensor:
    """Of the type and on the device of a tensor; nobody waits for the device."""
    return torch.as_tensor(values, dtype=x.dtype).to(x.device, non_blocking=True)


def probe(network: Network, train: tuple[Pixels, Codes], test: tuple[Pixels, Codes], seed: int) -> dict[str, Score]:
    """``knn`` and ``linear`` on the frozen body's features.

    Args:
        network: as `pretrain` left it.
        train: the labelled set's training part: tiles uint8 (n, bands, size, size) and codes (n,). One for all arms,
            disjoint from archive and bank.
        test: its test part, of the same form.
        seed: of the linear probe's inner split.
    """
    one, other = (Features(network.features(tiles), codes) for tiles, codes in (train, test))
    return {"knn": nearest_neighbours(one, other), "linear": linear(one, other, seed)}
