"""Views of tiles: what an overhead image may undergo and still show the same place, made in batches on the device.

A random resized crop, mirroring, quarter turns, another gain and offset a band, blur; of radar, whose bands are in dB,
an offset alone (a gain in dB is a power law, which no sensor has) and speckle. No hue (bands are physical), no JPEG.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curation.evaluation.pretraining import OFFSET, blurred, cropped, numbers, relit

Floats = NDArray[np.floating[Any]]

LOOKS = (2.0, 16.0)  # of the speckle that a radar view gets: the fewer, the stronger
SPECKLED = 0.5  # share of the radar views that get it
DECIBELS = 10 / np.log(10)


def views(
    x: Tensor,
    side: int,
    area: tuple[float, float],
    generator: np.random.Generator,
    noise: torch.Generator,
    decibels: Floats | None = None,
) -> Tensor:
    """One random view of each tile.

    Args:
        x: float32 (n, bands, size, size), bands standardised.
        side: pixels a side of the views.
        area: least and largest share of the tile's area that a view shows.
        generator: draws what happens to each tile.
        noise: draws the speckle, on the device of ``x``.
        decibels: (bands,), for each band what 1 dB is in standard deviations; 0 for one that is no radar;
            None: none is.

    Returns:
        float32 (n, bands, side, side), channels last.
    """
    made = cropped(x, side, area, generator)
    if decibels is None:
        made = relit(made, generator)
    else:
        shift = OFFSET * (generator.normal(size=(len(x), 1)) + generator.normal(size=x.shape[:2]) / 2)
        seen = speckled(made + numbers(shift, x), decibels, generator, noise)
        radar = torch.as_tensor(decibels > 0, device=x.device)[:, None, None]
        made = seen if (decibels > 0).all() else torch.where(radar, seen, relit(made, generator))
    return blurred(made, generator).contiguous(memory_format=torch.channels_last)


def speckled(x: Tensor, decibels: Floats, generator: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Multiplicative noise of mean 1, as that of power averaged over `LOOKS` looks, on `SPECKLED` of the tiles.

    A sum over looks has a gamma distribution; its logarithm is taken as normal (log-normal with the same coefficient
    of variation, 1 / sqrt(looks)), which in dB is added.
    """
    few, many = np.log(LOOKS)
    looks = np.exp(generator.uniform(few, many, len(x)))
    spread = np.sqrt(np.log1p(1 / looks)) * (generator.uniform(0, 1, len(x)) < SPECKLED)
    drawn = torch.randn(x.shape, generator=noise, device=x.device)
    drawn = drawn * numbers(spread, x) - numbers(spread**2 / 2, x)
    scale = torch.as_tensor(DECIBELS * decibels, dtype=x.dtype, device=x.device)
    return torch.addcmul(x, drawn, scale[:, None, None])
