"""Writes what was decided: one file of decisions a part, and the kept rows of all parts merged by shard.

Files go under a folder of their own name first, since the manifest's id, which
its folder is named after, is made of their hashes.
"""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.archive.sample import sample_id
from curation.errors import CurationError
from curation.manifests.again import Before
from curation.manifests.drift import Spread
from curation.manifests.exchange import Columns, merge
from curation.manifests.order import final_reason, row_priority, sampling_weight
from curation.manifests.schema import (
    DECISIONS_SCHEMA,
    GUIDED_SCHEMA,
    KEPT,
    KEPT_ROW_GROUP,
    MANIFEST_SCHEMA,
    REASONS,
    ROWS_FILE,
    WRITING,
    File,
    decisions_path,
    parquet_bytes,
)
from curation.manifests.steps import CATALOG, CODE, Guide, Plan, Shards, read_catalog
from curation.selection.sampling import estimate_weight, join_ids
from curation.storage import Folder


@dataclass(frozen=True)
class Written:
    """What the driver learns of a part when its decisions are written.

    Attributes:
        file: of the decisions; None where none is other than the parent's.
        reasons: rows by reason.
        classes: rows of each class (the label, else the scene of the cluster), where entropy decides.
        calm: of these, rows that fell for their entropy.
        held_out: rows of each split.
        spread: how distances and entropies lie.
        came: kept rows that the parent did not keep.
    """

    file: File | None
    reasons: Counter[str]
    classes: Counter[str]
    calm: Counter[str]
    held_out: Counter[str]
    spread: Spread
    came: int = 0


def write_part(
    plan: Plan,
    number: int,
    folder: Folder,
    splits: Sequence[str],
    before: Before | None,
    shards: Shards,
    *layers: Columns,
) -> list[Any]:
    """Write a part's decisions, or where there is a parent those that are other than the parent's.

    Args:
        plan: what was decided for all.
        number: of the part.
        folder: where files go.
        splits: shard names, sorted, that the kept rows are divided at.
        before: of the parent, what it has of the part.
        shards: of the part.
        layers: the part's rows.

    Returns:
        a `Written`, then the part's manifest rows of each range of shards.
    """
    rows = merge(layers)
    reason = final_reason(plan, rows)
    kept = reason < len(KEPT)
    other = np.ones(len(reason), bool) if before is None or before.whole else rows["fresh"] | (reason != rows["before"])
    known = (
        read_catalog(plan.store, shards, CATALOG) if before is None else before.rows(plan, shards, rows, kept | other)
    )
    if before is None:
        _check_ids(join_ids(rows["upper"], rows["lower"]), shards, known["key"])
    wanted = np.flatnonzero(kept | other)
    table = _decided(
        plan, {name: column[wanted] for name, column in rows.items()}, reason[wanted], known, shards, wanted
    )
    file = None
    if other.any() or before is None:
        schema = DECISIONS_SCHEMA if plan.guide is None else pa.unify_schemas([DECISIONS_SCHEMA, GUIDED_SCHEMA])
        data = parquet_bytes(_table(table, schema, other[wanted]))
        file = File.of(decisions_path(number), data, int(other.sum()))
        folder.publish(file.path, data)
    counts = Counter({name: int((reason == code).sum()) for name, code in CODE.items()})
    judged = "entropy" in plan.columns and before is None
    classes = _classes(table, np.full(len(wanted), judged))
    calm = _classes(table, judged & (reason[wanted] == CODE["entropy"]))
    held_out = Counter({name: int((rows["split"] == code).sum()) for code, name in enumerate(plan.splits)})
    spread = Spread.of(rows["distance"], known["entropy"].to_numpy()) if before is None else Spread()
    came = 0 if before is None else int((kept & (rows["was"] < 0)).sum())
    written = Written(file, counts, classes, calm, held_out, spread, came)
    return [written, *_ranges(_table(table, MANIFEST_SCHEMA, kept[wanted]), np.flatnonzero(kept), shards, splits)]


def _decided(
    plan: Plan, rows: Columns, reason: NDArray[np.uint8], known: pa.Table, shards: Shards, at: NDArray[np.int64]
) -> dict[str, Any]:
    """Columns of decisions and manifest; ``at``: where in the part the rows stand."""
    kept = reason < len(KEPT)
    columns = {
        **{name: known[name] for name in CATALOG},
        **{name: pa.array(values, from_pandas=True) for name, values in _figures(plan, rows, reason).items()},
        "sample_id": join_ids(rows["upper"], rows["lower"]),
        "shard": _texts(np.repeat(np.arange(len(shards.names)), shards.rows)[at], shards.names),
        "cluster": pa.array(rows["cluster"]),
        "distance": pa.array(rows["distance"]),
        "scene": plan.scene.take(pa.array(rows["cluster"])),
        "decision": _texts(kept, ["dropped", "kept"]),
        "reason": _texts(reason, REASONS),
        "rank": pa.array(rows["rank"], mask=~kept),
        "duplicate_of": _representatives(rows),
        "split": _names(rows.get("split"), plan.splits, len(reason)),
        "group": _names(rows.get("group"), plan.names.get("group", ()), len(reason)),
    }
    return columns | (_guided(plan.guide, rows) if plan.guide is not None else {})


def write_rows(folder: Folder, ranges: Sequence[Sequence[Any]]) -> File:
    """Write the kept rows of all parts, sorted by shard and index, one range of shards after the other.

    Args:
        folder: where the file goes.
        ranges: for each range of shards, references to the parts' rows.
    """
    rows = 0
    with folder.writer(ROWS_FILE) as file:
        sink = _Hashed(file)
        with pq.ParquetWriter(pa.PythonFile(sink, "w"), MANIFEST_SCHEMA, **WRITING) as writer:
            for group in _row_groups(_by_shard(ray.get(list(pieces))) for pieces in ranges):
                writer.write_table(group)
                rows += group.num_rows
    return File(ROWS_FILE, sink.size, sink.digest.hexdigest(), rows)


def _check_ids(ids: pa.Array, shards: Shards, keys: pa.ChunkedArray) -> None:
    """The ids are made of shard and key: look whether those of each shard's last row are.

    Raises:
        CurationError: the assignments were made from another catalog.
    """
    for name, last in zip(shards.names, np.cumsum(shards.rows) - 1, strict=True):
        if ids[last].as_py() != sample_id(name, keys[last].as_py()):
            raise CurationError(f"{name}: the clusters' assignments are not of this catalog: cluster again")


def _figures(plan: Plan, rows: Columns, reason: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Score, priority, threshold and weight; NaN where there is none."""
    nothing = np.full(len(reason), np.nan)
    limit = rows.get("threshold", plan.threshold)
    if plan.strategy.order == "importance":
        limit = np.where(np.isnan(limit), plan.threshold, limit)
    ordered = np.isin(reason, [CODE[name] for name in ("sampled", "nearest", "quota")])
    figures = {"priority": nothing, "threshold": np.where(ordered, limit, np.nan), "weight": nothing}
    figures["score"] = rows["value"].astype(np.float64) if "value" in rows else nothing
    if plan.strategy.order != "entropy":
        figures["priority"] = np.where(ordered, row_priority(plan, rows), np.nan)
    if plan.strategy.order == "draw" and not plan.settings.grouped:
        weight = np.where(reason == CODE["sampled"], estimate_weight(sampling_weight(plan, rows), limit), np.nan)
        figures["weight"] = np.where(np.isin(reason, [CODE["required"], CODE["guided"]]), 1.0, weight)
    figures["threshold"][reason == CODE["entropy"]] = plan.least_entropy
    figures["threshold"][reason == CODE["hard"]] = plan.hardest
    if plan.grown:  # rows of several draws stand side by side
        figures |= {"weight": nothing, "threshold": np.where(ordered, np.nan, figures["threshold"])}
    for name, demanded in (("invalid", plan.settings.min_valid), ("cloud", plan.settings.max_cloud)):
        figures["threshold"][reason == CODE[name]] = demanded
    return figures


def _guided(guide: Guide, rows: Columns) -> dict[str, pa.Array]:
    """What the bank's classes say of each row."""
    code = rows["guided_class"]
    return {
        "guided_class": _names(np.where(code < 0, len(guide.classes), code), guide.classes, len(code)),
        "guided_probability": pa.array(rows["guided_probability"], from_pandas=True),
        "guided_place": pa.array(rows["guided_place"], from_pandas=True),
    }


def _representatives(rows: Columns) -> pa.Array:
    """The id of each duplicate's representative, null for the other rows."""
    if "of_upper" not in rows:
        return pa.nulls(len(rows["reason"]), pa.string())
    found = rows["of_upper"] | rows["of_lower"] != 0
    ids = join_ids(rows["of_upper"][found], rows["of_lower"][found])
    return ids.take(pa.array(np.cumsum(found) - 1, mask=~found))


def _classes(columns: dict[str, Any], of: NDArray[np.bool_]) -> Counter[str]:
    """Rows of each class among the given rows."""
    names = pc.coalesce(columns["label"], columns["scene"]).filter(pa.array(of)).drop_null()
    return Counter({pair["values"]: pair["counts"] for pair in names.value_counts().to_pylist()})


def _texts(codes: NDArray[Any], texts: Sequence[str]) -> pa.Array:
    """An Arrow string array by position in ``texts``."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(texts)).cast(pa.string())


def _names(codes: NDArray[Any] | None, names: Sequence[str], rows: int) -> pa.Array:
    """The name that each code stands for; null beyond the names, and without codes."""
    if codes is None:
        return pa.nulls(rows, pa.string())
    return pa.array(names, pa.string()).take(pa.array(codes.astype(np.int32), mask=codes >= len(names)))


def _table(columns: dict[str, Any], schema: pa.Schema, rows: NDArray[np.bool_]) -> pa.Table:
    return pa.table([columns[name] for name in schema.names], schema=schema).filter(pa.array(rows))


def _ranges(table: pa.Table, kept: NDArray[np.int64], shards: Shards, splits: Sequence[str]) -> list[pa.Table]:
    """The kept rows up to each split, and after the last; ``kept``: where in the part they stand."""
    edges = np.cumsum([0, *shards.rows])
    ends = [*edges[[bisect_left(shards.names, split) for split in splits]], edges[-1]]
    bounds = np.searchsorted(kept, [0, *ends])
    return [table.slice(a, b - a) for a, b in pairwise(bounds.tolist())]


def _by_shard(tables: Sequence[pa.Table]) -> pa.Table:
    """One table sorted by shard, out of tables that are, and that share no shard."""
    table = pa.concat_tables(tables).combine_chunks()
    shards = pc.dictionary_encode(table["shard"]).combine_chunks()
    place = np.argsort(np.argsort(np.array(shards.dictionary.to_pylist(), object)))
    return table.take(pa.array(np.argsort(place[np.asarray(shards.indices)], kind="stable")))


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows a row group at a time, so that the file does not show how they came."""
    rest = MANIFEST_SCHEMA.empty_table()
    for table in tables:
        rest = pa.concat_tables([rest, table])
        while len(rest) >= KEPT_ROW_GROUP:
            yield rest.slice(0, KEPT_ROW_GROUP).combine_chunks()
            rest = rest.slice(KEPT_ROW_GROUP)
    if len(rest):
        yield rest.combine_chunks()


class _Hashed:
    """A file that is hashed while it is written."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Append, and count."""
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)
