"""What may be said of differences: scipy and hand-made references, and verdicts that err as rarely as they promise."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from curation.evaluation.statistics import advise, detectable, gap_closed, holm, judge, paired, rank_correlation

RANDOM = np.array([0.31, 0.35, 0.33, 0.30, 0.36])


def against_random(gain: float, scatter: float, seed: int = 0) -> np.ndarray:
    return RANDOM + gain + scatter * np.random.default_rng(seed).normal(size=5)


def test_paired_is_scipy_s_paired_t_test() -> None:
    arm = against_random(0.02, 0.01)
    found, reference = paired(arm, RANDOM), scipy.stats.ttest_rel(arm, RANDOM)
    low, high = reference.confidence_interval(0.95)
    assert (found.seeds, found.mean) == (5, pytest.approx((arm - RANDOM).mean()))
    assert (found.low, found.high, found.p) == pytest.approx((low, high, reference.pvalue))
    with pytest.raises(ValueError, match="at least two seeds"):
        paired([0.1], [0.2])


def test_arms_that_never_differ_are_no_different() -> None:
    found = judge({"same": paired(RANDOM, RANDOM)})["same"]
    assert (found.difference.p, found.verdict, found.detectable) == (1, "no difference", 0)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_refuses_step_by_step(p: list[float]) -> None:
    adjusted, order = holm(p), np.argsort(p, kind="stable")
    still = True
    for rank, at in enumerate(order):
        still = still and p[at] * (len(p) - rank) < 0.05
        assert (adjusted[at] < 0.05) == still


def test_a_detectable_difference_is_told_in_four_cases_of_five() -> None:
    shift = detectable(2.0, 5)
    drawn = np.random.default_rng(0).normal(shift, 2.0, (20_000, 5))
    assert (scipy.stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable(2.0, 5, 0.05 / 30) > shift > detectable(2.0, 20)


def test_verdicts_are_corrected_and_say_what_could_have_been_told() -> None:
    arms = {
        "good": against_random(0.05, 0.003),
        "bad": against_random(-0.05, 0.003, 1),
        "like": against_random(0.0, 0.01, 2),
    }
    found = judge({name: paired(arm, RANDOM) for name, arm in arms.items()})
    assert {name: judged.verdict for name, judged in found.items()} == {
        "good": "better",
        "bad": "worse",
        "like": "no difference",
    }
    assert "better than random by 5." in found["good"].words
    assert "among 3 comparisons" in found["good"].words
    deviation = (arms["like"] - RANDOM).std(ddof=1)
    assert found["like"].detectable == pytest.approx(detectable(deviation, 5, 0.05 / 3))
    assert f"One of {100 * found['like'].detectable:.1f} points would have been told" in found["like"].words


def test_where_nothing_differs_a_whole_table_errs_once_in_twenty() -> None:
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        base = draw.normal(size=5)
        table = {str(arm): paired(draw.normal(size=5), base) for arm in range(6)}
        wrong += any(judged.verdict != "no difference" for judged in judge(table).values())
    assert wrong / 400 < 0.08


def test_the_full_set_that_beats_all_means_do_not_prune() -> None:
    arms = {"good": against_random(0.05, 0.002), "random": RANDOM, "full": against_random(0.15, 0.002, 1)}
    judged = judge({"good": paired(arms["good"], RANDOM)})
    found = advise(arms, judged)
    assert (found.prune, found.best) == (False, "good")
    assert found.words.startswith("do not prune")
    arms["full"] = against_random(0.05, 0.02, 1)
    found = advise(arms, judged)
    assert (found.prune, found.best, found.equals) == (True, "good", [])
    assert found.words.startswith("prune with good, better than random by ")


def test_what_cannot_be_told_from_random_is_drawn_at_random() -> None:
    arms = {"like": against_random(0.001, 0.02), "random": RANDOM, "full": against_random(0.0, 0.02, 1)}
    found = advise(arms, judge({"like": paired(arms["like"], RANDOM)}))
    assert found.prune
    assert found.words.startswith("draw at random: nothing tried is better by as much as ")
    two = {name: values[:2] for name, values in arms.items()}
    noise = {name: paired(np.array([0.4, 0.1]) + 0.01 * i, RANDOM[:2]) for i, name in enumerate("abcdefgh")}
    words = advise(two, judge({**noise, "like": paired(two["like"], two["random"])})).words
    assert words.startswith("draw at random: 2 seeds can tell no difference between so many arms: raise compare.seeds;")


def test_what_is_better_is_taken_though_something_that_scatters_has_the_highest_mean() -> None:
    steady, wild = against_random(0.03, 0.001), RANDOM + np.array([0.2, -0.05, 0.1, -0.1, 0.05])
    arms = {"steady": steady, "wild": wild, "random": RANDOM, "full": against_random(0.03, 0.02, 1)}
    assert wild.mean() > steady.mean()
    found = advise(arms, judge({name: paired(arms[name], RANDOM) for name in ("steady", "wild")}))
    assert (found.prune, found.best, found.equals) == (True, "steady", ["wild"])
    assert found.words.startswith("prune with steady, better than random by ")
    assert found.words.endswith("wild cannot be told from it")


def test_the_way_from_random_to_the_oracle() -> None:
    assert gap_closed(RANDOM + 0.066, RANDOM, RANDOM + 0.1) == pytest.approx(0.66)
    assert gap_closed(RANDOM, RANDOM, RANDOM + 0.1) == 0
    assert np.isnan(gap_closed(RANDOM, RANDOM, RANDOM - 0.1))


def test_rank_correlation_is_spearman_s_with_fisher_s_interval() -> None:
    cheap = np.array([1.0, 2, 3, 4, 5, 6, 7])
    dear = np.array([2.0, 1, 4, 3, 7, 5, 6])
    found = rank_correlation(cheap, dear)
    rho = scipy.stats.spearmanr(cheap, dear).statistic
    half = 1.959964 * np.sqrt((1 + rho**2 / 2) / 4)
    assert found.rho == pytest.approx(rho)
    assert (found.low, found.high) == pytest.approx((np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)))
    assert rank_correlation(cheap, cheap**3).rho == pytest.approx(1)
    few = rank_correlation(cheap[:3], dear[:3])
    assert (few.low, few.high) == (-1, 1)
    assert np.isnan(rank_correlation(cheap, np.ones(7)).rho)
