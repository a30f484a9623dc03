"""Stages by validity, clouds and place, and a second key beside the cluster, from the catalog to the manifest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from curation.archive.tables import open_tables
from curation.errors import CurationError, RequestError
from curation.manifests import finish, partitions, steps
from curation.manifests.explain import WHY, explain
from curation.manifests.schema import DROPPED, OF_DISTILLED, REASONS, Manifest
from curation.manifests.verify import verify
from curation.report import page
from curation.selection.blocks import EDGE, Blocks, boxes, split_codes
from curation.selection.groups import group_texts
from curation.selection.quotas import cluster_weights, quotas
from tests.selection_recipes import HEADER, Workspace, make_workspace, write_clusters
from tests.test_selection_quotas import by_heap

pytestmark = pytest.mark.usefixtures("ray_local")

SPLITS = {"validation": 0.2, "test": 0.1}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Of every five samples one is half empty, one is cloudy, one says nothing of clouds."""
    folder = tmp_path_factory.mktemp("workspace")
    rows = make_workspace(folder).samples.num_rows
    cloud = [[0.1, 0.73, None, 0.5, 0.2][i % 5] for i in range(rows)]
    valid = [0.4 if i % 10 in (1, 4) else 0.9 for i in range(rows)]
    return make_workspace(folder, cloud_fraction=cloud, valid_fraction=valid)


def header(workspace: Workspace, manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.folder / manifest.folder / "manifest.json").read_text())["content"]
    return found


# validity and clouds


def test_unclear_samples_fall_with_their_figures_and_required_ones_stay(workspace: Workspace, tmp_path: Path) -> None:
    rows = workspace.samples.to_pylist()
    must = [rows[1]["key"], rows[6]["key"]]  # half empty and cloudy; cloudy
    (tmp_path / "must.csv").write_text("key\n" + "\n".join(must))
    manifest = workspace.select(min_valid=0.9, max_cloud=0.5, require=f"{tmp_path}/must.csv", budget=100)
    decided = workspace.decisions(manifest)
    cloudy = None
    for i, row in enumerate(rows):
        invalid, cloud = i % 10 in (1, 4), i % 5 == 1  # 0.9 is not below 0.9, 0.5 not above 0.5
        if row["key"] in must:
            assert decided["reason"][i] == "required"
            continue
        expected = "invalid" if invalid else "cloud" if cloud else None
        assert expected in (decided["reason"][i], None)
        assert (decided["reason"][i] in ("invalid", "cloud")) == (expected is not None)
        assert decided["cloud_fraction"][i] == row["cloud_fraction"]
        assert decided["valid_fraction"][i] == row["valid_fraction"]
        if expected:
            assert decided["threshold"][i] == {"invalid": 0.9, "cloud": 0.5}[expected]
            cloudy = i if expected == "cloud" else cloudy
    assert cloudy is not None
    why = explain(manifest.url, decided["sample_id"][cloudy])["why"]
    assert why == "dropped: its cloudy share 0.73 is above select.max_cloud=0.5"
    invalid = decided["reason"].index("invalid")
    why = explain(manifest.url, decided["sample_id"][invalid])["why"]
    assert why == "dropped: its valid share 0.4 is below select.min_valid=0.9"
    assert manifest.warnings == []
    assert list(manifest.dropped) == ["invalid", "cloud", "quota"]
    assert verify(manifest.url)["ok"]


def test_entropy_is_cut_of_what_is_clear(workspace: Workspace) -> None:
    manifest = workspace.select(max_cloud=0.5, entropy_keep=0.5, budget=50)
    number = workspace.samples.num_rows
    left = number - manifest.dropped["cloud"]
    assert manifest.dropped["entropy"] == left - int(0.5 * left + 0.5)


@pytest.mark.parametrize(
    ("bands", "cloud", "warns"),
    [
        (["red", "green", "blue"], None, True),
        (["B02", "B8A"], None, True),
        (["VV", "B02"], None, True),
        (["VV", "VH"], None, False),
        (["gray"], None, False),
        (["b1", "b2"], None, False),
        (["B02"], 0.2, False),
    ],
)
def test_optical_data_that_nothing_tells_clouds_of_are_warned_of(
    tmp_path: Path, bands: list[str], cloud: float | None, warns: bool
) -> None:
    number = make_workspace(tmp_path, 2, 10, 2, 1).samples.num_rows
    workspace = make_workspace(tmp_path, 2, 10, 2, 1, cloud_fraction=[cloud] + [None] * (number - 1))
    said = {**HEADER, "content": {**HEADER["content"], "bands": bands}}
    manifest = workspace.select(header=said, max_cloud=0.5)
    assert len(manifest.warnings) == warns
    assert header(workspace, manifest)["warnings"] == manifest.warnings
    assert all("nothing tells which samples are cloudy" in text for text in manifest.warnings)
    assert workspace.select(header=said, min_valid=0.5).warnings == []
    assert manifest.kept == int(0.25 * number + 0.5)  # unknown is not cloudy


def test_a_budget_beyond_what_is_clear_names_the_stage(workspace: Workspace) -> None:
    with pytest.raises(RequestError, match=r"the validity and cloud stage \(select.min_valid, .*\) leaves .*: lower"):
        workspace.select(max_cloud=0.0, budget=300)


def test_a_unit_falls_only_where_each_of_its_samples_is_unclear(workspace: Workspace) -> None:
    unit = np.array(workspace.samples["source_id"].to_pylist())
    cloud = workspace.samples["cloud_fraction"].to_numpy()
    manifest = workspace.select(max_cloud=0.4, unit="source_id", budget=150)
    decided = workspace.decisions(manifest)
    for name in set(unit):
        fell = {decided["reason"][i] == "cloud" for i in np.flatnonzero(unit == name)}
        assert fell == {bool((cloud[unit == name] > np.float32(0.4)).all())}
    assert manifest.dropped["cloud"]


# splits


def test_what_lies_in_a_split_never_enters_not_even_if_required(workspace: Workspace, tmp_path: Path) -> None:
    code = split_codes(boxes(workspace.samples["footprint"]), Blocks(400), [0.1, 0.2])  # by name
    names = [*sorted(SPLITS), None]
    expected = [None if c == EDGE else names[c] for c in code.tolist()]
    keys = workspace.samples["key"].to_pylist()
    (tmp_path / "must.csv").write_text("key\n" + "\n".join(keys[::20]))
    manifest = workspace.select(splits=SPLITS, block_km=400, require=f"{tmp_path}/must.csv", budget=60)
    decided = workspace.decisions(manifest)
    assert decided["split"] == expected
    for i, c in enumerate(code.tolist()):
        reason = {0: "split", 1: "split", int(EDGE): "split_edge"}.get(c)
        assert (decided["reason"][i] == reason) == (reason is not None)
        assert reason or (decided["reason"][i] == "required") == (i % 20 == 0)
    assert header(workspace, manifest)["selection"]["splits"] == {name: expected.count(name) for name in sorted(SPLITS)}
    assert min(expected.count(name) for name in SPLITS) > 0
    assert verify(manifest.url)["ok"]
    at = decided["split"].index("test")
    assert explain(manifest.url, decided["sample_id"][at])["why"] == "dropped: it lies in a block of the split test"
    again = workspace.decisions(workspace.select(splits=SPLITS, block_km=400, seed=9, budget=60))
    assert again["split"] == expected
    everything = workspace.select(splits=SPLITS, block_km=400, budget=0.1)
    assert everything.kept == int(0.1 * workspace.samples.num_rows + 0.5)  # a share of all that can be read


def test_a_split_is_a_list_that_makes_a_manifest_of_its_own(workspace: Workspace, tmp_path: Path) -> None:
    manifest = workspace.select(splits=SPLITS, block_km=400, budget=60)
    decisions = ds.dataset(workspace.folder / manifest.folder / "decisions")
    held_out = decisions.to_table(filter=ds.field("split") == "validation").select(["sample_id"])
    pq.write_table(held_out, tmp_path / "validation.parquet")
    own = workspace.select(strategy="random", require=f"{tmp_path}/validation.parquet", budget=len(held_out))
    kept = workspace.read(own)["sample_id"].to_pylist()
    assert sorted(kept) == sorted(held_out["sample_id"].to_pylist())
    assert not set(kept) & set(workspace.read(manifest)["sample_id"].to_pylist())


def test_every_reason_is_explained() -> None:
    assert set(page.WHY) == {"quarantined", *DROPPED}
    assert set(WHY) == {*REASONS, *OF_DISTILLED, "within", "full"}


def test_splits_that_a_table_has_already(workspace: Workspace, tmp_path: Path) -> None:
    keys = workspace.samples["key"].to_pylist()
    parts = ["train", "val", "test", ""]
    said = {key: parts[i % 4] for i, key in enumerate(keys)}
    (tmp_path / "splits.csv").write_text("name,part\n" + "\n".join(f"{key},{part}" for key, part in said.items()))
    tables = open_tables([{"path": f"{tmp_path}/splits.csv", "key": "name", "on": "key"}])
    manifest = workspace.select(tables=tables, split_by="part", held_out=["val", "test"], budget=20)
    decided = workspace.decisions(manifest)
    for key, split, reason in zip(decided["key"], decided["split"], decided["reason"], strict=True):
        assert split == (said[key] if said[key] in ("val", "test") else None)
        assert (reason == "split") == (split is not None)
    counts = {name: sum(part == name for part in said.values()) for name in ("test", "val")}
    assert header(workspace, manifest)["selection"]["splits"] == counts
    none = workspace.select(tables=tables, split_by="part", held_out=["holdout"], budget=20)
    assert none.warnings == ["select.held_out: no sample has part=holdout"]
    with pytest.raises(RequestError, match=r"select.split_by=nothing is no column"):
        workspace.select(split_by="nothing", held_out=["val"], budget=20)
    with pytest.raises(RequestError, match=r"goes with select.held_out"):
        workspace.select(split_by="label", budget=20)


def test_a_unit_of_several_splits_is_in_none(workspace: Workspace) -> None:
    code = split_codes(boxes(workspace.samples["footprint"]), Blocks(400), [0.1, 0.2])
    unit = np.array(workspace.samples["source_id"].to_pylist())
    decided = workspace.decisions(workspace.select(splits=SPLITS, block_km=400, unit="source_id", budget=60))
    seen = set()
    for name in set(unit):
        own = np.flatnonzero(unit == name)
        codes = set(code[own].tolist())
        kind = {0: "split", 1: "split", 2: None}.get(codes.pop(), "split_edge") if len(codes) == 1 else "split_edge"
        found = {decided["reason"][i] for i in own}
        assert found == {kind} if kind else not found & {"split", "split_edge"}
        seen.add(kind)
    assert seen == {"split", "split_edge", None}


def test_samples_without_a_place_are_training_and_an_archive_without_places_has_no_splits(tmp_path: Path) -> None:
    made = make_workspace(tmp_path, 3, 20, 2, 1)
    footprint = made.samples["footprint"].to_pylist()
    half = make_workspace(tmp_path, 3, 20, 2, 1, footprint=[*footprint[:5], *[None] * (len(footprint) - 5)])
    manifest = half.select(splits={"test": 0.5}, block_km=10_000, budget=5)
    assert manifest.warnings[0] == (
        f"{len(footprint) - 5} samples have no footprint: select.splits leaves them to training"
    )
    assert set(half.decisions(manifest)["split"][5:]) == {None}
    none = make_workspace(tmp_path, 3, 20, 2, 1, footprint=[None] * len(footprint))
    with pytest.raises(RequestError, match="no sample of the archive has a footprint"):
        none.select(splits={"test": 0.5})


def test_a_split_that_gets_nothing_is_named(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 2, 4, 2, 1)
    manifest = workspace.select(splits={"test": 0.001}, block_km=5000)
    assert manifest.warnings == ["no sample lies within a block of select.splits.test: try a smaller select.block_km"]
    with pytest.raises(RequestError, match="select.splits, select.exclude and select.clusters leave"):
        make_workspace(tmp_path).select(splits={"test": 0.3}, block_km=400, budget=450)


# groups


@pytest.mark.parametrize("strategy", ["balanced", "rs_prune"])
@pytest.mark.parametrize("by", [["label"], ["season", "region"], ["month"]])
def test_seats_are_shared_by_cluster_then_by_group(workspace: Workspace, strategy: str, by: list[str]) -> None:
    samples, budget = workspace.samples, 120
    cluster = samples["cluster"].to_numpy()
    group = np.array(group_texts(by, samples, 1000).to_pylist())
    manifest = workspace.select(strategy=strategy, by=by, budget=budget)
    decided = workspace.decisions(manifest)
    assert decided["group"] == group.tolist()
    kept = np.array([decision == "kept" for decision in decided["decision"]])
    sizes = np.bincount(cluster, minlength=6)
    seats = quotas(cluster_weights(sizes, 0.5), sizes, budget)
    np.testing.assert_array_equal(np.bincount(cluster[kept], minlength=6), seats)
    priority = np.array(decided["priority"])
    limit = np.array([np.nan if t is None else t for t in decided["threshold"]])
    for k in range(6):
        names = sorted(set(group[cluster == k]))
        own = [(cluster == k) & (group == name) for name in names]
        caps = np.array([rows.sum() for rows in own])
        expected = by_heap(cluster_weights(caps, 0.5), caps, int(seats[k]), np.zeros(len(caps), np.int64))
        assert [(kept & rows).sum() for rows in own] == expected.tolist()
        for rows in own:
            refused = priority[rows & ~kept]
            assert (limit[rows] == refused.min()).all() if len(refused) else np.isnan(limit[rows]).all()
            assert priority[rows & kept].max(initial=-1) <= refused.min(initial=np.inf)  # ties by id
    if strategy == "balanced":
        rows = workspace.read(manifest).to_pylist()
        weight = {row["sample_id"]: row["weight"] for row in rows}
        assert {i for i, w in zip(decided["sample_id"], decided["weight"], strict=True) if w} == set(weight)
    less = workspace.read(workspace.select(strategy=strategy, by=by, budget=50))
    first = {row["sample_id"]: row["rank"] for row in workspace.read(manifest).to_pylist() if row["rank"] < 50}
    assert first == {row["sample_id"]: row["rank"] for row in less.to_pylist()}
    at = decided["reason"].index("quota")
    why = explain(manifest.url, decided["sample_id"][at])["why"]
    assert why.endswith(f"in group {group[at]} of cluster {cluster[at]}")


def test_weights_count_every_group(workspace: Workspace) -> None:
    """Horvitz and Thompson: over many draws the weights of a group's kept samples come to its size."""
    group = np.array(workspace.samples["label"].to_pylist())
    sums = []
    for seed in range(12):
        decided = workspace.decisions(workspace.select(by=["label"], budget=200, balance=1.0, seed=seed))
        weight = np.array([w or 0.0 for w in decided["weight"]])
        sums.append([weight[group == name].sum() for name in ("field", "town", "water")])
    sizes = [(group == name).sum() for name in ("field", "town", "water")]
    np.testing.assert_allclose(np.mean(sums, axis=0), sizes, rtol=0.1)


def test_groups_units_splits_and_clouds_are_the_same_however_the_rows_are_spread(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {name: workspace.samples[name].to_pylist() for name in ("cloud_fraction", "valid_fraction")}
    other = make_workspace(tmp_path, **names)
    write_clusters(tmp_path / "clusters/c", other.samples, 6, parts=7)
    plain: dict[str, Any] = {
        "by": ["season", "label"],
        "splits": SPLITS,
        "block_km": 400,
        "max_cloud": 0.5,
        "budget": 60,
    }
    for settings in (plain, {**plain, "unit": "source_id", "duplicates": True}):
        monkeypatch.undo()
        first = workspace.select(**settings)
        monkeypatch.setattr(partitions, "ROWS_A_PARTITION", 90)
        monkeypatch.setattr(finish, "ROWS_A_RANGE", 20)
        spread = other.select(**settings)
        rows = [
            (w.folder / m.folder / "manifest.parquet").read_bytes() for w, m in ((workspace, first), (other, spread))
        ]
        assert rows[0] == rows[1]
        assert other.decisions(spread) == workspace.decisions(first)


def test_keys_that_make_too_many_groups_or_tell_nothing(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match=r"select.by=place is no column of .*; choose one of season, .*label"):
        workspace.select(by=["place"])
    with pytest.raises(RequestError, match="select.by=embedding is no column"):
        workspace.select(by=["embedding"])
    monkeypatch.setattr(steps, "GROUPS", 100)  # of the driver's own process: parts alone have fewer
    with pytest.raises(RequestError, match=r"select.by=\[key\] makes more than 100 groups: take fewer or coarser keys"):
        workspace.select(by=["key"])
    monkeypatch.undo()
    rows = make_workspace(tmp_path, 2, 10, 2, 1).samples.num_rows
    unknown = make_workspace(tmp_path, 2, 10, 2, 1, time=[None] * rows)
    manifest = unknown.select(by=["month"])
    assert manifest.warnings == ["select.by=[month]: nothing tells that of any sample, so that nothing is balanced"]
    assert set(unknown.decisions(manifest)["group"]) == {"?"}


# tables


def test_a_table_s_columns_balance_and_group(workspace: Workspace, tmp_path: Path) -> None:
    rows = workspace.samples.to_pylist()
    biome = {row["key"]: "forest" if row["index"] % 3 else "desert" for row in rows[: len(rows) // 2]}
    pq.write_table(pa.table({"tile": list(biome), "biome": list(biome.values())}), tmp_path / "biomes.parquet")
    sources = sorted({row["source_id"] for row in rows})
    orbit = {name: str(i % 7) for i, name in enumerate(sources)}
    (tmp_path / "o.csv").write_text("product,orbit\n" + "\n".join(f"{n},{o}" for n, o in orbit.items()))
    entries = [
        {"path": f"{tmp_path}/biomes.parquet", "key": "tile", "on": "key"},
        {"path": f"{tmp_path}/o.csv", "key": "product", "on": "source_id"},
    ]
    tables = open_tables(entries)
    decided = workspace.decisions(workspace.select(by=["biome", "label"], tables=tables))
    assert decided["group"] == [f"{biome.get(row['key'], '?')} / {row['label']}" for row in rows]
    decided = workspace.decisions(workspace.select(unit="orbit", tables=tables, budget=300))
    for name in set(orbit.values()):
        assert len({d for d, r in zip(decided["decision"], rows, strict=True) if orbit[r["source_id"]] == name}) == 1
    (tmp_path / "o.csv").write_text("product,season\na,1\n")
    with pytest.raises(RequestError, match="select.by=season is told from time and footprint, but a table"):
        workspace.select(by=["season"], tables=open_tables(entries))
    (tmp_path / "o.csv").write_text("product,orbit\na,1\na,2\n")
    with pytest.raises(CurationError, match="product 'a' comes twice"):
        workspace.select(by=["orbit"], tables=open_tables(entries))
