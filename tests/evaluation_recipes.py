"""Classes that are known to be separable: as vectors, and as textures that are told by their period alone."""

import numpy as np

from curation.evaluation.coreset import Labelled
from curation.evaluation.probe import Features


def blobs(a_class: int, seed: int, spread: float = 0.3, classes: int = 4, d: int = 10) -> Features:
    """Classes around fixed corners; the last dimension is loud and says nothing."""
    draw = np.random.default_rng(seed)
    codes = np.repeat(np.arange(classes), a_class)
    rows = np.eye(classes, d)[codes] + spread * draw.normal(size=(len(codes), d))
    rows[:, -1] *= 50
    return Features(rows.astype(np.float16), codes)


def gratings(a_class: int, seed: int, size: int = 16) -> Labelled:
    """Stripes of four periods, in any direction and phase, two bands."""
    draw = np.random.default_rng(seed)
    codes = np.tile(np.arange(4), a_class)
    y, x = np.mgrid[:size, :size]
    angle, phase = draw.uniform(0, 2 * np.pi, (2, len(codes), 1, 1))
    period = np.array([2.5, 4, 7, 12])[codes][:, None, None]
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + phase)
    tiles = 128 + 60 * np.stack([wave, -wave], 1) + 15 * draw.normal(size=(len(codes), 2, size, size))
    return Labelled(np.clip(tiles, 0, 255).astype(np.uint8), codes)
