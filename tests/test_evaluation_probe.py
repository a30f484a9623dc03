"""Probes and the label coreset measure, on classes that are known to be separable, or not."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from curation.evaluation.coreset import Labelled, from_features, from_scratch
from curation.evaluation.probe import Features, linear, nearest_neighbours, score
from tests.evaluation_recipes import blobs, gratings


def test_scores_are_scikit_learn_s() -> None:
    draw = np.random.default_rng(0)
    truth, predicted = draw.integers(5, size=200), draw.integers(6, size=200)
    found = score(truth, predicted)
    recalls = recall_score(truth, predicted, labels=range(5), average=None)
    assert found.macro == pytest.approx(recalls.mean())
    assert (found.worst, found.worst_class) == (pytest.approx(recalls.min()), recalls.argmin())
    assert found.accuracy == accuracy_score(truth, predicted)


def test_a_class_that_was_never_seen_is_missed() -> None:
    train, test = blobs(20, 0), blobs(20, 1)
    found = linear(train[train.codes != 2], test, 0)
    assert (found.worst, found.worst_class) == (0, 2)
    assert 0.65 < found.macro <= 0.75


def test_a_probe_is_fitted_to_scaled_features_and_the_same_for_a_seed() -> None:
    train, test = blobs(30, 0), blobs(50, 1)
    found = linear(train, test, 0)
    assert found.macro > 0.9
    assert linear(train, test, 0) == found
    shuffled = linear(train, Features(test.vectors, np.random.default_rng(0).permutation(test.codes)), 0)
    assert shuffled.macro == pytest.approx(0.25, abs=0.1)


def test_five_nearest_by_cosine_vote() -> None:
    train, test = blobs(30, 0), blobs(50, 1)
    unit = [Features(f.vectors[:, :-1].astype(np.float32), f.codes) for f in (train, test)]
    a, b = (f.vectors / np.linalg.norm(f.vectors, axis=1, keepdims=True) for f in unit)
    votes = train.codes[np.argsort(-b @ a.T, axis=1)[:, :5]]
    voted = np.array([np.bincount(row).argmax() for row in votes])
    assert nearest_neighbours(*unit) == score(test.codes, voted)
    assert from_features(*unit, seed=0) == {"knn": nearest_neighbours(*unit), "linear": linear(*unit, 0)}


@pytest.mark.parametrize("a_class", [1, 2])
def test_so_few_that_there_is_nothing_to_hold_out(a_class: int) -> None:
    train, test = blobs(a_class, 0, spread=0.05), blobs(20, 1, spread=0.05)
    assert linear(train, test, 0).macro > 0.5
    one = train[train.codes == 3]
    assert linear(one, test, 0).macro == nearest_neighbours(one, test).macro == 0.25


def test_the_small_network_learns_from_the_kept_tiles_alone() -> None:
    train, test = gratings(20, 0), gratings(25, 1)
    found = from_scratch(train, test, 0, steps=60, batch=32)
    assert found.macro > 0.6
    noise = Labelled(train.tiles, np.random.default_rng(0).permutation(train.codes))
    assert from_scratch(noise, test, 0, steps=60, batch=32).macro < 0.45
    assert from_scratch(train, test, 0, steps=5, batch=8) == from_scratch(train, test, 0, steps=5, batch=8)
