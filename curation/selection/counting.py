"""An exact threshold over any number of rows, found by counting the digits of their keys instead of sorting.

Keys are words of 16-bit digits, the most significant first. One histogram a
digit, added up over all parts of the rows, tells in which bin the threshold
lies; the next one counts within that bin only. So many passes as there are
digits that matter find it exactly: two for the bits of a float32, more where
rows tie and a hash has to decide.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Digits = NDArray[np.uint16]  # (rows, digits)
BINS = 1 << 16


def sortable(values: NDArray[np.floating]) -> NDArray[np.unsignedinteger]:
    """Unsigned integers of the same width and order as the floats (no NaN; -0 counts as 0)."""
    width = 8 * values.dtype.itemsize
    bits = (values + 0).view(f"u{values.dtype.itemsize}")
    sign = bits >> (width - 1)
    ordered: NDArray[np.unsignedinteger] = bits ^ np.where(sign, ~bits.dtype.type(0), bits.dtype.type(1 << (width - 1)))
    return ordered


def digits(*words: NDArray[np.unsignedinteger]) -> Digits:
    """The 16-bit digits of keys made of one or more words, the most significant first."""
    columns = [word.astype(word.dtype.newbyteorder(">")).view(">u2") for word in words]
    rows = [column.reshape(len(word), word.itemsize // 2) for column, word in zip(columns, words, strict=True)]
    return np.concatenate(rows, 1).astype(np.uint16)


def histogram(keys: Digits, prefix: tuple[int, ...]) -> NDArray[np.int64]:
    """How often each next digit occurs among the keys that begin with ``prefix``; int64 (65536,)."""
    within = (keys[:, : len(prefix)] == np.array(prefix, np.uint16)).all(1)
    return np.bincount(keys[within, len(prefix)], minlength=BINS)


def threshold(count: Callable[[tuple[int, ...]], NDArray[np.int64]], keep: int, length: int) -> tuple[int, ...]:
    """The prefix up to which (itself included) exactly the ``keep`` smallest keys lie.

    Args:
        count: `histogram` of a prefix, added up over all rows.
        keep: at least 1, at most the number of rows.
        length: digits of a key; rows with one whole key in common stay or fall together.
    """
    prefix: tuple[int, ...] = ()
    while True:
        cumulative = np.cumsum(count(prefix))
        digit = int(np.searchsorted(cumulative, keep))
        prefix += (digit,)
        if cumulative[digit] == keep or len(prefix) == length:
            return prefix
        keep -= int(cumulative[digit - 1]) if digit else 0


def up_to(keys: Digits, prefix: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which keys are at most ``prefix`` in their first digits."""
    below, equal = np.zeros(len(keys), bool), np.ones(len(keys), bool)
    for column, digit in enumerate(prefix):
        below |= equal & (keys[:, column] < digit)
        equal &= keys[:, column] == digit
    return below | equal
