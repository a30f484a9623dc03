"""Tiles of every layout are the catalog's samples, row by row; what cannot be read again is told."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.catalog.artefact import Artefact
from curation.catalog.build import build_catalog
from curation.catalog.store import CatalogStore
from curation.catalog.tiles import Tiles, build_tiles, write_tiles
from curation.config import load_config
from curation.errors import CurationError, RequestError
from curation.runtime import Resources, start_ray
from curation.storage import Folder
from tests.layouts import keep
from tests.recipes import write_sample_archive
from tests.test_loaders_layouts import LAYOUTS

SIZE = 16


def catalogued(folder: Path, layout: str) -> tuple[Tiles, CatalogStore, ArchiveConfig, Artefact, list, dict]:
    """A catalog of a layout, and what :func:`write_tiles` needs besides; the pixels of each sample by id."""
    write, settings = LAYOUTS[layout]
    write(folder / "archive")
    _, truth = keep(folder, settings, share=1.1)
    archive = ArchiveConfig(**{**settings, "tile": TileConfig(**settings.get("tile", {}))})
    (root,) = list_archive(str(folder / "archive"), settings=archive)
    store = CatalogStore(Folder(str(folder / "workspace")), "feed")
    raw = next(raw for raw in read_shard(root.folder, root.shards[0], archive) if isinstance(raw, RawSample))
    sample = decode(raw, archive)
    ranges = np.tile(np.float32([0, 4000]), (len(sample.bands), 1))
    artefact = Artefact({"range": ranges}, sample.bands, str(sample.pixels.dtype), sample.radiometry)
    made = Tiles(store.workspace.child("tiles/0"), len(sample.bands), SIZE)
    return made, store, archive, artefact, [(root.folder, shard) for shard in root.shards], truth


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tile_for_every_row(tmp_path, layout):
    made, store, archive, artefact, listed, truth = catalogued(tmp_path, layout)
    seen = 0
    for folder, shard in listed:
        write_tiles(made, store, archive, artefact, folder, shard)
        tiles, ids = made.read(shard.name), store.read(shard.name)["sample_id"].to_pylist()
        assert tiles.shape == (len(ids), len(artefact.bands), SIZE, SIZE)
        for tile, own in zip(tiles, ids, strict=True):
            scaled = np.clip(truth[own].astype(np.float32) / 4000, 0, 1) * 255
            if scaled.shape[1:] == (SIZE, SIZE):
                assert np.array_equal(tile, np.rint(scaled))
            else:
                assert np.abs(tile.mean((1, 2)) - scaled.mean((1, 2))).max() < 8  # noise: only means stay
        assert np.array_equal(made.read(shard.name, slice(1, 3)), tiles[1:3])
        file = Path(made.folder.base) / made.path(shard.name)
        assert np.array_equal(safetensors.numpy.load_file(file)["tiles"], tiles)
        seen += len(ids)
    assert seen == len(truth)


def test_a_sample_that_is_gone_is_told(tmp_path):
    made, store, archive, artefact, listed, _ = catalogued(tmp_path, "scenes, tiled")
    other = store.path(listed[0][1].name)
    with pytest.raises(CurationError, match="of 12 samples of the catalog only 0 .* run the same command again"):
        Path(store.own.base, store.path(listed[1][1].name)).replace(Path(store.own.base, other))
        write_tiles(made, store, archive, artefact, *listed[0])
    assert made.digest(listed[0][1].name) is None
    assert not list(Path(made.folder.base).rglob("*.*"))  # nothing half made


def test_only_what_is_wanting_is_made(ray_local, tmp_path):
    """8-bit pixels stay as stored; a shard that changed is made again, the others stay."""
    write_sample_archive(tmp_path, tiles=80)
    arguments = [f"archive.url={tmp_path}/archive", f"workspace={tmp_path}/ws", "catalog.fit_samples=32"]
    config = load_config([*arguments, "encoder.filters=8", "archive.max_bad_fraction=1", "runtime.max_actors=1"])
    roots = list_archive(config.archive.url)
    catalog = build_catalog(config, roots, None, start_ray(config.runtime))
    one_core = Resources(1, 0, "cpu")
    made = build_tiles(config, roots, catalog, one_core, 24)
    counts = {shard: len(made.read(shard)) for shard in catalog.shards}
    assert sum(counts.values()) == catalog.counts["kept"] > 0
    files = {shard: Path(made.folder.base) / made.path(shard) for shard in catalog.shards}
    before = {shard: file.stat().st_mtime_ns for shard, file in files.items()}
    last = catalog.shards[-1]
    files[last].unlink()
    build_tiles(config, roots, catalog, one_core, 24)
    after = {shard: file.stat().st_mtime_ns for shard, file in files.items()}
    assert {shard for shard in files if before[shard] != after[shard]} == {last}
    assert build_tiles(config, roots, catalog, one_core, 16).folder.base != made.folder.base


def test_vectors_from_elsewhere_have_no_tiles(tmp_path):
    config = load_config(["archive.url=/x", f"workspace={tmp_path}"])
    catalog = type("C", (), {"artefact": Artefact({}, (), ""), "store": None})()
    with pytest.raises(RequestError, match="encoder=precomputed looks at no pixels"):
        build_tiles(config, [], catalog, Resources(1, 0, "cpu"), 16)
