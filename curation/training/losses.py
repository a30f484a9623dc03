"""What each row cost the model lately: a moving average of its loss, the same on every rank once a pass is over."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

CHUNK = 1 << 20  # rows that ranks exchange at once: 8 MiB


class LossAverages:
    """An exponential moving average of the loss of each row; NaN where a row was never trained on.

    A row's first loss is its average; after that it is beta times the old average plus 1 - beta times the loss. It
    takes 5 bytes a row, on one device, and `update` makes no GPU wait for the host.

    Args:
        total: rows, each a number from 0 to total - 1.
        beta: how slowly it moves, from 0 (the last loss alone, as InfoBatch has it) to below 1.
        device: where it lies; best where the losses are.

    Raises:
        ValueError: a number that cannot be.
    """

    def __init__(self, total: int, beta: float = 0.8, device: str | torch.device = "cpu") -> None:
        if not 0 < total <= 2**31:
            raise ValueError(f"{total} rows: row numbers are of 32 bits, so give 1 to {2**31}")
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: give a number from 0 to below 1")
        self.total, self.beta = total, beta
        self._average = torch.full((total,), torch.nan, dtype=torch.float32, device=device)
        self._moved = torch.zeros(total, dtype=torch.bool, device=device)  # by this rank since the last merge

    def update(self, rows: ArrayLike | Tensor, losses: ArrayLike | Tensor) -> None:
        """Take in the losses of a batch, before its weights.

        Args:
            rows: integers (n,); a row that comes twice has one of its losses taken.
            losses: floats (n,); one that is not finite (an overflow in half precision) is passed over.
        """
        at = torch.as_tensor(rows, device=self._average.device).long()
        loss = torch.as_tensor(losses, device=self._average.device).detach().float()
        old = self._average[at]
        new = torch.where(old.isnan(), loss, self.beta * old + (1 - self.beta) * loss)
        self._average[at] = torch.where(loss.isfinite(), new, old)
        self._moved[at] = True

    def merge(self, group: dist.ProcessGroup | None = None) -> None:
        """Bring what each rank learnt to all of them: every rank of the group calls it, at the end of a pass.

        Ranks train on rows of their own, so that there is one new average a row; where a sampler gave a row to
        several ranks, their mean counts. It is the same on every rank, bit for bit, and if no row was shared the same
        as one process would have. Without ``torch.distributed`` nothing is done.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        there = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
        for start in range(0, self.total, CHUNK):
            rows = slice(start, start + CHUNK)
            average, moved = self._average[rows], self._moved[rows] & ~self._average[rows].isnan()
            told = torch.stack([torch.where(moved, average, 0.0), moved.float()]).to(there)
            dist.all_reduce(told, group=group)
            total, count = told.to(average.device)
            self._average[rows] = torch.where(count > 0, total / count.clamp(min=1), average)
        self._moved.zero_()

    @property
    def values(self) -> NDArray[np.float32]:
        """The averages, (total,), NaN where a row was never trained on; a copy where they lie on a GPU."""
        found: NDArray[np.float32] = self._average.cpu().numpy()
        return found

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a tensor (total,) and ``beta``; of several ranks the same, if they have just merged.

        Raises:
            RuntimeError: there are several ranks, and this one has moved since the last merge.
        """
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several and bool(self._moved.any()):
            raise RuntimeError("the ranks' losses differ: call merge() on every rank before state_dict()")
        return {"beta": self.beta, "average": self._average.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it is of another number of rows or another beta.
        """
        found = len(state["average"]), state["beta"]
        if found != (self.total, self.beta):
            raise ValueError(f"losses of {found[0]} rows, beta={found[1]}, for {self.total} rows, beta={self.beta}")
        self._average.copy_(state["average"])
        self._moved.zero_()
