"""Kept samples as shards of their own: the same samples as through the manifest, the same bytes whoever writes them."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

import curation.storage.folder
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.names import is_hidden, is_unsafe, split_name
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Sample
from curation.archive.settings import ArchiveConfig
from curation.catalog.schema import FOOTER
from curation.config import load_config
from curation.errors import AccessError, IncompleteError, RequestError
from curation.manifests.loaders.torch import TorchSamples
from curation.manifests.loaders.webdataset import WebDatasetSamples
from curation.manifests.reading import ManifestReader
from curation.materialized.build import finish, materialize, write_shard
from curation.materialized.check import verify_materialized
from curation.materialized.files import OWN, tar_key
from curation.materialized.plan import pieces
from tests.containers import S2, major_tom_row, terramesh_sample, write_major_tom, write_ssl4eo, write_terramesh
from tests.kept import Archive, write_archive
from tests.layouts import keep, write_listed
from tests.materialized import begin, contents, write
from tests.recipes import encoded, write_tar
from tests.test_loaders_layouts import LAYOUTS, TILE, made
from tests.training_recipes import blocks

FORMATS = ("webdataset", "parquet")
MEMBERS = {  # what says which files hold the bands where they lie apart; tiles are one file each
    "parquet": ["B02.tif", "B03.tif"],
    "scenes": ["B02.tif", "B03.tif", "B11.tif"],
    "modalities": ["S2L2A.tif", "S1GRD.tif"],
}


def read(folder: Path, **settings: Any) -> list[Sample]:
    """All samples of a folder as the project reads any archive."""
    config = ArchiveConfig(**settings)
    (root,) = list_archive(str(folder), settings=config)
    raws = [raw for shard in root.shards for raw in read_shard(root.folder, shard, config)]
    assert all(isinstance(raw, RawSample) for raw in raws)
    return [decode(raw, config) for raw in raws if isinstance(raw, RawSample)]


def own_columns(folder: Path, form: str) -> list[dict[str, Any]]:
    """The manifest's columns of each sample, in the order in which it is written."""
    rows = []
    for path in sorted(folder.glob(f"shard-*.{'tar' if form == 'webdataset' else 'parquet'}")):
        if form == "parquet":
            rows += pq.read_table(path).to_pylist()
        else:
            with tarfile.open(path) as tar:
                rows += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(f".{OWN}")]
    return rows


# the same samples


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_the_shards_gives_what_reading_through_the_manifest_gives(tmp_path, layout, form):
    url, _ = made(tmp_path, layout)
    write(url, tmp_path / "dest", f"format={form}", "samples=7")
    check_same(url, tmp_path / "dest", form, members=MEMBERS.get(layout), grid=LAYOUTS[layout][1].get("grid"))


TWO = ["S2L2A", "S1GRD"]
PUBLIC: dict[str, tuple[Callable[[Path], Any], dict[str, Any], dict[str, Any]]] = {
    # how it is written; how it is read there, and from the shards
    "Major TOM": (
        lambda folder: write_major_tom(folder / "part_0.parquet", map(major_tom_row, range(4))),
        {},
        {"members": [f"{band}.tif" for band in sorted(S2)]},
    ),
    "Major TOM, tiled": (
        lambda folder: write_major_tom(folder / "part_0.parquet", map(major_tom_row, range(2))),
        {"tile": {"size": 30}},
        {},
    ),
    "SSL4EO": (lambda folder: write_ssl4eo(folder, TWO[:1], 1, 2), {}, {}),
    "SSL4EO of two sensors, tiled": (
        lambda folder: write_ssl4eo(folder, TWO, 1, 2),
        {"modalities": TWO, "tile": {"size": 12}},
        {},
    ),
    "TerraMesh": (
        lambda folder: write_terramesh(folder, TWO, 1, 4),
        {"modalities": TWO},
        {"members": [f"{sensor}.zarr.zip" for sensor in TWO]},
    ),
    "several times in a member": (
        lambda folder: write_tar(
            folder / "a.tar", [(f"k{i}.zarr.zip", terramesh_sample("S2L2A", i, times=3)) for i in range(3)]
        ),
        {},
        {},
    ),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layout", PUBLIC)
def test_archives_in_public_layouts(tmp_path, layout, form):
    lay, settings, there = PUBLIC[layout]
    lay(tmp_path / "archive")
    url, _ = keep(tmp_path, settings, share=0.7)
    write(url, tmp_path / "dest", f"format={form}", "samples=7")
    check_same(url, tmp_path / "dest", form, **there)


def check_same(url: str, dest: Path, form: str, **settings: Any) -> None:
    """The shards have the samples that the manifest's reader gives, and no others."""
    through = {s["sample_id"]: s for s in TorchSamples(url, decode=True, rank=0, world_size=1)}
    rows, there = own_columns(dest, form), read(dest, **settings)
    assert Counter(row["sample_id"] for row in rows) == Counter(through.keys())
    assert len(there) == len(rows)
    for row, sample in zip(rows, there, strict=True):
        expected = through[row["sample_id"]]
        assert sample.key == tar_key(expected["key"]) == tar_key(row["key"])
        assert np.array_equal(sample.pixels, expected["pixels"].numpy())
        assert np.array_equal(sample.mask, expected["mask"].numpy())
        assert (row["label"] or "", row["rank"]) == (expected["label"], expected["rank"])
        assert (sample.label or "") == expected["label"]


@pytest.mark.parametrize("catalog", [True, False])
def test_files_keep_their_bytes(tmp_path, catalog):
    archive = write_archive(tmp_path, catalog=catalog)
    write(str(archive.manifest), tmp_path / "dest", "bytes=60000")
    through = {s["__meta__"]["sample_id"]: s for s in WebDatasetSamples(str(archive.manifest), rank=0, world_size=1)}
    seen = set()
    for path in sorted((tmp_path / "dest").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            files = {member.name: tar.extractfile(member).read() for member in members}
        assert all((m.mtime, m.uid, m.gid, m.mode, m.uname) == (0, 0, 0, 0o644, "") for m in members)
        for name, content in files.items():
            if name.endswith(f".{OWN}"):
                row, key = json.loads(content), name.removesuffix(f".{OWN}")
                own = {split_name(other)[1]: data for other, data in files.items() if split_name(other)[0] == key}
                own.pop(OWN)
                assert own == archive.files[row["sample_id"]]
                assert own == {k: v for k, v in through[row["sample_id"]].items() if k[0] != "_"}
                seen.add(row["sample_id"])
    assert sorted(seen) == archive.ids


def test_parquet_cells_and_what_only_the_container_said(tmp_path):
    url, _ = made(tmp_path, "parquet")
    cells = {cell["key"]: cell for cell in pq.read_table(tmp_path / "archive/part-00001.parquet").to_pylist()}
    write(url, tmp_path / "tars")
    write(url, tmp_path / "rows", "format=parquet")
    with tarfile.open(tmp_path / "tars/shard-000000.tar") as tar:
        for member in tar:
            key, suffix = split_name(member.name)
            if suffix == "json":
                assert json.load(tar.extractfile(member)) == {"key": key}
            elif suffix != OWN:
                assert tar.extractfile(member).read() == cells[key][suffix.removesuffix(".tif")]
    for row in pq.read_table(tmp_path / "rows/shard-000000.parquet").to_pylist():
        assert (row["B02.tif"], row["B03.tif"]) == (cells[row["key"]]["B02"], cells[row["key"]]["B03"])


@pytest.mark.parametrize("settings", [{}, TILE], ids=["whole", "tiled"])
def test_scenes_that_a_list_named(tmp_path, settings):
    write_listed(tmp_path / "archive", "stac")
    url, truth = keep(tmp_path, settings, share=0.8)
    write(url, tmp_path / "dest")
    there = read(tmp_path / "dest")
    assert sorted(s.pixels.tobytes() for s in there) == sorted(pixels.tobytes() for pixels in truth.values())


def test_a_budget_takes_the_first_by_rank(tmp_path):
    archive = write_archive(tmp_path)
    write(str(archive.manifest), tmp_path / "dest", "budget=20", "samples=6")
    rows = own_columns(tmp_path / "dest", "webdataset")
    assert sorted(row["rank"] for row in rows) == list(range(20))
    assert {row["sample_id"] for row in rows} == {name for name, rank in archive.ranks.items() if rank < 20}
    sizes = [shard["nsamples"] for shard in json.loads((tmp_path / "dest/index.json").read_text())["shardlist"]]
    assert sizes == [5, 5, 5, 5]
    with pytest.raises(RequestError, match="budget=9999: the manifest keeps"):
        begin(str(archive.manifest), tmp_path / "more", "budget=9999")


def test_samples_are_mixed_unless_the_manifests_order_is_asked_for(tmp_path):
    archive = write_archive(tmp_path, shards=6, loose=0)
    for name, options in (("mixed", ()), ("plain", ("shuffle=false",))):
        write(str(archive.manifest), tmp_path / name, "samples=30", *options)
    order = pq.read_table(archive.manifest / "manifest.parquet")["sample_id"].to_pylist()
    assert [row["sample_id"] for row in own_columns(tmp_path / "plain", "webdataset")] == order
    mixed = [row["sample_id"] for row in own_columns(tmp_path / "mixed", "webdataset")]
    assert sorted(mixed) == sorted(order)
    places = np.array([order.index(name) for name in mixed])
    assert np.mean(np.abs(np.diff(places)) == 1) < 0.2


def test_keys_that_come_twice_and_keys_that_a_tar_would_read_otherwise(tmp_path):
    (tmp_path / "archive").mkdir()
    for shard in range(2):
        folder = tmp_path / f"archive/scene{shard}"
        folder.mkdir()
        for number in range(3):
            (folder / f"tile.v{number}.npy").write_bytes(_npy(shard * 10 + number))
    url, truth = keep(tmp_path, {}, share=1)
    for form in FORMATS:
        write(url, tmp_path / form, f"format={form}")
        there = read(tmp_path / form)
        assert sorted(s.pixels.tobytes() for s in there) == sorted(pixels.tobytes() for pixels in truth.values())
        assert len({sample.key for sample in there}) == len(truth) == 6
    assert sorted(row["key"] for row in own_columns(tmp_path / "webdataset", "webdataset")) == sorted(
        2 * [f"tile.v{number}" for number in range(3)]
    )


def _npy(value: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((3, 8, 8), value + 1, np.uint8))
    return file.getvalue()


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_key_is_a_members_name(key):
    name = f"{tar_key(key)}.tif"
    assert split_name(name) == (tar_key(key), "tif")
    assert not is_hidden(name) and not is_unsafe(name) and "\0" not in name
    assert tar_key(tar_key(key)) == tar_key(key)


def test_a_materialised_archive_can_be_materialised_again(tmp_path):
    write_tar(tmp_path / "archive/a.tar", [(f"k{i}.npy", _npy(i)) for i in range(6)] + [])
    url, _ = keep(tmp_path, {}, share=1)
    write(url, tmp_path / "second/archive")
    url, truth = keep(tmp_path / "second", {}, share=1)
    write(url, tmp_path / "third")
    rows = own_columns(tmp_path / "third", "webdataset")
    assert {row["sample_id"] for row in rows} == truth.keys()
    assert len(read(tmp_path / "third")) == 6


# the same bytes


@pytest.mark.parametrize("form", FORMATS)
def test_the_bytes_depend_on_manifest_and_options_only(tmp_path, form):
    archive = write_archive(tmp_path)
    options = (f"format={form}", "bytes=50000")
    plan = write(str(archive.manifest), tmp_path / "a", *options)
    assert plan.shards > 3
    write(str(archive.manifest), tmp_path / "b/a", *options, backwards=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b/a")
    (tmp_path / "workspace/catalog").rename(tmp_path / "elsewhere")  # whole shards are read instead of ranges
    write(str(archive.manifest), tmp_path / "c/a", *options)
    assert contents(tmp_path / "a") == contents(tmp_path / "c/a")


def test_a_run_that_was_stopped_goes_on_and_writes_only_what_is_missing(tmp_path):
    archive = write_archive(tmp_path)
    write(str(archive.manifest), tmp_path / "a/x", "bytes=50000")
    work = begin(str(archive.manifest), tmp_path / "b/x", "bytes=50000")
    jobs = list(pieces(work.plan, work.manifest.shards()))
    assert [write_shard(work, job)["new"] for job in jobs[:3]] == [True] * 3
    (tmp_path / "b/x" / work.plan.shard(1)).unlink()  # a receipt without its shard
    (tmp_path / "b/x/.receipts" / f"{work.plan.shard(2)}.json").unlink()  # a shard without its receipt
    assert [write_shard(work, job)["new"] for job in jobs[:4]] == [False, True, True, True]
    write(str(archive.manifest), tmp_path / "b/x", "bytes=50000")
    assert contents(tmp_path / "a/x") == contents(tmp_path / "b/x")


# what others read


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images with labels and licences, written in both forms."""
    folder = tmp_path_factory.mktemp("real")
    members = []
    for i in range(24):
        members.append((f"k{i:02}.jpg", encoded(np.full((16, 16, 3), 10 * i, np.uint8))))
        said = {"label": f"c{i % 3}", **({"license": "CC-BY-4.0"} if i % 4 else {})}
        members.append((f"k{i:02}.json", json.dumps(said).encode()))
    write_tar(folder / "archive/a.tar", members)
    url, _ = keep(folder, {}, share=1)
    for form in FORMATS:
        write(url, folder / form, f"format={form}", "samples=10")
    return folder


def test_webdataset_reads_what_the_index_lists(real):
    index = json.loads((real / "webdataset/index.json").read_text())
    assert (index["__kind__"], index["wids_version"]) == ("wids-shard-index-v1", 1)
    urls = [str(real / "webdataset" / shard["url"]) for shard in index["shardlist"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == index["nsamples"] == sum(shard["nsamples"] for shard in index["shardlist"]) == 24
    for sample in samples:
        assert sample["__key__"] == sample[OWN]["key"]
        assert sample[OWN]["label"] == sample["json"]["label"]
        assert sample["jpg"].size == (16, 16)
    for shard in index["shardlist"]:
        content = (real / "webdataset" / shard["url"]).read_bytes()
        assert (len(content), hashlib.md5(content).hexdigest()) == (shard["filesize"], shard["md5sum"])


def test_the_documented_lines(real, monkeypatch):
    monkeypatch.chdir(real)
    (block,) = (block for block in blocks("docs/materialize.md", "WebDataset"))
    names: dict[str, Any] = {}
    exec(block.replace("DEST", "webdataset"), names)
    assert sorted(row["rank"] for _, row in names["dataset"]) == list(range(24))


def test_wids_reads_the_index(real):
    wids = pytest.importorskip("wids", reason="webdataset 1.0 has no wids any more; 0.2 has it")
    dataset = wids.ShardListDataset(str(real / "webdataset/index.json"), transformations=[])
    assert sorted(dataset[i]["__key__"] for i in range(len(dataset))) == [f"k{i:02}" for i in range(24)]


@pytest.mark.parametrize("form", FORMATS)
def test_croissant_is_valid_and_its_records_can_be_read(real, form, tmp_path, monkeypatch):
    monkeypatch.setattr("mlcroissant._src.operation_graph.operations.extract.EXTRACT_PATH", epath.Path(tmp_path))
    path = real / form / "croissant.json"
    dataset = mlcroissant.Dataset(jsonld=str(path))
    told = json.loads(path.read_text())
    assert told["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert told["license"] == ["CC-BY-4.0"]
    assert "Of 6 samples the source states no licence" in told["description"]
    files = {one["@id"]: one for one in told["distribution"] if one["@type"] == "cr:FileObject"}
    for name, one in files.items():
        assert hashlib.sha256((real / form / name).read_bytes()).hexdigest() == one["sha256"]
    records = {record.uuid: list(dataset.records(record.uuid)) for record in dataset.metadata.record_sets}
    if form == "webdataset":
        assert {name: len(rows) for name, rows in records.items()} == {
            **{f"members/{suffix}": 24 for suffix in ("curation.json", "jpg")}
        }
        keys = {row["members/jpg/key"].decode() for row in records["members/jpg"]}
        assert keys == {f"k{i:02}" for i in range(24)}
        assert all(row["members/jpg/content"].size == (16, 16) for row in records["members/jpg"])
    else:
        (rows,) = records.values()
        assert sorted(row["samples/rank"] for row in rows) == list(range(24))
        assert {row["samples/label"].decode() for row in rows} == {"c0", "c1", "c2"}
        assert all(row["samples/jpg"].size == (16, 16) for row in rows)


def test_verify_tells_what_is_damaged(tmp_path):
    archive = write_archive(tmp_path)
    for form in FORMATS:
        dest = tmp_path / form
        plan = write(str(archive.manifest), dest, f"format={form}", "bytes=60000")
        found = verify_materialized(str(dest))
        assert found["ok"] and found["samples"] == len(archive.ids) and found["files"] == plan.shards + 3
        sums = [line.split("  ") for line in (dest / "SHA256SUMS").read_text().splitlines()]
        assert all(hashlib.sha256((dest / name).read_bytes()).hexdigest() == digest for digest, name in sums)
        broken = dest / plan.shard(1)
        content = broken.read_bytes()
        broken.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
        (dest / plan.shard(2)).unlink()
        index = json.loads((dest / "index.json").read_text())
        again = "the same curate materialize writes it again"
        assert verify_materialized(str(dest))["problems"] == [
            f"{plan.shard(1)}: other bytes than were written: remove it; then {again}",
            f"{plan.shard(2)} is missing: {again}",
        ]
        assert index["nsamples"] == len(archive.ids)
        (dest / "SHA256SUMS").unlink()
        assert "not complete" in verify_materialized(str(dest))["problems"][0]


# bad input


def write_one(archive: Archive, dest: Path, **more: Any) -> None:
    write(str(archive.manifest), dest, "samples=1000", **more)


def left(dest: Path) -> set[str]:
    return {path.name for path in dest.rglob("*") if path.is_file()}


def test_a_broken_sample_leaves_no_shard(tmp_path):
    archive = write_archive(tmp_path, shards=2, loose=0)
    work = begin(str(archive.manifest), tmp_path / "dest", "samples=1000")
    (piece,) = pieces(work.plan, work.manifest.shards())
    row = pq.read_table(archive.manifest / "manifest.parquet").to_pylist()[20]
    with open(archive.root / row["shard"].removeprefix("root0/"), "r+b") as file:
        file.seek(row["offset"] - 512)
        file.write(b"\xff" * 512)
    with pytest.raises(AccessError, match=f"sample '{row['key']}.*has gone or changed"):
        write_shard(work, piece)
    assert left(tmp_path / "dest") == {"plan.json"}


def test_a_tile_that_no_longer_decodes_is_named(tmp_path):
    url, _ = made(tmp_path, "images, tiled", share=1)
    work = begin(url, tmp_path / "dest")
    (piece,) = pieces(work.plan, work.manifest.shards())
    for path in (tmp_path / "archive/loose").glob("*.npy"):
        path.write_bytes(path.read_bytes().replace(b"(3, 40, 56)", b"(3, 56, 40)"))
    with pytest.raises(AccessError, match="sample 'img.*' of .* has changed: .*is not in it"):
        write_shard(work, piece)
    assert left(tmp_path / "dest") == {"plan.json"}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    archive = write_archive(tmp_path)
    work = begin(str(archive.manifest), tmp_path / "dest", "samples=1000")
    (piece,) = pieces(work.plan, work.manifest.shards())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(curation.storage.folder.os, "fsync", full)
    with pytest.raises(IncompleteError, match="shard-000000.tar: No space left on device"):
        write_shard(work, piece)
    assert left(tmp_path / "dest") == {"plan.json"}


def seal(archive: Archive) -> Path:
    """Give the catalog file of the first tar the fingerprint of its source."""
    tar = min(archive.root.rglob("*.tar"))
    info = tar.stat()
    path = archive.manifest.parent.parent / f"catalog/feed/root0/{tar.relative_to(archive.root)}.parquet"
    told = {"fingerprint": {"size": info.st_size, "version": str(info.st_mtime_ns)}}
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({FOOTER: json.dumps(told).encode()}), path)
    return tar


def test_a_shard_that_vanished_or_changed_since_the_manifest_was_made(tmp_path):
    archive = write_archive(tmp_path, loose=0)
    tar = seal(archive)
    write_one(archive, tmp_path / "sound")
    content, stamp = tar.read_bytes(), tar.stat().st_mtime_ns
    tar.write_bytes(content)
    with pytest.raises(AccessError, match="shard-000.tar was written anew since .*archive.url=URL says"):
        write_one(archive, tmp_path / "anew")
    write_one(archive, tmp_path / "moved", roots={"root0": str(archive.root)})  # said to be the same
    tar.write_bytes(content + bytes(512))
    with pytest.raises(AccessError, match="shard-000.tar is of another size"):
        write_one(archive, tmp_path / "longer", roots={"root0": str(archive.root)})
    tar.unlink()
    with pytest.raises(AccessError, match="shard-000.tar"):
        write_one(archive, tmp_path / "gone")
    assert stamp


def test_a_destination_that_holds_something_else_is_refused(tmp_path):
    archive = write_archive(tmp_path)
    config = load_config(["materialize.name=shard"])
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    inside = archive.root / "new"
    for dest, why in ((tmp_path / "used", "holds something else"), (inside, "lies in the archive's root 'root0'")):
        with pytest.raises(RequestError, match=why):
            materialize(str(archive.manifest), str(dest), config)
    (tmp_path / "used/plan.json").write_text("{}")
    with pytest.raises(RequestError, match="no plan of curate materialize"):
        materialize(str(archive.manifest), str(tmp_path / "used"), config)
    write(str(archive.manifest), tmp_path / "dest", "samples=30")
    with pytest.raises(RequestError, match="was begun with asked=.'samples': 30., not .'bytes'"):
        materialize(str(archive.manifest), str(tmp_path / "dest"), config)
    assert not inside.exists()


def test_a_complete_destination_is_left_alone(tmp_path, caplog):
    archive = write_archive(tmp_path)
    plan = write(str(archive.manifest), tmp_path / "dest", "samples=30")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "dest").rglob("*")}
    with caplog.at_level("INFO", "curation"):
        result = materialize(
            str(archive.manifest),
            str(tmp_path / "dest"),
            load_config(["materialize.samples=30", "materialize.name=shard"]),
        )
    assert (result["shards"], result["samples"], result["written"]) == (plan.shards, len(archive.ids), 0)
    assert "is complete: nothing to do" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "dest").rglob("*")}


def test_a_shard_that_is_lost_is_written_again(tmp_path, ray_local):
    archive = write_archive(tmp_path)
    plan = write(str(archive.manifest), tmp_path / "dest", "samples=30")
    before, config = contents(tmp_path / "dest"), load_config(["materialize.samples=30", "materialize.name=shard"])
    (tmp_path / "dest" / plan.shard(0)).unlink()
    (tmp_path / "dest" / plan.shard(1)).write_bytes(b"cut")
    problems = verify_materialized(str(tmp_path / "dest"))["problems"]
    assert [problem.partition(":")[2] for problem in problems] == [
        " the same curate materialize writes it again",
        " other bytes than were written: remove it; then the same curate materialize writes it again",
    ]
    assert materialize(str(archive.manifest), str(tmp_path / "dest"), config)["written"] == 2
    assert contents(tmp_path / "dest") == before
    archive_shards = ManifestReader(str(archive.manifest)).shards()
    sums = tmp_path / "dest/SHA256SUMS"
    sums.write_text(sums.read_text().replace("a", "b"))  # as if it had been of other bytes
    (tmp_path / "dest" / plan.shard(0)).unlink()
    with pytest.raises(IncompleteError, match="would have other bytes than it had"):
        materialize(str(archive.manifest), str(tmp_path / "dest"), config)
    (tmp_path / "dest" / plan.shard(0)).unlink(missing_ok=True)
    write_shard(begin(str(archive.manifest), tmp_path / "dest", "samples=30"), next(iter(pieces(plan, archive_shards))))
    with pytest.raises(IncompleteError, match="would have other bytes than it had"):  # nor after a killed repair
        materialize(str(archive.manifest), str(tmp_path / "dest"), config)
    (tmp_path / "dest/index.json").unlink()
    with pytest.raises(RequestError, match="index.json is gone: remove SHA256SUMS too"):
        materialize(str(archive.manifest), str(tmp_path / "dest"), config)


def test_a_shard_that_another_node_wrote_to_its_own_disk_is_missed(tmp_path):
    archive = write_archive(tmp_path)
    work = begin(str(archive.manifest), tmp_path / "dest", "samples=30")
    receipts = [write_shard(work, piece) for piece in pieces(work.plan, work.manifest.shards())]
    (tmp_path / "dest" / work.plan.shard(1)).unlink()
    with pytest.raises(IncompleteError, match="1 shards are not in .*, shard-000001.tar for one: every node must see"):
        finish(work.plan, work.manifest, work.dest, receipts)
    assert not (tmp_path / "dest/SHA256SUMS").exists()


def test_an_empty_manifest_is_refused(tmp_path):
    archive = write_archive(tmp_path)
    path = archive.manifest / "manifest.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert ManifestReader(str(archive.manifest)).num_rows == 0
    with pytest.raises(RequestError, match="keeps no sample"):
        materialize(str(archive.manifest), str(tmp_path / "dest"), load_config([]))
