"""Each format that archives come in: samples/s of our reader and decoder over the fastest plain loop of its library.

The plain loop only fetches pixels, into arrays of the same shape; ours also
finds masks, places and footprints. Both run on one core, by turns, on files
that lie in the page cache; speeds are per second of processor time.
``ratio`` is the median of ours over theirs, of the format where it is least.
Peak memory of the reader is that of a process of its own, on a shard of the
usual size and on one ten times as large.

A format is an entry of ``FORMATS``.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window

from benchmarks.output import print_result
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.tiling import tiles, windows
from curation.config import ArchiveConfig, TileConfig

TILE = 256


@dataclass(frozen=True)
class Format:
    """One way of storing samples.

    Attributes:
        write: writes an archive into an empty folder; its size is a number that memory may depend on.
        settings: how we read it.
        plain: the loop that its users write: reads all samples of the folder, gives their number.
        size: for speed.
        memory: for peak memory, the usual one, of which ten times is taken too.
    """

    write: Callable[[Path, int], None]
    settings: ArchiveConfig
    plain: Callable[[Path], int]
    size: int
    memory: int


def read(folder: Path, settings: ArchiveConfig) -> int:
    """Read and decode all samples of an archive as the pipeline does."""
    count = 0
    for root in list_archive(str(folder), settings=settings):
        for shard in root.shards:
            for raw in read_shard(root.folder, shard, settings):
                assert isinstance(raw, RawSample), raw
                for sample in tiles(decode(raw, settings), settings.tile.size, settings.tile.stride):
                    count += int(sample.pixels.size > 0)
    return count


# scenes

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


def scene_windows(size: int, folder: Path) -> int:
    """Rasterio's windows, tile by tile: of several files one band each."""
    with ExitStack() as stack:
        files = [stack.enter_context(rasterio.open(path)) for path in sorted(folder.iterdir())]
        count = 0
        for w in windows(files[0].height, files[0].width, size, size):
            at = Window(w.column, w.row, w.width, w.height)
            if len(files) == 1:
                pixels = files[0].read(window=at)
            else:
                pixels = np.empty((len(files), w.height, w.width), files[0].dtypes[0])
                for file, band in zip(files, pixels, strict=True):
                    file.read(1, window=at, out=band)
            count += int(pixels.size > 0)
        return count


def _scene(size: int, layout: str) -> ArchiveConfig:
    return ArchiveConfig(scene=layout, tile=TileConfig(size))


FORMATS = {
    "scene_cog": Format(write_cog, _scene(TILE, "file"), functools.partial(scene_windows, TILE), 16, 2),
    "scene_bands": Format(write_bands, _scene(TILE, "folder"), functools.partial(scene_windows, TILE), 16, 2),
}


def with_real_scenes(data: Path) -> dict[str, Format]:
    """The formats, and the Aquileia scene in small tiles where it is there."""
    scene = data / "scenes" / "s2_aquileia_2019-04-16"
    if not scene.is_dir():
        return FORMATS
    link, loop = functools.partial(link_aquileia, scene), functools.partial(scene_windows, 128)
    return {**FORMATS, "scene_aquileia": Format(link, _scene(128, "folder"), loop, 0, 0)}


# measuring


def speeds(kind: Format, repeats: int) -> dict[str, float]:
    """Samples per second of processor time, ours and theirs by turns; medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind.write(folder, kind.size)
        count = read(folder, kind.settings)
        assert kind.plain(folder) == count
        pairs = []
        for turn in range(repeats):
            first: list[Callable[[], int]] = [lambda: read(folder, kind.settings), lambda: kind.plain(folder)]
            taken = [_seconds(call) for call in (first if turn % 2 == 0 else first[::-1])]
            pairs.append(taken if turn % 2 == 0 else taken[::-1])
    return {
        "samples": count,
        "ours": statistics.median(count / ours for ours, _ in pairs),
        "theirs": statistics.median(count / theirs for _, theirs in pairs),
        "ratio": statistics.median(theirs / ours for ours, theirs in pairs),
    }


def _seconds(call: Callable[[], int]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _peak_so_far() -> float:
    """Peak resident megabytes of this process; ``ru_maxrss`` would count its parent's before the exec."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak(name: str, kind: Format, times: int) -> float:
    """Peak resident megabytes of a fresh process that reads an archive."""
    with tempfile.TemporaryDirectory() as folder:
        kind.write(Path(folder), kind.memory * times)
        command = [sys.executable, "-m", "benchmarks.formats", "--read", name, folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main() -> None:
    """Measure every format, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("CURATION_BENCHMARK_DATA", "../shared/data"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of formats")
    parser.add_argument("--read", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    formats = with_real_scenes(Path(options.data))
    if options.read:
        name, folder = options.read
        read(Path(folder), formats[name].settings)
        print(_peak_so_far())
        return
    figures: dict[str, dict[str, float]] = {}
    for name, kind in formats.items():
        if options.only and name not in options.only:
            continue
        figures[name] = speeds(kind, options.repeats)
        if kind.memory:
            figures[name] |= {"megabytes": peak(name, kind, 1), "megabytes_at_10x": peak(name, kind, 10)}
        print(name, figures[name], file=sys.stderr)
    print_result(min(found["ratio"] for found in figures.values()), formats=figures)


if __name__ == "__main__":
    main()
