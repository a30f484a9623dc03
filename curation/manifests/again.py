"""A selection that goes on from a parent: which rows are taken as they were decided, and which are decided now.

A *fresh* row is one of a new or changed shard, or one that nothing decides over any more: what stood for it is gone, or
the list that named it does not. All stages look at fresh rows alone; the others have the parent's verdicts, but for
those of the draw, which is made again over everything that is left.

Columns that these rows have beside those of `steps`: ``fresh``; ``before``, the code of the parent's reason (`NONE` of
new samples); ``was``, the parent's rank, -1 where it was not kept; ``alike``, see `duplicates.find_alike`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.manifests import steps
from curation.manifests.chain import listed, read_part
from curation.manifests.drift import Spread
from curation.manifests.exchange import Columns
from curation.manifests.schema import FILES_FILE, KEPT, REASONS, File
from curation.manifests.steps import CATALOG, CODE, OPEN, Plan, Shards, Survey
from curation.selection.sampling import sortable, split_ids
from curation.storage import Folder

NONE = np.uint8(255)
STAGES = ("split", "split_edge", "invalid", "cloud", "entropy", "place", "duplicate")  # whose verdicts stay
STOOD_FOR = ("place", "duplicate")  # verdicts that fall with whom they name
LISTED = ("excluded", "cluster_excluded", "unscored")  # and with a list, the config or a table
KNOWN = ("sample_id", "shard", "index", "key", "valid_fraction", "cloud_fraction", "entropy", "source_id", "label")
"""Catalog columns that decisions have too."""
DECIDED = ("sample_id", "shard", "cluster", "distance", "reason", "rank", "duplicate_of", "group", "split")


@dataclass(frozen=True)
class Piece:
    """What a part is made of.

    Attributes:
        files: the parent's decisions, see `chain`.
        gone: shards of these that are no longer as they were.
        whole: whether its decisions are written anew whole.
    """

    files: tuple[str, ...]
    gone: frozenset[str]
    whole: bool


@dataclass(frozen=True)
class Before:
    """What the parent has of a part.

    Attributes:
        manifest: ``manifests/<id>`` of the parent.
        piece: of the part.
    """

    manifest: Folder
    piece: Piece

    @property
    def whole(self) -> bool:
        """Whether decisions are written anew whole."""
        return self.piece.whole

    def read(self, columns: Sequence[str]) -> pa.Table:
        """The parent's rows that are still there, sorted by shard and index; ``shard`` as a dictionary."""
        table = read_part(self.manifest, self.piece.files, [*columns, "shard"], encoded=True)
        if self.piece.gone:
            table = table.filter(pc.invert(_among(table["shard"], self.piece.gone)))
        return table

    def rows(self, plan: Plan, shards: Shards, rows: Columns, wanted: NDArray[np.bool_]) -> pa.Table:
        """`steps.CATALOG` of the wanted rows: of new shards out of the catalog, of others as the parent has them."""
        new = rows["before"] == NONE
        old = self.read(CATALOG).select(list(CATALOG)).filter(pa.array(wanted[~new]))
        fresh = steps.read_catalog(plan.store, _only(shards, new), CATALOG).filter(pa.array(wanted[new]))
        both = pa.concat_tables([old, fresh.select(list(CATALOG))], promote_options="permissive")
        chosen = new[wanted]
        return both.take(pa.array(np.where(chosen, len(old) + np.cumsum(chosen) - 1, np.cumsum(~chosen) - 1)))


@dataclass(frozen=True)
class Again:
    """What a selection goes on from.

    Attributes:
        parent: ``manifests/<id>``.
        content: of its header.
        pieces: what each part of it has.
        assigned: for each part a reference to `clustering.assign.SCHEMA`, of its new shards, sorted by shard and index.
        spread: of the new samples.
        told: what the header says of how they came: counts of shards, the mode.
        grow: whether all stay that were kept.
    """

    parent: Folder
    content: dict[str, Any]
    pieces: list[Piece]
    assigned: list[Any]
    spread: Spread
    told: dict[str, Any]
    grow: bool

    @property
    def frozen(self) -> dict[str, Any]:
        """What drift is measured against."""
        return dict(self.content["selection"]["frozen"])

    def before(self, number: int) -> Before:
        """What the parent has of a part."""
        return Before(self.parent, self.pieces[number])

    def files(self, folder: str) -> list[File]:
        """The parent's files below ``decisions`` or ``sketches``, relative to the new manifest's folder."""
        rows = pq.read_table(pa.BufferReader(self.parent.read(FILES_FILE))).to_pylist()
        paths = listed(self.parent)
        found = [File(**{**row, "path": f"../{path}"}) for row, path in zip(rows, paths, strict=True)]
        return [file for file in found if file.path.split("/")[2] == folder]


def load(
    plan: Plan, before: Before, assigned: pa.Table, lost: NDArray[np.bytes_]
) -> tuple[Columns, Shards, Survey, dict[str, list[str]]]:
    """The rows of a part: what is left of the parent's, and those of new shards.

    Args:
        plan: of the selection.
        before: what the parent has of the part.
        assigned: `clustering.assign.SCHEMA`, of the part's new shards, sorted by shard and index.
        lost: S16, sorted: ids that were there and are gone, or come anew.

    Returns:
        as `steps.load`.
    """
    new_shards = steps.runs(assigned["shard"].dictionary_encode())
    rows, names, survey = _new(plan, assigned, new_shards)
    old = before.read([*DECIDED, *(name for name in KNOWN if name in plan.columns)])
    old_shards = steps.runs(old["shard"])
    was, was_names, was_survey = _carried(plan, old, old_shards, lost)
    shards, order = _woven(old_shards, new_shards)
    for name in names:  # codes of the second block go on from those of the first
        rows[name] = rows[name] + np.int32(len(was_names[name]))
    merged = {name: np.concatenate([was[name], rows[name]])[order] for name in rows}
    survey = _added(was_survey, survey, steps.some_shards(shards))
    return merged, shards, survey, {name: was_names[name] + names[name] for name in names}


def gone_ids(before: Before) -> NDArray[np.bytes_]:
    """Ids of the parent's rows that are no longer there, or come anew: S16."""
    if not before.piece.gone:
        return np.zeros(0, "S16")
    table = read_part(before.manifest, before.piece.files, ["sample_id", "shard"], encoded=True)
    return sortable(*split_ids(table.filter(_among(table["shard"], before.piece.gone))["sample_id"]))


def _new(plan: Plan, table: pa.Table, shards: Shards) -> tuple[Columns, dict[str, list[str]], Survey]:
    """Samples of new shards, by the rules for single rows."""
    rows, number = steps.start(plan, table), table.num_rows
    catalog = steps.with_tables(plan, steps.read_catalog(plan.store, shards, plan.columns)) if plan.columns else None
    names, survey = steps.judge(plan, rows, catalog)
    rows |= {
        "fresh": np.ones(number, bool),
        "before": np.full(number, NONE),
        "was": np.full(number, -1, np.int64),
        **{name: np.zeros(number, np.uint64) for name in ("of_upper", "of_lower")},
    }
    return rows, names, survey


def _carried(
    plan: Plan, table: pa.Table, shards: Shards, lost: NDArray[np.bytes_]
) -> tuple[Columns, dict[str, list[str]], Survey]:
    """The parent's samples: by the rules for single rows anew, then by the verdicts of its stages."""
    rows, number = steps.start(plan, table), table.num_rows
    names, survey = steps.judge(plan, rows, _told_of(plan, table, shards), carried=table)
    before = pc.index_in(table["reason"], pa.array(REASONS)).to_numpy().astype(np.uint8)
    upper, lower = np.zeros(number, np.uint64), np.zeros(number, np.uint64)
    stood = np.asarray(table["duplicate_of"].is_valid())
    upper[stood], lower[stood] = split_ids(table["duplicate_of"].drop_null())
    open_now = rows["reason"] == OPEN
    revived = stood & np.isin(sortable(upper, lower), lost) & np.isin(before, [CODE[name] for name in STOOD_FOR])
    stays = open_now & ~revived & np.isin(before, [CODE[name] for name in STAGES])
    fresh = open_now & (revived | np.isin(before, [CODE[name] for name in LISTED]))
    rows["reason"] = np.where(stays, before, rows["reason"])
    if "unclear" in rows:
        rows["unclear"] = np.where(fresh, rows["unclear"], OPEN)
    rows |= {
        "fresh": fresh,
        "before": before,
        "was": np.where(before < len(KEPT), table["rank"].fill_null(-1).to_numpy(), -1),
        "of_upper": np.where(stays, upper, np.uint64(0)),
        "of_lower": np.where(stays, lower, np.uint64(0)),
    }
    return rows, names, survey


def _told_of(plan: Plan, table: pa.Table, shards: Shards) -> pa.Table | None:
    """What the rules for single rows ask of the parent's samples: decisions have nearly all of it."""
    if not plan.columns:
        return None
    known = table.select([name for name in KNOWN if name in plan.columns])
    more = {column for listed in plan.lists.values() for column in listed.columns} - set(KNOWN)
    if more:
        read = steps.read_catalog(plan.store, shards, ("sample_id", *sorted(more)))
        place = pc.index_in(table["sample_id"], value_set=read["sample_id"].combine_chunks())
        for name in sorted(more):
            known = known.append_column(name, read[name].take(place))
    return steps.with_tables(plan, known)


def _woven(old: Shards, new: Shards) -> tuple[Shards, NDArray[np.int64]]:
    """The shards of two blocks as one sorted list, and where in the blocks, one after the other, their rows are."""
    names = [*old.names, *new.names]
    rows = np.concatenate([old.rows, new.rows]).astype(np.int64)
    first = np.cumsum(rows) - rows
    order = np.argsort(np.array(names, object), kind="stable") if names else np.zeros(0, np.int64)
    places = [np.arange(first[i], first[i] + rows[i]) for i in order]
    return Shards([names[i] for i in order], rows[order]), np.concatenate([np.zeros(0, np.int64), *places])


def _added(one: Survey, other: Survey, shards: list[tuple[str, int]]) -> Survey:
    return Survey(
        rows=one.rows + other.rows,
        without_entropy=one.without_entropy + other.without_entropy,
        matched={name: one.matched[name] + other.matched[name] for name in one.matched},
        both=one.both + other.both,
        shards=shards,
        unscored=one.unscored + other.unscored,
        clouded=one.clouded + other.clouded,
        states=one.states | other.states,
        footprints=one.footprints + other.footprints,
        splits=one.splits + other.splits,
    )


def _only(shards: Shards, rows: NDArray[np.bool_]) -> Shards:
    """The shards whose rows are meant; they are all or none of a shard's."""
    first = np.cumsum(shards.rows) - shards.rows
    there = [i for i, count in enumerate(shards.rows.tolist()) if count and rows[first[i]]]
    return Shards([shards.names[i] for i in there], shards.rows[there])


def _among(column: pa.ChunkedArray, names: frozenset[str]) -> pa.ChunkedArray:
    return pc.is_in(column.cast(pa.string()), value_set=pa.array(sorted(names), pa.string()))
