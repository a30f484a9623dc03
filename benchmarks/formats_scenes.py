"""Scenes of `benchmarks.formats`: COG, single-band files, and a real Sentinel-2 scene; against rasterio's windows."""

import functools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window

from benchmarks.formats_base import Format, Pixels
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.archive.tiling import windows

TILE = 256
WIDTH = 4096


def _land(bands: int, top: int, height: int, width: int) -> NDArray[np.uint16]:
    """Rows of a scene: waves and noise, 10 to 12 bits of them."""
    rng = np.random.default_rng(top)
    y, x = np.mgrid[top : top + height, :width]
    wave = np.stack([np.sin(x / (90 + i)) + np.cos(y / (70 + i)) for i in range(bands)])
    return (wave * 1000 + 3000 + rng.integers(0, 60, wave.shape)).astype(np.uint16)


def _write_rows(path: Path, bands: int, seed: int, rows: int, width: int, **profile: Any) -> None:
    about = {"driver": "GTiff", "count": bands, "height": rows * TILE, "width": width, "dtype": "uint16", "nodata": 0}
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_100_000, 10, 10)}
    with rasterio.open(path, "w", **about, **place, **profile) as file:
        for row in range(rows):
            at = Window(0, row * TILE, width, TILE)
            file.write(_land(bands, seed + row * TILE, TILE, width), window=at)


def write_cog(folder: Path, rows: int) -> None:
    """A COG of 13 bands, deflate with prediction, 4096 pixels wide, of so many rows of tiles."""
    with tempfile.TemporaryDirectory() as name:
        _write_rows(Path(name) / "a.tif", 13, 0, rows, WIDTH, tiled=True, interleave="pixel")
        options = {"driver": "COG", "compress": "deflate", "predictor": "yes", "blocksize": TILE}
        rasterio.shutil.copy(Path(name) / "a.tif", folder / "scene.tif", **options)


def write_bands(folder: Path, rows: int) -> None:
    """Twelve files of a band each, in strips of 8 rows, deflate: what GDAL writes unasked but for the compression."""
    for band in range(12):
        _write_rows(folder / f"B{band:02}.tif", 1, 10**6 * band, rows, 1200, compress="deflate", blockysize=8)


def link_aquileia(data: Path, folder: Path, rows: int) -> None:
    """The real scene, as it is."""
    for file in sorted(data.glob("*.tiff")):
        (folder / file.name).symlink_to(file.resolve())


def scene_windows(size: int, folder: Path) -> Pixels:
    """Rasterio's windows, tile by tile: of several files one band each."""
    with ExitStack() as stack:
        files = [stack.enter_context(rasterio.open(path)) for path in sorted(folder.iterdir())]
        for w in windows(files[0].height, files[0].width, size, size):
            at = Window(w.column, w.row, w.width, w.height)
            if len(files) == 1:
                pixels = files[0].read(window=at)
            else:
                pixels = np.empty((len(files), w.height, w.width), files[0].dtypes[0])
                for file, band in zip(files, pixels, strict=True):
                    file.read(1, window=at, out=band)
            yield pixels


def _scene(write: Callable[[Path, int], None], layout: str, tile: int, size: int, memory: int) -> Format:
    settings = ArchiveConfig(scene=layout, tile=TileConfig(tile))
    return Format(write, {"rasterio": functools.partial(scene_windows, tile)}, size, memory, settings)


FORMATS = {
    "scene_cog": _scene(write_cog, "file", TILE, 16, 2),
    "scene_bands": _scene(write_bands, "folder", TILE, 16, 2),
}


def real_scenes(data: Path) -> dict[str, Format]:
    """The Aquileia scene in small tiles, where it is there."""
    scene = data / "scenes" / "s2_aquileia_2019-04-16"
    if not scene.is_dir():
        return {}
    return {"scene_aquileia": _scene(functools.partial(link_aquileia, scene), "folder", 128, 0, 0)}
