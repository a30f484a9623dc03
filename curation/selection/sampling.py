"""Consistent sampling: a sample's draw depends on its id and the seed, on nothing else.

Each sample draws u in (0, 1) from a hash, its priority is -log(u) / w, and the
smallest priorities of a stratum stay (Efraimidis and Spirakis 2006, in
logarithms). With the first refused priority t, a kept sample was kept with
probability 1 - exp(-w t) (Duffield et al. 2007; Ting 2017).
"""

import binascii
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

DIGITS = 32  # of a sample id
CLIP = 3.0  # standard deviations from the mean distance beyond which a weight does not change any more


def split_ids(ids: pa.Array | pa.ChunkedArray) -> tuple[Words, Words]:
    """The upper and lower 64 bits of ids of 32 hex digits; their order as numbers is the order of the texts.

    Raises:
        ValueError: an id is missing or of another form.
    """
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    ids = ids.cast(pa.large_string())
    starts = np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1] if len(ids) else [0]
    if ids.null_count or not (np.diff(starts) == DIGITS).all():
        raise ValueError(f"a sample_id is not of {DIGITS} hex digits")
    digits = memoryview(ids.buffers()[2] or b"")[starts[0] : starts[-1]]
    upper, lower = np.frombuffer(binascii.unhexlify(digits), ">u8").reshape(-1, 2).T.astype(np.uint64)
    return upper, lower


def join_ids(upper: Words, lower: Words) -> pa.Array:
    """The texts that `split_ids` took apart, as an Arrow string array."""
    digits = binascii.hexlify(np.stack([upper, lower], 1).astype(">u8").tobytes())
    starts = np.arange(0, DIGITS * (len(upper) + 1), DIGITS, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(upper), pa.py_buffer(starts), pa.py_buffer(digits)).cast(pa.string())


def hash01(ids: pa.Array | pa.ChunkedArray, seed: int) -> Floats:
    """A uniform number in (0, 1) from each sample id and the seed."""
    return uniform(split_ids(ids)[0], seed)


def uniform(words: Words, seed: int) -> Floats:
    """A uniform number in (0, 1) from each word, 53 bits of SplitMix64 of the word xor the mixed seed."""
    mixed = mix(words ^ mix(np.array([seed % 2**64], np.uint64)))
    return ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def mix(words: Words) -> Words:
    """SplitMix64, a bijection of 64-bit words (Steele, Lea and Flood 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def sortable(upper: NDArray[np.uint64], lower: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """Ids as bytes, which NumPy can search."""
    return np.ascontiguousarray(np.stack([upper, lower], 1).astype(">u8")).view("S16").ravel()


def distance_weight(distance: ArrayLike, mean: ArrayLike, std: ArrayLike, representativeness: float) -> Floats:
    """exp(-representativeness z) with z = (distance - mean) / std, clipped to three: above 0 favours the near.

    Args:
        distance: to the centroid.
        mean: of the cluster's distances, as frozen with the clusters.
        std: the same.
        representativeness: how fast the weight changes with the distance.
    """
    spread = np.asarray(std, np.float64)
    far = np.asarray(distance, np.float64) - np.asarray(mean, np.float64)
    z = np.divide(far, spread, out=np.zeros_like(far), where=spread > 0)
    return np.exp(-representativeness * np.clip(z, -CLIP, CLIP))


def priority(u: Floats, weight: ArrayLike = 1.0) -> Floats:
    """-log(u) / weight: exponential of rate ``weight``; the smallest stay."""
    return -np.log(u) / np.asarray(weight, np.float64)


def estimate_weight(weight: ArrayLike, threshold: ArrayLike) -> Floats:
    """1 / inclusion probability of a kept sample; 1 where nothing was refused (a threshold of NaN).

    Args:
        weight: its sampling weight.
        threshold: the first refused priority of its stratum.
    """
    everything = np.isnan(threshold)
    return np.where(everything, 1.0, -1 / np.expm1(-np.asarray(weight) * np.where(everything, 1.0, threshold)))


class Lineup(NamedTuple):
    """The rows of every stratum in the order in which they are kept.

    Attributes:
        order: (n,) row numbers, by stratum, then priority, then id.
        start: (n,) for each of ``order``, where its stratum begins in it.
    """

    order: NDArray[np.int64]
    start: NDArray[np.int64]


def line_up(stratum: NDArray[np.int32], priority: Floats, *ties: Words) -> Lineup:
    """Sort rows by stratum, priority and further keys.

    Args:
        stratum: (n,) not negative.
        priority: (n,) no NaN.
        ties: what decides between equal priorities, the most significant first.
    """
    order = np.argsort(priority)
    order = order[_argsort_small(stratum[order])]
    strata, priorities = stratum[order], priority[order]
    first = np.ones(len(order), bool)
    first[1:] = strata[1:] != strata[:-1]
    tied = np.zeros(len(order) + 1, bool)  # with the row before it
    tied[1:-1] = ~first[1:] & (priorities[1:] == priorities[:-1])
    at = np.flatnonzero(tied[:-1] | tied[1:])
    if len(at):
        run = np.cumsum(~tied[:-1])[at]
        rows = order[at]
        order[at] = rows[np.lexsort((*(key[rows] for key in reversed(ties)), run))]
    return Lineup(order, np.maximum.accumulate(np.where(first, np.arange(len(order)), 0)))


def _argsort_small(values: NDArray[np.int32]) -> NDArray[np.int64]:
    """Stable argsort of numbers that are not negative; 16 bits at a time, which NumPy sorts by radix."""
    order = np.argsort((values & 0xFFFF).astype(np.uint16), kind="stable")
    if len(values) and values.max() > 0xFFFF:
        order = order[np.argsort((values[order] >> 16).astype(np.uint16), kind="stable")]
    return order
