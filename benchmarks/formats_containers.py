"""Containers of `benchmarks.formats`: Parquet (Major TOM), zipped Zarr (SSL4EO-S12), tars of GeoTIFF and of Zarr."""

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
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
from zarr.storage import LocalStore, MemoryStore, ZipStore

from benchmarks.formats_base import Format, Pixels

SIDE = 264  # pixels of a tile of SSL4EO-S12 and TerraMesh
PATCH = 1068  # pixels of a patch of Major TOM
S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


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


def plain_parquet(read: Callable[[bytes], NDArray[Any]], path: Path) -> Pixels:
    """A row group at a time, as Major TOM's own code."""
    file = pq.ParquetFile(path / "part_00001.parquet")
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=list(S2))
        for row in range(table.num_rows):
            yield np.concatenate([read(table[band][row].as_py()) for band in S2])


def make_zarr(zipped: bool, path: Path, count: int) -> None:
    """The layout of SSL4EO-S12 v1.1, ``bands[sample, time, band, y, x]``, in a zip or a folder."""
    shape = (count // 4, 4, len(S2), SIDE, SIDE)
    store = ZipStore(path / "shard.zarr.zip", mode="w") if zipped else LocalStore(path / "shard.zarr")
    group = zarr.create_group(store, zarr_format=2)
    bands = group.create_array("bands", shape=shape, dtype="<i2", chunks=(1, *shape[1:]))
    bands.attrs["_ARRAY_DIMENSIONS"] = ["sample", "time", "band", "y", "x"]
    for n in range(shape[0]):
        bands[n] = np.stack([ground(len(S2), SIDE, 4 * n + t) for t in range(4)])
    store.close()


def plain_zarr(zipped: bool, path: Path) -> Pixels:
    """A chunk at a time."""
    store = ZipStore(path / "shard.zarr.zip", mode="r") if zipped else LocalStore(path / "shard.zarr", read_only=True)
    bands: Any = zarr.open_group(store, mode="r")["bands"]
    for n in range(bands.shape[0]):
        yield from bands[n]


def make_tar(suffix: str, encode: Callable[[NDArray[Any]], bytes], path: Path, count: int) -> None:
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


def plain_tar(suffix: str, read: Callable[[bytes], NDArray[Any]], path: Path) -> Pixels:
    """By webdataset."""
    for sample in webdataset.WebDataset(str(path / "shard.tar"), shardshuffle=False, empty_check=False):
        yield read(sample[suffix])


TIFF = {"tifffile": by_tifffile, "rasterio": by_rasterio}
FORMATS = {
    "parquet": Format(make_parquet, {name: partial(plain_parquet, read) for name, read in TIFF.items()}, 8, 1),
    "zarr_zip": Format(partial(make_zarr, True), {"zarr": partial(plain_zarr, True)}, 64, 8),
    "zarr_store": Format(partial(make_zarr, False), {"zarr": partial(plain_zarr, False)}, 64, 8),
    "tar_tif": Format(
        partial(make_tar, "tif", tiff), {name: partial(plain_tar, "tif", read) for name, read in TIFF.items()}, 64, 16
    ),
    "tar_zarr": Format(
        partial(make_tar, "zarr.zip", zarr_zip), {"zarr": partial(plain_tar, "zarr.zip", by_zarr)}, 128, 16
    ),
}
