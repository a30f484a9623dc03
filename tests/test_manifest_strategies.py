"""Every strategy over a catalog: what it keeps by the plainest way to write it down, nested, and the same anywhere."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.archive.tables import open_tables
from curation.clustering.kmeans import fit_kmeans
from curation.clustering.points import Rows
from curation.errors import RequestError
from curation.manifests import draw, partitions
from curation.manifests.explain import explain
from curation.manifests.verify import verify
from curation.selection.ccs import ccs
from curation.selection.greedy import GREEDY, cosines
from curation.selection.importance import sims
from curation.selection.prototypes import margins
from curation.selection.sampling import hash01, split_ids
from curation.selection.settings import CcsConfig, SimsConfig
from curation.selection.strategies import STRATEGIES
from curation.selection.tree import Tree
from tests.selection_recipes import Workspace, make_workspace, write_clusters, write_scores

pytestmark = pytest.mark.usefixtures("ray_local")

FREE = ["stratified", "hierarchical", "k_center", "facility_location", "semdedup"]
LABELLED = ["oracle", "margin", "el2n", "ccs", "sims"]
SCORE = {"el2n": "el2n", "ccs": "aum", "sims": "sim"}


def made(folder: Path) -> Workspace:
    """Every ninth sample has no label, hence no score."""
    labels = make_workspace(folder).samples["label"].to_pylist()
    labels[::9] = [None] * len(labels[::9])
    workspace = make_workspace(folder, label=labels)
    scored(workspace)
    return workspace


def scored(workspace: Workspace) -> None:
    random = np.random.default_rng(11)
    columns = {name: random.gamma(2, size=workspace.samples.num_rows) for name in SCORE.values()}
    unknown = workspace.samples["label"].is_null().to_numpy()
    write_scores(workspace, **{name: np.where(unknown, np.nan, column) for name, column in columns.items()})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return made(tmp_path_factory.mktemp("workspace"))


def preset(strategy: str, **more: Any) -> dict[str, Any]:
    balance = 0.0 if strategy == "stratified" else 1.0
    more = {"score": SCORE.get(strategy, "sim"), **more}
    return {"strategy": strategy, "balance": balance, "representativeness": 0.0, **more}


def ranks(workspace: Workspace, **settings: Any) -> dict[str, int]:
    kept = workspace.read(workspace.select(**settings))
    return dict(zip(kept["sample_id"].to_pylist(), kept["rank"].to_pylist(), strict=True))


@pytest.mark.parametrize("strategy", [*FREE, *LABELLED])
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
    other = made(tmp_path)
    write_clusters(tmp_path / "clusters/c", other.samples, 6, parts=7)
    scored(other)
    monkeypatch.setattr(partitions, "ROWS_A_PARTITION", 90)
    monkeypatch.setattr(draw, "ROWS_WITH_VECTORS", 60)
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
    monkeypatch.setattr(draw, "LIMIT", 40)
    manifest = workspace.select(**preset("facility_location", budget=100))
    header = (workspace.folder / manifest.folder / "manifest.json").read_text()
    sizes = np.bincount(workspace.samples["cluster"].to_numpy(), minlength=6)
    assert f'"pieces": {(-(-sizes // 40)).sum()}' in header
    assert manifest.kept == 100
    kept = workspace.read(workspace.select(**preset("margin", budget=90)))  # classes are split likewise
    assert sorted(Counter(kept["label"].to_pylist()).values()) == [30, 30, 30]


@pytest.mark.parametrize("strategy", [*FREE, *LABELLED])
def test_required_samples_go_first_and_excluded_ones_never(workspace: Workspace, tmp_path: Path, strategy: str) -> None:
    keys = workspace.samples["key"].to_pylist()
    out, must = keys[::10], keys[6:300:30]  # the second of these has no label
    (tmp_path / "out.csv").write_text("key\n" + "\n".join(out))
    (tmp_path / "must.csv").write_text("key\n" + "\n".join(must))
    lists = {"exclude": f"{tmp_path}/out.csv", "require": f"{tmp_path}/must.csv"}
    decided = workspace.decisions(workspace.select(**preset(strategy, budget=60, **lists)))
    found = dict(zip(decided["key"], zip(decided["reason"], decided["rank"], strict=True), strict=True))
    assert {found[key][0] for key in out} == {"excluded"}
    assert sorted(found[key] for key in must) == [("required", rank) for rank in range(len(must))]
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


# by labels and scores


def labelled(workspace: Workspace, column: str) -> tuple[np.ndarray, ...]:
    """Ids and a score of the samples that have one, the words of the ids, and class codes."""
    table = workspace.samples.filter(workspace.samples["label"].is_valid())
    values = pq.read_table(workspace.folder / "scores/s").to_pydict()
    known = dict(
        zip(
            values["sample_id"],
            zip(values[column], values[f"{column}_rank"], values[f"{column}_class_rank"], strict=True),
            strict=True,
        )
    )
    ids = table["sample_id"].to_pylist()
    value, rank, class_rank = np.array([known[name] for name in ids], np.float64).T
    classes = np.unique(table["label"].to_pylist(), return_inverse=True)[1]
    return np.array(ids), value, rank, class_rank, classes, *split_ids(table["sample_id"])


def test_the_oracle_takes_as_many_of_each_class_and_no_unlabelled(workspace: Workspace) -> None:
    manifest = workspace.select(**preset("oracle", budget=90))
    kept = workspace.read(manifest)
    assert sorted(Counter(kept["label"].to_pylist()).items()) == [("field", 30), ("town", 30), ("water", 30)]
    assert manifest.dropped["unscored"] == workspace.samples["label"].null_count
    draw = dict(zip(workspace.samples["sample_id"].to_pylist(), hash01(workspace.samples["sample_id"], 0), strict=True))
    decided = workspace.decisions(manifest)
    for name in ("field", "town", "water"):
        own = [i for i, label in enumerate(workspace.samples["label"].to_pylist()) if label == name]
        best = sorted(own, key=lambda i: -draw[decided["sample_id"][i]])[:30]
        assert {i for i in own if decided["rank"][i] is not None} == set(best)


def test_classes_may_stand_in_a_table(workspace: Workspace, tmp_path: Path) -> None:
    keys = workspace.samples["key"].to_pylist()
    rows = [f"{key},{'ab'[i % 5 == 0]}" for i, key in enumerate(keys[:200])]
    (tmp_path / "classes.csv").write_text("\n".join(["name,kind", *rows]))
    tables = open_tables([{"path": f"{tmp_path}/classes.csv", "key": "name", "on": "key"}])
    manifest = workspace.select(tables=tables, label="kind", **preset("oracle", budget=40))
    kept = {keys.index(key) for key in workspace.read(manifest)["key"].to_pylist()}
    assert max(kept) < 200 and sum(i % 5 == 0 for i in kept) == 20
    assert manifest.dropped["unscored"] == len(keys) - 200
    with pytest.raises(RequestError, match="score.label=sort is no column of catalog or tables"):
        workspace.select(tables=tables, label="sort", **preset("oracle"))


def test_el2n_takes_the_hardest_or_the_easiest(workspace: Workspace) -> None:
    ids, value, *_ = labelled(workspace, "el2n")
    for hard, sign in ((True, -1), (False, 1)):
        found = ranks(workspace, **preset("el2n", budget=100, hard=hard))
        assert sorted(found, key=lambda name: found[name]) == ids[np.argsort(sign * value)[:100]].tolist()


def test_ccs_is_the_published_procedure(workspace: Workspace) -> None:
    ids, value, _, _, _, upper, lower = labelled(workspace, "aum")
    for budget, config in ((60, CcsConfig()), (200, CcsConfig(beta=0.1, strata=7))):
        found = ranks(workspace, **preset("ccs", budget=budget, ccs=config))
        kept = ccs(upper, lower, 0, -value, budget, beta=config.beta, strata=config.strata)
        assert set(found) == set(ids[kept])


def test_ccs_tells_how_hard_is_too_hard_and_refuses_a_share_that_leaves_too_little(workspace: Workspace) -> None:
    header = {"content": {"config": {"select": preset("ccs")}, "catalog": "cat"}, "provenance": {"roots": {}}}
    manifest = workspace.select(header=header, **preset("ccs", budget=60))
    decided = workspace.decisions(manifest)
    ids, value, *_ = labelled(workspace, "aum")
    limit = np.sort(value)[round(0.3 * len(ids))]  # a low margin is hard
    assert {t for t, why in zip(decided["threshold"], decided["reason"], strict=True) if why == "hard"} == {limit}
    at = decided["reason"].index("hard")
    why = explain(manifest.url, decided["sample_id"][at])["why"]
    assert f"its aum {decided['score'][at]:.6g} is beyond {limit:.6g}" in why
    with pytest.raises(RequestError, match="but select.ccs.beta=0.3 leaves"):
        workspace.select(**preset("ccs", budget=len(ids) - 10))


def test_sims_draws_its_halves_by_ranks_within_classes_and_overall(workspace: Workspace) -> None:
    ids, _, rank, class_rank, classes, upper, lower = labelled(workspace, "sim")
    for budget, config in ((60, SimsConfig()), (300, SimsConfig(low=0.2, high=0.9, sigma=0.1, class_share=0.3))):
        found = ranks(workspace, **preset("sims", budget=budget, sims=config))
        kept = sims(upper, lower, 0, rank, class_rank, classes, budget, **dataclasses.asdict(config))
        assert set(found) == set(ids[kept])
    manifest = workspace.select(**preset("sims", budget=60))
    decided = workspace.decisions(manifest)
    kept = np.array([decision == "kept" for decision in decided["decision"]])
    assert (np.array(decided["priority"], float)[kept] < np.array(decided["threshold"], float)[kept]).all()
    assert '"nested": false' in (workspace.folder / manifest.folder / "manifest.json").read_text()


def test_margin_takes_the_best_prototype_of_each_cluster_of_a_class(workspace: Workspace) -> None:
    table = workspace.samples
    found = ranks(workspace, **preset("margin", budget=30))
    x, ids = np.array(table["embedding"].to_pylist(), np.float16), np.array(table["sample_id"].to_pylist())
    expected = set()
    for name in ("field", "town", "water"):
        own = np.flatnonzero(np.array(table["label"].to_pylist()) == name)
        own = own[np.argsort(ids[own])]
        fit = fit_kmeans(Rows({0: lambda own=own: x[own]}, 0), 10, 0, spherical=False)
        cluster, margin = margins(x[own], fit.centroids, 1.0)
        expected |= {ids[own[cluster == k][np.argmax(margin[cluster == k])]] for k in range(10)}
    assert set(found) == expected


@pytest.mark.parametrize("strategy", LABELLED)
def test_an_archive_without_labels_is_refused_with_the_mend(tmp_path: Path, strategy: str) -> None:
    rows = make_workspace(tmp_path, shards=2, rows=10, clusters=2).samples.num_rows
    workspace = make_workspace(tmp_path, 2, 10, 2, label=[None] * rows)
    scored(workspace)
    with pytest.raises(RequestError, match="needs labels, but by score.label=label none of .* take a strategy that"):
        workspace.select(**preset(strategy))


def test_no_label_is_looked_at_where_none_is_needed(tmp_path: Path) -> None:
    for strategy in FREE:
        found = []
        for name in ("a", "b"):
            workspace = make_workspace(tmp_path, 3, 30, 3)
            workspace = make_workspace(tmp_path, 3, 30, 3, label=[name] * workspace.samples.num_rows)
            found.append(ranks(workspace, **preset(strategy)))
        assert found[0] == found[1]


@pytest.mark.parametrize("strategy", ["facility_location", "hierarchical", "margin", "sims"])
def test_clusters_and_classes_may_be_empty_and_budgets_may_take_all(workspace: Workspace, strategy: str) -> None:
    manifest = workspace.select(**preset(strategy, clusters_exclude=[0, 5], budget=20))
    assert manifest.kept == 20
    left = manifest.samples - sum(count for why, count in manifest.dropped.items() if why != "quota")
    everything = workspace.select(**preset(strategy, clusters_exclude=[0, 5], budget=left))
    assert everything.kept == left
    ranked = workspace.read(everything)["rank"].to_pylist()
    assert sorted(ranked) == list(range(left))


@pytest.mark.parametrize("strategy", ["facility_location", "k_center", "semdedup", "margin"])
def test_copies_of_one_vector_do_no_harm(tmp_path: Path, strategy: str) -> None:
    rows = make_workspace(tmp_path, 3, 30, 2).samples.num_rows
    workspace = make_workspace(tmp_path, 3, 30, 2, embedding=[np.eye(8)[0].astype(np.float16)] * rows)
    for budget in (10, rows - 1):
        assert workspace.select(**preset(strategy, budget=budget)).kept == budget


@pytest.mark.parametrize("strategy", [*GREEDY, *LABELLED])
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
