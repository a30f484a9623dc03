"""A manifest of ``curate prune`` as a keep-index."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.errors import RequestError
from curation.manifests.reading import ManifestReader
from curation.manifests.schema import batches
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
    counts: dict[str, int] = defaultdict(int)  # rows of each shard so far
    found: dict[str, list[Kept]] = defaultdict(list)
    parts = [file.path for file in reader.folder.list("decisions")]
    if not parts:
        raise RequestError(f"{reader.folder.public()} has no decisions, which number the archive's rows: give keys")
    most = reader.num_rows if budget is None else budget
    for part in parts:
        for batch in batches(reader.folder, part, ["shard", "rank", "weight", "sample_id"]):
            shard = pc.run_end_encode(batch["shard"])
            start = 0
            for name, stop in zip(shard.values.to_pylist(), shard.run_ends.to_pylist(), strict=True):
                rows = batch.slice(start, stop - start)
                kept = rows.filter(pc.less(rows["rank"], most))  # a dropped one has none
                places = np.flatnonzero(pc.fill_null(pc.less(rows["rank"], most), False)) + counts[name]
                found[name].append((places, _weights(kept["weight"]), _ids(kept["sample_id"])))
                counts[name] += len(rows)
                start = stop
    names = sorted(counts)
    starts = dict(zip(names, np.cumsum([0, *(counts[name] for name in names)]).tolist(), strict=False))
    kept_rows = [(starts[name] + places, weights, ids) for name in names for places, weights, ids in found[name]]
    rows, weights, ids = (np.concatenate(column) for column in zip(*kept_rows, strict=True))
    return sum(counts.values()), (rows, weights, ids)


def _weights(column: Any) -> NDArray[np.float64]:
    """NaN for null."""
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def _ids(column: Any) -> NDArray[Any]:
    """The ids' bytes, S16."""
    upper, lower = split_ids(column)
    return np.stack([upper, lower], 1).astype(">u8").view("S16")[:, 0]
