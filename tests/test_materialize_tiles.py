"""A tile of a scene is written as the scene has it: stored numbers, place, nodata, mask bands, what is said of it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile
from rasterio.windows import Window

from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.place import Georeference
from curation.archive.reader import read_shard
from curation.archive.sample import Image, Member, RawSample
from curation.archive.settings import ArchiveConfig, RadiometryConfig, TileConfig
from curation.errors import BadSample
from curation.manifests.loaders.kept import Kept
from curation.materialized.files import Files
from tests.layouts import ground
from tests.recipes import geotiff

SAID = {"label": "sea", "time": "2020-05-01T10:00:00Z", "cloud_cover": 80, "bbox": [0, 0, 1, 1], "license": "CC0-1.0"}


def write_scene(folder: Path, nodata: str = "0") -> None:
    """Three bands, the last of half the resolution, a scene classification, and a sidecar that speaks of the whole."""
    folder.mkdir(parents=True)
    corner = (7.0, 47.0)
    for number, band in enumerate(("B02", "B03", "B11")):
        step = 2 if band == "B11" else 1
        pixels = ground(number, 1)[:, ::step, ::step]
        pixels[:, : 6 // step, : 6 // step] = 0
        (folder / f"T_{band}.tif").write_bytes(geotiff(pixels, (), nodata, corner, (1e-4 * step, 1e-4 * step)))
    classes = np.random.default_rng(1).choice(np.array([4, 5, 6, 9], np.uint8), (1, 20, 28))
    (folder / "T_SCL.tif").write_bytes(geotiff(classes, (), "", corner, (2e-4, 2e-4)))
    (folder / "T.json").write_text(json.dumps(SAID))


def tiles(folder: Path, settings: ArchiveConfig) -> list[tuple[RawSample, dict[str, bytes]]]:
    """Each tile as the reader gives it, and the files that it is written as."""
    (root,) = list_archive(str(folder), settings=settings)
    files, found = Files(settings), []
    for raw in read_shard(root.folder, root.shards[0], settings):
        assert isinstance(raw, RawSample), raw
        row = {"window": None if raw.window is None else asdict(raw.window), "offset": None, "key": raw.key}
        found.append((raw, files.of(Kept(row, "", raw, "npy")).raw.data))
    return found


def again(key: str, files: dict[str, bytes], settings: ArchiveConfig) -> Any:
    """The sample that the files decode to, in a tar of their own."""
    members = [Member(f"{key}.{suffix}", 0, len(data)) for suffix, data in files.items()]
    return decode(RawSample(key, 0, members, files), replace(settings, scene=None, tile=TileConfig(), grid=None))


@pytest.mark.parametrize("radiometry", [{}, {"kind": "sentinel2", "offset": -1000}])
def test_a_tile_reads_back_as_the_reader_gave_it(tmp_path, radiometry):
    write_scene(tmp_path / "scene")
    settings = ArchiveConfig(
        scene="folder", grid="B02", tile=TileConfig(size=16), radiometry=RadiometryConfig(**radiometry)
    )
    found = tiles(tmp_path / "scene", settings)
    assert len(found) > 4
    for raw, files in found:
        assert files.keys() == {"tif", "SCL.tif", "json"}
        there = decode(raw, settings)
        here = again(there.key, files, settings)
        assert here.bands == there.bands == ("B02", "B03", "B11")
        assert here.pixels.dtype == there.pixels.dtype and np.array_equal(here.pixels, there.pixels)
        assert np.array_equal(here.mask, there.mask) and np.array_equal(here.clouds, there.clouds)
        for name in ("label", "time", "license", "footprint", "cloud_fraction", "radiometry", "place", "hints"):
            assert getattr(here, name) == getattr(there, name), name
        assert json.loads(files["json"]).keys() == {"label", "time", "license"}


def test_its_numbers_place_and_nodata_are_those_that_gdal_cuts_out(tmp_path):
    write_scene(tmp_path / "scene")
    for raw, files in tiles(tmp_path / "scene", ArchiveConfig(scene="folder", grid="B02", tile=TileConfig(size=16))):
        window = Window(raw.window.column, raw.window.row, 16, 16)
        with MemoryFile(files["tif"]) as file, file.open() as tile:
            for band, name in enumerate(("B02", "B03")):  # the third is brought to their grid
                with rasterio.open(tmp_path / f"scene/T_{name}.tif") as scene:
                    assert np.array_equal(tile.read(band + 1), scene.read(1, window=window))
                    assert np.allclose(tuple(tile.transform), tuple(scene.window_transform(window)), rtol=1e-12)
                    assert tile.crs == scene.crs
                    assert tile.nodata == scene.nodata == 0


def test_a_nodata_value_that_would_hide_valid_pixels_is_left_to_the_mask(tmp_path):
    write_scene(tmp_path / "scene")
    settings = ArchiveConfig(scene="folder", grid="B02", tile=TileConfig(size=16))
    (root,) = list_archive(str(tmp_path / "scene"), settings=settings)
    raw = next(iter(read_shard(root.folder, root.shards[0], settings)))
    raw.images["B11"].pixels[:, 12, 12] = 0  # as if resampling had come to it
    raw.images["B11"].mask = np.ones((16, 16), bool)
    raw.images = {name: replace(one, nodata=0.0) for name, one in raw.images.items()}
    raw.images["B11"].nodata = None
    row = {"window": asdict(raw.window), "offset": None, "key": raw.key}
    files = Files(settings).of(Kept(row, "", raw, "npy")).raw.data
    with MemoryFile(files["tif"]) as file, file.open() as tile:
        assert tile.nodata is None
        assert tile.dataset_mask()[12, 12] and not tile.dataset_mask()[0, 0]


def test_a_reference_system_without_a_code_stays_in_the_sidecar():
    wkt = 'PROJCS["own",GEOGCS["s",DATUM["s",SPHEROID["s",6371007.181,0]],PRIMEM["G",0],'
    wkt += 'UNIT["degree",0.0174532925199433]],PROJECTION["Sinusoidal"],'
    wkt += 'PARAMETER["longitude_of_center",0],UNIT["metre",1]]'
    place = Georeference(wkt, (500.0, 0.0, 1e6, 0.0, -500.0, 4e6))
    image = Image(ground(1, 1), ("b1",), place=place)
    raw = RawSample("k", 0, [Member("bands", None, 1)], {}, {"bands": image})
    files = Files(ArchiveConfig()).of(Kept({"window": None, "offset": None, "key": "k"}, "", raw, "npy")).raw.data
    told = json.loads(files["json"])
    assert (told["crs"], told["transform"]) == (wkt, list(place.transform))
    here = again("k", files, ArchiveConfig())
    assert here.footprint == pytest.approx(place.footprint(*image.pixels.shape[1:]))


def test_files_that_would_get_one_name_are_refused():
    raw = RawSample("k", 0, [], {"a/b.tif": b"II*\0", "a_b.tif": b"II*\0"}, position=(0, 0))
    with pytest.raises(BadSample, match="would both be written as a_b.tif"):
        Files(ArchiveConfig()).of(Kept({"window": None, "offset": None, "key": "k"}, "", raw, "a_b.tif"))
