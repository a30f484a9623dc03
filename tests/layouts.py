"""Archives in the layouts of real ones, a catalog and a manifest over them; readers that stand in for real ones."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.archive.decode import decode
from curation.archive.folder import read_folder
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import Image, Member, RawSample, Rejection, Wanted, Window
from curation.archive.shards import Shard
from curation.archive.tiling import windows
from curation.archive.webdataset import read_tar
from curation.catalog.rows import Row, RowMaker
from curation.catalog.schema import catalog_schema
from curation.config import ArchiveConfig, TileConfig
from curation.manifests.schema import MANIFEST_SCHEMA
from curation.storage import Folder
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


SCENES = r"(?P<scene>.*T\d\d\w+_\d+)_(?P<band>B\d+)\.tif"


def write_parquet(folder: Path, rows: int = 14) -> None:
    """A GeoTIFF a band and row, one row a row group."""
    cells = {f"B0{b}": [geotiff(ground(20 * row + b, 1)) for row in range(rows)] for b in (2, 3)}
    table = pa.table({"key": [f"p{row}" for row in range(rows)], **cells})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "part-00001.parquet", row_group_size=1)


def write_zarr(folder: Path, samples: int = 4, times: int = 2) -> None:
    """A store (``bands[sample, time, band, y, x]``), its one chunk an npy file: the reader here is a stand-in."""
    cube = np.stack([np.stack([ground(30 * s + t) for t in range(times)]) for s in range(samples)])
    (folder / "cube.zarr/bands").mkdir(parents=True)
    (folder / "cube.zarr/bands/0").write_bytes(npy(cube))


# readers


def _asked(only: Sequence[Wanted] | None, **place: Any) -> bool:
    return only is None or any(all(getattr(one, n) == value for n, value in place.items()) for one in only)


def parquet_stand_in(
    folder: Folder, shard: Shard, settings: ArchiveConfig, only: Sequence[Wanted] | None = None
) -> Iterator[RawSample | Rejection]:
    """Whole rows, a cell a member."""
    assert shard.file is not None
    rows = pq.read_table(io.BytesIO(folder.read(shard.file.path))).to_pylist()
    for index, row in enumerate(rows):
        key = row.pop("key")
        if _asked(only, key=key, position=(index, 0)):
            members = [Member(name, None, len(cell)) for name, cell in row.items()]
            yield RawSample(key, index, members, row, position=(index, 0))


def zarr_stand_in(
    folder: Folder, shard: Shard, settings: ArchiveConfig, only: Sequence[Wanted] | None = None
) -> Iterator[RawSample | Rejection]:
    """Windows of slices, decoded."""
    cube = np.load(io.BytesIO(folder.read(shard.files[0].path)))
    bands = ("B02", "B03", "B04")
    index = 0
    for position in np.ndindex(cube.shape[:2]):
        key = f"cube_{position[0]}_t{position[1]}"
        for window in _windows(cube.shape[3:], settings):
            if _asked(only, key=key, position=position, window=window):
                image = Image(_cut(cube[position], window), bands)
                members = [Member("bands", None, shard.size)]
                yield RawSample(key, index, members, {}, {"bands": image}, {}, position, window)
            index += 1


def scene_stand_in(
    folder: Folder, shard: Shard, settings: ArchiveConfig, only: Sequence[Wanted] | None = None
) -> Iterator[RawSample | Rejection]:
    """Windows of a scene, decoded; its bands on one grid."""
    whole_scene = ArchiveConfig(scene=settings.scene, grid=settings.grid)
    own = Shard(shard.root, ".", "folder", files=shard.files)
    (raw,) = read_folder(folder, own, whole_scene)
    assert isinstance(raw, RawSample)
    sample = decode(raw, whole_scene)
    for index, window in enumerate(_windows(sample.mask.shape, settings)):
        if _asked(only, key=raw.key, window=window):
            images = {b: Image(_cut(sample.pixels[i, None], window), (b,)) for i, b in enumerate(sample.bands)}
            yield RawSample(raw.key, index, raw.members, {}, images, {}, None, window)


def joined_stand_in(
    folder: Folder, shard: Shard, settings: ArchiveConfig, only: Sequence[Wanted] | None = None
) -> Iterator[RawSample | Rejection]:
    """The first modality's order; all of the others in memory."""
    parts = [(name, part, {item.key: item for item in read_tar(folder, part, settings)}) for name, part in shard.parts]
    for key, first in parts[0][2].items():
        if _asked(only, key=key):
            members, data, said = [], {}, {}
            for name, part, items in parts:
                raw = items[key]
                assert isinstance(raw, RawSample)
                members += [Member(m.name, m.offset, m.size, part.path) for m in raw.members]
                data |= {f"{name}.{suffix}": content for suffix, content in raw.data.items()}
            yield RawSample(key, first.index, members, data, said=said)


STAND_INS = {
    "parquet": parquet_stand_in,
    "zarr": zarr_stand_in,
    "scene": scene_stand_in,
    "joined": joined_stand_in,
}


def _windows(shape: Sequence[int], settings: ArchiveConfig) -> list[Window | None]:
    size, stride = settings.tile.size, settings.tile.stride
    return [None] if size is None else list(windows(shape[0], shape[1], size, stride or size))


def _cut(pixels: NDArray[Any], window: Window | None) -> NDArray[Any]:
    if window is None:
        return pixels
    return pixels[:, window.row : window.row + window.height, window.column : window.column + window.width]


# catalog and manifest


def keep(
    folder: Path, settings: dict[str, Any], share: float = 0.5, catalog: bool = True
) -> tuple[str, dict[str, NDArray[Any]]]:
    """Catalog and manifest of ``folder/archive``; the URL of the latter, and the pixels of each kept sample."""
    config = ArchiveConfig(**{**settings, "tile": TileConfig(**settings.get("tile", {}))})
    (root,) = list_archive(str(folder / "archive"), settings=config)
    draw = np.random.default_rng(3)
    truth, kept, kinds = {}, [], set()
    for shard in root.shards:
        raws = list(read_shard(root.folder, shard, config))
        first = next(raw for raw in raws if isinstance(raw, RawSample))
        sample = decode(first, config)
        maker = RowMaker(config, sample.bands, str(sample.pixels.dtype), _range(sample.bands), lambda s: s.pixels, 0.0)
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
            pq.write_table(pa.Table.from_pylist(rows, catalog_schema(4)), path)
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
    write_header(
        manifest, {"root0": str(folder / "archive")}, config={"archive": settings}, bands=list(bands), dtype=dtype
    )
    return str(manifest), truth


def _range(bands: Sequence[str]) -> NDArray[np.float32]:
    return np.tile(np.float32([0, 4000]), (len(bands), 1))
