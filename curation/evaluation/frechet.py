"""Fréchet distance between two sets in an encoder's space, both taken for Gaussians.

d² = |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) (Dowson and Landau 1982; "FID" with Inception's features, Heusel 2017).
The trace of the root is the sum of the singular values of C1^½ C2^½: two symmetric eigenproblems, and no root of a
product, which loses its symmetry and half of its digits where covariances are singular.

**Small samples** raise it (Chong and Forsyth 2020, "Effectively Unbiased FID"): it is above 0 for two draws of one
Gaussian, by `expected` to first order, which grows with the dimensions and falls with the samples. So (1) the space is
cut to the first principal axes of the reference, `axes`, the same for all arms; (2) kept sets of one size are compared;
(3) the distance is read beside `expected`, or a random draw of that size. Have at least ten samples a dimension, so 640
for the default 64; with fewer than one the covariance is singular, and the distance mostly says how small the set is.

**Which reference.** A reference that a filter made (say the top by entropy) flatters every filter of that kind; so each
set is measured against an unfiltered reference and a filtered one, and both stand side by side.
"""

import numpy as np

from curation.evaluation.moments import Floats, Moments

DIMENSIONS = 64


def axes(reference: Moments, dimensions: int = DIMENSIONS) -> Floats:
    """The first principal axes of the reference, float64 (d, k), k = min(dimensions, d), largest variance first."""
    _, vectors = np.linalg.eigh(reference.covariance)
    return np.ascontiguousarray(vectors[:, ::-1][:, :dimensions])


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Fréchet distance (what FID reports), in squared units of the space, at least 0.

    Args:
        one: moments of at least two vectors, projected on the `axes` of the unfiltered reference.
        other: likewise.
    """
    shift = one.mean - other.mean
    roots = np.linalg.svd(_root(one.covariance) @ _root(other.covariance), compute_uv=False)
    distance = shift @ shift + np.trace(one.covariance) + np.trace(other.covariance) - 2 * roots.sum()
    return float(max(distance, 0.0))


def expected(reference: Moments, samples: int) -> float:
    """What `frechet_distance` to the reference is on average, to first order in 1/n, for a random draw of its samples.

    tr C / n from the mean, and from the covariance sum_ij E[E_ij²] / (2 (l_i + l_j)) with E[E_ij²] =
    l_i l_j (1 + [i = j]) / n (Wishart), l the eigenvalues of C: the second-order term of the Bures distance. Both times
    1 - n/N, for a draw without replacement.

    Args:
        reference: projected moments of N samples, taken as the truth.
        samples: n.
    """
    values = np.maximum(np.linalg.eigvalsh(reference.covariance), 0)
    sums = np.maximum(values[:, None] + values, np.finfo(float).tiny)
    spread = (np.outer(values, values) / (2 * sums)).sum() + values.sum() / 4
    return float((values.sum() + spread) * (1 / samples - 1 / reference.count))


def _root(covariance: Floats) -> Floats:
    """The symmetric root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
