"""Units: samples that stand or fall together, such as a product's tiles or a place's dates."""

import hashlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.selection.sampling import Floats, Words, split_ids

Ints = NDArray[np.int64]


def unit_ids(values: pa.Array | pa.ChunkedArray, upper: Words, lower: Words) -> tuple[Words, Words]:
    """The 128-bit id of each sample's unit: a hash of the unit's value as text.

    Args:
        values: of the catalog column; a sample without a value is a unit of its own.
        upper: the upper words of the samples' own ids.
        lower: the lower ones.
    """
    encoded = pc.dictionary_encode(values.cast(pa.string()))
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    names = [hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in encoded.dictionary.to_pylist()]
    code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    none = code < 0
    unit_upper, unit_lower = (np.append(part, np.uint64(0))[code] for part in split_ids(pa.array(names, pa.string())))
    return np.where(none, upper, unit_upper), np.where(none, lower, unit_lower)


class Members(NamedTuple):
    """Rows grouped by unit.

    Attributes:
        order: (n,) row numbers, by unit, then sample id.
        first: (units,) where in ``order`` each unit begins.
        unit: (n,) for each row, its unit's number.
        place: (n,) for each row, how many members of its unit come before it.
    """

    order: Ints
    first: Ints
    unit: Ints
    place: Ints

    @property
    def leaders(self) -> Ints:
        """(units,) the row with the lowest sample id in each unit."""
        return self.order[self.first]

    @property
    def size(self) -> Ints:
        """(units,) samples in each unit."""
        return np.diff(np.append(self.first, len(self.order)))


def group(unit: tuple[Words, Words], sample: tuple[Words, Words]) -> Members:
    """Group rows by their unit's id, members by their own."""
    order = np.lexsort((sample[1], sample[0], unit[1], unit[0]))
    new = np.ones(len(order), bool)
    new[1:] = np.logical_or(*(np.diff(key[order]) != 0 for key in unit))
    first = np.flatnonzero(new)
    number, place = np.empty((2, len(order)), np.int64)
    number[order] = np.cumsum(new) - 1
    place[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return Members(order, first, number, place)


def majority(members: Members, cluster: NDArray[np.int32]) -> NDArray[np.int32]:
    """(units,) the cluster that most of a unit's members are in, the lowest of several."""
    order = np.lexsort((cluster, members.unit))
    unit, clusters = members.unit[order], cluster[order]
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(unit) != 0) | (np.diff(clusters) != 0)
    run = np.flatnonzero(new)
    length = np.diff(np.append(run, len(order)))
    best = np.lexsort((clusters[run], -length, unit[run]))
    _, first = np.unique(unit[run][best], return_index=True)
    return clusters[run][best][first]


def mean(members: Members, values: NDArray[np.floating]) -> Floats:
    """(units,) the mean over a unit's members, added in the order of their ids."""
    return np.add.reduceat(values[members.order].astype(np.float64), members.first) / members.size


def every(members: Members, holds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(units,) whether it holds for all of a unit's members."""
    return np.logical_and.reduceat(holds[members.order], members.first)
