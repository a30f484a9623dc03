"""How alike two tiles are, by their stored patches: under mirroring, rotation, small shifts and relighting.

Patches are aligned by their spectra: a mirrored or rotated tile has the same
coefficients in other places, a shifted one has them turned in phase.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from curation.scoring.signature import CUTOFF, NOISE, REACH, SPECTRUM, WINDOW_ENERGY, patch_levels, patch_spectra

EVIDENCE = 20  # frequencies (by participation ratio) that must carry a picture for its likeness to count in full
COARSE = 0.16  # likeness that the largest shift (1/16 of the tile along both axes) costs before the windows follow it

_REPRESENTATIVES = np.array([0, 1, 4, 5])  # symmetries; a half turn more (^ 3) leaves magnitudes as they are
_Complex = NDArray[np.complex64]


class Patches:
    """Stored patches ``(n, 416)``; each one's spectrum is computed when it is first asked for."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data = data
        self.levels = patch_levels(data)
        self._spectra = np.empty((len(data), SPECTRUM), dtype=np.complex64)
        self._known = np.zeros(len(data), dtype=bool)

    def spectra(self, rows: NDArray[np.intp]) -> _Complex:
        """Weighted spectra ``(len(rows), 225)``."""
        new = np.unique(rows[~self._known[rows]])
        self._spectra[new] = patch_spectra(self.data[new]) * _weights()
        self._known[new] = True
        return self._spectra[rows]

    def flat(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which have less texture than noise, ``(len(rows),)``: any two of them are alike."""
        half, _, _, noise = _alignment()
        return np.asarray(_energy(np.abs(self.spectra(rows)).take(half, axis=1)) < noise.sum())


def likeness(a: Patches, i: NDArray[np.intp], b: Patches, j: NDArray[np.intp], threshold: float) -> NDArray[np.float64]:
    """Likeness of the patches a[i] and b[j], once aligned: 1 for the same picture, about 0 for unrelated ones.

    It is 1 - |a - b|^2 / (|a|^2 + |b|^2 + 2 noise^2) on the ground that both show, norms over
    spatial frequencies f weighted by f^1.5, which gives each octave of a natural image about the
    same say. Two tiles without texture differ by less than the noise and are alike: their levels,
    and where they are known their places, must be compared too. Where fewer than 20 frequencies
    carry the pictures, what lacks to 1 is raised in proportion: one straight coast is much like
    another.

    The best of 8 symmetries and 81 shifts (up to 1/16 of the tile) is found with both windows in
    the tiles' middle; then the windows are moved onto the common ground.

    Args:
        a: patches.
        i: ``(n,)`` rows of ``a``.
        b: patches.
        j: ``(n,)`` rows of ``b``.
        threshold: pairs that cannot reach it are given 0 without more work.

    Returns:
        ``(n,)`` float64.
    """
    half, symmetries, shifts, noise = _alignment()
    least = threshold - COARSE
    x, y = a.spectra(i), b.spectra(j)
    sizes_x, sizes_y = np.abs(x).take(half, axis=1), np.abs(y).take(symmetries[_REPRESENTATIVES], axis=1)
    both = _energy(sizes_x) + _energy(sizes_y[:, 0])
    # no shift can bring more in common than the magnitudes have: this spares most of the work
    bound = np.einsum("ik,isk->is", sizes_x, sizes_y)
    pair, kind = np.nonzero(_alike(both[:, None], bound, noise) >= least)
    pair = np.concatenate([pair, pair])
    symmetry = np.concatenate([_REPRESENTATIVES[kind], _REPRESENTATIVES[kind] ^ 3])
    turned = np.take_along_axis(y[pair], symmetries[symmetry], axis=1)
    common = (x[pair].take(half, axis=1) * turned.conj()).view(np.float32) @ shifts  # (m, 81)
    most = np.full(len(i), -np.inf)
    np.maximum.at(most, pair, common.max(axis=1))
    good = (common.max(axis=1) == most[pair]) & (_alike(both, most, noise) >= least)[pair]
    some, first = np.unique(pair[good], return_index=True)
    out = np.zeros(len(i))
    out[some] = _on_common_ground(
        a.data[i[some]], b.data[j[some]], symmetry[good][first], common[good][first].argmax(1)
    )
    return out


def _on_common_ground(
    a: NDArray[np.uint8], b: NDArray[np.uint8], symmetry: NDArray[np.intp], shift: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Likeness of aligned patches ``(n, 416)``, each seen through a window moved by half the shift."""
    half, symmetries, _, noise = _alignment()
    down, right = np.divmod(shift, 2 * REACH + 1)
    down, right = down - REACH, right - REACH  # of a against b, in 64ths of the tile; half of it in 128ths
    swapped, turn_down, turn_right = symmetry >= 4, 1 - (symmetry & 2), 1 - 2 * (symmetry & 1)
    back_down, back_right = -down * turn_down, -right * turn_right
    back = np.where(swapped, back_right, back_down), np.where(swapped, back_down, back_right)
    x = (patch_spectra(a, down, right) * _weights()).take(half, axis=1)
    y = np.take_along_axis(patch_spectra(b, *back) * _weights(), symmetries[symmetry], axis=1)
    sizes_x, sizes_y = np.abs(x), np.abs(y)
    common = (x.conj() * y).real.sum(axis=1, dtype=np.float64)
    alike = _alike(_energy(sizes_x) + _energy(sizes_y), common, noise)
    power = (sizes_x.astype(np.float64) ** 2 + sizes_y**2) / 2 + noise
    frequencies = power.sum(axis=1) ** 2 / (power**2).sum(axis=1)
    return np.asarray(1 - (1 - alike) * np.maximum(1, EVIDENCE / frequencies))


def _energy(sizes: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray((sizes**2).sum(axis=1, dtype=np.float64))


def _alike(both: NDArray[np.float64], common: NDArray[np.floating], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 - (both - 2 * common) / (both + 2 * noise.sum()))


@lru_cache(maxsize=1)
def _weights() -> NDArray[np.float32]:
    f = np.arange(-CUTOFF, CUTOFF + 1) ** 2
    return np.asarray((f[:, None] + f) ** 0.75, dtype=np.float32).ravel()


@lru_cache(maxsize=1)
def _alignment() -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32], NDArray[np.float64]]:
    """What `likeness` is computed with.

    The half plane of frequencies, as places in the flat spectrum ``(112,)``; where its
    values come from under each symmetry ``(8, 112)``: transposed from 4 on, then mirrored
    down (2) and right (1); what shifts the product of two spectra ``(224, 81)``; and the
    energy of noise at each frequency ``(112,)``.
    """
    f = np.arange(-CUTOFF, CUTOFF + 1)
    down, right = (axis.ravel() for axis in np.meshgrid(f, f, indexing="ij"))
    half = np.flatnonzero((down > 0) | ((down == 0) & (right > 0)))
    places = np.arange(SPECTRUM).reshape(len(f), -1)
    symmetries = np.stack(
        [side[::m, ::n].ravel()[half] for side in (places, places.T) for m in (1, -1) for n in (1, -1)]
    )
    shifts = np.arange(-REACH, REACH + 1) / 64
    u, v = (axis.ravel() for axis in np.meshgrid(shifts, shifts, indexing="ij"))
    angles = 2 * np.pi * (np.outer(down[half], u) + np.outer(right[half], v))
    table = np.stack([np.cos(angles), -np.sin(angles)], axis=1).reshape(2 * len(half), -1)
    noise = NOISE**2 * WINDOW_ENERGY * _weights()[half].astype(np.float64) ** 2
    return half, symmetries, table.astype(np.float32), noise
