"""What a model trains on next: seats given out one by one, luck by id, and the schedule."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import RequestError
from curation.selection.sampling import mix
from curation.training import draws
from curation.training.draws import Draw, balanced, choose_levels, draw, due, in_share, sampled
from curation.training.settings import PruneConfig
from tests.test_selection_tree import by_turns, forests
from tests.training_recipes import blocks


def ids(n: int) -> np.ndarray:
    return mix(np.arange(n, dtype=np.uint64))


def clumps(sizes: list[int], d: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors about as many centres, and which centre each is of."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.standard_normal((len(sizes), d))[label] + 0.15 * rng.standard_normal((len(label), d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16), label


@given(forests(), st.floats(0, 1), st.sampled_from([-1.0, 0.0, 1.0]), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_draw_is_that_of_a_plain_loop(forest, keep, diversity, version):
    sizes, ancestors = forest
    leaf = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    distance = np.random.default_rng(1).random(len(leaf)).astype(np.float32)
    n = round(keep * len(leaf))
    made = draw(leaf, distance, ids(len(leaf)), ancestors.astype(np.int32), n, diversity, 7, version)

    seats = by_turns(sizes, ancestors)[:n]
    u = draws.uniform(ids(len(leaf)), draws._mixed(7, version, draws.DRAW))
    rows, weights = [], []
    for number in range(len(sizes)):
        members = np.flatnonzero(leaf == number)
        far = distance[members].astype(np.float64)
        z = (far - far.mean()) / far.std() if len(members) and far.std() > 0 else np.zeros(len(members))
        weight = np.exp(diversity * z.clip(-3, 3))
        luck = -np.log(u[members]) / weight
        quota = sum(owner == number for owner, _ in seats)
        order = np.argsort(luck)
        threshold = luck[order[quota]] if quota < len(members) else np.inf
        rows += members[order[:quota]].tolist()
        weights += (1 / (1 - np.exp(-weight[order[:quota]] * threshold))).tolist()
    order = np.argsort(rows)
    assert made.rows.tolist() == np.array(rows, int)[order].tolist()
    assert np.allclose(made.weights, np.array(weights)[order], rtol=1e-4)


def test_luck_goes_with_the_id_and_not_with_the_place():
    x, label = clumps([300, 40, 10])
    words, shuffle = ids(350), np.random.default_rng(5).permutation(350)
    one = draw(label.astype(np.int32), x[:, 0].astype(np.float32), words, np.zeros((3, 0), np.int32), 60, 1.0, 0, 1)
    two = draw(
        label[shuffle].astype(np.int32),
        x[shuffle, 0].astype(np.float32),
        words[shuffle],
        np.zeros((3, 0), np.int32),
        60,
        1.0,
        0,
        1,
    )
    assert set(words[one.rows]) == set(words[shuffle][two.rows])


def test_leaves_get_equal_seats_and_the_weights_undo_it():
    leaf = np.repeat(np.arange(5, dtype=np.int32), [4000, 100, 100, 100, 50])
    distance = np.random.default_rng(0).random(4350).astype(np.float32)
    estimates = []
    for version in range(1, 41):
        made = draw(leaf, distance, ids(4350), np.zeros((5, 0), np.int32), 435, 1.0, 0, version)
        assert np.bincount(leaf[made.rows]).tolist() == [97, 96, 96, 96, 50]
        assert (np.diff(made.rows) > 0).all() and (made.weights >= 1).all()
        estimates.append(np.bincount(leaf[made.rows], made.weights, 5))
    assert np.mean(estimates, 0) == pytest.approx([4000, 100, 100, 100, 50], rel=0.1)


def test_levels_give_rare_content_more_than_its_share():
    x, label = clumps([4000, 100, 100, 100, 100])
    for version in (1, 2):
        made = balanced(x, ids(len(x)), keep=0.1, seed=0, version=version)
        flat = balanced(x, ids(len(x)), keep=0.1, seed=0, version=version, levels=[40])
        assert len(made.rows) == 440 and made.rows.dtype == np.int64 and made.weights.dtype == np.float32
        rare = np.bincount(label[made.rows], minlength=5)[1:]
        assert (rare > 40).all()  # about 10 of each, were it drawn at random
        assert (rare > np.bincount(label[flat.rows], minlength=5)[1:]).all()


def test_each_version_draws_from_the_full_set():
    x, _ = clumps([1000, 200])
    seen: set[int] = set()
    first: Draw | None = None
    for version in range(1, 12):
        made = balanced(x, ids(1200), keep=0.25, seed=3, version=version, levels=[12])
        again = balanced(x, ids(1200), keep=0.25, seed=3, version=version, levels=[12])
        assert np.array_equal(made.rows, again.rows) and np.array_equal(made.weights, again.weights)
        assert first is None or not np.array_equal(first.rows, made.rows)
        first = first or made
        seen |= set(made.rows.tolist())
    assert len(seen) > 0.9 * 1200  # with a quarter kept, (3/4)^11 of the samples would never be drawn


def test_diversity_goes_from_the_near_to_the_far():
    x, _ = clumps([2000, 500])
    x = x.astype(np.float32)
    distance = np.concatenate([np.linalg.norm(part - part.mean(0), axis=1) for part in (x[:2000], x[2000:])])
    distance -= np.repeat([distance[:2000].mean(), distance[2000:].mean()], [2000, 500])
    means = []
    for diversity in (-1.0, 0.0, 1.0):
        made = balanced(x, ids(2500), keep=0.2, seed=0, version=1, diversity=diversity, levels=[2])
        means.append(distance[made.rows].mean())
    assert means[0] < -0.01 and abs(means[1]) < 0.01 and means[2] > 0.01


def test_the_random_draw_is_uniform():
    made = draws.random(ids(10_000), 0.25, 0, 1)
    assert len(made.rows) == 2500 and np.unique(made.weights).size == 1
    assert float(made.weights[0]) == pytest.approx(4, rel=0.1)
    other = draws.random(ids(10_000), 0.25, 0, 2)
    assert len(np.intersect1d(made.rows, other.rows)) == pytest.approx(625, abs=100)  # independent: 0.25² of all


def test_a_network_that_makes_one_vector_of_all_is_drawn_from_too():
    x = np.tile(np.float16([0.6, 0.8]), (400, 1))
    made = balanced(x, ids(400), keep=0.25, seed=0, version=1)
    assert len(made.rows) == 100


def test_shares_and_samples_are_independent_of_the_luck():
    words = ids(40_000)
    embedded, fitted = in_share(words, 0.5, 0, 1), sampled(words, 10_000, 40_000, 0, 1)
    kept = np.zeros(40_000, bool)
    kept[draws.random(words, 0.25, 0, 1).rows] = True
    assert embedded.mean() == pytest.approx(0.5, abs=0.02) and fitted.mean() == pytest.approx(0.25, abs=0.02)
    for one, other in ((embedded, fitted), (embedded, kept), (fitted, kept)):
        assert (one & other).mean() == pytest.approx(one.mean() * other.mean(), abs=0.01)
    assert in_share(words, 0.5, 0, 2)[embedded].mean() == pytest.approx(0.5, abs=0.02)


def test_levels():
    assert choose_levels(None, 10_000, 10_000) == [10, 100]
    assert choose_levels(None, 10_000, 50) == [7, 50]
    assert choose_levels(None, 1, 1) == [1]
    assert choose_levels([3, 9], 100, 100) == [3, 9]
    with pytest.raises(RequestError, match=r"must rise"):
        choose_levels([9, 3], 100, 100)
    with pytest.raises(RequestError, match=r"raise pretrain.prune.sample"):
        choose_levels([3, 90], 100, 80)


@pytest.mark.parametrize(
    ("strategy", "every", "versions"),
    [
        ("none", 10, [0, 0, 0, 0, 0, 0]),
        ("random", 10, [0, 0, 1, 1, 2, 3]),
        ("balanced", 0, [0, 0, 1, 1, 1, 1]),
    ],
)
def test_the_schedule(strategy, every, versions):
    prune = PruneConfig(strategy=strategy, warm=20, every=every)
    seen = [0, 1999, 2000, 2999, 3000, 4999]
    assert [due(samples, 100, prune) for samples in seen] == versions


@given(st.integers(1, 1000), st.floats(0, 5), st.floats(0.01, 5), st.lists(st.integers(0, 10_000), min_size=2))
def test_versions_never_go_back(total, warm, every, seen):
    prune = PruneConfig(strategy="balanced", warm=warm, every=every)
    found = [due(samples, total, prune) for samples in sorted(seen)]
    assert found == sorted(found)
    for samples, version in zip(sorted(seen), found, strict=True):
        assert (version == 0) == (samples < warm * total)


def test_the_lines_of_the_documentation():
    vectors, _ = clumps([300, 100])
    found = {"vectors": vectors, "words": ids(400)}
    exec(blocks("docs/training.md", "import balanced")[0], found)
    assert found["index"].kept == 100 and found["index"].total == 400


def test_drawing_needs_no_ray():
    subprocess.run(
        [sys.executable, "-c", "import sys, curation.training.draws; assert 'ray' not in sys.modules"], check=True
    )
