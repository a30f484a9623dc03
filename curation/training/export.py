"""The result: an encoder in one safetensors file that says all that ``encoder=timm encoder.checkpoint=PATH`` needs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from curation.encoders.checkpoints import METADATA
from curation.encoders.timm import create
from curation.storage import Folder

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Input:
    """What tiles are: the same in training and in use.

    Attributes:
        bands: names.
        size: pixels a side.
        mean, std: a number a band, of 8-bit pixels.
        limits: for each band the 8-bit values that 0 and 1 stand for in use: (0, 255) of tiles that were scaled by the
            archive's range; that range itself of 8-bit archives, whose tiles are as stored.
        decibels: a number a band, what 1 dB is in steps of the 8-bit pixels; 0 for a band that is no radar.
    """

    bands: tuple[str, ...]
    size: int
    mean: Numbers
    std: Numbers
    limits: tuple[tuple[float, float], ...]
    decibels: Numbers

    def described(self, architecture: str) -> dict[str, Any]:
        """The metadata of an encoder of this input; see `encoders.checkpoints`."""
        low, high = np.array(self.limits, np.float64).T
        return {
            "architecture": architecture,
            "bands": list(self.bands),
            "size": self.size,
            "mean": ((np.array(self.mean) - low) / (high - low)).tolist(),
            "std": (np.array(self.std) / (high - low)).tolist(),
            "interpolation": "bilinear",
            "limits": [list(ends) for ends in self.limits],
        }


def encoder_bytes(encoder: Any, what: Input, architecture: str, more: dict[str, Any] | None = None) -> bytes:
    """An encoder as a safetensors file.

    Args:
        encoder: a timm model without its classifier.
        what: its input.
        architecture: timm's name.
        more: plain values that tell where it comes from.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in sorted(encoder.state_dict().items())}
    about = json.dumps(what.described(architecture) | {"made_of": more or {}}, sort_keys=True)
    return bytes(safetensors.torch.save(state, {METADATA: about}))


def open_encoder(folder: Folder, path: str, device: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """What maps tiles uint8 (n, bands, size, size) to vectors float32 (n, dim), out of a file of `encoder_bytes`.

    Args:
        folder: that it lies in.
        path: below it, or its whole URL.
        device: ``cpu`` or ``cuda`` (there in bfloat16, as ``encoder=timm`` does).
    """
    data = folder.read(path.removeprefix(f"{folder.url}/"))
    length = int.from_bytes(data[:8], "little")
    said = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA])
    model = create(said["architecture"], len(said["bands"]), said["size"])
    model.load_state_dict(safetensors.torch.load(data))
    model.eval().to(device).to(memory_format=torch.channels_last)

    def a_band(values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, np.float32)[:, None, None], device=device)

    low, high = (a_band(ends) for ends in zip(*said["limits"], strict=True))
    mean, std = a_band(said["mean"]), a_band(said["std"])

    def embed(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        cuda = device.startswith("cuda")
        with torch.inference_mode(), torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=cuda):
            x = ((torch.from_numpy(np.array(tiles)).to(device).float() - low) / (high - low)).clamp(0, 1)
            made = model(((x - mean) / std).contiguous(memory_format=torch.channels_last))
            return np.asarray(made.float().cpu().numpy())

    return embed
