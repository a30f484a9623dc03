"""Others' text-to-image models as ours: their autoencoder, and their U-Net with the classes' texts in its keeping.

The texts' embeddings are computed once and stay with the U-Net; the text encoder does not. What is trained is a
low-rank update of the U-Net's attention (as in the authors' release of DPD), or all of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curation.distillation.autoencoder import Autoencoder
from curation.distillation.captions import Captioned, aggregated_texts, template_texts
from curation.distillation.denoiser import Denoiser
from curation.distillation.pretrained import Weights, load_part, load_scheduler, load_tokenizer, load_unet
from curation.distillation.settings import DiffusionConfig, DistillConfig
from curation.errors import require

ATTENTION = r".*\.(to_q|to_k|to_v|to_out\.0)"  # all projections of the U-Net's attention, to itself and to the text
BATCH = 16  # texts a forward


def load_autoencoder(weights: Weights, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder of a model; its latents are scaled as the U-Net knows them.

    Raises:
        RequestError: it does not load.
    """
    from diffusers import AutoencoderKL

    return Autoencoder(load_part(weights, "vae", AutoencoderKL)).to(device).eval()


def load_denoiser(
    weights: Weights, texts: Sequence[str], settings: DiffusionConfig, seed: int, device: torch.device | str = "cpu"
) -> Denoiser:
    """The U-Net of a model, which knows the classes by their texts, and no class by the empty one.

    Args:
        weights: the model.
        texts: of each class, from :func:`class_texts`.
        settings: how it will be trained: ``adapt`` and ``rank``.
        seed: of LoRA's first weights.
        device: for it.

    Raises:
        RequestError: it does not load.
    """
    table = embed(weights, [*texts, ""], device)
    net, lora = load_unet(weights), settings.adapt == "lora"
    net = with_lora(net, settings.rank, seed) if lora else net
    return Denoiser(net, load_scheduler(weights), table, weights if lora else None).to(device).eval()


def with_lora(unet: Any, rank: int, seed: int) -> Any:
    """The U-Net frozen, and by peft a low-rank update of all projections of its attention (Hu et al. 2021).

    It begins as that of diffusers' training script for text-to-image: one factor normal, the other zero, alpha = rank.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION)
    with torch.random.fork_rng(devices=[]):  # the normal factor is drawn from torch's global state
        torch.manual_seed(seed)
        return get_peft_model(unet, config)


def class_texts(
    weights: Weights, classes: Sequence[str], settings: DistillConfig, captions: Sequence[Captioned] = ()
) -> list[str]:
    """What the model is told of each class, by ``distill.captions`` and ``distill.template``.

    Args:
        weights: whose tokenizer tells how much its text encoder reads.
        classes: their names.
        settings: of the job.
        captions: the archive's, from :func:`~curation.distillation.captions.few`; only for ``aggregated``.

    Raises:
        RequestError: no captions where they are wanted; a template that is too long.
    """
    tokenizer = load_tokenizer(weights)
    most = tokenizer.model_max_length

    def fits(text: str) -> bool:
        return bool(len(tokenizer(text).input_ids) <= most)

    for text in template_texts(classes, settings.template):
        require(
            fits(text),
            f"{text[:60]}…: longer than the {most} tokens that distill.weights={weights.name} reads: shorten "
            "distill.template or the label",
        )
    if settings.captions == "aggregated":
        return aggregated_texts(classes, settings.template, captions, fits)
    return template_texts(classes, settings.template)


def embed(weights: Weights, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
    """What the U-Net reads of each text: float32 ``(n, tokens, width)`` on ``device``.

    Raises:
        RequestError: the text encoder does not load.
    """
    from transformers import CLIPTextModel

    tokenizer, model = load_tokenizer(weights), load_part(weights, "text_encoder", CLIPTextModel).to(device)
    tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").to(device)
    masks = tokens.attention_mask if getattr(model.config, "use_attention_mask", False) else None
    with torch.no_grad():
        made = [
            model(tokens.input_ids[at : at + BATCH], None if masks is None else masks[at : at + BATCH])[0]
            for at in range(0, len(texts), BATCH)
        ]
    return torch.cat(made)
