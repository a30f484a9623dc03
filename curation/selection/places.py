"""Samples of one place, from footprints, times and qualities alone.

Two samples are of one place if their footprints share at least `Rule.overlap` of the smaller one's area (on the
sphere), and their times agree as the rule wants it. Best first, a sample falls where `Rule.best` better ones of its
place stay: so each that falls was itself compared with the one that stands for it, and no chain of overlaps joins
its ends. With ``best=1`` these are the stars of `selection.duplicates`.

Three steps, each a pure function whose result depends neither on how the Earth is cut nor on the order of rows:

1. `touched(box, cuts)`: which ranges of the Earth each footprint touches, and must be sent to.
2. `place_pairs(tiles, rule, first, stop)`, for a range, with all tiles that touch it: the pairs whose overlap begins
   in it. So a pair belongs to exactly one range.
3. `settle(pairs, best)`, once, over all that 2 gave.

`find_places` is the three in one process.

The Earth is cut into bands of `BAND` degrees of latitude, each into stretches of longitude: the key of a point is its
band and how far round it lies, in 2^-32 of a turn. A range is an interval of keys, and may be as narrow as it must.

Bounds: a stretch with more than `MOST` pairs to compare is halved, so that memory grows with the tiles that touch a
range and, only where one point lies under more than about 3,000 different footprints at agreeing times, with their
square. Tiles of exactly one footprint (and time) are compared as one. Of what a stretch knows the fate of (it lies
inside, and so do all that it overlaps) only pairs with those that stay are told: about one a tile that falls.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

BAND = 0.25  # degrees
BANDS = int(180 / BAND)
TURN = 1 << 32  # parts of a turn
STOP = BANDS * TURN  # beyond every key
MOST = 1 << 23  # pairs of a stretch whose overlap is looked at
CHUNK = 1 << 20  # of these, at once
ROUNDING = 1e-6  # of a share of overlap: half is half, however degrees are rounded
CROWD = 100  # others of exactly one footprint, beyond which it hardly tells a tile's own place

DAY = 86_400_000_000  # microseconds
UNKNOWN = np.iinfo(np.int64).min  # a time

OPEN, STAYS, FALLS = 0, 1, 2


@dataclass(frozen=True)
class Rule:
    """When two samples are of one place, and how many of a place stay.

    Attributes:
        overlap: share of the smaller footprint's area, above 0.
        days: how far apart their times may lie, if this matters; unknown times agree with each other.
        season: whether they must be of one season, of any year: December to February, March to May, …, or unknown.
        best: how many stay.
    """

    overlap: float
    days: float | None = None
    season: bool = False
    best: int = 1

    @property
    def reach(self) -> int:
        """Microseconds between two times that agree."""
        return max(round((self.days or 0) * DAY), 1)

    def same(self, time: Ints) -> Ints:
        """What is equal where times are alike for this rule in every respect."""
        if self.season:
            months = time.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64) + 1  # from 1 in January
            return np.where(time == UNKNOWN, -1, months % 12 // 3)
        return time if self.days is not None else np.zeros(len(time), np.int64)

    def groups(self, time: Ints) -> tuple[Ints, Ints]:
        """Numbers from 0, and by how much those of times that agree may differ."""
        same = self.same(time)
        if self.days is None:
            return same + 1, np.array([0])
        known = same != UNKNOWN
        number = np.where(known, same, 0) // self.reach
        return np.where(known, number - number[known].min(initial=np.iinfo(np.int64).max) + 2, 0), np.array([-1, 0, 1])


@dataclass(frozen=True)
class Tiles:
    """What decides about samples.

    Attributes:
        upper, lower: uint64 (n,) the two halves of their ids.
        box: float64 (n, 4), see `boxes`; no NaN.
        time: int64 (n,) microseconds since 1970, or `UNKNOWN`.
        quality: int64 (n,), see `selection.duplicates.quality`; ties go by id.
    """

    upper: Words
    lower: Words
    box: Floats
    time: Ints
    quality: Ints

    def __len__(self) -> int:
        return len(self.upper)

    def take(self, rows: NDArray[np.integer]) -> "Tiles":
        """Some of them."""
        return Tiles(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class Pairs:
    """Pairs of one place, by the halves of their ids.

    Attributes:
        better, worse: uint64 (n, 2).
        quality: int64 (n, 2), of the better and the worse.
        twin: bool (n,) where the worse shares the better one's fate: one footprint and time, and `Rule.best` such are
            better than it.
    """

    better: Words
    worse: Words
    quality: Ints
    twin: NDArray[np.bool_]


@dataclass(frozen=True)
class Fallen:
    """Samples that fall, sorted by id.

    Attributes:
        ids: uint64 (n, 2) halves of their ids.
        of: uint64 (n, 2) those of the best one of their place that stays.
    """

    ids: Words
    of: Words


def concatenate(tiles: Sequence[Tiles]) -> Tiles:
    """All of several."""
    return Tiles(*(np.concatenate([getattr(some, field.name) for some in tiles]) for field in fields(Tiles)))


def find_places(tiles: Tiles, rule: Rule, cuts: Sequence[int] = ()) -> Fallen:
    """The samples that others of their place stand for, in one process.

    Args:
        tiles: all samples.
        rule: what a place is.
        cuts: keys between which ranges lie, rising; changes nothing.
    """
    row, part = touched(tiles.box, np.array(cuts, np.int64))
    ranges = pairwise([0, *cuts, STOP])
    return settle(
        [place_pairs(tiles.take(row[part == i]), rule, first, stop) for i, (first, stop) in enumerate(ranges)],
        rule.best,
    )


# footprints


def area(box: Floats) -> Floats:
    """(n,) areas on the unit sphere, steradians."""
    return np.radians(box[:, 2] - box[:, 0]) * _height(box[:, 1], box[:, 3])


def share(a: Floats, b: Floats) -> Floats:
    """(n,) what footprints a[i] and b[i] share, of the smaller one's area.

    One without area, such as a point, shares all with what it lies in or on, nothing with others.
    """
    width = np.maximum(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]), 0)
    if max(a[:, 2].max(initial=0), b[:, 2].max(initial=0)) > 180:  # some cross the antimeridian
        for turn in (-360, 360):
            width += np.maximum(np.minimum(a[:, 2], b[:, 2] + turn) - np.maximum(a[:, 0], b[:, 0] + turn), 0)
    common = np.radians(width) * _height(np.maximum(a[:, 1], b[:, 1]), np.minimum(a[:, 3], b[:, 3]))
    least = np.minimum(area(a), area(b))
    part: Floats = np.minimum(np.divide(common, least, out=np.zeros_like(least), where=least > 0), 1)
    if len(flat := np.flatnonzero(least == 0)):
        a, b = a[flat], b[flat]
        part[flat] = ((area(a) == 0) & _inside(a, b)) | ((area(b) == 0) & _inside(b, a))
    return part


def _inside(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """Which a[i] lie in b[i], edges included."""
    beyond = (a[:, 0] - b[:, 0]) % 360
    level = (a[:, 1] >= b[:, 1]) & (a[:, 3] <= b[:, 3])
    return np.asarray(level & (beyond + a[:, 2] - a[:, 0] <= b[:, 2] - b[:, 0]))


def _height(south: Floats, north: Floats) -> Floats:
    """sin(north) - sin(south) without cancellation, 0 where north is not above."""
    half, middle = np.radians(north - south) / 2, np.radians(north + south) / 2
    return np.asarray(np.maximum(2 * np.sin(np.maximum(half, 0)) * np.cos(middle), 0))


def overlapping(a: Floats, b: Floats, least: float = 0) -> tuple[Ints, Ints, Floats]:
    """All pairs of two sets of footprints that share anything, and at least ``least`` of the smaller one's area.

    Args:
        a: (n, 4) `boxes` without NaN.
        b: (m, 4) the same.
        least: share of the smaller.

    Returns:
        rows of a, rows of b, sorted by these, and their `share`.
    """
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for x, y in ((a, b), (b, a)):
        sweep = _Sweep.over(x, y, np.zeros(len(x), np.int64), np.zeros(len(y), np.int64), np.array([0]))
        for i, j in sweep.pairs():
            part = share(x[i], y[j])
            enough = (part > ROUNDING) & (part >= least - ROUNDING)  # edges that meet share nothing
            i, j = (i[enough], j[enough]) if x is a else (j[enough], i[enough])
            found.append((i, j, part[enough]))
        if a is b:
            break
    i, j, part = (np.concatenate(column) for column in zip(*found, strict=True))
    _, once = np.unique(i * max(len(b), 1) + j, return_index=True)
    return i[once], j[once], part[once]


@dataclass(frozen=True)
class _Sweep:
    """Which footprints b begin (going east) within which a: intervals ``start[k]`` to ``stop[k]`` of ``other``."""

    a: Floats
    b: Floats
    start: Ints
    stop: Ints
    other: Ints  # rows of b; interval k is of row k % len(a)

    @staticmethod
    def over(a: Floats, b: Floats, of_a: Ints, of_b: Ints, steps: Ints) -> "_Sweep":
        """For every row of a, those of b whose group differs by one of the steps."""
        again = np.flatnonzero(b[:, 0] + 360 <= a[:, 2].max(initial=0))  # within reach across the antimeridian
        west, row = np.concatenate([b[:, 0], b[again, 0] + 360]), np.concatenate([np.arange(len(b)), again])
        rising, room = np.sort(west), len(west) + 1
        key = of_b[row] * room + np.searchsorted(rising, west)
        order = np.argsort(key, kind="stable")
        base = (of_a + steps[:, None]) * room
        start = np.searchsorted(key[order], (base + np.searchsorted(rising, a[:, 0])).ravel())
        stop = np.searchsorted(key[order], (base + np.searchsorted(rising, a[:, 2], side="right")).ravel())
        return _Sweep(a, b, start, stop, row[order])

    def __len__(self) -> int:
        return int((self.stop - self.start).sum())

    def pairs(self) -> Iterator[tuple[Ints, Ints]]:
        """Rows of a and of b that also touch in latitude, some at a time."""
        ends = np.cumsum(self.stop - self.start)
        cuts = np.searchsorted(ends, np.arange(CHUNK, len(self), CHUNK))
        for first, last in pairwise(np.unique([0, *cuts, len(ends)]).tolist()):
            which, at = _expand(self.start[first:last], self.stop[first:last])
            i, j = (which + first) % len(self.a), self.other[at]
            level = (self.a[i, 1] <= self.b[j, 3]) & (self.b[j, 1] <= self.a[i, 3])
            yield i[level], j[level]


def _expand(start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """All whole numbers of intervals, and of which interval each is."""
    counts = stop - start
    which = np.repeat(np.arange(len(start)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + start[which]


# ranges of the Earth


def keys(box: Floats) -> Ints:
    """(n,) keys of the footprints' south-western corners."""
    return _key(box[:, 0], box[:, 1])


def touched(box: Floats, cuts: Ints) -> tuple[Ints, Ints]:
    """The ranges that footprints touch.

    Args:
        box: (n, 4) `boxes` without NaN.
        cuts: (ranges - 1,) keys, rising.

    Returns:
        rows and ranges, one pair each, sorted by range and row.
    """
    row, band = _bands(box)
    x = _around(box)[row]
    over = np.flatnonzero(x[:, 1] >= TURN)  # the part beyond the antimeridian
    first = np.concatenate([x[:, 0], np.zeros(len(over), np.int64)]) + TURN * np.append(band, band[over])
    last = np.concatenate([np.minimum(x[:, 1], TURN - 1), np.minimum(x[over, 1] - TURN, TURN - 1)])
    last += TURN * np.append(band, band[over])
    which, part = _expand(np.searchsorted(cuts, first, side="right"), np.searchsorted(cuts, last, side="right") + 1)
    row = np.append(row, row[over])[which]
    codes = np.unique(part * max(len(box), 1) + row)
    return codes % max(len(box), 1), codes // max(len(box), 1)


def _band(latitude: Floats) -> Ints:
    return np.clip((latitude + 90) // BAND, 0, BANDS - 1).astype(np.int64)


def _key(longitude: Floats, latitude: Floats) -> Ints:
    return _band(latitude) * TURN + np.minimum((longitude + 180) / 360 * TURN, TURN - 1).astype(np.int64)


def _around(box: Floats) -> Ints:
    """(n, 2) how far round west and east lie, in parts of a turn; east may lie beyond one."""
    return ((box[:, [0, 2]] + 180) / 360 * TURN).astype(np.int64)


def _bands(box: Floats) -> tuple[Ints, Ints]:
    """Rows and the bands that each touches."""
    low = _band(box[:, 1])
    return _expand(low, np.maximum(_band(box[:, 3]), low) + 1)


def _reaches(x: Ints, first: int, stop: int) -> NDArray[np.bool_]:
    """Which of `_around` touch a stretch of a band."""
    return ((x[:, 0] < stop) & (x[:, 1] >= first)) | (x[:, 1] - TURN >= first)


def crowded(tiles: Tiles, first: int, stop: int) -> int:
    """How many tiles that begin in a range have exactly the footprint of more than `CROWD` others."""
    own = tiles.box[_within(keys(tiles.box), first, stop)]
    _, counts = np.unique(own, axis=0, return_counts=True)
    return int(counts[counts > CROWD + 1].sum())


def _within(key: Ints, first: int, stop: int) -> NDArray[np.bool_]:
    return (key >= first) & (key < stop)


# pairs of a range


def place_pairs(tiles: Tiles, rule: Rule, first: int, stop: int) -> Pairs:
    """Pairs of one place whose overlap begins in a range, as far as they may decide anything.

    Args:
        tiles: all that touch the range (more does no harm), in any order.
        rule: what a place is.
        first: the range's first key.
        stop: the key after its last.
    """
    tiles = tiles.take(np.lexsort((tiles.lower, tiles.upper, -tiles.quality)))  # from here on the lower row is better
    stays, twin, of = _fold(tiles, rule)
    told = _within(keys(tiles.box[twin]), first, stop)
    twin, of = twin[told], of[told]
    better, worse = _pairs(tiles.take(stays), rule, first, stop)
    a, b = np.append(stays[better], of), np.append(stays[worse], twin)
    ids = np.stack([tiles.upper, tiles.lower], axis=1)
    return Pairs(ids[a], ids[b], np.stack([tiles.quality[a], tiles.quality[b]], 1), np.arange(len(a)) >= len(better))


def _fold(tiles: Tiles, rule: Rule) -> tuple[Ints, Ints, Ints]:
    """Of tiles of one footprint and time (or what the rule sees of it): the best few; the others; the best of these.

    What overlaps one of them overlaps all, so that a tile that has `Rule.best` better ones falls, whatever else there
    is, and for it stands what stands for the best of them.
    """
    key = [*tiles.box.T, rule.same(tiles.time)]
    order = np.lexsort(key)
    new = np.ones(len(order), bool)
    new[1:] = np.logical_or.reduce([np.diff(column[order]) != 0 for column in key])
    start = np.flatnonzero(new)[np.cumsum(new) - 1]
    more = np.arange(len(order)) - start >= rule.best
    return np.sort(order[~more]), order[more], order[start[more]]


def _pairs(tiles: Tiles, rule: Rule, first: int, stop: int) -> tuple[Ints, Ints]:
    """Rows of the better and of the worse of each pair, the best first; a stretch of a band at a time."""
    group, steps = rule.groups(tiles.time)
    x = _around(tiles.box)
    low, high = _band(tiles.box[:, 1]), _band(tiles.box[:, 3])
    row, band = _bands(tiles.box)
    order = np.argsort(band, kind="stable")
    row, band = row[order], band[order]
    found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for number in np.unique(band[(band >= first // TURN) & (band <= (stop - 1) // TURN)]).tolist():
        there = row[np.searchsorted(band, number) : np.searchsorted(band, number, side="right")]
        waiting = [(there, max(first - number * TURN, 0), min(stop - number * TURN, TURN))]
        while waiting:
            rows, start, end = waiting.pop()
            rows = rows[_reaches(x[rows], start, end)]
            box = tiles.box[rows]
            sweep = _Sweep.over(box, box, group[rows], group[rows], steps)
            middle = int(np.median(x[rows, 0])) if len(rows) else 0
            if len(sweep) > MOST and start < middle < end and not _reaches(x[rows], start, middle).all():
                waiting += [(rows, start, middle), (rows, middle, end)]
                continue
            some = tiles.take(rows)
            pairs = _confirmed(some, rule, sweep, number * TURN + start, number * TURN + end)
            inside = (low[rows] == high[rows]) & (x[rows, 0] >= start) & (x[rows, 1] < end)
            better, worse = _telling(*pairs, inside, rule.best)
            found.append((rows[better], rows[worse]))
    better, worse = (np.concatenate(column) for column in zip(*found, strict=True))
    return better, worse


def _confirmed(tiles: Tiles, rule: Rule, sweep: _Sweep, first: int, stop: int) -> tuple[Ints, Ints]:
    """The pairs of a sweep that are of one place and begin in a stretch; sorted by the worse, then the better."""
    codes = [np.empty(0, np.int64)]
    for i, j in sweep.pairs():
        other = i != j
        a, b = np.minimum(i, j)[other], np.maximum(i, j)[other]
        if rule.days is not None:
            near = (tiles.time[a] == UNKNOWN) | (np.abs(tiles.time[a] - tiles.time[b]) <= rule.reach)
            a, b = a[near], b[near]  # groups have told known from unknown
        here = _within(_begins(tiles.box[a], tiles.box[b]), first, stop)
        a, b = a[here], b[here]
        alike = share(tiles.box[a], tiles.box[b]) >= rule.overlap - ROUNDING
        codes.append(np.unique(b[alike] * len(tiles) + a[alike]))
    code = np.unique(np.concatenate(codes))
    return code % max(len(tiles), 1), code // max(len(tiles), 1)


def _begins(a: Floats, b: Floats) -> Ints:
    """The key where the overlap of a[i] and b[i] begins: one place, whichever comes first."""
    in_a = (b[:, 0] - a[:, 0]) % 360 <= a[:, 2] - a[:, 0]
    in_b = (a[:, 0] - b[:, 0]) % 360 <= b[:, 2] - b[:, 0]
    west = np.where(in_a & in_b, np.minimum(a[:, 0], b[:, 0]), np.where(in_a, b[:, 0], a[:, 0]))
    return _key(west, np.maximum(a[:, 1], b[:, 1]))


def _telling(better: Ints, worse: Ints, inside: NDArray[np.bool_], best: int) -> tuple[Ints, Ints]:
    """The pairs that may still matter when all is known.

    One that falls for certain matters to nobody; nor does, to one that falls for certain, who comes after those that
    decide it.
    """
    fate = _fates(better, worse, inside, best)
    some = fate[better] != FALLS
    better, worse = better[some], worse[some]
    above = np.cumsum(fate[better] == STAYS)
    first = np.searchsorted(worse, worse)  # of the pairs with the same worse one
    before = above - (fate[better] == STAYS) - np.append(0, above)[first]
    some = before < best
    return better[some], worse[some]


def _fates(better: Ints, worse: Ints, complete: NDArray[np.bool_], best: int) -> NDArray[np.int8]:
    """What becomes of each row, best first: `STAYS`, `FALLS`, or `OPEN`.

    Args:
        better: (n,) rows, and
        worse: (n,) those of their places that are worse; sorted by worse.
        complete: (rows,) whether all better ones of its place are among the pairs.
        best: how many of a place stay.
    """
    fate: list[int] = np.where(complete, STAYS, OPEN).tolist()
    rows, starts = np.unique(worse, return_index=True)
    known = complete.tolist()
    above = better.tolist()
    for row, (start, stop) in zip(rows.tolist(), pairwise([*starts.tolist(), len(worse)]), strict=True):
        fates = [fate[other] for other in above[start:stop]]
        certain = fates.count(STAYS)
        if certain >= best:
            fate[row] = FALLS
        else:
            fate[row] = STAYS if known[row] and certain + fates.count(OPEN) < best else OPEN
    return np.array(fate, np.int8)


# all together


def settle(pairs: Sequence[Pairs], best: int) -> Fallen:
    """Which samples fall, and for which others.

    Args:
        pairs: of all ranges, in any order.
        best: how many of a place stay.
    """
    better, worse, quality, twin = (
        np.concatenate([getattr(some, field.name) for some in pairs]) for field in fields(Pairs)
    )
    ids = np.concatenate([better, worse])
    order = np.lexsort((ids[:, 1], ids[:, 0], -quality.T.ravel()))
    new = np.ones(len(order), bool)
    new[1:] = (ids[order[1:]] != ids[order[:-1]]).any(axis=1)
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new) - 1
    ids = ids[order[new]]
    a, b = number[: len(better)], number[len(better) :]
    edges = np.unique(b[~twin] * max(len(ids), 1) + a[~twin])
    above, below = edges % max(len(ids), 1), edges // max(len(ids), 1)
    fate = _fates(above, below, np.ones(len(ids), bool), best)
    leader = np.arange(len(ids))  # the best that stays, of all that are of a row's place
    row, first = np.unique(below[fate[above] == STAYS], return_index=True)
    leader[row] = above[fate[above] == STAYS][first]
    leader[b[twin]] = leader[a[twin]]
    fate[b[twin]] = FALLS
    fallen = np.flatnonzero(fate == FALLS)
    fallen = fallen[np.lexsort((ids[fallen, 1], ids[fallen, 0]))]
    return Fallen(ids[fallen], ids[leader[fallen]])
