"""One keep-index on all ranks: rank 0 decides, and a rank that sees another one stops, with all others."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from curation.errors import CurationError
from curation.training.index import KeepIndex


def agreed(index: KeepIndex | None, read: Callable[[int | None], KeepIndex], version: int | None = None) -> KeepIndex:
    """The given index, or what ``read`` makes of a version (``None``: the newest that rank 0 sees); all ranks call it.

    Raises:
        CurationError: a rank sees another index than rank 0, or none.
    """
    rank, failed = dist.get_rank(), ""
    if index is None and rank == 0:
        index, failed = _try(read, version)
    first: list[Any] = [_said(index, failed)]
    dist.broadcast_object_list(first, 0)
    if index is None and rank and first[0][0] is not None:
        index, failed = _try(read, first[0][0])
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, _said(index, failed))
    for other, (_, words) in enumerate(seen):
        if seen[0][0] is not None and words != seen[0][1]:
            raise CurationError(
                f"rank {other} sees another keep-index than rank 0: {words}, not {seen[0][1]}; give all ranks the same"
            )
    if index is None:
        raise CurationError(f"rank 0 has no keep-index: {first[0][1]}")
    return index


def _try(read: Callable[[int | None], KeepIndex], version: int | None) -> tuple[KeepIndex | None, str]:
    """An index, or why there is none: the other ranks wait to hear of it."""
    try:
        return read(version), ""
    except (CurationError, OSError) as error:
        return None, str(error)


def _said(index: KeepIndex | None, failed: str) -> tuple[int | None, str]:
    """What a rank tells the others of its index: the version; version and hash in words."""
    return (index.version, f"version {index.version} ({index.sha256})") if index else (None, failed)
