"""A swap of the keep-index at 10 million kept of 20 million rows: seconds and resident memory of a rank of eight.

From the call until the first row of the new pass is there. Ours opens a version on disk (its files held against
their hashes) and shuffles; theirs is what a script does otherwise, a ``torch.utils.data.DistributedSampler`` over
a ``Subset`` of the same rows, mapped too. Each side runs in a process of its own, all its swaps in turn.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, DistributedSampler, Subset

from benchmarks.output import print_result
from curation.storage import Folder
from curation.training.index import read_index, write_index
from curation.training.sampler import KeptSampler

TOTAL, KEPT, WORLD, RANK, SWAPS = 20_000_000, 10_000_000, 8, 3, 5
BATCH = 256

Pass = tuple[int, Iterator[int], Callable[[Any], Any] | None]  # length, rows, and what gives their weights


def ours(folder: str) -> Iterator[Pass]:
    """A pass a version."""
    versions = Folder(folder)
    sampler = KeptSampler(read_index(versions, 1), seed=0, rank=RANK, world=WORLD)
    for number in range(SWAPS + 1):
        sampler.set_pass(number, read_index(versions, number % 2 + 1))
        yield len(sampler), iter(sampler), sampler.weights_of


class Rows(Dataset[int]):
    """A data set that costs nothing."""

    def __len__(self) -> int:
        return TOTAL


def theirs(folder: str) -> Iterator[Pass]:
    """The same passes."""
    for number in range(SWAPS + 1):
        rows = np.load(Path(folder) / f"{number % 2 + 1:06d}" / "rows.npy", mmap_mode="r")
        sampler: DistributedSampler[int] = DistributedSampler(Subset(Rows(), rows), WORLD, RANK, seed=0)
        sampler.set_epoch(number)
        yield len(sampler), iter(sampler), None


def measure(side: Callable[[str], Iterator[Pass]], folder: str) -> dict[str, Any]:
    """Seconds of each swap but the first; resident megabytes more than before, after a pass and at most."""
    before, figures = resident("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far counts from here
    passes = side(folder)
    for _ in range(SWAPS + 1):
        began, used = time.perf_counter(), processor()
        _, rows, weights = next(passes)
        next(rows)
        figures.append((time.perf_counter() - began, processor() - used))
    swapped = resident("VmRSS") - before
    if weights is not None:
        weights([next(rows) for _ in range(BATCH)])
        for row in rows:
            last = row
        weights([last])
    seconds, cpu = (statistics.median(column) for column in zip(*figures[1:], strict=True))
    most = resident("VmHWM") - before
    return {"seconds": seconds, "cpu_seconds": cpu, "megabytes": swapped, "most_megabytes": most}


def resident(name: str) -> float:
    """Megabytes of this process, mapped files too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def processor() -> float:
    """Seconds of processor time so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Write two versions, then measure both sides."""
    with tempfile.TemporaryDirectory() as folder:
        for version in (1, 2):
            chosen = np.random.default_rng(version).permutation(TOTAL)[:KEPT]
            write_index(Folder(folder), version, np.sort(chosen), np.full(KEPT, 2.0), TOTAL, {"seed": version})
        found = {}
        for side in ("ours", "theirs"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.sampler", side, folder], capture_output=True, text=True, check=True
            )
            found[side] = json.loads(done.stdout)
    print_result(found["ours"]["seconds"] / found["theirs"]["seconds"], kept=KEPT, total=TOTAL, **found)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure({"ours": ours, "theirs": theirs}[sys.argv[1]], sys.argv[2])))
    else:
        main()
