"""Checkpoints that say what they are: Hugging Face's ResNets, such as OceanSAR-1, load by path alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from curation.catalog.artefact import catalog_id
from curation.config import Config
from curation.encoders.base import build_encoder, fit_artefact
from curation.errors import RequestError

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class ConvLayer(nn.Module):
    """The names are those of `transformers.models.resnet.modeling_resnet`, whose modules these are in short."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.normalization(self.convolution(x))
        return made


class Block(nn.Module):
    def __init__(self, inside: int, out: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        changes = inside != out or stride != 1
        self.shortcut = ConvLayer(inside, out, 1, stride) if changes else nn.Identity()
        narrow = out // 4
        layers = [ConvLayer(inside, out, 3, stride), ConvLayer(out, out, 3)]
        if bottleneck:
            layers = [ConvLayer(inside, narrow, 1), ConvLayer(narrow, narrow, 3, stride), ConvLayer(narrow, out, 1)]
        self.layer = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layer[:-1]:
            y = F.relu(layer(y))
        return F.relu(self.layer[-1](y) + self.shortcut(x))


class ResNetModel(nn.Module):
    """`pooler_output` of a `ResNetModel`."""

    def __init__(self, channels: int, depths: tuple[int, ...], bottleneck: bool) -> None:
        super().__init__()
        self.embedder = nn.ModuleDict({"embedder": ConvLayer(channels, 64, 7, 2)})
        stages, inside = [], 64
        for i, depth in enumerate(depths):
            out = 64 * 2**i * (4 if bottleneck else 1)
            blocks = [Block(inside if j == 0 else out, out, 2 if i and j == 0 else 1, bottleneck) for j in range(depth)]
            stages.append(nn.ModuleDict({"layers": nn.Sequential(*blocks)}))
            inside = out
        self.encoder = nn.ModuleDict({"stages": nn.ModuleList(stages)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.embedder["embedder"](x)), 3, 2, 1)
        for stage in self.encoder["stages"]:  # type: ignore[union-attr]
            x = stage["layers"](x)
        return x.mean((2, 3))


def written(folder: Path, architecture: str, channels: int = 1, prefix: str = "", **about: Any) -> nn.Module:
    """A checkpoint folder as `save_pretrained` leaves it."""
    torch.manual_seed(0)
    model = ResNetModel(channels, BLOCKS[architecture], architecture == "resnet50").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 1)
    folder.mkdir()
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    if prefix:
        state["classifier.1.weight"] = torch.zeros(1, 512)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "resnet", "num_channels": channels, "hidden_act": "relu", "depths": BLOCKS[architecture]}
    (folder / "config.json").write_text(json.dumps(config | about))
    return model


def config_of(checkpoint: Path, **keys: Any) -> dict[str, Any]:
    plain = dict.fromkeys(("architecture", "mean", "std"))
    return {"name": "timm", **plain, "checkpoint": str(checkpoint), "size": 64, "batch": 4, **keys}


@pytest.mark.parametrize(("architecture", "prefix"), [("resnet50", ""), ("resnet18", "resnet.")])
def test_a_folder_of_hugging_face_gives_its_pooled_output(tmp_path: Path, architecture: str, prefix: str) -> None:
    model = written(tmp_path / "model", architecture, prefix=prefix)
    config, ranges = config_of(tmp_path / "model"), np.float32([[0, 255]])
    encoder = build_encoder(config, fit_artefact(config, [], ("VV",), ranges, 0), ("VV",), "uint8", "cpu", 1)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64), np.uint8)
    with torch.inference_mode():
        expected = F.normalize(model(torch.from_numpy(tiles).float() / 255)).numpy()
    assert expected.shape == (2, 2048 if architecture == "resnet50" else 512)
    np.testing.assert_allclose(encoder.encode(tiles), expected, atol=1e-5)
    same = timm.create_model(architecture, num_classes=0)
    assert encoder.dim == same.num_features


def test_what_timm_has_not_or_the_archive_has_not_is_one_line(tmp_path: Path) -> None:
    ranges = np.float32([[0, 255]])
    written(tmp_path / "first", "resnet18", downsample_in_first_stage=True)
    with pytest.raises(RequestError, match="downsample_in_first_stage=True, which timm has not"):
        fit_artefact(config_of(tmp_path / "first"), [], ("VV",), ranges, 0)
    written(tmp_path / "second", "resnet18")
    with pytest.raises(RequestError, match=r"for 1 band\(s\), and the archive has 2: choose them"):
        fit_artefact(config_of(tmp_path / "second"), [], ("VV", "VH"), np.float32([[0, 255]] * 2), 0)
    with pytest.raises(RequestError, match="contradicts"):
        fit_artefact(config_of(tmp_path / "second", architecture="resnet50"), [], ("VV",), ranges, 0)


def test_the_catalog_goes_by_the_weights_of_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "here", "resnet18")
    before = catalog_id(Config(encoder=config_of(tmp_path / "here")))
    (tmp_path / "here").rename(tmp_path / "there")
    assert catalog_id(Config(encoder=config_of(tmp_path / "there"))) == before
    (tmp_path / "there" / "model.safetensors").write_bytes(b"other")
    assert catalog_id(Config(encoder=config_of(tmp_path / "there"))) != before
