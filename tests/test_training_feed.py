"""Tiles of each pass through Ray Data and Ray Train: the kept ones, once, by the keep-index of that pass."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
from ray.train.torch import TorchTrainer, prepare_data_loader
from torch.utils.data import DataLoader

from curation.errors import RequestError
from curation.manifests.reading import ManifestReader
from curation.storage import Folder
from curation.training import feed
from curation.training.feed import KeptTiles
from curation.training.index import KeepIndex, read_index, write_index
from curation.training.manifest import from_manifest
from curation.training.sampler import KeptSampler
from tests.kept import write_archive
from tests.training_recipes import COUNTS, blocks, own_dataset, write_tiles

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


@pytest.mark.usefixtures("ray_local")
def test_what_the_page_shows_of_ray_train(tmp_path, monkeypatch):
    """The feed of docs/training.md and the sampler of the README, in one loop of two workers."""
    kept, later = written(tmp_path, 1, range(0, TOTAL, 2)), written(tmp_path, 2, range(1, TOTAL, 2))
    made = kept_tiles(tmp_path, kept, monkeypatch)
    archive = write_archive(tmp_path / "own", shards=1, samples=60, size=300)
    told: dict[str, Any] = {"passes": 2, "index": kept, "dataset": own_dataset(archive), "ray": ray}
    told |= {"DataLoader": DataLoader, "KeptSampler": KeptSampler, "from_manifest": from_manifest}
    told |= {"prepare_data_loader": prepare_data_loader}
    sampler_lines = next(block for block in blocks("README.md", "KeptSampler") if "train_loop" in block)
    feed_lines = blocks("docs/training.md", "KeptTiles")[0]

    def loop(config: dict[str, Any]) -> None:
        names, rank = dict(told), ray.train.get_context().get_world_rank()
        batches: dict[str, list[Any]] = {"sampler": [], "feed": []}
        names["train"] = lambda batch: batches["sampler"].append(batch)
        exec(sampler_lines.replace("...", "train(batch)"), names)
        names["train_loop"](config)
        names["train"] = lambda batch: batches["feed"].append(batch[:, 0, 0, 0].tolist())
        exec(feed_lines.partition("\n\n\n")[2], names)
        names["feed_loop"](config)
        names |= {"index": later, "passes": 1}  # drawn meanwhile
        names["feed_loop"](config)
        (tmp_path / f"told-{rank}.json").write_text(json.dumps(batches))

    TorchTrainer(
        loop,
        train_loop_config={"feed": made, "manifest": str(archive.manifest)},
        datasets={"train": made.dataset()},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "runs")),
    ).fit()
    parts = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2)]
    keys = sorted(ManifestReader(str(archive.manifest)).table(["key"])["key"].to_pylist())
    each = -(-len(keys) // 2)  # of a rank in one of ten passes
    given = [sum(part["sampler"], []) for part in parts]
    assert [len(own) for own in given] == [10 * each] * 2
    for at in range(0, 10 * each, each):
        assert sorted({*given[0][at : at + each], *given[1][at : at + each]}) == keys
    shares = [sum(part["feed"], []) for part in parts]
    at = 0
    for index in (kept, kept, later):
        each = index.kept // 2
        given = [own[at : at + each] for own in shares]
        assert len({*given[0], *given[1]}) == 2 * each and {*given[0], *given[1]} <= set(index.rows.tolist())
        at += each
    assert [len(own) for own in shares] == [at] * 2
