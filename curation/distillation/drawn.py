"""What was drawn for each prototype, and which of it is kept: plain data, as in the checkpoints of generation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.distillation.leakage import Checker, Limits

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Candidate:
    """An image that was drawn for a prototype.

    Attributes:
        number: from 0; those drawn again go on from there.
        margin: its class's logit less the largest other.
        distance: of its pooled latent to the prototype's.
        similarity: largest cosine to a real image, that of ``nearest`` (a sample_id); ``None`` where none was looked
            for, since another image was better and near none.
        ssim: largest SSIM among the nearest by cosine, that of ``ssim_nearest``.
        leaks: too near a real image to be kept.
    """

    number: int
    margin: float
    distance: float
    similarity: float | None = None
    nearest: str | None = None
    ssim: float | None = None
    ssim_nearest: str | None = None
    leaks: bool = False


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one prototype.

    Attributes:
        label: of its class.
        number: of its class, in the order of the classes.
        prototype: its number within the class, from 0.
        cluster: its number over all classes, from 0.
        sample_id, shard, row, key: of the real image that is the prototype; ``row`` in its catalog file.
        candidates: all that were drawn, by number.
    """

    label: str
    number: int
    prototype: int
    cluster: int
    sample_id: str
    shard: str
    row: int
    key: str
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate | None:
        """Of the largest margin among those that do not leak, of equals the first; ``None``: all leak."""
        fit = (candidate for candidate in self.candidates if not candidate.leaks)
        return max(fit, key=lambda candidate: (candidate.margin, -candidate.number), default=None)

    def name(self, candidate: Candidate) -> str:
        """The key of an image."""
        return f"{self.number:05d}-{self.prototype:05d}-{candidate.number:03d}"

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "Drawn":
        """What ``dataclasses.asdict`` made of one."""
        return cls(**{**told, "candidates": tuple(Candidate(**one) for one in told["candidates"])})


def sift(
    candidates: Sequence[Candidate], pixels: Callable[[int], Pixels], checker: Checker, limits: Limits
) -> tuple[Candidate, ...]:
    """Look for the nearest real images of candidates, the surest first, until one is not too near.

    Args:
        candidates: of one prototype; those that were looked at already are not again.
        pixels: gives a candidate's image by its number, uint8 (bands, s, s).
        checker: of the real images.
        limits: from where on an image is too near.

    Returns:
        The candidates by number, with what was seen of them.
    """
    found = {one.number: one for one in candidates}
    for one in sorted(candidates, key=lambda one: (-one.margin, one.number)):
        if one.similarity is None:
            (seen,) = checker.look(pixels(one.number)[None])
            one = found[one.number] = replace(one, **vars(seen), leaks=limits.leaks(seen))
        if not one.leaks:
            break
    return tuple(found[number] for number in sorted(found))
