"""The order of a pass: the same on every rank, from any position, bit for bit, with any number of ranks."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from curation.errors import RequestError
from curation.storage import Folder
from curation.training.index import BLOCK, KeepIndex, read_index, write_index
from curation.training.sampler import KeptSampler, shuffled


def index(kept: int = 50, total: int = 200, version: int = 1) -> KeepIndex:
    rows = np.sort(np.random.default_rng(version).choice(total, kept, replace=False))
    return KeepIndex.of(version, rows, np.arange(1, kept + 1), total)


def ranks(world: int, one: KeepIndex, number: int = 0) -> list[list[int]]:
    samplers = [KeptSampler(one, seed=3, rank=rank, world=world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_pass(number)
    parts = [list(sampler) for sampler in samplers]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
    return parts


@given(st.integers(1, 300), st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_ranks_share_one_order_equally(kept, world, number):
    one = index(kept, 400)
    (whole,) = ranks(1, one, number)
    assert sorted(whole) == one.rows.tolist()
    parts = ranks(world, one, number)
    assert len({len(part) for part in parts}) == 1
    dealt = [row for step in zip(*parts, strict=True) for row in step]
    assert dealt[:kept] == whole
    assert len(dealt) - kept < world  # the first ones once more
    assert dealt[kept:] == (whole * world)[: len(dealt) - kept]


def test_the_order_is_of_seed_version_and_pass():
    drawn = itertools.product((1, 2), (0, 1), (0, 1))
    orders = [shuffled(index(version=version), seed, number).tolist() for version, seed, number in drawn]
    assert len({str(order) for order in orders}) == 8
    assert shuffled(index(), 1, 1).tolist() == shuffled(index(), 1, 1).tolist()


def test_any_order_is_equally_likely():
    """Of 4 rows all 24 orders come, about as often: 1,200 passes, chi-squared near its 99.99 % quantile."""
    one = index(4, 4)
    counts = Counter(tuple(shuffled(one, 0, number).tolist()) for number in range(1200))
    assert len(counts) == 24
    assert sum((n - 50) ** 2 / 50 for n in counts.values()) < 57


def test_large_passes_are_permutations():
    rows = np.flatnonzero(np.random.default_rng(0).random(3 * BLOCK) < 0.7)
    order = shuffled(KeepIndex.of(1, rows, None, 3 * BLOCK), 0, 0)
    assert np.array_equal(np.sort(order), rows)
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.01
    assert np.array_equal(np.sort(shuffled(KeepIndex.full(2 * BLOCK), 0, 0)), np.arange(2 * BLOCK))


def test_it_drops_into_a_loader():
    dataset = TensorDataset(torch.arange(200))
    sampler = KeptSampler(index(), seed=0)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler, num_workers=2)
    seen = []
    for number in range(2):
        sampler.set_pass(number, index(version=number + 1))
        seen.append(torch.cat([batch for (batch,) in loader]).tolist())
        assert sorted(seen[-1]) == index(version=number + 1).rows.tolist()
        assert sampler.weights_of(sorted(seen[-1])).tolist() == list(range(1, 51))
    assert seen[0] != seen[1]


def test_a_folder_gives_its_newest_version_at_each_pass(tmp_path):
    folder = Folder(str(tmp_path))
    write_index(folder, 1, [1, 2, 3], [1, 1, 1], 10, {})
    sampler = KeptSampler(folder, seed=0)
    write_index(folder, 2, [4, 5], [1, 1], 10, {})
    assert sorted(sampler) == [1, 2, 3]
    sampler.set_pass(1)
    assert sorted(sampler) == [4, 5]
    sampler.set_pass(2, read_index(folder, 1))
    assert sorted(sampler) == [1, 2, 3]


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.data())
@settings(max_examples=40, deadline=None)
def test_any_number_of_ranks_goes_on_at_any_position(kept, before, after, data):
    one = index(kept, 100)
    first = [KeptSampler(one, seed=3, rank=rank, world=before) for rank in range(before)]
    for sampler in first:
        sampler.set_pass(2)
    (whole,) = ranks(1, one, 2)
    taken = data.draw(st.integers(0, len(first[0])))
    states = [json.loads(json.dumps(sampler.state_dict(taken))) for sampler in first]
    assert all(state == states[0] for state in states)
    second = [KeptSampler(one, seed=3, rank=rank, world=after) for rank in range(after)]
    for sampler in second:
        sampler.load_state_dict(states[0])
        sampler.set_pass(2)  # as the loop over passes does
    parts = [list(sampler) for sampler in second]
    assert [len(part) for part in parts] == [len(sampler) for sampler in second]
    rest = [row for step in zip(*parts, strict=True) for row in step]
    left = whole[taken * before :]
    assert rest[: len(left)] == left and len(rest) - len(left) < after
    again = second[0].state_dict(min(1, len(second[0])))  # and is stopped once more
    assert again["position"] == min(kept, states[0]["position"] + (after if left else 0))
    second[0].set_pass(3)
    assert len(second[0]) == -(-kept // after)


def test_a_state_knows_its_version_of_the_folder(tmp_path):
    folder = Folder(str(tmp_path))
    write_index(folder, 1, range(0, 90, 3), None, 90, {})
    sampler = KeptSampler(folder, seed=0)
    whole, state = list(sampler), sampler.state_dict(11)
    write_index(folder, 2, range(5), None, 90, {})
    again = KeptSampler(folder, seed=0)
    assert again.index.version == 2
    again.load_state_dict(state)
    again.set_pass(0)
    assert list(again) == whole[11:]
    again.set_pass(1)
    assert again.index.version == 2


def test_another_order_is_refused():
    state = KeptSampler(index(), seed=0).state_dict(3)
    with pytest.raises(RequestError, match="taken with seed=0"):
        KeptSampler(index(), seed=1).load_state_dict(state)
    with pytest.raises(RequestError, match="version 1 of a keep-index.*this is version 2"):
        KeptSampler(index(version=2), seed=0).load_state_dict(state)
    with pytest.raises(RequestError, match="NumPy shuffles otherwise"):
        KeptSampler(index(), seed=0).load_state_dict(state | {"order": 1})


def test_requests_that_cannot_be(monkeypatch):
    sampler = KeptSampler(index(), seed=0, rank=1, world=4)
    for taken in (-1, 14):
        with pytest.raises(RequestError, match="13 samples"):
            sampler.state_dict(taken)
    for wrong in ({"rank": 0}, {"rank": 2, "world": 2}):
        with pytest.raises(RequestError, match="rank"):
            KeptSampler(index(), seed=0, **wrong)
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun, before init_process_group: each rank would give all
    with pytest.raises(RequestError, match="init_process_group"):
        KeptSampler(index(), seed=0)


def test_an_old_iterator_does_not_mix_passes(monkeypatch):
    monkeypatch.setattr("curation.training.sampler.TOLD", 8)
    sampler = KeptSampler(index(), seed=0)
    old = iter(sampler)
    next(old)
    sampler.set_pass(1)
    with pytest.raises(RequestError, match="make a new iterator"):
        list(old)
