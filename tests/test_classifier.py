"""The bank's classifier: chosen and judged as if each row were left out, and bit for bit the same for any batch."""

import itertools

import numpy as np

from curation.clustering import classifier
from curation.clustering.classifier import Classifier, fit_classifier, softmax
from tests.test_references import bank


def fitted(spread: float = 1.0) -> tuple[Classifier, np.ndarray, np.ndarray]:
    x, labels = bank(classes=4, members=12, seed=1)
    noise = np.random.default_rng(2).standard_normal(x.shape) * spread * 0.3
    x = x.astype(np.float64) + noise
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    return fit_classifier(x, labels, np.arange(len(x), dtype=np.float32) + 3), x, labels


def logits(x: np.ndarray, labels: np.ndarray, at: np.ndarray, gamma: float, ridge: float) -> np.ndarray:
    """Kernel ridge regression on all four classes, by the plainest way to write it down."""
    x, at = (rows / np.linalg.norm(rows.astype(float), axis=1, keepdims=True) for rows in (x, at))
    target = (labels[:, None] == np.unique([f"class {c}" for c in range(4)])) - 1 / 4
    kernel = np.exp(gamma * (x @ x.T - 1)) + ridge * np.eye(len(x))
    return np.asarray(np.exp(gamma * (at @ x.T - 1)) @ np.linalg.solve(kernel, target))


def test_it_is_the_one_of_the_grid_that_tells_each_row_best_by_the_others() -> None:
    made, x, labels = fitted()
    code, found = np.searchsorted(made.classes, labels), {}
    for gamma, ridge in itertools.product(classifier.GAMMAS, classifier.RIDGES):
        left_out = [logits(np.delete(x, i, 0), np.delete(labels, i), x[i : i + 1], gamma, ridge) for i in range(len(x))]
        for temperature in classifier.TEMPERATURES:
            p = softmax(np.concatenate(left_out) * temperature)
            found[-np.log(p[np.arange(len(x)), code]).mean()] = gamma, ridge, temperature, p.max(1)
    gamma, ridge, temperature, confidence = found[min(found)]
    assert (made.gamma, made.temperature) == (gamma, temperature)
    np.testing.assert_allclose(made.confidence, confidence, atol=1e-4)
    other = np.random.default_rng(5).standard_normal((50, x.shape[1]))
    other = (other / np.linalg.norm(other, axis=1, keepdims=True)).astype(np.float16)
    expected = softmax(logits(x, labels, other, gamma, ridge) * temperature)
    np.testing.assert_allclose(made.probabilities(other), expected, atol=1e-3)


def test_a_row_has_the_same_bits_in_any_batch_and_after_a_file() -> None:
    made, _, _ = fitted()
    x = np.random.default_rng(0).standard_normal((3000, 12))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    whole = made.probabilities(x)
    np.testing.assert_allclose(whole.sum(1), 1)
    again = Classifier.from_bytes(made.to_bytes())
    for rows in (slice(0, 1), slice(7, 1900), slice(2999, 3000)):
        assert again.probabilities(x[rows]).tobytes() == whole[rows].tobytes()
    assert made.to_bytes() == again.to_bytes()


def test_least_entropy_passes_over_what_is_unknown() -> None:
    made, x, labels = fitted()
    assert made.least_entropy == 3
    entropy = np.full(len(x), np.nan)
    assert np.isnan(fit_classifier(x, labels, entropy).least_entropy)
    entropy[5] = 2.5
    assert fit_classifier(x, labels, entropy).least_entropy == 2.5
