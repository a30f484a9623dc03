"""What the encoders with trained weights share: their checkpoint, and the forward in one constant shape."""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.encoders.base import Artefact, Floats, Preparation, in_batches
from curation.encoders.checkpoints import weights_file
from curation.errors import RequestError
from curation.storage import is_local, local_path, without_secrets


class NetEncoder:
    """An image network behind the encoder interface; float32 on a CPU, bfloat16 autocast on a GPU.

    Args:
        name: the encoder's and the architecture's.
        forward: maps a float tensor ``(batch, channels, size, size)`` to ``(batch, dim)``.
        prepare: makes the tiles; its ranges scale 8-bit tiles to [0, 1] here, on the device.
        mean, std: a number a channel, applied after that scaling.
    """

    needs_pixels = True

    def __init__(
        self,
        name: str,
        forward: Callable[[Any], Any],
        prepare: Preparation,
        mean: Sequence[float],
        std: Sequence[float],
        batch: int,
        device: Any,
    ) -> None:
        import torch

        self.name, self.prepare, self.batch = name, prepare, batch
        self._net, self._device = forward, device
        ranges = prepare.ranges

        def a_channel(values: Any) -> Any:
            return torch.as_tensor(np.asarray(values, np.float32), device=device)[:, None, None]

        self._low, self._span = a_channel(ranges[:, 0]), a_channel(ranges[:, 1] - ranges[:, 0])
        self._mean, self._std = a_channel(mean), a_channel(std)
        self.dim = self._forward(np.zeros((1, len(ranges), prepare.size, prepare.size), np.uint8)).shape[1]

    def encode(self, tiles: NDArray[Any]) -> Floats:
        """``(n, channels, size, size)`` -> ``(n, dim)``, unit length."""
        return in_batches(tiles, self.batch, self._forward)

    def _forward(self, tiles: NDArray[Any]) -> Floats:
        import torch

        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            x = torch.from_numpy(tiles).to(self._device).float()
            if tiles.dtype == np.uint8:
                x = ((x - self._low) / self._span).clamp(0, 1)
            y = self._net((x - self._mean) / self._std)
            return np.asarray(y.float().cpu().numpy())


def checkpoint_file(checkpoint: Any, encoder: str) -> str | None:
    """The path of a local checkpoint's file, or None if ``checkpoint`` is a hub tag.

    Raises:
        RequestError: none was given, or a path that is not there.
    """
    if not checkpoint:
        raise RequestError(f"encoder={encoder} needs weights: add encoder.checkpoint=PATH, or a hub tag")
    path = weights_file(local_path(checkpoint)) if is_local(checkpoint) else checkpoint
    if os.path.isfile(path):
        return path
    if os.sep in checkpoint or checkpoint.endswith((".pt", ".pth", ".bin", ".safetensors", ".ckpt")):
        raise RequestError(f"encoder.checkpoint={without_secrets(checkpoint)}: no such local file")
    return None


def digest(path: str) -> NDArray[np.uint8]:
    """The SHA-256 of a file's bytes, as 32 numbers: another file under the same name is another artefact."""
    with open(path, "rb") as file:
        return np.frombuffer(hashlib.file_digest(file, "sha256").digest(), np.uint8)


def weights_digest(module: Any) -> NDArray[np.uint8]:
    """The SHA-256 of a module's weights, for those that came by a hub tag."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().float().numpy().tobytes())
    return np.frombuffer(sha.digest(), np.uint8)


def check_digest(artefact: Artefact, now: NDArray[np.uint8], checkpoint: Any) -> None:
    """See that the weights are those that the artefact was made with.

    Raises:
        RequestError: they are not.
    """
    if not np.array_equal(artefact["checkpoint"], now):
        raise RequestError(
            f"encoder.checkpoint={checkpoint} is not the file that this catalog was begun with; "
            "put that one back, or take a fresh workspace"
        )


def one_line(error: BaseException) -> str:
    """The first words of an error that may run over many lines."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "…"
