"""How well copies are told on this very archive, measured on some of the tiles that the encoder is fitted on.

Positives are copies that are made here: turned, encoded again, shifted, relit. Negatives
are pairs of different tiles, any and the most alike. Whether two tiles are different
is not decided by what is to be judged: footprints say so where both are known (disjoint:
different; else the pair is left out); elsewhere two tiles are one ground if their pixels
agree in the detail that the patch does not hold.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from curation.archive.sample import Sample
from curation.catalog.schema import FOOTPRINT
from curation.scoring.signature import CUTOFF, signature_and_patch
from curation.selection.duplicates import THRESHOLD, similarities
from curation.selection.footprints import SIDES
from curation.storage import Folder

CALIBRATION = "calibration.json"
TILES = 400  # used at most, by hash
VALUES = 32 << 20  # numbers in them at most: six descriptions of each take about two seconds
QUALITY = 75  # of the JPEG
SHIFT = 0.03  # of a side, either way along both axes
GAIN, OFFSET = 0.15, 0.05  # at most, either way; of the pixels, and of the range
PARTNERS = 25  # other tiles that each is compared with, whatever they show
NEAREST = 8  # by signature, among which the most alike different tile is looked for

DETAIL = 64  # pixels a side at which two tiles' detail is compared
HIGHEST = 28  # cycles a tile, of that detail; what the patch holds ends at CUTOFF
AGREES = 0.5  # correlation of the details from which two tiles show one ground

Tile = tuple[NDArray[np.generic], NDArray[np.bool_]]  # pixels (bands, height, width), mask (height, width)
Floats = NDArray[np.float64]


def calibrate(samples: Sequence[Sample], ranges: NDArray[np.float32]) -> dict[str, Any]:
    """Recall of made copies, and how often different tiles are merged.

    Args:
        samples: decoded tiles of equal bands and dtype; the same ones in any order give the same.
        ranges: ``(bands, 2)``, the fixed range of each band.

    Returns:
        What ``calibration.json`` holds (docs/formats.md): counts, shares, and their 95 % Wilson intervals.
    """
    chosen = _chosen(samples)
    tiles = [(sample.pixels, sample.mask) for sample, _ in chosen]
    plain = _described(chosen, tiles, ranges)
    changes = [_Change(ranges, digest) for _, digest in chosen]
    whole = np.arange(len(tiles))
    copies = {}
    for kind in ("turned", "encoded", "shifted", "relit"):
        originals, made = plain, [getattr(change, kind)(tile) for change, tile in zip(changes, tiles, strict=True)]
        if kind == "shifted":  # both are cut from the tile, as two windows
            originals = _described(
                chosen, [change.middle(tile) for change, tile in zip(changes, tiles, strict=True)], ranges
            )
        alike = similarities(originals, whole, _described(chosen, made, ranges), whole)
        copies[kind] = _figures(int((alike >= THRESHOLD).sum()), len(tiles))
    return {
        "tiles": len(tiles),
        "placed": sum(_box(sample) is not None for sample, _ in chosen),
        "threshold": THRESHOLD,
        "encoded_as": f"JPEG of quality {QUALITY}" if tiles[0][0].dtype == np.uint8 else "256 steps of the range",
        "copies": copies,
        "others": _others([sample for sample, _ in chosen], plain, ranges),
    }


def calibration_path(catalog_id: str) -> str:
    """Where it lies in a workspace: beside the encoder's artefact."""
    return f"encoders/{catalog_id}/{CALIBRATION}"


def load_calibration(workspace: Folder, catalog_id: str) -> dict[str, Any] | None:
    """What was measured when the encoder was fitted; None where there were no pixels."""
    try:
        return dict(json.loads(workspace.read(calibration_path(catalog_id))))
    except FileNotFoundError:
        return None


def summary(measured: dict[str, Any]) -> str:
    """One line for people."""
    copies, others = measured["copies"], measured["others"]
    found = ", ".join(f"{figures['merged']:,} of {figures['of']:,} {kind}" for kind, figures in copies.items())
    if not others["any"]["of"]:
        return f"copies: {found} tiles found again; no two of the tiles show different ground"
    any_two, nearest = (f"{others[kind]['merged']:,} of {others[kind]['of']:,}" for kind in ("any", "nearest"))
    return f"copies: {found} tiles found again; {any_two} pairs of different tiles merged, {nearest} of the most alike"


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    share, spread = hits / n, z * np.sqrt(hits * (n - hits) / n + z**2 / 4) / n
    middle, scale = share + z**2 / (2 * n), 1 + z**2 / n
    return max(0.0, float((middle - spread) / scale)), min(1.0, float((middle + spread) / scale))


def _figures(hits: int, n: int) -> dict[str, Any]:
    low, high = wilson(hits, n) if n else (0.0, 1.0)
    return {
        "of": n,
        "merged": hits,
        "share": round(hits / n, 6) if n else None,
        "low": round(low, 6),
        "high": round(high, 6),
    }


def _chosen(samples: Sequence[Sample]) -> list[tuple[Sample, bytes]]:
    """The tiles that are used, each with a hash of its own."""
    hashed = [(_digest(sample), sample) for sample in samples]
    hashed.sort(key=lambda item: item[0])
    chosen: list[tuple[Sample, bytes]] = []
    values = 0
    for digest, sample in hashed[:TILES]:
        values += sample.pixels.size
        if values > VALUES and chosen:
            break
        chosen.append((sample, digest))
    return chosen


def _digest(sample: Sample) -> bytes:
    digest = hashlib.blake2b(sample.key.encode("utf-8", "surrogateescape"), digest_size=16)
    digest.update(np.ascontiguousarray(sample.pixels).data.cast("B")[: 1 << 12])  # shards may use one key
    return digest.digest()


def _described(chosen: Sequence[tuple[Sample, bytes]], tiles: Sequence[Tile], ranges: NDArray[np.float32]) -> pa.Table:
    """The catalog columns that copies are told by."""
    both = [signature_and_patch(pixels, mask, ranges) for pixels, mask in tiles]
    places = [sample.footprint and dict(zip(SIDES, sample.footprint, strict=True)) for sample, _ in chosen]
    return pa.table(
        {
            "sample_id": [digest.hex() for _, digest in chosen],
            "signature": pa.array([list(one) for one, _ in both], pa.list_(pa.float32())),
            "patch": [patch for _, patch in both],
            "footprint": pa.array(places, FOOTPRINT),
        }
    )


# positives


class _Change:
    """The ways in which a tile is changed, drawn by its hash."""

    def __init__(self, ranges: NDArray[np.float32], digest: bytes) -> None:
        draw = np.random.default_rng(int.from_bytes(digest))
        self.low, self.high = ranges[:, 0, None, None], ranges[:, 1, None, None]
        self.symmetry = int(draw.integers(1, 8))
        self.by = draw.uniform(-1, 1, 2)
        self.gain, self.offset = 1 + draw.uniform(-GAIN, GAIN), draw.uniform(-OFFSET, OFFSET)

    def turned(self, tile: Tile) -> Tile:
        """One of the seven mirrorings and rotations."""
        return _turned(tile[0], self.symmetry), _turned(tile[1], self.symmetry)

    def encoded(self, tile: Tile) -> Tile:
        """Through a JPEG (uint8), or in 256 steps of the fixed range."""
        pixels, mask = tile
        if pixels.dtype != np.uint8:
            span = self.high - self.low
            steps = np.rint(np.clip((pixels.astype(np.float32) - self.low) / span, 0, 1) * 255)
            return np.asarray(self.low + steps / np.float32(255) * span, np.float32), mask
        bands = [pixels] if len(pixels) == 3 else pixels[:, None]
        return np.concatenate([_jpeg(some) for some in bands]), mask

    def middle(self, tile: Tile) -> Tile:
        """The tile without its margins."""
        return self._window(tile, 0, 0)

    def shifted(self, tile: Tile) -> Tile:
        """As large a window as `middle`, elsewhere."""
        return self._window(tile, *self.by)

    def relit(self, tile: Tile) -> Tile:
        """By a gain and an offset, in the pixels' own dtype."""
        pixels, mask = tile
        lit = self.low + (pixels.astype(np.float32) - self.low) * self.gain + self.offset * (self.high - self.low)
        if pixels.dtype.kind in "ui":
            limits = np.iinfo(str(pixels.dtype))
            lit = np.rint(lit).clip(limits.min, limits.max)
        return np.asarray(lit, pixels.dtype), mask

    def _window(self, tile: Tile, down: float, right: float) -> Tile:
        pixels, mask = tile
        rows, columns = (_part(size, by) for size, by in zip(mask.shape, (down, right), strict=True))
        cut = mask[rows, columns]
        return pixels[:, rows, columns], cut if cut.any() else np.ones_like(cut)


def _part(size: int, by: float) -> slice:
    margin = min(max(round(SHIFT * size), 1), (size - 1) // 2)
    start = margin + round(by * margin)
    return slice(start, start + size - 2 * margin)


def _turned(array: NDArray[Any], symmetry: int) -> NDArray[Any]:
    array = np.rot90(array, symmetry % 4, axes=(-2, -1))
    return np.ascontiguousarray(array[..., ::-1] if symmetry >= 4 else array)


def _jpeg(bands: NDArray[np.generic]) -> NDArray[np.uint8]:
    """One or three bands, encoded and decoded."""
    picture = bands[0] if len(bands) == 1 else np.ascontiguousarray(bands.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
    again = np.asarray(Image.open(file))
    return again[None] if again.ndim == 2 else again.transpose(2, 0, 1)


# negatives


def _others(samples: Sequence[Sample], plain: pa.Table, ranges: NDArray[np.float32]) -> dict[str, Any]:
    """How often different tiles are merged: any, and for each tile the most alike."""
    boxes = np.array([_box(sample) or (np.nan,) * 4 for sample in samples], np.float64).reshape(-1, 4)
    detail = _Details(samples, ranges)

    def merged(i: NDArray[np.intp], j: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which pairs count as copies, and which of them are: their pixels agree, and no footprint says otherwise."""
        alike = similarities(plain, i, plain, j) >= THRESHOLD
        real = np.zeros(len(i), bool)
        for pair in np.flatnonzero(alike & np.isnan(boxes[i, 0] + boxes[j, 0])).tolist():
            real[pair] = detail.agree(int(i[pair]), int(j[pair]))
        return alike, real

    n = len(samples)
    i = np.repeat(np.arange(n), min(PARTNERS, (n - 1) // 2))
    j = (i + np.tile(np.arange(1, 1 + min(PARTNERS, (n - 1) // 2)), n)) % n
    apart = ~_overlap(boxes[i], boxes[j])
    wrong, real = merged(i[apart], j[apart])
    found = {"any": {**_figures(int((wrong & ~real).sum()), int((~real).sum())), "same_ground": int(real.sum())}}

    i, j = _nearest(_signatures(plain), boxes)
    wrong, real = merged(i, j)
    first = np.unique(i[~real], return_index=True)[1]  # the most alike that is another ground
    hits = wrong[~real][first]
    pairs = np.sort(np.stack([i[~real][first], j[~real][first]], axis=1), axis=1)
    once = np.unique(pairs, axis=0, return_index=True)[1]
    found["nearest"] = _figures(int(hits[once].sum()), len(once))
    return found


def _nearest(signatures: Floats, boxes: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of each tile with its nearest by signature, nearest first; pairs that overlap are left out."""
    squares = (signatures**2).sum(axis=1)
    distance = squares[:, None] + squares - 2 * signatures @ signatures.T
    distance[_overlap(boxes[:, None], boxes[None])] = np.inf
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, :NEAREST]
    i, j = np.repeat(np.arange(len(order)), order.shape[1]), order.ravel()
    there = np.isfinite(distance[i, j])
    return i[there], j[there]


def _signatures(plain: pa.Table) -> Floats:
    return np.array(plain["signature"].to_pylist(), np.float64)


def _box(sample: Sample) -> tuple[float, float, float, float] | None:
    """Centre and half extents of the footprint, degrees; a point says nothing of what it covers."""
    if sample.footprint is None:
        return None
    west, south, east, north = sample.footprint
    width, height = east - west + 360 * (east < west), north - south
    return (west + width / 2, south + height / 2, width / 2, height / 2) if width > 0 and height > 0 else None


def _overlap(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """Whether two footprints share ground; False where one is not known."""
    lon, lat = np.abs(a[..., 0] - b[..., 0]), np.abs(a[..., 1] - b[..., 1])
    lon = np.minimum(lon, np.abs(360 - lon))
    return np.asarray((lon < a[..., 2] + b[..., 2]) & (lat < a[..., 3] + b[..., 3]))


class _Details:
    """What the tiles show at frequencies beyond those that the patch holds."""

    def __init__(self, samples: Sequence[Sample], ranges: NDArray[np.float32]) -> None:
        self.samples, self.ranges = samples, ranges
        f = np.abs(np.fft.fftfreq(DETAIL, 1 / DETAIL))
        self.band = (np.maximum.outer(f, f) > CUTOFF) & (np.hypot.outer(f, f) <= HIGHEST)
        self.ground = np.arange(len(samples))  # the first tile known to show the same

    def agree(self, i: int, j: int) -> bool:
        """Whether two tiles correlate, under one of the eight symmetries and some shift, or by way of others."""
        if self.ground[i] == self.ground[j]:
            return True
        one = self._spectra(self._grey(i)[None])
        other = self._spectra(np.stack([_turned(self._grey(j), symmetry) for symmetry in range(8)]))
        power = float(np.sqrt((np.abs(one[0]) ** 2).sum() * (np.abs(other[0]) ** 2).sum()))
        common = np.fft.ifft2(one.conj() * other).real.max() * DETAIL**2
        if common > AGREES * power:
            self.ground[self.ground == self.ground[j]] = self.ground[i]
        return bool(common > AGREES * power)

    def _spectra(self, pictures: NDArray[np.float32]) -> NDArray[np.complex128]:
        return np.asarray(np.fft.fft2(pictures) * self.band)

    def _grey(self, row: int) -> NDArray[np.float32]:
        sample, low, high = self.samples[row], *self.ranges.T[:, :, None, None]
        grey = ((sample.pixels.astype(np.float32) - low) / (high - low)).mean(axis=0)
        grey = np.where(sample.mask, grey, grey[sample.mask].mean())
        small = Image.fromarray(grey).resize((DETAIL, DETAIL), Image.Resampling.BOX)
        return np.asarray(small, np.float32)
