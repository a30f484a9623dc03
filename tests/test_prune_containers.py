"""The main job over archives in public layouts, from the default config to a manifest."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs import prune
from tests.command import Outcome
from tests.containers import major_tom_row, write_major_tom, write_ssl4eo, write_terramesh


def pruned(
    archive: Path, tmp_path: Path, *more: str
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The result, the manifest's rows and the catalog's."""
    small = ("catalog.fit_samples=16", "encoder.filters=8", "runtime.max_actors=1", "cluster.k=4", "select.budget=5")
    result = prune.run([f"archive.url={archive}", f"workspace={tmp_path / 'ws'}", *small, *more])
    folder = Outcome(0, json.dumps(result), "").file("manifest").parent
    files = sorted((tmp_path / "ws" / "catalog").rglob("*.parquet"))
    catalog = [row for path in files for row in pq.read_table(path).to_pylist()]
    return result, pq.read_table(folder / "manifest.parquet").to_pylist(), catalog


def test_major_tom(ray_local: None, tmp_path: Path) -> None:
    for part in range(2):
        rows = (major_tom_row(part * 6 + i) for i in range(6))
        write_major_tom(tmp_path / "images" / f"part_{part:05d}.parquet", rows)
    (tmp_path / "metadata.parquet").write_bytes((tmp_path / "images" / "part_00000.parquet").read_bytes())
    result, kept, catalog = pruned(tmp_path, tmp_path / "out")
    assert (result["samples"], result["kept"], result["quarantined"]) == (12, 5, 0)
    assert len(kept) == 5 and len(catalog) == 12
    assert sorted(tuple(row["position"]) for row in catalog) == sorted([(i, 0) for i in range(6)] * 2)
    assert all(row["crs"] == "EPSG:32633" and row["time"] and row["footprint"] and row["gsd"] for row in catalog)


def test_terramesh_with_two_modalities(ray_local: None, tmp_path: Path) -> None:
    archive = write_terramesh(tmp_path / "archive", ["S2L2A", "S1GRD"], shards=1, each=8)
    result, kept, catalog = pruned(archive, tmp_path, "archive.modalities=[S2L2A,S1GRD]")
    assert (result["samples"], result["kept"], result["quarantined"]) == (16, 5, 0)
    assert {row["shard"] for row in kept} <= {f"root0/{s}/S2L2A/majortom_shard_000001.tar" for s in ("train", "val")}
    assert all(len({member["file"] for member in row["members"]}) == 2 for row in catalog)


def test_ssl4eo_in_tiles(ray_local: None, tmp_path: Path) -> None:
    archive = write_ssl4eo(tmp_path / "archive", ["S2L2A"], shards=1, samples=3)
    result, _, catalog = pruned(archive, tmp_path, "archive.tile.size=12")
    assert (result["samples"], result["quarantined"]) == (12 * 4, 0)
    assert len(catalog) == 48 and len({row["key"] for row in catalog}) == 48
    assert all(row["position"] and row["window"] for row in catalog)
