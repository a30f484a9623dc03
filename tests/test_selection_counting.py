"""The threshold found by counting is the one that sorting finds, ties and all."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.counting import BINS, digits, histogram, sortable, threshold, up_to

FLOATS = st.one_of(st.sampled_from([0.0, -0.0, 1.5, 4.0, 4.0000005]), st.floats(-10, 10, width=32))


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1), st.sampled_from([np.float32, np.float64]))
def test_sortable_words_keep_the_order(values: list, dtype: type) -> None:
    floats = np.array([*values, np.inf, -np.inf], dtype)
    words = sortable(floats)
    np.testing.assert_array_equal(words[:, None] < words, floats[:, None] < floats)
    np.testing.assert_array_equal(words[:, None] == words, floats[:, None] == floats)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=60), st.integers(1, 4), st.data())
def test_exactly_the_smallest_pass_over_any_number_of_parts(values: list, parts: int, data: st.DataObject) -> None:
    value = np.array(values, np.float32)
    tie = np.random.default_rng(1).permutation(len(value)).astype(np.uint64) << np.uint64(40)
    keys = digits(sortable(value), tie)
    assert keys.shape == (len(value), 6)
    keep = data.draw(st.integers(1, len(value)))
    prefix = threshold(lambda p: sum(histogram(keys[i::parts], p) for i in range(parts)), keep, 6)
    passed = np.concatenate([up_to(keys[i::parts], prefix) for i in range(parts)])
    rows = np.concatenate([np.arange(len(value))[i::parts] for i in range(parts)])[passed]
    assert sorted(rows) == sorted(np.lexsort((tie, value))[:keep])


def test_a_float32_threshold_takes_two_passes_unless_rows_tie() -> None:
    value = np.random.default_rng(0).normal(5, 1, 100_000).astype(np.float32)
    passes = []

    def count(prefix: tuple[int, ...]) -> np.ndarray:
        passes.append(prefix)
        assert len(histogram(keys, prefix)) == BINS
        return histogram(keys, prefix)

    keys = digits(sortable(value), np.arange(len(value), dtype=np.uint64))
    threshold(count, 15_000, 6)
    assert len(passes) <= 6
    passes.clear()
    value = np.unique(value)
    keys = digits(sortable(value), np.zeros(len(value), np.uint64))
    prefix = threshold(count, 15_000, 6)
    assert len(passes) == 2
    assert up_to(keys, prefix).sum() == 15_000
