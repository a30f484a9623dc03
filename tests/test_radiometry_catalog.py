"""From the archive to the manifest's columns: the fit settles what numbers mean, and nothing else gets in."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.archive.listing import Root, list_archive
from curation.catalog.build import build_catalog
from curation.catalog.fit import check_bank, load_or_fit, other_resolution
from curation.catalog.plan import plan
from curation.config import Config, load_config
from curation.errors import RequestError
from curation.runtime import start_ray
from curation.storage import Folder
from tests.radiometry_recipes import DARK, backscatter, in_units, reflectance_dn, s1_shard, s2_shard
from tests.recipes import geotiff, write_tar

SMALL = ("encoder.filters=4", "catalog.fit_samples=64", "runtime.max_actors=1", "archive.max_bad_fraction=1")


def config_of(archive: Path, workspace: Path, *more: str) -> Config:
    return load_config([f"archive.url={archive}", f"workspace={workspace}", *SMALL, *more])


def fit(config: Config):
    assert config.workspace
    roots = list_archive(config.archive.url, settings=config.archive)
    return load_or_fit(config, roots, Folder(config.workspace), None)


def columns(config: Config, *names: str) -> dict[str, list]:
    catalog = build_catalog(config, list_archive(config.archive.url), None, start_ray(config.runtime))
    found: dict[str, list] = {name: [] for name in names}
    for shard in catalog.shards:
        table = catalog.store.read(shard, list(names))
        for name in names:
            found[name] += table[name].to_pylist()
    return found


def test_a_lying_shard_is_named_and_fixed(ray_local, tmp_path, caplog) -> None:
    write_tar(tmp_path / "a" / "old.tar", s2_shard("old", DARK * 2, 0, {"processing_baseline": "02.11"}))
    write_tar(tmp_path / "a" / "new.tar", s2_shard("new", DARK * 2, 1000, {"processing_baseline": "05.11"}))
    write_tar(tmp_path / "a" / "lies.tar", s2_shard("lies", DARK * 2, 0, {"processing_baseline": "05.11"}))
    kind = "archive.radiometry.kind=sentinel2"
    with pytest.raises(RequestError, match=r"10 of 20 tiles declared with the offset -1000.*root0/lies\.tar"):
        fit(config_of(tmp_path / "a", tmp_path / "ws", kind))
    assert not list((tmp_path / "ws").rglob("*.safetensors"))
    config = config_of(tmp_path / "a", tmp_path / "ws", kind, "archive.radiometry.conflict=fix")
    found = columns(config, "key", "radiometry", "entropy", "embedding", "cloud_fraction")
    assert set(found["radiometry"]) == {"reflectance"} and len(found["key"]) == 30
    assert "decided tile by tile" in caplog.text and "nothing tells of clouds" in caplog.text
    (table,) = (tmp_path / "ws" / "encoders").rglob("audit.json")
    assert [row["declared_offset"] for row in json.loads(table.read_text())] == [-1000, 0]
    vectors = {key: np.array(v, np.float32) for key, v in zip(found["key"], found["embedding"], strict=True)}
    for i in range(10):  # one ground in three states is one vector
        for other in ("new", "lies"):
            np.testing.assert_allclose(vectors[f"{other}_{i:03d}"], vectors[f"old_{i:03d}"], atol=2e-3)
    assert plan(config_of(tmp_path / "a", tmp_path / "ws2", kind), list_archive(str(tmp_path / "a")), 0)["shards"] == 3


def test_a_bank_of_another_state_is_refused(ray_local, tmp_path) -> None:
    write_tar(tmp_path / "archive" / "a.tar", s2_shard("a", DARK * 2, 1000))
    write_tar(tmp_path / "bank" / "b.tar", s2_shard("b", DARK, 0))
    write_tar(tmp_path / "same" / "b.tar", s2_shard("b", DARK, 1000))
    write_tar(tmp_path / "declared" / "b.tar", s2_shard("b", DARK, 0, {"processing_baseline": "02.11"}))
    config = config_of(tmp_path / "archive", tmp_path / "ws", "archive.radiometry.kind=sentinel2")
    artefact = fit(config)
    assert artefact.radiometry == "reflectance" and artefact.found["radiometry"][""]["offset"] == -1000

    def bank(name: str) -> Root:
        (root,) = list_archive({"references": str(tmp_path / name)}, settings=config.archive)
        return root

    check_bank(config, bank("same"), artefact)
    check_bank(config, bank("declared"), artefact)
    with pytest.raises(RequestError, match="its DN have the offset 0 by their dark pixels, the archive's -1000"):
        check_bank(config, bank("bank"), artefact)


def test_a_bank_of_another_resolution_is_warned_of(ray_local, tmp_path, caplog) -> None:
    for name, degrees in (("archive", 1e-4), ("finer", 1e-5)):  # 11 m and 1 m at the equator
        place = {"corner": (30.0, 0.01), "pixel": (degrees, degrees)}
        members = [(f"{i}.tif", geotiff(reflectance_dn(DARK[i], i), **place)) for i in range(4)]
        write_tar(tmp_path / name / "a.tar", members)
    config = config_of(tmp_path / "archive", tmp_path / "ws")
    assert fit(config).gsd == pytest.approx(11.13, abs=0.02)
    (bank,) = list_archive({"references": str(tmp_path / "finer")}, settings=config.archive)
    for warned in (True, False):  # in the log when it is encoded, in the catalog whenever it is used
        caplog.clear()
        catalog = build_catalog(config, list_archive(config.archive.url), bank, start_ray(config.runtime))
        assert ("1.11 m a pixel, the archive 11.1 m" in caplog.text) == warned
        assert [text.startswith("The reference bank has 1.11 m") for text in catalog.warnings] == [True]


@pytest.mark.parametrize(
    ("archive", "bank", "warned"),
    [
        (11.1, [1.11, 1.11, None], True),
        (1.11, [11.1], True),
        (11.1, [15.6, 15.6, 100.0], False),  # their median
        (11.1, [None, None], False),
        (11.1, [], False),
        (None, [1.11], False),
    ],
)
def test_resolutions_that_are_alike_or_unknown_are_not_warned_of(archive, bank, warned) -> None:
    assert (other_resolution(archive, bank) is not None) == warned


def test_radar_in_any_unit_has_one_catalog(ray_local, tmp_path) -> None:
    rows = {}
    for units in ("linear", "db"):
        write_tar(tmp_path / units / "a.tar", s1_shard("a", 12, units))
        config = config_of(tmp_path / units, tmp_path / f"ws_{units}", "archive.radiometry.kind=sentinel1")
        rows[units] = columns(config, "radiometry", "entropy_bands", "valid_fraction")
        artefact = fit(config)
        np.testing.assert_allclose(artefact.arrays["range"], [[-25, 5], [-32, -2]])
        assert all(3.5 < bits < 4.6 for bits in artefact.speckle_entropy if bits is not None)  # 70 looks: 4.1
        assert len(artefact.speckle_entropy) == 2
    assert rows["linear"]["radiometry"] == ["db"] * 12 == rows["db"]["radiometry"]
    np.testing.assert_allclose(rows["linear"]["entropy_bands"], rows["db"]["entropy_bands"], atol=0.02)


def test_clouds_take_no_part_in_entropy_and_another_state_is_quarantined(ray_local, tmp_path) -> None:
    rng = np.random.default_rng(0)
    members = []
    for i in range(8):
        ground = reflectance_dn("forest", i)
        scl = np.full((1, 64, 64), 4, np.uint8)
        if i % 2:
            ground[:, :40] = rng.integers(3000, 9000, (4, 40, 64))
            scl[:, :40] = 9
        members += [
            (f"k{i}.{band}.tif", geotiff(ground[b : b + 1])) for b, band in enumerate(("B02", "B03", "B04", "B08"))
        ]
        members.append((f"k{i}.SCL.tif", geotiff(scl)))
    members.append(("other.tif", geotiff(in_units(backscatter(0), "db"), ("VV", "VH"))))
    write_tar(tmp_path / "archive" / "a.tar", members)
    config = config_of(tmp_path / "archive", tmp_path / "ws", "archive.radiometry.kind=sentinel2")
    found = columns(config, "cloud_fraction", "entropy")
    assert found["cloud_fraction"] == pytest.approx([0, 40 / 64] * 4)
    assert max(found["entropy"][1::2]) < max(found["entropy"][::2]) + 0.3
    (quarantine,) = (tmp_path / "ws" / "quarantine").rglob("*.parquet")
    assert pq.read_table(quarantine)["error"].to_pylist() == ["WrongBands"]
