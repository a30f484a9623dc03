"""Which samples of a test set the archive or the bank has too: those may not decide anything.

By key and picture, by ``source_id``, and by looks: of each test sample the few samples of every run of shards whose
signatures are nearest are confirmed by their patches, as the search for near-duplicates does it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curation.catalog.store import CatalogStore, chunks
from curation.clustering.nearest import one_thread
from curation.manifests.exchange import submit
from curation.selection.duplicates import COLUMNS, EMBEDDING_THRESHOLD, THRESHOLD, similarities

SHARDS = 16  # looked through in one task
NEAREST = 16  # samples of such a run whose patches are compared with a test sample's
REASONS = ("key", "source_id", "likeness")  # in the order in which they count
READ = [*COLUMNS, "key"]


def find_shared(store: CatalogStore, test: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Test samples that are among the others too.

    Args:
        store: the catalog of all.
        test: names of the test set's shards.
        others: names of the archive's and the bank's.

    Returns:
        sample_id -> one of `REASONS`.
    """
    ours = submit(_read, store, list(test))
    found: dict[str, str] = {}
    for part in ray.get([submit(_shared, store, ours, list(some)) for some in chunks(others, SHARDS)]):
        for name, reason in part.items():
            found[name] = min(reason, found.get(name, reason), key=REASONS.index)
    return dict(sorted(found.items()))


def told(shared: dict[str, str], samples: int) -> str | None:
    """One line on what was left out."""
    if not shared:
        return None
    counts = Counter(shared.values())
    words = {"key": "by key and picture", "source_id": "by source_id", "likeness": "as near-duplicates"}
    how = ", ".join(f"{counts[reason]} {words[reason]}" for reason in REASONS if counts[reason])
    return f"{len(shared)} of {samples} test samples are in the archive or the bank too ({how}): they are left out"


def _read(store: CatalogStore, shards: list[str]) -> pa.Table:
    return pa.concat_tables(
        [store.read(shard, READ) for shard in shards], promote_options="permissive"
    ).combine_chunks()


def _shared(store: CatalogStore, test: pa.Table, shards: list[str]) -> dict[str, str]:
    others = pa.concat_tables([store.read(shard, READ) for shard in shards], promote_options="permissive")
    return shared_rows(test, others.combine_chunks())


def shared_rows(test: pa.Table, others: pa.Table) -> dict[str, str]:
    """`find_shared` of two tables of catalog columns."""
    looks = _alike(test, others)
    source = pc.is_in(test["source_id"], others["source_id"].combine_chunks(), skip_nulls=True).to_numpy()
    pictures = [pc.binary_join_element_wise(t["key"].cast(pa.binary()), t["patch"], b"\0") for t in (test, others)]
    key = pc.is_in(pictures[0], pictures[1].combine_chunks(), skip_nulls=True).to_numpy()
    reason = np.select([key, source, looks], REASONS, "")
    ids = test["sample_id"].to_pylist()
    return {ids[row]: str(reason[row]) for row in np.flatnonzero(reason != "").tolist()}


def _alike(test: pa.Table, others: pa.Table) -> NDArray[np.bool_]:
    """Which rows of ``test`` have a near-duplicate, ``(len(test),)``."""
    found = np.zeros(len(test), bool)
    own, theirs = _with_patch(test), _with_patch(others)
    if len(own) and len(theirs):
        one, other = test.take(pa.array(own)), others.take(pa.array(theirs))
        near = _nearest(_matrix(one["signature"]), _matrix(other["signature"]))
        i, j = np.repeat(np.arange(len(own)), near.shape[1]), near.ravel()
        alike = similarities(one, i, other, j) >= THRESHOLD
        found[own[i[alike]]] = True
    own, theirs = (np.setdiff1d(np.arange(len(t)), rows) for t, rows in ((test, own), (others, theirs)))
    if len(own) and len(theirs):
        x, y = (_unit(_matrix(t["embedding"].take(pa.array(rows)))) for t, rows in ((test, own), (others, theirs)))
        near = _nearest(x, y)[:, 0]
        found[own[np.einsum("ij,ij->i", x, y[near]) >= EMBEDDING_THRESHOLD]] = True
    return found


def _with_patch(table: pa.Table) -> NDArray[np.int64]:
    there = pc.and_(table["patch"].is_valid(), table["signature"].is_valid())
    return np.flatnonzero(there.to_numpy()).astype(np.int64)


def _nearest(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.int64]:
    """``(len(x), few)`` rows of ``y``."""
    import faiss

    with one_thread():
        found: NDArray[np.int64] = faiss.knn(x, y, min(NEAREST, len(y)))[1]
    return found


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    flat: Any = pc.list_flatten(column).to_numpy()
    return np.ascontiguousarray(flat.reshape(len(column), -1), np.float32)


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny))
