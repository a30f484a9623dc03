"""Which samples a model trains on until the next draw: so many, spread evenly over what its own features tell apart.

The dynamic pruning of OceanSAR-1 (arXiv 2504.06962). Published: a warm-up on everything; then every so many epochs
embed, fit hierarchical k-means on a sample, and draw a share rho of the archive with a diversity eta. Reconstructed
(the paper gives no formula): equal seats down the levels with what there is as a cap, as Vo et al. 2024
(arXiv 2405.15613) draw; within a leaf weights exp(eta z), z the distance to its centroid in standard deviations of the
leaf's distances; always from the full set, never from the last draw.

Pure functions on arrays: no Ray, no files, no clock. A sample's luck depends on its id, the seed and the version alone.
"""

from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.clustering.hierarchy import build_levels
from curation.clustering.kmeans import default_k, fit_kmeans
from curation.clustering.nearest import Floats, Labels, Vectors, nearest, one_thread
from curation.clustering.points import Points, Rows
from curation.clustering.settings import check_levels
from curation.errors import RequestError
from curation.selection.sampling import Words, distance_weight, estimate_weight, line_up, mix, priority, uniform
from curation.selection.tree import Tree, parents_of
from curation.training.settings import PruneConfig

SHARE, SAMPLE, FIT, DRAW = range(4)  # what a number is drawn for: none of them tells anything of the others


class Draw(NamedTuple):
    """What is kept.

    Attributes:
        rows: int64 (kept,), numbers of samples, rising.
        weights: float32 (kept,), 1 / the probability with which each was drawn; they undo the balancing in a mean.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float32]


class Leaves(NamedTuple):
    """A fitted hierarchy of clusters.

    Attributes:
        centroids: float32 (k, d), of the lowest level.
        ancestors: int32 (k, levels - 1), the cluster of each level above that a leaf lies in, upwards.
    """

    centroids: Floats
    ancestors: Labels


def due(seen: int, total: int, prune: PruneConfig) -> int:
    """The version of the index that is trained on after so many samples; 0 is the full set.

    An epoch is as many samples as the archive has, whatever is kept. The first draw is due once ``prune.warm`` epochs
    are over, the next after every ``prune.every`` (0: there is no next one).

    Args:
        seen: samples trained on, of all ranks, from the start.
        total: samples of the archive, at least 1.
        prune: the settings.
    """
    after = seen - ceil(prune.warm * total)
    if prune.strategy == "none" or after < 0:
        return 0
    return 1 + (after // max(1, ceil(prune.every * total)) if prune.every else 0)


def random(words: Words, keep: float, seed: int, version: int) -> Draw:
    """A share of all samples, each as likely as any other.

    Args:
        words: uint64 (n,), the upper halves of the samples' ids.
        keep: the share, to the nearest sample, one at least.
        seed: of the luck.
        version: another one is another draw.
    """
    same = np.zeros(len(words), np.int32)
    only = np.zeros((1, 0), np.int32)
    return draw(same, np.zeros(len(words), np.float32), words, only, budget(keep, len(words)), 0.0, seed, version)


def balanced(
    vectors: Vectors,
    words: Words,
    *,
    keep: float,
    seed: int,
    version: int,
    diversity: float = 0.0,
    levels: list[int] | None = None,
    sample: int = 200_000,
    device: str = "cpu",
) -> Draw:
    """Fit, assign and draw in this process.

    Args:
        vectors: (n, d) float16 or float32, of unit length.
        words: uint64 (n,), the upper halves of the samples' ids.
        keep: the share, to the nearest sample, one at least.
        seed: of fit and luck.
        version: another one is another fit and another draw.
        diversity: above 0 favours what is far from its centroid, below 0 what is near.
        levels: clusters on each level, from the top; None: the square root of as many as `default_k` says, then those.
        sample: clusters are fitted on about so many rows, drawn by hash.
        device: ``cpu`` or ``cuda``, where nearest centroids are searched.

    Raises:
        RequestError: the levels do not rise, or ask for more clusters than there are rows to fit them on.
    """
    fitted_on = sampled(words, sample, len(words), seed, version)
    asked = choose_levels(levels, len(words), int(fitted_on.sum()))
    leaves = fit(Rows({0: lambda: vectors[fitted_on]}, fit_seed(seed, version), device), asked, seed, version)
    with one_thread():
        leaf, distance = nearest(vectors, leaves.centroids, device)
    return draw(leaf, distance, words, leaves.ancestors, budget(keep, len(words)), diversity, seed, version)


def budget(keep: float, total: int) -> int:
    """How many samples a share is: to the nearest, one at least."""
    return max(1, round(keep * total))


def in_share(words: Words, share: float, seed: int, version: int) -> NDArray[np.bool_]:
    """Which samples are embedded for a draw: about a share of them, others for each version."""
    return uniform(words, _mixed(seed, version, SHARE)) < share


def sampled(words: Words, sample: int, total: int, seed: int, version: int) -> NDArray[np.bool_]:
    """Which of ``total`` rows, of which these are some, the clusters are fitted on: about ``sample`` of all."""
    return uniform(words, _mixed(seed, version, SAMPLE)) < sample / max(1, total)


def fit_seed(seed: int, version: int) -> int:
    """The seed of a version's clusters."""
    return _mixed(seed, version, FIT)


def choose_levels(asked: list[int] | None, rows: int, fitted_on: int) -> list[int]:
    """How many clusters there shall be on each level, from the top.

    Args:
        asked: ``pretrain.prune.levels``.
        rows: that will be assigned.
        fitted_on: rows that centroids are fitted on.

    Raises:
        RequestError: see `balanced`.
    """
    if asked is None:
        lowest = max(1, min(default_k(rows), fitted_on))
        return sorted({default_k(lowest), lowest})
    check_levels("pretrain.prune.levels", asked)
    if asked[-1] > fitted_on:
        raise RequestError(
            f"pretrain.prune.levels={asked}: {fitted_on} samples are too few to fit {asked[-1]} clusters on; "
            "lower it, or raise pretrain.prune.sample"
        )
    return list(asked)


def fit(points: Points, levels: list[int], seed: int, version: int) -> Leaves:
    """Hierarchical k-means: the lowest level on the points, each above on the centroids of the one below."""
    seed = fit_seed(seed, version)
    return raise_levels(fit_kmeans(points, levels[-1], seed).centroids, levels, seed)


def raise_levels(centroids: Floats, levels: list[int], seed: int) -> Leaves:
    """The levels above fitted centroids."""
    above = np.arange(len(centroids), dtype=np.int32)
    with one_thread():
        ancestors = [above := parents[above] for parents in build_levels(centroids, levels[-2::-1], seed)]
    return Leaves(centroids, np.stack(ancestors, 1) if ancestors else np.zeros((len(centroids), 0), np.int32))


def draw(
    leaf: Labels,
    distance: Floats,
    words: Words,
    ancestors: Labels,
    budget: int,
    diversity: float,
    seed: int,
    version: int,
) -> Draw:
    """Draw from assigned samples: equal seats down the tree, in a leaf consistent sampling by distance.

    Takes about 80 bytes a sample.

    Args:
        leaf: int32 (n,), the lowest cluster of each sample.
        distance: float32 (n,), to its centroid.
        words: uint64 (n,), the upper halves of the samples' ids.
        ancestors: int32 (k, levels - 1), see `Leaves`.
        budget: samples to keep; all where there are no more.
        diversity: see `balanced`.
        seed: of the luck.
        version: of the luck too.
    """
    k = len(ancestors)
    sizes = np.bincount(leaf, minlength=k)
    mean = np.bincount(leaf, distance, k) / np.maximum(sizes, 1)
    std = np.sqrt(np.bincount(leaf, (distance - mean[leaf]) ** 2, k) / np.maximum(sizes, 1))
    weight = distance_weight(distance, mean[leaf], std[leaf], -diversity)
    luck = priority(uniform(words, _mixed(seed, version, DRAW)), weight)
    seats = Tree(sizes, parents_of(ancestors)).quotas(min(budget, len(leaf)))
    order, start = line_up(leaf, luck, words)
    place = np.arange(len(order)) - start
    strata = leaf[order]
    refused = order[place == seats[strata]]  # the first of each leaf
    threshold = np.full(k, np.nan)
    threshold[leaf[refused]] = luck[refused]
    rows = np.sort(order[place < seats[strata]])
    return Draw(rows, estimate_weight(weight[rows], threshold[leaf[rows]]).astype(np.float32))


def _mixed(*numbers: int) -> int:
    """One seed out of several numbers, by SplitMix64."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = mix(state ^ np.uint64(number % 2**64))
    return int(state[0])
