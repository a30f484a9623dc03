"""Who gets which sample: every position once, equal parts, a shuffle that a buffer could have made."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import RequestError
from curation.manifests.loaders.order import Lanes, Order, samples_per_rank
from curation.manifests.reading import ShardIndex

counts = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)


def index_of(kept: list[int]) -> ShardIndex:
    stop = np.cumsum(kept).astype(np.int64)
    names = pa.array([f"root0/{i}.tar" for i in range(len(kept))])
    return ShardIndex(names, stop - kept, stop, np.array(kept, np.int64))


def rows(order: Order, index: ShardIndex, start: int, stop: int) -> list[int]:
    return [run.rows[0] + run.first + i for run in order.runs(index, start, stop) for i in range(run.count)]


@settings(deadline=None)
@given(counts, st.integers(0, 5), st.integers(0, 3), st.sampled_from([0, 1, 7, 100]))
def test_an_epoch_is_every_row_once_and_begins_again_after_the_last(kept, seed, epoch, buffer):
    index, total = index_of(kept), sum(kept)
    order = Order(seed, epoch, buffer)
    whole = rows(order, index, 0, total)
    assert sorted(whole) == list(range(total))
    assert rows(order, index, 0, 2 * total + 1) == [*whole, *whole, whole[0]]
    assert rows(order, index, total // 3, total) == whole[total // 3 :]
    if buffer == 0:
        assert whole == list(range(total))


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 300), st.integers(1, 60), st.integers(0, 9))
def test_the_shuffle_needs_no_more_than_its_buffer(start, count, buffer, seed):
    given_order = Order(seed, 0, buffer).shuffled(start, start + count)
    assert sorted(given_order) == list(range(start, start + count))
    read = np.maximum.accumulate(given_order) - start + 1  # samples read when each is given
    assert (read - np.arange(count) <= buffer).all()


def test_seeds_and_epochs_give_different_orders_and_the_same_ones_again():
    index = index_of([20] * 30)
    seen = {
        (tuple(rows(order, index, 0, 600)), tuple(order.shuffled(0, 600)))
        for order in (Order(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1, 2))
    }
    assert len(seen) == 6
    assert (Order(1, 2, 100).shuffled(0, 600) == Order(1, 2, 100).shuffled(0, 600)).all()


def test_a_shards_place_depends_on_its_name_and_not_on_its_neighbours():
    many = index_of([1] * 50)
    few = ShardIndex(many.names.take(pa.array(range(0, 50, 2))), many.first[::2], many.stop[::2], many.counts[::2])
    order = Order(3, 1, 10)
    assert rows(order, few, 0, 25) == [row for row in rows(order, many, 0, 50) if row % 2 == 0]


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 16), st.integers(1, 6))
def test_lanes_hold_whole_batches_that_come_out_round_robin(samples, batch, workers):
    lanes = Lanes(samples, batch, workers)
    held = [list(range(lanes.start(w), lanes.start(w) + lanes.length(w))) for w in range(workers)]
    assert sorted(sum(held, [])) == list(range(samples))
    dealt = [0] * workers
    for number in range(-(-samples // batch)):
        seen = min(number * batch, samples)
        assert [lanes.given(w, seen) for w in range(workers)] == dealt
        expected = min(batch, samples - seen)
        assert lanes.length(number % workers) - dealt[number % workers] >= expected
        dealt[number % workers] += expected
    assert dealt == [lanes.length(w) for w in range(workers)]


def test_counts_per_rank():
    assert [samples_per_rank(10, ranks, True) for ranks in (1, 3, 4, 20)] == [10, 4, 3, 1]
    assert [samples_per_rank(10, ranks, False) for ranks in (1, 3, 4)] == [10, 3, 2]
    with pytest.raises(RequestError, match="pad=True"):
        samples_per_rank(10, 11, False)
