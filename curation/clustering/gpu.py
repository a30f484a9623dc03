"""The nearest centroids of many rows on a GPU, in torch, by the rules of `clustering.nearest`.

Rows go there as they are stored, and only labels, distances or sums come back: on one H200 the same steps by NumPy
took twenty times as long as the products.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from curation.clustering.nearest import BLOCK, RECHECKED, Floats, Labels, Vectors, rounding
from curation.clustering.sums import FINE, Sums

PRODUCTS = 1 << 28  # in memory at once: a gigabyte


class GpuNearest:
    """An exact search, see :class:`.Search`.

    Args:
        centroids: ``(k, d)`` float32.
        device: ``cuda``; ``cpu`` gives the same answers.
    """

    def __init__(self, centroids: Floats, device: str = "cuda") -> None:
        self.device = torch.device(device)
        self.centroids = torch.from_numpy(np.array(centroids, np.float32)).to(self.device)
        self.norms = self.centroids.square().sum(1)
        self.longest = float(self.centroids.double().square().sum(1).max().sqrt())

    def __call__(self, x: Vectors) -> tuple[Labels, Floats]:
        """See :class:`.Search`; distances are taken in float64, so that they depend on nothing but row and centroid."""
        labels, distances = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
        start = 0
        for rows in self._blocks(x):
            found, _ = self._two(rows)
            away = (rows.double() - self.centroids[found].double()).square().sum(1).sqrt()
            stop = start + len(rows)
            labels[start:stop], distances[start:stop] = found.cpu().numpy(), away.cpu().numpy()
            start = stop
        return labels, distances

    def sums(self, matrices: Iterable[Vectors]) -> Sums:
        """See :class:`.Search`; exact, as :meth:`.Sums.add_points`, so that threads may add in any order."""
        k, device = len(self.centroids), self.device
        vectors = torch.zeros_like(self.centroids, dtype=torch.float64)
        counts = torch.zeros(k, dtype=torch.int64, device=device)
        errors, gaps = torch.zeros((2, k), dtype=torch.float64, device=device)
        for x in matrices:
            for rows in self._blocks(x):
                labels, squared = self._two(rows)
                rounded = (torch.where(squared.isinf(), squared[:, :1], squared) * FINE).round() / FINE
                vectors.index_add_(0, labels, rows.double())
                counts += torch.bincount(labels, minlength=k)
                errors.index_add_(0, labels, rounded[:, 0].double())
                gaps.index_add_(0, labels, (rounded[:, 1] - rounded[:, 0]).double())
        return Sums(vectors.cpu().numpy(), counts.cpu().numpy(), errors.cpu().numpy(), gaps.cpu().numpy())

    def _blocks(self, x: Vectors) -> Iterator[Tensor]:
        """Some rows at a time, float32, on the device."""
        step = max(1, min(BLOCK, PRODUCTS // len(self.centroids)))
        for start in range(0, len(x), step):
            block = np.require(x[start : start + step], requirements=["C", "W"])  # torch takes no others
            yield torch.from_numpy(block).to(self.device).float()

    def _two(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`.Nearest.two`."""
        products = self._products(rows)
        first, labels = products.min(1)
        second = products.scatter_(1, labels[:, None], torch.inf).min(1).values
        lengths = rows.square().sum(1)
        squared = (torch.stack([first, second], 1) + lengths[:, None]).clamp_min(0)
        limit = rounding(rows.shape[1]) * (lengths.sqrt() + self.longest) ** 2
        doubt = (squared[:, 1] - squared[:, 0] <= limit).nonzero()[:, 0]
        for some in torch.tensor_split(doubt, 1 + len(doubt) // 1024):
            labels[some] = self._again(rows[some])
        return labels, squared

    def _again(self, rows: Tensor) -> Tensor:
        """The nearest in float64 of the best few; of several the lowest id, as ``argmin`` takes the first."""
        few = self._products(rows).topk(min(RECHECKED, len(self.centroids)), largest=False).indices.sort(1).values
        differences = rows[:, None].double() - self.centroids[few].double()
        best = differences.square().sum(2).argmin(1, keepdim=True)
        return few.gather(1, best)[:, 0]

    def _products(self, rows: Tensor) -> Tensor:
        """Squared distances ``(n, k)`` less the rows' squared lengths."""
        return torch.addmm(self.norms, rows, self.centroids.T, alpha=-2)
