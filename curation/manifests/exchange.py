"""Moves rows from the parts that they are stored in to partitions by another key, and results back.

A part is a list of layers: references to dicts of columns, all of one length,
of which a later one replaces columns of an earlier. Layers stay where they
were made; the driver holds references.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]
Layers = list[Any]  # references to Columns
Send = Callable[..., tuple[Columns, NDArray[np.integer]]]  # of context, columns and what is told beside them
Work = Callable[[Any, int, Columns], tuple[Columns, Any]]


def submit(function: Callable[..., Any], *args: Any, returns: int = 1) -> Any:
    """Call a module's function in a Ray task; references among ``args`` arrive as what they refer to."""
    return _remote(function).options(num_returns=returns).remote(*args)


@cache
def _remote(function: Callable[..., Any]) -> Any:
    return ray.remote(function)


def merge(layers: Sequence[Columns]) -> Columns:
    """The columns of a part's layers."""
    return {name: column for layer in layers for name, column in layer.items()}


def exchange(
    parts: list[Layers], partitions: int, context: Any, send: Send, work: Work, beside: Sequence[Any] = ()
) -> tuple[list[Layers], list[Any]]:
    """Add to every part the columns that ``work`` makes of each partition.

    Args:
        parts: where the rows are.
        partitions: how many pieces of work.
        context: reference to what both functions are told first.
        send: what of a part's columns is sent, and each row's partition (below 0: it stays, and gets NaN, -1 or
            False in the new columns).
        work: makes new columns, row by row as it gets them, of the rows of one partition (in the order of the
            parts), and something for the driver.
        beside: for each part a reference to what ``send`` is told beside its columns.

    Returns:
        the parts with one more layer, and what the driver gets from each partition.
    """
    more = [[one] for one in beside] or [[] for _ in parts]
    pieces = [
        submit(_split, send, partitions, context, len(own), *own, *part, returns=partitions + 1)
        for own, part in zip(more, parts, strict=True)
    ]
    results = [
        submit(_work, work, context, number, *(piece[number] for piece in pieces), returns=len(parts) + 1)
        for number in range(partitions)
    ]
    rows = [piece[-1] for piece in pieces]
    del pieces
    layers = [submit(_join, rows[i], *(result[i] for result in results)) for i in range(len(parts))]
    told = ray.get([result[-1] for result in results])
    return [[*part, layer] for part, layer in zip(parts, layers, strict=True)], told


def _split(send: Send, partitions: int, context: Any, told: int, *layers: Any) -> list[Any]:
    """The rows for each partition, and which of the part's rows those are; ``told`` arguments go before the layers."""
    columns, partition = send(context, merge(layers[told:]), *layers[:told])
    sent = np.flatnonzero(partition >= 0)
    rows = sent[np.argsort(partition[sent].astype(np.uint16), kind="stable")]
    edges = pairwise(np.searchsorted(partition[rows], np.arange(partitions + 1)))
    pieces = [{name: column[rows[a:b]] for name, column in columns.items()} for a, b in edges]
    return [*pieces, (rows.astype(np.int32), len(partition))]


def _work(work: Work, context: Any, number: int, *pieces: Columns) -> list[Any]:
    """Each part's new columns, and what the driver is told."""
    columns = {name: _concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    lengths = [len(next(iter(piece.values()))) for piece in pieces]
    made, told = work(context, number, columns)
    edges = pairwise(np.cumsum([0, *lengths]))
    return [*({name: column[a:b] for name, column in made.items()} for a, b in edges), told]


def _concatenate(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Whoever has no row may not know how wide the rows of others are."""
    return np.concatenate([array for array in arrays if len(array)] or arrays[:1])


def _join(rows: tuple[NDArray[np.int32], int], *pieces: Columns) -> Columns:
    """The partitions' columns in the order of the part's own rows."""
    order, length = rows
    joined = {}
    for name in pieces[0]:
        values = np.concatenate([piece[name] for piece in pieces])
        nothing = {"f": np.nan, "i": -1}.get(values.dtype.kind, 0)
        joined[name] = np.full(length, nothing, values.dtype)
        joined[name][order] = values
    return joined
