"""What models make of labelled samples: separability, integrity and agreement (SIM, 2409.13915), and training dynamics.

Plain functions on arrays of one expert or of all; which models, and how they are trained, is no matter here.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

TERMS = ("separability", "integrity", "agreement")  # of SIM
DYNAMICS = ("el2n", "forgetting", "aum")
SCORES = (*TERMS, "sim", *DYNAMICS)
ROWS = 4096  # worked on at once


def to_centres(features: NDArray[np.float32], codes: Codes, classes: int) -> tuple[Floats, Floats]:
    """Cosine distances of each sample to its own class's centre, d_P (n,), and to the nearest other one, d_N (n,).

    Args:
        features: (n, dim) embeddings; a class's centre is the mean of its members', the sample itself among them.
        codes: (n,) from 0; every class has a member.
        classes: how many, at least 2.
    """
    centres = np.zeros((classes, features.shape[1]))
    for start in range(0, len(features), ROWS):
        np.add.at(centres, codes[start : start + ROWS], features[start : start + ROWS].astype(np.float64))
    centres = _unit(centres)
    own, other = np.empty(len(features)), np.empty(len(features))
    for start in range(0, len(features), ROWS):
        rows, mine = slice(start, start + ROWS), codes[start : start + ROWS]
        distances = 1 - _unit(features[rows].astype(np.float64)) @ centres.T
        at = np.arange(len(mine))
        own[rows] = distances[at, mine]
        distances[at, mine] = np.inf
        other[rows] = distances.min(axis=1)
    return np.maximum(own, 0), np.maximum(other, 0)


def separability(own: ArrayLike, other: ArrayLike, eps: float) -> Floats:
    """d_N / (d_P + eps), by the distances of :func:`to_centres`."""
    ratio: Floats = np.asarray(other, np.float64) / (np.asarray(own, np.float64) + eps)
    return ratio


def integrity(features: NDArray[np.float32]) -> Floats:
    """The length of the embedding, (n,)."""
    lengths: Floats = np.linalg.norm(features.astype(np.float64), axis=1)
    return lengths


def agreement(probabilities: Iterable[NDArray[np.float32]]) -> Floats:
    """1 - JSD over experts, from 0 (each is sure of something else) to 1 (all say the same); 1 of a single expert.

    JSD = H(mean of p_j) - mean of H(p_j), over the logarithm of the number of experts, which is its greatest value.

    Args:
        probabilities: (n, classes) of each expert, one at a time.
    """
    total, entropies, experts = np.zeros(()), np.zeros(()), 0
    for one in probabilities:
        p = one.astype(np.float64)
        total, entropies, experts = total + p, entropies + _entropy(p), experts + 1
    if experts < 2:
        return np.ones(len(total))
    divergence = (_entropy(total / experts) - entropies / experts) / np.log(experts)
    agreed: Floats = 1 - np.clip(divergence, 0, 1)
    return agreed


def sim(terms: Mapping[str, ArrayLike], combine: str = "product") -> Floats:
    """One score in [0, 1] from terms brought to [0, 1] by their least and greatest value; high is easy.

    Args:
        terms: name to (n,); a term that is the same for all counts as 1.
        combine: ``product``, or ``sum``: their mean.

    Raises:
        ValueError: no term, or another way.
    """
    scaled = np.stack([_min_max(np.asarray(values, np.float64)) for values in terms.values()])
    if combine not in ("product", "sum"):
        raise ValueError(f"combine={combine}")
    made: Floats = scaled.prod(axis=0) if combine == "product" else scaled.mean(axis=0)
    return made


def ranks(values: ArrayLike, groups: Codes | None = None) -> Floats:
    """(rank - 1/2) / n in (0, 1), within groups if there are any; equals share the mean of their ranks.

    Args:
        values: (n,) finite.
        groups: (n,) codes from 0.
    """
    values = np.asarray(values, np.float64)
    groups = np.zeros(len(values), np.int64) if groups is None else groups
    order = np.lexsort((values, groups))
    sizes = np.bincount(groups) if len(groups) else np.zeros(1, np.int64)
    within = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    v, g = values[order], groups[order]
    first = np.ones(len(v), bool)
    first[1:] = (v[1:] != v[:-1]) | (g[1:] != g[:-1])
    run = np.cumsum(first) - 1
    means = np.bincount(run, within) / np.maximum(np.bincount(run), 1) if len(v) else np.zeros(0)
    found = np.empty(len(v))
    found[order] = (means[run] + 0.5) / sizes[g]
    return found


class Dynamics:
    """Follows a training by what it is told of every row once a pass (a ``network.Watch``).

    EL2N is the length of softmax - one-hot (Paul et al. 2021), summed over the first passes; AUM the sum of p_y less
    the greatest other p (Pleiss et al. 2020, with probabilities as in CCS); forgetting how often a row that was
    classified rightly was wrong the next time, and the number of passes for one that never was right (Toneva et al.
    2019 take those for the most forgotten).

    Args:
        codes: (n,) labels.
        epochs: passes that count.
        early: passes that EL2N sums over.
    """

    def __init__(self, codes: Codes, epochs: int, early: int) -> None:
        self.codes, self.epochs, self.early = codes, epochs, early
        self.el2n, self.aum, self.forgotten = (np.zeros(len(codes)) for _ in range(3))
        self.right, self.learnt = np.zeros(len(codes), bool), np.zeros(len(codes), bool)

    @property
    def forgetting(self) -> Floats:
        """(n,); ``epochs`` where a row was never right."""
        return np.where(self.learnt, self.forgotten, self.epochs)

    def __call__(self, epoch: int, rows: Codes, logits: NDArray[np.float32]) -> None:
        """Take the logits of some rows in a pass, each row once."""
        if epoch >= self.epochs:  # the last step may begin another pass
            return
        p = softmax(logits)
        at, own = np.arange(len(rows)), self.codes[rows]
        truth = p[at, own]
        if epoch < self.early:
            wrong = p.copy()
            wrong[at, own] -= 1
            self.el2n[rows] += np.linalg.norm(wrong, axis=1)
        others = p
        others[at, own] = -np.inf
        margin = truth - others.max(axis=1)
        self.aum[rows] += margin
        self.forgotten[rows] += self.right[rows] & (margin <= 0)
        self.right[rows] = margin > 0
        self.learnt[rows] |= margin > 0


def softmax(logits: NDArray[np.float32]) -> Floats:
    """Probabilities, (n, classes)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    made: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return made


def correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's rank correlation; ``None`` where one of the two is the same for all."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale else None


def brightness(tiles: NDArray[np.uint8]) -> Floats:
    """The mean of each tile's pixels over its bands, (n,), 0 to 255."""
    return np.concatenate([part.mean((1, 2, 3), dtype=np.float64) for part in _parts(tiles)])


def texture(tiles: NDArray[np.uint8]) -> Floats:
    """The mean difference between neighbouring pixels of each tile, (n,)."""
    found = []
    for part in _parts(tiles):
        wide = part.astype(np.float32)
        rows, columns = np.abs(np.diff(wide, axis=2)), np.abs(np.diff(wide, axis=3))
        found.append((rows.mean((1, 2, 3)) + columns.mean((1, 2, 3))).astype(np.float64) / 2)
    return np.concatenate(found)


def _parts(tiles: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
    return [tiles[start : start + ROWS] for start in range(0, max(1, len(tiles)), ROWS)]


def _unit(rows: Floats) -> Floats:
    made: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return made


def _entropy(p: Floats) -> Floats:
    """Of each row, nats."""
    made: Floats = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
    return made


def _min_max(values: Floats) -> Floats:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)
