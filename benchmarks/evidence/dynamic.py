"""Does it pay to draw anew while a model trains (OceanSAR-1)? On two skewed, redundant archives, at equal steps.

``python -m benchmarks.evidence.dynamic data FOLDER --aid TAR… --sar TAR…`` makes ``aid.npz`` and ``sar.npz``; what
stands in each, its function here says. ``python -m benchmarks.evidence.dynamic run FILE… --work FOLDER`` trains every
arm with every seed, a file each, so that it goes on where it was stopped; then it prints the tables. No Ray: torch,
scikit-learn, faiss, and lightly's projection head.

Every arm takes as many steps of as many tiles, and all but ``full`` share its warm-up: the first `WARM` of the run on
everything. Then a share `KEEP` is kept, drawn once or again every `EVERY` of the run. The network is
`curation.scoring.network.Small`, trained as in `curation.evaluation.pretraining` (SimCLR: DINO and SimSiam learn
nothing at this size and time), but that both views of a batch go through it as one. Seconds count training, embedding,
clustering and drawing, not probing; with several processes they share the machine, so each archive is also timed alone.
"""

import argparse
import hashlib
import io
import json
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.backends import cudnn
from torch.nn import functional as F

from benchmarks.evidence.archives import Plan, Recipe, Scene, archive, read, untouched
from benchmarks.output import print_result
from curation.evaluation.pretraining import PROJECTED, TEMPERATURE, view
from curation.evaluation.probe import Features, linear, nearest_neighbours
from curation.evaluation.statistics import Difference, judge, paired, points
from curation.scoring.network import DECAY, RATE, Network, Small, band_statistics, warm_cosine
from curation.training.draws import Draw, balanced, due, random
from curation.training.settings import PruneConfig

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]

KEEP = 0.25
WARM, EVERY = 0.15, 0.1  # of the run
BATCH = 128
PROBED = (0.15, 0.3, 0.5, 0.75, 1.0)  # of the run
EARLY = PROBED.index(0.3)
EMBEDDED = 512  # tiles a forward without training
EPOCHS, WAIT, BETWEEN = 100, 10, 10  # a run, its warm-up and what lies between draws, by default (pretrain.*)

ARMS = {
    "full": PruneConfig(),
    "random, once": PruneConfig("random", every=0),
    "random, re-drawn": PruneConfig("random"),
    "balanced, once": PruneConfig("balanced", every=0),
    "balanced, eta -1": PruneConfig("balanced", diversity=-1),
    "balanced, eta 0": PruneConfig("balanced", diversity=0),
    "balanced, eta 1": PruneConfig("balanced", diversity=1),
}
OURS, CONTROL = "balanced, eta 0", "random, re-drawn"


# the archives


def aid(tars: Sequence[Path], size: int = 48, seed: int = 0) -> dict[str, Any]:
    """Four tiles in five are of three of AID's classes, each scene in about ten near-duplicates; 27 classes are rare.

    Of each class 40 scenes teach the probes and 40 test them; of the rare ones 40 more are in the archive, once each,
    of the frequent ones all that are left, shifted, encoded again, and every other one relit, mirrored or turned.
    """
    classes: dict[str, list[Scene]] = defaultdict(list)
    recipe = Recipe(seed=seed, flat=0)
    for scene in sorted(read(tars), key=lambda scene: recipe.draw("deal", scene.name).random()):
        classes[scene.label].append(scene)
    order = sorted(classes, key=lambda label: recipe.draw("order", label).random())
    frequent, rare = order[:3], order[3:]
    head = [scene for label in frequent for scene in classes[label][80:]]
    tail = [scene for label in rare for scene in classes[label][80:120]]
    pool = [
        *archive(Plan(head, [], [], order), Recipe(seed=seed, flat=0, copies=10)),
        *archive(Plan(tail, [], [], order), Recipe(seed=seed, flat=0, copies=1)),
    ]
    made = {"archive": pool}
    for name, first in (("train", 0), ("test", 40)):
        made[name] = list(untouched(scene for label in order for scene in classes[label][first : first + 40]))
    return _packed(
        {
            name: [(key, _picture(data, size), order.index(said["label"])) for key, data, said in members]
            for name, members in made.items()
        }
    )


def sar(tars: Sequence[Path], size: int = 32) -> dict[str, Any]:
    """Windows of the SIH1733 tiles, skewed and redundant as that scene and its publishers made them.

    The archive is 25 windows of every tile of the scene's west: neighbouring tiles overlap by half, and each is there
    in six pixel-exact mirrorings and rotations. It has no labels. What stands for them is told from the pixels,
    averaged over 8 x 8: dark and bright (8 % of the windows each), uneven (a tenth of the others), plain (three
    quarters). Probes are taught and tested in the scene's east, on blocks of 128 px in turn, as many windows of each.
    """
    tiles, scene = [], np.zeros((768, 2432), np.uint8)
    for path in tars:
        with tarfile.open(path) as tar:
            files = {info.name: tar.extractfile(info) for info in tar if info.isfile()}
            for name in sorted(name for name in files if name.endswith(".json")):
                said, picture = json.loads(files[name].read()), files[name.replace(".json", ".png")]
                pixels = np.asarray(Image.open(picture).convert("L"))
                row, column = said["row"], said["col"]
                if said["variant"] == "orig":
                    scene[row : row + 256, column : column + 256] = pixels
                if column < 1280:
                    tiles += [
                        (f"{name}/{y}/{x}", pixels[y : y + size, x : x + size]) for y, x in _corners(256, 48, size)
                    ]
    pool = np.stack([tile for _, tile in tiles])
    level, unevenness = _look(pool)
    dark, bright = np.quantile(level, [0.08, 0.92])
    limit = np.quantile(unevenness[(level >= dark) & (level <= bright)], 0.9)

    def classes(windows: Pixels) -> Ints:
        level, unevenness = _look(windows)
        return np.select([level < dark, level > bright, unevenness > limit], [1, 2, 3], 0).astype(np.int64)

    made = {"archive": [(key, tile[None], int(c)) for (key, tile), c in zip(tiles, classes(pool), strict=True)]}
    for parity, name in enumerate(("train", "test")):
        found: list[tuple[str, Pixels]] = []
        for down, right in product(range(6), range(8)):
            if (down + right) % 2 == parity:
                block = scene[128 * down :, 1408 + 128 * right :]
                found += [
                    (f"{down}/{right}/{y}/{x}", block[y : y + size, x : x + size]) for y, x in _corners(128, 8, size)
                ]
        windows = np.stack([tile for _, tile in found])
        said = classes(windows)
        fewest = int(np.bincount(said, minlength=4).min())
        shuffled = np.random.default_rng(0).permutation(len(said))
        chosen = np.concatenate([shuffled[said[shuffled] == number][:fewest] for number in range(4)])
        made[name] = [(found[i][0], windows[i][None], int(said[i])) for i in chosen]
    return _packed(made)


def _corners(side: int, stride: int, size: int) -> list[tuple[int, int]]:
    steps = range(0, side - size + 1, stride)
    return list(product(steps, steps))


def _look(windows: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of each window, and the variation of its 8 x 8 blocks' means over it."""
    n, height, width = windows.shape
    blocks = windows.reshape(n, height // 8, 8, width // 8, 8).mean((2, 4)).reshape(n, -1)
    level = blocks.mean(1)
    return level, blocks.std(1) / np.maximum(level, 1)


def _picture(data: bytes, size: int) -> Pixels:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BOX)).transpose(2, 0, 1)


def _word(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _packed(made: Mapping[str, Iterable[tuple[str, Pixels, int]]]) -> dict[str, Any]:
    """Arrays by name: tiles, labels and 64-bit ids of each part."""
    arrays: dict[str, Any] = {}
    for name, members in made.items():
        keys, tiles, labels = zip(*sorted(members, key=lambda member: member[0]), strict=True)
        arrays[f"{name}_tiles"], arrays[f"{name}_labels"] = np.stack(tiles), np.array(labels, np.int64)
        arrays[f"{name}_words"] = np.array([_word(f"{name}/{key}") for key in keys], np.uint64)
    return arrays


# training


class Learner:
    """SimCLR on tiles that stay on the device; nothing in a step waits for the device.

    Args:
        tiles: uint8 (n, bands, size, size).
        seed: of first weights and views.
        steps: of the whole run, which the rate goes by.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, tiles: Pixels, seed: int, steps: int, device: str) -> None:
        torch.manual_seed(seed)
        body = Small(tiles.shape[1])
        self.network = Network(body, body.dim, 1, *band_statistics(tiles)).to(device)
        self.project = SimCLRProjectionHead(body.dim, PROJECTED, PROJECTED).to(device)
        trained = nn.ModuleList([self.network.body, self.project]).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(trained.parameters(), lr=RATE, weight_decay=DECAY)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: warm_cosine(step, steps))
        self.generator = np.random.default_rng(seed)
        self.tiles, self.device = torch.from_numpy(tiles).to(device), device

    def train(self, rows: Ints) -> None:
        """A step for each of the batches (steps, batch) of row numbers."""
        self.network.train()
        with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for batch in torch.from_numpy(rows).to(self.device):
                x = (self.tiles[batch] - self.network.mean) / self.network.std
                made = self.project(self.network.body(view(x.repeat(2, 1, 1, 1), self.generator)))
                loss = contrast(made)
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
                self.schedule.step()

    def embed(self, tiles: torch.Tensor) -> NDArray[np.float16]:
        """Vectors (n, dim) of unit length."""
        self.network.eval()
        with torch.inference_mode(), cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            made = [F.normalize(self.network.embed(part)) for part in tiles.split(EMBEDDED)]
            return torch.cat(made).half().cpu().numpy()

    def wait(self) -> float:
        """The time once the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def contrast(made: torch.Tensor) -> torch.Tensor:
    """NT-Xent of (2 n, d): first views, then second. As lightly's, whose choice by mask waits for the device."""
    made = F.normalize(made)
    logits = (made @ made.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(made), device=made.device).roll(len(made) // 2))


class Order:
    """Shuffled passes over the rows that are kept."""

    def __init__(self, rows: Ints, seed: int, version: int) -> None:
        self.rows, self.generator = rows, np.random.default_rng([seed, version])
        self.waiting = np.zeros(0, np.int64)

    def take(self, steps: int) -> Ints:
        """Row numbers (steps, `BATCH`)."""
        while len(self.waiting) < steps * BATCH:
            self.waiting = np.concatenate([self.waiting, self.generator.permutation(self.rows)])
        taken, self.waiting = self.waiting[: steps * BATCH], self.waiting[steps * BATCH :]
        return taken.reshape(steps, BATCH)


@dataclass(frozen=True)
class Task:
    """One arm with one seed on one archive."""

    file: str
    arm: str
    seed: int
    steps: int
    device: str

    @property
    def archive(self) -> str:
        """Its name."""
        return Path(self.file).stem

    @property
    def name(self) -> str:
        """Of the result's file."""
        arm = self.arm.replace(", ", "-").replace(" ", "-")
        return f"{self.archive}-{arm}-{self.seed}-{self.steps}-{self.device}.json"

    @cached_property
    def data(self) -> Any:
        """The archive's arrays."""
        return dict(np.load(self.file))

    def settings(self) -> PruneConfig:
        """The arm's, with its schedule in epochs of this archive."""
        arm, epochs = ARMS[self.arm], self.steps * BATCH / len(self.data["archive_tiles"])
        return PruneConfig(arm.strategy, KEEP, arm.diversity, WARM * epochs, EVERY * epochs if arm.every else 0)


def run(task: Task) -> dict[str, Any]:
    """Train one arm, and what was measured on the way."""
    torch.set_num_threads(1)
    data, prune = task.data, task.settings()
    total = len(data["archive_tiles"])
    learner = Learner(data["archive_tiles"], task.seed, task.steps, task.device)
    probes = [round(share * task.steps) for share in PROBED]
    versions = [due(step * BATCH, total, prune) for step in range(task.steps)]
    drawn = [step for step in range(1, task.steps) if versions[step] != versions[step - 1]]
    order, seconds = Order(np.arange(total), task.seed, 0), {"training": 0.0, "embedding": 0.0, "drawing": 0.0}
    measured: list[dict[str, Any]] = []
    draws: list[dict[str, Any]] = []
    for start, stop in pairwise(sorted({0, *drawn, *probes, task.steps})):
        if start in drawn:
            made, spent = redraw(learner, data["archive_words"], prune, task.seed, versions[start])
            order = Order(made.rows, task.seed, versions[start])
            for name, value in spent.items():
                seconds[name] += value
            classes = np.bincount(data["archive_labels"][made.rows], minlength=int(data["archive_labels"].max()) + 1)
            draws.append({"step": start, "classes": classes.tolist(), **spent})
        before = learner.wait()
        learner.train(order.take(stop - start))
        seconds["training"] += learner.wait() - before
        if stop in probes:
            measured.append({"step": stop, "seconds": sum(seconds.values()), **probe(learner, data)})
    return {
        "task": asdict(task),
        "points": measured,
        "draws": draws,
        "seconds": seconds,
        "untrained": untrained(task),
        "classes": np.bincount(data["archive_labels"]).tolist(),
    }


def redraw(
    learner: Learner, words: NDArray[np.uint64], prune: PruneConfig, seed: int, version: int
) -> tuple[Draw, dict[str, float]]:
    """The next version of what is kept, and the seconds that it took."""
    begin = learner.wait()
    if prune.strategy == "random":
        return random(words, prune.keep, seed, version), {"drawing": time.perf_counter() - begin}
    vectors = learner.embed(learner.tiles)
    embedded = time.perf_counter()
    made = balanced(vectors, words, keep=prune.keep, seed=seed, version=version, diversity=prune.diversity)
    return made, {"embedding": embedded - begin, "drawing": time.perf_counter() - embedded}


def probe(learner: Learner, data: Mapping[str, Any]) -> dict[str, float]:
    """Macro accuracy of 5-NN and of the linear probe on the balanced test set."""
    train, test = (
        Features(learner.embed(torch.from_numpy(data[f"{part}_tiles"]).to(learner.device)), data[f"{part}_labels"])
        for part in ("train", "test")
    )
    return {"knn": nearest_neighbours(train, test).macro, "linear": linear(train, test, 0).macro}


def untrained(task: Task) -> dict[str, float]:
    """The same of the network before its first step."""
    return probe(Learner(task.data["archive_tiles"], task.seed, task.steps, task.device), task.data)


def alone(file: str, device: str, steps: int = 200) -> dict[str, float]:
    """Seconds of an epoch and of a draw with the machine to itself, and their share at the default schedule."""
    torch.set_num_threads(1)
    data = dict(np.load(file))
    total, words = len(data["archive_tiles"]), data["archive_words"]
    learner = Learner(data["archive_tiles"], 0, 2 * steps, device)
    order = Order(np.arange(total), 0, 0)
    learner.train(order.take(steps))
    before = learner.wait()
    learner.train(order.take(steps))
    epoch = (learner.wait() - before) / (steps * BATCH) * total
    prune = PruneConfig("balanced", KEEP)
    _, parts = min(
        (redraw(learner, words, prune, 0, version) for version in (1, 2, 3)), key=lambda r: sum(r[1].values())
    )
    draws = (EPOCHS - WAIT) / BETWEEN * sum(parts.values())
    return {"epoch": epoch, **parts, "share": draws / (draws + EPOCHS * epoch)}


# tables


def by_arm(results: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[Mapping[str, Any]]]:
    """The runs on one archive, by arm, in the order of seeds."""
    found: dict[str, list[Mapping[str, Any]]] = {arm: [] for arm in ARMS}
    for result in sorted(results, key=lambda result: result["task"]["seed"]):
        if Path(result["task"]["file"]).stem == name:
            found[result["task"]["arm"]].append(result)
    return {arm: runs for arm, runs in found.items() if runs}


def at(runs: Sequence[Mapping[str, Any]], measure: str, point: int) -> list[float]:
    """A measure of each seed at one of `PROBED`."""
    return [float(run["points"][point][measure]) for run in runs]


def at_seconds(run: Mapping[str, Any], measure: str, seconds: float) -> float:
    """A measure once so many seconds are gone, on straight lines between what was measured; the last from there on."""
    times = [0.0, *(point["seconds"] for point in run["points"])]
    values = [run["untrained"][measure], *(point[measure] for point in run["points"])]
    return float(np.interp(seconds, times, values))


def tables(results: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    """Markdown of one archive."""
    arms = by_arm(results, name)
    steps = [point["step"] for point in arms["full"][0]["points"]]
    for measure, what in (("knn", "5-NN"), ("linear", "linear probe")):
        yield f"\n{name}: {what}, macro accuracy in percent, after steps\n"
        yield "| arm | " + " | ".join(map(str, steps)) + " |"
        yield "|---" * (len(steps) + 1) + "|"
        untaught = np.mean([run["untrained"][measure] for run in arms["full"]])
        yield f"| untrained | {100 * untaught:.1f} |" + " |" * (len(steps) - 1)
        for arm, runs in arms.items():
            means = [100 * float(np.mean(at(runs, measure, point))) for point in range(len(steps))]
            yield f"| {arm} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |"
    clock = [float(np.mean(at(arms["full"], "seconds", point))) for point in range(len(steps))]
    yield f"\n{name}: after as many seconds (everything included, {len(arms['full'])} seeds)\n"
    yield (
        "| arm | "
        + " | ".join(f"5-NN, {s:.0f} s" for s in clock)
        + " | ".join(["", *(f"linear, {s:.0f} s" for s in clock)])
        + " | seconds in all | pruning |"
    )
    yield "|---" * (2 * len(clock) + 3) + "|"
    for arm, runs in arms.items():
        values = [
            100 * float(np.mean([at_seconds(run, measure, s) for run in runs]))
            for measure in ("knn", "linear")
            for s in clock
        ]
        spent = [sum(run["seconds"].values()) for run in runs]
        share = float(np.mean([1 - run["seconds"]["training"] / all for run, all in zip(runs, spent, strict=True)]))
        yield (
            f"| {arm} | " + " | ".join(f"{v:.1f}" for v in values) + f" | {np.mean(spent):.1f} | {100 * share:.1f} % |"
        )
    yield from kept(arms, name)
    for reference in ("full", CONTROL):
        yield from differences(arms, name, reference)


def kept(arms: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> Iterator[str]:
    """What the draws hold, of the classes that are more than a tenth of the archive and in all."""
    archive = np.array(arms["full"][0]["classes"], np.float64)
    frequent = archive > archive.sum() / 10
    yield f"\n{name}: what was kept, means over all draws and seeds\n"
    yield f"| arm | the archive's {frequent.sum()} frequent classes | classes, effectively | s a draw |"
    yield "|---|---|---|---|"
    for arm, runs in arms.items():
        draws = [draw for run in runs for draw in run["draws"]]
        counts = np.array([draw["classes"] for draw in draws] or [archive], np.float64)
        shares = counts / counts.sum(1, keepdims=True)
        effective = np.exp(-(shares * np.log(np.maximum(shares, 1e-12))).sum(1)).mean()
        seconds = float(np.mean([draw.get("embedding", 0) + draw["drawing"] for draw in draws])) if draws else 0.0
        yield f"| {arm} | {100 * shares[:, frequent].sum(1).mean():.0f} % | {effective:.1f} | {seconds:.2f} |"


def differences(arms: Mapping[str, Sequence[Mapping[str, Any]]], name: str, reference: str) -> Iterator[str]:
    """Paired over seeds, 95 % intervals; Holm over the whole table."""
    columns = list(product(("knn", "linear"), (EARLY, len(PROBED) - 1)))
    found: dict[str, Difference] = {
        f"{arm}/{measure}/{point}": paired(at(runs, measure, point), at(arms[reference], measure, point))
        for arm, runs in arms.items()
        if arm != reference
        for measure, point in columns
        if len(runs) > 1
    }
    if not found:
        return
    judged = judge(found, reference)
    yield f"\n{name}: points over {reference} (95 % interval; * where p < 0.05 by Holm over the table)\n"
    heads = [f"{measure}, {PROBED[point]:.0%} of the steps" for measure, point in columns]
    yield "| arm | " + " | ".join(heads) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for arm in (arm for arm in arms if arm != reference):
        cells = []
        for measure, point in columns:
            one = judged[f"{arm}/{measure}/{point}"]
            d, star = one.difference, "" if one.verdict == "no difference" else " *"
            cells.append(f"{points(d.mean)} ({points(d.low)} to {points(d.high)}){star}")
        yield f"| {arm} | " + " | ".join(cells) + " |"


# the command line


def train_all(tasks: Sequence[Task], work: Path, processes: int) -> list[dict[str, Any]]:
    """Every task's result; those whose file is there are not run again."""
    work.mkdir(parents=True, exist_ok=True)
    pending = [task for task in tasks if not (work / task.name).exists()]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run, task): task for task in pending}
        for number, done in enumerate(as_completed(running), 1):
            task, part = running[done], work / f"{running[done].name}.part"
            part.write_text(json.dumps(done.result()))
            part.rename(work / task.name)
            print(f"{number}/{len(pending)} {task.name}", flush=True)
    return [json.loads((work / task.name).read_text()) for task in tasks]


def main() -> None:
    """Make the archives, or train and print; the last line of ``run`` is one JSON object with ``ratio``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("data", help="make aid.npz and sar.npz")
    making.add_argument("folder", type=Path)
    making.add_argument("--aid", nargs="+", type=Path, required=True, help="tars of AID scenes: KEY.jpg, KEY.json")
    making.add_argument("--sar", nargs="+", type=Path, required=True, help="tars of SIH1733's SAR tiles")
    running = commands.add_parser("run", help="train all arms, and print tables")
    running.add_argument("files", nargs="+", type=Path)
    running.add_argument("--work", type=Path, required=True, help="a file an arm and seed; kept between runs")
    running.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    running.add_argument("--processes", type=int, default=1)
    running.add_argument("--steps", type=int, default=1200)
    running.add_argument("--seeds", type=int, default=5)
    running.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    given = parser.parse_args()
    if given.command == "data":
        given.folder.mkdir(parents=True, exist_ok=True)
        for name, made in (("aid", aid(given.aid)), ("sar", sar(given.sar))):
            np.savez_compressed(given.folder / f"{name}.npz", **made)
            print(name, {part: made[f"{part}_tiles"].shape for part in ("archive", "train", "test")})
        return
    seeds = range(given.seeds)
    tasks = [
        Task(str(file), arm, seed, given.steps, given.device)
        for seed, file, arm in product(seeds, given.files, given.arms)
    ]
    results = train_all(tasks, given.work, given.processes)
    figures: dict[str, Any] = {}
    for file in given.files:
        print("\n".join(tables(results, file.stem)), flush=True)
        arms = by_arm(results, file.stem)
        figures[file.stem] = {
            arm: {m: float(np.mean(at(runs, m, len(PROBED) - 1))) for m in ("knn", "linear", "seconds")}
            for arm, runs in arms.items()
        } | {"alone": alone(str(file), given.device)}
    first = figures[given.files[0].stem]
    ratio = first["full"]["knn"] / first[OURS]["knn"] if {"full", OURS} <= set(first) else float("nan")
    print_result(ratio, steps=given.steps, seeds=given.seeds, device=given.device, archives=figures)


if __name__ == "__main__":
    main()
