"""What a checkpoint file says of itself, so that nothing else has to be given: ours, and Hugging Face's ResNets.

``curate pretrain`` writes architecture, bands, size, mean and standard deviation into the metadata of its safetensors.
A `transformers` ResNet (OceanSAR-1 is one) has its shape in the names of its weights, which timm calls otherwise.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from curation.errors import RequestError

FILES = ("encoder.safetensors", "model.safetensors", "pytorch_model.bin")  # of a folder
METADATA = "curation"
SAID = ("architecture", "size", "mean", "std")

RESNETS: dict[
    tuple[tuple[int, ...], int], str
] = {  # depths of the stages and convolutions of a block, as timm calls them
    ((2, 2, 2, 2), 2): "resnet18",
    ((3, 4, 6, 3), 2): "resnet34",
    ((3, 4, 6, 3), 3): "resnet50",
    ((3, 4, 23, 3), 3): "resnet101",
    ((3, 8, 36, 3), 3): "resnet152",
}
LAYER = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:(shortcut)|layer\.(\d+))\.(convolution|normalization)\.")
STEM = re.compile(r"embedder\.embedder\.(convolution|normalization)\.")
OTHERWISE = {"downsample_in_first_stage": False, "downsample_in_bottleneck": False, "hidden_act": "relu"}  # in timm


def weights_file(path: str) -> str:
    """The file of weights that a path names: itself, or the one in a folder."""
    if os.path.isdir(path):
        return next((file for name in FILES if os.path.isfile(file := os.path.join(path, name))), path)
    return path


def about(path: str) -> dict[str, Any]:
    """What a local checkpoint says of itself: ``architecture``, ``bands`` (names), ``channels``, ``size``, ``mean`` and
    ``std`` (a number a band, of pixels in [0, 1]), ``interpolation``; as much as it knows.

    Raises:
        RequestError: a ResNet of Hugging Face whose form timm does not have.
    """  # noqa: D205
    if not path.endswith(".safetensors"):
        return {}
    from safetensors import SafetensorError, safe_open

    with suppress(SafetensorError, OSError), safe_open(path, "numpy") as file:  # what it is not, loading will tell
        said = (file.metadata() or {}).get(METADATA)
        if said:
            found: dict[str, Any] = json.loads(said)
            return found | {"channels": len(found["bands"])}
        shapes = {_plain(name): file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict
        if any(LAYER.match(name) for name in shapes):
            return _resnet(path, shapes)
    return {}


def settle(config: Mapping[str, Any], path: str | None, channels: int) -> dict[str, Any]:
    """An encoder's config with what its checkpoint says in the place of what is null.

    Args:
        config: the encoder's.
        path: of the checkpoint; None: it is no file.
        channels: bands of the archive.

    Raises:
        RequestError: the config says otherwise than the checkpoint; it is for another number of bands.
    """
    said = about(path) if path else {}
    wrong = [name for name in SAID if name in said and config.get(name) not in (None, said[name])]
    if wrong:
        name = wrong[0]
        raise RequestError(
            f"encoder.{name}={config[name]} contradicts encoder.checkpoint={config['checkpoint']}, which says "
            f"{said[name]}: leave encoder.{name} out"
        )
    if said.get("channels", channels) != channels:
        named = f" ({', '.join(said['bands'])})" if "bands" in said else ""
        raise RequestError(
            f"encoder.checkpoint={config['checkpoint']} is for {said['channels']} band(s){named}, and the archive has "
            f"{channels}: choose them with archive.bands=[…], or take encoder=joined"
        )
    return {**config, **said, "architecture": said.get("architecture") or config["architecture"] or "resnet50"}


def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Weights as timm calls them; those of Hugging Face's ResNets lose their classifier."""
    if not any(LAYER.match(_plain(name)) for name in state):
        return dict(state)
    return {_renamed(_plain(name)): value for name, value in state.items() if not name.startswith("classifier.")}


def _plain(name: str) -> str:
    """Of `ResNetModel`, also where it is part of a `ResNetForImageClassification`."""
    return name.removeprefix("resnet.")


def _renamed(name: str) -> str:
    stem, layer = STEM.match(name), LAYER.match(name)
    if stem:
        return {"convolution": "conv1.", "normalization": "bn1."}[stem[1]] + name[stem.end() :]
    if not layer:
        return name
    stage, block, shortcut, number, what = layer.groups()
    normal = what == "normalization"
    own = f"downsample.{int(normal)}" if shortcut else f"{'bn' if normal else 'conv'}{int(number) + 1}"
    return f"layer{int(stage) + 1}.{block}.{own}.{name[layer.end() :]}"


def _resnet(path: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Architecture and bands out of the names and shapes of weights, and the ``config.json`` beside them."""
    found = [match for name in shapes if (match := LAYER.match(name))]
    stages = range(1 + max(int(match[1]) for match in found))
    depths = tuple(1 + max(int(match[2]) for match in found if int(match[1]) == stage) for stage in stages)
    inside = 1 + max(int(match[4]) for match in found if match[4])
    architecture = RESNETS.get((depths, inside))
    beside = Path(path).with_name("config.json")
    said = json.loads(beside.read_text()) if beside.is_file() else {}
    other = [name for name, value in OTHERWISE.items() if said.get(name, value) != value]
    if architecture is None or other:
        what = f"{other[0]}={said[other[0]]}" if other else f"stages of {depths} blocks of {inside} convolutions"
        raise RequestError(f"encoder.checkpoint={path} is a ResNet with {what}, which timm has not")
    return {"architecture": architecture, "channels": int(shapes["embedder.embedder.convolution.weight"][1])}
