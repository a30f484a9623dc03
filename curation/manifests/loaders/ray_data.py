"""The kept samples as a Ray Data set: one row a sample, read by tasks, a run of a shard each."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from curation.manifests.loaders.decoded import Decoder
from curation.manifests.loaders.fetch import Fetcher, Members
from curation.manifests.loaders.kept import Kept
from curation.manifests.loaders.order import Order, Run, samples_per_rank
from curation.manifests.loaders.stream import changed, in_order
from curation.manifests.reading import ManifestReader

BLOCK_BYTES = 32 << 20  # of files that one block holds, about
MAX_BLOCKS = 2000  # tasks that Ray Data is handed at most


def ray_dataset(
    manifest: ManifestReader | str,
    *,
    budget: int | None = None,
    members: Members = "all",
    roots: dict[str, str] | None = None,
    storage: dict[str, Any] | None = None,
    seed: int = 0,
    epoch: int = 0,
    shuffle: int = 1000,
    rank: int = 0,
    world_size: int = 1,
    pad: bool = True,
    seen: int = 0,
) -> "ray.data.Dataset":
    """Exactly the kept samples, in an order that depends on seed and epoch only.

    Columns: the manifest's, ``url``, ``suffix`` and ``image`` (the image member's bytes), and ``others``,
    the sample's other files (``suffix``, ``data``). The files of a tile are its image's, and ``window`` says where
    in it the tile lies.

    Args:
        manifest: an open manifest, or the URL of one.
        budget: only the first that many samples by ``rank``.
        members: ``all`` or ``image``, as of :class:`curation.manifests.loaders.stream.SampleStream`.
        roots: root name to URL, where the archive has moved.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.
        seed: of the order.
        epoch: of the order too.
        shuffle: shuffle the shards, and the samples within each as by a buffer of that many; across shards
            Ray's ``iter_batches(local_shuffle_buffer_size=…)`` does it. 0: the manifest's order.
        rank: which equal part of the epoch, where each rank makes its own set.
        world_size: of how many.
        pad: whether what does not divide is filled up from the epoch's start, or left out.
        seen: samples of this rank's part that were had already: what is left is given.

    Raises:
        RequestError: something asked for cannot be.
    """
    reader = ManifestReader(manifest, storage) if isinstance(manifest, str) else manifest
    Fetcher(reader, members, roots or {}, storage)  # says now what is wrong with the request
    index = reader.shards(budget)
    each = samples_per_rank(int(index.counts.sum()), world_size, pad)
    order = Order(seed, epoch, shuffle)
    first, stop = rank * each + seen, (rank + 1) * each
    runs = [run for run in order.runs(index, rank * each, stop) if run.position + run.count > first]
    tasks = pa.table(
        {
            "rows": pa.array([run.rows for run in runs], pa.list_(pa.int64(), 2)),
            "first": pa.array([run.first for run in runs], pa.int64()),
            "count": pa.array([run.count for run in runs], pa.int64()),
            "position": pa.array([run.position for run in runs], pa.int64()),
            "given": pa.array([max(0, first - run.position) for run in runs], pa.int64()),
        }
    )
    read = partial(_read, reader, order, budget, members, roots or {}, storage)
    source = ray.data.from_arrow(tasks, override_num_blocks=max(1, min(len(runs), MAX_BLOCKS)))
    dataset = source.map_batches(read, batch_size=None, batch_format="pyarrow")
    dataset.context.execution_options.preserve_order = True
    return dataset


def _read(
    manifest: ManifestReader,
    order: Order,
    budget: int | None,
    members: Members,
    roots: dict[str, str],
    storage: dict[str, Any] | None,
    tasks: pa.Table,
) -> Iterator[pa.Table]:
    """The samples of some runs, in blocks of bounded size."""
    fetcher = Fetcher(manifest, members, roots, storage)
    decoder = Decoder(manifest.archive)
    schema = _schema(manifest.schema, members)
    for task in tasks.to_pylist():
        run = Run((task["rows"][0], task["rows"][1]), task["first"], task["count"], task["position"])
        wanted = order.shuffled(run.position, run.position + run.count)[task["given"] :]
        block, size = [], 0
        for kept in in_order(fetcher, [run], wanted, budget):
            with changed(kept):
                files = decoder.files(kept)
            block.append(_row(kept, files, members))
            size += sum(map(len, files.values()))
            if size >= BLOCK_BYTES:
                yield pa.Table.from_pylist(block, schema)
                block, size = [], 0
        if block:
            yield pa.Table.from_pylist(block, schema)


def _row(kept: Kept, files: dict[str, bytes], members: Members) -> dict[str, Any]:
    row = {**kept.row, "url": kept.url, "suffix": kept.image, "image": files[kept.image]}
    if members == "all":
        others = [(suffix, data) for suffix, data in files.items() if suffix != kept.image]
        row["others"] = [{"suffix": suffix, "data": data} for suffix, data in others]
    return row


def _schema(rows: pa.Schema, members: Members) -> pa.Schema:
    files = [("url", pa.string()), ("suffix", pa.string()), ("image", pa.binary())]
    if members == "all":
        files.append(("others", pa.list_(pa.struct([("suffix", pa.string()), ("data", pa.binary())]))))
    return pa.schema([*rows.remove_metadata(), *(pa.field(name, kind) for name, kind in files)])
