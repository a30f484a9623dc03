"""Several encoders side by side, each on bands of its own; their vectors are joined.

A part's vector is scaled by the root of its weight before they are put one after the other. So the cosine of two tiles
is the mean of the parts' cosines, weighted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.names import find_band
from curation.archive.sample import Member, Sample
from curation.encoders.base import Artefact, Config, Encoder, Floats, build_encoder, fit_artefact, unit_length
from curation.errors import RequestError

Prepare = Callable[[Sample], NDArray[Any]]


def fit(config: Config, samples: Sequence[Sample], bands: tuple[str, ...], ranges: Floats, seed: int) -> Artefact:
    """What each part fits on its bands, its arrays called ``<part>.<array>``.

    Raises:
        RequestError: a part's config is wrong, or the archive has no such band.
    """
    made: Artefact = {}
    for name, part in config["parts"].items():
        at = positions(name, part.get("bands"), bands)
        own = tuple(bands[i] for i in at)
        seen = [_only(sample, at) for sample in samples]
        fitted = fit_artefact(part, seen, own, ranges[list(at)], int(part.get("seed", seed)))
        made |= {f"{name}.{array}": values for array, values in fitted.items()}
    return made


def build(
    config: Config, artefact: Artefact, bands: tuple[str, ...], dtype: str, device: str, threads: int
) -> "Joined":
    """Each part from its arrays."""
    parts, weights = [], []
    for name, part in config["parts"].items():
        at = positions(name, part.get("bands"), bands)
        own = {key.removeprefix(f"{name}."): array for key, array in artefact.items() if key.startswith(f"{name}.")}
        parts.append((at, build_encoder(part, own, tuple(bands[i] for i in at), dtype, device, threads)))
        weights.append(float((config.get("weights") or {}).get(name, 1)))
    return Joined(parts, weights, bands, dtype)


def positions(part: str, wanted: str | Sequence[str] | None, bands: tuple[str, ...]) -> tuple[int, ...]:
    """Where a part's bands are: by name, all of a modality (``S1GRD`` of ``S1GRD.vv``), or all.

    Raises:
        RequestError: there is no such band.
    """
    if wanted is None:
        return tuple(range(len(bands)))
    found: list[int] = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        own = [i for i, band in enumerate(bands) if band.startswith(f"{name}.")]
        exact = find_band(name, bands)
        if not own and exact is None:
            raise RequestError(f"encoder.parts.{part}.bands: no band {name!r}; the archive has {', '.join(bands)}")
        found += own or [exact or 0]
    return tuple(found)


def _only(sample: Sample, at: Sequence[int]) -> Sample:
    return replace(sample, pixels=sample.pixels[list(at)], bands=tuple(sample.bands[i] for i in at))


@dataclass(frozen=True)
class JoinedPreparation:
    """Makes the parts' tiles and lays their bytes one after the other; small, as each part's is."""

    parts: tuple[tuple[tuple[int, ...], Prepare], ...]

    def __call__(self, sample: Sample) -> NDArray[np.uint8]:
        """``(bytes,)``."""
        tiles = [np.ascontiguousarray(prepare(_only(sample, at))) for at, prepare in self.parts]
        return np.concatenate([tile.reshape(-1).view(np.uint8) for tile in tiles])


class Joined:
    """The encoder ``joined``; see the module's docstring."""

    name = "joined"
    needs_pixels = True

    def __init__(
        self,
        parts: Sequence[tuple[tuple[int, ...], Encoder]],
        weights: Sequence[float],
        bands: tuple[str, ...],
        dtype: str,
    ) -> None:
        self.encoders = [encoder for _, encoder in parts]
        self.prepare = JoinedPreparation(tuple((at, encoder.prepare) for at, encoder in parts))
        self.batch = min(encoder.batch for encoder in self.encoders)
        self.dim = sum(encoder.dim for encoder in self.encoders)
        self._scales = np.sqrt(np.asarray(weights, np.float32))
        blank = Sample(
            "", 0, np.zeros((len(bands), 32, 32), dtype), np.ones((32, 32), bool), bands, Member("", None, 0)
        )
        self._tiles = [prepare(_only(blank, at)) for at, prepare in self.prepare.parts]

    def encode(self, tiles: NDArray[Any]) -> Floats:
        """``(n, bytes)`` -> ``(n, dim)``, unit length."""
        vectors, start = [], 0
        for encoder, like, scale in zip(self.encoders, self._tiles, self._scales, strict=True):
            own = np.ascontiguousarray(tiles[:, start : start + like.nbytes]).view(like.dtype)
            vectors.append(scale * encoder.encode(own.reshape(len(tiles), *like.shape)))
            start += like.nbytes
        return unit_length(np.concatenate(vectors, axis=1))
