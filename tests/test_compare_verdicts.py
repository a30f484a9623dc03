"""What a table of results allows to be said, and which test samples may not say anything: pure functions."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.config import load_config
from curation.errors import RequestError
from curation.evaluation.arms import FULL, codes_of, split_in_two
from curation.evaluation.compare import RESULTS
from curation.evaluation.disjoint import shared_rows, told
from curation.evaluation.verdicts import advice, judge_all, short_table
from curation.scoring.signature import signature_and_patch
from curation.selection.groups import UNKNOWN

SEEDS = 6


@dataclass
class Table:
    """Results in the making: strategies at one budget, with a scatter that all share by seed."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, strategy: str, mean: float, measure: str = "label", own: float = 0.002, budget: float = 0.15) -> None:
        rng = np.random.default_rng(len(self.rows))
        shared = np.random.default_rng(7).normal(0, 0.03, SEEDS)
        for seed in range(SEEDS):
            value = mean + shared[seed] + rng.normal(0, own)
            what = {"strategy": strategy, "budget": budget, "seed": seed, "kept": 15, "seconds": 1.0}
            second = "network_macro" if measure == "label" else "knn_macro"
            self.rows += [{**what, "measure": measure, "metric": m, "value": value} for m in ("linear_macro", second)]

    def judge(self, *measures: str) -> dict[str, Any]:
        return judge_all(pa.Table.from_pylist(self.rows, RESULTS), measures or ("label",))


def made(own: float = 0.002, **means: float) -> Table:
    table = Table()
    for strategy, mean in means.items():
        table.add(strategy, mean, own=own, budget=1.0 if strategy == FULL else 0.15)
    return table


COSTS = {"balanced": {"cluster": 38.0, "select": 2.0}}


def test_a_strategy_that_beats_random_is_named_with_its_cost() -> None:
    judged = made(full=0.5, random=0.5, balanced=0.6, entropy=0.4).judge()
    assert judged["verdict"] == {"balanced@0.15": "better", "entropy@0.15": "worse"}
    assert judged["best"] == {"0.15": "balanced"}
    (line,) = advice(judged, COSTS)
    assert line.startswith("At 15 %, prune with balanced, better than random by 9.9 points")
    assert "balanced took 40 s to cluster, score and select" in line


def test_the_full_set_may_be_the_answer() -> None:
    judged = made(full=0.7, random=0.5, balanced=0.6).judge()
    assert judged["best"] == {"0.15": FULL}
    (line,) = advice(judged, COSTS)
    assert line.startswith("At 15 %, do not prune")
    assert "if you cannot afford it, take balanced, better than random" in line


def test_luck_is_no_verdict() -> None:
    judged = made(own=0.05, full=0.5, random=0.5, balanced=0.505, entropy=0.495).judge()
    assert set(judged["verdict"].values()) == {"no difference"}
    assert judged["best"] == {"0.15": "random"}
    (line,) = advice(judged, COSTS)
    assert "draw at random" in line
    arm = judged["measures"]["label"]["linear_macro"]["arms"]["balanced@0.15"]
    assert arm["detectable"] > abs(arm["difference"]["mean"])


def test_the_oracle_is_a_reference_point_and_no_choice() -> None:
    judged = made(full=0.55, random=0.5, balanced=0.58, oracle=0.6).judge()
    assert judged["best"] == {"0.15": "balanced"}
    arms = judged["measures"]["label"]["linear_macro"]["arms"]
    assert arms["oracle@0.15"]["verdict"] == "better"
    assert arms["balanced@0.15"]["gap_closed"] == pytest.approx(0.8, abs=0.03)
    assert "oracle" not in advice(judged, COSTS)[0]


def test_two_measures_are_told_apart() -> None:
    table = made(full=0.5, random=0.5, balanced=0.6, entropy=0.45, stratified=0.52, k_center=0.4)
    for strategy, mean in {"full": 0.5, "random": 0.5, "balanced": 0.4, "entropy": 0.55, "stratified": 0.48}.items():
        table.add(strategy, mean, "pretraining", budget=1.0 if strategy == FULL else 0.15)
    table.add("k_center", 0.6, "pretraining")
    judged = table.judge("label", "pretraining")
    assert advice(judged, COSTS)[-1].startswith("By pretraining it is the other way round: balanced@0.15 is worse")
    (between,) = (one for one in judged["correlations"] if one["cheap"][0] == "label")
    assert between["rho"] == pytest.approx(-1) and between["arms"] == 5
    assert "better" in short_table(judged)


def test_an_arm_without_a_figure_for_every_seed_is_not_judged() -> None:
    table = made(full=0.5, random=0.5, balanced=0.6)
    table.rows = [row for row in table.rows if (row["strategy"], row["seed"]) != ("balanced", 2)]
    assert table.judge()["verdict"] == {}


def test_half_of_each_class_teaches() -> None:
    ids = np.array([f"{i * 7919 % 1000:016d}".encode() for i in range(21)])
    codes = np.repeat([0, 1, 2], [10, 10, 1])
    teaches = split_in_two(ids, codes)
    assert np.bincount(codes[teaches]).tolist() == [5, 5, 1]
    back = np.random.default_rng(0).permutation(21)
    assert (split_in_two(ids[back], codes[back]) == teaches[back]).all()


def test_what_nobody_knows_is_no_class() -> None:
    codes, classes = codes_of(pa.array(["b", None, "a", UNKNOWN]))
    assert (codes.tolist(), classes) == ([1, -1, 0, -1], ["a", "b"])


# what archive and test set share


def rows(pictures: list[np.ndarray], prefix: str, **columns: list[Any]) -> pa.Table:
    """Catalog rows of 3-band tiles."""
    ranges = np.float32([[0, 255]] * 3)
    made = [signature_and_patch(p, np.ones(p.shape[1:], bool), ranges) for p in pictures]
    n = len(pictures)
    place = pa.struct([(side, pa.float64()) for side in ("west", "south", "east", "north")])
    return pa.table(
        {
            "sample_id": [f"{prefix}{i:030x}" for i in range(n)],
            "key": columns.get("key", [f"{prefix}{i}" for i in range(n)]),
            "source_id": pa.array(columns.get("source_id", [None] * n), pa.string()),
            "signature": pa.array([list(s) for s, _ in made], pa.list_(pa.float32())),
            "patch": pa.array([p for _, p in made], pa.binary()),
            "footprint": pa.array([None] * n, place),
            "embedding": pa.array([[1.0, 0.0]] * n, pa.list_(pa.float32())),
        }
    )


def scene(seed: int) -> np.ndarray:
    """A tile of blobs."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(20, 235, (3, 8, 8))
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8)


def test_shared_samples_are_found_by_key_source_and_looks() -> None:
    archive = rows([scene(i) for i in range(6)], "aa", source_id=[None, None, "p2", None, None, None])
    relit = np.clip(scene(4)[:, :, ::-1] * 0.95 + 4, 0, 255).astype(np.uint8)
    test = rows(
        [scene(1), scene(12), relit, scene(13)], "bb", key=["aa1", "x", "y", "aa5"], source_id=[None, "p2", None, None]
    )
    found = shared_rows(test, archive)
    assert list(found.values()) == ["key", "source_id", "likeness"]
    assert told(found, 4) == (
        "3 of 4 test samples are in the archive or the bank too (1 by key and picture, 1 by source_id, "
        "1 as near-duplicates): they are left out"
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("compare.budgets=[0.1,0.1]", "different shares"),
        ("compare.budgets=[100]", "compare.budgets"),
        ("compare.seeds=1", "an interval needs 2 or more"),
        ("compare.measures=[fid]", "label, pretraining"),
        ("compare.measures=[]", "label, pretraining"),
        ("compare.size=8", "compare.size=8"),
        ("compare.steps=0", "compare.steps=0"),
        ("compare.strategies=[]", "names of presets"),
        ('compare.strategies={full: ["select=random"]}', "cannot name a strategy"),
        ('compare.strategies={mine: ["select.budget=0.1"]}', "see compare.budgets"),
        ("compare.strategies={mine: balanced}", "give the keys that make it"),
        ('compare.strategies={mine: ["encoder=open_clip"]}', "encoder=open_clip is the same for all strategies"),
        ('compare.strategies={mine: ["seed=3"]}', "seed=3 is the same for all strategies"),
        ('compare.strategies={random: ["select=balanced"]}', "random is what the others are held against"),
        ("choose.k=[0]", "choose.k"),
        ("choose.seeds=2", "choose.seeds=2"),
        ("choose.encoders=[]", "choose.encoders"),
    ],
)
def test_wrong_requests_are_one_line(override: str, says: str) -> None:
    with pytest.raises(RequestError) as error:
        load_config([override])
    assert says in str(error.value) and "\n" not in str(error.value)
