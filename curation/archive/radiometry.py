"""What the numbers of an image mean, by metadata and by the pixels, and how they become reflectance or decibels.

Sentinel-2: reflectance = DN / scale + offset / 10000; the scale is 10000 in ESA's products. From processing baseline
04.00 the offset is -1000 (RADIO_ADD_OFFSET, BOA_ADD_OFFSET), before it 0; old scenes that were reprocessed have new
baselines, so the date tells nothing, and the metadata are wrong often enough to be checked. What tells is the dark end:
somewhere in nearly every tile a band is dark (red over leaves, infrared over water and in shadow). Without the offset
such DN lie below 500; with it none does, and dark ground gathers between 900 and 1400. Bright sand, snow and cloud can
lie there without the offset. But sand that an offset was taken off would be redder than any ground; and bright ground
thins out slowly on both sides, where dark ground with the offset is a heap of its own.

Sentinel-1: everything becomes decibels of power. Numbers mostly below zero are decibels already, numbers of about 1
and less linear power, numbers in the hundreds amplitudes as digital numbers of a GRD product, which are not calibrated.
An amplitude that is calibrated cannot be told from a power: say so.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.image import bad_image
from curation.archive.names import find_band
from curation.archive.sample import Sample
from curation.archive.settings import RadiometryConfig
from curation.errors import BadSample

LOW = 500  # DN below which nothing lies with the offset: a reflectance of -0.05
SHELF = (900, 1400)  # DN between which dark ground gathers with the offset
RED = 3  # times that the red of ground may be its blue, once an offset is taken off; of sand and rock with none it is
# more, as what was taken off was never there
NEAR = 150  # DN that this may be out by
DN = 10000  # that stand for a reflectance of 1 in ESA's products, and in which offsets are given
DN_FROM = 10.0  # numbers beyond it are no reflectance
LOOKED_AT = 4096  # pixels of a tile at most

REFLECTANCE = (0.0, 0.6)  # fixed range: leaves and sand in the infrared reach 0.6; only snow and cloud lie above
POWERS = {"co": (-25.0, 5.0), "cross": (-32.0, -2.0), None: (-30.0, 5.0)}  # dB, by polarisation

_BASELINE = ("processing_baseline", "s2:processing_baseline", "PROCESSING_BASELINE", "processing:version")
_PRODUCT = ("product_id", "s2:product_uri", "s2:product_id", "PRODUCT_URI", "source_id", "product", "title", "id")
_IN_PRODUCT = re.compile(r"_N(\d{2})(\d{2})_")
_NUMBER = re.compile(r"N?(\d{1,2})[._]?(\d{1,2})?")


@dataclass(frozen=True)
class Part:
    """Bands that mean the same: those of one modality (``prefix``), or all."""

    prefix: str
    kind: str
    positions: tuple[int, ...]


def parts(bands: Sequence[str], settings: RadiometryConfig) -> list[Part]:
    """Which of the bands are of which kind, by ``archive.radiometry.kind``."""
    if settings.kind is None:
        return []
    if isinstance(settings.kind, str):
        return [Part("", settings.kind, tuple(range(len(bands))))]
    found = [
        Part(prefix, kind, tuple(i for i, band in enumerate(bands) if band.startswith(f"{prefix}.")))
        for prefix, kind in settings.kind.items()
    ]
    return [part for part in found if part.positions]


def state(bands: Sequence[str], dtype: str, settings: RadiometryConfig) -> str | None:
    """What the numbers will mean: ``reflectance``, ``db`` or ``db_uncalibrated``, by modality where there are several.

    ``None`` where the settings say nothing of these bands; 8-bit pictures stay what they are.
    """
    if dtype == "uint8":
        return None
    named = []
    for part in parts(bands, settings):
        digital = part.kind == "sentinel1" and _units(part, settings) == "digital"
        name = "reflectance" if part.kind == "sentinel2" else "db_uncalibrated" if digital else "db"
        named.append(f"{part.prefix}: {name}" if part.prefix else name)
    return ", ".join(named) or None


def band_state(band: str, radiometry: str) -> str:
    """What one band's numbers mean, out of the state of all."""
    for one in radiometry.split(", "):
        prefix, colon, name = one.rpartition(": ")
        if not colon or band.startswith(f"{prefix}."):
            return name
    return "unknown"


def polarisation(band: str) -> str | None:
    """``co`` (VV, HH) or ``cross`` (VH, HV), by a radar band's name."""
    name = band.rpartition(".")[2].lower()
    if "vv" in name or "hh" in name:
        return "co"
    return "cross" if "vh" in name or "hv" in name else None


def in_decibels(bands: Sequence[str], dtype: str, radiometry: str) -> NDArray[np.bool_]:
    """``(bands,)``, True where the numbers are decibels."""
    return np.array([dtype == "float32" and band_state(band, radiometry).startswith("db") for band in bands], bool)


def fixed_range(bands: Sequence[str], dtype: str, radiometry: str) -> list[tuple[float, float] | None]:
    """The range of each band that its state gives; ``None`` where it gives none."""
    found: list[tuple[float, float] | None] = []
    for band in bands:
        means = band_state(band, radiometry) if dtype == "float32" else ""
        found.append(REFLECTANCE if means == "reflectance" else POWERS[polarisation(band)] if means == "db" else None)
    return found


# what the metadata say


def declared_offset(said: Mapping[str, Any]) -> int | None:
    """The offset of Sentinel-2 DN by processing baseline; 0 where it is said to be applied; ``None``: nothing says."""
    if said.get("earthsearch:boa_offset_applied") is True:
        return 0
    baseline = next((said[name] for name in _BASELINE if said.get(name) not in (None, "")), None)
    if baseline is not None and (match := _NUMBER.fullmatch(str(baseline).strip())):
        return -1000 if int(match[1]) >= 4 else 0
    for name in _PRODUCT:
        if match := _IN_PRODUCT.search(str(said.get(name) or "")):
            return -1000 if int(match[1]) >= 4 else 0
    return None


# what the pixels say


@dataclass(frozen=True)
class Evidence:
    """What the fit notes of a tile.

    Attributes:
        shard: where it lies.
        part: of the bands.
        declared: the offset by the metadata.
        dark: what one pixel in a hundred falls below in its darkest band, in ten-thousandths; NaN where the numbers
            are reflectance already.
        earthly: whether the darkest pixels would have the colour of ground with the offset taken off.
        bright: median of the tile's brightest band, as reflectance.
        units: of SAR, where they can be told.
    """

    shard: str
    part: Part
    declared: int | None = None
    dark: float = np.nan
    earthly: bool = True
    bright: float = 0.0
    units: str | None = None

    @property
    def low(self) -> bool:
        """Whether it has DN that no tile with the offset has."""
        return self.dark < LOW

    @property
    def on_shelf(self) -> bool:
        """Whether its dark ground lies where it lies with the offset."""
        return self.earthly and SHELF[0] <= self.dark < SHELF[1]


def evidence(shard: str, sample: Sample, settings: RadiometryConfig) -> list[Evidence]:
    """What a sample says, decoded before anything was found, of each part of its bands."""
    found = []
    for part in parts(sample.bands, settings) if sample.pixels.dtype != np.uint8 else []:
        values = _looked_at(sample, part)
        if not values.size:
            continue
        if part.kind == "sentinel1":
            found.append(Evidence(shard, part, units=_told_units(values)))
            continue
        declared = sample.hints.get("offset")
        bright = float(np.median(values, axis=1).max())
        if _is_dn(values):
            names = [sample.bands[i] for i in part.positions]
            darkness = _darkness(values * (DN / settings.scale), names)
            found.append(Evidence(shard, part, declared, *darkness, bright / settings.scale))
        else:
            found.append(Evidence(shard, part, declared, bright=bright))
    return found


def _looked_at(sample: Sample, part: Part) -> NDArray[Any]:
    """Up to about 4096 clear pixels ``(bands, n)``, not those beside invalid ones: they may be mixed with nodata."""
    inner = sample.mask
    if sample.clouds is not None and (clear := inner & ~sample.clouds).any():
        inner = clear
    if not sample.mask.all():
        for _ in range(2):
            around = np.pad(inner, 1, "edge")
            inner = inner & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
        inner = inner if inner.any() else sample.mask
    rows, columns = np.nonzero(inner)
    step = max(1, len(rows) // LOOKED_AT)
    values: NDArray[Any] = sample.pixels[np.array(part.positions)[:, None], rows[::step], columns[::step]]
    return values


def _is_dn(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "ui" or bool(np.percentile(values, 99) > DN_FROM)


def _darkness(values: NDArray[Any], bands: Sequence[str]) -> tuple[float, bool]:
    """Of ``(bands, n)``: the percentile of the darkest band, and whether the darkest less 1000 would be ground."""
    floor = values.min(axis=0)
    dark = float(np.percentile(floor, 1))
    red, blue = find_band("red", bands), find_band("blue", bands)
    if red is None or blue is None:
        return dark, True
    darkest = values[:, floor <= np.percentile(floor, 5)].astype(np.float64)
    redness, blueness = float(np.median(darkest[red])) - 1000, float(np.median(darkest[blue])) - 1000
    return dark, redness <= RED * blueness + NEAR


def _told_units(values: NDArray[Any]) -> str | None:
    """The units of SAR numbers, where they can be told."""
    values = values[values != 0]
    if not values.size:
        return None
    negative, middle = float((values < 0).mean()), float(np.median(values))
    if negative > 0.5:
        return "db" if middle > -80 else None
    if negative > 0.01:
        return None
    return "linear" if middle <= 2 else "digital" if middle >= 10 else None


# the numbers themselves


def clean(sample: Sample, settings: RadiometryConfig) -> Sample:
    """Without the pixels whose DN are 0 (no data) or 65535 (saturated) in a band; of B10, cirrus, 0 is a value.

    Raises:
        BadSample: ``NoValidPixels``.
    """
    mask = sample.mask
    for part in parts(sample.bands, settings) if sample.pixels.dtype != np.uint8 else []:
        for i in part.positions:
            band = sample.pixels[i]
            if part.kind == "sentinel2" and (band.dtype.kind in "ui" or band.max(initial=0, where=mask) > DN_FROM):
                cirrus = sample.bands[i].rpartition(".")[2].upper() == "B10"
                mask = mask & (band != 65535) & ((band != 0) | cirrus)
            elif part.kind == "sentinel1" and band.dtype.kind in "ui":
                mask = mask & (band != 0)
    return _masked(sample, mask)


def in_units(sample: Sample, settings: RadiometryConfig) -> Sample:
    """The sample in the units of its state, float32; as it is where nothing is set or nothing was found yet.

    Raises:
        BadSample: ``WrongRadiometry``, its numbers contradict what was found, or nothing tells; ``NoValidPixels``.
    """
    if settings.kind is None or settings.found is None:
        return sample
    mine = state(sample.bands, str(sample.pixels.dtype), settings)
    if mine is None:
        return sample
    pixels, mask = sample.pixels.astype(np.float32), sample.mask
    for part in parts(sample.bands, settings):
        at = list(part.positions)
        if part.kind == "sentinel1":
            units = _sample_units(sample, part, settings)
            power = pixels[at]
            if units != "db":
                mask = mask & (power > 0).all(axis=0)
                factor = np.float32(10 if units == "linear" else 20)
                pixels[at] = factor * np.log10(np.where(mask, power, 1))
        elif sample.pixels.dtype.kind in "ui" or _is_dn(_looked_at(sample, part)):
            offset = _sample_offset(sample, part, settings)
            pixels[at] = (pixels[at] + np.float32(offset * settings.scale / DN)) / np.float32(settings.scale)
    return _masked(dataclasses.replace(sample, pixels=pixels, radiometry=mine), mask)


def _masked(sample: Sample, mask: NDArray[np.bool_]) -> Sample:
    if mask is sample.mask:
        return sample
    if not mask.any():
        raise bad_image("no pixel is valid", "NoValidPixels")
    return dataclasses.replace(sample, mask=mask)


def _sample_offset(sample: Sample, part: Part, settings: RadiometryConfig) -> int:
    """The offset of one sample: as told, by its metadata, else the archive's; where these are suspect by its pixels."""
    if isinstance(settings.offset, int):
        return settings.offset
    found = (settings.found or {}).get(part.prefix, {})
    declared, suspect = sample.hints.get("offset"), found.get("suspect", {})
    offset = found.get("offset") if declared is None else declared
    in_question = str(declared) in suspect
    if in_question or (offset is not None and offset < 0 and settings.conflict != "ignore"):
        names = [sample.bands[i] for i in part.positions]
        darkness = _darkness(_looked_at(sample, part) * (DN / settings.scale), names)
        one = Evidence("", part, declared, *darkness)
        if in_question:
            offset = 0 if one.low else -1000 if one.on_shelf else suspect[str(declared)]
        elif one.low:
            raise _wrong(f"its DN go down to {one.dark:.0f}, which the offset of {offset} would make negative")
    if offset is None:
        raise _wrong("nothing says which offset its DN have: give archive.radiometry.offset=0 or -1000")
    return int(offset)


def _sample_units(sample: Sample, part: Part, settings: RadiometryConfig) -> str:
    """The units of one sample: as told, else the archive's; with ``fix`` by its own values."""
    units = _units(part, settings)
    if units is None:
        raise _wrong("nothing says which units its numbers have: give archive.radiometry.units")
    if settings.units != "auto" or settings.conflict == "ignore":
        return units
    told = _told_units(_looked_at(sample, part))
    if told in (None, units):
        return units
    if settings.conflict == "refuse" or (told == "digital") != (units == "digital"):
        raise _wrong(f"its numbers are {told} by their values, the archive's {units}")
    return str(told)


def _units(part: Part, settings: RadiometryConfig) -> str | None:
    if settings.units != "auto":
        return settings.units
    units: str | None = (settings.found or {}).get(part.prefix, {}).get("units")
    return units


def _wrong(message: str) -> BadSample:
    return bad_image(message, "WrongRadiometry")
