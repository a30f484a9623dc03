"""Clouds and validity: mask bands are found by name, taken off the pixels and read by a table; or a detector looks.

"Cloudy" is cloud, cirrus and cloud shadow: where the ground is not seen as it is.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.names import find_band, holds_pixels
from curation.archive.sample import Image
from curation.archive.settings import CloudsConfig
from curation.errors import AccessError, RequestError

Bools = NDArray[np.bool_]

DETECTOR_LEAST = 50  # pixels a side below which omnicloudmask has too little to go by; smaller tiles are mirrored
DETECTOR_VERSION = 4.0  # of its weights: named, so that a new release does not change what is cloud
DETECTED = (1, 2, 3)  # of its classes thick cloud, thin cloud, cloud shadow; 0 is clear


@dataclass(frozen=True)
class Legend:
    """What a mask band's values mean; ``bits`` where each bit has a meaning of its own."""

    cloudy: tuple[int, ...] = ()
    invalid: tuple[int, ...] = ()
    bits: bool = False
    above: float | None = None

    def read(self, values: NDArray[Any]) -> tuple[Bools, Bools]:
        """Where it is cloudy, and where nothing valid was seen."""
        if self.above is not None:
            return values >= self.above, np.isin(values, self.invalid)
        if self.bits:
            bits = np.nan_to_num(values).astype(np.int64)
            cloudy, invalid = (sum((1 << bit for bit in chosen), 0) for chosen in (self.cloudy, self.invalid))
            return (bits & cloudy) != 0, (bits & invalid) != 0
        return np.isin(values, self.cloudy), np.isin(values, self.invalid)


PROBABLE = 40  # percent from which s2cloudless's own mask says cloud

# Masks that are all called cloud_mask: SEnSeI v2 with the four classes of CloudSEN12 (Major TOM) or with seven
# (SSL4EO-S12 v1.1, TerraMesh: land, water, snow, thin cloud, thick cloud, shadow, no data).
FOUR, SEVEN = "four", "seven"
CLASSES = {FOUR: Legend(cloudy=(1, 2, 3), invalid=(255,)), SEVEN: Legend(cloudy=(3, 4, 5), invalid=(6, 255))}
MEANING = {
    FOUR: "0 clear, 1 thick cloud, 2 thin cloud, 3 shadow",
    SEVEN: "0 land, 1 water, 2 snow, 3 thin cloud, 4 thick cloud, 5 shadow, 6 no data",
}
AMBIGUOUS = ("cloud_mask", "cloudmask")

LEGENDS = {  # by the band's name without a modality, in lower case
    "scl": Legend(cloudy=(3, 8, 9, 10), invalid=(0, 1)),  # Sen2Cor: shadow, medium, high, cirrus; no data, defective
    "msk_cldprb": Legend(above=PROBABLE),  # percent
    "cldprb": Legend(above=PROBABLE),
    "cld": Legend(above=PROBABLE),
    "clp": Legend(above=PROBABLE / 100 * 255),  # Sentinel Hub: 255 is certain
    "clm": Legend(cloudy=(1,), invalid=(255,)),  # Sentinel Hub
    "datamask": Legend(invalid=(0,)),  # Sentinel Hub
    "qa60": Legend(cloudy=(10, 11), bits=True),  # opaque cloud, cirrus
    "qa_pixel": Legend(cloudy=(1, 2, 3, 4), invalid=(0,), bits=True),  # dilated, cirrus, cloud, shadow; fill
}


def is_mask(name: str, settings: CloudsConfig | None = None) -> bool:
    """Whether a band, member or column tells of clouds or validity: a known one, or that of ``archive.clouds.band``.

    >>> is_mask("S2L2A.cloud_mask.tif"), is_mask("SCL"), is_mask("B02.tif")
    (True, True, False)
    """
    return _is_mask(name, None if settings is None else settings.band)


@lru_cache(1024)
def _is_mask(name: str, band: str | None) -> bool:
    name = name.rpartition(".")[0] if "." in name and holds_pixels(name, None) else name
    named = band is not None and find_band(band, [name]) == 0
    return named or _short(name) in LEGENDS or _short(name) in AMBIGUOUS


def take_masks(images: Mapping[str, Image], settings: CloudsConfig) -> tuple[dict[str, Image], dict[str, Image]]:
    """Images without their mask bands, and each mask band as an image of its own by name."""
    left: dict[str, Image] = {}
    masks: dict[str, Image] = {}
    for suffix, image in images.items():
        own = _mask_bands(suffix, image.bands, settings.band)
        rest = [i for i in range(len(image.bands)) if i not in own] if own else []
        for i, name in own.items():
            masks[name] = replace(image, pixels=image.pixels[i : i + 1], bands=(name,), nodata=None)
        if not own:
            left[suffix] = image
        elif rest:
            left[suffix] = replace(image, pixels=image.pixels[rest], bands=tuple(image.bands[i] for i in rest))
    return left, masks


@lru_cache(1024)
def _mask_bands(suffix: str, bands: tuple[str, ...], band: str | None) -> Mapping[int, str]:
    """Position and name of the mask bands of one file; ``band`` is that of ``archive.clouds.band``."""
    stem = suffix.rpartition(".")[0] if holds_pixels(suffix, None) else suffix
    names = [stem if len(bands) == 1 and stem else own for own in bands]
    return {i: name for i, name in enumerate(names) if _is_mask(name, band)}


def read_masks(masks: Mapping[str, NDArray[Any]], settings: CloudsConfig) -> tuple[Bools | None, Bools | None]:
    """Where any mask says cloudy, and where any says invalid; ``None`` where none can say.

    Args:
        masks: ``(height, width)`` each, by name, on the grid of the pixels.
        settings: ``found`` says what the classes of ``cloud_mask`` are; without it nothing is made of that band.
    """
    cloudy: Bools | None = None
    invalid: Bools | None = None
    for name, values in masks.items():
        legend = _legend(name, settings)
        if legend is None:
            continue
        says_cloudy, says_invalid = legend.read(values)
        invalid = says_invalid if invalid is None else invalid | says_invalid
        if legend.cloudy or legend.above is not None:
            cloudy = says_cloudy if cloudy is None else cloudy | says_cloudy
    return cloudy, invalid


def _legend(name: str, settings: CloudsConfig) -> Legend | None:
    if settings.band is not None and find_band(settings.band, [name]) == 0:
        if settings.above is not None:
            return Legend(above=settings.above)
        return Legend(cloudy=tuple(settings.values or settings.bits or ()), bits=settings.bits is not None)
    short = _short(name)
    return CLASSES.get(settings.found or "") if short in AMBIGUOUS else LEGENDS.get(short)


def mask_values(masks: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
    """The values of a ``cloud_mask``, for the fit to tell its classes by; empty where there is none."""
    found = [values for name, values in masks.items() if _short(name) in AMBIGUOUS]
    return tuple(int(value) for value in np.unique(found[0])) if found else ()


def classes(values: Sequence[int]) -> str | None:
    """The classes of a ``cloud_mask`` by all values that the fit saw; ``None`` where it saw none."""
    if not values:
        return None
    return SEVEN if any(3 < value < 255 for value in values) else FOUR


def _short(name: str) -> str:
    return name.rpartition(".")[2].lower()


# the detector


def check_detector(name: str | None) -> None:
    """See that the detector is installed.

    Raises:
        RequestError: it is not.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise RequestError(
            f"archive.clouds.detector={name} is not installed: pip install 'curation[clouds]', or leave it out"
        )


def detect(pixels: NDArray[Any], mask: Bools, bands: Sequence[str]) -> Bools | None:
    """Where OmniCloudMask (Wright et al. 2025) sees cloud or cloud shadow, by red, green and near infrared.

    It normalises each band by itself, so that any processing level does.

    Args:
        pixels: ``(bands, height, width)``.
        mask: ``(height, width)``, True where valid.
        bands: names.

    Returns:
        ``(height, width)``, or ``None`` where a band is missing.

    Raises:
        AccessError: its weights could not be had.
    """
    chosen = [at for name in ("red", "green", "nir") if (at := find_band(name, bands)) is not None]
    if len(chosen) < 3:
        return None
    predict: Callable[..., NDArray[Any]] = importlib.import_module("omnicloudmask").predict_from_array
    seen = np.where(mask, pixels[chosen], 0).astype(np.float32)  # 0 is no data to it
    height, width = mask.shape
    room = [(0, 0), (0, max(0, DETECTOR_LEAST - height)), (0, max(0, DETECTOR_LEAST - width))]
    padded = np.pad(seen, room, "symmetric")
    side = min(1000, *padded.shape[1:])
    how = {"patch_size": side, "patch_overlap": min(300, side // 2), "inference_device": "cpu"}
    try:
        found = predict(padded, model_version=DETECTOR_VERSION, **how)
    except OSError as error:  # what downloads raise
        text = " ".join(str(error).split())[:200]
        raise AccessError(f"archive.clouds.detector: the weights of omnicloudmask cannot be had: {text}") from error
    return np.isin(np.asarray(found).reshape(padded.shape[1:])[:height, :width], DETECTED) & mask
