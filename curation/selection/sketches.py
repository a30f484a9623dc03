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
    """Which rows a search for copies of fresh rows need look at; ``known is fresh``: for copies among these.

    Args:
        known: `SKETCH_SCHEMA`, sorted by cluster.
        fresh: the same.
        neighbours: ``(clusters, n)`` the nearest other clusters of each.

    Returns:
        binary(16): ids of known rows that something fresh is near, and of what is near them.
    """
    a, b = (_Sketches(table) for table in (known, fresh))
    near_a, near_b = np.zeros(len(known), bool), np.zeros(len(fresh), bool)
    beside = _beside(neighbours)
    for cluster, here in _runs(a.clusters):
        runs = [np.arange(*_run(b.clusters, one)) for one in (cluster, *beside.get(cluster, ()))]
        mine, rows = np.arange(here.start, here.stop), np.concatenate(runs)
        for near, one, other in (
            (_near_signatures, mine[a.signed[mine]], rows[b.signed[rows]]),
            (_near_bits, mine[~a.signed[mine]], rows[~b.signed[rows]]),
        ):
            if len(one) and len(other):
                i, j = near(a, one, b, other)
                apart = one[i] != other[j] if known is fresh else np.ones(len(i), bool)
                near_a[one[i[apart]]] = near_b[other[j[apart]]] = True
    found = [known["id"].filter(pa.array(near_a)), fresh["id"].filter(pa.array(near_b))]
    return pa.concat_arrays([column.combine_chunks() for column in found])


class _Sketches:
    """The columns of `SKETCH_SCHEMA` as arrays; a row has a signature, or else bits.

    Attributes:
        clusters: int32 (n,).
        signed: bool (n,), which rows have a signature.
        signatures: float16 (n, d), zeros where there is none.
        bits: uint8 (n, BITS / 8), likewise.
    """

    def __init__(self, table: pa.Table) -> None:
        self.clusters = table["cluster"].to_numpy()
        self.signed = np.asarray(table["signature"].is_valid())
        count = int(self.signed.sum())
        flat = table["signature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self.signatures = np.zeros((len(table), len(flat) // max(1, count)), np.float16)
        self.signatures[self.signed] = flat.reshape(count, self.signatures.shape[1])
        filled = pc.fill_null(table["bits"], bytes(BITS // 8)).combine_chunks()
        self.bits = _bytes(filled)


Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def _near_signatures(a: _Sketches, one: NDArray[np.int64], b: _Sketches, other: NDArray[np.int64]) -> Pairs:
    x, y = a.signatures[one].astype(np.float32), b.signatures[other].astype(np.float32)
    square, found = np.square(y).sum(1), []
    for start in range(0, len(x), STRIPE):
        part = x[start : start + STRIPE]
        i, j = np.nonzero(np.square(part).sum(1)[:, None] + square - 2 * part @ y.T <= (RADIUS + SLACK) ** 2)
        found.append((i + start, j))
    return np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])


def _near_bits(a: _Sketches, one: NDArray[np.int64], b: _Sketches, other: NDArray[np.int64]) -> Pairs:
    index = faiss.IndexBinaryFlat(BITS)
    index.add(b.bits[other])
    limits, _, near = index.range_search(a.bits[one], MOST + 1)
    return np.repeat(np.arange(len(one)), limits[1:].astype(np.int64) - limits[:-1].astype(np.int64)), near


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


def _bytes(column: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """(rows, width) of binary values of one width, none null."""
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width :]
    return data[: len(column) * width].reshape(-1, width)


def _binary(data: bytes, width: int) -> pa.Array:
    """Values of so many bytes each."""
    return pa.Array.from_buffers(pa.binary(width), len(data) // width, [None, pa.py_buffer(data)])
