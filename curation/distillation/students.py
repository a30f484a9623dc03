"""What a distilled set is worth: classifiers trained from scratch on it, on controls and on everything, and tested.

All are the small network of `curation.scoring.network`, trained by one recipe for as many steps, and tested on images
that nothing has learnt from. The controls have as many images of each class as the
distilled set: the real images that guided its making (``prototypes``), and real ones drawn at random (``random``).
Whether diffusion earned its cost is the difference to these, not to nothing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.evaluation.coreset import Labelled
from curation.evaluation.probe import score
from curation.evaluation.statistics import Difference, judge, paired, points
from curation.scoring.network import BATCH, train_classifier

ARMS = ("distilled", "prototypes", "random", "full")
DRAWN = "random"  # the arm that each seed draws anew, and that the others are held against

Codes = NDArray[np.integer[Any]]


def random_rows(ids: Sequence[str], codes: Codes, counts: Sequence[int], seed: int) -> NDArray[np.int64]:
    """As many rows of each class as asked, ascending: those whose hashes of seed and id are the smallest.

    A class with fewer has all of its rows. Of parts of the samples the rows of all are those of the parts' rows.

    Args:
        ids: (n,) of the samples.
        codes: (n,) the class of each, below ``len(counts)``.
        counts: wanted of each class.
        seed: of the draw.
    """
    order = np.argsort(np.array([hashlib.sha256(f"{seed} {name}".encode()).digest() for name in ids], "S32"))
    chosen = [order[codes[order] == code][:count] for code, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def most_seen(steps: int) -> int:
    """Images that a student can see in so many steps: of a larger full set no more need be read, drawn at random."""
    return steps * BATCH


def train_student(
    train: Labelled, test: Labelled, classes: int, *, seed: int, steps: int, device: str = "cpu"
) -> float:
    """The macro accuracy (0 to 1) of one student; the same arguments give the same with as many threads of torch.

    Args:
        train: the images of an arm, at least one.
        test: images that no arm has, at least one; the same size and bands.
        classes: how many codes there are.
        seed: of the first weights, the order and the mirroring.
        steps: of the optimiser, the same for every arm.
        device: ``cpu`` or ``cuda``.
    """
    network = train_classifier(train.tiles, train.codes, classes, steps=steps, seed=seed, device=device)
    return score(test.codes, network.logits(test.tiles).argmax(1)).macro


def summarise(figures: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What the arms' accuracies say, as JSON has it.

    Intervals are 95 % t intervals over the seeds, as far as accuracies can go. They cover how students vary and, of
    ``random``, how draws do; the distilled set and its prototypes are one set each.

    Args:
        figures: accuracies (seeds,) of each arm, the same seeds in the same order, `DRAWN` among them.

    Returns:
        ``seeds``; ``arms``: of each ``mean``, ``low``, ``high`` and ``values``; ``differences``: of each but `DRAWN`
        less `DRAWN`, ``mean``, ``low``, ``high``, Holm's ``p`` over them all, ``verdict``, ``detectable`` (what so many
        seeds would have told in four cases of five; 1 where nothing) and ``words``; where both are there
        ``over_prototypes``: the distilled set less its prototypes, likewise, and ``words``: all in one sentence.
    """
    against = {name: paired(values, figures[DRAWN]) for name, values in figures.items() if name != DRAWN}
    made: dict[str, Any] = {
        "seeds": len(figures[DRAWN]),
        "arms": {
            name: {**_interval(paired(values, np.zeros(len(values))), 0), "values": [float(value) for value in values]}
            for name, values in figures.items()
        },
        "differences": _judged(against, "random real images"),
    }
    if {"distilled", "prototypes"} <= set(figures):
        over = {"distilled": paired(figures["distilled"], figures["prototypes"])}
        made["over_prototypes"] = _judged(over, "its real prototypes")["distilled"]
        made["words"] = _words(made)
    return made


def _interval(difference: Difference, least: float) -> dict[str, Any]:
    return {"mean": difference.mean, "low": max(difference.low, least), "high": min(difference.high, 1.0)}


def _judged(differences: Mapping[str, Difference], against: str) -> dict[str, Any]:
    return {
        name: {
            **_interval(one.difference, -1),
            "p": one.p,
            "verdict": one.verdict,
            "detectable": min(one.detectable, 1.0),
            "words": one.words,
        }
        for name, one in judge(differences, against).items()
    }


def _words(made: Mapping[str, Any]) -> str:
    told = [f"{name} {100 * arm['mean']:.1f} %" for name, arm in made["arms"].items()]
    over, random = made["over_prototypes"], made["differences"]["distilled"]
    verdicts = f"the distilled set is {_told(random)} random real images and {_told(over)} its own real prototypes"
    advice = ": the prototypes teach better" if over["verdict"] == "worse" else ""
    unseen = f" ({reach(made['seeds'], over)})" if over["verdict"] == "no difference" else ""
    return f"students reach {', '.join(told)} of held-out accuracy; {verdicts}{advice}{unseen}"


def _told(one: Mapping[str, Any]) -> str:
    how = {"better": "better than", "worse": "worse than", "no difference": "not told from"}[one["verdict"]]
    return f"{how} ({points(one['mean'])} points)"


def reach(seeds: int, one: Mapping[str, Any]) -> str:
    """What so many seeds can tell, of a difference as `summarise` gives it: not to be told apart is not to be equal."""
    if one["detectable"] >= 1:
        return f"{seeds} seeds can tell no difference: raise distill.students.seeds"
    return f"{seeds} seeds tell one of {100 * one['detectable']:.1f} points in four cases of five"
