"""A manifest of ``curate prune`` as a keep-index."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.errors import RequestError
from curation.manifests.chain import decision_parts, read_part
from curation.manifests.reading import ManifestReader
from curation.selection.sampling import split_ids
from curation.training.index import KeepIndex

Kept = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[Any]]  # places, weights, ids


def from_manifest(
    manifest: ManifestReader | str,
    *,
    keys: Sequence[str] | None = None,
    budget: int | None = None,
    version: int = 1,
    storage: dict[str, Any] | None = None,
) -> KeepIndex:
    """What a manifest keeps, with its weights and sample ids.

    Args:
        manifest: an open one, or its URL.
        keys: the sample's key of each item of your own dataset, in its order: rows then count these items. Without
            them rows count the archive's samples, which the manifest's decisions tell.
        budget: only the first that many by ``rank``.
        version: that it goes by, where a run has several.
        storage: fsspec options, as ``runtime.storage``.

    Raises:
        RequestError: there is no manifest, or it was copied without its decisions; keys do not say which item a
            kept sample is.
        AccessError: it could not be read.
    """
    reader = ManifestReader(manifest, storage) if isinstance(manifest, str) else manifest
    reader.check_budget(budget)
    total, (rows, weights, ids) = _by_decisions(reader, budget) if keys is None else _by_keys(reader, budget, keys)
    order = np.argsort(rows)
    made_of = {"manifest": reader.id, "budget": budget}
    return KeepIndex.of(version, rows[order], weights[order], total, made_of, ids[order])


def _by_keys(reader: ManifestReader, budget: int | None, keys: Sequence[str]) -> tuple[int, Kept]:
    """Samples in all, and where the kept ones are among them."""
    table = reader.table(["key", "weight", "sample_id"], budget)
    own = pa.array(keys, pa.string())
    places = pc.index_in(table["key"], own)
    for column, whose in ((own, "the dataset has"), (table["key"], "the manifest keeps")):
        if pc.count_distinct(column).as_py() < len(column):
            twice = next(count["values"] for count in pc.value_counts(column).to_pylist() if count["counts"] > 1)
            raise RequestError(f"{whose} the key {twice!r} more than once: keys do not say which sample is meant")
    if places.null_count:
        missing = table["key"].filter(pc.is_null(places))[0].as_py()
        raise RequestError(f"the manifest keeps {missing!r}, which is the key of no item: give keys as the manifest's")
    return len(own), (np.asarray(places, np.int64), _weights(table["weight"]), _ids(table["sample_id"]))


def _by_decisions(reader: ManifestReader, budget: int | None) -> tuple[int, Kept]:
    kept = reader.table(["sample_id", "weight"], budget)
    ids = _ids(kept["sample_id"])
    order = np.argsort(ids)
    ids, weights = ids[order], _weights(kept["weight"])[order]
    counts: dict[str, int] = defaultdict(int)  # rows of each shard
    found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = defaultdict(list)
    for rows in _decided(reader):
        own = _ids(rows["sample_id"])
        place = np.minimum(np.searchsorted(ids, own), len(ids) - 1)
        there = ids[place] == own
        shard = pc.run_end_encode(rows["shard"].combine_chunks())
        start = 0
        for name, stop in zip(shard.values.to_pylist(), shard.run_ends.to_pylist(), strict=True):
            own_kept = np.flatnonzero(there[start:stop])
            found[name].append((own_kept, place[start:stop][own_kept]))
            counts[name] = stop - start
            start = stop
    names = sorted(counts)
    starts = dict(zip(names, np.cumsum([0, *(counts[name] for name in names)]).tolist(), strict=False))
    rows, places = (
        np.concatenate(column)
        for column in zip(*((starts[name] + row, place) for name in names for row, place in found[name]), strict=True)
    )
    return sum(counts.values()), (rows, weights[places], ids[places])


def _decided(reader: ManifestReader) -> Iterator[pa.Table]:
    """Every sample's id and shard, a part at a time; a shard's rows lie in one part, in their order."""
    try:
        for files in decision_parts(reader.folder):
            yield read_part(reader.folder, files, ["shard", "sample_id"])
    except (FileNotFoundError, RequestError):
        raise RequestError(
            f"{reader.folder.public()} has no decisions, which number the archive's rows (a copy?): give keys"
        ) from None


def _weights(column: Any) -> NDArray[np.float64]:
    """NaN for null."""
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def _ids(column: Any) -> NDArray[Any]:
    """The ids' bytes, S16."""
    upper, lower = split_ids(column)
    return np.stack([upper, lower], 1).astype(">u8").view("S16")[:, 0]
