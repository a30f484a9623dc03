"""Samples a second of our readers and of the plain loops that users of these formats write, on one core.

Both read the same files, which lie in the page cache, and decode to the same pixels. Seconds are those of the CPU, so
that other processes do not count, and the runs alternate. Parts:
Parquet against pyarrow with tifffile or rasterio (the faster one), Zarr against zarr chunk by chunk, tars of GeoTIFFs
and of zipped Zarr against webdataset with tifffile or rasterio, and zarr. ``ratio`` is the least of ours over theirs.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import tifffile
import webdataset
import zarr
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from zarr.storage import MemoryStore, ZipStore

from benchmarks.output import print_result
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.config import ArchiveConfig
from curation.runtime import limit_threads

SIDE = 264  # pixels of a tile of SSL4EO-S12 and TerraMesh
PATCH = 1068  # pixels of a patch of Major TOM
S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")

Pixels = Iterator[NDArray[Any]]


def ground(bands: int, side: int, seed: int) -> NDArray[np.uint16]:
    """Pixels that compress about as well as land does: fractal noise with sensor noise."""
    rng = np.random.default_rng(seed)
    total = np.zeros((bands, side, side))
    for step in (64, 16, 4):
        coarse = rng.normal(0, 60 * step**0.5, (bands, -(-side // step), -(-side // step)))
        total += np.kron(coarse, np.ones((1, step, step)))[:, :side, :side]
    return np.clip(2500 + total + rng.normal(0, 25, total.shape), 1, 20_000).astype(np.uint16)


def tiff(pixels: NDArray[Any]) -> bytes:
    """A GeoTIFF as Major TOM's."""
    count, height, width = pixels.shape
    profile = {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "crs": "EPSG:32633"}
    grid = rasterio.transform.from_origin(300_000, 5_000_000, 10, 10)
    with MemoryFile() as file:
        with file.open(driver="GTiff", compress="deflate", predictor=2, transform=grid, **profile) as image:
            image.write(pixels)
        return bytes(file.read())


def ours(path: Path) -> Pixels:
    """Every tile of an archive as our reader gives it."""
    config = ArchiveConfig()
    for root in list_archive(str(path), settings=config):
        for shard in root.shards:
            for raw in read_shard(root.folder, shard, config):
                assert isinstance(raw, RawSample), raw
                yield decode(raw, config).pixels


def by_tifffile(data: bytes) -> NDArray[Any]:
    """A GeoTIFF by tifffile, bands first."""
    values = tifffile.imread(io.BytesIO(data))
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def by_rasterio(data: bytes) -> NDArray[Any]:
    """A GeoTIFF by rasterio."""
    with MemoryFile(data) as file, file.open() as image:
        return np.asarray(image.read())


# archives, and how their users read them


def make_parquet(path: Path, count: int) -> None:
    """Major TOM's layout at one resolution: a GeoTIFF a band, one row a row group."""
    schema = pa.schema([("grid_cell", pa.string()), ("product_id", pa.string()), *((b, pa.binary()) for b in S2)])
    with pq.ParquetWriter(path / "part_00001.parquet", schema, compression="NONE") as file:
        for i in range(count):
            bands = dict(zip(S2, (tiff(band[None]) for band in ground(len(S2), PATCH, i)), strict=True))
            row = {"grid_cell": f"{i}U_1R", "product_id": f"product{i}", **bands}
            file.write_table(pa.Table.from_pylist([row], schema))


def plain_parquet(path: Path, read: Callable[[bytes], NDArray[Any]]) -> Pixels:
    """A row group at a time, as Major TOM's own code."""
    file = pq.ParquetFile(path / "part_00001.parquet")
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=list(S2))
        for row in range(table.num_rows):
            yield np.concatenate([read(table[band][row].as_py()) for band in S2])


def make_zarr(path: Path, count: int) -> None:
    """The layout of SSL4EO-S12 v1.1: ``bands[sample, time, band, y, x]`` in a zip."""
    shape = (count // 4, 4, len(S2), SIDE, SIDE)
    store = ZipStore(path / "shard.zarr.zip", mode="w")
    group = zarr.create_group(store, zarr_format=2)
    bands = group.create_array("bands", shape=shape, dtype="<i2", chunks=(1, *shape[1:]))
    bands.attrs["_ARRAY_DIMENSIONS"] = ["sample", "time", "band", "y", "x"]
    for n in range(shape[0]):
        bands[n] = np.stack([ground(len(S2), SIDE, 4 * n + t) for t in range(4)])
    store.close()


def plain_zarr(path: Path) -> Pixels:
    """A chunk at a time."""
    bands: Any = zarr.open_group(ZipStore(path / "shard.zarr.zip", mode="r"), mode="r")["bands"]
    for n in range(bands.shape[0]):
        yield from bands[n]


def make_tar(path: Path, count: int, suffix: str, encode: Callable[[NDArray[Any]], bytes]) -> None:
    """WebDataset tars with one member a sample."""
    with tarfile.open(path / "shard.tar", "w") as tar:
        for i in range(count):
            data = encode(ground(len(S2), SIDE, i))
            info = tarfile.TarInfo(f"{i:06d}.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def zarr_zip(pixels: NDArray[Any]) -> bytes:
    """A member of TerraMesh."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zarr.zip"
        store = ZipStore(path, mode="w")
        group = zarr.create_group(store, zarr_format=2)
        dims = {"bands": ["time", "band", "y", "x"], "band": ["band"], "x": ["x"], "y": ["y"]}
        line = 10.0 * np.arange(SIDE)
        values = {"bands": pixels[None].astype(np.int16), "band": np.array(S2), "x": line, "y": -line}
        for name, value in values.items():
            array = group.create_array(name, shape=value.shape, dtype=value.dtype, chunks=value.shape)
            array.attrs["_ARRAY_DIMENSIONS"] = dims[name]
            array[...] = value
        store.close()
        return path.read_bytes()


def by_zarr(data: bytes) -> NDArray[Any]:
    """The bands of a zipped store by zarr: unzipped into memory, as it opens no zip in memory."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        buffer = zarr.core.buffer.cpu.Buffer
        files = {name: buffer.from_bytes(file.read(name)) for name in file.namelist() if name.startswith("bands/")}
    bands: Any = zarr.open_array(MemoryStore(files), path="bands", mode="r", zarr_format=2)  # type: ignore[arg-type]
    return np.asarray(bands[0])


def plain_tar(path: Path, suffix: str, read: Callable[[bytes], NDArray[Any]]) -> Pixels:
    """By webdataset."""
    for sample in webdataset.WebDataset(str(path / "shard.tar"), shardshuffle=False, empty_check=False):
        yield read(sample[suffix])


# the comparison


def rate(run: Callable[[], Pixels]) -> tuple[float, int]:
    """Samples a second, and a checksum over the pixels."""
    start, count, total = time.process_time(), 0, 0
    for pixels in run():
        count += 1
        total += int(pixels[:, ::37, ::41].sum())
    return count / (time.process_time() - start), total


def compare(path: Path, plain: dict[str, Callable[[], Pixels]], runs: int) -> dict[str, Any]:
    """Medians of alternating runs: ours, each plain loop's, and ours over the fastest of them."""
    loops = {"ours": partial(ours, path), **plain}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    sums = {name: rate(run)[1] for name, run in loops.items()}  # warms the caches, too
    assert len(set(sums.values())) == 1, f"the loops read different pixels: {sums}"
    for _ in range(runs):
        for name, run in loops.items():
            rates[name].append(rate(run)[0])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {**medians, "ratio": medians["ours"] / max(medians[name] for name in plain)}


def parquet(path: Path, count: int, runs: int) -> dict[str, Any]:
    """Parquet of Major TOM."""
    make_parquet(path, count)
    loops = {"tifffile": by_tifffile, "rasterio": by_rasterio}
    return compare(path, {name: partial(plain_parquet, path, read) for name, read in loops.items()}, runs)


def zarr_shard(path: Path, count: int, runs: int) -> dict[str, Any]:
    """Zipped Zarr with a sample axis."""
    make_zarr(path, count)
    return compare(path, {"zarr": partial(plain_zarr, path)}, runs)


def tar_of_tiff(path: Path, count: int, runs: int) -> dict[str, Any]:
    """Tars of multi-band GeoTIFFs."""
    make_tar(path, count, "tif", tiff)
    loops = {"tifffile": by_tifffile, "rasterio": by_rasterio}
    return compare(path, {name: partial(plain_tar, path, "tif", read) for name, read in loops.items()}, runs)


def tar_of_zarr(path: Path, count: int, runs: int) -> dict[str, Any]:
    """Tars of zipped Zarr."""
    make_tar(path, count, "zarr.zip", zarr_zip)
    return compare(path, {"zarr": partial(plain_tar, path, "zarr.zip", by_zarr)}, runs)


PARTS = {
    "parquet": (parquet, 8),
    "zarr": (zarr_shard, 64),
    "tar_tif": (tar_of_tiff, 64),
    "tar_zarr": (tar_of_zarr, 128),
}


def main() -> None:
    """Run every part and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    limit_threads(1)
    zarr.config.set({"threading.max_workers": 1})
    figures = {}
    for name in options.parts:
        part, count = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = part(Path(folder), count, options.runs)
        print(name, figures[name], flush=True)
    print_result(ratio=min(figure["ratio"] for figure in figures.values()), samples_per_second=figures)


if __name__ == "__main__":
    main()
