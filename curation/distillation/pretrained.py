"""A text-to-image model that others have trained: Stable Diffusion, Text2Earth, whatever lies in a folder of that form.

The form is that of diffusers' ``StableDiffusionPipeline.save_pretrained``: ``vae/`` (AutoencoderKL), ``unet/``
(UNet2DConditionModel), ``text_encoder/`` (CLIPTextModel), ``tokenizer/`` and ``scheduler/``; a safety checker and the
like are passed over. Only safetensors are read: nothing is unpickled. Weights of fewer bits are read as float32.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.errors import RequestError, require
from curation.storage import is_local, local_path, without_secrets

FORM = "give a folder (or hub tag) as diffusers' StableDiffusionPipeline.save_pretrained writes it"
CLASSES = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}
CONFIGS = {part: "config.json" for part in CLASSES} | {"scheduler": "scheduler_config.json"}
KEYS = {  # of their configs, without which nothing can be told
    "vae": ("latent_channels", "block_out_channels", "in_channels", "out_channels"),
    "unet": ("in_channels", "out_channels", "cross_attention_dim"),
    "text_encoder": ("hidden_size", "vocab_size", "max_position_embeddings"),
    "scheduler": ("beta_schedule",),
}
FILES = {part: "model" if part == "text_encoder" else "diffusion_pytorch_model" for part in CLASSES}
INDEX = ".safetensors.index.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either, in tokenizer/
LEVEL = "timestep"  # class_embed_type of Text2Earth's U-Net, which reads a level of resolution as if it were a time
PREDICTIONS = ("epsilon", "v_prediction")
TAG = re.compile(r"[\w.-]+/[\w.-]+")
BANDS = 3


@dataclass(frozen=True)
class Weights:
    """A model that was found, and looked through so far as needs no torch.

    Attributes:
        name: as it was given: a path or a hub tag.
        folder: where it lies here.
        digest: the SHA-256 of all its files that count.
        channels: of a latent.
        factor: pixels a side that a place of the latent stands for.
        size: pixels a side that the U-Net was made for; None: its config does not say.
    """

    name: str
    folder: Path
    digest: str
    channels: int
    factor: int
    size: int | None

    def fit(self, bands: Sequence[str], size: int | None) -> int:
        """See that they go with an archive.

        Args:
            bands: of the archive's tiles, by name.
            size: ``distill.size``.

        Returns:
            Pixels a side of the images to make: ``size``, or their own.

        Raises:
            RequestError: not three bands; no size, or one that the autoencoder cannot halve so often.
        """
        require(
            len(bands) == BANDS,
            f"distill.weights={self.name} is for {BANDS} bands, and the archive has {len(bands)} ({', '.join(bands)}): "
            f"choose archive.bands=[…] of three, or leave distill.weights out",
        )
        made = size or self.size
        if made is None:
            raise RequestError(f"distill.weights={self.name} does not say its size: give distill.size")
        require(
            made % self.factor == 0,
            f"distill.size={made}: distill.weights={self.name} makes multiples of {self.factor}, such as "
            f"{max(self.factor, made - made % self.factor)}",
        )
        return made


def find_weights(name: str) -> Weights:
    """Find a model, fetching it from the hub where its name is a tag, and see that its parts are there and fit.

    Raises:
        RequestError: there is none, or none of this form.
    """
    folder = _folder(name)
    configs = {part: _config(name, folder, part) for part in CONFIGS}
    files = [file for part in CLASSES for file in _files(name, folder, part)]
    files += [folder / "tokenizer" / file for file in _tokenizer_files(name, folder)]
    files += [folder / part / file for part, file in CONFIGS.items()]
    vae, unet = configs["vae"], configs["unet"]
    _check(name, vae, unet, configs["text_encoder"], configs["scheduler"])
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    side = unet.get("sample_size")
    side = min(side) if isinstance(side, list) else side
    return Weights(name, folder, _digest(folder, files), vae["latent_channels"], factor, side and side * factor)


def load_unet(weights: Weights) -> Any:
    """The U-Net of a model, as it was trained.

    Raises:
        RequestError: it does not load.
    """
    from diffusers import UNet2DConditionModel

    return load_part(weights, "unet", UNet2DConditionModel)


def load_scheduler(weights: Weights) -> Any:
    """DDIM on the model's own noise schedule and kind of prediction.

    Two keys are set as ``StableDiffusionPipeline`` sets them, whatever an old config says.
    """
    from diffusers import DDIMScheduler

    said = _config(weights.name, weights.folder, "scheduler")
    return DDIMScheduler.from_config({**said, "clip_sample": False, "steps_offset": 1})


def load_part(weights: Weights, part: str, kind: Any) -> Any:
    """A part with its weights, as float32, in evaluation mode.

    Raises:
        RequestError: they cannot be read, or are not all there.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()  # what is wrong is said here, in one line
        library.utils.logging.disable_progress_bar()
    what = f"distill.weights={weights.name}: {part}/"
    try:
        where = str(weights.folder / part)
        model, said = kind.from_pretrained(where, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # noqa: BLE001 - torch, safetensors, diffusers and transformers each raise their own
        raise RequestError(f"{what} does not load: {without_secrets(str(error))[:200]}") from error
    missing = sorted(said["missing_keys"])
    require(not missing, f"{what} lacks {len(missing)} of its tensors ({', '.join(missing[:3])}): take a whole copy")
    return model.float().eval()


def load_tokenizer(weights: Weights) -> Any:
    """The tokenizer; its ``model_max_length`` is what the text encoder reads.

    Raises:
        RequestError: it cannot be read, or is another text encoder's.
    """
    from transformers import CLIPTokenizer

    what = f"distill.weights={weights.name}: tokenizer/"
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(weights.folder / "tokenizer"), local_files_only=True)
    except Exception as error:  # noqa: BLE001 - likewise
        raise RequestError(f"{what} does not load: {without_secrets(str(error))[:200]}") from error
    text = _config(weights.name, weights.folder, "text_encoder")
    has, known = len(tokenizer), text["vocab_size"]
    require(has <= known, f"{what} has {has} tokens, of which the text_encoder knows {known}: give parts of one model")
    tokenizer.model_max_length = min(tokenizer.model_max_length, text["max_position_embeddings"])
    return tokenizer


def _folder(name: str) -> Path:
    """Where a model lies; one that a tag names is fetched, only those files that are read."""
    path, public = Path(local_path(name)), f"distill.weights={without_secrets(name)}"
    if is_local(name) and path.is_dir():
        return path
    require(not path.exists(), f"{public} is a file: {FORM}; its from_single_file reads such files")
    require(TAG.fullmatch(name) is not None, f"{public}: no such local folder, and no hub tag (owner/name): {FORM}")
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/{file}" for part, file in CONFIGS.items()] + ["model_index.json", "tokenizer/*"]
    for part, file in FILES.items():
        patterns += [f"{part}/{file}{tail}" for tail in (".safetensors", "-?????-of-?????.safetensors", INDEX)]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # noqa: BLE001 - the hub's client, its connections and its names each raise their own
        said = without_secrets(str(error))[:200]
        raise RequestError(
            f"{public}: no such local folder, and it cannot be fetched from the hub: {said}; give a folder"
        ) from error


def _config(name: str, folder: Path, part: str) -> dict[str, Any]:
    """What a part says of itself.

    Raises:
        RequestError: it is not there, cannot be read, or is another model's.
    """
    path = folder / part / CONFIGS[part]
    if not path.is_file():
        whole = _json(name, folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
        what = f" (it is a {whole['_class_name']})" if "_class_name" in whole else ""
        raise RequestError(f"distill.weights={name} has no {part}/{CONFIGS[part]}{what}: {FORM}")
    config = _json(name, path)
    said = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if part in CLASSES and said != CLASSES[part]:
        raise RequestError(f"distill.weights={name}: {part}/ is a {said}, and no {CLASSES[part]}: {FORM}")
    silent = [key for key in KEYS[part] if key not in config]
    require(not silent, f"distill.weights={name}: {part}/ ({said}) does not say its {', '.join(silent)}: {FORM}")
    return config


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return dict(found)
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"distill.weights={name}: {path.parent.name}/{path.name} cannot be read: {error}") from error


def _files(name: str, folder: Path, part: str) -> list[Path]:
    """The files of a part's weights.

    Raises:
        RequestError: it has no safetensors.
    """
    plain, index = (folder / part / (FILES[part] + tail) for tail in (".safetensors", INDEX))
    if plain.is_file():
        return [plain]
    if index.is_file():
        return [index, *plain.parent.glob(f"{FILES[part]}-*-of-*.safetensors")]
    others = sorted(file.name for file in plain.parent.iterdir() if file.name not in CONFIGS.values())
    raise RequestError(
        f"distill.weights={name}: {part}/ has no {plain.name} (but {', '.join(others[:3]) or 'nothing'}); pickles "
        "(.bin) are not opened: save it again with safe_serialization=True"
    )


def _tokenizer_files(name: str, folder: Path) -> list[str]:
    there = [file.name for file in (folder / "tokenizer").glob("*") if file.suffix in (".json", ".txt")]
    ok = any(set(files) <= set(there) for files in TOKENIZERS)
    require(ok, f"distill.weights={name} has no tokenizer/ with vocab.json and merges.txt: {FORM}")
    return there


def _check(
    name: str, vae: Mapping[str, Any], unet: Mapping[str, Any], text: Mapping[str, Any], schedule: Mapping[str, Any]
) -> None:
    """See that the parts of a model go together, and that its U-Net needs no more than a latent, a time and a text."""
    wrong = f"distill.weights={name}: its"
    latent, ins, outs = vae["latent_channels"], unet["in_channels"], unet["out_channels"]
    require(
        ins == outs == latent,
        f"{wrong} unet maps {ins} channels to {outs}, and its vae's latents have {latent}: give a plain text-to-image "
        "model, not one for inpainting or editing, nor one with another's vae",
    )
    width, made = unet["cross_attention_dim"], text["hidden_size"]
    require(
        width == made,
        f"{wrong} unet reads texts of width {width}, and its text_encoder writes {made}: give parts of one model",
    )
    more = [key for key in ("addition_embed_type", "num_class_embeds", "encoder_hid_dim_type") if unet.get(key)]
    more += ["class_embed_type"] if unet.get("class_embed_type") not in (None, LEVEL) else []
    require(not more, f"{wrong} unet also wants {', '.join(more)} (SDXL and upscalers do): {FORM}")
    bands = vae["in_channels"]
    require(bands == vae["out_channels"] == BANDS, f"{wrong} vae is for {bands} bands: give one for {BANDS}")
    kind = schedule.get("prediction_type", PREDICTIONS[0])
    require(kind in PREDICTIONS, f"{wrong} scheduler predicts {kind}: give a model of {' or '.join(PREDICTIONS)}")


def _digest(folder: Path, files: Sequence[Path]) -> str:
    """The SHA-256 over names and bytes."""
    sha = hashlib.sha256()
    for file in sorted(files):
        with open(file, "rb") as stream:
            sha.update(f"{file.relative_to(folder)} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return sha.hexdigest()
