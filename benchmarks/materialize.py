"""MB/s of materialising 15 % of tars over a plain loop of tarfile that copies the same samples, one process each.

Ours reads ranges by the manifest and the catalog, mixes the order, adds the manifest's columns to each sample and
hashes twice; the loop goes through the whole shards in their order. Counted are seconds of processor time (what a
busy machine does not change) and on the clock, files in the page cache. ``ratio`` is the least of the sizes.
"""

import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.output import print_result
from curation.archive.names import split_name
from tests.kept import Archive, write_archive
from tests.materialized import write

SIZES = {10_000: 6000, 50_000: 3000, 500_000: 300}  # bytes of an image: samples a shard
SHARDS, SHARE, REPEATS, SHARD_BYTES = 6, 0.15, 5, 64 << 20


def ours(archive: Archive, dest: Path) -> None:
    """As the job does it, shard after shard."""
    write(str(archive.manifest), dest, f"bytes={SHARD_BYTES}")


def theirs(archive: Archive, dest: Path) -> None:
    """Every member of every tar, and those of the kept samples into a new one for each."""
    rows = pq.read_table(archive.manifest / "manifest.parquet", columns=["shard", "key"]).to_pylist()
    kept = {(row["shard"].removeprefix("root0/"), row["key"]) for row in rows}
    dest.mkdir()
    for path in sorted(archive.root.rglob("*.tar")):
        name = str(path.relative_to(archive.root))
        with tarfile.open(path) as tar, tarfile.open(dest / path.name, "w") as out:
            for member in tar:
                if (name, split_name(member.name)[0]) in kept and not member.name.endswith(".pkl"):
                    out.addfile(member, tar.extractfile(member))


def measure(side: Callable[[Archive, Path], None], archive: Archive) -> tuple[float, float]:
    """Seconds of processor time and on the clock."""
    with tempfile.TemporaryDirectory() as folder:
        began, used = time.perf_counter(), time.process_time()
        side(archive, Path(folder) / "dest")
        return time.process_time() - used, time.perf_counter() - began


def compare(size: int, samples: int) -> dict[str, Any]:
    """Both sides in turn over one archive."""
    with tempfile.TemporaryDirectory() as folder:
        archive = write_archive(Path(folder), SHARDS, samples, SHARE, loose=0, size=size, group=1 << 14)
        megabytes = sum(len(data) for files in archive.files.values() for data in files.values()) / 1e6
        pairs = [(measure(ours, archive), measure(theirs, archive)) for _ in range(REPEATS + 1)][1:]
    (cpu, clock), (loop_cpu, loop_clock) = (
        tuple(statistics.median(pair[side][i] for pair in pairs) for i in range(2)) for side in range(2)
    )
    return {
        "bytes": size,
        "megabytes": megabytes,
        "megabytes_per_second": megabytes / clock,
        "of_the_loop": megabytes / loop_clock,
        "ratio": statistics.median(b[0] / a[0] for a, b in pairs),
        "ratio_on_the_clock": statistics.median(b[1] / a[1] for a, b in pairs),
        "cpu_seconds": cpu,
        "cpu_seconds_of_the_loop": loop_cpu,
    }


if __name__ == "__main__":
    found = [compare(size, samples) for size, samples in SIZES.items()]
    print_result(min(one["ratio"] for one in found), sizes=found)
