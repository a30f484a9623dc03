"""The label coreset measure: what the kept samples' own labels teach, scored on untouched images.

Three learners, each told apart: 5-NN and a linear probe on an encoder's features (never the selector's own), and the
small network of `curation.scoring.network` from scratch on the kept tiles, for as many steps however many they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.evaluation.probe import Codes, Features, Score, linear, nearest_neighbours, score
from curation.scoring.network import train_classifier

STEPS = 600


@dataclass(frozen=True)
class Labelled:
    """Tiles with their classes.

    Attributes:
        tiles: uint8 (n, bands, size, size).
        codes: integers (n,), from 0; the same numbers in training and test.
    """

    tiles: NDArray[np.uint8]
    codes: Codes


def from_features(train: Features, test: Features, seed: int) -> dict[str, Score]:
    """``knn`` and ``linear``: the probes of `curation.evaluation.probe`, on vectors."""
    return {"knn": nearest_neighbours(train, test), "linear": linear(train, test, seed)}


def from_scratch(train: Labelled, test: Labelled, seed: int, steps: int = STEPS, **recipe: Any) -> Score:
    """The small network, trained on the kept tiles alone.

    The same arguments give the same score with the same number of torch's threads.

    Args:
        train: the kept samples, at least one.
        test: never looked at but to score.
        seed: of the first weights, the order and the mirroring.
        steps: of the optimiser, the same for every arm.
        **recipe: further arguments of `train_classifier`.
    """
    classes = int(train.codes.max()) + 1
    network = train_classifier(train.tiles, train.codes, classes, steps=steps, seed=seed, **recipe)
    return score(test.codes, network.logits(test.tiles).argmax(1))
