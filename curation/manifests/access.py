"""What it costs to read the kept samples out of the shards they lie in, and what would be cheaper.

Pure functions over columns. The readers cut their requests with the same
function that the plan counts with, so the plan is what happens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.archive.sample import TILE_SUFFIX
from curation.storage import CHUNK

HEADER = 512  # bytes of the tar header before a member's data; read along, to check that it is the member meant


@dataclass(frozen=True, slots=True)
class Store:
    """A storage as one reader (one process) sees it.

    Attributes:
        latency: seconds from a request to its first byte.
        bandwidth: bytes a second.
        parallel: requests that the reader keeps in flight.
    """

    latency: float
    bandwidth: float
    parallel: int

    @property
    def gap(self) -> int:
        """Bytes that cost as much to read as one more request; smaller gaps are read through."""
        return int(self.latency / self.parallel * self.bandwidth)

    def seconds(self, requests: Any, size: Any) -> Any:
        """``requests * latency / parallel + bytes / bandwidth``, element by element."""
        return requests * self.latency / self.parallel + size / self.bandwidth


LOCAL = Store(latency=0.0001, bandwidth=1e9, parallel=1)  # a solid-state disk
OBJECT_STORE = Store(latency=0.05, bandwidth=1e8, parallel=8)  # S3 within a region


def ranges(
    start: NDArray[np.int64], stop: NDArray[np.int64], gap: int, group: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Where a new request begins, when pieces of files are read in order.

    Neighbours within one file are read together where at most ``gap`` bytes lie
    between them; a piece that lies before its predecessor begins anew. What has
    grown together is cut every ``CHUNK`` bytes (at a piece's start), so a
    request holds at most one piece more than that.

    Args:
        start: first byte of each piece, int64 (n,).
        stop: the byte after its last, int64 (n,).
        gap: bytes.
        group: the file of each piece, int64 (n,), equal ones side by side; one file without it.

    Returns:
        int64 (requests,): index of each request's first piece.
    """
    if len(start) == 0:
        return np.empty(0, np.int64)
    apart = np.ones(len(start), bool)
    apart[1:] = (start[1:] - stop[:-1] > gap) | (start[1:] < start[:-1])
    if group is not None:
        apart[1:] |= group[1:] != group[:-1]
    first = np.flatnonzero(apart)
    run = np.cumsum(apart) - 1
    part = (start - start[first][run]) // CHUNK
    apart[1:] |= part[1:] != part[:-1]
    return np.flatnonzero(apart)


def plan_reads(
    shard: pa.Array | pa.ChunkedArray,
    offset: pa.Array | pa.ChunkedArray,
    size: pa.Array | pa.ChunkedArray,
    shard_size: pa.Array | pa.ChunkedArray,
    store: Store = OBJECT_STORE,
    image: pa.Array | pa.ChunkedArray | None = None,
) -> dict[str, Any]:
    """What one epoch over the kept samples costs: ranged reads, one sequential pass, and after materialising.

    With h = 512 bytes of tar header, c = 8 MiB (the largest request) and, for
    the storage, latency l, bandwidth b and p requests in flight::

        seconds(requests, bytes) = requests * l / p + bytes / b
        gap                      = l / p * b
        ranged     bytes: the sum of (size + h) and of the gaps up to ``gap`` between neighbours
                   requests: what is left apart, cut every c
        sequential bytes: shard_size; requests: ceil(shard_size / c)
        chosen     the cheaper of both, shard by shard
        materialise once: all shards sequentially, and the kept samples written
                   (w = sum of h + size rounded up to 512; ceil(w / c) requests)
                   then each epoch: w bytes, ceil(w / c) requests
        pays after the smallest number of epochs e for which
                   e * chosen > once + e * (an epoch after it)

    What has no offset (a folder's files, rows of Parquet, slices of Zarr, tiles of scenes) takes one request an image
    either way. Counted is the image member of each sample; its other members are in ``shard_size`` only. The tiles
    of one image are read, and written, with it once.

    Args:
        shard: string (n,), of each kept sample.
        offset: int64 (n,), of its image member in the shard; null in a folder.
        size: int64 (n,), bytes of the image member.
        shard_size: int64 (n,), bytes of its whole shard.
        store: see :data:`LOCAL` and :data:`OBJECT_STORE`.
        image: string (n,), its image's name within the shard; without it each sample is an image.

    Returns:
        ``samples``, ``shards``, ``kept_bytes`` (of the images); ``ranged``, ``sequential``, ``chosen`` and
        ``materialised`` (an epoch after it), each with ``bytes``, ``requests`` and ``seconds`` of one
        reader; ``materialising_seconds``; ``pays_after_epochs`` (None: never).
    """
    samples = len(shard)
    if image is not None:
        shard, offset, size, shard_size = _images(shard, offset, size, shard_size, image)
    ranged, sequential = _by_shard(shard, offset, size, shard_size, store.gap)
    cheaper = store.seconds(*ranged) < store.seconds(*sequential)
    written = int((-(-_numpy(size) // HEADER) * HEADER + HEADER).sum())
    chosen = _cost(store, *np.where(cheaper, ranged, sequential).sum(axis=1))
    whole = _cost(store, *sequential.sum(axis=1))
    after = _cost(store, -(-written // CHUNK), written)
    once = whole["seconds"] + after["seconds"]
    saved = chosen["seconds"] - after["seconds"]
    return {
        "samples": samples,
        "shards": len(cheaper),
        "kept_bytes": int(_numpy(size).sum()),
        "ranged": _cost(store, *ranged.sum(axis=1)),
        "sequential": whole,
        "chosen": {**chosen, "shards_ranged": int(cheaper.sum()), "shards_sequential": int((~cheaper).sum())},
        "materialised": after,
        "materialising_seconds": once,
        "pays_after_epochs": int(once / saved) + 1 if saved > 0 else None,
    }


def _by_shard(
    shard: Any, offset: Any, size: Any, shard_size: Any, gap: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Requests and bytes of each shard, (2, shards): of ranged reads, and of one sequential pass."""
    codes, start, stop, whole, folder = _pieces(shard, offset, size, shard_size)
    first = ranges(start, stop, gap, codes)
    last = np.append(first[1:], len(start))[: len(first)] - 1
    requests = np.bincount(codes[first], minlength=len(whole))
    read = np.bincount(codes[first], stop[last] - start[first], len(whole))
    loose = np.stack([np.bincount(codes, minlength=len(whole)), read])
    return np.stack([requests, read]), np.where(folder, loose, np.stack([-(-whole // CHUNK), whole]))


def reads_of_manifest(
    rows: pa.Table, sizes: Mapping[str, int], pixel: int, scenes: bool, store: Store
) -> dict[str, Any]:
    """:func:`plan_reads` of a manifest's rows.

    Args:
        rows: the columns ``shard``, ``key``, ``offset``, ``size`` and ``window`` of the kept samples.
        sizes: bytes of each shard.
        pixel: bytes of a pixel, all bands: out of scenes and Zarr stores just a tile's window is read, which counts
            as if it were not compressed.
        scenes: whether the loose images are scenes.
        store: see :func:`plan_reads`.
    """
    width, height = (pc.cast(pc.struct_field(rows["window"], side), pa.int64()) for side in ("width", "height"))
    tile = pc.is_valid(width)
    by_window = pc.or_(pc.match_substring_regex(rows["shard"], r"\.(zarr|zip)$"), scenes)
    alone = pc.and_(pc.and_(tile, pc.is_null(rows["offset"])), by_window)
    size = pc.if_else(alone, pc.multiply(pc.multiply(width, height), pixel), rows["size"])
    shared = pc.and_(tile, pc.invert(alone))
    image = pc.if_else(shared, pc.replace_substring_regex(rows["key"], TILE_SUFFIX, ""), rows["key"])
    whole = pa.array([sizes[name] for name in rows["shard"].to_pylist()], pa.int64())
    return plan_reads(rows["shard"], rows["offset"], size, whole, store, image)


def _images(shard: Any, offset: Any, size: Any, shard_size: Any, image: Any) -> list[Any]:
    """The columns with one row an image."""
    columns = pa.table({"shard": shard, "image": image, "offset": offset, "size": size, "whole": shard_size})
    firsts = [(name, "first") for name in ("offset", "size", "whole")]
    own = columns.group_by(["shard", "image"], use_threads=False).aggregate(firsts)
    return [own[name] for name in ("shard", "offset_first", "size_first", "whole_first")]


def _pieces(shard: Any, offset: Any, size: Any, shard_size: Any) -> tuple[NDArray[Any], ...]:
    """Shard number, first and last byte of each piece, in reading order; size of each shard; is it a folder?"""
    names = pa.chunked_array([shard] if isinstance(shard, pa.Array) else shard.chunks, shard.type)
    codes = _numpy(names.cast(pa.large_string()).combine_chunks().dictionary_encode().indices)
    loose = np.asarray(offset.is_null(), bool)
    start = np.where(loose, np.arange(len(codes)) << 40, _numpy(offset.fill_null(0)) - HEADER)  # files lie apart
    stop = start + _numpy(size) + np.where(loose, 0, HEADER)
    shards = int(codes.max(initial=-1)) + 1
    whole, folder = np.zeros(shards, np.int64), np.zeros(shards, bool)
    whole[codes], folder[codes] = _numpy(shard_size.fill_null(0)), loose
    order = np.lexsort((start, codes))
    return codes[order], start[order], stop[order], whole, folder


def _numpy(column: Any) -> NDArray[np.int64]:
    values: NDArray[np.int64] = np.asarray(column.fill_null(0)).astype(np.int64)
    return values


def _cost(store: Store, requests: Any, size: Any) -> dict[str, Any]:
    seconds = float(store.seconds(float(requests), float(size)))
    return {"bytes": int(size), "requests": int(requests), "seconds": round(seconds, 6)}
