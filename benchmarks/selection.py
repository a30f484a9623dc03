"""A selection from 10 million catalog rows, over DuckDB's time for the same top-n-per-cluster query.

Both read the same Parquet files and write the kept rows (sorted by shard and
index) and a decision for every row, on the same cores. DuckDB is handed the
quotas and is asked for less: no rank, no weights, no thresholds, no hashes of
files. Ray runs already, as does DuckDB's connection. ``ratio`` is our seconds
over DuckDB's, median of paired runs; ``peak_gb`` is the sum of the
proportional set sizes of all our processes, Ray's included; ``growth`` is what
ten times the rows cost over one tenth of them.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.output import print_result
from curation.archive.sample import sample_id
from curation.catalog.store import CatalogStore
from curation.manifests.build import select
from curation.selection.quotas import cluster_weights, quotas
from curation.selection.settings import SelectConfig
from curation.storage import Folder

ROWS = 10_000  # a shard
PART = 32 * ROWS  # rows a part of the assignments
CLUSTERS = 10_000
BUDGET = 0.15
SETTINGS = SelectConfig(budget=BUDGET, duplicates=False, balance=0.5, representativeness=0.5)
MEAN, STD = 0.8, 0.28  # of the distances


def make_workspace(folder: Path, rows: int) -> None:
    """A catalog and its assignments as the earlier stages leave them, with a small embedding and no patches."""
    if (folder / "clusters/c/centroids.parquet").exists():
        return
    share = np.random.default_rng(0).lognormal(0, 1, CLUSTERS)
    task = ray.remote(_make_part)
    share /= share.sum()
    parts = [task.remote(folder, part, min(rows, (part + 1) * PART), share) for part in range(-(-rows // PART))]
    sizes = sum(ray.get(parts))
    table = {
        "cluster": pa.array(np.arange(CLUSTERS, dtype=np.int32)),
        "scene": pa.array([f"scene{i % 30}" for i in range(CLUSTERS)]),
        "size": pa.array(sizes),
        "distance_mean": pa.array(np.full(CLUSTERS, MEAN, np.float32)),
        "distance_std": pa.array(np.full(CLUSTERS, STD, np.float32)),
        "neighbours": pa.array([[(i + 1) % CLUSTERS] for i in range(CLUSTERS)], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(table), folder / "clusters/c/centroids.parquet")


def _make_part(folder: Path, part: int, stop: int, share: np.ndarray) -> np.ndarray:
    random = np.random.default_rng([1, part])
    cumulative = np.cumsum(share)
    assignments = []
    for first in range(part * PART, stop, ROWS):
        # every 32nd shard, as if by hash; the names of a part are sorted
        shard = f"root/T32TQM/{part % 7}/{part:05d}-{first // ROWS % 32:02d}.tar"
        number = np.arange(ROWS)
        keys = [f"S2A_T32TQM_{first + i:010d}" for i in number]
        size = random.integers(8_000, 14_000, ROWS)
        columns = {
            "sample_id": [sample_id(shard, key) for key in keys],
            "shard": pa.array([shard] * ROWS),
            "index": number,
            "key": keys,
            "offset": np.cumsum(size + 1024) - size,
            "size": size,
            "source_id": [f"S2A_T32TQM_{(first + i) // 100:08d}" for i in number],
            "label": [f"class{i}" for i in random.integers(0, 30, ROWS)],
            "entropy": random.normal(5, 1, ROWS).astype(np.float32),
            "embedding": pa.FixedSizeListArray.from_arrays(random.normal(size=8 * ROWS).astype(np.float16), 8),
        }
        path = folder / f"catalog/c/{shard}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, compression="zstd")
        assigned = {
            "cluster": np.searchsorted(cumulative, random.random(ROWS)).clip(max=CLUSTERS - 1).astype(np.int32),
            "distance": random.gamma(8, 0.1, ROWS).astype(np.float32),
        }
        assignments.append(pa.table({name: columns[name] for name in ("sample_id", "shard", "index")} | assigned))
    path = folder / f"clusters/c/assignments/part-{part:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.concat_tables(assignments)
    pq.write_table(table, path, compression="zstd")
    return np.bincount(table["cluster"].to_numpy(), minlength=CLUSTERS)


def ours(folder: Path, output: Path) -> float:
    """Seconds that the selection takes."""
    shutil.rmtree(output, ignore_errors=True)
    header: dict[str, Any] = {"content": {"config": {}}, "provenance": {}}
    workspace = Folder(str(folder))
    start = time.perf_counter()
    select(CatalogStore(workspace, "c"), workspace.child("clusters/c"), SETTINGS, 0, Folder(str(output)), header)
    return time.perf_counter() - start


def duck(folder: Path, output: Path, threads: int) -> float:
    """Seconds that DuckDB takes, in a process of its own."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_duck, (folder, output, threads)))


def _duck(folder: Path, output: Path, threads: int) -> float:
    """The fastest of several ways: windows over the narrow table, and a join with the catalog for each output."""
    sizes = pq.read_table(folder / "clusters/c/centroids.parquet", columns=["size"])["size"].to_numpy()
    quota = quotas(cluster_weights(sizes, SETTINGS.balance), sizes, int(BUDGET * sizes.sum() + 0.5))
    quota_table = pa.table({"cluster": np.arange(CLUSTERS, dtype=np.int32), "quota": quota})
    connection = duckdb.connect()
    connection.execute(f"SET threads={threads}; SET preserve_insertion_order=false; SET enable_progress_bar=false")
    connection.register("quotas", quota_table)
    start = time.perf_counter()
    connection.execute(f"""
        CREATE TEMP TABLE ranked AS
        SELECT sample_id, cluster, distance, priority, place <= quota AS kept FROM (
            SELECT *, row_number() OVER (PARTITION BY cluster ORDER BY priority, sample_id) AS place FROM (
                SELECT sample_id, cluster, distance, -ln((hash(sample_id)::DOUBLE + 1) / 18446744073709551617.0)
                    / exp(-0.5 * greatest(-3, least(3, (distance - {MEAN}) / {STD}))) AS priority
                FROM read_parquet('{folder}/clusters/c/assignments/*.parquet'))) JOIN quotas USING (cluster)""")
    joined = f"read_parquet('{folder}/catalog/**/*.parquet') JOIN ranked USING (sample_id)"
    connection.execute(f"""
        COPY (SELECT sample_id, shard, index, key, CASE WHEN kept THEN 'kept' ELSE 'dropped' END AS decision,
            CASE WHEN kept THEN 'sampled' ELSE 'quota' END AS reason, cluster, distance, entropy, priority
            FROM {joined})
        TO '{output}/decisions' (FORMAT parquet, COMPRESSION zstd, PER_THREAD_OUTPUT true)""")
    connection.execute(f"""
        COPY (SELECT sample_id, source_id, shard, index, "offset", size, key, cluster, distance, entropy, label
            FROM {joined} WHERE kept ORDER BY shard, index)
        TO '{output}/manifest.parquet' (FORMAT parquet, COMPRESSION zstd)""")
    return time.perf_counter() - start


class Memory:
    """The most that this process and all below it held while the block ran, in bytes."""

    def __enter__(self) -> "Memory":
        self.peak, self.driver = 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.3):
            held = {pid: _proportional_size(pid) for pid in _family(os.getpid())}
            self.peak = max(self.peak, sum(held.values()))
            self.driver = max(self.driver, held[os.getpid()])


def _family(parent: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            above = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(above, []).append(int(entry.parent.name))
    family = [parent]
    for pid in family:
        family += children.get(pid, [])
    return family


def _proportional_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    """Run both sides in turn and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "curation-benchmark-selection")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    os.environ.update(RAY_worker_niceness="0")  # as DuckDB's threads
    ray.init(num_cpus=cores, include_dashboard=False, object_store_memory=2 << 30, log_to_driver=False)
    figures = {}
    for rows in (options.rows // 10, options.rows):
        folder = options.folder / str(rows)
        make_workspace(folder, rows)
        with Memory() as memory:  # a run of its own, which also warms the workers: looking costs time
            ours(folder, options.folder / "ours")
        pairs = []
        for _ in range(options.repeats):
            pairs.append((ours(folder, options.folder / "ours"), duck(folder, options.folder / "duckdb", cores)))
            print(f"{rows} rows: {pairs[-1][0]:.1f} s, DuckDB {pairs[-1][1]:.1f} s", file=sys.stderr)
        figures[rows] = {
            "seconds": statistics.median(own for own, _ in pairs),
            "duckdb_seconds": statistics.median(other for _, other in pairs),
            "ratio": statistics.median(own / other for own, other in pairs),
            "peak_gb": memory.peak / 1e9,
            "driver_gb": memory.driver / 1e9,
            "pairs": pairs,
        }
    ray.shutdown()
    tenth, full = figures.values()
    growth = {name: full[name] / tenth[name] for name in ("seconds", "duckdb_seconds", "peak_gb", "driver_gb")}
    print_result(**full, rows=options.rows, tenth=tenth, growth=growth)


if __name__ == "__main__":
    main()
