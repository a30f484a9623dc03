"""Tiles, containers, scenes and modalities reach training as the archive has them, decoded or as bytes."""

import io
import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import curation.manifests.loaders.decoded as decoded
from curation.errors import AccessError, RequestError
from curation.manifests.loaders.fetch import Fetcher
from curation.manifests.loaders.torch import TorchSamples
from curation.manifests.loaders.webdataset import WebDatasetSamples
from curation.manifests.reading import ManifestReader
from curation.manifests.verify import _check_archive
from tests.layouts import (
    SCENES,
    keep,
    write_images,
    write_listed,
    write_modalities,
    write_parquet,
    write_scenes,
    write_zarr,
)

TILE = {"tile": {"size": 16, "stride": 12}}
LAYOUTS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "images, tiled": (write_images, TILE),
    "parquet": (write_parquet, {"members": ["B02", "B03"]}),
    "parquet, tiled": (write_parquet, {"members": ["B02", "B03"], **TILE}),
    "zarr": (write_zarr, {}),
    "zarr, tiled": (write_zarr, TILE),
    "scenes": (write_scenes, {"scene": SCENES, "grid": "B02"}),
    "scenes, tiled": (write_scenes, {"scene": SCENES, "grid": "B02", **TILE}),
    "modalities": (write_modalities, {"modalities": ["S2L2A", "S1GRD"], "members": ["S2L2A.tif", "S1GRD.tif"]}),
    "modalities, tiled": (
        write_modalities,
        {"modalities": ["S2L2A", "S1GRD"], "members": ["S2L2A.tif", "S1GRD.tif"], **TILE},
    ),
}


def torch_samples(url: str, **options: Any) -> TorchSamples:
    return TorchSamples(url, **{"rank": 0, "world_size": 1, "decode": True, **options})


def web_samples(url: str, **options: Any) -> list[dict[str, Any]]:
    return list(WebDatasetSamples(url, rank=0, world_size=1, **options))


def made(folder: Path, layout: str, **options: Any) -> tuple[str, dict[str, np.ndarray]]:
    write, settings = LAYOUTS[layout]
    write(folder / "archive")
    return keep(folder, settings, **options)


@pytest.mark.parametrize("catalog", [True, False], ids=["catalog", "no catalog"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_kept_sample_comes_once_with_its_pixels(tmp_path, layout, catalog):
    url, truth = made(tmp_path, layout, catalog=catalog)
    assert len(truth) > 4
    for shuffle in (0, 50):
        given = {sample["sample_id"]: sample for sample in torch_samples(url, shuffle=shuffle)}
        assert given.keys() == truth.keys()
        for name, sample in given.items():
            assert np.array_equal(sample["pixels"].numpy(), truth[name])
            assert sample["mask"].all()
    manifest = ManifestReader(url)
    assert list(_check_archive(Fetcher(manifest, "all", {}, None), manifest)) == []


@pytest.mark.parametrize("layout", ["images, tiled", "scenes, tiled"])
def test_batches_ranks_and_going_on_are_as_with_whole_images(tmp_path, layout):
    url, truth = made(tmp_path, layout)
    given: Counter[str] = Counter()
    for rank in range(2):
        for batch in torch_samples(url, rank=rank, world_size=2, shuffle=20).loader(4):
            assert batch["pixels"].shape[2:] == (16, 16)
            assert batch["window"]["height"].tolist() == [16] * len(batch["sample_id"])
            given.update(batch["sample_id"])
    assert given.keys() == truth.keys()
    assert given.total() - len(truth) < 2
    whole = [sample["sample_id"] for sample in torch_samples(url, seed=4)]
    first, second = torch_samples(url, seed=4), torch_samples(url, seed=4)
    before = [sample["sample_id"] for sample in islice(first, 9)]
    second.load_state_dict(first.state_dict())
    assert before + [sample["sample_id"] for sample in second] == whole


@pytest.mark.parametrize("layout", ["images, tiled", "parquet, tiled", "modalities, tiled"])
def test_an_image_is_decoded_once_for_all_of_its_tiles(tmp_path, layout, monkeypatch):
    url, truth = made(tmp_path, layout)
    calls: Counter[tuple[Any, ...]] = Counter()
    decode = decoded.decode

    def counted(raw, settings):
        calls[raw.key, raw.position, raw.members[0].offset] += 1
        return decode(raw, settings)

    monkeypatch.setattr(decoded, "decode", counted)
    assert len(list(torch_samples(url, shuffle=1000))) == len(truth)
    assert len(calls) < calls.total() * 1.01 < len(truth) / 2


@pytest.mark.parametrize("members", ["all", "image"])
@pytest.mark.parametrize("catalog", [True, False])
def test_without_decoding_a_tile_is_its_images_bytes_and_a_window(tmp_path, members, catalog):
    url, truth = made(tmp_path, "images, tiled", catalog=catalog)
    given = web_samples(url, members=members)
    assert {sample["__meta__"]["sample_id"] for sample in given} == truth.keys()
    for sample in given:
        window, key = sample["__meta__"]["window"], sample["__key__"]
        assert key.endswith(f"_r{window['row']:05d}_c{window['column']:05d}")
        stem = key.rpartition("_r")[0]
        if "loose" in sample["__url__"]:
            files = {"npy": tmp_path / f"archive/loose/{stem}.npy", "json": tmp_path / f"archive/loose/{stem}.json"}
            assert sample["npy"] == files["npy"].read_bytes()
            assert ("json" in sample) == (members == "all")
        else:
            assert sample["tif"][:4] == b"II*\0"
            assert {name for name in sample if name[0] != "_"} == (
                {"json", "tif", "zzz"} if members == "all" else {"tif"}
            )


def test_without_decoding_parquet_gives_cells_and_arrays_become_npy(tmp_path):
    url, _ = made(tmp_path / "p", "parquet")
    cells = pq.read_table(tmp_path / "p/archive/part-00001.parquet").to_pylist()
    for sample in web_samples(url):
        cell = next(cell for cell in cells if cell["key"] == sample["__key__"])
        assert (sample["b02"], sample["b03"]) == (cell["B02"], cell["B03"])
    for layout in ("zarr, tiled", "scenes, tiled"):
        url, truth = made(tmp_path / layout, layout)
        for sample in web_samples(url):
            assert np.array_equal(np.load(io.BytesIO(sample["npy"])), truth[sample["__meta__"]["sample_id"]])


@pytest.mark.parametrize("catalog", [True, False])
def test_modalities_come_with_their_names_before_the_suffix(tmp_path, catalog):
    url, _ = made(tmp_path, "modalities", catalog=catalog)
    for sample in web_samples(url):
        assert {name for name in sample if name[0] != "_"} == {"s2l2a.tif", "s2l2a.json", "s1grd.tif"}
    for sample in web_samples(url, members="image"):
        assert [name for name in sample if name[0] != "_"] == ["s2l2a.tif"]
    with pytest.raises(RequestError, match="needs members='all'"):
        torch_samples(url, members="image")


def test_bands_of_a_scene_come_by_their_names(tmp_path):
    url, _ = made(tmp_path, "scenes", share=1)
    for sample in web_samples(url):
        assert {name for name in sample if name[0] != "_"} == {"b02.tif", "b03.tif", "b11.tif"}


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("images, tiled", "part-0.tar"),
        ("images, tiled", "loose/img1.npy"),
        ("parquet", "part-00001.parquet"),
        ("zarr, tiled", "cube.zarr/bands/0.0.0.0.0"),
        ("scenes", "T30UQD_20200101_B03.tif"),
        ("scenes, tiled", "T30UQD_20200101_B03.tif"),
        ("modalities", "train/S1GRD/shard-1.tar"),
    ],
)
@pytest.mark.parametrize("catalog", [True, False])
def test_what_has_gone_is_named(tmp_path, layout, path, catalog):
    url, truth = made(tmp_path, layout, catalog=catalog, share=1)
    (tmp_path / "archive" / path).unlink()
    with pytest.raises(AccessError, match="sample '.*has (gone or )?changed"):
        list(torch_samples(url))
    manifest = ManifestReader(url)
    problems = list(_check_archive(Fetcher(manifest, "all", {}, None), manifest))
    assert 0 < len(problems) < len(truth) or layout in ("parquet", "zarr, tiled")


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("stac", {}),
        ("stac", TILE),
        ("stac", {"scene": "folder", **TILE}),
        ("text", {"scene": r"(?P<scene>(north|south)/\d)/file(?P<band>\d)"}),
        ("text", {"scene": r"(?P<scene>(north|south)/\d)/file(?P<band>\d)", **TILE}),
    ],
)
def test_scenes_that_a_list_named_take_the_catalog(tmp_path, form, settings):
    write_listed(tmp_path / "archive", form)
    url, truth = keep(tmp_path, settings, share=0.8)
    (tmp_path / "archive").joinpath("list.json" if form == "stac" else "list.txt").unlink()  # the files suffice
    given = {sample["sample_id"]: sample["pixels"].numpy() for sample in torch_samples(url)}
    assert given.keys() == truth.keys()
    assert all(np.array_equal(given[name], truth[name]) for name in truth)
    manifest = ManifestReader(url)
    assert list(_check_archive(Fetcher(manifest, "all", {}, None), manifest)) == []
    (tmp_path / "workspace/catalog").rename(tmp_path / "elsewhere")
    if form == "text" and settings.get("tile"):  # its name tells its folder
        assert len(list(torch_samples(url))) == len(truth)
        return
    with pytest.raises(AccessError, match="only the catalog knows the files") as error:
        list(torch_samples(url))
    assert "\n" not in str(error.value)


def test_offsets_that_only_a_list_told_apart_are_refused(tmp_path):
    write_listed(tmp_path / "archive", "stac")
    url, _ = keep(tmp_path, TILE)
    header = json.loads((Path(url) / "manifest.json").read_text())
    found = {"": {"offset": 0, "suspect": {}, "mixed": True}}  # what the audit of such an archive leaves
    header["content"]["config"]["archive"]["radiometry"] = {"kind": "sentinel2", "found": found}
    (Path(url) / "manifest.json").write_text(json.dumps(header))
    with pytest.raises(AccessError, match="which offset its numbers have only the list said"):
        list(torch_samples(url))


def test_a_tile_beyond_its_image_is_named(tmp_path):
    url, _ = made(tmp_path, "images, tiled", share=1)
    for path in (tmp_path / "archive/loose").glob("*.npy"):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"(3, 40, 56)", b"(3, 56, 40)"))
    with pytest.raises(AccessError, match="sample 'img0_r00000_c00036' .* has changed: .*is not in it"):
        list(torch_samples(url, shuffle=0))


def test_an_image_that_comes_out_in_other_units_is_refused(tmp_path):
    url, _ = made(tmp_path, "zarr")
    path = Path(url) / "manifest.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("radiometry")
    as_db = pq.read_table(path)["radiometry"].combine_chunks()
    pq.write_table(table.set_column(column, table.schema.field(column), [["db"] * len(as_db)]), path)
    with pytest.raises(AccessError, match="its numbers are unknown, the manifest says db"):
        list(torch_samples(url))
