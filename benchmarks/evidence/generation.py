"""What a pruned set is worth for generation: a tiny diffusion model on each kept set, equal steps, two references.

``python -m benchmarks.evidence.generation ARCHIVE REFERENCES TEST`` prunes the archive with the stages of ``curate
prune``, trains the same model from scratch on what each choice keeps, and takes the Fréchet distance (FD) of its
samples from TEST, in the first `DIMENSIONS` principal axes of ``random_conv`` with a seed of its own (the selector's
has another) and fitted on TEST. `benchmarks.evidence.archives` makes the three folders.

Choices: ``random``; ``entropy``, Stage I alone; ``rs_prune``, Stage I and II as published (`STAGE_ONE` budgets stay
after Stage I, so 30 % of which 15 %; no free centroids); ``stage2``, the same without Stage I; ``balanced``, ours;
``full``, all of it. Seed s draws the choice and starts the training, so that arms are paired by seed.

References: ``unfiltered``, all of TEST; ``filtered``, its top `TOP` by entropy, which flatters whatever prefers
entropy; ``archive``, the archive as it is, copies, tail and flat tiles included, which flatters ``full`` and
``random``. Beside them the FD of the kept tiles themselves: what a perfect generator would reach.

The model: U-Net on 2 x 2 pixel blocks, v-prediction, cosine schedule, averaged weights, DDIM; after so few steps its
samples have the tiles' colours and coarse forms under much grain, so it says which set is better for a short training
of a small model, no more. ``ratio`` is rs_prune's FD over random's, unfiltered, at the smallest budget. Everything is
kept in ``--work``, so that the same command goes on where it ended, and more seeds, budgets or choices add to what is
there: ``samples/ARM.png`` holds what an arm drew.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from benchmarks.output import print_result
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Sample, sample_id
from curation.config import ArchiveConfig, RuntimeConfig, load_config
from curation.encoders import Encoder, build_encoder, fit_artefact
from curation.encoders.base import Preparation
from curation.evaluation.frechet import axes, expected, frechet_distance
from curation.evaluation.moments import Moments
from curation.evaluation.statistics import LEVEL, Difference, holm, paired
from curation.runtime import start_ray
from curation.scoring.entropy import entropy
from curation.stages import open_run

CHOICES = ("full", "random", "entropy", "rs_prune", "stage2", "balanced")
STAGE_ONE = 2  # budgets that Stage I leaves for Stage II

SIZE = 32  # pixels a side, of
BANDS = 3
WIDTHS = 32, 64, 64  # channels at 16, 8 and 4 places a side: 1.05 million parameters
STEPS = 800
BATCH = 16
RATE = 2e-3  # of AdamW, at its highest
DECAY = 0.995  # of the weights' average
TIMES = 1000  # of the diffusion
DRAWN = 512  # samples of each model, `ROW` in a row of its sheet
ROW = 32
DDIM_STEPS = 20

TOP = 0.3  # of the test set by entropy: the filtered reference
DIMENSIONS = 32
SCORER = {"size": SIZE, "strides": [2, 1, 1], "seed": 101}  # of random_conv
UNIT = 1000  # FDs are told times this: vectors have unit length

Pixels = NDArray[np.uint8]
Distances = dict[str, float]  # by reference
Found = dict[str, Distances]  # by arm


@dataclass(frozen=True)
class Arm:
    """A choice at a budget (1: all) with a seed."""

    choice: str
    budget: float
    seed: int

    def __str__(self) -> str:
        return f"{self.choice}-{self.budget:g}-{self.seed}"

    def overrides(self) -> list[str]:
        """What ``curate prune`` is asked for."""
        published = ["select=rs_prune", "cluster.free=0"]
        select = {
            "rs_prune": [*published, f"select.entropy.keep={STAGE_ONE * self.budget:g}"],
            "stage2": [*published, "select.entropy.keep=null"],
        }.get(self.choice, [f"select={self.choice}"])
        return [*select, f"select.budget={self.budget:g}", f"seed={self.seed}"]


@dataclass(frozen=True)
class Tiles:
    """Small tiles, the samples that they were made of, and those samples' entropy (n,) in bits."""

    samples: list[Sample]
    ids: list[str]
    pixels: Pixels
    entropy: NDArray[np.float64]


def read(url: str) -> Tiles:
    """All samples of an 8-bit archive of three bands.

    Raises:
        SystemExit: it is not one.
    """
    settings, samples, ids = ArchiveConfig(), [], []
    for root in list_archive(url):
        for shard in root.shards:
            for raw in read_shard(root.folder, shard, settings):
                assert isinstance(raw, RawSample), raw
                samples.append(decode(raw, settings))
                ids.append(sample_id(shard.name, samples[-1].key))
    if {(len(sample.bands), str(sample.pixels.dtype)) for sample in samples} != {(BANDS, "uint8")}:
        raise SystemExit(f"{url}: give an archive of 8-bit images of three bands")
    ranges = _ranges()
    prepare = Preparation(ranges, SIZE)
    bits = [float(entropy(sample.pixels, sample.mask, ranges).mean()) for sample in samples]
    return Tiles(samples, ids, np.stack([prepare(sample) for sample in samples]), np.array(bits))


def _ranges() -> NDArray[np.float32]:
    return np.array([[0, 255]] * BANDS, np.float32)


def choose(arms: Sequence[Arm], archive: str, references: str, work: Path) -> dict[Arm, set[str]]:
    """The ids that each arm but the full ones keeps, by the stages of ``curate prune`` where that was not done yet."""
    paths = {arm: work / "kept" / f"{arm}.json" for arm in arms if arm.choice != "full"}
    pending = [arm for arm, path in paths.items() if not path.exists()]
    if pending:
        start_ray(RuntimeConfig())
    for arm in pending:
        print(f"choosing {arm}", file=sys.stderr)
        urls = [f"archive.url={archive}", f"references.url={references}", f"workspace={work / 'workspace'}"]
        with open_run([*urls, *arm.overrides()]) as job:
            catalog = job.catalog()
            manifest = job.manifest(catalog, job.clusters(catalog))
        table = pq.read_table(work / "workspace" / manifest.folder / "manifest.parquet", columns=["sample_id"])
        _write(paths[arm], table["sample_id"].to_pylist())
    ray.shutdown()
    return {arm: set(json.loads(path.read_text())) for arm, path in paths.items()}


def network(seed: int) -> UNet2DModel:
    """The U-Net, on blocks of 2 x 2 pixels, with its first weights."""
    torch.manual_seed(seed)
    depth = len(WIDTHS)
    net = UNet2DModel(
        sample_size=SIZE // 2,
        in_channels=4 * BANDS,
        out_channels=4 * BANDS,
        layers_per_block=1,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        norm_num_groups=8,
        add_attention=False,
    )
    return net.to(memory_format=torch.channels_last)


def scheduler() -> DDIMScheduler:
    """Cosine schedule (Nichol and Dhariwal 2021), v-prediction (Salimans and Ho 2022)."""
    return DDIMScheduler(
        TIMES, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )


def train(net: UNet2DModel, pixels: Pixels, seed: int, steps: int) -> float:
    """Train on uniform draws with replacement, and leave the averaged weights in it; the last tenth's mean loss."""
    draw = torch.Generator().manual_seed(seed)
    data = F.pixel_unshuffle(torch.from_numpy(pixels).float() / 127.5 - 1, 2)
    noising, average = scheduler(), EMAModel(net.parameters(), decay=DECAY)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    losses = []
    for _ in range(steps):
        clean = data[torch.randint(len(data), (BATCH,), generator=draw)]
        noise = torch.randn(clean.shape, generator=draw)
        times = torch.randint(TIMES, (BATCH,), generator=draw)
        loss = F.mse_loss(
            net(noising.add_noise(clean, noise, times), times).sample, noising.get_velocity(clean, noise, times)
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        rate.step()
        average.step(net.parameters())
        losses.append(loss.item())
    average.copy_to(net.parameters())
    return float(np.mean(losses[-max(1, steps // 10) :]))


@torch.inference_mode()
def draw_samples(net: UNet2DModel, seed: int) -> Pixels:
    """(`DRAWN`, `BANDS`, `SIZE`, `SIZE`)."""
    noise = torch.Generator().manual_seed(seed)
    steps = scheduler()
    steps.set_timesteps(DDIM_STEPS)
    parts = []
    for _ in range(DRAWN // ROW):
        x = torch.randn(ROW, 4 * BANDS, SIZE // 2, SIZE // 2, generator=noise)
        for time_step in steps.timesteps:
            x = steps.step(net(x, time_step).sample, time_step, x).prev_sample
        parts.append(F.pixel_shuffle(x, 2).add(1).mul(127.5).round().clamp(0, 255).byte().numpy())
    return np.concatenate(parts)


def generate(pixels: Pixels, seed: int, steps: int, work: Path, name: str) -> str:
    """Train, draw, and keep the samples; runs in a process of its own, on one thread."""
    torch.set_num_threads(1)
    start = time.process_time()
    net = network(seed)
    loss = train(net, pixels, seed, steps) if steps else None
    trained = time.process_time()
    write_sheet(work / "samples" / f"{name}.png", draw_samples(net.eval(), seed))
    seconds = {"train": round(trained - start, 1), "draw": round(time.process_time() - trained, 1)}
    _write(work / "arms" / f"{name}.json", {"tiles": len(pixels), "loss": loss, "cpu_seconds": seconds})
    return f"{name}: loss {loss}, CPU seconds {seconds}"


def generate_all(jobs: Mapping[str, tuple[Pixels, int, int]], work: Path, processes: int) -> None:
    """Those arms (tiles, seed, steps) that are not done yet, one a process."""
    pending = {name: job for name, job in jobs.items() if not (work / "arms" / f"{name}.json").exists()}
    print(f"training {len(pending)} of {len(jobs)} models in {processes} processes", file=sys.stderr)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(generate, *job, work, name) for name, job in pending.items()]
        for done in as_completed(running):
            print(done.result(), file=sys.stderr, flush=True)


class Scorer:
    """Moments of tiles in the scorer's space, and their distance from every reference."""

    def __init__(self, test: Tiles, archive: Tiles) -> None:
        bands = test.samples[0].bands
        config = {**load_config(["encoder=random_conv"]).encoder, **SCORER}
        artefact = fit_artefact(config, test.samples, bands, _ranges(), int(config["seed"]))
        self.encoder: Encoder = build_encoder(config, artefact, bands, "uint8", "cpu", 1)
        every = self._features(test.pixels)
        self.axes = axes(Moments.of(every), DIMENSIONS)
        top = np.argsort(-test.entropy, kind="stable")[: round(TOP * len(test.ids))]
        self.references = {
            "unfiltered": Moments.of(every).project(self.axes),
            "filtered": Moments.of(every[top]).project(self.axes),
            "archive": self.moments(archive.pixels),
        }

    def moments(self, pixels: Pixels) -> Moments:
        """Of tiles (n, `BANDS`, `SIZE`, `SIZE`)."""
        return Moments.of(self._features(pixels)).project(self.axes)

    def distances(self, moments: Moments) -> Distances:
        """From every reference."""
        return {name: UNIT * frechet_distance(moments, to) for name, to in self.references.items()}

    def floor(self) -> Distances:
        """What `DRAWN` independent draws from each reference itself would have on average."""
        return {name: UNIT * expected(reference, DRAWN) for name, reference in self.references.items()}

    def _features(self, pixels: Pixels) -> NDArray[np.float32]:
        starts = range(0, len(pixels), self.encoder.batch)
        return np.concatenate([self.encoder.encode(pixels[i : i + self.encoder.batch]) for i in starts])


def judged(each: Mapping[str, Difference]) -> dict[str, Any]:
    """Differences of FDs (below 0 is better), with Holm's p over them all and a verdict."""
    adjusted: list[float] = holm([difference.p for difference in each.values()]).tolist() if each else []
    said: dict[str, Any] = {}
    for (name, difference), p in zip(each.items(), adjusted, strict=True):
        verdict = "no difference" if p >= LEVEL else "better" if difference.mean < 0 else "worse"
        said[name] = {**asdict(difference), "p": p, "verdict": verdict}
    return said


def summarise(found: Found, kept: Found, arms: Sequence[Arm], scorer: Scorer) -> dict[str, Any]:
    """By budget and reference: means with intervals, the kept tiles' own, less random, and rs_prune less its rivals."""
    summary: dict[str, Any] = {}
    seeds = sorted({arm.seed for arm in arms})
    choices = list(dict.fromkeys(arm.choice for arm in arms))
    for budget in sorted({arm.budget for arm in arms if arm.choice != "full"}):
        summary[f"{budget:g}"] = {}
        for reference in scorer.references:
            of = {c: [str(Arm(c, 1 if c == "full" else budget, seed)) for seed in seeds] for c in choices}
            figures = {c: np.array([found[name][reference] for name in names]) for c, names in of.items()}
            rivals = [c for c in ("random", "full", "entropy") if c in figures and "rs_prune" in figures]
            alone = {c: paired(values, np.zeros(len(values))) for c, values in figures.items()}
            summary[f"{budget:g}"][reference] = {
                "fd": {c: {"mean": d.mean, "low": d.low, "high": d.high} for c, d in alone.items()},
                "kept_tiles": {c: float(np.mean([kept[n][reference] for n in names])) for c, names in of.items()},
                "less_random": judged({c: paired(figures[c], figures["random"]) for c in choices if c != "random"}),
                "rs_prune_less": judged({c: paired(figures["rs_prune"], figures[c]) for c in rivals}),
            }
    return summary


def claims(summary: Mapping[str, Any]) -> list[str]:
    """What holds of the published claims, a sentence for each budget."""
    said = []
    for budget, references in summary.items():
        verdicts = {name: {c: d["verdict"] for c, d in r["rs_prune_less"].items()} for name, r in references.items()}
        if set(verdicts["unfiltered"]) != {"random", "full", "entropy"}:
            continue
        holds = {name: found["random"] == found["full"] == "better" for name, found in verdicts.items()}
        bias = "; it holds against the filtered reference alone: the reviewers' concern about bias is confirmed"
        said.append(
            f"{budget} kept, (i) Stage I and II beats random and full: "
            + ", ".join(f"{name} {'yes' if yes else 'no'}" for name, yes in holds.items())
            + (bias if holds["filtered"] and not holds["unfiltered"] else "")
        )
        told = ", ".join(f"{name} {found['entropy']}" for name, found in verdicts.items())
        said.append(f"{budget} kept, (ii) Stage I and II against entropy alone: {told}")
    return said


def table(summary: Mapping[str, Any]) -> str:
    """As the docs have it: FD with its interval and its paired difference from random."""
    lines = []
    for budget, references in summary.items():
        lines += [f"| {budget} kept | {' | '.join(references)} |", "|---" * (1 + len(references)) + "|"]
        for choice in references["unfiltered"]["fd"]:
            cells = []
            for figures in references.values():
                fd, less = figures["fd"][choice], figures["less_random"].get(choice)
                cell = f"{fd['mean']:.0f} ({fd['low']:.0f} to {fd['high']:.0f})"
                if less:
                    mean, low, high = (round(less[name]) for name in ("mean", "low", "high"))
                    cell += f", {mean:+d} ({low:+d} to {high:+d}) {less['verdict']}"
                cells.append(f"{cell}; tiles {figures['kept_tiles'][choice]:.0f}")
            lines.append(f"| `{choice}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _write(path: Path, value: Any) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(value))
    path.with_suffix(".part").rename(path)


def write_sheet(path: Path, tiles: Pixels) -> None:
    """`ROW` tiles in a row, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = tiles.reshape(-1, ROW, *tiles.shape[1:]).transpose(0, 3, 1, 4, 2)
    Image.fromarray(rows.reshape(len(rows) * SIZE, ROW * SIZE, BANDS)).save(path)


def read_sheet(path: Path) -> Pixels:
    """The tiles of a sheet, (n, `BANDS`, `SIZE`, `SIZE`)."""
    sheet = np.asarray(Image.open(path))
    rows = sheet.reshape(-1, SIZE, ROW, SIZE, BANDS).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(rows.reshape(-1, BANDS, SIZE, SIZE))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="URL of the archive to prune: 8-bit RGB")
    parser.add_argument("references", help="URL of the labelled bank")
    parser.add_argument("test", help="URL of the test set")
    parser.add_argument("--work", type=Path, default=Path("generation"), help="folder of all results, to go on from")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.15, 0.3], help="shares kept, below 0.5")
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES), help="random always among them")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="models at a time")
    options = parser.parse_args()
    if options.seeds < 2 or not all(0 < budget < 1 / STAGE_ONE for budget in options.budgets):
        parser.error(f"give at least 2 seeds, and budgets below {1 / STAGE_ONE:g}")
    print_summary(options)


def print_summary(options: argparse.Namespace) -> None:
    """Do what is not done yet, and print the tables and the result."""
    urls = [options.archive, options.references, options.test]
    recipe = {"urls": urls, "steps": options.steps, "batch": BATCH, "rate": RATE, "widths": WIDTHS, "drawn": DRAWN}
    said = options.work / "recipe.json"
    if said.exists() and json.loads(said.read_text()) != json.loads(json.dumps(recipe)):
        raise SystemExit(f"{options.work} holds another experiment ({said}): give another --work")
    _write(said, recipe)
    choices = [c for c in CHOICES if c in {*options.choices, "random"}]
    wanted = ((c, 1.0 if c == "full" else b, s) for s in range(options.seeds) for b in options.budgets for c in choices)
    arms = [Arm(*arm) for arm in dict.fromkeys(wanted)]
    torch.set_num_threads(1)
    archive, test = read(options.archive), read(options.test)
    ids = np.array(archive.ids)
    chosen = choose(arms, options.archive, options.references, options.work.resolve())
    tiles = {
        str(arm): archive.pixels[np.isin(ids, list(chosen[arm]))] if arm in chosen else archive.pixels for arm in arms
    }
    jobs = {"untrained": (archive.pixels, 0, 0)}
    jobs |= {str(arm): (tiles[str(arm)], arm.seed, options.steps) for arm in arms}
    generate_all(jobs, options.work, options.processes)
    scorer = Scorer(test, archive)
    found = {n: scorer.distances(scorer.moments(read_sheet(options.work / "samples" / f"{n}.png"))) for n in jobs}
    kept = {name: scorer.distances(scorer.moments(some)) for name, some in tiles.items()}
    noise = np.random.default_rng(0).normal(127.5, 64, (DRAWN, BANDS, SIZE, SIZE)).clip(0, 255).astype(np.uint8)
    summary = summarise(found, kept, arms, scorer)
    print(table(summary))
    print("\n".join(claims(summary)))
    first = summary[min(summary, key=float)]["unfiltered"]["fd"]
    print_result(
        first["rs_prune"]["mean"] / first["random"]["mean"] if "rs_prune" in first else float("nan"),
        seeds=options.seeds,
        steps=options.steps,
        unit=f"FD times {UNIT}, {DIMENSIONS} principal axes",
        untrained=found["untrained"],
        noise=scorer.distances(scorer.moments(noise)),
        floor=scorer.floor(),
        by_budget=summary,
    )


if __name__ == "__main__":
    main()
