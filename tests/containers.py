"""Archives in the layouts of Major TOM Core, SSL4EO-S12 v1.1 and TerraMesh, small: for the tests of their readers."""

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import zarr
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from zarr.storage import MemoryStore

from tests.recipes import encoded, write_tar
from tests.scenes import SCENES, draw

S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RESOLUTION = {"B01": 60, "B09": 60} | dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20)
_LIKE = (0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 2, 2)  # which drawn band (B02, B03, B04, B08) stands for each of S2
_BRIGHT = (0.9, 1, 1, 1, 1.1, 0.9, 0.95, 1, 1.02, 0.7, 1.2, 0.8)
UTM, EAST, NORTH = 32633, 300_000, 5_000_040
BEGIN = datetime(2020, 1, 3, 10, 12, 31)


def optical(number: int, size: int, seed: int = 0) -> NDArray[np.uint16]:
    """A Sentinel-2 tile of a scene that ``number`` chooses, ``(12, size, size)``, digital numbers."""
    label = list(SCENES)[number % len(SCENES)]
    (tile,) = draw(label, 1, np.random.default_rng([seed, number]))
    tile = np.pad(tile, ((0, 0), *((0, max(0, size - side)) for side in tile.shape[1:])), "symmetric")
    scaled = tile[list(_LIKE), :size, :size] * np.array(_BRIGHT)[:, None, None]
    return np.clip(scaled, 1, 20_000).astype(np.uint16)


def radar(number: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """A Sentinel-1 tile over the same scene, ``(2, size, size)``: VV and VH in decibels, with speckle."""
    near = optical(number, size, seed)[7].astype(np.float32)
    rng = np.random.default_rng([seed, number, 1])
    power = np.log10(1 + near / 400)[None] * np.array([0.12, 0.03])[:, None, None] + 1e-3
    return (10 * np.log10(power * rng.gamma(4, 0.25, (2, size, size)))).astype(np.float32)


# Parquet


def utm_tiff(pixels: NDArray[Any], east: float, north: float, pixel: float, nodata: float | None = None) -> bytes:
    """``(bands, height, width)`` as a GeoTIFF in UTM, as GDAL writes it."""
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    grid = {"crs": f"EPSG:{UTM}", "transform": from_origin(east, north, pixel, pixel), "nodata": nodata}
    with rasterio.Env(), MemoryFile() as file:
        with file.open(**profile, **grid, compress="deflate", predictor=2) as image:
            image.write(pixels)
        return bytes(file.read())


def major_tom_row(number: int, size: int = 66) -> dict[str, Any]:
    """A row of Core-S2L2A: a GeoTIFF a band on its own grid (10, 20, 60 m), a cloud mask, a thumbnail."""
    pixels, east = optical(number, size), EAST + 20_000 * number
    row: dict[str, Any] = {
        "product_id": f"S2B_MSIL2A_20200103T101231_N9999_R022_T33TTL_2020010{number % 9}T120000",
        "grid_cell": f"{450 + number}U_{132 + number}R",
        "product_datetime": (BEGIN + timedelta(days=number)).isoformat(sep=" "),
        "thumbnail": encoded(np.clip(pixels[3:0:-1] / 16, 0, 255).astype(np.uint8).transpose(1, 2, 0), "PNG"),
    }
    for band, values in zip(S2, pixels, strict=True):
        step = RESOLUTION.get(band, 10) // 10
        coarse = values[: size // step * step, : size // step * step]
        coarse = coarse.reshape(size // step, step, size // step, step).mean(axis=(1, 3)).astype(np.uint16)
        row[band] = utm_tiff(coarse[None], east, NORTH, 10 * step)
    row["cloud_mask"] = utm_tiff((pixels[:1] > 4000).astype(np.uint8), east, NORTH, 10)
    return row


def write_major_tom(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as a file of Major TOM Core: one row a row group, uncompressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ("product_id", "grid_cell", "product_datetime")
    columns = [*text, "thumbnail", *S2, "cloud_mask"]
    schema = pa.schema([(name, pa.string() if name in text else pa.binary()) for name in columns])
    with pq.ParquetWriter(path, schema, compression="NONE") as file:
        for row in rows:
            file.write_table(pa.Table.from_pylist([dict(row)], schema))
    return path


# Zarr


def zip_store(files: Mapping[str, bytes]) -> bytes:
    """The files of a store as a zip, not compressed again."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()


def store(
    arrays: Mapping[str, tuple[NDArray[Any], Sequence[str], dict[str, Any]]], version: int = 2
) -> dict[str, bytes]:
    """The files of a Zarr group.

    Args:
        arrays: by name the numbers, the axes' names, and under ``chunks``, ``fill_value``, ``shards`` or
            ``compressors`` how they are stored; what else there is are attributes.
        version: of the format.
    """
    kept: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(kept), zarr_format=version)  # type: ignore[arg-type]
    for name, (values, dims, more) in arrays.items():
        how = {key: more[key] for key in ("chunks", "fill_value", "shards", "compressors", "filters") if key in more}
        attrs = {key: value for key, value in more.items() if key not in how}
        if version == 3:
            array = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=dims, **how)
        else:
            array = group.create_array(name, shape=values.shape, dtype=values.dtype, **how)
            attrs["_ARRAY_DIMENSIONS"] = list(dims)
        array.attrs.update(attrs)
        array[...] = values
    return {name: value.to_bytes() for name, value in sorted(kept.items())}


def write_store(path: Path, files: Mapping[str, bytes]) -> Path:
    """The files of a store as a folder."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _seconds(numbers: Iterable[int]) -> NDArray[np.int64]:
    return np.array(
        [int((BEGIN + timedelta(days=n) - datetime(1970, 1, 1)).total_seconds()) for n in numbers], np.int64
    )


def _line(start: float, step: float, count: int) -> NDArray[np.float64]:
    """Pixels' centres."""
    return start + step * (np.arange(count) + 0.5)


def ssl4eo(
    modality: str, samples: int = 6, times: int = 4, size: int = 24, first: int = 0, **how: Any
) -> dict[str, bytes]:
    """The files of a shard of SSL4EO-S12 v1.1: ``bands[sample, time, band, y, x]`` and what goes with it."""
    numbers = np.arange(first, first + samples)
    tile = radar if modality.startswith("S1") else optical
    bands = np.stack([[tile(7 * n + t, size) for t in range(times)] for n in numbers.tolist()])
    bands = bands.astype(np.float16 if modality.startswith("S1") else np.int16)
    names = np.array(["vv", "vh"] if modality.startswith("S1") else S2, "<U3")
    place = {"chunks": (1, times, *bands.shape[2:]), **how}
    days = (numbers[:, None] * 3 + np.arange(times) * 90).ravel().tolist()
    axes = ("sample", "time", "band", "y", "x")
    arrays: dict[str, tuple[NDArray[Any], Sequence[str], dict[str, Any]]] = {
        "bands": (bands, axes, place),
        "band": (names, ("band",), {}),
        "sample": (np.array([f"{n:07d}" for n in numbers], "<U7"), ("sample",), {}),
        "file_id": (np.array([[f"{modality}_{n}_{t}" for t in range(times)] for n in numbers]), ("sample", "time"), {}),
        "time_": (
            _seconds(days).reshape(samples, times),
            ("sample", "time"),
            {"units": "seconds since 1970-01-01 00:00:00", "calendar": "proleptic_gregorian"},
        ),
        "crs": (np.full(samples, UTM, np.int64), ("sample",), {}),
        "x": (np.stack([_line(EAST + 9000 * n, 10, size) for n in numbers]), ("sample", "x"), {}),
        "y": (np.stack([_line(NORTH + 9000 * n, -10, size) for n in numbers]), ("sample", "y"), {}),
    }
    if not modality.startswith("S1"):
        arrays["cloud_mask"] = ((bands[:, :, 1] > 4000).astype(np.uint8), ("sample", "time", "y", "x"), {})
    return store(arrays)


def write_ssl4eo(dest: Path, modalities: Sequence[str], shards: int = 2, samples: int = 6, **how: Any) -> Path:
    """``<modality>/ssl4eos12_shard_<n>.zarr.zip`` for some modalities."""
    for modality in modalities:
        (dest / modality).mkdir(parents=True, exist_ok=True)
        for shard in range(shards):
            files = ssl4eo(modality, samples, first=shard * samples, **how)
            (dest / modality / f"ssl4eos12_shard_{shard:06d}.zarr.zip").write_bytes(zip_store(files))
    return dest


# tars


def terramesh_sample(modality: str, number: int, size: int = 32, times: int = 1) -> bytes:
    """A member of TerraMesh, ``<key>.zarr.zip``: ``bands[time, band, y, x]`` of one patch."""
    if modality == "DEM":
        bands = optical(number, size)[None, 7:8].astype(np.float32) / 10
    else:
        tile = radar if modality.startswith("S1") else optical
        bands = np.stack([tile(number + 100 * t, size) for t in range(times)])
        bands = bands.astype(np.float16 if modality.startswith("S1") else np.int16)
    times = len(bands)
    names = {"DEM": ["DEM"], "S1": ["vv", "vh"]}.get(modality[:2] if modality != "DEM" else "DEM", S2)
    arrays: dict[str, tuple[NDArray[Any], Sequence[str], dict[str, Any]]] = {
        "bands": (bands, ("time", "band", "y", "x"), {"chunks": bands.shape}),
        "band": (np.array(names, "<U3"), ("band",), {}),
        "time": (_seconds(number + 90 * t for t in range(times)), ("time",), {"units": "seconds since 1970-1-1"}),
        "crs": (np.array(UTM, np.int64), (), {}),
        "x": (_line(EAST + 5000 * number, 10, size), ("x",), {}),
        "y": (_line(NORTH, -10, size), ("y",), {}),
    }
    if modality.startswith("S2"):
        arrays["cloud_mask"] = ((bands[:, 1] > 4000).astype(np.uint8), ("time", "y", "x"), {})
    return zip_store(store(arrays))


def write_terramesh(
    dest: Path, modalities: Sequence[str], shards: int = 2, each: int = 10, splits: Sequence[str] = ("train", "val")
) -> Path:
    """``<split>/<modality>/majortom_shard_<n>.tar``: shards of one name in every modality and split."""
    for s, split in enumerate(splits):
        for shard in range(shards):
            numbers = [(s * shards + shard) * each + i for i in range(each)]
            for modality in modalities:
                members = [(f"tm_{n:06d}.zarr.zip", terramesh_sample(modality, n)) for n in numbers]
                write_tar(dest / split / modality / f"majortom_shard_{shard + 1:06d}.tar", members)
    return dest
