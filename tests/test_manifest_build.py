"""A manifest is what the method says, whole, sorted and ranked, and the same however the rows are spread."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import CurationError
from curation.manifests import finish, partitions
from curation.manifests.schema import DECISIONS_SCHEMA, MANIFEST_SCHEMA, content_id
from curation.selection.quotas import cluster_weights, quotas
from curation.selection.sampling import distance_weight, hash01
from tests.selection_recipes import HEADER, Workspace, make_workspace, write_clusters

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def by_hand(workspace: Workspace, budget: int, balance: float = 0.5, near: float = 0.5) -> dict[str, int]:
    """The kept ids with their ranks, by the plainest way to write the method down."""
    rows = workspace.samples.to_pydict()
    cluster, distance = np.array(rows["cluster"]), np.array(rows["distance"])
    sizes = np.bincount(cluster, minlength=6)
    mean = np.array([distance[cluster == k].mean() for k in range(6)], np.float32)
    std = np.array([distance[cluster == k].std() for k in range(6)], np.float32)
    weight = distance_weight(distance, mean[cluster], std[cluster], near)
    priority = -np.log(hash01(workspace.samples["sample_id"], 0)) / weight
    weights = cluster_weights(sizes, balance)
    quota = quotas(weights, sizes, budget)
    seats = []
    for k in range(6):
        members = sorted(np.flatnonzero(cluster == k), key=lambda i: (priority[i], rows["sample_id"][i]))
        seats += [(-weights[k] / (2 * j + 1), k, rows["sample_id"][i]) for j, i in enumerate(members[: quota[k]])]
    return {name: rank for rank, (_, _, name) in enumerate(sorted(seats))}


def test_it_keeps_what_the_method_says(workspace: Workspace) -> None:
    manifest = workspace.select()
    kept = workspace.read(manifest)
    expected = by_hand(workspace, round(workspace.samples.num_rows * 0.25))
    assert dict(zip(kept["sample_id"].to_pylist(), kept["rank"].to_pylist(), strict=True)) == expected


def test_the_manifest_repeats_the_catalog_and_is_sorted(workspace: Workspace) -> None:
    kept = workspace.read(workspace.select())
    assert kept.schema.equals(MANIFEST_SCHEMA)
    order = list(zip(kept["shard"].to_pylist(), kept["index"].to_pylist(), strict=True))
    assert order == sorted(order)
    known = {row["sample_id"]: row for row in workspace.samples.to_pylist()}
    scenes = ["water", "field", "town", "water", "field", None]
    for row in kept.to_pylist():
        own = known[row["sample_id"]]
        assert row["scene"] == scenes[own["cluster"]]
        for name in ("source_id", "shard", "index", "offset", "size", "key", "cluster", "distance", "entropy", "label"):
            assert row[name] == own[name], name
        assert row["weight"] >= 1


def test_every_sample_has_a_decision_with_its_figures(workspace: Workspace) -> None:
    manifest = workspace.select()
    path = workspace.folder / manifest.folder / "decisions/part-00000.parquet"
    assert pq.read_schema(path).equals(DECISIONS_SCHEMA)
    decided = workspace.decisions(manifest)
    assert decided["sample_id"] == workspace.samples["sample_id"].to_pylist()
    assert decided["key"] == workspace.samples["key"].to_pylist()
    kept = np.array([decision == "kept" for decision in decided["decision"]])
    assert kept.sum() == manifest.kept
    assert {reason for reason, stays in zip(decided["reason"], kept, strict=True) if stays} == {"sampled"}
    assert manifest.dropped == {"quota": manifest.samples - manifest.kept}
    priority, threshold = np.array(decided["priority"]), np.array(decided["threshold"])
    assert (priority[kept] < threshold[kept]).all()
    assert (priority[~kept] >= threshold[~kept]).all()
    assert [rank is not None for rank in decided["rank"]] == kept.tolist()


def test_the_header_counts_and_seals_everything(workspace: Workspace) -> None:
    manifest = workspace.select()
    folder = workspace.folder / manifest.folder
    header = json.loads((folder / "manifest.json").read_text())
    content = header["content"]
    assert folder.name == content_id(content)
    assert content["counts"] == {
        "samples": manifest.samples,
        "kept": manifest.kept,
        "dropped": manifest.samples - manifest.kept,
        "reasons": {"sampled": manifest.kept, **manifest.dropped},
    }
    assert hashlib.sha256((folder / "files.parquet").read_bytes()).hexdigest() == content["files"]
    files = pq.read_table(folder / "files.parquet").to_pylist()
    parts = [f"decisions/part-{i:05d}.parquet" for i in range(3)]
    assert [file["path"] for file in files] == ["manifest.parquet", *parts]
    for file in files:
        data = (folder / file["path"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert file["rows"] == pq.read_metadata(folder / file["path"]).num_rows
    assert not [path for path in (workspace.folder / "manifests").iterdir() if "partial" in path.name]


def test_the_first_n_by_rank_are_the_manifest_of_budget_n(workspace: Workspace) -> None:
    for strategy in ("balanced", "rs_prune", "random", "entropy"):
        kept, less = (workspace.read(workspace.select(strategy=strategy, budget=budget)) for budget in (200, 77))
        assert sorted(kept["rank"].to_pylist()) == list(range(200))
        first = {row["sample_id"]: row["rank"] for row in kept.to_pylist() if row["rank"] < 77}
        assert first == {row["sample_id"]: row["rank"] for row in less.to_pylist()}, strategy


@pytest.mark.parametrize("strategy", ["balanced", "rs_prune", "random", "entropy"])
def test_it_is_the_same_however_the_rows_are_spread(
    workspace: Workspace, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"strategy": strategy, "entropy_keep": 0.8}
    first = workspace.select(**settings)
    again = workspace.select(**settings)
    assert again == first
    rows = (workspace.folder / first.folder / "manifest.parquet").read_bytes()
    other = make_workspace(tmp_path)
    write_clusters(tmp_path / "clusters/c", other.samples, 6, parts=7)
    monkeypatch.setattr(partitions, "ROWS_A_PARTITION", 90)
    monkeypatch.setattr(finish, "ROWS_A_RANGE", 20)
    spread = other.select(**settings)
    assert (tmp_path / spread.folder / "manifest.parquet").read_bytes() == rows
    assert other.decisions(spread) == workspace.decisions(first)


def test_a_crash_before_the_header_leaves_no_manifest_and_the_next_run_heals_it(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    whole = workspace.select()
    folder = tmp_path / whole.folder
    (folder / "manifest.json").unlink()
    (folder / "decisions/part-00001.parquet").write_bytes(b"torn")
    assert workspace.select() == whole
    files = pq.read_table(folder / "files.parquet").to_pylist()
    assert all(hashlib.sha256((folder / f["path"]).read_bytes()).hexdigest() == f["sha256"] for f in files)


def test_shards_without_samples_and_empty_parts_do_no_harm(workspace: Workspace, tmp_path: Path) -> None:
    other = make_workspace(tmp_path, shards=2, rows=10, clusters=3, parts=1)
    one = other.select()
    rows = (tmp_path / one.folder / "manifest.parquet").read_bytes()
    write_clusters(tmp_path / "clusters/c", other.samples, 3, parts=5)
    for settings in ({}, {"unit": "source_id"}, {"duplicates": True, "entropy_keep": 0.9}):
        manifest = other.select(**settings)
        assert manifest.samples == other.samples.num_rows
        assert settings or (tmp_path / manifest.folder / "manifest.parquet").read_bytes() == rows


def test_assignments_of_another_catalog_are_one_clear_error(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, shards=2, rows=10, clusters=3)
    write_clusters(tmp_path / "clusters/c", workspace.samples.slice(1), 3, parts=1)
    with pytest.raises(CurationError) as caught:
        workspace.select()
    assert re.match("^root/sub 0/tiles-000.tar: 9 rows in the catalog, 8 .*again$", str(caught.value.cause))
    backwards = workspace.samples["sample_id"].take(pa.array(range(len(workspace.samples) - 1, -1, -1)))
    turned = workspace.samples.set_column(0, "sample_id", backwards)
    write_clusters(tmp_path / "clusters/c", turned, 3, parts=1)
    with pytest.raises(CurationError, match="are not of this catalog: cluster again$"):
        workspace.select()


def test_what_the_catalog_warns_of_is_in_the_manifest(workspace: Workspace) -> None:
    content = {**HEADER["content"], "warnings": ["The reference bank is of another resolution."]}
    assert workspace.select(header={**HEADER, "content": content}).warnings[0] == content["warnings"][0]
