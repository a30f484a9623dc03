"""CLIP-like models through open_clip: RemoteCLIP, GeoRSCLIP, Git-RSCLIP, SigLIP and the like; images and text."""

import logging
from collections.abc import Sequence
from typing import Any

from PIL import Image

from curation.archive.sample import Sample
from curation.encoders.base import Artefact, Config, Floats, Preparation, unit_length
from curation.encoders.net import (
    NetEncoder,
    check_digest,
    checkpoint_file,
    digest,
    one_line,
    start_torch,
    weights_digest,
)
from curation.errors import RequestError

log = logging.getLogger("curation")

ALIASES = {"red": ("red", "B04", "B4"), "green": ("green", "B03", "B3"), "blue": ("blue", "B02", "B2")}
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
    """Nothing is fitted; the artefact holds the hash of the weights, which are tried here, before any work."""
    rgb_bands(config["rgb"], bands)
    _, weights = load(config)
    return {"checkpoint": weights}


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
        artefact["range"],
        size,
        rgb_bands(config["rgb"], bands),
        crop=how["resize_mode"] == "shortest",
        resample=Image.Resampling[how["interpolation"].upper()],
    )

    def tokenizer() -> Any:
        return open_clip.get_tokenizer(config["architecture"])

    name = f"open_clip {config['architecture']}"
    return OpenClip(
        model, tokenizer, name, model.encode_image, prepare, how["mean"], how["std"], int(config["batch"]), where
    )


def rgb_bands(rgb: Sequence[str], bands: tuple[str, ...]) -> tuple[int, ...]:
    """Positions of the model's red, green and blue among the archive's bands; a lone band serves as all three.

    Raises:
        RequestError: the archive has no such band.
    """
    if len(rgb) != 3:
        raise RequestError(f"encoder.rgb={list(rgb)}: name three bands, for red, green and blue")
    if len(bands) == 1:
        return (0, 0, 0)
    found = []
    for wanted in rgb:
        names = [name for name in ALIASES.get(wanted, (wanted,)) if name in bands]
        if not names:
            raise RequestError(f"encoder.rgb: no band {wanted!r}; name three of {', '.join(bands)}")
        found.append(bands.index(names[0]))
    return tuple(found)


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
