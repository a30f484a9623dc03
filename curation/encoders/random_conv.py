"""Random convolutional features: an encoder without weights, for any bands (the default).

Patches drawn from the archive, contrast-normalised and whitened, serve as filters (MOSAIKS: Rolf et al. 2021, "A
generalizable and accessible approach to machine learning with global satellite imagery"; patch normalisation and
whitening as in Coates, Lee and Ng 2011). Each filter is averaged over its eight mirrorings and rotations, so a tile
and its mirror image have the same vector.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.sample import Sample
from curation.encoders.base import Artefact, Config, Floats, Preparation, in_batches, start_torch
from curation.errors import RequestError

CONTRAST = (10 / 255) ** 2  # added to a patch's variance: what is flatter than this is noise (range 0 to 1)
RIDGE = 0.1  # added to the whitening's eigenvalues
QUANTILES = np.linspace(0.02, 0.98, 9)
COLOUR = 0.5  # spread of the band quantiles beside the filters'
POWER = 0.25  # eigenvalue exponent of the last projection: between rotation (0) and whitening (0.5)


def fit(config: Config, samples: Sequence[Sample], bands: tuple[str, ...], ranges: Floats, seed: int) -> Artefact:
    """Draw filters and fit whitening and the last projection on a sample of the archive."""
    import torch

    if len(samples) < 2:
        raise RequestError("encoder random_conv needs at least 2 readable tiles to draw its filters from")
    size = int(min(config["size"], np.median([min(sample.mask.shape) for sample in samples])))
    patch = int(config["patch"])
    if size < patch:
        raise RequestError(f"the archive's tiles are {size} pixels wide, encoder.patch={patch} is wider")
    rng = np.random.default_rng(seed)
    prepare = Preparation(ranges, size)
    tiles = np.stack([prepare(sample) for sample in samples])
    artefact: Artefact = {"range": ranges, "size": np.array([size], np.int32)}
    low, span = ranges[:, 0], ranges[:, 1] - ranges[:, 0]

    def patches(n: int) -> NDArray[Any]:
        which = rng.integers(len(tiles), size=n)
        corner = rng.integers(size - patch + 1, size=(n, 2))
        cut = np.stack(
            [tiles[i, :, y : y + patch, x : x + patch] for i, (y, x) in zip(which, corner, strict=True)]
        ).astype(np.float64)
        if tiles.dtype == np.uint8:
            cut = np.clip((cut - low[:, None, None]) / span[:, None, None], 0, 1)
        cut -= cut.mean(axis=(1, 2, 3), keepdims=True)
        cut /= np.sqrt(cut.var(axis=(1, 2, 3), keepdims=True) + CONTRAST)
        return eight(cut).reshape(n, 8, -1)

    sample_of = patches(20000).reshape(-1, len(bands) * patch**2)
    mean = sample_of.mean(0)
    values, vectors = np.linalg.eigh(np.cov((sample_of - mean).T))
    whiten = vectors / np.sqrt(np.maximum(values, 0) + RIDGE)
    filters = (patches(int(config["filters"])).reshape(-1, len(mean)) - mean) @ whiten
    filters /= np.linalg.norm(filters, axis=1, keepdims=True)
    weight = filters @ whiten.T
    artefact["bias"] = (-weight @ mean).astype(np.float32)
    weight -= weight.mean(axis=1, keepdims=True)  # takes a patch's mean out
    artefact["weight"] = weight.reshape(-1, len(bands), patch, patch).astype(np.float32)

    net = _Features(config, artefact, torch.device("cpu"))
    batch = int(config["batch"])
    raw = np.concatenate([net(tiles[i : i + batch]) for i in range(0, len(tiles), batch)]).astype(np.float64)
    split = 2 * int(config["filters"])
    scale = np.ones(raw.shape[1])
    scale[:split] /= np.sqrt(raw[:, :split].var(0).sum()) + 1e-12
    scale[split:] *= COLOUR / (np.sqrt(raw[:, split:].var(0).sum()) + 1e-12)
    raw *= scale
    centre = raw.mean(0)
    values, vectors = np.linalg.eigh(np.cov((raw - centre).T))
    order = np.argsort(-values)[: min(int(config["dim"]), raw.shape[1])]
    vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(0), order])
    vectors *= np.maximum(values[order], values.max() * 1e-6) ** -POWER
    artefact["projection"] = (scale[:, None] * vectors).astype(np.float32)
    artefact["centre"] = (centre @ vectors).astype(np.float32)
    return artefact


def eight(patches: NDArray[Any]) -> NDArray[Any]:
    """``(n, bands, k, k)`` -> ``(n, 8, bands, k, k)``: the eight mirrorings and rotations."""
    views = [np.rot90(side, turn, (2, 3)) for side in (patches, patches[..., ::-1]) for turn in range(4)]
    return np.stack(views, axis=1)


class _Features:
    def __init__(self, config: Config, artefact: Artefact, device: Any) -> None:
        import torch

        def put(array: NDArray[Any]) -> Any:
            return torch.as_tensor(np.asarray(array, np.float32), device=device)

        self.device, self.stride = device, int(config["stride"])
        self.low, self.high = put(artefact["range"].T[:, None, :, None, None])
        self.weight, self.bias = put(artefact["weight"]), put(artefact["bias"])
        self.box = torch.full_like(self.weight[:1], 1 / self.weight[0].numel())
        size = int(artefact["size"][0])
        self.ranks = torch.as_tensor(np.rint(QUANTILES * (size * size - 1)).astype(np.int64), device=device)

    def __call__(self, tiles: NDArray[Any]) -> Floats:
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            x = torch.as_tensor(tiles, device=self.device).float()
            if tiles.dtype == np.uint8:
                x = ((x - self.low) / (self.high - self.low)).clamp(0, 1)
            mean = F.conv2d(x, self.box, stride=self.stride)
            square = F.conv2d(x * x, self.box, stride=self.stride)
            contrast = torch.rsqrt((square - mean * mean).clamp_min(0) + CONTRAST)
            y = F.conv2d(x, self.weight, stride=self.stride) * contrast + self.bias[:, None, None]
            y = y.flatten(2)
            both = torch.stack([y.relu().mean(2), (-y).relu().mean(2)], dim=2)
            both = both.view(len(y), -1, 8, 2).mean(2).flatten(1).sqrt()
            colour = x.flatten(2).sort(dim=2).values[:, :, self.ranks].flatten(1)
            return np.asarray(torch.cat([both, colour], dim=1).cpu().numpy(), np.float32)


class RandomConv:
    """The encoder ``random_conv``; see the module's docstring."""

    name = "random_conv"
    needs_pixels = True

    def __init__(self, config: Config, artefact: Artefact, device: Any) -> None:
        import torch

        self.batch, self.size = int(config["batch"]), int(artefact["size"][0])
        self.prepare = Preparation(artefact["range"], self.size)
        self.features = _Features(config, artefact, device)
        self.projection = torch.as_tensor(artefact["projection"])
        self.centre = torch.as_tensor(artefact["centre"])
        self.dim = self.projection.shape[1]

    def encode(self, tiles: NDArray[Any]) -> Floats:
        """``(n, bands, size, size)`` -> ``(n, dim)``."""
        return in_batches(tiles, self.batch, self._forward)

    def _forward(self, tiles: NDArray[Any]) -> Floats:
        import torch

        with torch.inference_mode():
            raw = torch.as_tensor(self.features(tiles))
            return np.asarray((raw @ self.projection - self.centre).numpy())


def build(
    config: Config, artefact: Artefact, bands: tuple[str, ...], dtype: str, device: str, threads: int
) -> RandomConv:
    """The encoder from its artefact."""
    return RandomConv(config, artefact, start_torch(device, threads))
