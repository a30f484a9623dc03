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

The model is that of `benchmarks.evidence.diffusion`, which can also train it elsewhere: ``--prepare`` stops before.
``ratio`` is rs_prune's FD over random's, unfiltered, at the smallest budget. Everything is kept in ``--work``, so that
the same command goes on where it ended, and more seeds, budgets or choices add to what is there: ``samples/ARM.png``
holds what an arm drew.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray

from benchmarks.evidence.diffusion import (
    BANDS,
    DRAWN,
    RATE,
    SIZE,
    WIDTHS,
    Job,
    generate_all,
    read_sheet,
    write_jobs,
)
from benchmarks.output import print_result, write_json
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Sample, sample_id
from curation.archive.settings import ArchiveConfig
from curation.config import RuntimeConfig, load_config
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

STEPS = 800
BATCH = 16

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
        write_json(paths[arm], table["sample_id"].to_pylist())
    ray.shutdown()
    return {arm: set(json.loads(path.read_text())) for arm, path in paths.items()}


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
    parser.add_argument("--batch", type=int, default=BATCH, help="tiles a step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--prepare", action="store_true", help="choose, write the trainings down, and stop")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="models at a time")
    options = parser.parse_args()
    if options.seeds < 2 or not all(0 < budget < 1 / STAGE_ONE for budget in options.budgets):
        parser.error(f"give at least 2 seeds, and budgets below {1 / STAGE_ONE:g}")
    print_summary(options)


def print_summary(options: argparse.Namespace) -> None:
    """Do what is not done yet, and print the tables and the result."""
    urls = [options.archive, options.references, options.test]
    recipe = {
        "urls": urls,
        "steps": options.steps,
        "batch": options.batch,
        "rate": RATE,
        "widths": WIDTHS,
        "drawn": DRAWN,
    }
    said = options.work / "recipe.json"
    if said.exists() and json.loads(said.read_text()) != json.loads(json.dumps(recipe)):
        raise SystemExit(f"{options.work} holds another experiment ({said}): give another --work")
    write_json(said, recipe)
    choices = [c for c in CHOICES if c in {*options.choices, "random"}]
    wanted = ((c, 1.0 if c == "full" else b, s) for s in range(options.seeds) for b in options.budgets for c in choices)
    arms = [Arm(*arm) for arm in dict.fromkeys(wanted)]
    torch.set_num_threads(1)
    archive, test = read(options.archive), read(options.test)
    ids = np.array(archive.ids)
    chosen = choose(arms, options.archive, options.references, options.work.resolve())
    every = np.arange(len(ids))
    rows = {str(arm): np.flatnonzero(np.isin(ids, list(chosen[arm]))) if arm in chosen else every for arm in arms}
    jobs = [Job("untrained", every.tolist(), 0, 0, options.batch)]
    jobs += [Job(str(arm), rows[str(arm)].tolist(), arm.seed, options.steps, options.batch) for arm in arms]
    write_jobs(options.work, archive.pixels, jobs)
    if options.prepare:
        return
    generate_all(options.work, options.processes, options.device)
    scorer = Scorer(test, archive)
    sheets = {job.name: options.work / "samples" / f"{job.name}.png" for job in jobs}
    found = {name: scorer.distances(scorer.moments(read_sheet(sheet))) for name, sheet in sheets.items()}
    kept = {name: scorer.distances(scorer.moments(archive.pixels[some])) for name, some in rows.items()}
    noise = np.random.default_rng(0).normal(127.5, 64, (DRAWN, BANDS, SIZE, SIZE)).clip(0, 255).astype(np.uint8)
    summary = summarise(found, kept, arms, scorer)
    print(table(summary))
    print("\n".join(claims(summary)))
    first = summary[min(summary, key=float)]["unfiltered"]["fd"]
    print_result(
        first["rs_prune"]["mean"] / first["random"]["mean"] if "rs_prune" in first else float("nan"),
        seeds=options.seeds,
        steps=options.steps,
        batch=options.batch,
        unit=f"FD times {UNIT}, {DIMENSIONS} principal axes",
        untrained=found["untrained"],
        noise=scorer.distances(scorer.moments(noise)),
        floor=scorer.floor(),
        by_budget=summary,
    )


if __name__ == "__main__":
    main()
