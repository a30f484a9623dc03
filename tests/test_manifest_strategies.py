"""Every strategy over a catalog: what it keeps by the plainest way to write it down, nested, and the same anywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.errors import RequestError
from curation.manifests import build
from curation.manifests.explain import explain
from curation.manifests.verify import verify
from curation.selection.greedy import GREEDY, cosines
from curation.selection.sampling import hash01
from curation.selection.strategies import STRATEGIES
from curation.selection.tree import Tree
from tests.selection_recipes import Workspace, make_workspace, write_clusters

pytestmark = pytest.mark.usefixtures("ray_local")

FREE = ["stratified", "hierarchical", "k_center", "facility_location", "semdedup"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def preset(strategy: str, **more: Any) -> dict[str, Any]:
    balance = 0.0 if strategy == "stratified" else 1.0
    return {"strategy": strategy, "balance": balance, "representativeness": 0.0, **more}


def ranks(workspace: Workspace, **settings: Any) -> dict[str, int]:
    kept = workspace.read(workspace.select(**settings))
    return dict(zip(kept["sample_id"].to_pylist(), kept["rank"].to_pylist(), strict=True))


@pytest.mark.parametrize("strategy", FREE)
def test_it_is_the_same_however_the_rows_are_spread_and_every_budget_is_a_prefix(
    workspace: Workspace, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = workspace.select(**preset(strategy, budget=200))
    decided = workspace.decisions(manifest)
    assert verify(manifest.url)["problems"] == []
    assert sum(manifest.dropped.values()) + manifest.kept == manifest.samples
    all_ranks = ranks(workspace, **preset(strategy, budget=200))
    assert sorted(all_ranks.values()) == list(range(200))
    if STRATEGIES[strategy].nested:
        less = ranks(workspace, **preset(strategy, budget=77))
        assert less == {name: rank for name, rank in all_ranks.items() if rank < 77}
    other = make_workspace(tmp_path)
    write_clusters(tmp_path / "clusters/c", other.samples, 6, parts=7)
    monkeypatch.setattr(build, "ROWS_A_PARTITION", 90)
    monkeypatch.setattr(build, "ROWS_WITH_VECTORS", 60)
    assert other.decisions(other.select(**preset(strategy, budget=200))) == decided


@pytest.mark.parametrize("strategy", list(GREEDY))
def test_greedy_orders_of_clusters_merge_by_their_figure(workspace: Workspace, strategy: str) -> None:
    rows, rule = workspace.samples.to_pydict(), GREEDY[strategy]
    cluster, ids = np.array(rows["cluster"]), np.array(rows["sample_id"])
    x, distance = np.array(rows["embedding"], np.float16), np.array(rows["distance"])
    figure = np.empty(len(ids))
    for k in range(6):
        own = np.flatnonzero(cluster == k)[np.argsort(ids[cluster == k])]
        figure[own] = rule.order(cosines(x[own]), np.zeros(len(own), bool), distance[own], 200)
    best = np.lexsort((ids, cluster, np.nan_to_num(-rule.sign * figure, nan=np.inf)))[:200]
    assert ranks(workspace, **preset(strategy, budget=200)) == {ids[i]: rank for rank, i in enumerate(best)}


def test_levels_of_clusters_share_seats_from_the_top(workspace: Workspace) -> None:
    rows = workspace.samples.to_pydict()
    cluster, ids = np.array(rows["cluster"]), np.array(rows["sample_id"])
    sizes = np.bincount(cluster, minlength=6)
    tree, draw = Tree(sizes, [np.arange(6) % 2]), -np.log(hash01(workspace.samples["sample_id"], 0))
    seats = []
    for k, quota in enumerate(tree.quotas(150)):
        own = np.flatnonzero(cluster == k)
        chosen = own[np.argsort(draw[own])][:quota]
        place = tree.place(np.full(quota, k), np.arange(quota))
        seats += list(zip(place.tolist(), ids[chosen].tolist(), strict=True))
    found = workspace.select(**preset("hierarchical", budget=150))
    kept = workspace.read(found).to_pylist()
    assert [row["sample_id"] for row in sorted(kept, key=lambda row: row["rank"])] == [
        name for _, name in sorted(seats)
    ]
    quota, weight = tree.quotas(150), np.array([row["weight"] for row in kept])
    for k in range(6):  # the weights of a cluster's kept samples estimate its size
        own = np.array([row["cluster"] == k for row in kept])
        assert own.sum() == quota[k]
        assert weight[own].sum() == pytest.approx(sizes[k], rel=0.5)


def test_large_clusters_are_split_and_the_header_says_into_what(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LIMIT", 40)
    manifest = workspace.select(**preset("facility_location", budget=100))
    header = (workspace.folder / manifest.folder / "manifest.json").read_text()
    sizes = np.bincount(workspace.samples["cluster"].to_numpy(), minlength=6)
    assert f'"pieces": {(-(-sizes // 40)).sum()}' in header
    assert manifest.kept == 100


@pytest.mark.parametrize("strategy", FREE)
def test_required_samples_go_first_and_excluded_ones_never(workspace: Workspace, tmp_path: Path, strategy: str) -> None:
    keys = workspace.samples["key"].to_pylist()
    (tmp_path / "out.csv").write_text("key\n" + "\n".join(keys[::10]))
    (tmp_path / "must.csv").write_text("key\n" + "\n".join(keys[5:300:30]))
    lists = {"exclude": f"{tmp_path}/out.csv", "require": f"{tmp_path}/must.csv"}
    decided = workspace.decisions(workspace.select(**preset(strategy, budget=60, **lists)))
    found = dict(zip(decided["key"], zip(decided["reason"], decided["rank"], strict=True), strict=True))
    assert {found[key][0] for key in keys[::10]} == {"excluded"}
    assert sorted(found[key][1] for key in set(keys[5:300:30]) - set(keys[::10])) == list(
        range(len(set(keys[5:300:30]) - set(keys[::10])))
    )
    assert sum(rank is not None for _, rank in found.values()) == 60


@pytest.mark.parametrize("strategy", list(GREEDY))
def test_decisions_and_explain_tell_the_figure_that_decided(workspace: Workspace, strategy: str) -> None:
    header = {"content": {"config": {"select": {"strategy": strategy}}, "catalog": "cat"}, "provenance": {"roots": {}}}
    manifest = workspace.select(header=header, **preset(strategy, budget=100))
    decided = workspace.decisions(manifest)
    sign = GREEDY[strategy].sign
    score, threshold = np.array(decided["score"], float), np.array(decided["threshold"], float)
    kept = np.array([decision == "kept" for decision in decided["decision"]])
    known = ~np.isnan(score)
    np.testing.assert_array_equal(np.array(decided["priority"], float)[known], -sign * score[known])
    assert len(set(threshold)) == 1
    assert (-sign * score[kept] <= threshold[kept]).all()
    assert (-sign * score[known & ~kept] >= threshold[known & ~kept]).all()
    assert set(decided["weight"]) == {None}
    for rows in (kept, known & ~kept):
        at = int(np.flatnonzero(rows)[0])
        assert f"{score[at]:.6g}" in explain(manifest.url, decided["sample_id"][at])["why"]


def test_semdedup_tells_the_epsilon_that_the_budget_set(workspace: Workspace) -> None:
    manifest = workspace.select(**preset("semdedup", budget=100))
    decided = workspace.decisions(manifest)
    kept = [score for score, rank in zip(decided["score"], decided["rank"], strict=True) if rank is not None]
    assert f'"epsilon": {1 - max(kept)}' in (workspace.folder / manifest.folder / "manifest.json").read_text()


@pytest.mark.parametrize("strategy", ["k_center", "facility_location", "semdedup"])
def test_what_goes_by_single_samples_refuses_units_groups_and_weights(strategy: str, workspace: Workspace) -> None:
    for settings, message in (
        ({"unit": "source_id"}, "cannot keep units whole: take one of balanced"),
        ({"by": ["season"]}, "no use for select.by"),
        ({"clusters_weight": {1: 2.0}}, "no use for select.clusters.weight"),
    ):
        with pytest.raises(RequestError, match=message):
            workspace.select(**preset(strategy, **settings))


def test_hierarchical_keeps_units_whole(workspace: Workspace) -> None:
    manifest = workspace.select(**preset("hierarchical", unit="source_id", budget=150))
    decided, unit = workspace.decisions(manifest), np.array(workspace.samples["source_id"].to_pylist())
    kept = np.array([decision == "kept" for decision in decided["decision"]])
    assert all(len(set(kept[unit == name])) == 1 for name in set(unit))
    assert 140 < manifest.kept <= 150
