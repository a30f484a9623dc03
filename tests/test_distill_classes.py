"""The classes of a labelled archive, how they are divided, and the batches that are drawn of them; no Ray."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.distillation.classes import Classes, Members, hold_out, join, warn_of_small
from curation.distillation.training import Draws
from curation.errors import RequestError
from curation.storage import Folder

CHANCE = np.random.default_rng(0).random(4000)


def coded(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def test_names_of_several_parts_are_joined_in_their_order_as_text() -> None:
    parts = [(["town", "9"], np.array([0, 1, -1], np.int32), CHANCE[:3]), (["10"], np.array([0], np.int32), CHANCE[:1])]
    names, codes = join(parts, "label")
    assert names == ["10", "9", "town"]
    assert codes.tolist() == [2, 1, -1, 0]


@pytest.mark.parametrize(
    ("names", "words"), [([], "label no sample has one"), (["town"], "all labelled samples are 'town'")]
)
def test_fewer_than_two_classes_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        join([(names, np.full(3, len(names) - 1, np.int32), CHANCE[:3])], "label")


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.floats(0, 0.99))
def test_of_each_class_the_asked_share_is_held_out_and_never_all(counts: list[int], holdout: float) -> None:
    codes = np.append(coded(*counts), [-1, -1]).astype(np.int32)
    held = hold_out(codes, CHANCE[: len(codes)], holdout)
    assert not held[codes < 0].any()
    for code, count in enumerate(counts):
        assert held[codes == code].sum() == min(round(holdout * count), count - 1)


def test_a_row_is_held_out_by_its_own_number_whatever_the_order() -> None:
    codes, turned = coded(30, 50), np.random.default_rng(1).permutation(80)
    held = hold_out(codes, CHANCE[:80], 0.25)
    assert np.array_equal(hold_out(codes[turned], CHANCE[:80][turned], 0.25), held[turned])


def test_the_rows_of_each_class_are_those_that_count() -> None:
    codes = np.array([2, 0, 2, -1, 2, 0], np.int32)
    members = Members(codes, np.array([True, True, False, False, True, True]))
    assert members.rows.tolist() == [1, 5, 0, 4]
    assert members.codes.tolist() == [0, 0, 2, 2]
    assert [members.of(code).tolist() for code in range(4)] == [[1, 5], [], [0, 4], []]


def test_of_an_imbalance_of_one_to_a_thousand_classes_come_evenly() -> None:
    codes = coded(1, 1000, 3)
    rows = np.concatenate([Draws(codes, 64, seed=0).rows(step) for step in range(30)])
    assert set(np.bincount(codes[rows]).tolist()) == {640}
    assert len(np.unique(rows[codes[rows] == 1])) == 640  # no row twice before all were drawn


def test_small_classes_get_as_many_images_as_they_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = tuple(f"class {number}" for number in range(9))
    classes = Classes(Folder(str(tmp_path)), names, (1, 2, 3, 4, 5, 6, 7, 10, 20), (0,) * 9)
    assert classes.images(10) == (1, 2, 3, 4, 5, 6, 7, 10, 10)
    with caplog.at_level(logging.WARNING):
        warning = warn_of_small(classes, 10)
    assert warning is not None
    assert "7 of 9 classes have fewer samples than distill.ipc=10" in warning
    assert "class 0 1, class 1 2, class 2 3, class 3 4, class 4 5 and 2 more" in warning
    assert warning in caplog.text
    assert warn_of_small(classes, 1) is None
