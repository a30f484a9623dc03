"""Students: what tells a distilled set's worth, on a problem so easy that the answer is known."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from curation.distillation.students import random_rows, summarise, train_student
from curation.evaluation.coreset import Labelled


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(n: int, classes: int, seed: int) -> Labelled:
    """Tiles whose class is their colour under much noise."""
    draw = np.random.default_rng(seed)
    codes = np.arange(n) % classes
    colours = np.random.default_rng(0).normal(128, 50, (classes, 3, 1, 1))
    return Labelled((colours[codes] + draw.normal(0, 60, (n, 3, 16, 16))).clip(0, 255).astype(np.uint8), codes)


def test_students_learn_what_is_there_and_no_more():
    train, test = planted(40, 4, 1), planted(400, 4, 2)
    learnt = train_student(train, test, 4, seed=0, steps=60)
    assert learnt > 0.9
    assert train_student(train, test, 4, seed=0, steps=60) == learnt
    wrong = Labelled(train.tiles, np.random.default_rng(3).permutation(train.codes))
    assert train_student(wrong, test, 4, seed=0, steps=60) < 0.7


def test_a_class_that_an_arm_lacks_counts_as_missed():
    train, test = planted(40, 4, 1), planted(400, 4, 2)
    lacking = train.codes != 3
    found = train_student(Labelled(train.tiles[lacking], train.codes[lacking]), test, 4, seed=0, steps=60)
    assert 0.6 < found <= 0.75


def test_random_images_are_equally_many_a_class_and_do_not_depend_on_parts():
    ids = [f"sample {i}" for i in range(300)]
    codes = np.random.default_rng(0).choice(4, 300, p=[0.6, 0.3, 0.09, 0.01])
    counts = [10, 10, 10, 10]
    rows = random_rows(ids, codes, counts, seed=1)
    sizes = np.bincount(codes[rows], minlength=4)
    np.testing.assert_array_equal(sizes, np.minimum(np.bincount(codes, minlength=4), counts))
    np.testing.assert_array_equal(rows, np.unique(rows))
    assert set(rows) != set(random_rows(ids, codes, counts, seed=2))

    def part(where: np.ndarray) -> np.ndarray:
        return where[random_rows([ids[i] for i in where], codes[where], counts, seed=1)]

    shuffled = np.random.default_rng(5).permutation(300)
    some = np.concatenate([part(piece) for piece in np.array_split(shuffled, 7)])
    np.testing.assert_array_equal(np.sort(part(some)), rows)


def test_a_row_is_drawn_as_often_as_any_other():
    codes = np.zeros(20, int)
    times = np.zeros(20)
    for seed in range(400):
        times[random_rows([str(i) for i in range(20)], codes, [5], seed)] += 1
    assert stats.chisquare(times).pvalue > 0.001


def test_the_summary_is_that_of_scipy():
    draw = np.random.default_rng(0)
    seeds = draw.normal(0.5, 0.05, 5)
    figures = {
        "distilled": seeds - 0.1 + draw.normal(0, 0.01, 5),
        "prototypes": seeds + draw.normal(0, 0.02, 5),
        "random": seeds,
        "full": seeds + 0.3 + draw.normal(0, 0.01, 5),
    }
    found = summarise({name: values.tolist() for name, values in figures.items()})
    assert json.loads(json.dumps(found)) == found and found["seeds"] == 5
    for name, values in figures.items():
        low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
        arm = found["arms"][name]
        np.testing.assert_allclose([arm["mean"], arm["low"], arm["high"]], [values.mean(), low, high])
        assert arm["values"] == values.tolist()
    plain = {name: stats.ttest_rel(figures[name], seeds).pvalue for name in ("distilled", "prototypes", "full")}
    smallest = min(plain, key=lambda name: plain[name])
    np.testing.assert_allclose(found["differences"][smallest]["p"], 3 * plain[smallest])
    assert {name: one["verdict"] for name, one in found["differences"].items()} == {
        **{"distilled": "worse", "prototypes": "no difference", "full": "better"}
    }
    over = stats.ttest_rel(figures["distilled"], figures["prototypes"])
    np.testing.assert_allclose(found["over_prototypes"]["p"], over.pvalue)
    assert "the prototypes teach better" in found["words"]


def test_equal_figures_and_single_seeds():
    same = summarise({"distilled": [0.5, 0.5], "prototypes": [0.5, 0.5], "random": [0.5, 0.5]})
    assert same["differences"]["distilled"]["verdict"] == "no difference"
    with pytest.raises(ValueError, match="two seeds"):
        summarise({"distilled": [0.5], "random": [0.5]})


def test_so_few_seeds_that_nothing_can_be_told_are_said_to_be_so() -> None:
    few = summarise({"distilled": [0.02, 0.056], "prototypes": [0.2, 0.8], "random": [0.3, 0.7]})
    assert few["arms"]["prototypes"]["low"] == 0 and few["arms"]["prototypes"]["high"] == 1
    assert few["over_prototypes"]["verdict"] == "no difference" and few["over_prototypes"]["low"] == -1
    assert few["words"].endswith("(2 seeds can tell no difference: raise distill.students.seeds)")
    draw = np.random.default_rng(0).normal(0.5, 0.02, (3, 5))
    many = summarise(dict(zip(("distilled", "prototypes", "random"), draw.tolist(), strict=True)))
    told = many["over_prototypes"]["detectable"]
    assert 0.01 < told < 0.2 and f"5 seeds tell one of {100 * told:.1f} points" in many["words"]
