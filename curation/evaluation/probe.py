"""Probes: how well simple classifiers tell classes from frozen features, on images that they have not seen.

5-NN by cosine, and multinomial logistic regression; both scikit-learn's. The score is macro accuracy (the mean of the
classes' recalls), which a long tail cannot hide in, with the worst class and the plain accuracy beside it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from curation.evaluation.moments import Vectors

Codes = NDArray[np.integer[Any]]

NEIGHBOURS = 5
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of scikit-learn: the inverse of the penalty's weight against the summed loss
HELD_OUT = 5  # every so many-th sample of a class, in drawn order, chooses C


@dataclass(frozen=True)
class Score:
    """What a classifier gets right on the test set.

    Attributes:
        macro: mean recall of the classes that the test set has; those that were never seen in training count as missed.
        worst: the smallest recall.
        worst_class: the code of that class, the lowest of equals.
        accuracy: share of the test samples.
    """

    macro: float
    worst: float
    worst_class: int
    accuracy: float


@dataclass(frozen=True)
class Features:
    """Labelled vectors.

    Attributes:
        vectors: (n, d) of any float type.
        codes: integers (n,), the class of each; the same numbers in training and test.
    """

    vectors: Vectors
    codes: Codes

    def __getitem__(self, rows: Any) -> Features:
        return Features(self.vectors[rows], self.codes[rows])


def score(truth: Codes, predicted: Codes) -> Score:
    """Compare predictions (n,) with the truth (n,), n at least 1."""
    classes, inverse = np.unique(truth, return_inverse=True)
    recall = np.bincount(inverse, truth == predicted) / np.bincount(inverse)
    worst = int(recall.argmin())
    return Score(float(recall.mean()), float(recall[worst]), int(classes[worst]), float(np.mean(truth == predicted)))


def nearest_neighbours(train: Features, test: Features) -> Score:
    """5-NN by cosine; the lower code wins a tie; fewer neighbours where training has fewer samples."""
    voters = min(NEIGHBOURS, len(train.codes))
    classifier = KNeighborsClassifier(voters, metric="cosine", algorithm="brute")
    classifier.fit(train.vectors.astype(np.float32), train.codes)
    return score(test.codes, classifier.predict(test.vectors.astype(np.float32)))


def linear(train: Features, test: Features, seed: int) -> Score:
    """Multinomial logistic regression on features standardised by the training set.

    C is the one of `STRENGTHS` with the best macro accuracy on an inner split (a fifth of every class, drawn by the
    seed; none of a class with fewer than five), the smallest of equals; then all of ``train`` is fitted. Training with
    one class only predicts that class.

    Args:
        train: at least one sample.
        test: never looked at but to score.
        seed: of the inner split.
    """
    if len(np.unique(train.codes)) == 1:
        return score(test.codes, np.full(len(test.codes), train.codes[0]))
    held = _held_out(train.codes, seed)
    strength = STRENGTHS[0]
    if held.any():
        inner, outer = train[~held], train[held]
        found = [score(outer.codes, _fitted(inner, c).predict(_rows(outer))).macro for c in STRENGTHS]
        strength = STRENGTHS[int(np.argmax(found))]
    return score(test.codes, _fitted(train, strength).predict(_rows(test)))


def _held_out(codes: Codes, seed: int) -> NDArray[np.bool_]:
    """Which samples choose C: every `HELD_OUT`-th of a class, in an order drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(codes))
    held = np.zeros(len(codes), bool)
    for code in np.unique(codes):
        held[order[codes[order] == code][HELD_OUT - 1 :: HELD_OUT]] = True
    return held


def _fitted(train: Features, strength: float) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps on separable data are as good as converged
        return model.fit(_rows(train), train.codes)


def _rows(features: Features) -> Vectors:
    return features.vectors.astype(np.float32)
