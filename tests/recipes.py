"""Archives in true formats, made from nothing: for the tests, and for ``make quickstart``.

``python -m tests.recipes DEST`` writes a sample archive of satellite tiles
under ``DEST/archive``, a small labelled bank of scenes, ``DEST/references``,
and a labelled test set, ``DEST/test``.
"""

import argparse
import io
import json
import math
import struct
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.scenes import MARGIN, TILE, draw

BANDS = ("B02", "B03", "B04", "B08")
SHARD_TILES = 500
GROUND = 10.0  # metres a pixel
# Share of each class in the archive, and a place (degrees) around which its tiles lie.
CLASSES: dict[str, tuple[float, tuple[float, float]]] = {
    "ocean": (0.28, (-38.0, 24.0)),
    "cloud": (0.18, (-20.0, 48.0)),
    "desert": (0.15, (12.0, 25.0)),
    "field": (0.14, (3.0, 48.5)),
    "forest": (0.10, (16.0, 61.0)),
    "coast": (0.04, (-3.5, 47.8)),
    "river": (0.03, (21.0, 46.0)),
    "mountain": (0.025, (10.5, 46.6)),
    "town": (0.025, (4.8, 51.6)),
    "lake": (0.012, (26.0, 62.5)),
    "snow": (0.01, (14.5, 68.2)),
    "irrigation": (0.005, (39.5, 29.5)),
    "airport": (0.003, (8.6, 50.1)),
}
DUPLICATES = 0.10
FLAT = 0.012
EDGES = 0.02  # tiles on a scene's border: partly without data
BROKEN = 0.005


# files


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar whose bytes depend on nothing but its members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def encoded(pixels: NDArray[Any], format: str = "JPEG", **options: Any) -> bytes:
    """An ``(H, W)`` or ``(H, W, C)`` array as an image file that Pillow writes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    """An array as an npy file (a pickle inside where it holds objects)."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def geotiff(
    pixels: NDArray[Any],
    bands: Sequence[str] = (),
    nodata: str = "",
    corner: tuple[float, float] | None = None,
    pixel: tuple[float, float] = (1e-4, 1e-4),
    compress: bool = True,
) -> bytes:
    """A little-endian GeoTIFF as GDAL writes it: one strip, chunky, deflate with horizontal prediction.

    Args:
        pixels: ``(bands, height, width)``, uint8, uint16, int16 or float32 (which is not predicted).
        bands: the bands' descriptions.
        nodata: text of GDAL's nodata tag.
        corner: longitude and latitude of the upper left corner.
        pixel: width and height of a pixel in degrees.
        compress: deflate, or as it is.
    """
    count, height, width = pixels.shape
    chunky = np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(pixels.dtype.newbyteorder("<"), copy=False)
    predict = compress and pixels.dtype.kind in "iu"
    if predict:
        chunky = np.concatenate([chunky[:, :1], np.diff(chunky, axis=1)], axis=1)
    strip = zlib.compress(chunky.tobytes(), 1) if compress else chunky.tobytes()
    bits = pixels.dtype.itemsize * 8
    sample_format = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags: list[tuple[int, str, Sequence[Any]]] = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [bits] * count),
        (259, "H", [8 if compress else 1]),
        (262, "H", [1]),
        (273, "I", [0]),  # the strip comes last; its place is filled in below
        (277, "H", [count]),
        (278, "H", [height]),
        (279, "I", [len(strip)]),
        (284, "H", [1]),
        (317, "H", [2 if predict else 1]),
        (338, "H", [0] * (count - 1)),
        (339, "H", [sample_format] * count),
    ]
    if corner is not None:
        tags += [
            (33550, "d", [*pixel, 0.0]),
            (33922, "d", [0.0, 0.0, 0.0, *corner, 0.0]),
            (34735, "H", [1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, 4326]),
        ]
    if bands:
        items = (f'<Item name="DESCRIPTION" sample="{i}" role="description">{b}</Item>' for i, b in enumerate(bands))
        tags.append((42112, "s", [f"<GDALMetadata>{''.join(items)}</GDALMetadata>\0".encode()]))
    if nodata:
        tags.append((42113, "s", [nodata.encode() + b"\0"]))
    return _tiff([tag for tag in tags if tag[2]], strip)


def _tiff(tags: list[tuple[int, str, Sequence[Any]]], strip: bytes) -> bytes:
    kinds = {"s": 2, "H": 3, "I": 4, "d": 12}
    packed = [(tag, kind, v[0] if kind == "s" else struct.pack(f"<{len(v)}{kind}", *v)) for tag, kind, v in tags]
    after = 8 + 2 + 12 * len(tags) + 4
    strip_at = after + sum(len(data) + len(data) % 2 for _, _, data in packed if len(data) > 4)
    directory, values = [struct.pack("<H", len(tags))], []
    for tag, kind, data in packed:
        if tag == 273:
            data = struct.pack("<I", strip_at)
        size = {"s": 1, "H": 2, "I": 4, "d": 8}[kind]
        place = data.ljust(4, b"\0")
        if len(data) > 4:
            place = struct.pack("<I", after)
            values.append(data + b"\0" * (len(data) % 2))
            after += len(values[-1])
        directory.append(struct.pack("<HHI", tag, kinds[kind], len(data) // size) + place)
    return b"".join([b"II*\0\x08\0\0\0", *directory, bytes(4), *values, strip])


# small archives


def write_rgb_archive(dest: Path, tiles: int = 40, size: int = 64, shards: int = 2, seed: int = 0) -> Path:
    """JPEG tiles with their labels as WebDataset tars ``dest/rgb-000.tar``, ….

    Tiles are larger than a scene by repetition, mirrored at the seams.
    """
    labels = ("field", "town", "desert", "forest")
    for shard in range(shards):
        members: list[tuple[str, bytes]] = []
        for i in range(shard, tiles, shards):
            label = labels[i % len(labels)]
            (tile,) = draw(label, 1, np.random.default_rng([seed, i]))
            rgb = np.clip(tile[2::-1] / 4000 * 255, 0, 255).astype(np.uint8).transpose(1, 2, 0)
            around = max(0, size - len(rgb))
            rgb = np.pad(rgb, ((0, around), (0, around), (0, 0)), "symmetric")[:size, :size]
            members.append((f"{label}_{i:05d}.jpg", encoded(rgb, quality=90)))
            members.append((f"{label}_{i:05d}.json", json.dumps({"label": label}).encode()))
        write_tar(dest / f"rgb-{shard:03d}.tar", members)
    return dest


# the sample archive


@dataclass(frozen=True)
class Tile:
    """What a tile of the sample archive is to be.

    ``place`` numbers the location; a near-duplicate has that of its original
    and says in ``change`` how it differs.
    """

    place: int
    label: str
    change: str = ""
    flat: bool = False
    edge: bool = False


CHANGES = ("re-encoded", "shifted", "relit", "mirrored", "turned")
FAULTS = ("cut short", "empty", "not a number", "no data", "bad json", "not an image")


def write_sample_archive(dest: Path, tiles: int = 4000, seed: int = 0) -> None:
    """Write ``dest/archive/<year>/tiles-NNN.tar``, ``dest/references/bank.tar`` and ``dest/test/test.tar``.

    Tiles are GeoTIFFs of 64 pixels, four bands, uint16, with ``.json``
    sidecars; their classes are as uneven as on Earth. About one in ten is a
    near-duplicate of another, one in a hundred is flat, one in two hundred broken.
    """
    plan = _plan(tiles, seed)
    shards = max(math.ceil(tiles / SHARD_TILES), min(8, math.ceil(tiles / 16)))
    jobs = [(dest, shard, shards, plan, seed) for shard in range(shards)]
    if tiles < 1000:
        for job in jobs:
            _write_shard(*job)
    else:
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(_write_shard, *zip(*jobs, strict=True)))
    _write_bank(dest / "references" / "bank.tar", seed, 12, 0)
    _write_bank(dest / "test" / "test.tar", seed, 10, 1)


def _plan(tiles: int, seed: int) -> list[Tile]:
    """The whole archive in its order."""
    rng = np.random.default_rng([seed, 1])
    copies = round(DUPLICATES * tiles)
    labels = list(CLASSES)
    shares = np.array([CLASSES[label][0] for label in labels])
    counts = np.maximum(np.round(shares * (tiles - copies)).astype(int), 1)
    originals = [label for label, count in zip(labels, counts, strict=True) for _ in range(count)]
    originals = [originals[i] for i in rng.permutation(len(originals))][: tiles - copies]
    originals += ["ocean"] * (tiles - copies - len(originals))
    plan = []
    for place, label in enumerate(originals):
        flat = label in ("ocean", "cloud") and rng.random() < FLAT / 0.46
        plan.append(Tile(place, label, flat=flat, edge=not flat and rng.random() < EDGES))
    for i in range(copies):
        original = plan[int(rng.integers(len(originals)))]
        plan.append(Tile(original.place, original.label, CHANGES[i % len(CHANGES)], original.flat, original.edge))
    return [plan[i] for i in rng.permutation(len(plan))]


def _write_shard(dest: Path, shard: int, shards: int, plan: list[Tile], seed: int) -> None:
    grounds = _grounds(plan, shard, shards, seed)
    broken = {i: FAULTS[n % len(FAULTS)] for n, i in enumerate(_broken(len(plan), seed))}
    members: list[tuple[str, bytes]] = []
    for i in range(shard, len(plan), shards):
        tile = plan[i]
        pixels = _changed(grounds[tile.place], tile, np.random.default_rng([seed, 2, i]))
        members += _members(f"S2_{tile.place:06d}_{i:06d}", pixels, tile, i, broken.get(i, ""))
    write_tar(dest / "archive" / str(2023 + shard % 2) / f"tiles-{shard:03d}.tar", members)


def _broken(tiles: int, seed: int) -> list[int]:
    count = round(BROKEN * tiles)
    return [int(i) for i in np.random.default_rng([seed, 3]).choice(tiles, count, replace=False)]


def _grounds(plan: list[Tile], shard: int, shards: int, seed: int) -> dict[int, NDArray[np.uint16]]:
    """The ground of each place in a shard, with its margin.

    Many are drawn at once, which is faster; a place that other shards show too
    is drawn alone, so that it is the same there.
    """
    seen: dict[int, set[int]] = {}
    for i, tile in enumerate(plan):
        seen.setdefault(tile.place, set()).add(i % shards)
    here = {tile.place: tile.label for tile in plan[shard::shards]}
    grounds = {}
    for c, label in enumerate(CLASSES):
        places = [place for place, of in here.items() if of == label]
        for place in (place for place in places if len(seen[place]) > 1):
            grounds[place] = draw(label, 1, np.random.default_rng([seed, 4, place]))[0]
        own = [place for place in places if len(seen[place]) == 1]
        for start in range(0, len(own), 32):
            chunk = own[start : start + 32]
            drawn = draw(label, len(chunk), np.random.default_rng([seed, 5, shard, c, start]))
            grounds.update(zip(chunk, drawn, strict=True))
    return grounds


def _changed(ground: NDArray[np.uint16], tile: Tile, rng: np.random.Generator) -> NDArray[np.uint16]:
    """The 64-pixel tile that is cut from its ground."""
    row = column = MARGIN
    if tile.change == "shifted":
        row, column = (MARGIN + int(n) for n in rng.choice([-3, -2, -1, 1, 2, 3], 2))
    values = ground[:, row : row + TILE, column : column + TILE]
    if tile.flat:
        values = np.full_like(values, 10000 if tile.label == "cloud" else 230)
    if tile.edge:
        values = np.where(np.add.outer(np.arange(TILE), np.arange(TILE) // 3) < 25, 0, values)
    if tile.change == "re-encoded":  # by a lossy coder, in steps of 16
        values = np.where(values > 0, np.maximum(values // 16 * 16 + 8, 1), 0)
    elif tile.change == "relit":
        values = np.where(values > 0, np.maximum(values * rng.uniform(0.94, 1.06) + rng.uniform(-20, 20), 1), 0)
    elif tile.change == "mirrored":
        values = values[..., ::-1]
    elif tile.change == "turned":
        values = np.rot90(values, int(rng.integers(1, 4)), (1, 2))
    return values.astype(np.uint16)


def _members(key: str, pixels: NDArray[np.uint16], tile: Tile, i: int, fault: str) -> list[tuple[str, bytes]]:
    """A tile's two files, broken in the asked way."""
    west, north = _place(tile)
    step = math.degrees(GROUND / 6371000)
    pixel = (step / math.cos(math.radians(north)), step)
    box = [west, north - TILE * pixel[1], west + TILE * pixel[0], north]
    said = {
        "label": tile.label,
        "time": (datetime(2023, 1, 1, 10, 30) + timedelta(days=i % 730)).isoformat() + "Z",
        "footprint": [round(side, 6) for side in box],
        "license": "CC0-1.0",
        "source_id": f"place-{tile.place:06d}",
    }
    sidecar = json.dumps(said).encode()
    values: NDArray[Any] = pixels
    if fault == "not a number":
        values = np.full(pixels.shape, np.nan, np.float32)
    elif fault == "no data":
        values = np.zeros_like(pixels)
    image = geotiff(values, BANDS, "0", (west, north), pixel)
    if fault == "cut short":
        image = image[: len(image) // 2]
    elif fault == "empty":
        image = b""
    elif fault == "bad json":
        sidecar = sidecar[:-20]
    elif fault == "not an image":
        image = b"<html>503 Slow Down</html>"
    return [(f"{key}.tif", image), (f"{key}.json", sidecar)]


def _place(tile: Tile) -> tuple[float, float]:
    """Upper left corner of a location, in degrees."""
    rng = np.random.default_rng([7, tile.place])
    lon, lat = CLASSES[tile.label][1]
    return lon + rng.uniform(-3, 3), lat + rng.uniform(-1.5, 1.5)


def _write_bank(path: Path, seed: int, each: int, number: int) -> None:
    """A labelled archive: as many tiles of each class, of places that neither the archive nor another number has."""
    members: list[tuple[str, bytes]] = []
    for c, label in enumerate(CLASSES):
        for i, ground in enumerate(draw(label, each, np.random.default_rng([seed, 6 + number, c]))):
            tile = Tile(900_000 + 10_000 * number + 100 * c + i, label)
            members += _members(f"{label}_{i:02d}", _changed(ground, tile, np.random.default_rng(0)), tile, i, "")
    write_tar(path, members)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--tiles", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_sample_archive(arguments.dest, arguments.tiles, arguments.seed)
