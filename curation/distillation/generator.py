"""One actor's part of generation: it has all the models, and draws for some prototypes at a time; no Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from curation.distillation import guidance
from curation.distillation.autoencoder import Autoencoder
from curation.distillation.classifier import LatentClassifier
from curation.distillation.denoiser import Denoiser
from curation.distillation.drawn import Candidate, Drawn, sift
from curation.distillation.generate import Spec, path_of
from curation.distillation.latents import LatentDataset
from curation.distillation.leakage import Checker, Images
from curation.distillation.models import fetched
from curation.distillation.prototypes import pooled
from curation.distillation.real import embedder
from curation.storage import Folder

NAMES = ("label", "number", "prototype", "cluster", "sample_id", "shard", "row", "key")  # that a `Drawn` has of it

Pixels = NDArray[np.uint8]


class Generator:
    """An actor with all models.

    Args:
        spec: how images are drawn.
        images: the real ones.
    """

    def __init__(self, spec: Spec, images: Images) -> None:
        self.spec, self.settings, self.seed = spec, spec.settings, spec.config.seed
        self.device = spec.pool.begin(spec.folder)
        name = str(self.device)
        self.autoencoder = Autoencoder.load(fetched(spec.autoencoder), name)
        self.classifier = LatentClassifier.load(fetched(spec.classifier), name)
        self.denoiser = Denoiser.load(fetched(spec.denoiser), name)
        self.latents = LatentDataset(spec.latents, spec.shards)
        self.starts = dict(zip(self.latents.mean.shards, self.latents.mean.starts.tolist(), strict=False))
        config = spec.config
        workspace = Folder(str(config.workspace), config.runtime.storage, "workspace")
        self.checker = Checker(images, embedder(config, workspace, name))

    def make(self, prototypes: list[dict[str, Any]]) -> int:
        """Draw for some prototypes, and publish what was drawn for each as soon as it is settled; how many they are."""
        settings = self.settings
        pulls = dict(zip((one["cluster"] for one in prototypes), self._prototypes(prototypes), strict=True))
        found: dict[int, list[tuple[Candidate, Tensor]]] = {one["cluster"]: [] for one in prototypes}
        first, most = settings.candidates, settings.candidates + settings.leakage.redraws
        left = prototypes
        for numbers in range(first), range(first, most):
            self._draw([(one, number) for one in left for number in numbers], pulls, found)
            left = [one for one in left if not self._settle(one, found[one["cluster"]], last=numbers.stop == most)]
        return len(prototypes)

    def _prototypes(self, prototypes: list[dict[str, Any]]) -> Tensor:
        """Their latents, float32 (n, c, h, w)."""
        rows = [self.starts[one["shard"]] + one["row"] for one in prototypes]
        return torch.from_numpy(self.latents.read(rows)[0])

    def _draw(
        self,
        wanted: list[tuple[dict[str, Any], int]],
        pulls: dict[int, Tensor],
        found: dict[int, list[tuple[Candidate, Tensor]]],
    ) -> None:
        """Draw candidates of prototypes, batch by batch, and add each to those of its prototype."""
        size = self.settings.batch
        for start in range(0, len(wanted), size):
            some = wanted[start : start + size]
            full = [*some, *(some[:1] * (size - len(some)))]
            shape = self.spec.latents.shape
            noise = [guidance.noise(self.seed, one["label"], one["prototype"], n, shape) for one, n in full]
            classes = torch.tensor([one["number"] for one, _ in full], device=self.device)
            pull = torch.stack([pulls[one["cluster"]] for one, _ in full])
            arguments = torch.stack(noise), classes, pull, self.settings.guidance
            latents = guidance.draw(self.denoiser, *arguments).float()
            margins = guidance.margin(self.classifier.logits(latents), classes).tolist()
            for (one, number), latent, margin in zip(some, latents.cpu(), margins, strict=False):
                distance = self._distance(latent, pulls[one["cluster"]])
                found[one["cluster"]].append((Candidate(number, margin, distance), latent))

    def _distance(self, latent: Tensor, prototype: Tensor) -> float:
        """Between the two, pooled."""
        one, other = pooled(torch.stack([latent, prototype]).numpy(), self.settings.prototypes.pool)
        return float(np.linalg.norm(one - other))

    def _settle(self, prototype: dict[str, Any], found: list[tuple[Candidate, Tensor]], last: bool) -> bool:
        """Choose among the candidates and publish, unless all are too near and there may be more."""
        decoded: dict[int, Pixels] = {}

        def pixels(number: int) -> Pixels:
            if number not in decoded:
                latent = found[number][1].to(self.device)
                decoded[number] = self.autoencoder.decode(latent[None])[0].cpu().numpy()
            return decoded[number]

        candidates = sift([one for one, _ in found], pixels, self.checker, self.spec.limits)
        found[:] = [(one, latent) for one, (_, latent) in zip(candidates, found, strict=True)]
        drawn = Drawn(**{name: prototype[name] for name in NAMES}, candidates=candidates)
        if drawn.chosen is None and not last:
            return False
        arrays: dict[str, NDArray[Any]] = {"latents": torch.stack([latent for _, latent in found]).numpy()}
        if drawn.chosen is not None:
            arrays["pixels"] = np.ascontiguousarray(pixels(drawn.chosen.number))
        told = {"drawn": json.dumps(asdict(drawn), ensure_ascii=False)}
        self.spec.folder.publish(path_of(prototype), safetensors.numpy.save(arrays, told))
        return True
