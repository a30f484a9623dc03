"""One arm of a comparison measured in one way: a Ray task of one CPU that leaves one JSON file.

The bits of a figure do not depend on the machine's cores: every library is kept to one thread. A file's name holds what
its figures were made from, so that whatever is there is never trained again.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from curation.catalog.tiles import Tiles
from curation.clustering.kmeans import default_k, fit_kmeans
from curation.clustering.nearest import nearest, one_thread
from curation.clustering.points import Rows
from curation.evaluation.balance import balance, tail_recall
from curation.evaluation.coreset import Labelled, from_features, from_scratch
from curation.evaluation.coverage import coverage
from curation.evaluation.diversity import vendi_score
from curation.evaluation.frechet import axes, frechet_distance
from curation.evaluation.moments import Moments
from curation.evaluation.pretraining import BATCH as SELF_SUPERVISED
from curation.evaluation.pretraining import pretrain, probe
from curation.evaluation.probe import Features, Score
from curation.evaluation.samples import Ints, Samples
from curation.manifests.schema import json_bytes
from curation.runtime import limit_threads
from curation.scoring.network import BATCH as SUPERVISED
from curation.selection.groups import UNKNOWN
from curation.storage import Folder

FULL = "full"  # the arm of all samples
FILTERED = 0.3  # share of the archive that is the filtered reference: the top by entropy, RS-Prune's first stage
LOOKED_AT = 20_000  # samples, those of the lowest ids, whose distance to the nearest kept one is told
PASSES = 20  # of the k-means that the balance over clusters is told by, at most
VERSION = 1  # raise when the same arm would give other figures

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """A strategy at a budget with a seed.

    Attributes:
        strategy: its name; `FULL` keeps everything.
        budget: share of the archive.
        seed: of clusters, draw and trainings.
        kept: samples.
    """

    strategy: str
    budget: float
    seed: int
    kept: int

    @property
    def name(self) -> str:
        """The arm over all its seeds."""
        return f"{self.strategy}@{self.budget:g}"


@dataclass(frozen=True)
class Reference:
    """What cheap measures hold every arm against.

    Attributes:
        clusters: int32 (n,), by a k-means of the scorer's features: not the one that selects.
        axes: that Fréchet distances are taken along.
        unfiltered, filtered: moments along them of all samples, and of the `FILTERED` of highest entropy (None where
            entropies are not known).
    """

    clusters: NDArray[np.int32]
    axes: NDArray[np.float64]
    unfiltered: Moments
    filtered: Moments | None


@dataclass(frozen=True)
class Task:
    """One measurement.

    Attributes:
        measure: ``cheap``, ``label`` or ``pretraining``.
        path: of its file below the comparison's folder.
        steps: of every training.
    """

    arm: Arm
    measure: str
    path: str
    steps: int


def task_of(arm: Arm, measure: str, steps: int, kept: str) -> Task:
    """The measurement, and where its figures go; ``kept``: a digest of the samples."""
    made_of = [VERSION, measure, kept, arm.seed, 0 if measure == "cheap" else steps]
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]
    return Task(arm, measure, f"arms/{arm.strategy}-{arm.budget:g}-{arm.seed}-{measure}-{name}.json", steps)


def prefix(samples: Samples, ranked: Ints | None, count: int) -> tuple[Ints, str]:
    """The first ``count`` of ranked rows, ascending, and a digest of their ids; all rows where nothing is ranked."""
    rows = np.arange(len(samples)) if ranked is None else np.sort(ranked[:count])
    return rows, hashlib.sha256(np.sort(samples.ids[rows]).tobytes()).hexdigest()


def refer(samples: Samples, seed: int) -> Reference:
    """What the archive itself is like."""
    x = samples.features
    with one_thread(), threadpool_limits(1):
        fit = fit_kmeans(Rows({0: lambda: x}, seed), default_k(len(x)), seed, max_iter=PASSES)
        clusters = nearest(x, fit.centroids)[0]
        everything = Moments.of(x)
        along = axes(everything)
        known = np.flatnonzero(np.isfinite(samples.entropy))
        top = known[np.argsort(-samples.entropy[known], kind="stable")][: int(FILTERED * len(known) + 0.5)]
        filtered = Moments.of(x[top]).project(along) if len(top) > 1 else None
    return Reference(clusters, along, everything.project(along), filtered)


def measure(
    task: Task,
    folder: Folder,
    samples: Samples,
    rows: Ints,
    reference: Reference,
    tiles: Tiles | None,
    test: Samples | None,
    test_rows: Ints | None,
    test_tiles: Tiles | None,
) -> dict[str, Any]:
    """Take one measurement, and write it down.

    Args:
        task: which.
        folder: of the comparison.
        samples: of the archive.
        rows: the arm's.
        reference: of the archive.
        tiles: of the archive; None for cheap measures.
        test: the test set; None for cheap measures.
        test_rows: of it that may decide: labelled, and not in archive or bank.
        test_tiles: of the test set.

    Returns:
        What the file says: ``arm``, ``measure``, ``metrics`` and ``seconds``.
    """
    began = time.monotonic()
    limit_threads(1)
    with one_thread(), threadpool_limits(1):
        if task.measure == "cheap":
            metrics = cheap(samples, rows, reference)
        else:
            assert tiles and test and test_rows is not None and test_tiles
            train = _label if task.measure == "label" else _pretraining
            metrics = train(task, samples, rows, tiles, test, test_rows, test_tiles)
    told = {
        "arm": asdict(task.arm),
        "measure": task.measure,
        "metrics": metrics,
        "seconds": round(time.monotonic() - began, 3),
    }
    folder.publish(task.path, json_bytes(told))
    return told


def cheap(samples: Samples, rows: Ints, reference: Reference) -> dict[str, float]:
    """The measures that train nothing, in the scorer's space."""
    kept = samples.features[rows]
    looked_at = np.argsort(samples.ids)[:LOOKED_AT]  # ids are hashes
    far, own = coverage(samples.features[looked_at], kept), Moments.of(kept)
    along = own.project(reference.axes)
    metrics = {
        "coverage_mean": far.mean,
        "coverage_worst": far.worst,
        "vendi": vendi_score(own),
        "frechet_unfiltered": frechet_distance(along, reference.unfiltered),
    }
    if reference.filtered is not None:
        metrics["frechet_filtered"] = frechet_distance(along, reference.filtered)
    metrics["cluster_entropy"] = balance(*_counts(reference.clusters, rows)).entropy
    named = {"class": samples.labels, **samples.groups}
    for name, values in named.items():
        codes, _ = codes_of(values)
        known = codes[rows] >= 0
        if len(np.unique(codes[codes >= 0])) < 2 or not known.any():
            continue
        counts = _counts(codes, rows)
        metrics[f"{name}_entropy"] = balance(*counts).entropy
        if name == "class":
            metrics["tail_recall"] = tail_recall(*counts).samples
    return metrics


def codes_of(values: pa.Array, classes: list[str] | None = None) -> tuple[Codes, list[str]]:
    """A number for each text, by its place among the sorted classes; -1 for null and `UNKNOWN`."""
    known = classes or sorted(set(pc.unique(values).drop_null().to_pylist()) - {UNKNOWN})
    found = pc.index_in(values, value_set=pa.array(known, pa.string()))
    return found.fill_null(-1).to_numpy().astype(np.int64), known


def _counts(codes: NDArray[np.integer[Any]], rows: Ints) -> tuple[Ints, Ints]:
    """Kept, and in the archive, of each code from 0."""
    size = int(codes.max()) + 1
    return tuple(np.bincount(some[some >= 0], minlength=size) for some in (codes[rows], codes))  # type: ignore[return-value]


def _classes(samples: Samples, test: Samples, test_rows: Ints) -> list[str]:
    values = pa.concat_arrays([samples.labels, test.labels.take(pa.array(test_rows))])
    return codes_of(values)[1]


def _label(
    task: Task, samples: Samples, rows: Ints, tiles: Tiles, test: Samples, test_rows: Ints, test_tiles: Tiles
) -> dict[str, float]:
    """The kept samples' own labels teach probes on the scorer's features, and a small network from scratch."""
    classes = _classes(samples, test, test_rows)
    codes, truth = codes_of(samples.labels, classes)[0], codes_of(test.labels, classes)[0][test_rows]
    rows, seed = rows[codes[rows] >= 0], task.arm.seed
    if not len(rows):  # nothing is learnt of no label
        return _flat(dict.fromkeys(("knn", "linear", "network"), Score(0.0, 0.0, 0, 0.0)))
    train, tested = Features(samples.features[rows], codes[rows]), Features(test.features[test_rows], truth)
    some = _bounded(rows, task.steps * SUPERVISED, seed)
    taught = Labelled(samples.pixels(tiles, some), codes[some])
    shown = Labelled(test.pixels(test_tiles, test_rows), truth)
    scores = from_features(train, tested, seed)
    return _flat({**scores, "network": from_scratch(taught, shown, seed, task.steps)})


def _pretraining(
    task: Task, samples: Samples, rows: Ints, tiles: Tiles, test: Samples, test_rows: Ints, test_tiles: Tiles
) -> dict[str, float]:
    """A body trained on the kept tiles without their labels; half of the test set teaches the probes of it."""
    codes = codes_of(test.labels, _classes(samples, test, test_rows))[0]
    halves = split_in_two(test.ids[test_rows], codes[test_rows])
    train, tested = ((test.pixels(test_tiles, test_rows[half]), codes[test_rows[half]]) for half in (halves, ~halves))
    some = _bounded(rows, task.steps * SELF_SUPERVISED, task.arm.seed)
    made = pretrain(samples.pixels(tiles, some), seed=task.arm.seed, steps=task.steps)
    return {**_flat(probe(made.network, train, tested, task.arm.seed)), "loss": made.loss, "spread": made.spread}


def split_in_two(ids: NDArray[np.bytes_], codes: Codes) -> NDArray[np.bool_]:
    """Which half of each class teaches: every other sample in the order of ids, the first among them."""
    teaches = np.zeros(len(ids), bool)
    order = np.argsort(ids)
    for code in np.unique(codes):
        teaches[order[codes[order] == code][::2]] = True
    return teaches


def _bounded(rows: Ints, most: int, seed: int) -> Ints:
    """As many rows as a training sees at most, drawn by its seed: what is held does not grow with the archive."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _flat(scores: dict[str, Score]) -> dict[str, float]:
    """``{learner}_macro``, ``_worst`` and ``_accuracy``."""
    return {
        f"{name}_{what}": float(getattr(score, what))
        for name, score in scores.items()
        for what in ("macro", "worst", "accuracy")
    }
