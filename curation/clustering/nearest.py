"""Which centroid is nearest to a row, by faiss (on GPUs by torch), whatever rows stand beside it.

A matrix product in float32 rounds differently with the rows beside a row, the
thread count and the device. So a row whose best two centroids are closer
together than rounding can tell apart is looked at again: its best few are
compared in float64, and the lower id wins a tie. All other rows are certain.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from curation.clustering.sums import Sums

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]
Vectors = NDArray[np.floating[Any]]  # float16 as stored, or float32

BLOCK = 16_384  # rows searched at once
RECHECKED = 8  # centroids compared again for a row in doubt


class Search(Protocol):
    """Finds the nearest of the same centroids for many rows."""

    def __call__(self, x: Vectors) -> tuple[Labels, Floats]:
        """Labels ``(n,)`` int32 and Euclidean distances ``(n,)`` float32 of rows ``(n, d)``."""

    def sums(self, matrices: Iterable[Vectors]) -> Sums:
        """One pass over all rows of some matrices ``(n, d)``."""


def search_in(centroids: Floats, device: str = "cpu", coarse: Floats | None = None) -> Search:
    """A search among centroids.

    Args:
        centroids: ``(k, d)`` float32.
        device: ``cpu`` or ``cuda``; there exactly, by torch, unless this faiss knows GPUs and there are cells.
        coarse: see :class:`Nearest`.
    """
    if device == "cpu":
        return Nearest(centroids, coarse)
    if coarse is not None and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
        return Nearest(centroids, coarse, on_gpu=True)
    from curation.clustering.gpu import GpuNearest  # torch is slow to import, and not needed on CPUs

    return GpuNearest(centroids, device)


class Nearest:
    """A search by faiss.

    Args:
        centroids: ``(k, d)`` float32.
        coarse: ``(c, d)`` float32, few centroids of the centroids. With them only the centroids
            in the ``PROBES`` nearest cells are looked at: an approximation, for very large ``k``.
        on_gpu: whether faiss searches there.
    """

    PROBES = 16

    def __init__(self, centroids: Floats, coarse: Floats | None = None, on_gpu: bool = False) -> None:
        self.centroids = np.ascontiguousarray(centroids, np.float32)
        self.longest = float(np.linalg.norm(self.centroids.astype(np.float64), axis=1).max())
        self._index = _index(self.centroids, coarse, on_gpu)

    def search(self, x: Floats, few: int) -> tuple[Floats, NDArray[np.int64]]:
        """Squared distances and labels ``(n, few)``, as rounded; what is not there is infinitely far, labelled -1."""
        squared, found = self._index.search(x, few)
        return np.where(found < 0, np.float32(np.inf), squared), found

    def two(self, x: Floats) -> tuple[Labels, Floats]:
        """Nearest centroid and the squared distances to the best two.

        Args:
            x: ``(n, d)`` float32.

        Returns:
            Labels ``(n,)`` int32, and squared distances ``(n, 2)`` float32 (the second infinite where ``k`` is 1).
        """
        squared, found = self.search(x, 2)
        labels = found[:, 0].astype(np.int32)
        limit = rounding(x.shape[1]) * (np.sqrt(np.einsum("ij,ij->i", x, x)) + self.longest) ** 2
        doubt = squared[:, 1] - squared[:, 0] <= limit
        for rows in np.array_split(np.flatnonzero(doubt), 1 + np.count_nonzero(doubt) // 1024):
            labels[rows] = self._again(x[rows])
        return labels, squared

    def __call__(self, x: Vectors) -> tuple[Labels, Floats]:
        """See :class:`Search`."""
        labels, distances = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
        for start, block in blocks(x):
            rows = slice(start, start + len(block))
            labels[rows], _ = self.two(block)
            distances[rows] = np.linalg.norm(block - self.centroids[labels[rows]], axis=1)
        return labels, distances

    def sums(self, matrices: Iterable[Vectors]) -> Sums:
        """See :class:`Search`."""
        total = Sums.zero(*self.centroids.shape)
        for x in matrices:
            for _, block in blocks(x):
                total.add_points(block, *self.two(block))
        return total

    def _again(self, x: Floats) -> Labels:
        _, found = self.search(x, RECHECKED)
        found = np.where(found < 0, found[:, :1], found)  # fewer than asked for
        found.sort(axis=1)
        differences = x[:, None].astype(np.float64) - self.centroids[found]
        best = np.einsum("nkd,nkd->nk", differences, differences).argmin(1)
        chosen: Labels = found[np.arange(len(x)), best].astype(np.int32)
        return chosen


def nearest(x: Vectors, centroids: Floats, device: str = "cpu") -> tuple[Labels, Floats]:
    """Nearest centroid of each row, and its Euclidean distance; see :class:`Search`."""
    return search_in(centroids, device)(x)


def rounding(d: int) -> float:
    """How far squared distances err in float32, as a share of the squared lengths.

    A dot product of d terms errs by at most about d * 2^-24 times the lengths (Higham 2002, 3.1).
    """
    return 2 * (d + 4) * 2.0**-24


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep faiss to one thread: work is spread over processes, and bits depend on the thread count."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def blocks(x: NDArray[Any]) -> Iterator[tuple[int, Floats]]:
    """Runs of :data:`BLOCK` rows as contiguous float32, each with the number of its first row."""
    for start in range(0, len(x), BLOCK):
        yield start, np.ascontiguousarray(x[start : start + BLOCK], np.float32)


def _index(centroids: Floats, coarse: Floats | None, on_gpu: bool) -> Any:
    index: Any = faiss.IndexFlatL2(centroids.shape[1])
    if coarse is not None:
        index.add(np.ascontiguousarray(coarse, np.float32))
        index = faiss.IndexIVFFlat(index, centroids.shape[1], len(coarse))
        index.train(centroids)  # the cells are there already
        index.nprobe = Nearest.PROBES
    index.add(centroids)
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index) if on_gpu else index
