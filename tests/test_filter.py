"""``archive.filter``: what a table does not allow is not read, in every format, and stands in the counts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.archive import parquet
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.archive.tables import Sieve, TableFilter, open_tables
from curation.errors import RequestError
from curation.storage import Folder
from jobs import catalog, prune
from tests.command import Outcome
from tests.layouts import SCENES, ground, write_images, write_modalities, write_parquet, write_scenes, write_zarr
from tests.recipes import geotiff

MODALITIES = {"modalities": ["S2L2A", "S1GRD"], "members": ["S2L2A.tif", "S1GRD.tif"]}
PARQUET = {"members": ["B02", "B03"]}
SCENE = {"scene": SCENES, "grid": "B02", "tile": TileConfig(size=16)}


def write_table(path: Path, cover: dict[str, int]) -> Path:
    path.write_text("id,cover\n" + "".join(f"{key},{value}\n" for key, value in cover.items()))
    return path


def sifted(archive: Path, table: Path, settings: dict[str, Any], on: str = "key") -> tuple[list[RawSample], int]:
    """The samples that ``cover < 20`` lets pass, and how many it refused."""
    config = ArchiveConfig(**settings)
    only = TableFilter(open_tables([{"path": str(table), "key": "id", "on": on}]), "cover < 20")
    found: list[RawSample] = []
    refused = 0
    for root in list_archive(str(archive), settings=config):
        for shard in root.shards:
            sieve = Sieve(only, config)
            items = list(read_shard(root.folder, shard, config, sieve=sieve))
            found += [item for item in items if isinstance(item, RawSample)]
            refused += sieve.refused
    return found, refused


@pytest.mark.parametrize(
    ("write", "settings", "clear", "others"),
    [
        (write_images, {}, ["s0/img3", "s1/img4", "img0"], 12),  # tars and a folder
        (write_parquet, PARQUET, ["p3", "p13"], 12),
        (write_zarr, {}, ["000001_t0", "000003_t1"], 6),
        (write_scenes, {"scene": SCENES, "grid": "B02"}, ["T31UQD_20200201"], 8),
        (write_modalities, MODALITIES, ["k1", "k12"], 10),
    ],
)
def test_what_is_clear_passes_in_every_format(
    tmp_path: Path, write: Callable[[Path], None], settings: dict[str, Any], clear: list[str], others: int
) -> None:
    write(tmp_path / "archive")
    table = write_table(tmp_path / "clouds.csv", dict.fromkeys(clear, 5) | {"s0/img0": 50, "p4": 50, "k2": 50})
    found, refused = sifted(tmp_path / "archive", table, settings)
    assert sorted(raw.key for raw in found) == sorted(clear)
    assert refused == others  # those that the table does not name, too


def test_pixels_of_row_groups_without_an_allowed_row_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "archive", rows=14)
    read: list[tuple[int, str]] = []

    class Counted(pq.ParquetFile):
        def iter_batches(self, *args: Any, row_groups: Any = None, columns: Any = None, **more: Any) -> Any:
            read.extend((group, name) for group in row_groups for name in columns)
            return super().iter_batches(*args, row_groups=row_groups, columns=columns, **more)

        def read_row_group(self, i: int, columns: Any = None, **more: Any) -> Any:
            read.extend((i, name) for name in columns)
            return super().read_row_group(i, columns=columns, **more)

    monkeypatch.setattr(parquet.pq, "ParquetFile", Counted)
    table = write_table(tmp_path / "clouds.csv", {"p3": 5, "p13": 5, "p4": 50})
    found, _ = sifted(tmp_path / "archive", table, PARQUET)
    assert [raw.key for raw in found] == ["p3", "p13"]
    assert {group for group, name in read if name != "key"} == {3, 13}
    assert {group for group, name in read if name == "key"} == set(range(14))


def test_a_scene_that_is_not_allowed_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "archive")
    opened: set[str] = set()
    read_ranges = Folder.read_ranges

    def counted(self: Folder, path: str, *more: Any) -> list[bytes]:
        opened.add(path)
        return read_ranges(self, path, *more)

    monkeypatch.setattr(Folder, "read_ranges", counted)
    table = write_table(tmp_path / "clouds.csv", {"T31UQD_20200201": 5, "T32UQD_20200301": 50})
    found, refused = sifted(tmp_path / "archive", table, SCENE)
    assert {raw.key for raw in found} == {"T31UQD_20200201"} and len(found) > 1  # tiles
    assert opened == {f"T31UQD_20200201_{band}.tif" for band in ("B02", "B03", "B11")}
    assert refused == 8  # scenes


def test_a_source_is_told_by_the_names_pattern_and_by_a_scenes_sidecar(tmp_path: Path) -> None:
    table = write_table(tmp_path / "clouds.csv", {"img1": 5, "P1": 5, "P2": 50})
    write_images(tmp_path / "tars", shards=1, images=4)
    named = {"name_pattern": r"(?P<source_id>img\d)"}
    found, _ = sifted(tmp_path / "tars", table, named, "source_id")
    assert len(found) == 2 and all("img1" in raw.key for raw in found)  # of the tar, of the folder
    for n in range(3):
        (tmp_path / f"scenes/s{n}").mkdir(parents=True)
        (tmp_path / f"scenes/s{n}/B02.tif").write_bytes(geotiff(ground(n, 1)))
        (tmp_path / f"scenes/s{n}/about.json").write_text(json.dumps({"source_id": f"P{n}"}))
    found, refused = sifted(tmp_path / "scenes", table, {"scene": "folder", "tile": TileConfig(size=16)}, "source_id")
    assert {raw.key for raw in found} == {"s1"} and refused == 2


def pruned(folder: Path, *more: str) -> tuple[dict[str, Any], dict[str, Any], pa.Table]:
    """The result, the manifest's content, and its rows."""
    small = ("catalog.fit_samples=16", "encoder.filters=8", "runtime.max_actors=1", "cluster.k=3", "select.budget=4")
    result = prune.run([f"archive.url={folder / 'archive'}", f"workspace={folder / 'ws'}", *small, *more])
    manifest = Outcome(0, json.dumps(result), "").file("manifest")
    return result, json.loads(manifest.read_text())["content"], pq.read_table(manifest.parent / "manifest.parquet")


def footers(folder: Path) -> dict[str, dict[str, Any]]:
    """Of the catalog's files, by shard."""
    return {
        path.relative_to(folder / "ws/catalog").as_posix().partition("/")[2]: json.loads(
            pq.read_metadata(path).metadata[b"curation"]
        )
        for path in (folder / "ws/catalog").rglob("*.parquet")
    }


def test_prune_counts_what_was_filtered_out(ray_local: None, tmp_path: Path) -> None:
    write_images(tmp_path / "archive", shards=2, images=12)
    write_images(tmp_path / "bank", shards=1, images=6)
    keys = [f"s{s}/img{i}" for s in range(2) for i in (0, *range(3, 12))] + [f"img{i}" for i in range(12)]
    cover = {key: i % 2 * 40 for i, key in enumerate(keys)}  # of each 12, img1 and img2 are called otherwise
    table = write_table(tmp_path / "clouds.csv", cover)
    joined = f"archive.tables=[{{path: '{table}', key: id, on: key}}]"
    asked = (joined, "archive.filter=cover < 20", f"references.url={tmp_path / 'bank'}")
    result, content, rows = pruned(tmp_path, *asked)
    assert (result["samples"], content["counts"]["filtered"]) == (16, 36 - 16)
    assert (content["counts"]["read"], content["counts"]["kept"]) == (16, 4)
    assert set(rows["key"].to_pylist()) <= {key for key, value in cover.items() if value < 20}
    bank = {name: one for name, one in footers(tmp_path).items() if name.startswith("references/")}
    assert {one["filtered"] for one in bank.values()} == {0}  # the table names none of its samples: all are read
    assert sum(one["read"] for one in bank.values()) == 12
    before = footers(tmp_path)

    # another table is another filter: what it lets pass is encoded anew (the bank is not), though here it is the same
    write_table(table, cover | {"nobody": 3})
    same, content_again, same_rows = pruned(tmp_path, *asked)
    after = footers(tmp_path)
    changed = {name for name in before if before[name]["fingerprint"] != after[name]["fingerprint"]}
    assert changed == before.keys() - bank.keys()
    assert all(after[name]["digest"] == before[name]["digest"] for name in before)
    assert same_rows.equals(rows) and content_again["counts"] == content["counts"]
    assert same["samples"] == result["samples"]


def test_a_filter_that_allows_nothing_says_so_in_one_line(ray_local: None, tmp_path: Path) -> None:
    write_parquet(tmp_path / "archive")
    table = write_table(tmp_path / "clouds.csv", {"P3": 5})  # keys are p3, …
    asked = [f"archive.url={tmp_path / 'archive'}", f"archive.tables=[{{path: '{table}', key: id, on: key}}]"]
    for run in (prune.run, catalog.run):
        with pytest.raises(
            RequestError, match=r"archive\.filter allows none of the 14 samples .* such as 'p0'"
        ) as error:
            run([*asked, f"workspace={tmp_path / 'ws'}", "archive.filter=cover < 20"])
        assert "\n" not in str(error.value)
    write_table(table, {"p3": 5, "p4": 6, "p5": 50})
    small = ["catalog.fit_samples=16", "encoder.filters=8", "runtime.max_actors=1", f"workspace={tmp_path / 'ws'}"]
    catalog.run([*asked, *small, "archive.filter=cover < 20"])
    write_table(table, {"p3": 50})  # what was fitted is there already
    with pytest.raises(RequestError, match=r"archive\.filter=cover < 20 allows none of the 14 samples"):
        catalog.run([*asked, *small, "archive.filter=cover < 20"])
