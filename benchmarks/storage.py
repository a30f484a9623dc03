"""Two of 13 columns of a Parquet file in a slow store: pyarrow on our readers, seconds, requests and bytes.

The store is a server on this machine that waits 50 ms before it answers a
request and then gives 100 MB/s a connection. Both sides read the same row
groups with pyarrow: theirs on ``s3fs.open`` as it comes, ours on
``Folder.open(random=True, ahead=…)``, the column chunks of 16 row groups ahead.
"""

import asyncio
import io
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from aiohttp import web

from benchmarks.output import print_result
from curation.storage import Folder

LATENCY, BANDWIDTH = 0.05, 1e8  # seconds, bytes a second
COLUMNS, WANTED = [f"B{i:02d}" for i in range(13)], ["B02", "B08"]
AHEAD = 16  # row groups
REPEATS = 3


def parquet(groups: int, chunk: int) -> bytes:
    """A row a row group, ``chunk`` bytes a column, as Major TOM Core lies."""
    random, sink = np.random.default_rng(0), io.BytesIO()
    schema = pa.schema([(name, pa.binary()) for name in COLUMNS])
    with pq.ParquetWriter(sink, schema, compression="none", use_dictionary=False) as writer:
        for _ in range(groups):
            writer.write_table(pa.table({name: [random.bytes(chunk)] for name in COLUMNS}, schema))
    return sink.getvalue()


@contextmanager
def store(data: bytes, sizes: list[int]) -> Iterator[str]:
    """Serve one object under every name; ``sizes`` gets the bytes of each GET."""

    async def handle(request: web.Request) -> web.Response:
        await asyncio.sleep(LATENCY)
        headers = {"ETag": '"x"', "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(data))})
        first, last = (int(text) for text in request.headers["Range"].removeprefix("bytes=").split("-"))
        body = data[first : last + 1]
        sizes.append(len(body))
        await asyncio.sleep(len(body) / BANDWIDTH)
        return web.Response(status=206, body=body, headers=headers)

    async def begin() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    loop, app = asyncio.new_event_loop(), web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    yield f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(begin(), loop).result()}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)


def by_groups(file: Any) -> None:
    """Read the wanted columns a row group at a time."""
    parquet_file = pq.ParquetFile(file)
    for group in range(parquet_file.num_row_groups):
        parquet_file.read_row_group(group, columns=WANTED)


def ahead(folder: Folder) -> None:
    """The same with column chunks fetched ahead."""
    info = folder.info("table")
    metadata = pq.ParquetFile(folder.open(info, random=True)).metadata
    for first in range(0, metadata.num_row_groups, AHEAD):
        groups = range(first, min(metadata.num_row_groups, first + AHEAD))
        chunks = [metadata.row_group(group).column(COLUMNS.index(name)) for group in groups for name in WANTED]
        ranges = [(one.data_page_offset, one.data_page_offset + one.total_compressed_size) for one in chunks]
        file = pq.ParquetFile(folder.open(info, random=True, ahead=ranges), metadata=metadata)
        for group in groups:
            file.read_row_group(group, columns=WANTED)


def measure(groups: int, chunk: int) -> dict[str, Any]:
    """Medians of paired repeats."""
    sizes: list[int] = []
    with store(parquet(groups, chunk), sizes) as endpoint:
        folder = Folder("s3://bucket", {"s3": {"endpoint_url": endpoint, "anon": True}})
        theirs = s3fs.S3FileSystem(anon=True, endpoint_url=endpoint)
        info = folder.info("table")
        sides: dict[str, Callable[[], None]] = {
            "s3fs": lambda: by_groups(theirs.open("bucket/table")),
            "sequential": lambda: by_groups(folder.open(info)),
            "random": lambda: by_groups(folder.open(info, random=True)),
            "ahead": lambda: ahead(folder),
        }
        found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in sides}
        for _ in range(REPEATS):
            for name, side in sides.items():
                sizes.clear()
                start = time.perf_counter()
                side()
                found[name]["seconds"].append(time.perf_counter() - start)
                found[name] |= {"requests": len(sizes), "megabytes": round(sum(sizes) / 1e6, 1)}
    for one in found.values():
        one["seconds"] = round(statistics.median(one["seconds"]), 2)
    return {"row_groups": groups, "chunk_bytes": chunk, "wanted_megabytes": 2 * groups * chunk / 1e6, **found}


def main() -> None:
    """Print one JSON object; ``ratio``: our seconds over s3fs's, small chunks."""
    small, large = measure(64, 200_000), measure(16, 2_000_000)
    print_result(small["ahead"]["seconds"] / small["s3fs"]["seconds"], small=small, large=large)


if __name__ == "__main__":
    main()
