"""Checkpoints of a training: each whole or absent, the newest gone on from, on the numeric profile that wrote it."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import distributed as dist

from curation.errors import RequestError
from curation.storage import Folder

BELOW = "checkpoints"  # the folder of a training that they lie in
KEPT = 2  # the newest ones


def save(folder: Folder, step: int, state: dict[str, Any], profile: dict[str, str]) -> None:
    """Write a checkpoint, whole or not at all, and remove those that nobody needs any more."""
    with folder.writer(f"{BELOW}/{step:09d}.pt") as file:
        torch.save({**state, "profile": profile}, file)
    for path in _paths(folder)[:-KEPT]:
        folder.remove(path)


def newest(folder: Folder, profile: dict[str, str], mix: bool) -> dict[str, Any] | None:
    """The newest checkpoint, on every rank the one that rank 0 sees; None where there is none.

    Args:
        folder: of the training.
        profile: numeric, of this worker.
        mix: whether one of another profile may be gone on from.

    Raises:
        RequestError: it is of another profile.
    """
    found = _paths(folder)[-1:]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(first := [found], 0)
        found = first[0]
    if not found:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(folder.read(found[0])), map_location="cpu", weights_only=True)
    if state["profile"] != profile and not mix:
        raise RequestError(
            f"{folder.public(found[0])} was written on another numeric profile ({state['profile']}, here {profile}): "
            "go on there, or allow another result with runtime.mix_profiles=true"
        )
    return state


def discard(folder: Folder) -> None:
    """Remove all checkpoints of a training that is done."""
    folder.discard(BELOW)


def _paths(folder: Folder) -> list[str]:
    """The oldest first."""
    return sorted(file.path for file in folder.list(BELOW) if file.path.endswith(".pt"))
