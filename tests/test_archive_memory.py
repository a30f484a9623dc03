"""A reader's memory does not grow with the file: each format at one and ten times the size, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.containers import store, write_store, zip_store
from tests.recipes import npy, write_tar

SIZE = 512
_READ = """
import sys
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.settings import ArchiveConfig, TileConfig
modalities = ["A", "B"] if sys.argv[2] == "joined" else None
config = ArchiveConfig(modalities=modalities, tile=TileConfig(64 if sys.argv[2] == "scene" else None))
count = 0
for root in list_archive(sys.argv[1], settings=config):
    for shard in root.shards:
        for raw in read_shard(root.folder, shard, config):
            decode(raw, config)
            count += 1
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(count, int(peak.split()[1]) / 1024)
"""  # not ru_maxrss: it begins at that of the process that started this one


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 60_000, (count, SIZE, SIZE), np.uint16)


def parquet(folder: Path, count: int) -> None:
    """Rows in a single group, as careless writers leave them; its pages are as small as they should be."""
    rows = pa.chunked_array([[npy(tile)] for start in range(0, count, 4) for tile in noise(4, start)])
    how = {"compression": "NONE", "use_dictionary": False, "write_batch_size": 4}
    pq.write_table(pa.table({"image": rows}), folder / "a.parquet", **how)


def zarr_zip(folder: Path, count: int) -> None:
    arrays = {"bands": (noise(count), ("sample", "y", "x"), {"chunks": (4, SIZE, SIZE)})}
    (folder / "a.zarr.zip").write_bytes(zip_store(store(arrays)))


def scene(folder: Path, count: int) -> None:
    """One image that is cut."""
    pixels = noise(count).reshape(1, count * SIZE, SIZE)
    write_store(folder / "a.zarr", store({"bands": (pixels, ("band", "y", "x"), {"chunks": (1, 128, 128)})}))


def joined(folder: Path, count: int) -> None:
    for modality in "AB":
        write_tar(folder / modality / "0.tar", [(f"{i:05d}.npy", npy(tile)) for i, tile in enumerate(noise(count))])


@pytest.mark.parametrize("make", [parquet, zarr_zip, scene, joined], ids=lambda make: make.__name__)
def test_memory_does_not_grow_with_the_file(make: Callable[[Path, int], None], tmp_path: Path) -> None:
    peaks = []
    for count in (12, 120):  # 6 and 60 MiB of pixels
        folder = tmp_path / str(count)
        folder.mkdir()
        make(folder, count)
        command = [sys.executable, "-c", _READ, str(folder), make.__name__]
        said = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        read, peak = said.stdout.split()
        assert int(read) >= count
        peaks.append(float(peak))
    assert peaks[1] - peaks[0] < 20, peaks
