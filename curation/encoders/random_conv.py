"""Random convolutional features: an encoder without weights, for any bands (the default).

Patches drawn from the archive serve as filters (MOSAIKS: Rolf et al. 2021, "A generalizable and accessible approach
to machine learning with global satellite imagery"), contrast-normalised and whitened as in Coates, Lee and Ng 2011
("An analysis of single-layer networks in unsupervised feature learning"), on a pyramid of scales that halve. What a
filter finds is averaged over the tile and over the filter's eight mirrorings and rotations: a tile and its mirror
image have the same vector. Quantiles of each band stand beside it, and a projection fitted on the archive ends it.

Speed: a whitened patch lies near a space of few dimensions. So a convolution finds its COMPONENTS coordinates, the
patch's contrast is one division of these, and all filters together are one matrix product in a buffer that is used
again and again (fresh memory for each product costs more than the product).
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.sample import Sample
from curation.encoders.base import Artefact, Config, Floats, Preparation, in_batches, start_torch
from curation.errors import RequestError

CONTRAST = (10 / 255) ** 2  # added to a patch's variance: what is flatter than this is noise (range 0 to 1)
RIDGE = 0.1  # added to the whitening's eigenvalues
COMPONENTS = 48  # coordinates of a whitened patch: 99 % of the variance of 6 x 6 x 3
THRESHOLD = 0.5  # a filter's answer counts beyond it, on either side
FLOOR = 1e-4  # added before the square root, which would make rounding errors near zero large
QUANTILES = np.linspace(0.02, 0.98, 16)  # of each band
FADE = 0.7  # spread of each coarser scale's features relative to the one before
COLOUR = 0.5  # spread of the quantiles, beside 1 for the finest scale
POWER = 0.4  # eigenvalue exponent of the projection: between rotation (0) and whitening (0.5)
NOISE = 1e-5  # eigenvalues below this share of the largest are scaled no further: rounding noise is not content
PATCHES = 20_000  # drawn to fit the whitening of a scale
TILES = 8  # convolved at once on a CPU,
ROWS = 1024  # and places multiplied at once, so that the answers stay in the cache

Array = NDArray[Any]


def fit(config: Config, samples: Sequence[Sample], bands: tuple[str, ...], ranges: Floats, seed: int) -> Artefact:
    """Draw filters, and fit whitening and projection, on a sample of the archive.

    Arrays: ``size`` of a tile; for each scale ``i`` ``components_i`` (components, bands, patch, patch), ``offset_i``
    (components,), ``filters_i`` (components, 8 * filters); ``projection`` (features, dim) and ``centre`` (dim,).

    Raises:
        RequestError: fewer than two samples, or tiles smaller than a filter.
    """
    if len(samples) < 2:
        raise RequestError("encoder=random_conv needs at least 2 readable tiles to draw its filters from")
    size = int(min(config["size"], np.median([min(sample.mask.shape) for sample in samples])))
    patch = int(config["patch"])
    if size < patch:
        raise RequestError(f"the archive's tiles are {size} pixels wide: too small for encoder.patch={patch}")
    artefact: Artefact = {"range": ranges, "size": np.array([size], np.int32)}
    prepare, batch = Preparation(ranges, size), int(config["batch"])

    def tiles() -> Iterator[Array]:
        for start in range(0, len(samples), batch):
            yield np.stack([prepare(sample) for sample in samples[start : start + batch]])

    rng = np.random.default_rng(seed)
    for scale, drawn in enumerate(_draw_patches(tiles(), config, ranges, -(-PATCHES // len(samples)), rng)):
        components, offset, filters = _filters(drawn, int(config["filters"]), rng)
        artefact[f"components_{scale}"] = components
        artefact[f"offset_{scale}"] = offset
        artefact[f"filters_{scale}"] = filters
    features = _Features(config, artefact, start_torch("cpu", 1), threads=1)
    raw = np.concatenate([features(part) for part in tiles()]).astype(np.float64)
    artefact["projection"], artefact["centre"] = _projection(raw, features.groups, int(config["dim"]))
    return artefact


def _draw_patches(
    batches: Iterator[Array], config: Config, ranges: Floats, each: int, rng: np.random.Generator
) -> list[Array]:
    """For every scale, ``each`` patches of every tile: ``(patches, bands, patch, patch)``."""
    import torch

    k, bands = int(config["patch"]), np.arange(len(ranges))[:, None, None]
    drawn: list[list[Array]] = []
    for tiles in batches:
        for scale, level in enumerate(_pyramid(_unit_range(torch.as_tensor(tiles), ranges), config)):
            if scale == len(drawn):
                drawn.append([])
            which = np.repeat(np.arange(len(tiles)), each)[:, None, None, None]
            y, x = rng.integers(level.shape[-1] - k + 1, size=(2, len(which), 1, 1, 1))
            drawn[scale].append(level.numpy()[which, bands, y + np.arange(k)[:, None], x + np.arange(k)])
    return [np.concatenate(parts) for parts in drawn]


def _filters(patches: Array, count: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Whitening of contrast-normalised patches, and ``count`` of them, in all eight views, as unit filters there.

    A patch counts by its share of signal, variance / (variance + CONTRAST): flat water must not crowd out the rest.
    """
    shape = patches.shape[1:]
    flat = patches.reshape(len(patches), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    variance = flat.var(axis=1)
    flat /= np.sqrt(variance + CONTRAST)[:, None]
    share = variance / (variance + CONTRAST) + 1e-9
    share /= share.sum()
    views = _eight_views(shape)
    mean = (share @ flat)[views].mean(axis=0)
    moment = (flat * share[:, None]).T @ flat
    covariance = np.mean([moment[np.ix_(view, view)] for view in views], axis=0) - np.outer(mean, mean)
    values, vectors = _eigen(covariance, COMPONENTS + 1)
    keep = min(COMPONENTS, int((values > 1e-6 * values[0]).sum()))
    if 0 < keep < len(values) and values[keep] > values[keep - 1] * (1 - 1e-6):
        keep -= 1  # half of a pair that a quarter turn mixes would spoil the symmetry
    values, vectors = values[: max(keep, 1)], vectors[:, : max(keep, 1)]
    whiten = vectors / np.sqrt(values + RIDGE)
    race = -np.log1p(-rng.random(len(flat))) / share  # the smallest are a weighted draw without replacement
    chosen = flat[np.resize(np.argsort(race)[:count], count)]
    filters = (chosen[:, views].reshape(8 * count, -1) - mean) @ whiten
    filters /= np.maximum(np.linalg.norm(filters, axis=1, keepdims=True), 1e-9)
    offset = mean @ whiten
    whiten -= whiten.mean(axis=0)  # so that it takes a patch's mean out
    components = np.ascontiguousarray(whiten.T).reshape(-1, *shape)
    return components.astype(np.float32), offset.astype(np.float32), np.ascontiguousarray(filters.T, dtype=np.float32)


def _eight_views(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """``(8, bands * k * k)``: for each mirroring and rotation, where a flattened patch's numbers come from."""
    places = np.arange(np.prod(shape)).reshape(shape)
    views = [np.rot90(side, turn, (1, 2)) for side in (places, places[..., ::-1]) for turn in range(4)]
    return np.stack(views).reshape(8, -1)


def _eigen(covariance: Array, count: int) -> tuple[Array, Array]:
    """The largest eigenvalues, not negative, and their vectors as columns, the largest number of each positive."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1][:count], 0), vectors[:, ::-1][:, :count]
    largest = np.abs(vectors).argmax(axis=0)
    return values, vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])


def _projection(raw: Array, groups: Sequence[tuple[int, float]], dim: int) -> tuple[Floats, Floats]:
    """Principal axes of the features, each scaled by its eigenvalue ** -POWER, and the mean on them.

    ``groups`` gives length and wished spread of each run of features. Half as many axes as tiles at most: the
    others would be noise.
    """
    spread = np.concatenate([np.full(length, wish) for length, wish in groups])
    start = 0
    for length, _ in groups:
        total = raw[:, start : start + length].var(axis=0).sum()
        spread[start : start + length] /= np.sqrt(total) + 1e-6
        start += length
    values, vectors = _eigen(np.cov((raw * spread).T), min(dim, max(2, len(raw) // 2)))
    axes = spread[:, None] * vectors * np.maximum(values, NOISE * values[0] + 1e-12) ** -POWER
    return axes.astype(np.float32), (raw.mean(axis=0) @ axes).astype(np.float32)


def _unit_range(tiles: Any, ranges: Any) -> Any:
    """A tensor of tiles as float32 in [0, 1]; prepared float tiles are already."""
    import torch

    if tiles.dtype != torch.uint8:
        return tiles
    low, high = torch.as_tensor(ranges, device=tiles.device).T[:, :, None, None]
    return ((tiles.float() - low) / (high - low)).clamp(0, 1)


def _pyramid(tiles: Any, config: Config) -> list[Any]:
    """The tiles at every scale, each half the one before, down to the size of a filter."""
    import torch.nn.functional as F

    levels = [tiles]
    while len(levels) < len(config["strides"]) and (half := levels[-1].shape[-1] // 2) >= int(config["patch"]):
        even = levels[-1].shape[-1] % 2 == 0  # an odd size is halved by overlapping windows: slower, and symmetric
        levels.append(F.avg_pool2d(levels[-1], 2) if even else F.adaptive_avg_pool2d(levels[-1], half))
    return levels


def _centred(tiles: Any, patch: int, stride: int) -> tuple[Any, int]:
    """The tiles without the margin that a stride leaves over, and the stride.

    The places where filters look must lie symmetrically, so an odd margin takes a smaller stride.
    """
    room = tiles.shape[-1] - patch
    while room % stride % 2:
        stride -= 1
    margin = room % stride // 2
    return tiles[..., margin : tiles.shape[-1] - margin, margin : tiles.shape[-1] - margin], stride


class _Features:
    """From prepared tiles to features, before the projection; ``groups`` are their lengths and wished spreads."""

    def __init__(self, config: Config, artefact: Artefact, device: Any, threads: int) -> None:
        import torch

        def put(name: str) -> Any:
            return torch.as_tensor(artefact[name], device=device)

        self.config, self.device = config, device
        self.ranges, self.patch = put("range"), int(config["patch"])
        count = sum(name.startswith("filters_") for name in artefact)
        self.scales = [(put(f"components_{i}"), put(f"offset_{i}"), put(f"filters_{i}")) for i in range(count)]
        length = self.scales[0][2].shape[1] // 8 * 2
        self.groups = [(length, FADE**i) for i in range(count)] + [(len(QUANTILES) * len(self.ranges), COLOUR)]
        self.pool = ThreadPoolExecutor(threads) if device.type == "cpu" and threads > 1 else None
        self.buffers = threading.local()

    def __call__(self, tiles: Array) -> Floats:
        """``(n, bands, size, size)`` -> ``(n, features)``."""
        import torch

        tensor = torch.as_tensor(tiles)
        if self.device.type != "cpu":
            return np.asarray(self._part(tensor.to(self.device)).cpu().numpy())
        parts = [tensor[start : start + TILES] for start in range(0, len(tensor), TILES)]
        done = self.pool.map(self._part, parts) if self.pool else map(self._part, parts)
        return np.concatenate([part.numpy() for part in done])

    def _part(self, tiles: Any) -> Any:
        import torch

        with torch.inference_mode():
            levels = _pyramid(_unit_range(tiles, self.ranges), self.config)
            found = [
                self._scale(level, int(stride), *arrays)
                for level, stride, arrays in zip(levels, self.config["strides"], self.scales, strict=False)
            ]
            coarse = levels[min(2, len(levels) - 1)].flatten(2)
            ranks = np.rint(QUANTILES * (coarse.shape[2] - 1)).astype(np.int64)
            colour = coarse.sort(dim=2).values[:, :, ranks].flatten(1)
            return torch.cat([*found, colour], dim=1)

    def _scale(self, tiles: Any, stride: int, components: Any, offset: Any, filters: Any) -> Any:
        """Mean answer of each filter beyond the threshold, above and below, over places and views: ``(n, 2 f)``."""
        import torch
        import torch.nn.functional as F

        tiles, stride = _centred(tiles, self.patch, stride)
        moments = torch.stack([tiles.mean(1), (tiles * tiles).mean(1)], dim=1)
        moments = F.avg_pool2d(moments, self.patch, stride)
        mean, square = moments[:, :1], moments[:, 1:]
        scale = torch.rsqrt((square - mean * mean).clamp_min(0) + CONTRAST)
        z = (F.conv2d(tiles, components, stride=stride) * scale).flatten(2).transpose(1, 2) - offset
        step = max(1, ROWS // z.shape[1]) if self.device.type == "cpu" else len(z)
        found = torch.cat([self._answers(z[start : start + step], filters) for start in range(0, len(z), step)])
        return found.view(len(z), -1, 8).mean(2).clamp_min(0).add(FLOOR).sqrt()

    def _answers(self, z: Any, filters: Any) -> Any:
        """Over all places: ``(n, places, components)`` -> ``(n, 2 * views)``."""
        import torch

        n, places, _ = z.shape
        answers, beyond = self._buffer(n * places, filters.shape[1])
        torch.mm(z.reshape(n * places, -1), filters, out=answers)
        torch.clamp(answers, min=THRESHOLD, out=beyond)
        above = beyond.view(n, places, -1).mean(1)
        torch.clamp(answers, max=-THRESHOLD, out=beyond)
        below = beyond.view(n, places, -1).mean(1)
        return torch.cat([above - THRESHOLD, -THRESHOLD - below], dim=1)

    def _buffer(self, rows: int, columns: int) -> Any:
        """Two float32 matrices of this thread, whose content nobody needs."""
        import torch

        held = self.buffers.__dict__
        if held.get("room", 0) < rows * columns:
            held["room"] = rows * columns
            held["memory"] = torch.empty(2, rows * columns, device=self.device)
        return held["memory"][:, : rows * columns].view(2, rows, columns)


class RandomConv:
    """The encoder ``random_conv``; see the module's docstring."""

    name = "random_conv"
    needs_pixels = True

    def __init__(self, config: Config, artefact: Artefact, device: Any, threads: int) -> None:
        self.batch = int(config["batch"])
        self.prepare = Preparation(artefact["range"], int(artefact["size"][0]))
        self.dim = artefact["projection"].shape[1]
        self._features = _Features(config, artefact, device, threads)
        self._projection, self._centre = artefact["projection"], artefact["centre"]

    def encode(self, tiles: NDArray[Any]) -> Floats:
        """``(n, bands, size, size)`` -> ``(n, dim)``, unit length."""
        return in_batches(tiles, self.batch, self._forward)

    def _forward(self, tiles: Array) -> Floats:
        return np.asarray(self._features(tiles) @ self._projection - self._centre)


def build(
    config: Config, artefact: Artefact, bands: tuple[str, ...], dtype: str, device: str, threads: int
) -> RandomConv:
    """The encoder from its artefact.

    On a CPU each of ``threads`` threads works on tiles of its own, so the bits do not depend on their number.
    """
    where = start_torch(device, threads if device.startswith("cuda") else 1)
    return RandomConv(config, artefact, where, threads)
