"""The decisions of two manifests side by side, all rows of some shards at a time, however each has spread its parts."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.errors import RequestError
from curation.manifests.chain import decision_parts, read_part
from curation.storage import Folder

BUCKETS = 256  # of shards, at most: so many files are open at once where parts are spread otherwise

Pair = tuple[pa.Table, pa.Table]


def pairs(before: Folder, after: Folder, columns: Sequence[str]) -> Iterator[Pair]:
    """The rows of two manifests, those of a shard in one pair; parts of the same files on both sides are left out.

    Where the manifests have spread shards otherwise (by another number of parts), their rows pass through files in the
    system's temporary folder, about 100 bytes a sample.

    Args:
        before: ``manifests/<id>``.
        after: another.
        columns: of the decisions, with ``shard``.

    Raises:
        RequestError: a file is gone.
    """
    parts, others = decision_parts(before), decision_parts(after)
    same_folder = before.parent.base == after.parent.base
    if len(parts) == len(others):
        changed = [number for number in range(len(parts)) if not same_folder or parts[number] != others[number]]
        places = [_places(folder, own, changed) for folder, own in ((before, parts), (after, others))]
        if all(places[1].get(shard, number) == number for shard, number in places[0].items()):
            for number in changed:
                yield read_part(before, parts[number], columns), read_part(after, others[number], columns)
            return
    with tempfile.TemporaryDirectory(prefix="curate-diff-") as scratch:
        buckets = min(BUCKETS, max(len(parts), len(others), 1))
        spilled = [
            _spill(folder, own, columns, Path(scratch) / name, buckets)
            for folder, own, name in ((before, parts, "before"), (after, others, "after"))
        ]
        for one, other in zip(*spilled, strict=True):
            yield _load(one), _load(other)


def _places(manifest: Folder, parts: Sequence[Sequence[str]], numbers: Sequence[int]) -> dict[str, int]:
    """Which of some parts each shard is in: one column of their files.

    Raises:
        RequestError: a file is gone.
    """
    found: dict[str, int] = {}
    for number in numbers:
        for path in parts[number]:
            for shards in _shards(manifest.parent, path):
                found |= dict.fromkeys(shards.unique().to_pylist(), number)
    return found


def _shards(around: Folder, path: str) -> Iterator[pa.ChunkedArray]:
    try:
        with around.open(around.info(path), random=True) as source, pq.ParquetFile(source) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, ["shard"])["shard"]
    except FileNotFoundError:
        raise RequestError(f"{around.public(path)} is gone, which a later manifest needs: restore it") from None


def _spill(
    manifest: Folder, parts: Sequence[Sequence[str]], columns: Sequence[str], folder: Path, buckets: int
) -> list[Path]:
    """One file of Arrow batches a bucket of shards."""
    folder.mkdir()
    paths = [folder / str(bucket) for bucket in range(buckets)]
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    writers: list[pa.ipc.RecordBatchStreamWriter] = []
    try:
        for files in parts:
            rows = read_part(manifest, files, columns)
            if not writers:
                writers = [pa.ipc.new_stream(str(path), rows.schema, options=options) for path in paths]
            encoded = pc.dictionary_encode(rows["shard"]).unify_dictionaries().combine_chunks()
            of_shard = np.array([_bucket(shard, buckets) for shard in encoded.dictionary.to_pylist()], np.int64)
            bucket = of_shard[np.asarray(encoded.indices)]
            for number in np.unique(bucket).tolist():
                writers[number].write_table(rows.take(pa.array(np.flatnonzero(bucket == number))).cast(rows.schema))
    finally:
        for writer in writers:
            writer.close()
    return paths


def _bucket(shard: str, buckets: int) -> int:
    return int.from_bytes(hashlib.blake2b(shard.encode(), digest_size=8).digest(), "little") % buckets


def _load(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()
