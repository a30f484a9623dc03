"""The pieces of benchmarks.evidence.noisy that decide what its tables say."""

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.evidence.noisy import BATCH, Arm, judged, passes_for, summarise, turned, with_wrong
from curation.evaluation.statistics import paired
from curation.training.policies import Policy, random


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_wrong_labels_are_as_many_as_asked_and_of_other_classes(share):
    codes = np.random.default_rng(0).integers(7, size=500)
    given, wrong = with_wrong(codes, 7, share, seed=3)
    assert wrong.sum() == round(share * 500)
    np.testing.assert_array_equal(given != codes, wrong)
    assert given.min() >= 0 and given.max() <= 6


def test_eight_positions_of_a_tile():
    tile = torch.arange(2 * 9, dtype=torch.uint8).view(1, 2, 3, 3)
    found = {tuple(turned(tile, torch.tensor([way])).flatten().tolist()) for way in range(8)}
    plain = tile[0].numpy()
    flipped = (plain, plain[:, :, ::-1])
    assert found == {tuple(np.rot90(one, k, (1, 2)).ravel().tolist()) for one in flipped for k in range(4)}


@pytest.mark.parametrize("left_out", [0.0, 0.5, 0.7])
def test_passes_give_as_many_steps_as_asked(left_out):
    policy = Policy(1000, random(), left_out)
    for steps in (1, 40, 300):
        passes = passes_for(policy, steps)

        def given(passes: int) -> int:
            return sum((1000 - (policy.dropped(number, passes) or 0)) // BATCH for number in range(passes))

        assert given(passes) >= steps and (passes == 1 or given(passes - 1) < steps)


def test_intervals_at_the_level_of_holms_procedure():
    draw = np.random.default_rng(0)
    differences = {str(k): paired(draw.normal(k, 1, 5), np.zeros(5)) for k in range(3)}
    found = judged(differences)
    for k, name in enumerate(sorted(differences, key=lambda name: differences[name].p)):
        one, said = differences[name], found[name]
        error = (one.high - one.mean) / stats.t.ppf(0.975, 4)
        assert np.isclose(said["high"] - one.mean, error * stats.t.ppf(1 - 0.05 / (3 - k) / 2, 4))
        assert (said["low"] > 0 or said["high"] < 0) == (one.p < 0.05 / (3 - k))


def test_claims_are_told_over_all_shares_left_out():
    def result(value: float) -> dict:
        seconds = {"train": 1.0, "draw": 0.0, "consistency": 0.0}
        return {"accuracy": value, "wrong": 0.1, "wrong_weighted": 0.1, "seconds": seconds}

    found = {}
    for seed in range(3):
        found[Arm(0.4, 0.0, "full", seed)] = result(0.5)
        for share in (0.3, 0.7):
            found[Arm(0.4, share, "difficulty", seed)] = result(0.4 + 0.01 * seed)
            found[Arm(0.4, share, "both", seed)] = result(0.4 + share / 10 + 0.011 * seed)
    summary = summarise(found, ["full", "difficulty", "both"])
    assert list(summary["claims"]) == ["0.4: both less difficulty"]
    assert np.isclose(summary["claims"]["0.4: both less difficulty"]["mean"], 0.05 + 0.001)
    assert set(summary["cells"]) == {"0.4, 0.3", "0.4, 0.7"}
    assert np.isclose(summary["cells"]["0.4, 0.7"]["less"]["both, full"]["mean"], 0.4 + 0.07 + 0.011 - 0.5)
