"""The diffusion model of latents: a U-Net of diffusers, its schedule, and what it is told of each class."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from curation.distillation.pretrained import Weights, find_weights, load_unet
from curation.errors import RequestError

TIMES = 1000  # of the diffusion
LEAST = 4  # places a side of the latent at which the U-Net halves no more
NARROW, WIDE = 32, 128  # channels: so that places times channels is about constant, between these
GROUPS = 8  # of normalisation
HEAD = 32  # channels a head of attention
TEXTS = "texts.safetensors"
BASE = "base.json"  # the weights that an adapter rests on
PREDICTIONS = "epsilon", "v_prediction"


class Denoiser(nn.Module):
    """A U-Net and what it is told of each class: an embedding that it learnt, or a text's.

    With abar_t the cumulated signal of the schedule, a noisy latent is z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps.
    The network predicts eps, or the velocity v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0 (Salimans and Ho 2022),
    whichever ``scheduler.config.prediction_type`` says.

    Args:
        net: `UNet2DModel` with an embedding of each class and of none; with texts `UNet2DConditionModel`.
        scheduler: `DDIMScheduler` of sampling, whose noise the network was or will be trained with.
        texts: float (classes + 1, tokens, width) the text encoder's output for each class, then for the empty text.
        base: the weights whose network is part of ``net``, a `PeftModel`, which saves nothing but its adapter.

    Attributes:
        classes: how many; as a class's number it means that the class is not told.
        given: whether the classes are told by texts, as to weights that were given.
        signal: float32 (times,) abar.
    """

    def __init__(self, net: Any, scheduler: Any, texts: Tensor | None = None, base: Weights | None = None) -> None:
        super().__init__()
        self.signal: Tensor
        self.texts: Tensor | None
        predicts = scheduler.config.prediction_type
        if predicts not in PREDICTIONS:
            raise ValueError(f"the model predicts {predicts}: {' or '.join(PREDICTIONS)} are known")
        self.net = net.to(memory_format=torch.channels_last)  # as trained, so as loaded: bits depend on it
        self.scheduler, self.velocity = scheduler, predicts == "v_prediction"
        self.given, self.base = texts is not None, base
        self.classes = len(texts) - 1 if texts is not None else int(net.config.num_class_embeds) - 1
        self.register_buffer("signal", scheduler.alphas_cumprod.float().clone(), persistent=False)
        self.register_buffer("texts", texts, persistent=False)

    def forward(self, noisy: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        """What the network predicts.

        Args:
            noisy: float32 (n, c, h, w).
            times: int64 (n,).
            classes: int64 (n,).
        """
        if self.texts is None:
            made: Tensor = self.net(noisy, times, class_labels=classes).sample
        else:
            # Text2Earth's U-Net also reads a level of resolution; 0 is none, and what DPD's released code gives it
            level = torch.zeros_like(classes) if self.net.config.class_embed_type else None
            made = self.net(noisy, times, encoder_hidden_states=self.texts[classes], class_labels=level).sample
        return made

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """(z_t, what the network shall predict) of z_0 and eps."""
        kept, lost = self.shares(times)
        noisy = kept * clean + lost * noise
        return noisy, kept * noise - lost * clean if self.velocity else noise

    def clean(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """z0_hat, the clean latent that a prediction stands for.

        sqrt(abar) z_t - sqrt(1 - abar) v_hat, or (z_t - sqrt(1 - abar) eps_hat) / sqrt(abar).
        """
        kept, lost = self.shares(times)
        return kept * noisy - lost * prediction if self.velocity else (noisy - lost * prediction) / kept

    def shares(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), (n, 1, 1, 1) each."""
        signal = self.signal[times].view(-1, 1, 1, 1)
        return signal.sqrt(), (1 - signal).sqrt()

    def save(self, folder: Path) -> None:
        """Write the network as diffusers or, an adapter, as peft does it, ``scheduler_config.json``, and the texts."""
        self.net.save_pretrained(folder)
        self.scheduler.save_pretrained(folder)
        if self.texts is not None:
            save_file({"texts": self.texts.contiguous()}, folder / TEXTS)
        if self.base is not None:
            (folder / BASE).write_text(json.dumps({"weights": self.base.name, "sha256": self.base.digest}))

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Denoiser:
        """What :meth:`save` wrote.

        Raises:
            RequestError: an adapter whose weights are no longer there, or are others.
        """
        texts = load_file(folder / TEXTS)["texts"] if (folder / TEXTS).exists() else None
        base = _base(folder) if (folder / BASE).exists() else None
        if base is not None:
            from peft import PeftModel

            net = PeftModel.from_pretrained(load_unet(base), folder)
        else:
            made_by: Any = UNet2DModel if texts is None else UNet2DConditionModel
            net = made_by.from_pretrained(folder, local_files_only=True)
        scheduler = DDIMScheduler.from_pretrained(folder, local_files_only=True)
        return cls(net, scheduler, texts, base).to(device).eval()


def _base(folder: Path) -> Weights:
    said = json.loads((folder / BASE).read_text())
    base = find_weights(said["weights"])
    if base.digest != said["sha256"]:
        raise RequestError(
            f"distill.weights={base.name} is not what this workspace's model was adapted from: put that back, or take "
            "a fresh workspace"
        )
    return base


def new_denoiser(channels: int, side: int, classes: int, seed: int) -> Denoiser:
    """A class-conditional one with first weights, on the CPU: v-prediction, cosine schedule (Nichol and Dhariwal 2021).

    Args:
        channels: of a latent.
        side: places a side of it.
        classes: how many.
        seed: of the weights.
    """
    widths, places = [_width(side)], side
    while places % 2 == 0 and places > LEAST:
        places //= 2
        widths.append(min(WIDE, 2 * widths[-1]))
    plain = len(widths) - 1
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn from torch's global state
        torch.manual_seed(seed)
        net = UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            norm_num_groups=GROUPS,
            attention_head_dim=HEAD,
            num_class_embeds=classes + 1,
        )
    scheduler = DDIMScheduler(
        TIMES,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",  # from pure noise on (Lin et al. 2023)
        clip_sample=False,  # latents have no bounds
    )
    return Denoiser(net, scheduler)


def _width(side: int) -> int:
    return int(min(WIDE, max(NARROW, 2 ** int(math.log2(512 / side)))))
