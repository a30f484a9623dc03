"""Sentinel tiles in every state that archives hold them in, out of one truth: reflectance, or power with speckle."""

import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tests.recipes import BANDS, geotiff
from tests.scenes import TILE, draw

DARK = ("ocean", "forest", "river", "field", "lake")


def reflectance_dn(label: str, seed: int) -> NDArray[np.uint16]:
    """``(4, 64, 64)``: reflectance times 10,000 in B02, B03, B04, B08, without an offset; at least 1."""
    (tile,) = draw(label, 1, np.random.default_rng([11, seed]))
    return np.clip(np.rint(tile[:, :TILE, :TILE]), 1, 20000).astype(np.uint16)


def s2_members(
    key: str, label: str, seed: int, offset: int, said: dict[str, object] | None = None
) -> list[tuple[str, bytes]]:
    """A tile whose DN have an offset of 0 or 1000, and what its sidecar says."""
    pixels = reflectance_dn(label, seed) + np.uint16(offset)
    return [(f"{key}.tif", geotiff(pixels, BANDS, "0")), (f"{key}.json", json.dumps(said or {}).encode())]


def s2_shard(
    name: str, labels: tuple[str, ...], offset: int, said: dict[str, object] | None = None
) -> list[tuple[str, bytes]]:
    """A tar's members: a tile of each label."""
    members: list[tuple[str, bytes]] = []
    for i, label in enumerate(labels):
        members += s2_members(f"{name}_{i:03d}", label, i, offset, said)
    return members


def backscatter(seed: int, looks: float = 4.4, size: int = 64) -> NDArray[np.float32]:
    """Linear power ``(2, size, size)`` of VV and VH: two fields and a lake under gamma speckle of so many looks."""
    rng = np.random.default_rng([12, seed])
    ground = np.full((2, size, size), 0.1, np.float32)
    ground[:, :, size // 2 :] = 0.25
    ground[:, : size // 3] = 0.01
    ground[1] *= 0.2
    return (ground * rng.gamma(looks, 1 / looks, ground.shape)).astype(np.float32)


def in_units(power: NDArray[np.float32], units: str) -> NDArray[np.generic]:
    """Power as it may be stored."""
    if units == "db":
        return (10 * np.log10(power)).astype(np.float32)
    if units == "digital":
        return np.clip(np.rint(np.sqrt(power) * 400), 0, 65535).astype(np.uint16)
    return power if units == "linear" else np.sqrt(power)


def s1_shard(name: str, count: int, units: str, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """A tar's members: tiles of one unit."""
    for i in range(count):
        yield f"{name}_{i:03d}.tif", geotiff(in_units(backscatter(seed + i), units), ("VV", "VH"))
