"""A selection that goes on from a parent: what it decides anew, what stays, and what it writes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from curation.clustering.assign import SCHEMA, part_of
from curation.manifests.again import Again, Piece
from curation.manifests.build import select
from curation.manifests.chain import decision_parts, read_part, referenced
from curation.manifests.drift import Spread
from curation.manifests.explain import explain
from curation.manifests.schema import DECISIONS_SCHEMA, Manifest
from curation.manifests.verify import verify
from curation.storage import Folder
from tests.selection_recipes import HEADER, make_settings, make_workspace

pytestmark = pytest.mark.usefixtures("ray_local")

PARTS = 3
OLD = 9  # shards of the first night; three more come later
OF_A_KIND = ("balanced", "stratified", "random", "rs_prune", "hierarchical", "facility_location", "oracle")


class Nights:
    """A workspace whose archive grows, under the clusters of its first night."""

    def __init__(self, folder: Path, **columns: Any) -> None:
        self.full = make_workspace(folder / "full", **columns)
        old = {name: values[: self.rows_of(OLD)] for name, values in columns.items()}
        self.base = make_workspace(folder / "base", shards=OLD, parts=PARTS, **old)
        shutil.copytree(folder / "full/catalog", folder / "base/catalog", dirs_exist_ok=True)
        self.folder = Folder(str(folder / "base"))
        self.first = self.full_names()[:OLD]
        self.assign(self.first)

    def rows_of(self, shards: int) -> int:
        numbers = pc.cast(pc.utf8_slice_codeunits(pc.utf8_rtrim(self.full.samples["shard"], ".tar"), -3), pa.int64())
        return int(pc.sum(pc.less(numbers, shards)).as_py())

    def full_names(self) -> list[str]:
        names = self.full.samples["shard"].unique().to_pylist()
        return sorted(names, key=lambda name: name[-7:])

    def assign(self, shards: list[str]) -> None:
        """The first night's assignments, in the parts that the shards' hashes say."""
        for part in range(PARTS):
            table = self.assigned([name for name in shards if part_of(name, PARTS) == part])
            pq.write_table(table, self.base.folder / f"clusters/c/assignments/part-{part:05d}.parquet")

    def assigned(self, shards: list[str]) -> pa.Table:
        rows = self.full.samples.filter(pc.is_in(self.full.samples["shard"], value_set=pa.array(shards, pa.string())))
        return rows.select(SCHEMA.names).cast(SCHEMA).sort_by([("shard", "ascending"), ("index", "ascending")])

    def start(self, **settings: Any) -> Manifest:
        return self.base.select(**settings)

    def go_on(
        self,
        parent: Manifest,
        added: list[str],
        gone: Sequence[str] = (),
        grow: bool = False,
        most: int = 12,
        **settings: Any,
    ) -> Manifest:
        folder = self.folder.child(parent.folder)
        content = json.loads(folder.read("manifest.json"))["content"]
        parts = decision_parts(folder)
        new = [self.assigned([name for name in added if part_of(name, PARTS) == part]) for part in range(PARTS)]
        lost = [frozenset(name for name in gone if part_of(name, PARTS) == part) for part in range(PARTS)]
        pieces = [
            Piece(tuple(files), names, bool(names) or len(files) >= most)
            for files, names in zip(parts, lost, strict=True)
        ]
        spread = Spread.of(np.concatenate([t["distance"].to_numpy() for t in new]), np.zeros(0))
        told = {"mode": "grow" if grow else "rebalance"}
        again = Again(folder, content, pieces, [ray.put(table) for table in new], spread, told, grow)
        header = {"content": {**HEADER["content"], "parent": parent.folder}, "provenance": {"roots": {}}}
        rest = ((), None, "label", None, again)
        clusters = self.folder.child("clusters/c")
        return select(self.base.store, clusters, make_settings(**settings), 0, self.folder, header, *rest)

    def at_once(self, shards: list[str], **settings: Any) -> Manifest:
        """What one draw over everything keeps, by the clusters of the first night."""
        self.assign(shards)
        found = self.base.select(**settings)
        self.assign(self.first)
        return found

    def kept(self, manifest: Manifest) -> dict[str, list[Any]]:
        return self.base.read(manifest).to_pydict()

    def decided(self, manifest: Manifest) -> dict[str, Any]:
        folder = self.folder.child(manifest.folder)
        tables = [read_part(folder, files, DECISIONS_SCHEMA.names) for files in decision_parts(folder)]
        rows = pa.concat_tables(tables).to_pylist()
        return {row["sample_id"]: row for row in rows}


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return Nights(tmp_path_factory.mktemp("nights"))


@pytest.mark.parametrize("strategy", OF_A_KIND)
def test_drawing_on_is_drawing_all_at_once(nights: Nights, strategy: str) -> None:
    names, settings = nights.full_names(), {"strategy": strategy, "budget": 0.3}
    first = nights.start(**settings)
    second = nights.go_on(first, names[OLD : OLD + 2], **settings)
    third = nights.go_on(second, names[OLD + 2 :], **settings)
    assert nights.kept(third) == nights.kept(nights.at_once(names, **settings))
    assert verify(str(nights.base.folder / third.folder))["problems"] == []
    assert {row["decision"] for row in nights.decided(third).values()} == {"kept", "dropped"}
    assert len(nights.decided(third)) == third.samples == len(nights.full.samples)


def test_only_decisions_that_changed_are_written(nights: Nights) -> None:
    names = nights.full_names()
    first = nights.start(budget=60)
    second = nights.go_on(first, names[OLD:], budget=60)
    assert referenced(nights.folder.child(second.folder)) == {first.folder.rpartition("/")[2]}
    was, now = nights.decided(first), nights.decided(second)
    own = pq.read_table(nights.base.folder / second.folder / "decisions").to_pydict()
    changed = {name for name in now if name not in was or was[name]["reason"] != now[name]["reason"]}
    assert set(own["sample_id"]) == changed and len(changed) < len(now) / 2
    newcomers = set(now) - set(was)
    assert {name for name in was if name not in now} == set() and newcomers <= changed
    kept = [row for row in now.values() if row["decision"] == "kept"]
    for row in kept[::5]:
        told = explain(str(nights.base.folder / second.folder), row["sample_id"])
        place = nights.kept(second)["sample_id"].index(row["sample_id"])
        assert told["rank"] == nights.kept(second)["rank"][place] and told["why"].startswith("kept")


def test_what_is_gone_leaves_and_its_places_are_filled(nights: Nights) -> None:
    names = nights.full_names()
    first = nights.start(budget=80)
    second = nights.go_on(first, [], gone=names[2:4], budget=80)
    left = [name for name in names[:OLD] if name not in names[2:4]]
    assert nights.kept(second) == nights.kept(nights.at_once(left, budget=80))
    assert not {row["shard"] for row in nights.decided(second).values()} & set(names[2:4])
    assert verify(str(nights.base.folder / second.folder))["ok"]


def test_growth_keeps_what_was_kept_and_takes_newcomers_alone(nights: Nights) -> None:
    names = nights.full_names()
    first = nights.start(budget=0.3)
    second = nights.go_on(first, names[OLD:], gone=names[:1], grow=True, budget=0.3)
    was, now = nights.kept(first), nights.kept(second)
    stays = {name for name, shard in zip(was["sample_id"], was["shard"], strict=True) if shard != names[0]}
    assert stays <= set(now["sample_id"])
    came = set(now["sample_id"]) - stays
    assert came and came <= {row["sample_id"] for row in nights.assigned(names[OLD:]).to_pylist()}
    assert sorted(now["rank"]) == list(range(len(now["rank"]))) and set(now["weight"]) == {None}
    draw = nights.kept(nights.at_once(names[1:], budget=0.3))
    for cluster in set(draw["cluster"]):
        kept_before = sum(
            c == cluster for c, name in zip(was["cluster"], was["sample_id"], strict=True) if name in stays
        )
        new_here = sum(row["cluster"] == cluster for row in nights.assigned(names[OLD:]).to_pylist())
        expected = max(kept_before, min(draw["cluster"].count(cluster), kept_before + new_here))
        assert now["cluster"].count(cluster) == expected, cluster
    assert any("recurate.mode=grow" in warning for warning in second.warnings) == (
        len(now["rank"]) != len(draw["rank"])
    )
    assert verify(str(nights.base.folder / second.folder))["ok"]


def test_the_entropy_threshold_stays_that_of_the_first_night(nights: Nights) -> None:
    names, settings = nights.full_names(), {"budget": 40, "entropy_keep": 0.5}
    first = nights.start(**settings)
    second = nights.go_on(first, names[OLD:], **settings)
    least = [json.loads((nights.base.folder / m.folder / "manifest.json").read_text()) for m in (first, second)]
    values = [header["content"]["selection"]["least_entropy"] for header in least]
    assert values[0] == values[1]
    now = nights.decided(second)
    for row in nights.assigned(names[OLD:]).to_pylist():
        decided = now[row["sample_id"]]
        assert (decided["reason"] == "entropy") == (decided["entropy"] < np.float32(values[0]))


def test_a_chain_that_is_long_is_written_anew(nights: Nights) -> None:
    names = nights.full_names()
    manifest = nights.start(budget=60)
    for name in names[OLD:]:
        manifest = nights.go_on(manifest, [name], most=2, budget=60)
    lengths = [len(files) for files in decision_parts(nights.folder.child(manifest.folder))]
    assert max(lengths) <= 2
    assert nights.kept(manifest) == nights.kept(nights.at_once(names, budget=60))


def test_newcomers_that_copy_what_is_there_fall_to_it(tmp_path: Path) -> None:
    vectors = np.random.default_rng(7).normal(size=(1000, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    probe = make_workspace(tmp_path / "probe")
    shards = probe.samples["shard"].to_pylist()
    cluster = probe.samples["cluster"].to_numpy()
    new = [i for i, name in enumerate(shards) if int(name[-7:-4]) >= OLD]
    old = [i for i, name in enumerate(shards) if int(name[-7:-4]) < OLD]
    rows = vectors[: len(shards)]
    copies = {}
    for i in new[::6]:  # a newcomer in the cluster of what it copies
        like = next(j for j in old if cluster[j] == cluster[i] and j not in copies.values())
        rows[i], copies[i] = rows[like], like
    made = Nights(tmp_path, embedding=list(rows))
    names = made.full_names()
    first = made.start(budget=100, duplicates=True)
    assert {row["reason"] for row in made.decided(first).values()} == {"sampled", "quota"}
    assert not [row for row in made.decided(first).values() if row["reason"] == "duplicate"]
    second = made.go_on(first, names[OLD:], budget=100, duplicates=True)
    ids = made.full.samples["sample_id"].to_pylist()
    found = {name: row["duplicate_of"] for name, row in made.decided(second).items() if row["reason"] == "duplicate"}
    assert found == {ids[i]: ids[like] for i, like in copies.items()}
    assert {row["reason"] for row in made.decided(second).values()} == {"sampled", "quota", "duplicate"}
    # what stands for them goes: they are decided anew, and may be kept
    gone = next(name for name in names[:OLD] if any(shards[like] == name for like in copies.values()))
    third = made.go_on(second, [], gone=[gone], budget=100, duplicates=True)
    left = {name: row["duplicate_of"] for name, row in made.decided(third).items() if row["reason"] == "duplicate"}
    assert left == {ids[i]: ids[like] for i, like in copies.items() if shards[like] != gone}
    assert verify(str(made.base.folder / third.folder))["ok"]
