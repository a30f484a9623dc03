"""What a training script does with the sampler, one process a rank: ``python -m tests.training_script JOB FOLDER``.

``RANK`` and ``WORLD_SIZE`` are set, as by torchrun. Each rank tells what it trains on in ``rank<r>.jsonl``.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from curation.errors import CurationError
from curation.storage import Folder
from curation.training.index import read_index
from curation.training.sampler import KeptSampler

TOTAL, BATCH, PASSES, EVERY, SEED = 400, 5, 3, 4, 11  # EVERY: batches between checkpoints


def train(folder: Path) -> None:
    """Three passes with two workers, a checkpoint now and then; goes on from the last one."""
    run = int(os.environ["RUN"])
    log = open(folder / f"rank{dist.get_rank()}.jsonl", "a")  # noqa: SIM115
    checkpoint = folder / "checkpoint.json"
    sampler = KeptSampler(Folder(str(folder / "index")), seed=SEED)
    loader = DataLoader(TensorDataset(torch.arange(TOTAL)), BATCH, sampler=sampler, num_workers=2)
    if checkpoint.exists():
        sampler.load_state_dict(json.loads(checkpoint.read_text()))
    for number in range(sampler.number, PASSES):
        sampler.set_pass(number)
        for i, (rows,) in enumerate(loader, 1):
            dist.all_reduce(rows.sum())  # as the gradients are
            line = {"run": run, "pass": number, "version": sampler.index.version, "rows": rows.tolist()}
            print(json.dumps(line), file=log, flush=True)
            if i % EVERY == 0 and dist.get_rank() == 0:
                checkpoint.with_suffix(".tmp").write_text(json.dumps(sampler.state_dict(i * BATCH)))
                checkpoint.with_suffix(".tmp").rename(checkpoint)
            time.sleep(float(os.environ.get("PAUSE", 0)))


def disagree(folder: Path) -> None:
    """Makes samplers over the rank's own folders, and prints what each comes to."""
    own = folder / f"rank{dist.get_rank()}"
    for name in ("same", "other", "older", "damaged"):
        try:
            sampler = KeptSampler(Folder(str(own / name)), seed=SEED)
            print(f"version {sampler.index.version}", flush=True)
        except CurationError as error:
            print(error, flush=True)
    try:
        KeptSampler(read_index(Folder(str(own / "other"))), seed=SEED)
    except CurationError as error:
        print(error, flush=True)


if __name__ == "__main__":
    job, place = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = f"file://{place / 'ranks'}-{os.environ['RUN']}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    {"train": train, "disagree": disagree}[job](place)
    dist.destroy_process_group()
