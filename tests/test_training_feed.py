"""Tiles of each pass through Ray Data and Ray Train: the kept ones, once, by the keep-index of that pass."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
from ray.train.torch import TorchTrainer

from curation.errors import RequestError
from curation.storage import Folder
from curation.training import feed
from curation.training.feed import KeptTiles
from curation.training.index import KeepIndex, read_index, write_index
from tests.training_recipes import COUNTS, write_tiles

TOTAL = sum(COUNTS.values())


def kept_tiles(folder: Path, index: KeepIndex, monkeypatch: pytest.MonkeyPatch) -> KeptTiles:
    """In slots of three tiles."""
    tiles = write_tiles(folder)
    monkeypatch.setattr(feed, "BLOCK_BYTES", 3 * tiles.nbytes)
    return KeptTiles(tiles, list(COUNTS), index, seed=0)


def written(folder: Path, version: int, rows: Any) -> KeepIndex:
    versions = Folder(str(folder / "index"))
    write_index(versions, version, rows, np.arange(1, len(rows) + 1), TOTAL, {})
    return read_index(versions, version)


@pytest.mark.usefixtures("ray_local")
def test_each_pass_gives_its_kept_tiles_in_one_order(tmp_path, monkeypatch):
    first, second = written(tmp_path, 1, range(0, TOTAL, 2)), written(tmp_path, 2, [3, 20])
    made = kept_tiles(tmp_path, first, monkeypatch)
    assert made.slots == 8
    dataset, orders = made.dataset(), []
    for number, index in enumerate((first, first, second, KeepIndex.full(TOTAL))):  # fewer rows than slots, and all
        made.set_pass(number, index)
        rows = dataset.take_all()
        orders.append([row["row"] for row in rows])
        assert sorted(orders[-1]) == index.rows.tolist()
        assert [row["weight"] for row in rows] == index.weights_of(orders[-1]).tolist()
        assert [row["tile"][0, 0, 0] for row in rows] == orders[-1]
        assert rows[0]["tile"].shape == (2, 4, 4) and rows[0]["tile"].dtype == np.uint8
    assert orders[0] != orders[1]
    made.set_pass(0, first)
    assert [row["row"] for row in dataset.take_all()] == orders[0]
    with pytest.raises(RequestError, match=f"of 5 samples, the tiles are of {TOTAL}"):
        made.set_pass(1, KeepIndex.full(5))


def loop(config: dict[str, Any]) -> None:
    """Two passes of a Ray Train worker, the second of another version."""
    rank, folder = ray.train.get_context().get_world_rank(), Path(config["folder"])
    shard = ray.train.get_dataset_shard("train")
    for number in range(2):
        if rank == 0:
            config["feed"].set_pass(number, read_index(Folder(str(folder / "index")), number + 1))
        told = [
            (batch["row"].tolist(), batch["tile"][:, 0, 0, 0].tolist())
            for batch in shard.iter_torch_batches(batch_size=4)
        ]
        (folder / f"told-{rank}-{number}.json").write_text(json.dumps(told))


@pytest.mark.usefixtures("ray_local")
def test_ray_train_workers_share_each_pass(tmp_path, monkeypatch):
    kept = [range(0, TOTAL, 2), range(1, TOTAL, 3)]
    first, _ = (written(tmp_path, version, rows) for version, rows in enumerate(kept, 1))
    made = kept_tiles(tmp_path, first, monkeypatch)
    trainer = TorchTrainer(
        loop,
        train_loop_config={"feed": made, "folder": str(tmp_path)},
        datasets={"train": made.dataset()},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "runs")),
    )
    trainer.fit()
    for number, rows in enumerate(kept):
        parts = [json.loads((tmp_path / f"told-{rank}-{number}.json").read_text()) for rank in range(2)]
        shares = [[row for batch, _ in part for row in batch] for part in parts]
        assert all(batch == tiles for part in parts for batch, tiles in part)
        assert len(shares[0]) == len(shares[1]) == len(rows) // 2
        assert len({*shares[0], *shares[1]}) == 2 * (len(rows) // 2)
        assert {*shares[0], *shares[1]} <= set(rows)
