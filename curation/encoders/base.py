"""What every encoder has in common: the interface, building one from a config, and how a tile becomes its input."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curation.archive.sample import Sample
from curation.errors import RequestError

Artefact = dict[str, NDArray[Any]]
Config = Mapping[str, Any]
Floats = NDArray[np.float32]

ENCODERS = ("random_conv", "open_clip", "timm", "precomputed", "joined")  # each a module here with `fit` and `build`

QUALITY = {  # what is known of each, for the page
    "random_conv": (
        "Features of random patches, without training: a baseline that needs no weights. On AID (6,001 aerial images "
        "of 30 classes, 96 px, 60/40 split) 5-NN reaches 0.69 and a linear probe 0.75; a pretrained remote-sensing "
        "encoder groups scenes by meaning far better."
    ),
    "open_clip": "A pretrained image-text model: as good as its checkpoint is on such imagery; it sees three bands.",
    "timm": "A pretrained image model: as good as its checkpoint is on imagery like this.",
    "joined": "Several encoders side by side, each on bands of its own: as good as they are on these.",
    "precomputed": "Vectors from elsewhere: whoever made them knows how good they are.",
}


class Encoder(Protocol):
    """Turns tiles into vectors of unit length.

    Attributes:
        name: which encoder, and where it matters which weights.
        dim: length of a vector.
        batch: tiles a forward; every forward has this one shape, padded, so that a row never depends on the others.
        needs_pixels: False where the vectors come from elsewhere.
    """

    name: str
    dim: int
    batch: int
    needs_pixels: bool

    @property
    def prepare(self) -> Callable[[Sample], NDArray[Any]]:
        """Makes a sample's tile ``(channels, size, size)``, the same shape and dtype for all; small when pickled."""
        ...

    def encode(self, tiles: NDArray[Any]) -> Floats:
        """Embed up to ``batch`` prepared tiles: ``(n, channels, size, size)`` -> ``(n, dim)``, unit length."""
        ...


def fit_artefact(
    config: Config, samples: Sequence[Sample], bands: tuple[str, ...], ranges: Floats, seed: int
) -> Artefact:
    """What the encoder has to know besides its config, as named arrays; the same for the same samples and seed.

    Args:
        config: the encoder's config; ``name`` says which.
        samples: a sample of the archive (labels are not looked at).
        bands: names of the archive's bands.
        ranges: ``(bands, 2)``, the fixed radiometric range of each band; kept in the artefact as ``range``.
        seed: of everything that is drawn.

    Raises:
        RequestError: the config is wrong, or too little can be learnt from the samples.
    """
    module = _module(config)
    if config["name"] == "precomputed":
        return dict(module.fit(config))
    ranges = np.asarray(ranges, np.float32)
    if ranges.shape != (len(bands), 2) or not (ranges[:, 1] > ranges[:, 0]).all():
        raise RequestError(f"archive.range must give low < high for each of {len(bands)} bands, not {ranges.tolist()}")
    artefact: Artefact = module.fit(config, samples, bands, ranges, seed)
    return {"range": ranges, **artefact}


def build_encoder(
    config: Config, artefact: Artefact, bands: tuple[str, ...], dtype: str, device: str, threads: int
) -> Encoder:
    """The encoder that ``config`` names, ready to encode.

    Args:
        config: as given to :func:`fit_artefact`.
        artefact: what that returned.
        bands: names of the archive's bands.
        dtype: the archive's dtype.
        device: ``cpu`` or ``cuda``.
        threads: of torch in this process; the bits of a vector depend on it.

    Raises:
        RequestError: the config is wrong, or does not fit its checkpoint.
    """
    encoder: Encoder = _module(config).build(config, artefact, bands, dtype, device, threads)
    return encoder


def compute_dtype(config: Config, device: str) -> str:
    """What an encoder computes in: networks take bfloat16 on a GPU, everything else float32."""
    names = {config["name"], *(part["name"] for part in (config.get("parts") or {}).values())}
    return "bfloat16" if device.startswith("cuda") and names & {"open_clip", "timm"} else "float32"


def _module(config: Config) -> Any:
    name = config.get("name")
    if name not in ENCODERS:
        raise RequestError(f"encoder.name={name!r} is none of {', '.join(ENCODERS)}")
    return importlib.import_module(f"curation.encoders.{name}")


def start_torch(device: str, threads: int) -> Any:
    """The torch device, with the thread count set and every fast-but-loose mode off.

    Raises:
        RequestError: there is no such device.
    """
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False  # the choice of algorithm would depend on timings
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError(f"device {device} is not there; set encoder.device=cpu")
    return torch.device(device)


def filled(sample: Sample) -> NDArray[Any]:
    """The sample's pixels with the mean of a band's valid pixels in the place of its invalid ones."""
    if sample.mask.all():
        return sample.pixels
    pixels = sample.pixels.copy()
    means = pixels[:, sample.mask].mean(axis=1, dtype=np.float64) if sample.mask.any() else np.zeros(len(pixels))
    if pixels.dtype.kind in "ui":
        means = np.rint(means)
    pixels[:, ~sample.mask] = means.astype(pixels.dtype)[:, None]
    return pixels


def resized(pixels: NDArray[Any], size: int, resample: Image.Resampling) -> NDArray[Any]:
    """``(bands, h, w)`` uint8 or float32 -> ``(bands, size, size)``; downwards the filter widens to average over areas.

    Pillow works on one band at a time, in one thread: the bits do not depend on the machine's cores. Its 8-bit mode
    rounds between rows and columns, so that a tile and its quarter turn come out different; its float mode does not.
    """
    if pixels.shape[1:] == (size, size):
        return np.ascontiguousarray(pixels)
    images = (Image.fromarray(band.astype(np.float32)) for band in pixels)
    changed = np.stack([np.asarray(image.resize((size, size), resample)) for image in images])
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8) if pixels.dtype == np.uint8 else changed


def scaled(pixels: NDArray[Any], ranges: Floats) -> Floats:
    """Pixels as float32 in [0, 1] over the fixed ``(bands, 2)`` ranges, clipped at both ends."""
    low, high = ranges[:, 0, None, None], ranges[:, 1, None, None]
    return np.clip((pixels.astype(np.float32) - low) / (high - low), 0, 1)


@dataclass(frozen=True)
class Preparation:
    """Makes tiles out of samples; small, and so cheap to send to a decoding task.

    Attributes:
        ranges: ``(bands, 2)`` of the tile's bands, in the pixels' units.
        size: pixels a side of the tile.
        bands: which of the archive's bands, by position and in this order; None: all.
        less: for each of ``bands`` the one that is taken off it, or None; None: nothing is.
        crop: whether a tile that is not square loses its longer ends (else it is squeezed).
        resample: the filter of a change in size.
    """

    ranges: Floats
    size: int
    bands: tuple[int, ...] | None = None
    less: tuple[int | None, ...] | None = None
    crop: bool = False
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def __call__(self, sample: Sample) -> NDArray[Any]:
        """``(bands, size, size)``: 8-bit archives stay uint8 as stored, all others are scaled to [0, 1], float32."""
        pixels = whole = filled(sample)
        if self.bands is not None:
            pixels = whole[list(self.bands)]
        if self.less is not None and any(band is not None for band in self.less):
            pixels = pixels.astype(np.float32)
            for i, band in enumerate(self.less):
                pixels[i] -= 0 if band is None else whole[band]
        if self.crop:
            height, width = pixels.shape[1:]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            pixels = pixels[:, top : top + side, left : left + side]
        return resized(pixels if pixels.dtype == np.uint8 else scaled(pixels, self.ranges), self.size, self.resample)


def in_batches(tiles: NDArray[Any], batch: int, forward: Callable[[NDArray[Any]], Floats]) -> Floats:
    """Run ``forward`` on the tiles padded with zeros to ``batch``, and give the rows of the real ones, unit length."""
    n = len(tiles)
    if n > batch:
        raise ValueError(f"{n} tiles for a batch of {batch}")
    if n < batch:
        tiles = np.concatenate([tiles, np.zeros((batch - n, *tiles.shape[1:]), tiles.dtype)])
    return unit_length(forward(tiles)[:n])


def unit_length(rows: Floats) -> Floats:
    """Rows scaled to length 1, in float32; a row of zeros becomes the first axis."""
    rows = np.asarray(rows, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.where(norms > 0, rows / np.maximum(norms, 1e-30), np.eye(1, rows.shape[1], dtype=np.float32))
    return rows.astype(np.float32)
