"""Peak memory of the driver of ``curate prune`` from 10,000 to 1,000,000 samples.

Vectors are precomputed, so that the archive is small tars of text members and
the time is the pipeline's own. ``ratio`` is the larger run's peak over the smaller's.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.output import print_result

DIM = 16


def make_archive(folder: Path, shards: int, each: int) -> None:
    """Tars of ``each`` one-byte images, and their vectors by shard and key."""
    (folder / "archive").mkdir(parents=True)
    (folder / "vectors").mkdir()
    rng = np.random.default_rng(0)
    for shard in range(shards):
        name = f"{shard:05}.tar"
        keys = [f"{shard:05}_{index:05}" for index in range(each)]
        with tarfile.open(folder / "archive" / name, "w") as tar:
            for key in keys:
                info = tarfile.TarInfo(f"{key}.jpg")
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
        vectors = rng.standard_normal((each, DIM)).astype(np.float32)
        table = pa.table({"shard": [f"root0/{name}"] * each, "key": keys, "embedding": list(vectors)})
        pq.write_table(table, folder / "vectors" / f"{shard:05}.parquet")


def peak(folder: Path) -> tuple[float, float]:
    """Peak resident megabytes of the driver, and seconds."""
    command = [
        sys.executable,
        "-m",
        "curation.cli",
        "prune",
        f"archive.url={folder / 'archive'}",
        f"workspace={folder / 'workspace'}",
        "encoder=precomputed",
        f"encoder.path={folder / 'vectors'}",
        "cluster.k=256",
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    return usage.ru_maxrss / 1024, time.perf_counter() - start


def main() -> None:
    """Run both sizes and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=10)
    parser.add_argument("--large", type=int, default=1000)
    parser.add_argument("--each", type=int, default=1000, help="samples a shard")
    options = parser.parse_args()
    figures = {}
    for shards in (options.small, options.large):
        with tempfile.TemporaryDirectory() as name:
            make_archive(Path(name), shards, options.each)
            figures[shards * options.each] = peak(Path(name))
    (small, _), (large, _) = figures.values()
    print_result(
        ratio=large / small,
        more_megabytes=large - small,
        megabytes={str(samples): figure[0] for samples, figure in figures.items()},
        seconds={str(samples): figure[1] for samples, figure in figures.items()},
    )


if __name__ == "__main__":
    main()
