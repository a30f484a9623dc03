"""A text-to-image model in the form of Stable Diffusion's folders, of a few channels and no training."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 16  # of a text's embedding
TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def save_model(
    folder: Path,
    prediction: str = "epsilon",
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Path:
    """Write ``vae/``, ``unet/``, ``text_encoder/``, ``tokenizer/`` and ``scheduler/``: 32 px, latents of 4 x 16 x 16.

    Args:
        folder: where.
        prediction: what the U-Net predicts.
        unet, vae, text: other arguments of the parts.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4}
        AutoencoderKL(
            **{
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
                "latent_channels": 4,
                "scaling_factor": 0.18215,
                **blocks,
                **(vae or {}),
            }
        ).save_pretrained(folder / "vae")
        UNet2DConditionModel(
            **{
                "sample_size": 16,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "layers_per_block": 1,
                "cross_attention_dim": WIDTH,
                "attention_head_dim": 4,
                **blocks,
                **(unet or {}),
            }
        ).save_pretrained(folder / "unet")
        sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        told = {"vocab_size": 100, "max_position_embeddings": TOKENS, "bos_token_id": 0, "eos_token_id": 1}
        CLIPTextModel(CLIPTextConfig(**{**sizes, **told, **(text or {})})).save_pretrained(folder / "text_encoder")
    # what Stable Diffusion's own says, which does not name DDIM's clip_sample
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction,
    ).save_pretrained(folder / "scheduler")
    _save_tokenizer(folder / "tokenizer")
    return folder


def _save_tokenizer(folder: Path) -> None:
    """Letters, digits and stops, and one word that is made of three merges."""
    folder.mkdir()
    letters = string.ascii_lowercase + string.digits + ".,!"
    tokens = [START, END, *letters, *(letter + "</w>" for letter in letters), "po", "pon", "pond</w>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\np o\npo n\npon d</w>\n")
    ends = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, **ends})
    )
