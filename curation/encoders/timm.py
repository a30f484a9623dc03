"""Any image model of timm, with as many input channels as the archive has bands; its weights may say what they are."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from curation.archive.sample import Sample
from curation.encoders.base import Artefact, Config, Floats, Preparation, start_torch
from curation.encoders.checkpoints import renamed, settle
from curation.encoders.net import (
    NetEncoder,
    check_digest,
    checkpoint_file,
    digest,
    one_line,
    weights_digest,
)
from curation.errors import RequestError


def fit(config: Config, samples: Sequence[Sample], bands: tuple[str, ...], ranges: Floats, seed: int) -> Artefact:
    """Nothing is fitted; the artefact holds the hash of the weights, which are tried here, before any work."""
    config = settled(config, len(bands))
    model, weights = load(config, len(bands))
    _normalisation(config, model, len(bands))
    return {"checkpoint": weights}


def build(
    config: Config, artefact: Artefact, bands: tuple[str, ...], dtype: str, device: str, threads: int
) -> NetEncoder:
    """The model with its weights and without its classifier, on the device."""
    where = start_torch(device, threads)
    config = settled(config, len(bands))
    model, weights = load(config, len(bands))
    check_digest(artefact, weights, config["checkpoint"])
    mean, std = _normalisation(config, model, len(bands))
    size = int(config["size"] or model.pretrained_cfg["input_size"][-1])
    own = config.get("interpolation") or model.pretrained_cfg.get("interpolation", "bicubic")
    resample = Image.Resampling[own.upper()]
    prepare = Preparation(artefact["range"], size, resample=resample)
    return NetEncoder(
        f"timm {config['architecture']}", model.to(where), prepare, mean, std, int(config["batch"]), where
    )


def settled(config: Config, channels: int) -> Config:
    """The config with what a checkpoint in a file says of itself; see `checkpoints.settle`.

    Raises:
        RequestError: the config says otherwise.
    """
    return settle(config, checkpoint_file(config["checkpoint"], "timm"), channels)


def load(config: Config, channels: int) -> tuple[Any, Any]:
    """The model in evaluation mode without its classifier, and the hash of its weights.

    Raises:
        RequestError: no such architecture or tag, or weights that do not fit.
    """
    import timm

    name, checkpoint = str(config["architecture"]), config["checkpoint"]
    if not timm.is_model(name):
        raise RequestError(f"encoder.architecture={name} is none that timm knows")
    path = checkpoint_file(checkpoint, "timm")
    try:
        model = create(name, channels, config["size"], checkpoint if path is None else None)
        if path is not None:
            _load_file(model, path)
    except Exception as error:  # noqa: BLE001 - torch, safetensors and the hub's client each raise their own
        raise RequestError(
            f"encoder.checkpoint={checkpoint} does not load as {name} with {channels} input channels: {one_line(error)}"
        ) from error
    return model.eval(), weights_digest(model) if path is None else digest(path)


def create(name: str, channels: int, size: int | None, tag: str | None = None, any_side: bool = False) -> Any:
    """An architecture without its classifier, its first weights drawn from torch's global state or of a hub tag.

    Args:
        name: of the architecture.
        channels: of the input.
        size: pixels a side of the input; None: the model's own.
        tag: of weights on the hub.
        any_side: a transformer takes images of other sides too, and adapts its positions to them; its weights are the
            same.
    """
    import timm

    kwargs: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    about = timm.get_pretrained_cfg(name)
    if size and about is not None and about.fixed_input_size:
        kwargs["img_size"] = int(size)  # of a transformer; convolutional models take any size
        if any_side:
            kwargs["dynamic_img_size"] = True
    return timm.create_model(f"{name}.{tag}" if tag else name, pretrained=tag is not None, **kwargs)


def _load_file(model: Any, path: str) -> None:
    """Load a state dict, whole but for the classifier's weights."""
    from timm.models import load_state_dict

    state = renamed(load_state_dict(path, weights_only=True))
    missing, unexpected = model.load_state_dict(state, strict=False)  # raises on another shape
    heads = model.pretrained_cfg["classifier"]
    heads = (heads,) if isinstance(heads, str) else tuple(heads or ())
    unexpected = [name for name in unexpected if not name.startswith(tuple(f"{head}." for head in heads))]
    if missing or unexpected:
        wrong = f"it lacks {missing[0]}" if missing else f"it has {unexpected[0]}, which the model has not"
        raise ValueError(wrong)


def _normalisation(config: Config, model: Any, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation a channel of tiles in [0, 1].

    As configured; else the model's own if that is of as many channels, else 0 and 1.

    Raises:
        RequestError: other than one number a band.
    """
    found = []
    for key, plain in (("mean", 0.0), ("std", 1.0)):
        values = config[key]
        if values is None:
            own = list(model.pretrained_cfg[key])
            values = own if len(own) == channels else [plain] * channels
        if len(values) != channels:
            raise RequestError(f"encoder.{key} has {len(values)} numbers for {channels} bands")
        found.append([float(value) for value in values])
    return found[0], found[1]
