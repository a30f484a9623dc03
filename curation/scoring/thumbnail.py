"""Small pictures for the report, drawn for a hashed share of the samples."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curation.archive.names import find_band

SIDE = 96  # longest side in pixels; smaller tiles stay as they are
GAMMA = 1.6  # of reflectance, whose land is dark beside its clouds: fixed, so that tiles can be compared
INVALID = 128


def in_share(sample_id: str, share: float) -> bool:
    """Whether a sample belongs to the hashed ``share`` (0 to 1) that gets a thumbnail.

    The last 64 bits of the id decide: sampling draws from the first.
    """
    return int(sample_id[-16:], 16) < share * 2.0**64


def thumbnail(
    pixels: NDArray[np.generic],
    mask: NDArray[np.bool_],
    ranges: NDArray[np.float32],
    bands: Sequence[str],
    radiometry: str = "unknown",
) -> bytes:
    """A JPEG of at most 96 x 96 pixels, scaled by the archive's fixed ranges.

    Args:
        pixels: ``(bands, height, width)``, uint8, uint16, int16 or float32.
        mask: ``(height, width)``, True where valid; the rest is drawn grey.
        ranges: ``(bands, 2)`` in the pixels' units: black and white.
        bands: names; red, green and blue (B04, B03, B02) are found by them, else the first three are drawn, of fewer
            the first as grey.
        radiometry: what the numbers mean; reflectance is drawn brighter, as are 16-bit numbers that may be such.
    """
    out = io.BytesIO()
    picture(pixels, mask, ranges, bands, radiometry).save(out, "JPEG", quality=80)
    return out.getvalue()


def picture(
    pixels: NDArray[np.generic],
    mask: NDArray[np.bool_],
    ranges: NDArray[np.float32],
    bands: Sequence[str],
    radiometry: str = "unknown",
) -> Image.Image:
    """What a :func:`thumbnail` of these is a JPEG of."""
    chosen = _chosen(bands)
    low, high = ranges[chosen, :1, None], ranges[chosen, 1:, None]
    x = np.where(mask, pixels[chosen], low).astype(np.float32)
    x = np.clip((x - low) / np.maximum(high - low, np.finfo(np.float32).tiny), 0, 1)
    if pixels.dtype in (np.uint16, np.int16) or "reflectance" in radiometry:
        x **= 1 / GAMMA
    rgb = np.where(mask, np.rint(x * 255), INVALID).astype(np.uint8)
    image = Image.fromarray(rgb[0] if len(rgb) == 1 else np.ascontiguousarray(rgb.transpose(1, 2, 0)))
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return image


def _chosen(bands: Sequence[str]) -> list[int]:
    found = [at for name in ("red", "green", "blue") if (at := find_band(name, bands)) is not None]
    if len(found) == 3:
        return found
    return [0, 1, 2] if len(bands) >= 3 else [0]
