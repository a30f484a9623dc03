"""What dynamic pruning costs at the default schedule: ``python -m benchmarks.pruner``.

``ratio`` is the share of a run of ``curate pretrain`` that goes into embedding, clustering and drawing. Each part is
measured with what the job itself runs: steps of `Trainer` (the second and later), and a whole `redraw` of the archive
with the exported encoder on a local Ray, its actors' start included. The schedule then says how often each happens.
SimSiam is the worse case, DINO the default: its steps cost more, so a draw is less of them.
"""

import argparse
import hashlib
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import safetensors.numpy
import torch

from benchmarks.output import print_result
from curation.catalog.store import CatalogStore, parquet_bytes
from curation.catalog.tiles import Tiles
from curation.storage import Folder
from curation.training.export import Input, encoder_bytes, open_encoder
from curation.training.pruner import RedrawSpec, redraw
from curation.training.settings import PretrainConfig, PruneConfig
from curation.training.trainer import Trainer

BANDS, SHARD = 3, 1000
ENCODER = "encoder.safetensors"
KINDS = 100  # of tiles, in sizes that fall like 1 / rank


def write_archive(folder: Folder, rows: int, size: int) -> tuple[Tiles, CatalogStore, tuple[str, ...]]:
    """Tiles of smooth patterns with noise, and as much of a catalog as draws read."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(128, 50, (KINDS, BANDS, 8, 8)).repeat(size // 8, 2).repeat(size // 8, 3)
    share = 1 / (1 + np.arange(KINDS))
    tiles, store = Tiles(folder.child("tiles/0"), BANDS, size), CatalogStore(folder, "0")
    shards = []
    for start in range(0, rows, SHARD):
        shard, count = f"root0/{start:09}.tar", min(SHARD, rows - start)
        pixels = coarse[rng.choice(KINDS, count, p=share / share.sum())] + rng.normal(0, 20, (count, BANDS, size, size))
        made = {"tiles": pixels.clip(0, 255).astype(np.uint8)}
        tiles.folder.publish(tiles.path(shard), safetensors.numpy.save(made, {"digest": ""}))
        ids = [hashlib.blake2b(f"{start + i}".encode(), digest_size=16).hexdigest() for i in range(count)]
        store.own.publish(store.path(shard), parquet_bytes(pa.table({"sample_id": ids})))
        shards.append(shard)
    return tiles, store, tuple(shards)


@ray.remote
def train(folder: Folder, settings: PretrainConfig, tiles: Tiles, shard: str, steps: int, device: str) -> float:
    """Seconds of a step; in a Ray worker, as in the job. Leaves the encoder in the run's folder."""
    torch.set_num_threads(settings.threads)
    mean, std = (128.0,) * BANDS, (50.0,) * BANDS
    trainer = Trainer(settings, BANDS, mean, std, steps=steps + 1, seed=0, device=device)
    batch = torch.from_numpy(np.array(tiles.read(shard, slice(settings.batch))))
    seconds = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        trainer.step(batch)  # its loss is a number here: the device is done
        seconds.append(time.perf_counter() - begin)
    what = Input(("R", "G", "B"), settings.size, mean, std, ((0.0, 255.0),) * BANDS, (0.0,) * BANDS)
    folder.publish(ENCODER, encoder_bytes(trainer.method.encoder, what, settings.architecture))
    return median(seconds[1:])


def measure(folder: Folder, settings: PretrainConfig, rows: int, steps: int, device: str) -> dict[str, Any]:
    """Seconds of an epoch and of a draw, and the share of the draws in a run."""
    tiles, store, shards = write_archive(folder, rows, settings.size)
    run, gpus = folder.child("run"), 0.5 * (device == "cuda")
    step = ray.get(train.options(num_gpus=gpus).remote(run, settings, tiles, shards[0], steps, device))
    epoch = step * rows / settings.batch
    spec = RedrawSpec(tiles, store, shards, run, settings.prune, 0, open_encoder, gpus=gpus)
    begin = time.perf_counter()
    parts = redraw(spec, 1, ENCODER)
    drawn = time.perf_counter() - begin
    prune = settings.prune
    times = len(np.arange(prune.warm, settings.epochs, prune.every))
    share = times * drawn / (times * drawn + settings.epochs * epoch)
    return {"share": share, "step": step, "epoch": epoch, "draw": drawn, "draws": times, **parts}


def main() -> None:
    """Run it; the last line of stdout is one JSON object with ``ratio``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=4, help="timed, of each method")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=500 << 20)
    figures = {}
    for method in ("simsiam", "dino"):
        settings = PretrainConfig(method=method, prune=PruneConfig("balanced"))
        with tempfile.TemporaryDirectory() as folder:
            figures[method] = measure(Folder(str(Path(folder))), settings, given.rows, given.steps, given.device)
    ray.shutdown()
    print_result(max(one["share"] for one in figures.values()), **vars(given), methods=figures)


if __name__ == "__main__":
    main()
