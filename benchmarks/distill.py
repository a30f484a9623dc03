"""Drawing images in the actor pool over a plain loop around the same models on the same device, and what drawing costs.

``python -m benchmarks.distill``: ``curate distill`` runs up to its generation on a small archive with models that are
hardly trained, for how good they are makes them neither slower nor faster. From there ``ratio`` is the images/s of one
actor of the pool over those of a loop in this process that does the same for each image: noise, guided sampling, the
classifier's margins, the choice, decoding, and the search for the nearest real image. The start of Ray, of the actor
and of the loop does not count: the first group of prototypes on either side is not timed. ``costs`` are factors of the
loop's seconds an image: ``candidates`` those of the default number over one, ``guidance`` and ``classes`` those of
sampling with prototypes over without, and with the class's scale over none.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
import torch

from benchmarks.output import print_result
from curation.distillation import build, guidance
from curation.distillation.autoencoder import Autoencoder
from curation.distillation.classifier import LatentClassifier
from curation.distillation.denoiser import Denoiser
from curation.distillation.generate import Spec, together
from curation.distillation.generator import Generator
from curation.distillation.latents import LatentDataset
from curation.distillation.leakage import Checker, Images
from curation.distillation.models import fetched
from curation.distillation.real import embedder
from curation.distillation.settings import DistillConfig
from curation.encoders.base import start_torch
from curation.stages import open_run
from curation.storage import Folder
from tests.recipes import write_rgb_archive

CLASSES = 4  # of the archive
HARDLY = ("autoencoder.steps=5", "classifier.steps=5", "diffusion.steps=5")

Row = dict[str, Any]


class Measured(Exception):  # noqa: N818 - no error: the run has come as far as it was wanted
    """Everything is measured."""


class Loop:
    """The plain loop, in this process."""

    def __init__(self, spec: Spec, images: Images) -> None:
        self.spec, self.device = spec, start_torch(spec.pool.device, spec.pool.threads)
        name = str(self.device)
        self.autoencoder = Autoencoder.load(fetched(spec.autoencoder), name)
        self.classifier = LatentClassifier.load(fetched(spec.classifier), name)
        self.denoiser = Denoiser.load(fetched(spec.denoiser), name)
        self.latents = LatentDataset(spec.latents, spec.shards)
        workspace = Folder(str(spec.config.workspace))
        self.checker = Checker(images, embedder(spec.config, workspace, name))
        self.starts = dict(zip(self.latents.mean.shards, self.latents.mean.starts.tolist(), strict=False))

    def make(self, prototypes: Sequence[Row], settings: DistillConfig) -> None:
        """Draw, choose, decode and look for the nearest real image, of each of some prototypes."""
        rows = [self.starts[one["shard"]] + one["row"] for one in prototypes]
        wanted = torch.from_numpy(self.latents.read(rows)[0])
        pairs = [(place, number) for place in range(len(rows)) for number in range(settings.candidates)]
        best: dict[int, tuple[float, torch.Tensor]] = {}
        for start in range(0, len(pairs), settings.batch):
            part = pairs[start : start + settings.batch]
            full = part + part[:1] * (settings.batch - len(part))
            noise = [
                guidance.noise(0, prototypes[place]["label"], place, number, self.spec.latents.shape)
                for place, number in full
            ]
            classes = torch.tensor([prototypes[place]["number"] for place, _ in full], device=self.device)
            pull = wanted[[place for place, _ in full]]
            made = guidance.draw(self.denoiser, torch.stack(noise), classes, pull, settings.guidance)
            margins = guidance.margin(self.classifier.logits(made), classes).tolist()
            for (place, _), latent, margin in zip(part, made, margins, strict=False):
                if place not in best or margin > best[place][0]:
                    best[place] = margin, latent
        for _, latent in best.values():
            self.checker.look(self.autoencoder.decode(latent[None]).cpu().numpy())

    def rate(self, groups: Sequence[Sequence[Row]], settings: DistillConfig) -> float:
        """Images/s, without the first group."""
        self.make(groups[0], settings)
        begin = time.perf_counter()
        for group in groups[1:]:
            self.make(group, settings)
        return sum(map(len, groups[1:])) / (time.perf_counter() - begin)


def pooled(spec: Spec, images: Any, groups: Sequence[Sequence[Row]]) -> float:
    """Images/s of the pool's one actor, from its first group on."""
    done = [(time.perf_counter(), count) for count in spec.pool.work(Generator, (spec, images), groups)]
    return sum(count for _, count in done[1:]) / (done[-1][0] - done[0][0])


def measure(spec: Spec, prototypes: Sequence[Row], images: Any, repeats: int) -> dict[str, Any]:
    """Pairs of pool and loop, one after the other, then the factors."""
    settings = spec.settings
    size = together(len(prototypes), settings.candidates, settings.batch, 1)
    groups = [prototypes[start : start + size] for start in range(0, len(prototypes), size)]
    loop = Loop(spec, ray.get(images))
    pairs = []
    for number in range(repeats):
        own = replace(spec, folder=spec.folder.child(f"benchmark-{number}"))
        pairs.append({"pool": pooled(own, images, groups), "loop": loop.rate(groups, settings)})
        print(pairs[-1], file=sys.stderr, flush=True)
    whole = settings.guidance
    ways = {
        "candidates": (settings, replace(settings, candidates=1)),
        "guidance": (settings, replace(settings, guidance=replace(whole, strength=0.0))),
        "classes": (settings, replace(settings, guidance=replace(whole, classes=1.0))),
    }
    costs = {name: loop.rate(groups[:3], less) / loop.rate(groups[:3], more) for name, (more, less) in ways.items()}
    return {"pairs": pairs, "costs": costs, "images": len(prototypes), "batch": settings.batch}


def main() -> None:
    """Run it; the last line of stdout is one JSON object with ``ratio``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ipc", type=int, default=6, help=f"images of each of {CLASSES} classes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("keys", nargs="*", help="of the config, as `curate distill` takes them")
    options = parser.parse_args()
    found: dict[str, Any] = {}

    def instead(spec: Spec, prototypes: Sequence[Row], images: Any) -> None:
        found.update(measure(spec, prototypes, images, options.repeats))
        raise Measured

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rgb_archive(folder / "archive", tiles=40 * CLASSES)
        asked = [f"archive.url={folder / 'archive'}", f"workspace={folder / 'workspace'}", "runtime.max_actors=1"]
        asked += [f"distill.{key}" for key in (*HARDLY, f"ipc={options.ipc}", "leakage.quantile=null")]
        with patch.object(build, "generate", instead), open_run([*asked, *options.keys]) as run:
            try:
                build.distill(run)
            except Measured:
                pass
    print_result(statistics.median(pair["pool"] / pair["loop"] for pair in found["pairs"]), **found)


if __name__ == "__main__":
    main()
