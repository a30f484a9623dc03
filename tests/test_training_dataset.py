"""Tiles by row: those of the shards in sorted order, to a DataLoader's workers and out of a remote store too."""

import pickle

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from curation.catalog.tiles import Tiles
from curation.errors import RequestError
from curation.storage import Folder
from curation.training.dataset import TileDataset
from curation.training.index import KeepIndex
from curation.training.sampler import KeptSampler
from tests.training_recipes import COUNTS, write_tiles

TOTAL = sum(COUNTS.values())


def test_rows_count_the_shards_in_sorted_order(tmp_path):
    tiles = write_tiles(tmp_path)
    dataset = TileDataset(tiles, list(COUNTS))
    assert len(dataset) == TOTAL
    truth = np.concatenate([tiles.read(shard) for shard in sorted(COUNTS)])
    order = np.random.default_rng(0).permutation(TOTAL)
    assert np.array_equal(dataset.read(order), truth[order])
    assert dataset.read([]).shape == (0, 2, 4, 4)
    assert dataset[7].dtype == torch.uint8 and np.array_equal(dataset[7].numpy(), truth[7])
    for wrong in ([TOTAL], [-1]):
        with pytest.raises(RequestError, match=f"of {TOTAL}"):
            dataset.read(wrong)
    with pytest.raises(RequestError, match="root9 has no tiles"):
        TileDataset(tiles, [*COUNTS, "root9"])


def test_workers_read_what_the_sampler_keeps(tmp_path):
    index = KeepIndex.of(1, range(0, TOTAL, 2), None, TOTAL)
    sampler = KeptSampler(index, seed=0)
    dataset = pickle.loads(pickle.dumps(TileDataset(write_tiles(tmp_path), list(COUNTS))))  # as to a spawned worker
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=2)
    given = torch.cat(list(loader))
    assert given[:, 0, 0, 0].tolist() == list(sampler)
    assert given.is_contiguous() and given.shape == (12, 2, 4, 4)


def test_remote_tiles_come_by_ranges_or_are_copied_a_shard_at_a_time(tmp_path):
    made = write_tiles(tmp_path)
    store = fsspec.filesystem("memory")
    for file in made.folder.list():
        store.pipe_file(f"/tiles/{file.path}", made.folder.read(file.path))
    remote = Tiles(Folder("memory://tiles"), made.bands, made.size)
    rows = [3, 12, 2]
    truth = TileDataset(made, list(COUNTS)).read(rows)
    assert np.array_equal(TileDataset(remote, list(COUNTS)).read(rows), truth)
    assert np.array_equal(TileDataset(remote, list(COUNTS), tmp_path / "cache").read(rows), truth)
    assert len(list((tmp_path / "cache").iterdir())) == 2
