"""The ladder of prototype-guided diffusion: what each rung adds to a distilled set, and what real images do instead.

``python -m benchmarks.evidence.distilled prepare ARCHIVE TILES.npz`` reads a labelled archive of 8-bit RGB images into
small tiles; ``… run TILES.npz`` does the rest on a CPU: everything in ``--work``, so that the same command goes on
where it ended. Without weights from elsewhere: autoencoder, classifier and diffusion models are trained from scratch
on the images whose keys' hash says so; the other fifth tests, and nothing learns from it. The arms, at equal images a
class:

- real images: ``random``; ``nearest`` to the k-means centres of pooled latents; ``margin`` (the prototypes);
  ``decoded``: the prototypes through the autoencoder, what decoding alone costs;
- ``template``: diffusion told the class alone; ``guided``: by the prototype too; ``selected``, ``selected_of_5``: the
  best of 3 or 5 candidates by the classifier's margin, of which the first is ``guided``'s own;
- ``consistent`` and ``consistent_selected``: likewise, by a second model trained with the classifier's loss too (the
  paper's first version without captions, and all of its parts together);
- ``full``: all images.

Each of the sets has a number, which seeds its k-means, its random draw, its noise and the student that is trained on it
(by `curation.distillation.students`). So an interval over the sets covers these; the models are trained once, which it
does not cover. Coverage is the mean over classes of the held-out images' largest cosine to an image of the set of their
class, the Fréchet distance that to all held-out images, ``real`` the mean of the set's largest cosine to a training
image: all in ``random_conv`` features with a seed of their own, which chose nothing.
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
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.evidence.noisy import BANDS, ENCODER, RANGES, SIZE, judged, prepare
from benchmarks.output import print_result, write_json
from curation.archive.sample import Member, Sample
from curation.distillation.autoencoder import Autoencoder, new_autoencoder
from curation.distillation.classifier import LatentClassifier, accuracy, new_classifier, validation_rows
from curation.distillation.denoiser import Denoiser, new_denoiser
from curation.distillation.guidance import draw, margin, noise
from curation.distillation.prototypes import class_prototypes, nearest_real
from curation.distillation.settings import (
    AutoencoderConfig,
    ClassifierConfig,
    DiffusionConfig,
    DistillConfig,
    GuidanceConfig,
)
from curation.distillation.students import random_rows, summarise, train_student
from curation.distillation.training import autoencoder_course, classifier_course, diffusion_course
from curation.encoders.base import Encoder, build_encoder, fit_artefact
from curation.evaluation.coreset import Labelled
from curation.evaluation.frechet import axes, frechet_distance
from curation.evaluation.moments import Moments
from curation.evaluation.statistics import LEVEL, paired

TESTED = 20  # percent of the images, by hash
STEPS = 300  # of a student
MADE = DistillConfig(  # less than the defaults, for ten minutes of a processor each at most
    autoencoder=AutoencoderConfig(factor=2, steps=1200, batch=32, rate=2e-3),
    classifier=ClassifierConfig(steps=700, batch=64),
    diffusion=DiffusionConfig(steps=2200, batch=32, warm=100),
    guidance=GuidanceConfig(steps=20, strength=1.25),  # the pulls add up to as much of a latent as the paper's
)
CONSISTENCY = 0.1  # as in conf/distill/first.yaml
SEED = 0  # of the models
ACCOUNT = "account.json"
BATCH = 150  # latents a forward
SCORER = {**ENCODER, "seed": 7}
DIMENSIONS = 16  # of the Fréchet distance: the smallest set has 150 images
UNIT = 1000  # Fréchet distances are told times this: vectors have unit length

REAL = ("random", "nearest", "margin")
DRAWN = {  # arm: the model, whether prototypes guide it, of how many candidates the best is taken
    "template": ("plain", False, 1),
    "guided": ("plain", True, 1),
    "selected": ("plain", True, 3),
    "selected_of_5": ("plain", True, 5),
    "consistent": ("consistent", True, 1),
    "consistent_selected": ("consistent", True, 3),
}
ARMS = (*REAL, "decoded", *DRAWN, "full")
DEFAULT = [way for way in ARMS if way not in ("selected_of_5", "consistent_selected")]  # these two cost most
RUNGS = (  # differences that are told over all sizes together
    ("margin", "random"),
    ("nearest", "random"),
    ("decoded", "margin"),
    ("guided", "template"),
    ("selected", "guided"),
    ("selected_of_5", "guided"),
    ("consistent", "guided"),
    ("selected", "decoded"),
    ("selected", "margin"),
    ("selected", "random"),
)

Pixels = NDArray[np.uint8]
Codes = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Arm:
    """A way to come by images, how many a class (0: all), and the number of the set."""

    way: str
    ipc: int
    number: int

    def __str__(self) -> str:
        return f"{self.way}-{self.ipc}-{self.number}"


class Data(NamedTuple):
    """Tiles (n, 3, size, size), codes and keys of the images that train, tiles and codes of those that test."""

    tiles: Pixels
    codes: Codes
    keys: list[str]
    classes: list[str]
    test_tiles: Pixels
    test_codes: Codes


@lru_cache(1)
def data(path: Path) -> Data:
    """What `prepare` wrote, split by the keys' hashes."""
    with np.load(path) as file:
        tiles, codes, keys = file["tiles"], file["codes"].astype(np.int64), file["keys"].tolist()
        classes = file["classes"].tolist()
    trains = np.array([int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 100 >= TESTED for key in keys])
    own = [key for key, train in zip(keys, trains, strict=True) if train]
    return Data(tiles[trains], codes[trains], own, classes, tiles[~trains], codes[~trains])


class Scorer(NamedTuple):
    """An encoder that chose nothing, and what it makes of real images."""

    encoder: Encoder
    train: Floats
    test: Floats
    axes: NDArray[np.float64]
    reference: Moments


def samples(tiles: Pixels) -> list[Sample]:
    """As encoders take them."""
    return [Sample(str(i), i, t, np.ones(t.shape[1:], bool), BANDS, Member("", None, 0)) for i, t in enumerate(tiles)]


def embed(encoder: Encoder, tiles: Pixels) -> Floats:
    """(n, dim), unit length."""
    prepared = [encoder.prepare(sample) for sample in samples(tiles)]
    parts = (np.stack(prepared[start : start + encoder.batch]) for start in range(0, len(tiles), encoder.batch))
    return np.concatenate([encoder.encode(part) for part in parts])


@lru_cache(1)
def scorer(path: Path, work: Path) -> Scorer:
    """Fitted on the training images without their labels; kept in a file."""
    own, file = data(path), work / "scorer.npz"
    if not file.exists():
        artefact = fit_artefact(SCORER, samples(own.tiles), BANDS, RANGES, int(SCORER["seed"]))
        encoder = build_encoder(SCORER, artefact, BANDS, "uint8", "cpu", 1)
        said = {"train": embed(encoder, own.tiles), "test": embed(encoder, own.test_tiles)}
        write_arrays(file, **said, **{f"artefact.{name}": value for name, value in artefact.items()})
    with np.load(file) as arrays:
        artefact = {name.partition(".")[2]: arrays[name] for name in arrays if name.startswith("artefact.")}
        train, test = arrays["train"], arrays["test"]
    every = Moments.of(test)
    along = axes(every, DIMENSIONS)
    return Scorer(build_encoder(SCORER, artefact, BANDS, "uint8", "cpu", 1), train, test, along, every.project(along))


def judge_set(arm: Arm, images: Labelled, path: Path, work: Path) -> dict[str, float]:
    """A student's accuracy, coverage, Fréchet distance and nearness to real images."""
    own, by = data(path), scorer(path, work)
    student = train_student(
        images, Labelled(own.test_tiles, own.test_codes), len(own.classes), seed=arm.number, steps=STEPS
    )
    vectors = by.train if arm.way == "full" else embed(by.encoder, images.tiles)
    covered = [
        float((by.test[own.test_codes == code] @ vectors[images.codes == code].T).max(1).mean())
        for code in range(len(own.classes))
    ]
    return {
        "accuracy": student,
        "coverage": float(np.mean(covered)),
        "frechet": UNIT * frechet_distance(Moments.of(vectors).project(by.axes), by.reference),
        "real": float((vectors @ by.train.T).max(1).mean()),
    }


def write_arrays(path: Path, **arrays: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("wb") as file:
        np.savez(file, **arrays)
    path.with_suffix(".part").rename(path)


MODELS = ("autoencoder", "classifier", "plain", "consistent")


def train_models(path: Path, work: Path, wanted: Sequence[str]) -> None:
    """Those that are wanted and not there yet, on the training images, one after the other; each with its account."""
    for name in wanted:
        folder = work / "models" / name
        if not (folder / ACCOUNT).exists():
            folder.mkdir(parents=True, exist_ok=True)
            begin = time.process_time()
            said = train_model(name, path, work, folder)
            write_json(folder / ACCOUNT, {**said, "seconds": time.process_time() - begin})
            print(f"{name}: {(folder / ACCOUNT).read_text()}", file=sys.stderr, flush=True)


def train_model(name: str, path: Path, work: Path, folder: Path) -> dict[str, Any]:
    """Train one and save it; what there is to say of it."""
    own = data(path)
    if name == "autoencoder":
        model, tiles = new_autoencoder(len(BANDS), MADE.autoencoder, SEED), torch.from_numpy(own.tiles)
        course = autoencoder_course(model, len(tiles), MADE.autoencoder, SEED)
        course.train(lambda rows: (tiles[rows],))
        course.finish()
        model.calibrate(tiles.split(BATCH))
        model.save(folder)
        tested = torch.from_numpy(own.test_tiles[::10])
        again = torch.cat([model.decode(model.encode(part)[0]) for part in tested.split(BATCH)])
        return {"psnr": float(10 * (255**2 / (again.float() - tested).square().mean((1, 2, 3))).log10().mean())}
    mean, std = (torch.from_numpy(x) for x in latents(path, work))
    codes = torch.from_numpy(own.codes)
    count, shape = len(own.classes), mean.shape[1:]

    def fetch(rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        return mean[rows], std[rows], codes[rows]

    if name == "classifier":
        judge = new_classifier(shape[0], count, MADE.classifier.dropout, SEED)
        held = validation_rows(own.codes, SEED)
        inner = np.flatnonzero(~held)
        course = classifier_course(judge, own.codes[inner], MADE.classifier, SEED)
        course.train(lambda rows: fetch(inner[rows]))
        course.finish()
        judge.save(folder)
        return {"validation": accuracy(judge.logits(mean[held]), own.codes[held])}
    settings = replace(MADE.diffusion, consistency=CONSISTENCY if name == "consistent" else 0.0)
    teacher = LatentClassifier.load(work / "models/classifier") if name == "consistent" else None
    denoiser = new_denoiser(shape[0], shape[1], count, SEED)
    course = diffusion_course(denoiser, own.codes, settings, SEED, teacher=teacher)
    loss = course.train(fetch)
    course.finish()
    denoiser.save(folder)
    return {"loss": loss}


def models_of(ways: Iterable[str]) -> list[str]:
    """The models that arms need, each after those that it needs itself."""
    ways = set(ways)
    drawn = {DRAWN[way][0] for way in ways & set(DRAWN)}
    wanted = {*drawn, *(["classifier"] if drawn else []), *(["autoencoder"] if ways - {"random", "full"} else [])}
    return [name for name in MODELS if name in wanted]


def accounts(work: Path) -> dict[str, Any]:
    """What there is to say of each model."""
    paths = {name: work / "models" / name / ACCOUNT for name in MODELS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


@dataclass(frozen=True)
class Drawing:
    """What several arms' images come from: candidates of one model, guided or not, for each class and prototype."""

    model: str
    guided: bool
    ipc: int
    number: int

    def __str__(self) -> str:
        return f"{self.model}-{'guided' if self.guided else 'template'}-{self.ipc}-{self.number}"


def drawing(arm: Arm) -> Drawing:
    """The one that an arm of `DRAWN` takes its images from."""
    model, guided, _ = DRAWN[arm.way]
    return Drawing(model, guided, arm.ipc, arm.number)


def drawn_path(work: Path, one: Drawing) -> Path:
    """Its file."""
    return work / "drawn" / f"{one}.npz"


def latents(path: Path, work: Path) -> tuple[Floats, Floats]:
    """Means and deviations of the training images' scaled latents, computed once."""
    file = work / "latents.npz"
    if not file.exists():
        model, tiles = Autoencoder.load(work / "models/autoencoder"), torch.from_numpy(data(path).tiles)
        mean, std = (torch.cat(x).numpy() for x in zip(*map(model.encode, tiles.split(BATCH)), strict=True))
        write_arrays(file, mean=mean, std=std)
    with np.load(file) as arrays:
        return arrays["mean"], arrays["std"]


@lru_cache(1)
def prototypes(path: Path, work: Path, ipc: int, number: int) -> dict[str, NDArray[np.int64]]:
    """Rows (classes * ipc,) of the training images, class by class, of ``margin`` and ``nearest``; kept in a file."""
    file = work / "prototypes" / f"{ipc}-{number}.npz"
    if not file.exists():
        own, mean = data(path), latents(path, work)[0]
        found: dict[str, list[Any]] = {"margin": [], "nearest": []}
        for code in range(len(own.classes)):
            rows = np.flatnonzero(own.codes == code)
            found["margin"].append(rows[class_prototypes(mean[rows], ipc, MADE.prototypes, number).rows])
            found["nearest"].append(rows[nearest_real(mean[rows], ipc, MADE.prototypes, number).rows])
        write_arrays(file, **{name: np.concatenate(parts) for name, parts in found.items()})
    with np.load(file) as arrays:
        return dict(arrays)


def drawn(work: Path, one: Drawing) -> int:
    """How many candidates of each prototype its file has."""
    try:
        with np.load(drawn_path(work, one)) as file:
            return int(file["margins"].shape[1])
    except FileNotFoundError:
        return 0


def draw_set(one: Drawing, count: int, path: Path, work: Path) -> str:
    """Latents (prototypes, candidates, c, h, w) and their margins, with the processor's seconds, in a file."""
    own, mean, rows = data(path), latents(path, work)[0], prototypes(path, work, one.ipc, one.number)["margin"]
    model, judge = Denoiser.load(work / "models" / one.model), LatentClassifier.load(work / "models/classifier")
    codes, shape = torch.from_numpy(own.codes[rows]), mean.shape[1:]
    labels = [own.classes[code] for code in own.codes[rows]]
    place = np.concatenate([np.arange(n) for n in np.bincount(own.codes[rows])])
    begin = time.process_time()
    made, margins = [], []
    for candidate in range(count):
        noises = torch.stack(
            [noise(one.number, label, int(k), candidate, shape) for label, k in zip(labels, place, strict=True)]
        )
        for part in torch.arange(len(rows)).split(BATCH):
            wanted = torch.from_numpy(mean[rows[part]]) if one.guided else None
            made.append(draw(model, noises[part], codes[part], wanted, MADE.guidance))
            margins.append(margin(judge.logits(made[-1]), codes[part]))
    seconds = time.process_time() - begin
    shaped = torch.cat(made).view(count, len(rows), *shape).transpose(0, 1)
    write_arrays(
        drawn_path(work, one),
        latents=shaped,
        margins=torch.cat(margins).view(count, -1).T,
        codes=codes,
        seconds=seconds,
    )
    return f"{one}: {seconds:.0f} s"


def images(arm: Arm, path: Path, work: Path) -> tuple[Labelled, float]:
    """An arm's images, and the seconds of the processor that each of them took to draw and decode."""
    own = data(path)
    if arm.way == "full":
        return Labelled(own.tiles, own.codes), 0.0
    if arm.way == "random":
        rows = random_rows(own.keys, own.codes, [arm.ipc] * len(own.classes), arm.number)
        return Labelled(own.tiles[rows], own.codes[rows]), 0.0
    if arm.way in DRAWN:
        with np.load(drawn_path(work, drawing(arm))) as file:
            candidates, margins, codes, seconds = (file[n] for n in ("latents", "margins", "codes", "seconds"))
        count = DRAWN[arm.way][2]
        wanted = candidates[np.arange(len(codes)), margins[:, :count].argmax(1)]
        each = float(seconds) / margins.size * count
    else:
        rows = prototypes(path, work, arm.ipc, arm.number)["nearest" if arm.way == "nearest" else "margin"]
        codes, each = own.codes[rows], 0.0
        if arm.way != "decoded":
            return Labelled(own.tiles[rows], codes), each
        wanted = latents(path, work)[0][rows]
    begin = time.process_time()
    model = Autoencoder.load(work / "models/autoencoder")
    pixels = torch.cat([model.decode(part) for part in torch.from_numpy(wanted).split(BATCH)]).numpy()
    return Labelled(pixels, codes), each + (time.process_time() - begin) / len(codes)


def do_arm(arm: Arm, path: Path, work: Path) -> str:
    """Train and test a student on an arm's images, measure them, and keep what came of it."""
    made, seconds = images(arm, path, work)
    found = {**judge_set(arm, made, path, work), "seconds": seconds, "images": len(made.codes)}
    write_json(work / "arms" / f"{arm}.json", found)
    return f"{arm}: {found['accuracy']:.4f}"


def table(arms: Mapping[str, Any]) -> str:
    """One size's arms as the docs have them: in percent and percentage points."""
    lines = [
        "| | accuracy | less random | coverage | Fréchet | real | CPU s an image |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, one in arms.items():
        less = _points(one["less_random"]) if one["less_random"] else ""
        accuracy = f"{100 * one['mean']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
        others = f"{one['coverage']:.3f} | {one['frechet']:.1f} | {one['real']:.2f} | {one['seconds']:.3f}"
        lines.append(f"| `{way}` | {accuracy} | {less} | {others} |")
    return "\n".join(lines)


def _points(said: Mapping[str, Any]) -> str:
    mark = " *" if said["p"] < LEVEL else ""
    return f"{100 * said['mean']:+.1f} ({100 * said['low']:+.1f} to {100 * said['high']:+.1f}){mark}"


def results(work: Path) -> dict[tuple[str, int], list[dict[str, float]]]:
    """By way and images a class what is known of the sets, in the order of their numbers."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for path in sorted((work / "arms").glob("*.json"), key=lambda path: int(path.stem.split("-")[2])):
        way, ipc, _ = path.stem.split("-")
        found.setdefault((way, int(ipc)), []).append(json.loads(path.read_text()))
    return found


def summarise_all(found: Mapping[tuple[str, int], Sequence[Mapping[str, float]]], sets: int) -> dict[str, Any]:
    """By images a class the arms' figures and differences to random; over the sizes the differences of `RUNGS`.

    Arms that have not all of the sets are left out.
    """
    whole = {arm: said for arm, said in found.items() if len(said) >= sets}

    def of(way: str, ipc: int, what: str) -> NDArray[np.float64]:
        return np.array([one[what] for one in whole[way, 0 if way == "full" else ipc][:sets]])

    made: dict[str, Any] = {"sizes": {}}
    sizes = {
        ipc: [way for way in ARMS if (way, ipc) in whole or (way == "full" and (way, 0) in whole)]
        for ipc in sorted({ipc for _, ipc in whole} - {0})
    }
    for ipc, ways in sizes.items():
        said = summarise({way: of(way, ipc, "accuracy").tolist() for way in ways})
        made["sizes"][str(ipc)] = {
            way: {
                **{name: said["arms"][way][name] for name in ("mean", "low", "high")},
                "less_random": said["differences"].get(way),
                **{what: float(of(way, ipc, what).mean()) for what in ("coverage", "frechet", "real", "seconds")},
            }
            for way in ways
        }
    rungs = {}
    for one, other in RUNGS:
        both = [ipc for ipc, ways in sizes.items() if {one, other} <= set(ways)]
        if both:
            name = f"{one} less {other}" + ("" if len(both) == len(sizes) else f", at {', '.join(map(str, both))}")
            rungs[name] = paired(*(np.mean([of(way, ipc, "accuracy") for ipc in both], axis=0) for way in (one, other)))
    return {**made, "rungs": judged(rungs) if rungs else {}}


def in_processes(jobs: Sequence[tuple[Callable[..., str], tuple[Any, ...]]], processes: int) -> None:
    """Each job in one of some processes, one thread each."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), one_thread) as pool:
        for done in as_completed([pool.submit(function, *arguments) for function, arguments in jobs]):
            print(done.result(), file=sys.stderr, flush=True)


def one_thread() -> None:
    """Bits depend on the number of torch's threads."""
    torch.set_num_threads(1)


def run(options: argparse.Namespace) -> None:
    """Train, draw and judge what is wanting, and print tables and result."""
    recipe = {
        "tiles": hashlib.sha256(options.tiles.read_bytes()).hexdigest(),
        "settings": asdict(MADE),
        "steps": STEPS,
    }
    said = options.work / "recipe.json"
    if said.exists() and json.loads(said.read_text()) != json.loads(json.dumps(recipe)):
        raise SystemExit(f"{options.work} holds another experiment ({said}): give another --work")
    write_json(said, recipe)
    torch.set_num_threads(1)
    where = (options.tiles, options.work)
    scorer(*where)
    ways = [way for way in ARMS if way in options.arms]
    wanted = (
        Arm(way, 0 if way == "full" else ipc, n) for n in range(options.sets) for ipc in options.ipc for way in ways
    )
    arms = list(dict.fromkeys(wanted))
    pending = [arm for arm in arms if not (options.work / "arms" / f"{arm}.json").exists()]
    train_models(*where, models_of(arm.way for arm in pending))
    if options.models:
        return
    counts: dict[Drawing, int] = {}
    for arm in pending:
        if arm.way in DRAWN:
            counts[drawing(arm)] = max(counts.get(drawing(arm), 0), DRAWN[arm.way][2])
    draws = [(one, count, *where) for one, count in counts.items() if drawn(options.work, one) < count]
    print(f"{len(draws)} sets to draw, {len(pending)} of {len(arms)} arms to judge", file=sys.stderr)
    in_processes([(draw_set, one) for one in draws], options.processes)
    in_processes([(do_arm, (arm, *where)) for arm in pending], options.processes)
    summary = summarise_all(results(options.work), options.sets)
    for ipc, figures in summary["sizes"].items():
        print(f"{ipc} images a class:\n\n{table(figures)}\n")
    if summary["rungs"]:
        print("| over all sizes | points |\n|---|---|")
        print("\n".join(f"| {name} | {_points(one)} |" for name, one in summary["rungs"].items()))
    means = [{way: one["mean"] for way, one in figures.items()} for figures in summary["sizes"].values()]
    ratios = [one["selected"] / one["margin"] for one in means if {"selected", "margin"} <= set(one)]
    print_result(
        float(np.mean(ratios)) if ratios else float("nan"),
        sets=options.sets,
        steps=STEPS,
        models=accounts(options.work),
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
    two = commands.add_parser("run", help="train, draw and judge")
    two.add_argument("tiles", type=Path, help="what prepare wrote")
    two.add_argument("--work", type=Path, default=Path("distilled"), help="folder of all results, to go on from")
    two.add_argument("--ipc", type=int, nargs="+", default=[5, 10, 20], help="images a class")
    two.add_argument("--sets", type=int, default=5, help="of each arm; at least 2")
    two.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=list(ARMS),
        help="random always among them; tables show all that is there",
    )
    two.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="at a time")
    two.add_argument("--models", action="store_true", help="train the models that the arms need, and stop")
    options = parser.parse_args()
    if options.command == "prepare":
        print(json.dumps(prepare(options.archive, options.tiles, options.size)))
        return
    if options.sets < 2:
        parser.error("give at least 2 sets")
    options.arms = [*options.arms, "random"]
    run(options)


if __name__ == "__main__":
    main()
