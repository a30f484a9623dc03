"""Small sketches of rows, by which newcomers find the rows that they might be copies of without reading all of these.

A row with a patch is sketched by its signature in half precision, any other by the signs of its embedding on random
planes (Charikar 2002): two rows at an angle of t differ in each bit with probability t / pi. A sketch only proposes;
`selection.duplicates` decides over what it proposes as it does over everything.
"""

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.selection.duplicates import RADIUS

BITS = 256
MOST = (
    28  # bits in which copies differ at most: at a cosine of 0.99 they differ in 11.5 (3.3 is the standard deviation)
)
SLACK = 0.05  # of a signature's distance, for its half precision
SEED = 0x5EED
STRIPE = 1024  # rows compared at once

SKETCH_SCHEMA = pa.schema(
    [
        pa.field("id", pa.binary(16), nullable=False),  # sample_id
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("signature", pa.list_(pa.float16())),  # of a row with a patch
        pa.field("bits", pa.binary(BITS // 8)),  # of any other
    ]
)


def sketch(rows: pa.Table) -> pa.Table:
    """Sketches, sorted by cluster and id.

    Args:
        rows: ``sample_id``, ``cluster``, ``signature``, ``patch``, and ``embedding`` where there is no patch.

    Returns:
        `SKETCH_SCHEMA`.
    """
    by_patch = pc.and_(rows["patch"].is_valid(), rows["signature"].is_valid()).combine_chunks()
    signature = pc.if_else(by_patch, rows["signature"].combine_chunks(), None).cast(pa.list_(pa.float16()))
    bits = np.zeros((rows.num_rows, BITS // 8), np.uint8)
    bare = np.flatnonzero(~np.asarray(by_patch))
    if len(bare):
        bits[bare] = _signs(_matrix(rows["embedding"].take(pa.array(bare)).combine_chunks(), len(bare)))
    ids = _binary(bytes.fromhex("".join(rows["sample_id"].to_pylist())), 16)
    signs = pc.if_else(by_patch, None, _binary(bits.tobytes(), BITS // 8))
    made = [ids, rows["cluster"].combine_chunks(), signature, signs]
    return pa.table(made, schema=SKETCH_SCHEMA).sort_by([("cluster", "ascending"), ("id", "ascending")])


def propose(known: pa.Table, fresh: pa.Table, neighbours: NDArray[np.int32]) -> pa.Array:
    """Which known rows a fresh one might be a copy of.

    Args:
        known: `SKETCH_SCHEMA`, sorted by cluster.
        fresh: the same.
        neighbours: ``(clusters, n)`` the nearest other clusters of each.

    Returns:
        binary(16): ids.
    """
    found = [pa.array([], pa.binary(16))]
    clusters = fresh["cluster"].to_numpy()
    beside = _beside(neighbours)
    for cluster, here in _runs(known["cluster"].to_numpy()):
        near = [np.arange(*_run(clusters, one)) for one in (cluster, *beside.get(cluster, ()))]
        rows = np.concatenate(near)
        if len(rows):
            there = known.slice(here.start, here.stop - here.start)
            alike = _alike(there, fresh.take(pa.array(rows)))
            found.append(there["id"].filter(pa.array(alike)).combine_chunks())
    return pa.concat_arrays(found)


def _alike(known: pa.Table, fresh: pa.Table) -> NDArray[np.bool_]:
    """(n,) whether anything fresh is near a known row."""
    alike = np.zeros(known.num_rows, bool)
    for column, near in (("signature", _near_signatures), ("bits", _near_bits)):
        a, b = (np.flatnonzero(np.asarray(table[column].is_valid())) for table in (known, fresh))
        if len(a) and len(b):
            one, other = known[column].take(pa.array(a)), fresh[column].take(pa.array(b))
            alike[a] = near(one.combine_chunks(), other.combine_chunks())
    return alike


def _near_signatures(known: pa.Array, fresh: pa.Array) -> NDArray[np.bool_]:
    a, b = _matrix(known, len(known)), _matrix(fresh, len(fresh))
    square = np.square(b).sum(1)
    near = np.zeros(len(a), bool)
    for start in range(0, len(a), STRIPE):
        part = a[start : start + STRIPE]
        distances = np.square(part).sum(1) + (square - 2 * part @ b.T).min(1)
        near[start : start + STRIPE] = distances <= (RADIUS + SLACK) ** 2
    return near


def _near_bits(known: pa.Array, fresh: pa.Array) -> NDArray[np.bool_]:
    index = faiss.IndexBinaryFlat(BITS)
    index.add(_bytes(fresh))
    distances, _ = index.search(_bytes(known), 1)
    near: NDArray[np.bool_] = distances[:, 0] <= MOST
    return near


def _signs(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(n, BITS / 8): on which side of each plane a row lies."""
    planes = np.random.default_rng(SEED).standard_normal((x.shape[1], BITS)).astype(np.float32)
    return np.packbits(x @ planes > 0, axis=1)


def _beside(neighbours: NDArray[np.int32]) -> dict[int, list[int]]:
    """For each cluster those that are compared with it: its neighbours, and whose neighbour it is."""
    own = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    other = neighbours.ravel()
    pairs = np.unique(np.concatenate([np.stack([own, other], 1), np.stack([other, own], 1)]), axis=0)
    found: dict[int, list[int]] = {}
    for one, two in pairs[pairs[:, 0] != pairs[:, 1]].tolist():
        found.setdefault(one, []).append(two)
    return found


def _runs(clusters: NDArray[np.int32]) -> list[tuple[int, slice]]:
    names, first = np.unique(clusters, return_index=True)
    edges = [*first.tolist(), len(clusters)]
    return [(int(name), slice(edges[i], edges[i + 1])) for i, name in enumerate(names)]


def _run(clusters: NDArray[np.int32], cluster: int) -> tuple[int, int]:
    left, right = np.searchsorted(clusters, [cluster, cluster + 1])
    return int(left), int(right)


def _matrix(column: pa.Array, rows: int) -> NDArray[np.float32]:
    """float32 (rows, dim) of lists of one length."""
    found: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return found.reshape(rows, -1)


def _bytes(column: pa.Array) -> NDArray[np.uint8]:
    """(rows, width) of binary values of one width, none null."""
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width :]
    return data[: len(column) * width].reshape(-1, width)


def _binary(data: bytes, width: int) -> pa.Array:
    """Values of so many bytes each."""
    return pa.Array.from_buffers(pa.binary(width), len(data) // width, [None, pa.py_buffer(data)])
