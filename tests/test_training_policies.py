"""Losses of rows and the policies that go by them: shares to the row, unbiased draws, the same on every rank."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.training.losses import LossAverages
from curation.training.policies import (
    Policy,
    gates,
    guided,
    infobatch,
    proportional,
    random,
    small_loss,
    systematic,
)

TOTAL = 60


def losses_of(values: object, beta: float = 0.8) -> LossAverages:
    values = np.asarray(values, np.float32)
    made = LossAverages(len(values), beta)
    there = np.flatnonzero(~np.isnan(values))
    made.update(there, values[there])
    return made


def some_losses(seed: int = 0, total: int = TOTAL, unseen: int = 0) -> LossAverages:
    values = np.random.default_rng(seed).gamma(2, 1, total)
    values[:unseen] = np.nan
    return losses_of(values)


def consistency(seed: int = 1, total: int = TOTAL) -> np.ndarray:
    return (np.random.default_rng(seed).permutation(total) + 0.5) / total


# the losses


def test_the_average_is_the_plain_recursion():
    made, beta, plain = LossAverages(5, 0.7), 0.7, {}
    for step in range(20):
        draw = np.random.default_rng(step)
        rows = draw.choice(4, 2, replace=False)  # row 4 is never trained on
        losses = draw.gamma(2, 1, 2).astype(np.float32)
        made.update(torch.from_numpy(rows), torch.from_numpy(losses))
        for row, loss in zip(rows.tolist(), losses.tolist(), strict=True):
            plain[row] = loss if row not in plain else beta * plain[row] + (1 - beta) * loss
    assert made.values.dtype == np.float32
    np.testing.assert_allclose(made.values[:4], [plain[row] for row in range(4)], rtol=1e-5)
    assert np.isnan(made.values[4])


def test_a_loss_that_overflowed_is_passed_over():
    made = losses_of([1.0, 2.0, np.nan])
    made.update([0, 1, 2], [np.inf, np.nan, np.inf])
    np.testing.assert_array_equal(made.values, np.float32([1, 2, np.nan]))


def test_the_state_comes_back():
    one, other = some_losses(unseen=3), LossAverages(TOTAL, 0.8)
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(one.values, other.values)
    for made in (one, other):
        made.update([0, 9], [3.0, 4.0])
    np.testing.assert_array_equal(one.values, other.values)
    for wrong in (LossAverages(TOTAL, 0.7), LossAverages(9, 0.8)):
        with pytest.raises(ValueError, match="losses of 60 rows, beta=0.8, for"):
            wrong.load_state_dict(one.state_dict())


def test_five_bytes_a_row():
    made = LossAverages(1000)
    held = [value for value in vars(made).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in held) == 5 * 1000


@pytest.mark.parametrize("total, beta", [(0, 0.5), (2**31 + 1, 0.5), (4, 1.0), (4, -0.1)])
def test_numbers_that_cannot_be(total, beta):
    with pytest.raises(ValueError, match="give"):
        LossAverages(total, beta)


RANK = """
import sys
import numpy as np, torch, torch.distributed as dist
from curation.training import losses
losses.CHUNK = 7  # several exchanges
rank, meeting, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
made = losses.LossAverages(20, 0.5)
for number in range(3):
    order = np.random.default_rng(number).permutation(18)[rank::2]
    made.update(order, np.float32(order + number * 0.3))
    if number == 0 and rank == 0:
        made.update([18], [4.0])
    if number == 1:
        made.update([18], [10.0 * rank])  # a sampler that fills up its last batch gives a row to both
        made.update([19], [float("nan")])
    try:
        made.state_dict()
    except RuntimeError as error:
        assert "call merge()" in str(error)
    else:
        raise AssertionError("the ranks differ")
    made.merge()
np.save(out + str(rank), made.state_dict()["average"].numpy())
dist.destroy_process_group()  # else gloo's threads may outlive the interpreter, which aborts
"""


def test_ranks_agree_once_they_have_merged(tmp_path):
    """Two processes over gloo: bit for bit alike, and what one process alone would have."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "meeting"), str(tmp_path / "rank")]
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(r), *arguments], env=environment) for r in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    one, other = (np.load(tmp_path / f"rank{rank}.npy") for rank in range(2))
    np.testing.assert_array_equal(one, other)
    alone = LossAverages(18, 0.5)
    for number in range(3):
        alone.update(np.arange(18), np.float32(np.arange(18) + number * 0.3))
    np.testing.assert_array_equal(one[:18], alone.values)
    assert one[18] == 0.5 * 4 + 0.5 * (0 + 10) / 2
    assert np.isnan(one[19])


# the draws

SHARES = st.floats(0, 0.99)


def policies(left_out: float, seed: int = 0, unseen: int = 0) -> dict[str, Policy]:
    """One of each kind, in passes that leave rows out."""
    losses, agreed = some_losses(unseen=unseen), consistency()
    agreed[7] = np.nan
    rules = {
        "random": random(),
        "infobatch": infobatch(losses),
        "small_loss": small_loss(losses),
        **{use: guided(losses, agreed, use) for use in ("both", "difficulty", "consistency")},
        "full": guided(losses, agreed, aim="full"),
    }
    return {name: Policy(TOTAL, rule, left_out, seed, warm=0, full_from=1.0) for name, rule in rules.items()}


@settings(max_examples=40, deadline=None)
@given(left_out=SHARES, seed=st.integers(0, 2**63), number=st.integers(0, 9), unseen=st.integers(0, TOTAL))
def test_the_share_left_out_is_met_to_the_row(left_out, seed, number, unseen):
    for policy in policies(left_out, seed, unseen).values():
        rows, weights = policy.draw(number, 10)
        assert len(rows) == TOTAL - min(round(left_out * TOTAL), TOTAL - 1) == len(weights)
        assert rows.dtype == np.int32 and weights.dtype == np.float32
        assert (np.diff(rows) > 0).all() and rows.min() >= 0 and rows.max() < TOTAL
        assert (weights > 0).all() and np.isfinite(weights).all()


@pytest.mark.parametrize("left_out", [0.4, 0.9])
def test_weighted_sums_have_the_full_sum_as_their_mean(left_out):
    """Over many seeds, for gradients of any kind; of `aim="sound"` the sum of the gated set. Not so `small_loss`."""
    draw = np.random.default_rng(0)
    gradients = np.stack([np.ones(TOTAL), draw.normal(size=TOTAL), some_losses().values])
    agreed = consistency()
    agreed[7] = np.nan
    opened = gates(agreed, TOTAL, 0.45, 0.1)
    sums: dict[str, list[np.ndarray]] = {}
    for seed in range(400):
        for name, policy in policies(left_out, seed).items():
            rows, weights = policy.draw(3, 10)
            sums.setdefault(name, []).append(gradients[:, rows] @ weights.astype(np.float64))
    for name, found in sums.items():
        mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
        truth = (gradients * (opened if name in ("both", "consistency") else 1)).sum(axis=1)
        apart = np.abs(mean - truth) / np.maximum(error, 1e-4)
        assert (apart < 4.5).all() == (name != "small_loss"), (name, apart)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=40), st.data())
def test_proportional_probabilities(sizes, data):
    """They sum to the count, are capped, and as the sizes below the cap."""
    size = np.array(sizes)
    count = data.draw(st.integers(0, len(size)))
    found = proportional(size, count)
    assert np.isclose(found.sum(), count) and (found >= 0).all() and (found <= 1).all()
    below = found < 1 - 1e-9
    if below.any() and count:
        ratio = found[below] / size[below]
        assert np.allclose(ratio, ratio[0])
        assert (size[~below] * ratio[0] >= 1 - 1e-6).all()


def test_each_row_is_drawn_with_its_probability():
    probability = np.array([1.0, 0.0, 0.5, 0.5, 0.25, 0.75, 0.9, 0.1])
    drawn = np.zeros(8)
    for seed in range(2000):
        *u, start = np.random.default_rng(seed).random(9)
        rows = systematic(probability, np.array(u), start)
        assert len(rows) == 4
        drawn[rows] += 1
    assert drawn[0] == 2000 and drawn[1] == 0
    np.testing.assert_allclose(drawn / 2000, probability, atol=0.045)


def test_draws_hang_on_seed_and_pass_alone():
    for name, policy in policies(0.5, unseen=40).items():
        one, again = policy.draw(2, 10), policies(0.5, unseen=40)[name].draw(2, 10)
        np.testing.assert_array_equal(one.rows, again.rows)
        np.testing.assert_array_equal(one.weights, again.weights)
        others = [policy.draw(3, 10), policies(0.5, seed=1, unseen=40)[name].draw(2, 10)]
        assert all(set(other.rows) != set(one.rows) for other in others), name


def test_all_rows_at_the_beginning_and_the_end():
    policy = Policy(TOTAL, random(), 0.5, warm=2)
    sizes = [len(policy.draw(number, 16).rows) for number in range(16)]
    assert sizes == [TOTAL] * 2 + [TOTAL // 2] * 12 + [TOTAL] * 2  # from 87.5 % on
    losses, agreed = some_losses(), consistency()
    rows, weights = Policy(TOTAL, guided(losses, agreed), 0.5).draw(15, 16)
    assert len(rows) == TOTAL
    np.testing.assert_allclose(weights, gates(agreed, TOTAL, 0.45, 0.1), rtol=1e-6)
    assert (Policy(TOTAL, guided(losses, agreed, aim="full"), 0.5).draw(15, 16).weights == 1).all()
    assert len(Policy(TOTAL, small_loss(losses), 0.5, full_from=1).draw(15, 16).rows) == TOTAL // 2
    for number in (-1, 16):
        with pytest.raises(ValueError, match="passes are counted from 0"):
            policy.draw(number, 16)


def test_infobatch_as_published():
    """Of the rows below the mean a fraction goes, and those that stay of them weigh 1 / (1 - fraction)."""
    values = some_losses().values
    rows, weights = Policy(TOTAL, infobatch(losses_of(values, 0.0), 0.5), None).draw(1, 16)
    below = values < values.mean()
    assert set(np.flatnonzero(~below)) <= set(rows)
    assert len(rows) == TOTAL - int(below.sum() * 0.5)
    np.testing.assert_allclose(weights[below[rows]], below.sum() / below[rows].sum())
    assert abs(below.sum() / below[rows].sum() - 2) < 0.1
    assert (weights[~below[rows]] == 1).all()


def test_infobatch_raises_its_threshold_only_where_it_must():
    values = some_losses().values
    below = values < values.mean()
    rows, weights = Policy(TOTAL, infobatch(some_losses()), 0.4).draw(1, 16)
    assert set(np.flatnonzero(~below)) <= set(rows)  # the mean is threshold enough
    rows, weights = Policy(TOTAL, infobatch(some_losses(), most=0.875), 0.7).draw(1, 16)
    order = np.argsort(values)
    assert set(order[48:]) <= set(rows) and not below[order[47]]  # 42 of 48 are 87.5 %
    assert len(rows) == 18 and weights.max() == 8


def test_what_guided_keeps():
    """The hard and sound come every time; of the rest the sound more often than the unsound, and easy ones too."""
    losses, agreed = losses_of(np.arange(100) + 1), np.tile([0.9, 0.05], 50)
    came, weighed = np.zeros(100), np.zeros(100)
    for seed in range(200):
        rows, weights = Policy(100, guided(losses, agreed, tau=0.3, drawn=0.5), 0.6, seed).draw(1, 10)
        came[rows] += 1
        weighed[rows] += weights / 200
    sound = agreed > 0.5
    assert (came[sound][-20:] == 200).all()
    assert came[sound].min() > 3 * came[~sound].max() > 0
    opened = gates(agreed, 100, 0.3, 0.1)
    np.testing.assert_allclose(weighed.mean(), opened.mean(), rtol=0.02)
    hard = Policy(100, guided(losses, None, "difficulty", drawn=0.5), 0.6).draw(1, 10).rows
    assert set(range(80, 100)) <= set(hard)


def test_requests_that_cannot_be():
    losses, agreed = some_losses(), consistency()
    for wrong, message in (
        (lambda: guided(losses, None), "give one number a row, of 60"),
        (lambda: guided(losses, agreed[1:]), "give one number a row, of 60"),
        (lambda: guided(losses, agreed * 3), "give ranks from 0 to 1"),
        (lambda: guided(losses, agreed, "text"), "use=text: choose"),
        (lambda: guided(losses, agreed, aim="clean"), "aim=clean: choose"),
        (lambda: guided(losses, agreed, drawn=0.0), "drawn=0.0: give"),
        (lambda: guided(losses, agreed, temperature=0.0), "temperature=0.0: give"),
        (lambda: infobatch(losses, fraction=1.0), "fraction=1.0: give"),
        (lambda: infobatch(losses, most=1.0), "most=1.0: give"),
        (lambda: Policy(0, random(), 0.5), "0 rows"),
        (lambda: Policy(9, random(), 1.0), "left_out=1.0: give"),
        (lambda: Policy(9, random(), 0.5, warm=-1), "warm=-1: give"),
        (lambda: Policy(9, random(), 0.5, full_from=2.0), "full_from=2.0: give"),
        (lambda: Policy(9, random(), None).draw(1, 9), "only infobatch leaves out a share of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


# a user's script


def test_the_example_of_the_docs(tmp_path):
    """It trains on what the policy draws, and learns the right labels better than the wrong ones."""
    text = (Path(__file__).parents[1] / "docs/training.md").read_text()
    section = text[text.index("## Labelled data of mixed quality") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    total, draw = 240, np.random.default_rng(0)
    truth = draw.integers(3, size=total)
    wrong = np.arange(total) % 4 == 0
    images = torch.from_numpy(np.eye(3)[truth] + 0.2 * draw.normal(size=(total, 3))).float()
    labels = torch.from_numpy((truth + wrong) % 3)
    (tmp_path / "consistency.json").write_text("{}")
    agreed = np.where(wrong, 0.1, 0.8).astype(np.float32)
    for part in range(2):  # whose order is not the shards'
        rows = slice(120 * (1 - part), 120 * (2 - part))
        columns = {"shard": [f"root0/{1 - part}.tar"] * 120, "index": list(range(120)), "consistency": agreed[rows]}
        pq.write_table(pa.table(columns), tmp_path / f"part-{part:05}.parquet")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    given = {
        "dataset": [(row, images[row], labels[row]) for row in range(total)],
        "model": model,
        "optimiser": torch.optim.AdamW(model.parameters(), lr=0.05),
        **{"scores": str(tmp_path), "passes": 8, "torch": torch, "DataLoader": torch.utils.data.DataLoader},
        "cross_entropy": torch.nn.functional.cross_entropy,
    }
    exec(code, given)
    assert len(given["rows"]) == total and given["sampler"].index.version == 8
    assert given["losses"].values[wrong].min() > given["losses"].values[~wrong].mean()
    assert (model(images).argmax(1).numpy() == truth).mean() > 0.95
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 17
