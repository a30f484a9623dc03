"""Near-duplicates by place in a manifest: neighbouring scenes, many dates, footprints that are bad."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.errors import RequestError
from curation.manifests import partitions
from curation.manifests.explain import explain
from curation.selection.duplicates import quality
from curation.selection.footprints import boxes
from curation.selection.places import Rule, Tiles, find_places
from curation.selection.sampling import join_ids, split_ids
from curation.selection.settings import PlaceConfig, SelectConfig
from tests.selection_recipes import Workspace, make_workspace

SIDE = 0.02  # degrees
BEGIN = datetime.datetime(2021, 1, 1, 10, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Tiles of a 6 x 6 grid at half their size, across the antimeridian, on many days, spread over all shards."""
    folder = tmp_path_factory.mktemp("workspace")
    number = make_workspace(folder).samples.num_rows
    random = np.random.default_rng(2)
    column, row = random.integers(0, 6, (2, number)) * SIDE / 2
    west, south = 179.97 + column, 10 + row
    footprint = [
        {"west": w, "south": s, "east": w + SIDE, "north": s + SIDE}
        for w, s in zip(np.where(west >= 180, west - 360, west).tolist(), south.tolist(), strict=True)
    ]
    for box in footprint:
        box["east"] -= 360 * (box["east"] > 180)
    days = random.integers(0, 500, number).tolist()
    when = [None if day % 10 == 0 else BEGIN + datetime.timedelta(days=day) for day in days]
    footprint[5] = None  # type: ignore[call-overload]
    valid = (random.integers(1, 5, number) / 4).tolist()
    return make_workspace(folder, footprint=footprint, time=when, valid_fraction=valid)


def tiles_of(samples: pa.Table, first: list[bool] | None = None) -> Tiles:
    upper, lower = split_ids(samples["sample_id"])
    when = [np.iinfo(np.int64).min if t is None else int(t.timestamp() * 1e6) for t in samples["time"].to_pylist()]
    table = samples.append_column("first", pa.array(first or [False] * len(samples)))
    tiles = Tiles(upper, lower, boxes(samples["footprint"]), np.array(when), quality(table))
    return tiles.take(np.flatnonzero(~np.isnan(tiles.box[:, 0])))


def by_place(samples: pa.Table, rule: Rule, **extra: Any) -> dict[str, str]:
    found = find_places(tiles_of(samples, **extra), rule)
    return dict(zip(*(join_ids(*column.T).to_pylist() for column in (found.ids, found.of)), strict=True))


def without(samples: pa.Table, ids: Any) -> pa.Table:
    return samples.filter(pa.compute.invert(pa.compute.is_in(samples["sample_id"], value_set=pa.array(list(ids)))))


def dropped(workspace: Workspace, manifest: Any) -> dict[str, str]:
    decided = workspace.decisions(manifest)
    rows = zip(decided["sample_id"], decided["reason"], decided["duplicate_of"], strict=True)
    return {name: of for name, reason, of in rows if reason == "place"}


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("rows", [1 << 19, 40])
@pytest.mark.parametrize("keep", [None, 2, "season"])
def test_of_a_place_the_best_stay(
    workspace: Workspace, keep: Any, rows: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(partitions, "ROWS_A_PARTITION", rows)
    manifest = workspace.select(budget=15, place=PlaceConfig(0.5, 3, keep))
    copies = by_place(workspace.samples, Rule(0.5, days=3))
    assert 20 < len(copies) < workspace.samples.num_rows
    expected, told = dict(copies), {"copies": len(copies)}
    if keep is not None:
        rule = Rule(0.5, season=True) if keep == "season" else Rule(0.5, best=2)
        dates = by_place(without(workspace.samples, copies), rule)
        assert len(dates) > 50
        expected, told = expected | dates, told | {"dates": len(dates)}
    assert dropped(workspace, manifest) == expected
    assert manifest.dropped["place"] == len(expected)
    content = workspace_header(workspace, manifest)
    assert content["selection"]["place"] == told
    assert manifest.warnings == [
        f"select.place: 1 of {workspace.samples.num_rows} samples have no footprint and are of no place"
    ]


def workspace_header(workspace: Workspace, manifest: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace.folder / manifest.folder / "manifest.json").read_text())["content"]
    return content


@pytest.mark.usefixtures("ray_local")
def test_a_required_sample_stands_for_its_place_and_explain_tells(workspace: Workspace, tmp_path: Path) -> None:
    before = dropped(workspace, workspace.select(budget=15, place=PlaceConfig(0.5, 3)))
    name, of = min(before.items())
    (tmp_path / "must.csv").write_text(f"sample_id\n{name}\n")
    manifest = workspace.select(budget=15, place=PlaceConfig(0.5, 3), require=f"{tmp_path}/must.csv", duplicates=True)
    after = dropped(workspace, manifest)
    first = [one == name for one in workspace.samples["sample_id"].to_pylist()]
    assert after == by_place(workspace.samples, Rule(0.5, days=3), first=first)
    assert after[of] == name
    told = explain(manifest.url, of)
    assert told["why"] == f"dropped: it shows the place of {name}, which is better"
    assert (told["stands_for_it"]["by"], told["stands_for_it"]["sample_id"]) == ("place", name)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("strategy", ["balanced", "rs_prune", "entropy"])
def test_a_place_is_kept_or_dropped_whole(
    workspace: Workspace, strategy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(partitions, "ROWS_A_PARTITION", 90)
    names = workspace.samples["sample_id"].to_pylist()
    (tmp_path / "must.csv").write_text(f"sample_id\n{names[50]}\n")
    settings = {"place": PlaceConfig(0.5, 3, "unit"), "strategy": strategy, "require": f"{tmp_path}/must.csv"}
    manifest = workspace.select(budget=150, **settings)
    first = [name == names[50] for name in names]
    copies = by_place(workspace.samples, Rule(0.5, days=3), first=first)
    left = without(workspace.samples, copies)
    first = [name == names[50] for name in left["sample_id"].to_pylist()]
    unit = {name: name for name in left["sample_id"].to_pylist()} | by_place(left, Rule(0.5), first=first)
    decided = workspace.decisions(manifest)
    kept = {
        name for name, decision in zip(decided["sample_id"], decided["decision"], strict=True) if decision == "kept"
    }
    assert dropped(workspace, manifest) == copies
    whole = [{name in kept for name in unit if unit[name] == place} for place in set(unit.values())]
    assert all(len(fates) == 1 for fates in whole)
    assert {True} in whole and {False} in whole
    assert kept <= set(unit)
    assert workspace_header(workspace, manifest)["selection"]["place"]["units"] == len(whole)
    required = {
        name for name, reason in zip(decided["sample_id"], decided["reason"], strict=True) if reason == "required"
    }
    assert required == {name for name in unit if unit[name] == unit[names[50]]}


@pytest.mark.usefixtures("ray_local")
def test_footprints_of_whole_scenes_are_warned_of_and_none_refused(tmp_path: Path) -> None:
    number = make_workspace(tmp_path).samples.num_rows
    scene = [{"west": 1.0 * (k % 3), "south": 0.0, "east": k % 3 + 1.0, "north": 1.0} for k in range(number)]
    when = [BEGIN + datetime.timedelta(days=2 * k) for k in range(number)]  # two tiles of a date are not asked for
    manifest = make_workspace(tmp_path, footprint=scene, time=when).select(place=PlaceConfig(0.5))
    assert manifest.warnings == [
        f"select.place: {number} of {number} samples have exactly the footprint of more than 100 others: "
        "where it is a whole scene's, different tiles fall as one place, and select.place.overlap=null is right"
    ]
    nowhere = make_workspace(tmp_path, footprint=[None] * number)
    with pytest.raises(RequestError, match=f"needs footprints, but none of {number} samples has one"):
        nowhere.select(place=PlaceConfig(0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 0}, "select.place.overlap must lie in"),
        ({"overlap": 1.5}, "select.place.overlap must lie in"),
        ({"overlap": 0.5, "days": 0}, "select.place.days=0: give a number of days above 0"),
        ({"overlap": 0.5, "keep": 0}, "select.place.keep=0: choose season, unit, null, or how many"),
        ({"overlap": 0.5, "keep": "best"}, "select.place.keep=best: choose"),
        ({"keep": 3}, "select.place.keep=3 needs select.place.overlap"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PlaceConfig(**settings)


def test_a_sample_belongs_to_one_unit() -> None:
    with pytest.raises(RequestError, match="select.unit=source_id and select.place.keep=unit: .* take one of them"):
        SelectConfig(unit="source_id", place=PlaceConfig(0.5, keep="unit"))
