"""Archives in the layouts of real ones, a catalog and a manifest over them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.catalog.rows import Row, RowMaker
from curation.catalog.schema import catalog_schema
from curation.catalog.store import parquet_bytes
from curation.manifests.schema import MANIFEST_SCHEMA
from tests.containers import store, write_store
from tests.kept import write_header
from tests.recipes import geotiff, npy, write_tar


def ground(seed: int, bands: int = 3, height: int = 40, width: int = 56) -> NDArray[np.uint16]:
    """Pixels of one image, none of them 0."""
    return np.random.default_rng(seed).integers(1, 4000, (bands, height, width), np.uint16)


def write_images(folder: Path, shards: int = 2, images: int = 5) -> None:
    """Tars and a folder of multi-band images with sidecars on either side of them."""
    for shard in range(shards):
        members = []
        for i in range(images):
            key = f"s{shard}/img{i}" + "_Überflug" * (i == 1) + "_long" * (25 * (i == 2))
            members += [(f"{key}.json", b'{"label": "sea"}'), (f"{key}.tif", geotiff(ground(10 * shard + i)))]
            members += [(f"{key}.zzz", b"more")]
        write_tar(folder / f"part-{shard}.tar", members)
    (folder / "loose").mkdir()
    for i in range(images):
        (folder / f"loose/img{i}.npy").write_bytes(npy(ground(100 + i)))
        (folder / f"loose/img{i}.json").write_bytes(b"{}")


def write_modalities(folder: Path, shards: int = 2, samples: int = 6) -> None:
    """One tar a modality with the same names and keys, the second one's in another order."""
    for shard in range(shards):
        numbers = range(10 * shard, 10 * shard + samples)
        s2 = [(f"k{i}.tif", geotiff(ground(i), ("B02", "B03", "B04"))) for i in numbers]
        said = [(f"k{i}.json", b'{"label": "sea"}') for i in numbers]
        s1 = [(f"k{i}.tif", geotiff(ground(500 + i, 2), ("vv", "vh"))) for i in reversed(numbers)]
        write_tar(folder / f"train/S2L2A/shard-{shard}.tar", [m for pair in zip(s2, said, strict=True) for m in pair])
        write_tar(folder / f"train/S1GRD/shard-{shard}.tar", s1)


def write_scenes(folder: Path, scenes: int = 9) -> None:
    """Scenes of three files each, one of half the resolution, and a sidecar."""
    for scene in range(scenes):
        for band in ("B02", "B03", "B11"):
            pixels = ground(scene * 7 + int(band[1:]), 1)
            step = 2 if band == "B11" else 1
            path = folder / f"T3{scene}UQD_20200{scene + 1}01_{band}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(geotiff(pixels[:, ::step, ::step], corner=(7.0, 47.0), pixel=(1e-4 * step, 1e-4 * step)))


def write_listed(folder: Path, form: str, scenes: int = 5) -> None:
    """Scenes whose files do not tell what they are: a list does, of STAC items or of paths."""
    for scene in range(scenes):
        for band in (2, 3):
            path = folder / f"{'north' if scene % 2 else 'south'}/{scene}/file{band}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(geotiff(ground(scene * 7 + band, 1), corner=(7.0, 47.0), pixel=(1e-4, 1e-4)))
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tif"))
    if form == "text":
        (folder / "list.txt").write_text("\n".join(paths))
        return
    items: dict[str, dict[str, Any]] = {}
    for path in paths:
        place, scene, file = path.split("/")
        asset = {"href": path, "type": "image/tiff", "bands": [{"name": f"B0{file[4]}"}]}
        items.setdefault(f"{place}_{scene}", {})[file] = asset
    features = [{"type": "Feature", "id": name, "properties": {}, "assets": assets} for name, assets in items.items()]
    (folder / "list.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


SCENES = r"(?P<scene>.*T\d\d\w+_\d+)_(?P<band>B\d+)\.tif"


def write_parquet(folder: Path, rows: int = 14) -> None:
    """A GeoTIFF a band and row, one row a row group."""
    cells = {f"B0{b}": [geotiff(ground(20 * row + b, 1)) for row in range(rows)] for b in (2, 3)}
    table = pa.table({"key": [f"p{row}" for row in range(rows)], **cells})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "part-00001.parquet", row_group_size=1)


def write_zarr(folder: Path, samples: int = 4, times: int = 2) -> None:
    """A store: ``bands[sample, time, band, y, x]``, a chunk a sample with all its times."""
    cube = np.stack([np.stack([ground(30 * s + t) for t in range(times)]) for s in range(samples)])
    axes = ("sample", "time", "band", "y", "x")
    arrays = {
        "bands": (cube, axes, {"chunks": (1, *cube.shape[1:])}),
        "band": (np.array(["B02", "B03", "B04"]), ("band",), {}),
    }
    write_store(folder / "cube.zarr", store(arrays))


# catalog and manifest


def keep(
    folder: Path, settings: dict[str, Any], share: float = 0.5, catalog: bool = True
) -> tuple[str, dict[str, NDArray[Any]]]:
    """Catalog and manifest of ``folder/archive``; the URL of the latter, and the pixels of each kept sample."""
    config = ArchiveConfig(**{**settings, "tile": TileConfig(**settings.get("tile", {}))})
    url = next((folder / "archive").glob("list.*"), folder / "archive")
    (root,) = list_archive(str(url), settings=config)
    draw = np.random.default_rng(3)
    truth, kept, kinds = {}, [], set()
    for shard in root.shards:
        raws = list(read_shard(root.folder, shard, config))
        first = next(raw for raw in raws if isinstance(raw, RawSample))
        sample = decode(first, config)
        like = (sample.bands, str(sample.pixels.dtype), sample.radiometry)
        maker = RowMaker(config, *like, _range(sample.bands), lambda s: s.pixels, 0.0)
        found = [result for results in maker.rows(shard.name, raws) for result in results if isinstance(result, Row)]
        rows = [{**row.columns, "index": index} for index, row in enumerate(found)]
        for columns, row in zip(rows, found, strict=True):
            if draw.random() < share:
                truth[columns["sample_id"]] = row.tile
                kept.append(columns)
                kinds.add((sample.bands, str(sample.pixels.dtype)))
        if catalog:
            path = folder / f"workspace/catalog/feed/{shard.name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            footer = {"fingerprint": shard.fingerprint}
            path.write_bytes(parquet_bytes(pa.Table.from_pylist(rows, catalog_schema(4)), footer))
    kept.sort(key=lambda row: (row["shard"], row["index"]))
    ranks = draw.permutation(len(kept)).tolist()
    more = [{"cluster": 0, "distance": 0.5, "rank": rank} for rank in ranks]
    rows = [
        {name: {**row, **own}.get(name) for name in MANIFEST_SCHEMA.names} for row, own in zip(kept, more, strict=True)
    ]
    manifest = folder / "workspace/manifests/0123abcd"
    manifest.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), manifest / "manifest.parquet", row_group_size=7)
    ((bands, dtype),) = kinds
    write_header(manifest, {"root0": root.folder.url}, config={"archive": settings}, bands=list(bands), dtype=dtype)
    return str(manifest), truth


def _range(bands: Sequence[str]) -> NDArray[np.float32]:
    return np.tile(np.float32([0, 4000]), (len(bands), 1))
