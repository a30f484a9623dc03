"""Selections that the bank's classes guide: the merge with the draw, weights, and the same however rows are spread."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.clustering.classifier import Classifier, fit_classifier
from curation.errors import RequestError
from curation.manifests import draw, partitions
from curation.manifests.explain import explain
from curation.manifests.schema import DECISIONS_SCHEMA, GUIDED_SCHEMA, Manifest
from curation.manifests.verify import verify
from curation.selection.guided import CALM, claims, class_shares, explained, guided_order
from tests.selection_recipes import Workspace, make_workspace, write_clusters

pytestmark = pytest.mark.usefixtures("ray_local")


def guided(folder: Path, **columns: Any) -> Workspace:
    """A bank of ten samples a class, made like the archive's; a third of the archive's clusters is of no class."""
    workspace = make_workspace(folder, **columns)
    write_classifier(workspace)
    return workspace


def write_classifier(workspace: Workspace, least: float = 3.0) -> None:
    x = np.array(workspace.samples["embedding"].to_pylist(), np.float64)
    cluster, random = workspace.samples["cluster"].to_numpy(), np.random.default_rng(3)
    bank = np.concatenate([random.permutation(x[cluster == k])[:10] for k in range(4)])
    bank += random.normal(size=bank.shape) * 0.1
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float16)
    made = fit_classifier(bank, np.repeat([f"class {k}" for k in range(4)], 10), np.full(40, least))
    (workspace.folder / "clusters/c/classifier.npz").write_bytes(made.to_bytes())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return guided(tmp_path_factory.mktemp("workspace"))


def header(workspace: Workspace, manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.folder / manifest.folder / "manifest.json").read_text())["content"]
    return found


def ranks(workspace: Workspace, **settings: Any) -> dict[str, int]:
    kept = workspace.read(workspace.select(**settings))
    return dict(zip(kept["sample_id"].to_pylist(), kept["rank"].to_pylist(), strict=True))


def by_hand(workspace: Workspace, share: float | None, budget: int) -> tuple[list[str], float]:
    """The kept ids in order, by the plainest way to write the method down, and the share that the bank has."""
    rows = workspace.samples
    ids = np.array(rows["sample_id"].to_pylist())
    draw = ranks(workspace, guided=0.0, budget=len(ids))
    made = Classifier.from_bytes((workspace.folder / "clusters/c/classifier.npz").read_bytes())
    known = np.flatnonzero(rows["entropy"].to_numpy() >= made.least_entropy - CALM)
    known = known[np.argsort(ids[known])]
    p = made.probabilities(np.array(rows["embedding"].to_pylist(), np.float16)[known])
    share = explained(p.max(1), made.confidence) if share is None else share
    place = np.full(len(ids), np.nan)
    place[known] = guided_order(p, class_shares(p), np.zeros(len(p), bool), len(p))
    better = np.minimum(*claims(place, np.array([draw[name] for name in ids], float), share))
    order = np.lexsort((ids, rows["cluster"].to_numpy(), better))
    return ids[order[:budget]].tolist(), share


@pytest.mark.parametrize("share", [None, 0.3, 0.9])
def test_it_keeps_what_the_method_says(workspace: Workspace, share: float | None) -> None:
    manifest = workspace.select(guided=share, budget=150)
    expected, used = by_hand(workspace, share, 150)
    kept = workspace.read(manifest).sort_by("rank")
    assert kept["sample_id"].to_pylist() == expected
    told = header(workspace, manifest)["selection"]["guided"]
    assert told["share"] == used
    assert told["classes"] == [f"class {k}" for k in range(4)]
    assert sum(told["class_shares"]) == pytest.approx(1)
    assert verify(manifest.url)["problems"] == []
    assert 0.2 < told["explained"] <= 0.9


def test_every_budget_is_a_prefix(workspace: Workspace) -> None:
    whole = ranks(workspace, guided=None, budget=300)
    assert sorted(whole.values()) == list(range(300))
    for budget in (1, 30, 177):
        assert ranks(workspace, guided=None, budget=budget) == {n: rank for n, rank in whole.items() if rank < budget}


def test_it_is_the_same_however_the_rows_are_spread(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "GUIDED_LIMIT", 100)  # the pieces change the order, so they are the same in both
    first = workspace.select(guided=0.6, budget=200)
    assert header(workspace, first)["selection"]["guided"]["pieces"] > 3
    whole = ranks(workspace, guided=0.6, budget=200)
    assert ranks(workspace, guided=0.6, budget=60) == {name: rank for name, rank in whole.items() if rank < 60}
    other = guided(tmp_path)
    write_clusters(tmp_path / "clusters/c", other.samples, 6, parts=7)
    monkeypatch.setattr(partitions, "ROWS_A_PARTITION", 90)
    monkeypatch.setattr(draw, "RANGES", 2)
    second = other.select(guided=0.6, budget=200)
    assert second.folder == first.folder or other.decisions(second) == workspace.decisions(first)
    assert other.read(second).equals(workspace.read(first))
    assert header(other, second)["selection"] == header(workspace, first)["selection"]


def test_without_guidance_files_are_what_they_were(workspace: Workspace, tmp_path: Path) -> None:
    plain = make_workspace(tmp_path)
    none = plain.select(guided=0.0)
    assert workspace.select(guided=0.0).folder == none.folder
    assert "guided" not in header(plain, none)["selection"]
    quiet = plain.select(guided=None)  # there is no bank
    why = "there is no bank (references.url) with two labels or more"
    assert header(plain, quiet)["selection"]["guided"] == {"share": 0.0, "why_not": why}
    part = "decisions/part-00000.parquet"
    assert (tmp_path / quiet.folder / part).read_bytes() == (tmp_path / none.folder / part).read_bytes()
    assert pq.read_schema(tmp_path / none.folder / part).equals(DECISIONS_SCHEMA)
    with pytest.raises(RequestError, match=r"select.guided=0.5: there is no bank .*; take select.guided=0$"):
        plain.select(guided=0.5)
    units = workspace.select(guided=None, unit="source_id")
    assert header(workspace, units)["selection"]["guided"]["why_not"].startswith("units")
    for wrong in ({"guided": 0.95}, {"guided": 0.5, "strategy": "random"}, {"guided": 0.5, "unit": "source_id"}):
        with pytest.raises(RequestError, match="select.guided="):
            workspace.select(**wrong)


def test_calm_rows_are_never_guided_and_a_bank_without_entropy_guides_nothing(tmp_path: Path) -> None:
    workspace = guided(tmp_path)
    write_classifier(workspace, least=5.0)
    decided = workspace.decisions(workspace.select(guided=0.9, budget=200))
    calm = np.array(decided["entropy"]) < 5.0 - CALM
    known = np.array([name is not None for name in decided["guided_class"]])
    assert (known == ~calm).all()
    assert 0 < calm.sum() < len(calm)
    write_classifier(workspace, least=np.nan)
    manifest = workspace.select(guided=None)
    assert header(workspace, manifest)["selection"]["guided"]["why_not"] == "the bank's samples have no entropy"
    write_classifier(workspace, least=100.0)  # no row is left
    manifest = workspace.select(guided=None)
    assert header(workspace, manifest)["selection"]["guided"]["share"] == 0
    assert ranks(workspace, guided=None) == ranks(workspace, guided=0.0)


def test_required_and_excluded_rows_and_groups(workspace: Workspace, tmp_path: Path) -> None:
    keys = workspace.samples["key"].to_pylist()
    (tmp_path / "must.csv").write_text("key\n" + "\n".join(keys[::40]))
    (tmp_path / "not.csv").write_text("key\n" + "\n".join(keys[5::40]))
    settings = {"require": f"{tmp_path}/must.csv", "exclude": f"{tmp_path}/not.csv", "guided": 0.5, "by": ["month"]}
    manifest = workspace.select(**settings, budget=120)
    decided = workspace.decisions(manifest)
    assert verify(manifest.url)["problems"] == []
    reason, rank = np.array(decided["reason"]), np.array([-1 if r is None else r for r in decided["rank"]])
    assert (reason[::40] == "required").all()
    assert sorted(rank[::40]) == list(range(len(rank[::40])))
    assert (reason[5::40] == "excluded").all()
    assert manifest.kept == 120
    priority, threshold = (np.array(decided[name], float) for name in ("priority", "threshold"))
    assert not (priority >= threshold)[reason == "sampled"].any()  # NaN: its group refused none
    assert (priority[reason == "quota"] >= threshold[reason == "quota"]).all()
    assert np.isnan(threshold[reason == "guided"]).all()
    left = np.isin(reason, ["sampled", "required", "guided", "quota"])
    for group in set(decided["group"]):  # the draw went on in each group
        own = left & (np.array(decided["group"]) == group)
        assert (reason[own] == "quota").any()
    whole = ranks(workspace, **settings, budget=250)
    less = ranks(workspace, **settings, budget=120)
    assert less == {name: rank for name, rank in whole.items() if rank < 120}


def test_decisions_say_who_claimed_and_explain_says_it_in_words(workspace: Workspace) -> None:
    manifest = workspace.select(guided=0.5, budget=100)
    path = workspace.folder / manifest.folder / "decisions/part-00000.parquet"
    assert pq.read_schema(path).equals(pa.unify_schemas([DECISIONS_SCHEMA, GUIDED_SCHEMA]))
    decided = workspace.decisions(manifest)
    reason = decided["reason"]
    assert reason.count("guided") + reason.count("sampled") == 100
    assert reason.count("guided") >= 50
    at = reason.index("guided")
    assert decided["weight"][at] == 1
    told = explain(manifest.url, decided["sample_id"][at])["why"]
    assert told == (
        f"kept: by the bank it is {decided['guided_class'][at]} (probability {decided['guided_probability'][at]:.2g}), "
        f"and its turn among the guided, {decided['guided_place'][at]:.6g} from 0, came within the budget"
    )
    names = [i for i, name in enumerate(decided["guided_class"]) if name]
    at = next(i for i in names if reason[i] == "sampled")
    assert "; by the bank it is class " in explain(manifest.url, decided["sample_id"][at])["why"]
    at = next(i for i in names if reason[i] == "quota")
    assert explain(manifest.url, decided["sample_id"][at])["why"].endswith(", but its turn did not come")


def test_weights_estimate_how_many_rows_reached_the_draw(workspace: Workspace) -> None:
    sums, of_field = [], []
    truth = (np.array(workspace.samples["label"].to_pylist()) == "field").sum()
    for seed in range(16):
        kept = workspace.read(workspace.select(seed=seed, guided=0.5, budget=150))
        weight = kept["weight"].to_numpy()
        sums.append(weight.sum())
        of_field.append(weight[np.array(kept["label"].to_pylist()) == "field"].sum())
    for found, expected in ((sums, workspace.samples.num_rows), (of_field, truth)):
        error = np.std(found, ddof=1) / len(found) ** 0.5
        assert abs(np.mean(found) - expected) < 3 * error
        assert error < 0.06 * expected
