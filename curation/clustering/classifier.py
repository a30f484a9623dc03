"""The bank's classes, told from embeddings: kernel ridge regression on its labels, chosen by leaving one out.

Probabilities hang on nothing but the row and the classifier: cosines, kernel and weights are rounded so that float64
holds their sums exactly, whatever is computed beside them.
"""

import io
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curation.clustering.nearest import Vectors

Floats = NDArray[np.float64]

CLASSIFIER = "classifier.npz"  # below ``clusters/<id>``; there where the bank has two classes at least
ROWS = 4096  # of the bank, at most: those whose ids, which are hashes, are the least
GAMMAS, RIDGES = (1.0, 2.0, 4.0), (0.1, 1 / 3, 1.0)
TEMPERATURES = (4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0)
COSINES, KERNELS, WEIGHTS = 2.0**20, 2.0**18, 2.0**20  # steps a unit; of the weights, to the power of two above them
STRIPE = 1024  # rows whose kernel is made at once: 32 MiB with the largest bank


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier; arrays alone, so that its file needs no pickles.

    Attributes:
        bank: (m, d) float16, unit rows.
        weights: (m, C) float64.
        gamma: of the kernel exp(gamma (cos - 1)).
        temperature: what the regression is multiplied by before the softmax.
        classes: (C,) names, sorted.
        confidence: (m,) the largest probability of each row of the bank, had it been left out.
        least_entropy: of the bank, bits; NaN where none has one.
    """

    bank: Vectors
    weights: Floats
    gamma: NDArray[np.float64]
    temperature: NDArray[np.float64]
    classes: NDArray[np.str_]
    confidence: Floats
    least_entropy: NDArray[np.float64]

    def probabilities(self, x: Vectors) -> Floats:
        """(n, C) under equal shares of the classes; ``x``: (n, d) float16 of about unit length."""
        found = np.empty((len(x), len(self.classes)))
        for start in range(0, len(x), STRIPE):
            rows = slice(start, start + STRIPE)
            kernel = np.rint(_kernel(_cosines(x[rows], self.bank), self.gamma) * KERNELS) / KERNELS
            found[rows] = softmax(kernel @ self.weights * self.temperature)
        return found

    def to_bytes(self) -> bytes:
        """The content of ``classifier.npz``, the same for the same classifier."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{field.name: getattr(self, field.name) for field in fields(self)})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Classifier":
        """What `to_bytes` gave."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return cls(**{field.name: file[field.name] for field in fields(cls)})


def fit_classifier(x: Vectors, labels: NDArray[np.str_], entropy: ArrayLike) -> Classifier:
    """Of all settings in the grid those of the least log loss where each row is told by the others.

    Without row i the regression gives it f_i - (K + r I)^-1 y|_i / ((K + r I)^-1)_ii (Rifkin and Lippert 2007,
    Notes on regularized least squares), f being what it gives with it less y; y is one-hot less 1 / C.

    Args:
        x: (m, d) float16 of about unit length.
        labels: (m,) of two classes at least.
        entropy: (m,) bits, NaN where unknown.
    """
    classes, code = np.unique(labels, return_inverse=True)
    target, rows = np.eye(len(classes))[code] - 1 / len(classes), np.arange(len(x))
    cosine, best = _cosines(x, x), (np.inf, 0.0, 0.0, target, np.empty(0))
    for gamma in GAMMAS:
        kernel = _kernel(cosine, gamma)
        for ridge in RIDGES:
            inverse = np.linalg.inv(kernel + ridge * np.eye(len(x)))
            weights = inverse @ target
            without = target - weights / np.diag(inverse)[:, None]
            for temperature in TEMPERATURES:
                p = softmax(without * temperature)
                loss = float(-np.log(p[rows, code] + 1e-12).mean())
                if loss < best[0]:
                    best = loss, gamma, temperature, weights, p.max(1)
    _, gamma, temperature, weights, confidence = best
    step = 2.0 ** np.ceil(np.log2(np.abs(weights).max())) / WEIGHTS
    return Classifier(
        bank=x,
        weights=np.rint(weights / step) * step,
        gamma=np.array(gamma),
        temperature=np.array(temperature),
        classes=classes,
        confidence=confidence,
        least_entropy=np.fmin.reduce(np.asarray(entropy, np.float64)),
    )


def softmax(z: Floats) -> Floats:
    """Rows of (n, C) as probabilities."""
    p: Floats = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p


def _cosines(a: Vectors, b: Vectors) -> Floats:
    """(n, m); products of float16 coordinates of unit vectors add without error in float64."""
    wide, other = a.astype(np.float64), b.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None] * np.sqrt(np.einsum("ij,ij->i", other, other))
    found: Floats = np.rint(wide @ other.T / np.maximum(lengths, 1e-6) * COSINES) / COSINES
    return found


def _kernel(cosine: Floats, gamma: float | NDArray[np.float64]) -> Floats:
    kernel: Floats = np.exp(gamma * (cosine - 1))
    return kernel
