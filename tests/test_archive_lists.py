"""Archives that a file lists: paths in a text file, STAC items, stac-geoparquet."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.archive.decode import decode
from curation.archive.listing import Root, list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection
from curation.archive.settings import ArchiveConfig, TileConfig
from curation.errors import RequestError
from curation.storage import Folder
from tests.recipes import geotiff, write_tar
from tests.s3 import s3_server

PIXELS = np.random.default_rng(0).integers(1, 9000, (1, 64, 64)).astype("uint16")


def put(path: Path, pixels: Any = PIXELS, **about: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(geotiff(pixels, corner=(10.0, 40.0), **about))
    return path


def listed(url: Path | str, **about: Any) -> Root:
    (root,) = list_archive(str(url), settings=config(**about))
    return root


def config(size: int | None = 32, **about: Any) -> ArchiveConfig:
    return ArchiveConfig(**about, tile=TileConfig(size))


def read(root: Root, **about: Any) -> list[RawSample | Rejection]:
    return [item for shard in root.shards for item in read_shard(root.folder, shard, config(**about))]


def asset(
    href: str, kind: str = "image/tiff; application=geotiff", roles: Any = ("data",), **more: Any
) -> dict[str, Any]:
    return {"href": href, "type": kind, "roles": list(roles), **more}


def item(name: str, assets: Mapping[str, Any], **properties: Any) -> dict[str, Any]:
    """A STAC item as earth-search gives them."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "bbox": [10.0, 39.9, 10.1, 40.0],
        "geometry": {"type": "Point", "coordinates": [10, 40]},
        "properties": {
            "datetime": "2024-05-01T10:30:00Z",
            "updated": "2025-01-01T00:00:00Z",
            "platform": "sentinel-2a",
            "eo:cloud_cover": 12.5,
            "s2:processing_baseline": "05.10",
            "earthsearch:boa_offset_applied": True,
            "view:incidence_angle": 3.5,
            "proj:shape": [64, 64],
            **properties,
        },
        "links": [],
        "assets": assets,
        "collection": "sentinel-2-l2a",
    }


def two_scenes(folder: Path) -> list[dict[str, Any]]:
    """Two items, their assets beside them."""
    made = []
    for name in ("S2A_1", "S2A_2"):
        for band in ("B02", "B03", "SCL"):
            put(folder / "data" / name / f"{band}.tif")
        assets = {
            "green": asset(f"data/{name}/B03.tif", **{"eo:bands": [{"name": "B03"}]}),
            "blue": asset(f"./data/{name}/B02.tif", bands=[{"name": "B02"}]),
            "blue-jp2": asset(f"data/{name}/B02.jp2", "image/jp2", bands=[{"name": "B02"}]),
            "scl": asset(f"data/{name}/SCL.tif"),
            "visual": asset(f"data/{name}/TCI.tif", roles=["visual"]),
            "thumbnail": asset(f"data/{name}/small.jpg", "image/jpeg", ["thumbnail"]),
            "granule_metadata": asset(f"data/{name}/metadata.xml", "application/xml", ["metadata"]),
        }
        made.append(item(name, assets))
    return made


# text


def test_a_text_list_of_scenes(tmp_path: Path) -> None:
    for name in ("x/a.tif", "x/b.tif", "y/deep/c.tif"):
        put(tmp_path / "store" / name)
    (tmp_path / "lists").mkdir()
    lines = [
        "# mine",
        "",
        "../store/x/a.tif",
        str(tmp_path / "store/x/../y/deep/c.tif"),
        f"file://{tmp_path}/store/x/b.tif",
    ]
    (tmp_path / "lists" / "scenes.txt").write_text("\n".join(lines))
    root = listed(tmp_path / "lists" / "scenes.txt", scene="file")
    assert [shard.name for shard in root.shards] == ["root0/x/a", "root0/x/b", "root0/y/deep/c"]
    assert root.folder.base == str(tmp_path / "store")
    assert len(read(root, scene="file")) == 12
    (whole, *_) = read(listed(tmp_path / "lists" / "scenes.txt", scene="file", size=None), scene="file", size=None)
    assert isinstance(whole, RawSample) and whole.window is None and whole.key == "a"
    assert decode(whole, config(None, scene="file")).pixels.shape == (1, 64, 64)


def test_a_text_list_of_tars_and_of_loose_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [("k.tif", geotiff(PIXELS))])
        put(tmp_path / "loose" / f"{name}.tif")
    (tmp_path / "tars.txt").write_text("a.tar\nb.tar\n")
    assert [shard.path for shard in listed(tmp_path / "tars.txt").shards] == ["a.tar", "b.tar"]
    (tmp_path / "images.txt").write_text("loose/a.tif\nloose/gone.tif\n")
    root = listed(tmp_path / "images.txt")
    assert [(shard.path, shard.format) for shard in root.shards] == [(".", "folder")]
    kept, gone = read(root)
    assert isinstance(kept, RawSample) and isinstance(gone, Rejection)
    assert (gone.key, gone.kind) == ("gone", "MissingAsset")
    (tmp_path / "tars.txt").write_text("a.tar\nc.tar\n")
    with pytest.raises(RequestError, match=r"lists .*c\.tar, which is not there"):
        listed(tmp_path / "tars.txt")


@pytest.mark.parametrize(
    "text, reason",
    [
        (b"", "lists nothing"),
        (b"s3://a/x.tif\ns3://b/x.tif", "files of several stores"),
        (b"https://a.example/x.tif\n/local/x.tif", "files of several stores"),
        (b"a.tif\n./a.tif", "lists a.tif twice"),
        (b"\xff\xfe", "not UTF-8"),
        (b"https://a.example/x.tif?signature=abc", "signed URLs"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(RequestError, match=reason) as caught:
        listed(tmp_path / "list.txt", scene="file")
    assert "abc" not in str(caught.value)


# STAC


def check(root: Root) -> None:
    """What the two scenes come to, however they are listed."""
    assert [(shard.path, shard.format) for shard in root.shards] == [("S2A_1", "scene"), ("S2A_2", "scene")]
    assert {shard.bands for shard in root.shards} == {("B02", "B03", "scl")}
    found = read(root)
    assert len(found) == 8
    for raw in found:
        assert isinstance(raw, RawSample) and raw.window is not None
        sample = decode(raw, config())
        assert sample.time == datetime(2024, 5, 1, 10, 30, tzinfo=UTC) and sample.source_id == raw.key
        assert sample.incidence_angle == 3.5 and sample.bands == ("B02", "B03")
        assert sample.clouds is not None and sample.cloud_fraction == sample.clouds[sample.mask].mean()  # by SCL
        assert raw.said["s2:processing_baseline"] == "05.10" and raw.said["earthsearch:boa_offset_applied"] is True
        at = raw.window
        np.testing.assert_array_equal(
            sample.pixels[0], PIXELS[0, at.row : at.row + at.height, at.column : at.column + at.width]
        )


def test_items_of_a_feature_collection_are_scenes(tmp_path: Path) -> None:
    items = two_scenes(tmp_path)
    (tmp_path / "items.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    check(listed(tmp_path / "items.geojson"))
    before = listed(tmp_path / "items.geojson").shards[0].fingerprint
    items[0]["properties"]["updated"] = "2026-01-01T00:00:00Z"  # speaks of the item
    (tmp_path / "items.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    assert listed(tmp_path / "items.geojson").shards[0].fingerprint == before
    items[0]["properties"]["s2:processing_baseline"] = "05.11"
    (tmp_path / "items.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    assert listed(tmp_path / "items.geojson").shards[0].fingerprint != before


def test_a_whole_item_is_a_sample(tmp_path: Path) -> None:
    (tmp_path / "item.json").write_text(json.dumps(two_scenes(tmp_path)[0]))
    (raw,) = read(listed(tmp_path / "item.json", size=None), size=None)
    assert isinstance(raw, RawSample)
    sample = decode(raw, config(None))
    assert sample.key == "S2A_1" and sample.pixels.shape == (2, 64, 64)
    assert sample.footprint == (10.0, 39.9, 10.1, 40.0)


def test_stac_geoparquet(tmp_path: Path) -> None:
    items = two_scenes(tmp_path)
    rows = []
    for one in items:
        west, south, east, north = one["bbox"]
        columns = {key: value for key, value in one["properties"].items() if key != "datetime"}
        when = datetime(2024, 5, 1, 10, 30, tzinfo=UTC)
        box = {"xmin": west, "ymin": south, "xmax": east, "ymax": north}
        rows.append({**one, **columns, "datetime": when, "bbox": box, "geometry": b"\x01", "links": None})
        del rows[-1]["properties"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    check(listed(tmp_path / "items.parquet"))


def test_assets_in_a_bucket(tmp_path: Path) -> None:
    remote = fsspec.filesystem("memory")
    for path in ("x/B02.tif", "y/B02.tif"):
        remote.pipe_file(f"/stac/deep/{path}", put(tmp_path / "a.tif").read_bytes())
    items = [item(name, {"b": asset(f"memory://stac/deep/{name}/B02.tif", bands=[{"name": "B02"}])}) for name in "xy"]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    root = listed(tmp_path / "items.json")
    assert root.folder.url == "memory://stac/deep" and [s.files[0].path for s in root.shards] == [
        "x/B02.tif",
        "y/B02.tif",
    ]
    found = read(root)
    assert len(found) == 8 and {decode(raw, config()).bands for raw in found if isinstance(raw, RawSample)} == {
        ("B02",)
    }


def test_bands_and_members_choose_assets(tmp_path: Path) -> None:
    (tmp_path / "item.json").write_text(json.dumps(two_scenes(tmp_path)[0]))
    chosen = {
        ("B03",): {"bands": ["B03"]},
        ("green",): {"bands": ["green"]},
        ("B02", "B03"): {"members": ["B03", "B02"]},
        ("blue", "scl"): {"members": ["scl", "blue"]},
    }
    for names, about in chosen.items():
        shard = listed(tmp_path / "item.json", **about).shards[0]
        assert shard.bands == (names if "members" in about else (*names, "scl"))  # a mask is kept for validity
        (raw, *_) = read(listed(tmp_path / "item.json", **about), **about)
        assert isinstance(raw, RawSample)
        wanted = about.get("bands") or [name for name in about["members"] if name != "scl"]
        assert decode(raw, config(**about)).bands == tuple(wanted)


def test_one_asset_of_several_bands(tmp_path: Path) -> None:
    put(tmp_path / "scene.tif", np.concatenate([PIXELS, PIXELS]), bands=["red", "nir"])
    many = asset("scene.tif", **{"eo:bands": [{"name": "R"}, {"name": "N"}]})
    (tmp_path / "item.json").write_text(json.dumps(item("a", {"analytic": many})))
    (raw, *_) = read(listed(tmp_path / "item.json"))
    assert isinstance(raw, RawSample) and decode(raw, config()).bands == ("red", "nir")


def test_an_asset_that_is_gone_is_one_row(tmp_path: Path) -> None:
    items = two_scenes(tmp_path)
    (tmp_path / "data/S2A_1/B03.tif").unlink()
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    found = read(listed(tmp_path / "items.json"))
    assert [(f.key, f.kind, f.index) for f in found if isinstance(f, Rejection)] == [("S2A_1", "MissingAsset", 0)]
    assert len(found) == 1 + 4
    found = read(listed(tmp_path / "items.json", bands=["B02"]), bands=["B02"])
    assert len(found) == 8 and not any(isinstance(f, Rejection) for f in found)  # nobody asked for it


def test_sizes_with_checksums_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "B02.tif")
    vouched = {"file:size": path.stat().st_size, "file:checksum": "1220aa"}
    (tmp_path / "item.json").write_text(json.dumps(item("a", {"B02": asset("B02.tif", **vouched)})))
    asked: list[str] = []
    plain = Folder.info

    def info(self: Folder, path: str) -> Any:
        asked.append(path)
        return plain(self, path)

    monkeypatch.setattr(Folder, "info", info)
    root = listed(tmp_path / "item.json")
    assert root.shards[0].files[0].version == "checksum:1220aa" and len(read(root)) == 4
    assert asked == ["item.json"]  # only the list itself


@pytest.mark.parametrize(
    "said, reason",
    [
        ("{", "is no JSON"),
        ('{"type": "Collection"}', "neither a STAC item nor"),
        ('{"type": "FeatureCollection", "features": [1]}', "no STAC item"),
        (json.dumps(item("../x", {"a": asset("a.tif")})), "cannot be the id"),
        (json.dumps(item("x", {"a": asset("a.xml", "application/xml")})), "no item has an asset that holds pixels"),
        (
            json.dumps({"type": "FeatureCollection", "features": [item("x", {"a": asset("a.tif")})] * 2}),
            "two items x",
        ),
    ],
)
def test_items_that_cannot_be_used(tmp_path: Path, said: str, reason: str) -> None:
    (tmp_path / "item.json").write_text(said)
    with pytest.raises(RequestError, match=reason):
        listed(tmp_path / "item.json")


def test_an_item_without_pixels_is_one_row(tmp_path: Path) -> None:
    items = [*two_scenes(tmp_path)[:1], item("none", {"a": asset("a.xml", "application/xml")})]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    rows = [f for f in read(listed(tmp_path / "items.json")) if isinstance(f, Rejection)]
    assert [(row.key, row.kind) for row in rows] == [("none", "NoImage")]


def test_times_without_zone_are_utc(tmp_path: Path) -> None:
    one = item("a", {"B02": asset(str(put(tmp_path / "B02.tif")))}, datetime="2024-05-01T10:30:00")
    (tmp_path / "item.json").write_text(json.dumps(one))
    (raw, *_) = read(listed(tmp_path / "item.json"))
    assert isinstance(raw, RawSample) and decode(raw, config()).time == datetime(2024, 5, 1, 10, 30, tzinfo=UTC)


def test_the_same_items_over_http_and_s3(tmp_path: Path) -> None:
    with s3_server() as server:
        server.client.put_bucket_acl(Bucket=server.bucket, ACL="public-read")
        for name in ("x/B02.tif", "y/B02.tif"):
            body = put(tmp_path / "a.tif").read_bytes()
            server.client.put_object(Bucket=server.bucket, Key=name, Body=body, ACL="public-read")
        for base in (f"{server.endpoint}/{server.bucket}", server.url):
            items = [item(name, {"B02": asset(f"{base}/{name}/B02.tif")}) for name in ("x", "y", "gone")]
            (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
            (root,) = list_archive(str(tmp_path / "items.json"), server.storage, config())
            assert root.folder.url == base
            found = read(root)
            gone, *tiles = found
            assert isinstance(gone, Rejection) and gone.kind == "MissingAsset" and len(tiles) == 8
            for raw in tiles:
                assert isinstance(raw, RawSample) and raw.window is not None
                at = raw.window
                there = PIXELS[:, at.row : at.row + at.height, at.column : at.column + at.width]
                np.testing.assert_array_equal(decode(raw, config()).pixels, there)


def test_scenes_elsewhere_are_opened_with_their_roots_options(tmp_path: Path) -> None:
    with s3_server() as server:
        put(tmp_path / "a.tif")
        server.client.upload_file(str(tmp_path / "a.tif"), server.bucket, "scenes/a.tif")
        (tmp_path / "list.txt").write_text(f"{server.url}/scenes/a.tif\n")
        options = {"root0": server.storage["s3"]}
        (root,) = list_archive(str(tmp_path / "list.txt"), options, config(scene="file"))
        assert len(read(root, scene="file")) == 4
