"""What dynamic pruning is worth where labels are wrong: shares of wrong labels, shares left out, policies, equal steps.

``python -m benchmarks.evidence.noisy prepare ARCHIVE TILES.npz`` reads a labelled archive of 8-bit RGB images into
small tiles. ``python -m benchmarks.evidence.noisy run TILES.npz`` trains on them, on a CPU or a GPU, and of the
project's dependencies needs torch, NumPy, SciPy, scikit-learn, Arrow and Pillow alone.

A share of the training labels is made wrong at random. Each arm trains `curation.scoring.network`'s network by its
recipe, from the same first weights for the same number of gradient steps, on the rows that its policy draws each pass
(`curation.training.policies`), weighted as it says; weights are divided by their mean of the pass. The policies:

- ``full``; ``random`` (random-dynamic); ``infobatch``; ``small_loss``;
- ``difficulty``, ``consistency``, ``both``: `guided` by the moving average of the loss, by consistency, or by both.

No pretrained image-text model is to be had here. In its place stands a second view: `curation.scoring.consistency`'s
cross-fitted class prototypes on ``random_conv`` features, fitted on the tiles without labels, and on the wrong labels
like everything else. So this tells nothing of CLIP.

Scenes are halved by a hash, whatever the seed: constants were chosen on ``--split tune``, and are reported on
``--split report``. In each half about a third tests, on right labels, by macro accuracy. A seed draws wrong labels,
folds, first weights, order and draws, so that arms are paired by seed. Wall-clock holds everything that an arm needs:
features, consistency, draws, training. ``ratio`` is the time of ``both`` over that of ``full``. Everything is kept in
``--work``: the same command goes on where it ended.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.backends import cudnn
from torch.nn import functional as F

from benchmarks.output import print_result, write_json
from curation.archive.sample import Member, RawSample, Sample
from curation.encoders.base import Preparation, build_encoder, fit_artefact
from curation.evaluation.probe import score
from curation.evaluation.statistics import LEVEL, Difference, holm, paired
from curation.scoring.consistency import by_prototypes, class_sums, fit_prototypes
from curation.scoring.network import DECAY, RATE, Network, Small, band_statistics, warm_cosine
from curation.scoring.sim import ranks
from curation.training.losses import LossAverages
from curation.training.policies import Policy, Rule, guided, infobatch, random, small_loss

SIZE = 32  # pixels a side of the tiles that are trained on
STEPS = 400
BATCH = 64
TESTED = 0.35  # of each half
FOLDS = 5  # of the second view
BETA = 0.8  # of the losses' moving average; InfoBatch has the last loss, as published
ENCODER = {
    **{"name": "random_conv", "size": 48, "filters": 64, "patch": 6, "strides": [4, 2, 1, 1], "dim": 256},
    **{"seed": 0, "batch": 32, "threads": 1},
}
BANDS = ("red", "green", "blue")
RANGES = np.array([[0, 255]] * 3, np.float32)

Pixels = NDArray[np.uint8]
Codes = NDArray[np.int64]


class Way(NamedTuple):
    """A policy: its rule from losses and consistency, the losses' beta, from which share of passes all rows come."""

    rule: Callable[[LossAverages, NDArray[np.float64]], Rule]
    beta: float = BETA
    full_from: float = 0.875


WAYS = {
    "full": Way(lambda losses, agreed: random()),
    "random": Way(lambda losses, agreed: random()),
    "infobatch": Way(lambda losses, agreed: infobatch(losses), beta=0.0),
    "small_loss": Way(lambda losses, agreed: small_loss(losses), full_from=1.0),
    "difficulty": Way(lambda losses, agreed: guided(losses, None, "difficulty")),
    "consistency": Way(lambda losses, agreed: guided(losses, agreed, "consistency")),
    "both": Way(lambda losses, agreed: guided(losses, agreed, "both")),
}
SECOND_VIEW = ("consistency", "both")  # which take it, and its time
CLAIMS = (("both", "difficulty"), ("both", "infobatch"))  # told by the mean over the shares left out


@dataclass(frozen=True)
class Arm:
    """A share of wrong labels, a share left out (0: none), a policy and a seed."""

    noise: float
    left_out: float
    way: str
    seed: int

    def __str__(self) -> str:
        return f"{self.noise:g}-{self.left_out:g}-{self.way}-{self.seed}"


class Half(NamedTuple):
    """Training and test tiles (n, 3, size, size) of one half, their codes, and the features of the training tiles."""

    tiles: Pixels
    codes: Codes
    test_tiles: Pixels
    test_codes: Codes
    features: NDArray[np.float32]
    seconds: float  # that the features took


def prepare(url: str, path: Path, size: int) -> dict[str, Any]:
    """Read an archive by the project's readers, and write tiles, keys and codes."""
    from curation.archive.decode import decode
    from curation.archive.listing import list_archive
    from curation.archive.reader import read_shard
    from curation.archive.settings import ArchiveConfig

    prepared, settings, tiles, keys, labels = Preparation(RANGES, size), ArchiveConfig(), [], [], []
    for root in list_archive(url):
        for shard in root.shards:
            for raw in read_shard(root.folder, shard, settings):
                if isinstance(raw, RawSample) and (sample := decode(raw, settings)).label is not None:
                    if sample.pixels.dtype != np.uint8 or len(sample.bands) != len(BANDS):
                        raise SystemExit(f"{url}: give an archive of 8-bit images of three bands")
                    tiles.append(prepared(sample))
                    keys.append(sample.key)
                    labels.append(sample.label)
    classes = sorted(set(labels))
    np.savez(path, tiles=np.stack(tiles), keys=keys, codes=[classes.index(label) for label in labels], classes=classes)
    return {"tiles": len(tiles), "classes": len(classes), "size": size}


def split(path: Path, which: str) -> tuple[Pixels, Codes, Pixels, Codes]:
    """One half's training tiles and codes, then its test's; by hashes of the keys."""
    with np.load(path) as file:
        tiles, codes, keys = file["tiles"], file["codes"].astype(np.int64), file["keys"].tolist()
    hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
    own = np.array([("tune" if h[0] % 2 else "report") == which or which == "all" for h in hashes])
    tested = np.array([int.from_bytes(h[1:5]) < TESTED * 2**32 for h in hashes])
    return tiles[own & ~tested], codes[own & ~tested], tiles[own & tested], codes[own & tested]


def features(tiles: Pixels, device: str) -> NDArray[np.float32]:
    """Weightless features: ``random_conv``, fitted on these tiles."""
    samples = [
        Sample(str(i), i, tile, np.ones(tile.shape[1:], bool), BANDS, Member("", None, 0))
        for i, tile in enumerate(tiles)
    ]
    artefact = fit_artefact(ENCODER, samples, BANDS, RANGES, int(ENCODER["seed"]))
    encoder = build_encoder(ENCODER, artefact, BANDS, "uint8", device, 1)
    prepared = [encoder.prepare(sample) for sample in samples]
    batches = (np.stack(prepared[start : start + encoder.batch]) for start in range(0, len(tiles), encoder.batch))
    return np.concatenate([encoder.encode(batch) for batch in batches])


@lru_cache(1)
def half(path: Path, which: str, work: Path) -> Half:
    """With the features that `write_features` left."""
    with np.load(work / "features.npz") as file:
        return Half(*split(path, which), file["features"], float(file["seconds"]))


def write_features(path: Path, which: str, work: Path, device: str) -> None:
    """Unless they are there."""
    if not (work / "features.npz").exists():
        tiles = split(path, which)[0]
        start = time.perf_counter()
        made = features(tiles, device)
        np.savez(work / "part.npz", features=made, seconds=time.perf_counter() - start)
        (work / "part.npz").rename(work / "features.npz")


def with_wrong(codes: Codes, classes: int, share: float, seed: int) -> tuple[Codes, NDArray[np.bool_]]:
    """Codes of which a share, to the nearest row, is another class's, and which those are."""
    draw = np.random.default_rng([seed, 1])
    wrong = draw.permutation(len(codes)) < round(share * len(codes))
    return np.where(wrong, (codes + draw.integers(1, classes, len(codes))) % classes, codes), wrong


def second_view(vectors: NDArray[np.float32], codes: Codes, classes: int, seed: int) -> NDArray[np.float64]:
    """The consistency of each row (n,) with its label, wrong or not."""
    fold = np.random.default_rng([seed, 2]).integers(FOLDS, size=len(codes))
    fitted = fit_prototypes(class_sums(vectors, codes, fold, classes, FOLDS))
    agreed = by_prototypes(fitted, vectors, codes, fold)
    return ranks(np.nan_to_num(agreed, nan=0.0), codes)


def passes_for(policy: Policy, steps: int) -> int:
    """The fewest passes that give so many steps."""
    passes = 1
    while sum(_steps(policy, number, passes) for number in range(passes)) < steps:
        passes += 1
    return passes


def _steps(policy: Policy, number: int, passes: int) -> int:
    return max(1, (policy.total - (policy.dropped(number, passes) or 0)) // BATCH)


def turned(tiles: Tensor, way: Tensor) -> Tensor:
    """Each tile (n, bands, s, s) in one of its eight positions, way (n,) from 0 to 7; nothing waits for the host."""
    size = tiles.shape[-1]
    place = torch.arange(size * size, device=tiles.device).view(size, size)
    flips = [place, place.flip(1), place.flip(0), place.flip(0, 1)]
    places = torch.stack([one.reshape(-1) for flip in flips for one in (flip, flip.T)])
    return tiles.flatten(2).gather(2, places[way][:, None].expand(-1, tiles.shape[1], -1)).view_as(tiles)


class Trained(NamedTuple):
    """A network, and of the passes that left rows out the share of wrong labels among the kept, plain and weighted."""

    network: Network
    wrong: float
    weighted: float
    passes: int
    drawing: float  # seconds


def train(
    data: Half, codes: Codes, wrong: NDArray[np.bool_], policy: Policy, losses: LossAverages, arm: Arm, steps: int,
    device: str,
) -> Trained:  # fmt: skip
    """The recipe of `curation.scoring.network.train_classifier`, on what a policy draws."""
    with torch.random.fork_rng():
        torch.manual_seed(arm.seed)
        body = Small(len(BANDS))
        network = Network(body, body.dim, int(data.codes.max()) + 1, *band_statistics(data.tiles))
    network.to(device).to(memory_format=torch.channels_last).train()
    groups = [
        {"params": [p for p in network.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in network.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, steps))
    draw = torch.Generator(device).manual_seed(arm.seed)
    tiles, truth = torch.from_numpy(data.tiles).to(device), torch.from_numpy(codes).to(device)
    passes, number, step, drawing = passes_for(policy, steps), 0, 0, 0.0
    kept: list[tuple[float, float]] = []
    while step < steps:
        start = time.perf_counter()
        rows, weights = policy.draw(number, passes)
        weights = weights / weights.mean()
        drawing += time.perf_counter() - start
        if len(rows) < policy.total:
            kept.append((float(wrong[rows].mean()), float((wrong[rows] * weights).mean())))
        order = torch.randperm(len(rows), generator=draw, device=device)
        own, heavy = torch.from_numpy(rows).to(device).long()[order], torch.from_numpy(weights).to(device)[order]
        for at in range(0, min(_steps(policy, number, passes), steps - step) * BATCH, BATCH):
            some = own[at : at + BATCH]
            way = torch.randint(8, (len(some),), generator=draw, device=device)
            each = F.cross_entropy(network(turned(tiles[some], way)), truth[some], reduction="none")
            losses.update(some, each)
            optimiser.zero_grad()
            (each * heavy[at : at + BATCH]).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            step += 1
        number += 1
    plain, weighted = np.mean(kept, axis=0) if kept else (float(wrong.mean()),) * 2
    return Trained(network.eval(), float(plain), float(weighted), passes, drawing)


def train_arm(arm: Arm, path: Path, which: str, work: Path, steps: int, device: str) -> str:
    """Train, test, and keep what came of it; runs in a process of its own, on one thread."""
    torch.set_num_threads(1)
    data, way = half(path, which, work), WAYS[arm.way]
    classes = int(data.codes.max()) + 1
    codes, wrong = with_wrong(data.codes, classes, arm.noise, arm.seed)
    start = time.perf_counter()
    agreed = second_view(data.features, codes, classes, arm.seed) if arm.way in SECOND_VIEW else np.zeros(0)
    judging = time.perf_counter() - start + (data.seconds if arm.way in SECOND_VIEW else 0.0)
    losses = LossAverages(len(codes), way.beta, device)
    policy = Policy(len(codes), way.rule(losses, agreed), arm.left_out, arm.seed, full_from=way.full_from)
    start = time.perf_counter()
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        trained = train(data, codes, wrong, policy, losses, arm, steps, device)
        if device == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    predicted = trained.network.logits(data.test_tiles).argmax(axis=1)
    found = {
        "accuracy": score(data.test_codes, predicted).macro,
        "wrong": trained.wrong,
        "wrong_weighted": trained.weighted,
        "passes": trained.passes,
        "seconds": {"train": seconds - trained.drawing, "draw": trained.drawing, "consistency": judging},
    }
    write_json(work / "arms" / f"{arm}.json", found)
    return f"{arm}: {found['accuracy']:.4f}, {seconds:.1f} s"


def interval(difference: Difference, level: float) -> tuple[float, float]:
    """The t interval of a difference at another level than its own."""
    freedom = difference.seeds - 1
    half_width = (difference.high - difference.mean) * stats.t.isf(level / 2, freedom) / stats.t.isf(LEVEL / 2, freedom)
    return difference.mean - float(half_width), difference.mean + float(half_width)


def judged(differences: Mapping[str, Difference]) -> dict[str, Any]:
    """With Holm's p over them all, and intervals at the level at which his procedure tests each."""
    p = [difference.p for difference in differences.values()]
    place = np.argsort(np.argsort(p, kind="stable"), kind="stable")
    said = {}
    for (name, difference), adjusted, k in zip(differences.items(), holm(p).tolist(), place.tolist(), strict=True):
        low, high = interval(difference, LEVEL / (len(p) - k))
        said[name] = {"mean": difference.mean, "low": low, "high": high, "p": adjusted}
    return said


def summarise(found: Mapping[Arm, Any], ways: Sequence[str]) -> dict[str, Any]:
    """By noise and share left out accuracy, wrong labels kept, seconds, differences; by noise alone the claims."""
    seeds = sorted({arm.seed for arm in found})
    noises, shares = sorted({arm.noise for arm in found}), sorted({arm.left_out for arm in found} - {0.0})

    def of(noise: float, share: float, way: str, what: Callable[[Any], float]) -> NDArray[np.float64]:
        return np.array([what(found[Arm(noise, 0.0 if way == "full" else share, way, seed)]) for seed in seeds])

    def accuracy(noise: float, share: float, way: str) -> NDArray[np.float64]:
        return of(noise, share, way, lambda one: one["accuracy"])

    made: dict[str, Any] = {"cells": {}, "claims": {}}
    pooled: dict[str, Difference] = {}
    for noise in noises:
        for share in shares:
            references = [reference for reference in ("full", "infobatch") if reference in ways]
            differences = {
                f"{way}, {reference}": paired(accuracy(noise, share, way), accuracy(noise, share, reference))
                for reference in references
                for way in ways
                if way not in ("full", reference)
            }
            made["cells"][f"{noise:g}, {share:g}"] = {
                "accuracy": {way: float(accuracy(noise, share, way).mean()) for way in ways},
                "wrong": {way: float(of(noise, share, way, lambda one: one["wrong"]).mean()) for way in ways},
                "weighted": {way: float(of(noise, share, way, lambda o: o["wrong_weighted"]).mean()) for way in ways},
                "seconds": {
                    way: float(of(noise, share, way, lambda one: sum(one["seconds"].values())).mean()) for way in ways
                },
                "less": judged(differences) if differences else {},
            }
        for way, reference in CLAIMS:
            if way in ways and reference in ways:
                one, other = (np.mean([accuracy(noise, s, w) for s in shares], axis=0) for w in (way, reference))
                pooled[f"{noise:g}: {way} less {reference}"] = paired(one, other)
    made["claims"] = judged(pooled) if pooled else {}
    return made


def tables(summary: Mapping[str, Any], ways: Sequence[str]) -> str:
    """As the docs have them: in percent and percentage points."""
    lines = []
    for cell, figures in summary["cells"].items():
        noise, share = cell.split(", ")
        lines += [
            f"{100 * float(noise):.0f} % wrong labels, {100 * float(share):.0f} % left out:",
            "",
            "| | accuracy | less full | less InfoBatch | wrong among kept (weighted) | seconds |",
            "|---|---|---|---|---|---|",
        ]
        for way in ways:
            less = [_points(figures["less"].get(f"{way}, {reference}")) for reference in ("full", "infobatch")]
            wrong = f"{100 * figures['wrong'][way]:.1f} ({100 * figures['weighted'][way]:.1f})"
            told = [f"`{way}`", f"{100 * figures['accuracy'][way]:.1f}", *less, wrong, f"{figures['seconds'][way]:.1f}"]
            lines.append(f"| {' | '.join(told)} |")
        lines.append("")
    lines += ["Means over the shares left out, by share of wrong labels:", "", "| | points |", "|---|---|"]
    lines += [f"| {name} | {_points(said)} |" for name, said in summary["claims"].items()]
    return "\n".join(lines)


def _points(said: Mapping[str, float] | None) -> str:
    if said is None:
        return ""
    mark = " *" if said["p"] < LEVEL else ""
    return f"{100 * said['mean']:+.1f} ({100 * said['low']:+.1f} to {100 * said['high']:+.1f}){mark}"


def run_all(arms: Iterable[Arm], options: argparse.Namespace) -> None:
    """Those arms that are not done yet, each in one of some processes."""
    pending = [arm for arm in arms if not (options.work / "arms" / f"{arm}.json").exists()]
    print(f"training {len(pending)} arms in {options.processes} processes", file=sys.stderr)
    more = (options.tiles, options.split, options.work, options.steps, options.device)
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(train_arm, arm, *more) for arm in pending]):
            print(done.result(), file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> None:
    """Train what is wanting, and print tables and result."""
    options.work.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(options.tiles.read_bytes()).hexdigest()
    recipe = {"tiles": digest, "split": options.split, "steps": options.steps, "batch": BATCH, "device": options.device}
    said = options.work / "recipe.json"
    if said.exists() and json.loads(said.read_text()) != recipe:
        raise SystemExit(f"{options.work} holds another experiment ({said}): give another --work")
    write_json(said, recipe)
    ways = [way for way in WAYS if way in options.ways]
    wanted = (
        Arm(noise, 0.0 if way == "full" else share, way, seed)
        for seed in range(options.seeds)
        for noise in options.noise
        for share in options.left_out
        for way in ways
    )
    arms = list(dict.fromkeys(wanted))
    write_features(options.tiles, options.split, options.work, options.device)
    start = time.perf_counter()
    run_all(arms, options)
    wall = time.perf_counter() - start
    found = {arm: json.loads((options.work / "arms" / f"{arm}.json").read_text()) for arm in arms}
    summary = summarise(found, ways)
    print(tables(summary, ways))
    times = [cell["seconds"] for cell in summary["cells"].values()]
    both = {"both", "full"} <= set(ways)
    print_result(
        float(np.mean([t["both"] for t in times]) / np.mean([t["full"] for t in times])) if both else float("nan"),
        **{"split": options.split, "steps": options.steps, "seeds": options.seeds, "device": options.device},
        processes=options.processes,
        wall=wall,
        features_seconds=half(options.tiles, options.split, options.work).seconds,
        **summary,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("prepare", help="an archive to small tiles")
    one.add_argument("archive", help="URL or glob: labelled 8-bit RGB")
    one.add_argument("tiles", type=Path, help="the .npz to write")
    one.add_argument("--size", type=int, default=SIZE, help="pixels a side")
    two = commands.add_parser("run", help="train and judge")
    two.add_argument("tiles", type=Path, help="what prepare wrote")
    two.add_argument("--work", type=Path, default=Path("noisy"), help="folder of all results, to go on from")
    two.add_argument("--split", choices=["tune", "report", "all"], default="report", help="which half of the scenes")
    two.add_argument("--noise", type=float, nargs="+", default=[0, 0.2, 0.4], help="shares of wrong labels")
    two.add_argument("--left-out", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="shares of rows, each pass")
    two.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="policies")
    two.add_argument("--seeds", type=int, default=5, help="at least 2")
    two.add_argument("--steps", type=int, default=STEPS, help="of every training")
    two.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="that networks are trained on")
    two.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="arms at a time")
    options = parser.parse_args()
    if options.command == "prepare":
        print(json.dumps(prepare(options.archive, options.tiles, options.size)))
    elif options.seeds < 2 or not all(0 < share < 1 for share in options.left_out):
        parser.error("give at least 2 seeds, and shares between 0 and 1")
    else:
        run(options)


if __name__ == "__main__":
    main()
