"""What a user asks for beside the budget: lists, clusters, an entropy cut, no copies, whole units; what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import RequestError
from curation.manifests import duplicates, partitions
from curation.manifests.schema import Manifest
from curation.selection.duplicates import find_duplicates
from curation.selection.sampling import hash01, split_ids
from tests.selection_recipes import Workspace, make_workspace

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def reasons(workspace: Workspace, manifest: Manifest) -> dict[str, str]:
    decided = workspace.decisions(manifest)
    return dict(zip(decided["key"], decided["reason"], strict=True))


# lists


def test_excluded_samples_fall_and_required_ones_go_first_within_the_budget(
    workspace: Workspace, tmp_path: Path
) -> None:
    keys = workspace.samples["key"].to_pylist()
    (tmp_path / "out, of [use].csv").write_text("key\n" + "\n".join(keys[::10]))
    pq.write_table(pa.table({"key": keys[5:300:30]}), tmp_path / "must.parquet")
    lists = {"exclude": str(tmp_path / "out, of [use].csv"), "require": str(tmp_path / "must.parquet")}
    manifest = workspace.select(budget=60, entropy_keep=0.5, **lists)
    why = reasons(workspace, manifest)
    assert {key for key, reason in why.items() if reason == "excluded"} == set(keys[::10])
    required = {key for key, reason in why.items() if reason == "required"}
    assert required == set(keys[5:300:30]) - set(keys[::10])
    kept = workspace.read(manifest)
    assert len(kept) == 60
    for row in kept.to_pylist():
        assert (row["key"] in required) == (row["rank"] < len(required)), row
        assert (row["weight"] == 1.0) >= (row["key"] in required)
    less = workspace.read(workspace.select(budget=40, entropy_keep=0.5, **lists))
    first = {row["key"] for row in kept.to_pylist() if row["rank"] < 40}
    assert set(less["key"].to_pylist()) == first


def test_by_area_and_by_source(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "areas.csv").write_text("west,south,east,north\n1.2,-1,3.2,100\n")
    (tmp_path / "sources.csv").write_text("source_id\nproduct-007-0\n")
    manifest = workspace.select(exclude=str(tmp_path / "areas.csv"), require=str(tmp_path / "sources.csv"))
    rows = workspace.samples.to_pylist()
    why = reasons(workspace, manifest)
    for row in rows:
        inside = row["shard"][-7:-4] in ("001", "002", "003")
        assert (why[row["key"]] == "excluded") == inside
        assert (why[row["key"]] == "required") == (row["source_id"] == "product-007-0")


def test_lists_that_match_nothing_or_contradict_each_other_are_named(workspace: Workspace, tmp_path: Path) -> None:
    keys = workspace.samples["key"].to_pylist()
    (tmp_path / "none.csv").write_text("key\nnobody\n")
    (tmp_path / "one.csv").write_text(f"key\n{keys[0]}\n")
    manifest = workspace.select(exclude=str(tmp_path / "none.csv"))
    assert manifest.warnings == ["select.exclude: none.csv matches no sample of the archive"]
    both = workspace.select(exclude=str(tmp_path / "one.csv"), require=str(tmp_path / "one.csv"))
    assert "1 samples are in both" in both.warnings[0]
    assert reasons(workspace, both)[keys[0]] == "excluded"
    with pytest.raises(RequestError, match="no such file"):
        workspace.select(exclude=str(tmp_path / "gone.csv"))


# clusters


def test_clusters_are_taken_out_and_weighed_without_a_refit(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "must.csv").write_text(f"key\n{workspace.samples['key'][0].as_py()}\n")
    cluster = dict(zip(workspace.samples["key"].to_pylist(), workspace.samples["cluster"].to_pylist(), strict=True))
    gone = workspace.samples["cluster"][0].as_py()
    plain = workspace.select()
    edited = workspace.select(clusters_exclude=[gone], clusters_weight={3: 4.0, 4: 0.0}, require=f"{tmp_path}/must.csv")
    why = reasons(workspace, edited)
    for key, reason in why.items():
        if reason == "required":
            continue
        assert (reason == "cluster_excluded") == (cluster[key] in (gone, 4))
    of_three = [
        sum(cluster[row["key"]] == 3 for row in workspace.read(manifest).to_pylist()) for manifest in (plain, edited)
    ]
    assert of_three[1] > of_three[0]
    assert list(why.values()).count("required") == 1
    with pytest.raises(RequestError, match="names cluster 6"):
        workspace.select(clusters_exclude=[6])


# entropy


def test_the_entropy_cut_is_exact_and_a_lost_class_is_named(workspace: Workspace) -> None:
    manifest = workspace.select(entropy_keep=0.1, budget=20)
    entropy = workspace.samples["entropy"].to_numpy()
    upper, _ = split_ids(workspace.samples["sample_id"])
    number = len(entropy)
    keep = int(0.1 * number + 0.5)
    passed = np.zeros(number, bool)
    passed[np.lexsort((upper, -entropy))[:keep]] = True
    decided = workspace.decisions(manifest)
    assert [reason != "entropy" for reason in decided["reason"]] == passed.tolist()
    assert {t for t, ok in zip(decided["threshold"], passed, strict=True) if not ok} == {float(entropy[passed].min())}
    label = np.array(workspace.samples["label"].to_pylist())
    gone = {name: f"{(~passed[label == name]).sum()} of {(label == name).sum()}" for name in sorted(set(label))}
    lost = [f"{name} ({gone[name]})" for name in gone if (~passed[label == name]).mean() > 0.9]
    assert 0 < len(lost) < len(gone)
    assert manifest.warnings == [f"the entropy stage takes more than 90% of: {', '.join(lost)}"]


def test_the_scene_of_the_cluster_speaks_where_there_is_no_label(tmp_path: Path) -> None:
    rows = make_workspace(tmp_path, shards=4).samples.num_rows
    workspace = make_workspace(tmp_path, shards=4, label=[None] * rows)
    assert "water (89 of 89)" in workspace.select(entropy_keep=0.1, budget=10).warnings[0]


def test_the_strategy_entropy_takes_the_highest(workspace: Workspace) -> None:
    manifest = workspace.select(strategy="entropy", budget=100)
    entropy = workspace.samples["entropy"].to_numpy()
    upper, _ = split_ids(workspace.samples["sample_id"])
    order = np.lexsort((upper, -entropy))[:100]
    kept = sorted(workspace.read(manifest).to_pylist(), key=lambda row: row["rank"])
    assert [row["sample_id"] for row in kept] == workspace.samples["sample_id"].take(pa.array(order)).to_pylist()
    assert {row["weight"] for row in kept} == {None}
    decided = workspace.decisions(manifest)
    assert manifest.dropped == {"entropy": len(entropy) - 100}
    assert {t for t, reason in zip(decided["threshold"], decided["reason"], strict=True) if reason == "entropy"} == {
        float(entropy[order[-1]])
    }


def test_the_strategy_random_takes_the_lowest_draws_and_weighs_them_alike(workspace: Workspace) -> None:
    kept = workspace.read(workspace.select(strategy="random", budget=100, seed=3))
    u = hash01(workspace.samples["sample_id"], 3)
    order = np.argsort(-u)
    names = workspace.samples["sample_id"].take(pa.array(order[:100])).to_pylist()
    assert [row["sample_id"] for row in sorted(kept.to_pylist(), key=lambda row: row["rank"])] == names
    np.testing.assert_allclose(kept["weight"].to_numpy(), 1 / (1 - u[order[100]]))


def test_precomputed_vectors_have_no_entropy_to_cut_by(tmp_path: Path) -> None:
    rows = make_workspace(tmp_path, shards=3).samples.num_rows
    workspace = make_workspace(tmp_path, shards=3, entropy=[None] * rows)
    assert workspace.read(workspace.select())["entropy"].null_count
    for settings in ({"entropy_keep": 0.5}, {"strategy": "entropy"}):
        with pytest.raises(RequestError, match=f"{rows} of {rows} samples have no entropy"):
            workspace.select(**settings)


def test_rs_prune_keeps_the_nearest_of_every_cluster_and_draws_nothing(workspace: Workspace) -> None:
    manifest = workspace.select(strategy="rs_prune", nearest=0.5, balance=1.0, budget=90)
    decided = workspace.decisions(manifest)
    cluster, distance = np.array(decided["cluster"]), np.array(decided["distance"])
    kept = np.array([decision == "kept" for decision in decided["decision"]])
    for k in range(6):
        members = np.flatnonzero(cluster == k)
        quota = kept[members].sum()
        nearest = members[np.argsort(distance[members])][: -(-quota // 2)]
        assert kept[nearest].all()
    seats, sizes = np.bincount(cluster[kept], minlength=6), np.bincount(cluster, minlength=6)
    assert np.ptp(seats[seats < sizes]) <= 1  # filled like water
    assert {"nearest", "sampled"} <= set(decided["reason"])
    assert set(decided["weight"]) == {None}


# copies


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return with_copies(tmp_path_factory.mktemp("copies"))


def with_copies(folder: Path) -> Workspace:
    """Every tenth sample has the vector of the one before it, in its cluster or the next."""
    samples = make_workspace(folder).samples
    vectors = np.array(samples["embedding"].to_pylist(), np.float32)
    vectors[10::10] = vectors[9:-1:10][: len(vectors[10::10])]
    return make_workspace(folder, embedding=list(vectors.astype(np.float16)))


@pytest.mark.parametrize("rows", [1 << 17, 60])
def test_one_of_each_group_of_copies_stays(copies: Workspace, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "ROWS_A_RANGE", rows)
    neighbours = np.array([[(k + 1) % 6] for k in range(6)], np.int32)
    groups = find_duplicates(copies.samples, neighbours).to_pylist()
    assert len(groups) > 10
    manifest = copies.select(duplicates=True)
    decided = copies.decisions(manifest)
    found = {name: of for name, of in zip(decided["sample_id"], decided["duplicate_of"], strict=True) if of}
    assert found == {group["sample_id"]: group["duplicate_of"] for group in groups}
    assert manifest.dropped["duplicate"] == len(groups)
    assert not set(found) & set(copies.read(manifest)["sample_id"].to_pylist())


def test_a_required_sample_represents_its_group(copies: Workspace, tmp_path: Path) -> None:
    decided = copies.decisions(copies.select(duplicates=True))
    at = decided["reason"].index("duplicate")
    (tmp_path / "must.csv").write_text(f"sample_id\n{decided['sample_id'][at]}\n")
    again = copies.decisions(copies.select(duplicates=True, require=f"{tmp_path}/must.csv"))
    assert again["reason"][at] == "required"
    other = decided["sample_id"].index(decided["duplicate_of"][at])
    assert again["reason"][other] == "duplicate"
    assert again["duplicate_of"][other] == decided["sample_id"][at]


# units


@pytest.mark.parametrize("strategy", ["balanced", "rs_prune", "random", "entropy"])
@pytest.mark.parametrize("rows", [1 << 21, 90])
def test_units_are_kept_or_dropped_whole(
    copies: Workspace, tmp_path: Path, strategy: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "ROWS_A_PARTITION", rows)
    (tmp_path / "out.csv").write_text(f"key\n{copies.samples['key'][7].as_py()}\n")
    (tmp_path / "must.csv").write_text(f"key\n{copies.samples['key'][100].as_py()}\n")
    settings: dict[str, Any] = {
        "strategy": strategy,
        "unit": "source_id",
        "duplicates": True,
        "entropy_keep": 0.9,
        "budget": 150,
        "exclude": f"{tmp_path}/out.csv",
        "require": f"{tmp_path}/must.csv",
    }
    manifest = copies.select(**settings)
    decided = copies.decisions(manifest)
    unit = np.array(copies.samples["source_id"].to_pylist())
    kept = np.array([decision == "kept" for decision in decided["decision"]])
    reason = np.array(decided["reason"])
    rank = np.array([-1 if r is None else r for r in decided["rank"]])
    for name in set(unit):
        assert len(set(kept[unit == name])) == 1
        own = np.sort(rank[unit == name])
        if own[0] >= 0:
            assert own[-1] - own[0] == len(own) - 1
    assert 150 - max(np.unique(unit, return_counts=True)[1]) < manifest.kept <= 150
    assert sorted(rank[kept]) == list(range(manifest.kept))
    assert set(reason[unit == unit[7]]) == {"excluded"}
    assert set(reason[unit == unit[100]]) == {"required"}
    assert rank[unit == unit[100]].max() == (unit == unit[100]).sum() - 1
    edge = int(np.sort([rank[unit == name].max() + 1 for name in set(unit[kept])])[3])
    less = copies.read(copies.select(**{**settings, "budget": edge}))
    first = set(np.array(decided["sample_id"])[kept & (rank < edge)])
    assert set(less["sample_id"].to_pylist()) == first


def test_a_budget_below_the_first_unit_is_refused(workspace: Workspace) -> None:
    with pytest.raises(RequestError, match="comes to 2 samples, fewer than the first source_id has: raise it"):
        workspace.select(unit="source_id", budget=2)


def test_a_unit_must_be_a_column(workspace: Workspace) -> None:
    with pytest.raises(
        RequestError, match="select.unit=place is no column of catalog or tables; choose one of .*source_id"
    ):
        workspace.select(unit="place")


# budgets


def test_a_budget_is_a_share_rounded_to_the_nearest_sample_or_a_count(workspace: Workspace) -> None:
    number = workspace.samples.num_rows
    assert workspace.select(budget=0.1).kept == int(0.1 * number + 0.5)
    assert workspace.select(budget=1).kept == 1
    everything = workspace.select(budget=number)
    assert everything.kept == number
    assert everything.dropped == {}
    assert set(workspace.read(everything)["weight"].to_pylist()) == {1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 10_000}, "select.budget=10000, but the archive has .* lower it"),
        ({"budget": 1e-6}, "is not one sample: raise it"),
        ({"budget": 200, "entropy_keep": 0.1}, "asks for 200 of .* but the entropy stage leaves"),
        ({"budget": 400, "clusters_exclude": [0]}, "select.clusters leave"),
        ({"budget": 100, "strategy": "random", "entropy_keep": 0.1}, "the entropy stage leaves"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_with_its_numbers(
    workspace: Workspace, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        workspace.select(**settings)
    assert "\n" not in str(error.value)


def test_copies_and_required_samples_can_exhaust_a_budget_too(copies: Workspace, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the near-duplicate stage leaves"):
        copies.select(duplicates=True, budget=copies.samples.num_rows - 5)
    (tmp_path / "must.csv").write_text("key\n" + "\n".join(copies.samples["key"].to_pylist()[:30]))
    with pytest.raises(RequestError, match="select.require alone names 30"):
        copies.select(budget=20, require=f"{tmp_path}/must.csv")
