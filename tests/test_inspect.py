"""``curate inspect``: someone points it at an archive and gets a config that prunes it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest

from curation.archive.inspection import find_modalities, find_scene
from curation.archive.sidecar import in_name, read_fields
from curation.config import load_config
from curation.errors import RequestError
from jobs.inspect import run
from tests.containers import major_tom_row, write_major_tom, write_terramesh
from tests.recipes import encoded, geotiff, npy, write_tar

RNG = np.random.default_rng(3)


def band_file(low: int, high: int) -> bytes:
    return geotiff(RNG.integers(low, high, (1, 40, 40)).astype(np.uint16), None, "0", (12.0, 45.0))


def test_scenes_of_single_band_files(tmp_path: Path) -> None:
    for scene in ("S2A_T32TQR_20190416T100031", "S2A_T32TQR_20190421T100031"):
        for band, low in (("B02", 900), ("B03", 400)):
            path = tmp_path / "archive" / scene / f"{scene}_{band}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(band_file(low, low + 500))
    (tmp_path / "archive" / "metadata.csv").write_text("key,cloud_cover\n")
    target = tmp_path / "found.yaml"
    result = run([str(tmp_path / "archive"), f"config={target}"])
    assert result["archive"]["scene"] == "folder"
    assert set(result["bands"]) == {"B02", "B03"}
    assert result["bands"]["B02"]["min"] >= 900 > result["bands"]["B03"]["max"]
    assert result["fields"]["footprint"] == 2
    assert result["tables"] == ["metadata.csv"]
    config = load_config([f"config={target}", "archive.max_pixels=1000"])
    assert (config.archive.scene, config.archive.max_pixels) == ("folder", 1000)
    said = in_name("S2A_T32TQR_20190416T100031", config.archive.name_pattern)
    assert read_fields(said)["time"] == datetime(2019, 4, 16, 10, 0, 31, tzinfo=UTC)
    assert "cloud" in target.read_text()
    with pytest.raises(RequestError, match="is there already"):
        run([str(tmp_path / "archive"), f"config={target}"])


def test_what_differs_or_is_unknown_is_asked(tmp_path: Path) -> None:
    members = {
        "a.npy": npy(RNG.normal(size=(2, 9, 9)).astype(np.float32)),
        "a.json": json.dumps({"platform": "S1A", "orbit": 7}).encode(),
        "b.png": encoded(np.zeros((8, 8, 3), np.uint8), "PNG"),
    }
    write_tar(tmp_path / "x.tar", members.items())
    result = run([str(tmp_path / "x.tar"), f"config={tmp_path / 'x.yaml'}"])
    questions = " ".join(result["questions"])
    assert "Samples differ" in questions and "platform (S1A)" in questions and "gives a time" in questions
    assert result["other_fields"]["orbit"] == "7"


def test_layouts_by_names() -> None:
    tars = [f"{split}/{m}/shard_{i}.tar" for split in ("train", "val") for m in ("S2L2A", "S1RTC") for i in range(2)]
    assert find_modalities(tars) == ["S1RTC", "S2L2A"]
    assert find_modalities(["train/a.tar", "val/a.tar", "b.tar"]) == []
    pattern = find_scene([f"flat/{scene}_{band}.tif" for scene in ("x_1", "x_2") for band in ("B02", "VV")])
    assert pattern and "(?P<scene>" in pattern
    assert find_scene(["a/cat.jpg", "a/dog.jpg"]) is None


def test_credentials_in_the_url_stay_out_of_the_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "x.tar", [("a.npy", npy(np.ones((2, 9, 9), np.uint8)))])
    url = "memory://user:hunter2@store/x.tar"
    with fsspec.open(url, "wb") as file:
        file.write((tmp_path / "x.tar").read_bytes())
    caplog.set_level("INFO")
    result = run([url, f"config={tmp_path / 'x.yaml'}"])
    written = (tmp_path / "x.yaml").read_text()
    assert "  url: memory://store/x.tar\n" in written and "docs/storage.md" in written
    assert "without its user" in caplog.text and "hunter2" not in written + json.dumps(result) + caplog.text


def test_a_config_that_cannot_be_written_is_said_before_the_archive_is_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="/none is no folder to write to"):
        run([str(tmp_path / "nowhere"), f"config={tmp_path / 'none/archive.yaml'}"])


@pytest.mark.parametrize(
    ("asked", "says"),
    [(["[a,b]"], "one root at a time"), (["x", "archive.modalities=[a]"], "inspect finds archive")],
)
def test_what_inspect_does_not_take(asked: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=says):
        run([*asked, f"config={tmp_path / 'archive.yaml'}"])


def test_a_config_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file"):
        load_config([f"config={tmp_path / 'none.yaml'}"])
    (tmp_path / "list.yaml").write_text("[1, 2")
    with pytest.raises(RequestError, match="no YAML"):
        load_config([f"config={tmp_path / 'list.yaml'}"])
    (tmp_path / "text.yaml").write_text("archive: {no_such_key: 1}")
    with pytest.raises(RequestError, match="no_such_key"):
        load_config([f"config={tmp_path / 'text.yaml'}"])


def test_what_numbers_and_masks_mean(tmp_path: Path) -> None:
    write_major_tom(tmp_path / "s2" / "part_00000.parquet", (major_tom_row(i) for i in range(6)))
    s2 = run([str(tmp_path / "s2"), f"config={tmp_path / 's2.yaml'}"])
    assert s2["archive"]["radiometry"] == {"kind": "sentinel2"}
    assert s2["masks"] == ["cloud_mask"] and "cloud_mask is 0 clear" in " ".join(s2["questions"])
    assert not any("Nothing tells of clouds" in question for question in s2["questions"])
    assert load_config([f"config={tmp_path / 's2.yaml'}"]).archive.radiometry.kind == "sentinel2"

    write_terramesh(tmp_path / "both", ["S2L2A", "S1GRD"], shards=1, each=4)
    both = run([str(tmp_path / "both"), f"config={tmp_path / 'both.yaml'}"])
    assert both["archive"]["modalities"] == ["S1GRD", "S2L2A"]
    assert both["archive"]["radiometry"] == {"kind": {"S1GRD": "sentinel1", "S2L2A": "sentinel2"}}
    kinds = load_config([f"config={tmp_path / 'both.yaml'}"]).archive.radiometry.kind
    assert kinds == both["archive"]["radiometry"]["kind"]

    members = [(f"{i}.{b}.npy", npy(RNG.integers(0, 60, (9, 9), np.uint16))) for i in "ab" for b in ("B4", "Fmask")]
    write_tar(tmp_path / "x.tar", members)
    other = run([str(tmp_path / "x.tar"), f"config={tmp_path / 'x.yaml'}"])
    asked = " ".join(other["questions"])
    assert "What do the numbers mean?" in asked and "archive.clouds.band=Fmask" in asked


def test_numbers_of_another_scale_and_folders_of_one_place_are_asked(tmp_path: Path) -> None:
    for folder, bands in (("S1", ("VV", "VH")), ("S2", ("B02", "B03", "B04", "B08"))):
        for place in ("Spain_1", "Ghana_2", "Mali_3")[folder == "S1" :]:
            path = tmp_path / "chips" / folder / f"{place}_{folder}Hand.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(geotiff(RNG.integers(20_000, 60_000, (len(bands), 40, 40)).astype(np.uint16), bands))
    result = run([str(tmp_path / "chips"), f"config={tmp_path / 'chips.yaml'}"])
    asked = " ".join(result["questions"])
    assert "Do root0/S1, root0/S2 show the same places?" in asked
    assert result["archive"]["radiometry"]["kind"] == "sentinel2"
    assert "give archive.radiometry.scale=N" in asked
