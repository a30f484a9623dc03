"""Tiles, their near-copies, and catalog rows for them."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.scoring.signature import signature_and_patch

SIDE = 96
ROOM = 16  # pixels of ground around a tile


def ground(seed: int, bands: int = 3, side: int = SIDE + 2 * ROOM) -> np.ndarray:
    """Ground with texture of every size, as natural images have it, and one straight edge: ``(bands, side, side)``."""
    rng = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    falling = 1 / np.maximum(f, 1 / side) ** rng.uniform(0.8, 1.4)
    waves = rng.normal(size=(bands + 1, *f.shape)) + 1j * rng.normal(size=(bands + 1, *f.shape))
    fields = np.fft.irfft2(waves * falling, s=(side, side))
    fields /= fields.std(axis=(1, 2), keepdims=True)
    place = np.stack(np.meshgrid(*[np.arange(side) / side - 0.5] * 2, indexing="ij"))
    edge = np.tensordot(rng.normal(size=2), place, 1) > rng.normal(0, 0.2)
    picture = rng.uniform(80, 170, (bands, 1, 1)) + rng.uniform(8, 20) * (fields[1:] + 2 * fields[0]) / 2 + 30 * edge
    return picture.clip(0, 255).astype(np.uint8)


def window(scene: np.ndarray, down: int = 0, right: int = 0) -> np.ndarray:
    """The tile in the middle of the ground, or so many pixels off it."""
    return scene[:, ROOM + down : ROOM + down + SIDE, ROOM + right : ROOM + right + SIDE]


def turned(tile: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the eight mirrorings and rotations."""
    tile = np.rot90(tile, symmetry % 4, axes=(1, 2))
    return np.ascontiguousarray(tile[:, ::-1] if symmetry >= 4 else tile)


def relit(tile: np.ndarray, gain: float, offset: float) -> np.ndarray:
    return (tile.astype(np.float32) * gain + offset).round().clip(0, 255).astype(np.uint8)


def recoded(tile: np.ndarray, quality: int) -> np.ndarray:
    """Through a JPEG and back."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile.transpose(1, 2, 0))).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out)).transpose(2, 0, 1)


def described(tile: np.ndarray, mask: np.ndarray | None = None, high: float = 255) -> tuple[np.ndarray, bytes]:
    mask = np.ones(tile.shape[1:], bool) if mask is None else mask
    return signature_and_patch(tile, mask, np.array([[0, high]] * len(tile), np.float32))


def catalog(tiles: Sequence[np.ndarray], names: Sequence[str], **columns: Any) -> pa.Table:
    """Catalog rows of the tiles, all in cluster 0 and equally good unless ``columns`` say otherwise."""
    both = [described(tile) for tile in tiles]
    return rows(names, signature=[list(s) for s, _ in both], patch=[p for _, p in both], **columns)


def rows(names: Sequence[str], **columns: Any) -> pa.Table:
    n = len(names)
    types = {
        "valid_fraction": pa.float32(),
        "cloud_fraction": pa.float32(),
        "entropy": pa.float32(),
        "source_id": pa.string(),
        "label": pa.string(),
        "caption": pa.string(),
        "time": pa.timestamp("us", tz="UTC"),
        "footprint": pa.struct([(side, pa.float64()) for side in ("west", "south", "east", "north")]),
        "license": pa.string(),
        "signature": pa.list_(pa.float32()),
        "patch": pa.binary(),
        "embedding": pa.list_(pa.float16()),
        "cluster": pa.int32(),
        "first": pa.bool_(),
    }
    usual = {"valid_fraction": [1.0] * n, "entropy": [5.0] * n, "cluster": [0] * n, "first": [False] * n}
    values = {name: columns.get(name, usual.get(name, [None] * n)) for name in types}
    table = {name: pa.array(values[name], kind) for name, kind in types.items()}
    return pa.table({"sample_id": pa.array(names, pa.string()), **table})
