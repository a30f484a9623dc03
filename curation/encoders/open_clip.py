"""CLIP-like models through open_clip: RemoteCLIP, GeoRSCLIP, Git-RSCLIP, SigLIP and the like; images and text."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from curation.archive.names import find_band
from curation.archive.radiometry import band_state, polarisation
from curation.archive.sample import Sample
from curation.encoders.base import Artefact, Config, Floats, Preparation, start_torch, unit_length
from curation.encoders.net import (
    NetEncoder,
    check_digest,
    checkpoint_file,
    digest,
    one_line,
    weights_digest,
)
from curation.errors import RequestError

log = logging.getLogger("curation")

BRIGHT = 0.4  # reflectance that is white: 2.5 times the reflectance, clipped, as Major TOM's embedders take it
FALSE_COLOUR = {"co": (-25.0, 0.0), "cross": (-32.0, -7.0), None: (-30.0, 0.0)}  # dB, by polarisation: black and white
DIFFERENCE = (0.0, 15.0)  # dB, of VV - VH
OWN_WEIGHTS = ("hf-hub:", "local-dir:")  # architectures that name their weights themselves


class OpenClip(NetEncoder):
    """The encoder ``open_clip``: :class:`NetEncoder` for images, and text in the same space."""

    def __init__(self, model: Any, tokenizer: Any, *args: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        super().__init__(*args)

    def encode_text(self, prompts: list[str]) -> Floats:
        """Embed prompts: ``(len(prompts), dim)``, unit length, to be compared with images by the dot product.

        Raises:
            RequestError: the model's tokenizer could not be had.
        """
        import torch

        try:
            tokens = self._tokenizer()(prompts).to(self._device)
        except (OSError, ImportError) as error:
            raise RequestError(f"the tokenizer of {self.name} cannot be loaded: {one_line(error)}") from error
        with torch.inference_mode():
            return unit_length(self._model.encode_text(tokens).float().cpu().numpy())


def fit(config: Config, samples: Sequence[Sample], bands: tuple[str, ...], ranges: Floats, seed: int) -> Artefact:
    """Nothing is fitted; the weights are tried here, before any work.

    Arrays: ``checkpoint``, the hash of the weights; ``rgb_range`` (3, 2), black and white of red, green and blue.
    """
    chosen, less = rgb_bands(config["rgb"], bands)
    state = samples[0].radiometry if samples and samples[0].pixels.dtype.kind == "f" else "unknown"
    limits = rgb_range(config.get("rgb_range"), chosen, less, bands, ranges, state)
    _, weights = load(config)
    return {"checkpoint": weights, "rgb_range": limits}


def build(
    config: Config, artefact: Artefact, bands: tuple[str, ...], dtype: str, device: str, threads: int
) -> OpenClip:
    """The model with its weights, on the device."""
    import open_clip

    where = start_torch(device, threads)
    model, weights = load(config)
    check_digest(artefact, weights, config["checkpoint"])
    model = model.to(where)
    how = open_clip.get_model_preprocess_cfg(model)
    size = how["size"] if isinstance(how["size"], int) else how["size"][0]
    prepare = Preparation(
        artefact["rgb_range"],
        size,
        *rgb_bands(config["rgb"], bands),
        crop=how["resize_mode"] == "shortest",
        resample=Image.Resampling[how["interpolation"].upper()],
    )

    def tokenizer() -> Any:
        return open_clip.get_tokenizer(config["architecture"])

    name = f"open_clip {config['architecture']}"
    return OpenClip(
        model, tokenizer, name, model.encode_image, prepare, how["mean"], how["std"], int(config["batch"]), where
    )


def rgb_bands(rgb: Sequence[str], bands: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """Positions of the model's red, green and blue among the archive's bands; a lone band serves as all three.

    Args:
        rgb: three names, or differences of two, ``VV-VH``.
        bands: the archive's.

    Returns:
        Three positions, and those of the bands that are taken off them.

    Raises:
        RequestError: the archive has no such band.
    """
    if len(rgb) != 3:
        raise RequestError(f"encoder.rgb={list(rgb)}: name three bands, for red, green and blue")
    if len(bands) == 1:
        return (0, 0, 0), (None, None, None)

    def position(wanted: str) -> int:
        found = find_band(wanted.strip(), bands)
        if found is None:
            raise RequestError(f"encoder.rgb: no band {wanted.strip()!r}; name three of {', '.join(bands)}")
        return found

    pairs = [(name, "", "") if find_band(name, bands) is not None else name.partition("-") for name in rgb]
    return (
        tuple(position(name) for name, _, _ in pairs),
        tuple(position(other) if minus else None for _, minus, other in pairs),
    )


def rgb_range(
    given: Any,
    chosen: Sequence[int],
    less: Sequence[int | None],
    bands: tuple[str, ...],
    ranges: Floats,
    radiometry: str,
) -> Floats:
    """Black and white of the model's red, green and blue, ``(3, 2)``: as given, by the state, else the bands' ranges.

    Raises:
        RequestError: it cannot be right, or a difference of numbers of no known state has none.
    """
    if given is not None:
        limits = np.broadcast_to(np.asarray(given, np.float32).reshape(-1, 2), (3, 2)).copy()
        if not (limits[:, 1] > limits[:, 0]).all():
            raise RequestError(f"encoder.rgb_range={given}: give [low, high], or three such pairs")
        return limits
    found = []
    for band, other in zip(chosen, less, strict=True):
        state = band_state(bands[band], radiometry)
        if other is not None and state != "db":
            difference = f"{bands[band]}-{bands[other]}"
            raise RequestError(f"encoder.rgb={difference}: only for dB its range is known; give encoder.rgb_range")
        plain = (0.0, BRIGHT) if state == "reflectance" else tuple(ranges[band].tolist())
        power = DIFFERENCE if other is not None else FALSE_COLOUR[polarisation(bands[band])]
        found.append(power if state == "db" else plain)
    return np.array(found, np.float32)


def load(config: Config) -> tuple[Any, Any]:
    """The model in evaluation mode, and the hash of its weights.

    Raises:
        RequestError: no such architecture or tag, or weights that do not fit.
    """
    import open_clip

    name, checkpoint = str(config["architecture"]), config["checkpoint"]
    own = name.startswith(OWN_WEIGHTS)
    if not own and name.replace("/", "-") not in open_clip.list_models():
        raise RequestError(f"encoder.architecture={name} is none that open_clip knows")
    path = None if own else checkpoint_file(checkpoint, "open_clip")
    if not own and path is None and checkpoint not in open_clip.list_pretrained_tags_by_model(name):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:5]) or "it has none"
        raise RequestError(f"encoder.checkpoint={checkpoint}: neither a file nor a tag of {name} (such as {tags})")
    gelu = quick_gelu(name, None if own or path else checkpoint, config["quick_gelu"])
    kwargs = {} if gelu is None else {"quick_gelu": gelu}
    try:
        model = open_clip.create_model(name, pretrained=None if own else path or checkpoint, **kwargs)
    except Exception as error:  # noqa: BLE001 - torch, safetensors and the hub's client each raise their own
        what = "its weights do" if own else f"encoder.checkpoint={checkpoint} does"
        raise RequestError(f"encoder.architecture={name}: {what} not load: {one_line(error)}") from error
    return model.eval(), weights_digest(model) if path is None else digest(path)


def quick_gelu(architecture: str, tag: str | None, wanted: bool | None) -> bool | None:
    """Which activation the weights were trained with: True is quick-GELU, None the architecture's own.

    Weights that descend from OpenAI's need quick-GELU; a hub tag says so, a bare
    file cannot, and the wrong one costs accuracy without an error.
    """
    import open_clip

    if wanted is not None:
        return wanted
    if tag is not None:
        return bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)) or None
    if f"{architecture}-quickgelu" in open_clip.list_models():
        log.warning(
            "encoder.checkpoint does not say whether it was trained with quick-GELU (all that descends from "
            "OpenAI's weights was); taken as not: set encoder.quick_gelu=true or false"
        )
    return None
