"""Sketches: what they propose is what a look at every pair would, and no pair that the search finds is passed over."""

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection.duplicates import RADIUS, find_duplicates
from curation.selection.sketches import BITS, MOST, SKETCH_SCHEMA, SLACK, propose, sketch
from tests.duplicate_recipes import catalog, ground, recoded, relit, turned, window

CHAIN = np.array([[1], [0], [1]], np.int32)  # three clusters in a row: 0 - 1 - 2
TOGETHER = {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0), (1, 2), (2, 1)}


def sketches(rng: np.random.Generator, rows: int, first: int) -> pa.Table:
    """Random ones, every other with a signature; near ones are common."""
    signatures = rng.integers(0, 3, (rows, 4)) * (RADIUS + SLACK) / 1.5
    bits = np.packbits(np.arange(BITS) < rng.integers(0, 3, rows)[:, None] * MOST, axis=1)
    signed = np.arange(rows) % 2 == 0
    columns = {
        "id": [(first + i).to_bytes(16, "big") for i in range(rows)],
        "cluster": np.sort(rng.integers(0, 3, rows)).astype(np.int32),
        "signature": [list(s) if own else None for s, own in zip(signatures, signed, strict=True)],
        "bits": [None if own else b.tobytes() for b, own in zip(bits, signed, strict=True)],
    }
    return pa.table(columns, schema=SKETCH_SCHEMA)


def near(a: dict, b: dict) -> bool:
    if (a["cluster"], b["cluster"]) not in TOGETHER:
        return False
    if a["signature"] is not None and b["signature"] is not None:
        return float(np.square(np.subtract(a["signature"], b["signature"])).sum()) <= (RADIUS + SLACK) ** 2
    if a["bits"] is not None and b["bits"] is not None:
        return (int.from_bytes(a["bits"]) ^ int.from_bytes(b["bits"])).bit_count() <= MOST
    return False


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), known=st.integers(0, 30), fresh=st.integers(0, 12))
def test_what_is_proposed_is_what_a_look_at_every_pair_proposes(seed: int, known: int, fresh: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = sketches(rng, known, 0), sketches(rng, fresh, 1000)
    pairs = [(a, b) for a in one.to_pylist() for b in other.to_pylist() if near(a, b)]
    assert set(propose(one, other, CHAIN).to_pylist()) == {row["id"] for pair in pairs for row in pair}
    among = [a for a in other.to_pylist() for b in other.to_pylist() if a["id"] != b["id"] and near(a, b)]
    assert set(propose(other, other, CHAIN).to_pylist()) == {row["id"] for row in among}


def test_the_search_finds_the_same_groups_among_what_is_proposed() -> None:
    rng, tiles, clusters = np.random.default_rng(0), [], []
    for place in range(60):
        tile = window(ground(place))
        copies = [recoded(tile, 60), relit(tile, 1.1, 10), turned(tile, int(rng.integers(1, 8)))] if place % 3 else []
        tiles += [tile, *copies]
        clusters += rng.integers(place % 2, 2 + place % 2, 1 + len(copies)).tolist()
    names = [hashlib.sha256(bytes([i])).hexdigest()[:32] for i in range(len(tiles))]
    archive = catalog(tiles, names, cluster=clusters)
    made = sketch(archive)
    looked_at = {one.hex() for one in propose(made, made, CHAIN).to_pylist()}
    assert len(looked_at) < len(names), "places without a copy need not be looked at"
    some = archive.filter(pa.array([name in looked_at for name in names]))
    assert find_duplicates(some, CHAIN).equals(find_duplicates(archive, CHAIN))
