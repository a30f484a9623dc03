"""Spectral diversity: how many directions of an encoder's space the kept set fills.

The Vendi score with the cosine kernel (Friedman and Dieng 2023, "The Vendi Score: A Diversity Evaluation Metric for
Machine Learning", arXiv 2210.02410): the exponential of the von Neumann entropy of K/n. For unit vectors X its
eigenvalues are those of XᵀX/n, a d x d matrix that parts of the archive can add up, so no n x n matrix is made.
"""

import numpy as np

from curation.evaluation.moments import Moments


def vendi_score(moments: Moments) -> float:
    """The effective number of distinct samples: 1 where all are the same, at most the smaller of n and d.

    Copies do not raise it. Grows with n while n is small beside d, so sets of one size are compared.

    Args:
        moments: of unit vectors.
    """
    eigenvalues = np.linalg.eigvalsh(moments.outer / np.trace(moments.outer))  # float16 rows are not quite of length 1
    positive = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))
