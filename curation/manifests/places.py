"""Places of the whole archive: `selection.places` over ranges of the Earth, in Ray tasks.

A task holds the footprints of one range (see `partitions`), and one task the pairs that all ranges tell: about one a
row that falls.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curation.manifests.duplicates import find
from curation.manifests.exchange import Columns, Layers, merge, submit
from curation.manifests.partitions import number_of_partitions
from curation.manifests.steps import CODE, Plan, Shards, running
from curation.selection.duplicates import COLUMNS, quality
from curation.selection.footprints import boxes
from curation.selection.places import (
    STOP,
    UNKNOWN,
    Pairs,
    Rule,
    Tiles,
    concatenate,
    crowded,
    keys,
    place_pairs,
    settle,
    touched,
)
from curation.selection.sampling import sortable

KEYS = 256  # that a part tells of itself, at most
CATALOG = tuple(name for name in COLUMNS if name not in ("sample_id", "signature", "patch", "embedding"))


class Survey(NamedTuple):
    """What the driver learns of a part: rows in the running, those with a footprint, and where some of these lie."""

    rows: int
    tiles: int
    keys: NDArray[np.int64]


class Found(NamedTuple):
    """Counts: rows in the running, those with a footprint, with one that many others have too, and that fall."""

    rows: int
    tiles: int
    crowded: int
    fallen: int


def find_places(parts: list[Layers], shards: list[Any], plan: Any, rule: Rule) -> tuple[Any, Found]:
    """Find the rows that others of their place stand for.

    Args:
        parts: references to each part's rows.
        shards: references to each part's `Shards`.
        plan: reference to the `Plan`.
        rule: what a place is.

    Returns:
        a reference to what `mark` and `unite` take, and counts.
    """
    located = [submit(_located, plan, names, *part, returns=2) for names, part in zip(shards, parts, strict=True)]
    surveys: list[Survey] = ray.get([survey for _, survey in located])
    cuts = _cuts(surveys)
    split = [submit(_split, cuts, tiles, returns=len(cuts) + 2) for tiles, _ in located]
    del located
    pairs = [
        submit(_pairs, rule, *limits, *(piece[i] for piece in split), returns=2)
        for i, limits in enumerate(pairwise([0, *cuts.tolist(), STOP]))
    ]
    del split
    fallen, number = submit(_fallen, rule, *(some for some, _ in pairs), returns=2)
    same = sum(ray.get([count for _, count in pairs]))
    rows, tiles = (sum(column) for column in ([one.rows for one in surveys], [one.tiles for one in surveys]))
    return fallen, Found(rows, tiles, same, ray.get(number))


def unite(fallen: Columns, *layers: Columns) -> Columns:
    """Give every row the id of its place as its unit's: that of the row which stands for it, else its own."""
    rows = merge(layers)
    member, place = find(fallen["id"], rows)
    return {
        f"unit_{half}": np.where(member, fallen[f"of_{half}"][place] if len(fallen["id"]) else 0, rows[half])
        for half in ("upper", "lower")
    }


def _located(plan: Plan, shards: Shards, *layers: Columns) -> tuple[Tiles, Survey]:
    """A part's rows that are in the running and have a footprint."""
    rows = merge(layers)
    there, first = running(rows), 0
    before_others = rows["reason"] == CODE["required"]
    if "fresh" in rows:
        before_others |= ~rows["fresh"]
    found = [Tiles(*(np.empty(0, np.uint64),) * 2, np.empty((0, 4)), *(np.empty(0, np.int64),) * 2)]
    for name, count in zip(shards.names, shards.rows, strict=True):
        at = first + np.flatnonzero(there[first : first + count])
        table = plan.store.read(name, CATALOG).take(pa.array(at - first))
        table = table.append_column("first", pa.array(before_others[at]))
        time = table["time"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        tiles = Tiles(
            upper=rows["upper"][at],
            lower=rows["lower"][at],
            box=boxes(table["footprint"]),
            time=pc.fill_null(time, UNKNOWN).to_numpy(),
            quality=quality(table),
        )
        found.append(tiles.take(np.flatnonzero(~np.isnan(tiles.box[:, 0]))))
        first += count
    tiles = concatenate(found)
    key = np.sort(keys(tiles.box))
    some = key[np.linspace(0, len(key), KEYS, endpoint=False).astype(int)] if len(key) else key
    return tiles, Survey(int(there.sum()), len(tiles), some)


def _cuts(surveys: list[Survey]) -> NDArray[np.int64]:
    """Keys between ranges of about equally many rows."""
    rows = sum(survey.tiles for survey in surveys)
    number = number_of_partitions(rows)
    key = np.concatenate([survey.keys for survey in surveys])
    stands_for = np.repeat([survey.tiles / KEYS for survey in surveys], [len(survey.keys) for survey in surveys])
    order = np.argsort(key)
    at = np.searchsorted(np.cumsum(stands_for[order]), rows * np.arange(1, number) / number)
    return np.unique(key[order][at])


def _split(cuts: NDArray[np.int64], tiles: Tiles) -> list[Any]:
    """The tiles that touch each range (and nothing, so that there are always several results)."""
    row, part = touched(tiles.box, cuts)
    edges = np.searchsorted(part, np.arange(len(cuts) + 2))
    return [*(tiles.take(row[a:b]) for a, b in pairwise(edges)), None]


def _pairs(rule: Rule, first: int, stop: int, *pieces: Tiles) -> tuple[Pairs, int]:
    tiles = concatenate(pieces)
    return place_pairs(tiles, rule, first, stop), crowded(tiles, first, stop)


def _fallen(rule: Rule, *pairs: Pairs) -> tuple[Columns, int]:
    fallen = settle(pairs, rule.best)
    ids, of = sortable(*fallen.ids.T), fallen.of.T
    return {"id": ids, "of_upper": of[0].copy(), "of_lower": of[1].copy()}, len(ids)
