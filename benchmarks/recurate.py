"""What a night costs: `curate recurate` of 1 % new shards against the first `curate prune`, at several sizes.

Vectors are precomputed and shards are Parquet of images that nothing decodes, so that the time is the pipeline's own.
``ratio`` is the largest, over the sizes and stores, of (seconds of taking in 1 % new shards - start-up) / seconds of
the first run. Start-up is the same command taking in one shard of one sample, where the archive is one of 100 shards:
whatever must be started (Ray, workers, an encoder) has been.

``--listing N``: instead, seconds to tell the new shards among N on S3 over those of a bare paginated listing of them.
``--entries N``: instead, peak memory of a process that compares a listing of N shards with the last ledger.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.output import print_result
from curation.archive.listing import list_archive
from curation.archive.shards import Shard
from curation.catalog.sources import COUNTS, SOURCES_SCHEMA, compare, listed_table
from curation.storage import FileInfo
from tests.s3 import ENVIRONMENT, S3, s3_server

DIM = 64
JPEG = b"\xff\xd8\xff\xe0"  # what tells that a column holds images; nothing decodes them
BUNDLE = 100  # shards whose vectors lie in one file


class Place:
    """Archive, vectors and workspace of one size, on disk or in S3."""

    def __init__(self, url: str, storage: dict[str, Any]) -> None:
        self.url, self.storage = url, storage
        protocol = url.split("://", 1)[0] if "://" in url else "file"
        self.fs = fsspec.filesystem(protocol, **storage.get(protocol, {}))

    def write(self, shards: range, each: int) -> None:
        """Shards, and the vectors of every `BUNDLE` of them; clustered, so that k-means has something to find."""
        keys = pa.array([f"{index:05}" for index in range(each)])
        tiles = pa.table({"key": keys, "image": pa.array([JPEG] * each, pa.binary())})
        centers = np.random.default_rng(0).standard_normal((256, DIM))
        for first in range(shards.start, shards.stop, BUNDLE):
            names = [f"{number:06}.parquet" for number in range(first, min(first + BUNDLE, shards.stop))]
            rng = np.random.default_rng(first + 1)
            rows = centers[rng.integers(256, size=len(names) * each)] + rng.standard_normal((len(names) * each, DIM))
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float16).ravel()), DIM)
            shard = np.repeat([f"root0/{name}" for name in names], each)
            table = pa.table({"shard": shard, "key": pa.chunked_array([keys] * len(names)), "embedding": vectors})
            self._put(f"vectors/{first:06}.parquet", table, each)
            for name in names:
                self._put(f"archive/{name}", tiles, each)

    def _put(self, path: str, table: pa.Table, rows: int) -> None:
        self.fs.makedirs(f"{self.url}/{path}".rpartition("/")[0], exist_ok=True)
        with self.fs.open(f"{self.url}/{path}", "wb") as file:
            pq.write_table(table, file, row_group_size=rows)

    def run(self, job: str) -> tuple[float, dict[str, Any]]:
        """Seconds of a job, and its result line."""
        command = [sys.executable, "-m", "curation.cli", job, f"archive.url={self.url}/archive"]
        command += [f"workspace={self.url}/workspace", "encoder=precomputed", f"encoder.path={self.url}/vectors"]
        if self.storage:
            command.append(f"runtime.storage={{s3:{{endpoint_url:'{self.storage['s3']['endpoint_url']}'}}}}")
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])


@contextmanager
def place(store: str) -> Iterator[Place]:
    """An empty one."""
    if store == "disk":
        with tempfile.TemporaryDirectory() as folder:
            yield Place(folder, {})
    else:
        os.environ.update(ENVIRONMENT)
        with s3_server() as server:
            yield Place(server.url, server.storage)


def nights(store: str, size: int, each: int, repeats: int) -> dict[str, float]:
    """Seconds of the first run, and of taking in 1 % more, a median over nights; of 100 shards also the start-up."""
    with place(store) as here:
        here.write(range(size), each)
        first, _ = here.run("prune")
        figures = {"first": first}
        if size == 100:
            one = []
            for night in range(repeats):
                here.write(range(900_000 + BUNDLE * night, 900_001 + BUNDLE * night), 1)
                one.append(here.run("recurate")[0])
            figures["start_up"] = median(one)
        more, taken, stop = max(1, size // 100), [], size
        for _ in range(repeats):
            stop += -stop % BUNDLE  # a bundle of vectors of their own
            here.write(range(stop, stop + more), each)
            stop += more
            seconds, result = here.run("recurate")
            assert result["shards"]["added"] == more, result
            taken.append(seconds)
        figures["night"] = median(taken)
        return figures


def listing(number: int, repeats: int) -> None:
    """New shards among many on S3, against a bare listing."""
    os.environ.update(ENVIRONMENT)
    with s3_server() as server:
        fill(server, number)
        ledger = ledger_of(listed_table(s for r in list_archive(f"{server.url}/a", server.storage) for s in r.shards))
        ledger = ledger.slice(0, number - number // 100)
        ours, bare = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket, Prefix="a/")
            assert sum(len(page["Contents"]) for page in pages) == number
            bare.append(time.perf_counter() - start)
            start = time.perf_counter()
            roots = list_archive(f"{server.url}/a", server.storage)
            changes = compare(ledger, listed_table(shard for root in roots for shard in root.shards))
            ours.append(time.perf_counter() - start)
            assert len(changes.added) == number // 100 and not changes.changed and not changes.gone
    print_result(ratio=median(a / b for a, b in zip(ours, bare, strict=True)), ours=ours, bare=bare, shards=number)


def fill(server: S3, number: int) -> None:
    """Empty shards."""
    from concurrent.futures import ThreadPoolExecutor

    client = server.client
    with ThreadPoolExecutor(8) as pool:
        names = (f"a/{i // 1000:04}/{i:07}.tar" for i in range(number))
        list(pool.map(lambda name: client.put_object(Bucket=server.bucket, Key=name, Body=b""), names, chunksize=100))


def ledger_of(listed: pa.Table) -> pa.Table:
    """As if each shard had been read."""
    more = {name: pa.array([1000] * len(listed), pa.int64()) for name in COUNTS}
    digest = pa.array([f"{i:032x}" for i in range(len(listed))])
    return pa.table({**{n: listed[n] for n in listed.column_names}, "digest": digest, **more}, schema=SOURCES_SCHEMA)


def entries(number: int) -> None:
    """Peak memory of telling the changes of a listing of many shards."""
    shards = [
        Shard("root0", f"{i // 1000:04}/{i:07}.tar", "tar", FileInfo(f"{i // 1000:04}/{i:07}.tar", i, f"{i:032x}"))
        for i in range(number)
    ]
    listed = listed_table(shards)
    start = time.perf_counter()
    changes = compare(ledger_of(listed).slice(0, number - number // 100), listed)
    assert len(changes.added) == number // 100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print_result(ratio=peak / 2, gigabytes=peak, compare_seconds=time.perf_counter() - start, shards=number)


def main() -> None:
    """Run what is asked for and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--stores", nargs="+", choices=["disk", "s3"], default=["disk", "s3"])
    parser.add_argument("--each", type=int, default=1000, help="samples a shard")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--listing", type=int)
    parser.add_argument("--entries", type=int)
    options = parser.parse_args()
    if options.listing:
        listing(options.listing, options.repeats)
    elif options.entries:
        entries(options.entries)
    else:
        figures = {}
        for store in options.stores:
            for size in sorted({100, *options.sizes}):
                figures[f"{store} {size}"] = nights(store, size, options.each, options.repeats)
                print(store, size, figures[f"{store} {size}"], file=sys.stderr, flush=True)
            start_up = figures[f"{store} 100"]["start_up"]
            for size in sorted({100, *options.sizes}):
                figure = figures[f"{store} {size}"]
                figure["ratio"] = max(0.0, figure["night"] - start_up) / figure["first"]
        print_result(ratio=max(figure["ratio"] for figure in figures.values()), figures=figures)


if __name__ == "__main__":
    main()
