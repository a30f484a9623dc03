"""Groups beside the clusters: seasons of both hemispheres, months, years, regions, columns; what is not known."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.catalog.schema import FOOTPRINT
from curation.selection.groups import group_texts
from curation.selection.quotas import cluster_weights, quotas
from curation.selection.strategies import Items, by_weight, cluster_order, overall_order
from tests.test_selection_quotas import by_heap
from tests.test_selection_sampling import make_ids, split_ids


def rows(**columns: list) -> pa.Table:
    kinds = {"time": pa.timestamp("us", tz="UTC"), "footprint": FOOTPRINT}
    return pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})


def place(latitude: float, longitude: float = 10.0) -> dict[str, float]:
    return {"west": longitude, "south": latitude - 0.05, "east": longitude + 0.1, "north": latitude + 0.05}


def moment(month: int, day: int = 1, year: int = 2020) -> datetime.datetime:
    return datetime.datetime(year, month, day, tzinfo=datetime.UTC)


def test_seasons_are_the_hemisphere_s() -> None:
    times = [moment(month) for month in range(1, 13)]
    north = group_texts(["season"], rows(time=times, footprint=[place(50)] * 12), 1000).to_pylist()
    south = group_texts(["season"], rows(time=times, footprint=[place(-50)] * 12), 1000).to_pylist()
    assert north == ["winter"] * 2 + ["spring"] * 3 + ["summer"] * 3 + ["autumn"] * 3 + ["winter"]
    assert south == ["summer"] * 2 + ["autumn"] * 3 + ["winter"] * 3 + ["spring"] * 3 + ["summer"]
    unknown = rows(time=[None, moment(1), moment(1)], footprint=[place(1), None, place(0)])
    assert group_texts(["season"], unknown, 1000).to_pylist() == ["?", "?", "winter"]


def test_months_years_and_columns_beside_each_other() -> None:
    table = rows(
        time=[moment(2, 28, 2019), moment(12), None],
        label=["water", None, "town"],
        cover=[1.0, float("nan"), 2.5],
        night=[True, False, None],
    )
    assert group_texts(["year", "month", "label"], table, 1000).to_pylist() == [
        "2019 / 02 / water",
        "2020 / 12 / ?",
        "? / ? / town",
    ]
    assert group_texts(["cover", "night"], table, 1000).to_pylist() == ["1 / true", "? / false", "2.5 / ?"]


def test_regions_are_cells_of_equal_area_around_the_globe() -> None:
    draw = np.random.default_rng(2)
    latitude, longitude = np.degrees(np.arcsin(draw.uniform(-1, 1, 50_000))), draw.uniform(-180, 180, 50_000)
    table = rows(footprint=[place(a, o) for a, o in zip(latitude, longitude, strict=True)])
    _, counts = np.unique(group_texts(["region"], table, 2000).to_pylist(), return_counts=True)
    assert abs(len(counts) - 4 * np.pi * 6371**2 / 2000**2) < 4
    assert np.std(counts) / np.mean(counts) < 0.15
    across = rows(footprint=[{"west": 179.95, "south": 0, "east": -179.95, "north": 1}, place(0.5, -180.0), None])
    assert len(set(group_texts(["region"], across, 1000).to_pylist())) == 2
    names = [
        tuple(map(float, name.split()))
        for name in group_texts(["region"], rows(footprint=[place(45)]), 500).to_pylist()
    ]
    assert abs(names[0][0] - 45) < 3
    assert abs(names[0][1] - 10) < 5


# seats


STRATA = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=60)


def items_of(strata: list[tuple[int, int, bool]], groups: bool = True) -> Items:
    cluster, group, required = (np.array(column) for column in zip(*strata, strict=True))
    upper, lower = split_ids(make_ids(len(strata)))
    priority = np.random.default_rng(len(strata)).exponential(size=len(strata))
    required &= np.arange(len(strata)) % 5 == 0
    size = np.ones(len(strata), np.int64)
    made = Items(cluster.astype(np.int32), priority, required, upper, lower, size)
    return made._replace(group=group.astype(np.int32)) if groups else made


def keep(items: Items, budget: int, balance: float) -> tuple[np.ndarray, np.ndarray]:
    """Rank (-1: dropped) and threshold."""
    caps = np.bincount(items.stratum, minlength=4)
    floors = np.bincount(items.stratum[items.required], minlength=4)
    weights = cluster_weights(caps, balance)
    score, threshold = cluster_order(items, by_weight(weights), quotas(weights, caps, budget, floors), balance)
    rank = np.full(len(score), -1)
    there = ~np.isnan(score)
    chosen = Items(*(column[there] for column in items[:6]))
    rank[there], _ = overall_order(chosen, score[there], 0, budget)
    return rank, threshold


@settings(max_examples=200, deadline=None)
@given(STRATA, st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_cluster_s_seats_go_to_its_groups_one_by_one_by_the_same_rule(
    strata: list[tuple[int, int, bool]], share: float, balance: float
) -> None:
    items = items_of(strata)
    least = int(items.required.sum())
    budget = least + int(share * (len(strata) - least))
    rank, threshold = keep(items, budget, balance)
    kept = rank >= 0
    assert kept.sum() == budget
    assert items.group is not None
    for cluster in range(4):
        own = items.stratum == cluster
        seats = np.array([(kept & own & (items.group == group)).sum() for group in range(4)])
        caps = np.array([(own & (items.group == group)).sum() for group in range(4)])
        floors = np.array([(own & items.required & (items.group == group)).sum() for group in range(4)])
        np.testing.assert_array_equal(
            seats, by_heap(cluster_weights(caps, balance), caps, int(seats.sum()), floors.astype(np.int64))
        )
        for group in range(4):
            free = own & (items.group == group) & ~items.required
            refused = items.priority[free & ~kept]
            limits = set(threshold[own & (items.group == group)].tolist())
            assert len(refused) == 0 or limits == {refused.min()}
            assert len(refused) or np.isnan(list(limits)).all()
            assert items.priority[free & kept].max(initial=0) < refused.min(initial=np.inf)


@settings(max_examples=60, deadline=None)
@given(STRATA, st.sampled_from([0.0, 0.5, 1.0]))
def test_no_group_loses_a_seat_and_ranks_are_every_smaller_budget(
    strata: list[tuple[int, int, bool]], balance: float
) -> None:
    items = items_of(strata)
    full, _ = keep(items, len(strata), balance)
    for budget in range(int(items.required.sum()), len(strata)):
        rank, _ = keep(items, budget, balance)
        np.testing.assert_array_equal(rank, np.where(full < budget, full, -1))


@settings(max_examples=60, deadline=None)
@given(STRATA, st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_one_group_is_none(strata: list[tuple[int, int, bool]], share: float, balance: float) -> None:
    items = items_of(strata, groups=False)
    least = int(items.required.sum())
    budget = least + int(share * (len(strata) - least))
    one = keep(items._replace(group=np.zeros(len(strata), np.int32)), budget, balance)
    for found, expected in zip(one, keep(items, budget, balance), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("balance", "seats"), [(0.0, [1, 9]), (1.0, [5, 5])])
def test_balance_holds_between_groups_too(balance: float, seats: list[int]) -> None:
    items = items_of([(0, 0, False)] * 10 + [(0, 1, False)] * 90)
    rank, _ = keep(items, 10, balance)
    assert items.group is not None
    assert np.bincount(items.group[rank >= 0]).tolist() == seats
