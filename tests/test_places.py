"""Places: the area that footprints share, and who stands for whom, the slow way and however the Earth is cut."""

import datetime
import math
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection import places
from curation.selection.footprints import boxes, unrolled
from curation.selection.places import (
    BANDS,
    DAY,
    STOP,
    TURN,
    UNKNOWN,
    Rule,
    Tiles,
    crowded,
    find_places,
    overlapping,
    share,
)

# areas


def column(*footprints: tuple[float, ...] | None) -> pa.Array:
    sides = ("west", "south", "east", "north")
    kind = pa.struct([(side, pa.float64()) for side in sides])
    return pa.array([None if f is None else dict(zip(sides, f, strict=True)) for f in footprints], kind)


def between(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    a, b = boxes(column(one, other))
    return float(share(a[None], b[None])[0])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 2, 1), (1, 0, 3, 1), 0.5),
        ((0, 0, 2, 1), (2, 0, 4, 1), 0),  # side by side
        ((0, 0, 1, 1), (-50, -50, 50, 50), 1),  # one within the other: the smaller counts
        ((179, 10, -179, 12), (-180, 10, -178, 12), 0.5),  # across the antimeridian
        ((179, 10, -179, 12), (178, 10, 180, 12), 0.5),
        ((-180, 80, 180, 90), (10, 89, 20, 90), 1),  # a cap around the pole
        ((10, 60, 11, 90), (10, 0, 11, 90), 1),
        ((10, 60, 11, 90), (10, 0, 11, 75), (math.sin(math.radians(75)) - 0.75**0.5) / (1 - 0.75**0.5)),
        ((-10, 0, 10, 90), (100, 0, 300 - 360, 90), 0),
        ((20, 0, -20, 1), (-30, 0, 30, 1), 20 / 60),  # two pieces: 10 degrees at either end
        ((5, 5, 5, 5), (5, 5, 5, 5), 1),  # points
        ((5, 5, 5, 5), (4, 4, 6, 6), 1),  # in an area
        ((5, 5, 5, 5), (5, 5, 6, 6), 1),  # on its edge
        ((5, 5, 5, 5), (5.1, 5, 6, 6), 0),
        ((180, 5, 180, 5), (179, 4, -179, 6), 1),
        ((5, 5, 7, 5), (4, 4, 6, 6), 0),  # a line that leaves it
    ],
)
def test_the_share_is_of_the_smaller_area_on_the_sphere(
    one: tuple[float, ...], other: tuple[float, ...], expected: float
) -> None:
    assert between(one, other) == pytest.approx(expected, abs=1e-12)
    assert between(other, one) == pytest.approx(expected, abs=1e-12)


def test_a_missing_or_infinite_side_is_no_footprint() -> None:
    found = boxes(column(None, (0, math.inf, 1, 2), (0, 1, math.nan, 2), (0, 1, 2, 3)))
    assert np.isnan(found).all(axis=1).tolist() == [True, True, True, False]


def random_boxes(random: np.random.Generator, number: int, size: float) -> np.ndarray:
    """Anywhere, most of them near the antimeridian, the poles or the origin."""
    size = size * (random.random(number) < 0.9)  # some are points
    longitude = random.choice([180, 0, -90], number) + random.uniform(-2, 2, number) * size
    latitude = np.clip(random.choice([89, -89, 0, 45], number) + random.uniform(-2, 2, number) * size, -90, 90)
    west = (longitude + 180) % 360 - 180
    east = (longitude + random.uniform(0, 2, number) * size + 180) % 360 - 180
    return np.stack([west, latitude, east, np.minimum(latitude + random.uniform(0, 2, number) * size, 90)], 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from([0, 0.3, 1]))
def test_the_sweep_finds_what_comparing_all_finds(seed: int, size: float, least: float) -> None:
    random = np.random.default_rng(seed)
    a, b = (unrolled(random_boxes(random, 40, size)) for _ in range(2))
    i, j, part = overlapping(a, b, least)
    every, other = (grid.ravel() for grid in np.meshgrid(np.arange(40), np.arange(40), indexing="ij"))
    expected = share(a[every], b[other])
    known = (expected > places.ROUNDING) & (expected >= least - places.ROUNDING)
    assert list(zip(i, j, strict=True)) == list(zip(every[known], other[known], strict=True))
    assert part.tolist() == expected[known].tolist()


# who stays


def make(box: Any, days: Any = None, quality: Any = None) -> Tiles:
    """Tiles whose ids rise; ``days`` since 1970, NaN where unknown."""
    n = len(box)
    days = np.zeros(n) if days is None else np.array(days, float)
    when = np.where(np.isnan(days), UNKNOWN, (np.nan_to_num(days) * DAY).astype(np.int64))
    number = np.arange(n, dtype=np.uint64)
    best = np.zeros(n, np.int64) if quality is None else np.array(quality, np.int64)
    return Tiles(number // np.uint64(3), number, unrolled(np.array(box, float).reshape(n, 4)), when, best)


def fallen(tiles: Tiles, rule: Rule, cuts: Any = ()) -> dict[int, int]:
    found = find_places(tiles, rule, cuts)
    return dict(zip(found.ids[:, 1].tolist(), found.of[:, 1].tolist(), strict=True))


def agree(rule: Rule, one: int, other: int) -> bool:
    if rule.season:
        seasons = [
            None
            if moment == UNKNOWN
            else ((datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(moment))).month % 12) // 3
            for moment in (one, other)
        ]
        return seasons[0] == seasons[1]
    if rule.days is None or one == other == UNKNOWN:
        return True
    return UNKNOWN not in (one, other) and abs(int(one) - int(other)) <= rule.days * DAY


def slowly(tiles: Tiles, rule: Rule) -> dict[int, int]:
    """The definition: best first, one falls if so many better ones of its place stay."""
    order = sorted(range(len(tiles)), key=lambda i: (-tiles.quality[i], tiles.upper[i], tiles.lower[i]))
    stays: list[int] = []
    found = {}
    for row in order:
        above = [
            other
            for other in stays
            if share(tiles.box[[row]], tiles.box[[other]])[0] >= rule.overlap - places.ROUNDING
            and agree(rule, tiles.time[row], tiles.time[other])
        ]
        if len(above) >= rule.best:
            found[int(tiles.lower[row])] = int(tiles.lower[above[0]])
        else:
            stays.append(row)
    return found


rules = st.builds(
    Rule,
    overlap=st.sampled_from([0.05, 0.4, 0.5, 1.0]),
    days=st.sampled_from([None, 0.5, 1, 40]),
    best=st.integers(1, 3),
) | st.builds(Rule, overlap=st.just(0.3), season=st.just(True), best=st.integers(1, 2))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 100_000), st.sampled_from([0.02, 0.3, 3.0]), rules, st.data())
def test_places_are_those_of_the_definition_however_the_earth_is_cut(
    seed: int, size: float, rule: Rule, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    some = random_boxes(random, int(random.integers(1, 40)), size)
    box = some[random.integers(0, len(some), 60)]  # several of exactly one footprint
    days = random.choice([np.nan, 0, 0.5, 1, 1.2, 3, 50, 100, 366], 60)
    tiles = make(box, days, random.integers(0, 4, 60))
    expected = slowly(tiles, rule)
    keys = places.keys(tiles.box)
    likely = st.sampled_from(sorted({*keys.tolist(), *(keys + 1).tolist()}))  # edges where tiles are
    cuts = sorted(data.draw(st.sets(likely | st.integers(1, STOP - 1), max_size=8)))
    shuffled = tiles.take(random.permutation(60))
    most = places.MOST
    places.MOST = data.draw(st.sampled_from([20, 300, most]))
    try:
        assert fallen(shuffled, rule, cuts) == expected
    finally:
        places.MOST = most
    stays = set(range(60)) - set(expected)
    assert set(expected.values()) <= stays  # who stands for others stands for himself


def test_a_strip_of_half_overlapping_tiles_keeps_every_second() -> None:
    box = [[k * 0.5, 0, k * 0.5 + 1, 1] for k in range(9)]
    assert fallen(make(box), Rule(0.5)) == {1: 0, 3: 2, 5: 4, 7: 6}
    assert fallen(make(box), Rule(0.51)) == {}
    assert fallen(make(box, quality=[0, 1] * 4 + [0]), Rule(0.5)) == {0: 1, 2: 1, 4: 3, 6: 5, 8: 7}


def test_times_agree_within_days_or_where_both_are_unknown() -> None:
    box = [[0, 0, 1, 1]] * 6
    tiles = make(box, [0, 1, 1.1, np.nan, np.nan, 2.2])
    assert fallen(tiles, Rule(0.5, days=1)) == {1: 0, 4: 3}  # 2 is too late for 0, and 5 for 2
    assert fallen(tiles, Rule(0.5)) == dict.fromkeys(range(1, 6), 0)
    assert fallen(tiles, Rule(0.5, best=4)) == {4: 0, 5: 0}


def test_the_best_of_each_season_of_any_year() -> None:
    dates = ["2020-01-15", "2021-12-31", "2020-03-01", "2019-05-31", "2020-06-01", "2020-11-30", "2021-09-01"]
    days = [(datetime.date.fromisoformat(date) - datetime.date(1970, 1, 1)).days for date in dates]
    tiles = make([[0, 0, 1, 1]] * 8, [*days, np.nan])
    assert fallen(tiles, Rule(0.5, season=True)) == {1: 0, 3: 2, 6: 5}


def test_thousands_of_tiles_with_a_whole_scenes_footprint_are_soon_compared() -> None:
    random = np.random.default_rng(0)
    scene = random.uniform(0, 1, (20, 2))
    box = np.concatenate([scene, scene + 1], 1)[random.integers(0, 20, 60_000)]
    tiles = make(box, random.integers(0, 3, 60_000), random.integers(0, 5, 60_000))
    begun = time.process_time()
    found = find_places(tiles, Rule(0.9, days=1))
    assert time.process_time() - begun < 20
    assert len(tiles) - len(found.ids) < 60
    assert crowded(tiles, 0, STOP) == 60_000
    assert crowded(tiles, 0, TURN * (BANDS // 2)) == 0


def test_what_a_range_tells_stays_small_where_everything_overlaps() -> None:
    random = np.random.default_rng(1)
    west = random.uniform(0, 0.01, (1000, 2)) + 0.05  # one place, no footprint twice, within one band
    tiles = make(np.concatenate([west, west + 0.1], 1), random.uniform(0, 3000, 1000), random.integers(0, 9, 1000))
    pairs = places.place_pairs(tiles, Rule(0.5), 0, STOP)
    assert len(pairs.better) == 999
    assert len(find_places(tiles, Rule(0.5)).ids) == 999
    few = places.place_pairs(tiles, Rule(0.5, best=5), 0, STOP)
    assert len(few.better) == 10 + 995 * 5


def test_nothing_in_nothing_out() -> None:
    assert len(find_places(make(np.empty((0, 4))), Rule(0.5, days=1), [5, 9]).ids) == 0
    assert [len(column) for column in overlapping(np.empty((0, 4)), np.empty((0, 4)))] == [0, 0, 0]
