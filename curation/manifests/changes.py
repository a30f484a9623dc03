"""Which decisions differ between two manifests, and why: rows of `CHANGES`, and counts of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.manifests.schema import KEPT

DIMENSIONS = ("shard", "cluster", "class", "region", "month")
COLUMNS = ("sample_id", "shard", "index", "key", "reason", "cluster", "duplicate_of")

CHANGES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("change", pa.string(), nullable=False),  # came, went; of others decision, new, gone
        pa.field("why", pa.string(), nullable=False),
        pa.field("reason_before", pa.string()),
        pa.field("reason_after", pa.string()),
        pa.field("cluster_before", pa.int32()),
        pa.field("cluster_after", pa.int32()),
        pa.field("duplicate_of", pa.string()),  # after: what stands for it
        pa.field("class", pa.string()),  # the label, else the scene of the cluster; of what came or went, as the next
        pa.field("region", pa.string()),  # latitude and longitude of the cell's centre
        pa.field("month", pa.string()),  # as 2026-11
    ]
)

RULES = {
    "split": "the splits",
    "split_edge": "the splits' edges",
    "excluded": "select.exclude",
    "cluster_excluded": "select.clusters",
    "unscored": "having no score",
    "invalid": "the validity cut",
    "cloud": "the cloud cut",
    "entropy": "the entropy cut",
    "hard": "the cut of the hardest",
}
WENT = {
    "quota": "displaced by quota",
    "duplicate": "became a duplicate",
    "place": "became a duplicate by place",
    **{reason: f"now beyond {rule}" for reason, rule in RULES.items() if "cut" in rule},
    **{reason: f"now dropped by {rule}" for reason, rule in RULES.items() if "cut" not in rule},
}
CAME = {
    "quota": "promoted by quota",
    "duplicate": "no longer a duplicate",
    "place": "no longer a duplicate by place",
    **{reason: f"no longer beyond {rule}" for reason, rule in RULES.items() if "cut" in rule},
    **{reason: f"no longer dropped by {rule}" for reason, rule in RULES.items() if "cut" not in rule},
}
MOVED = pa.array(["came", "went"])
GONE = {True: "shard gone", False: "sample gone"}
NEW = {True: "new shard", False: "new sample"}
QUARANTINED = "quarantined now"


@dataclass(frozen=True)
class Shards:
    """The frozen listings of both, where ``sources.parquet`` tells them."""

    before: dict[str, str] | None
    after: dict[str, str] | None

    @property
    def counts(self) -> dict[str, int] | None:
        """How many there are, and what became of them; None where that is not known."""
        if self.before is None or self.after is None:
            return None
        both = self.before.keys() & self.after.keys()
        return {
            "before": len(self.before),
            "after": len(self.after),
            "new": len(self.after) - len(both),
            "gone": len(self.before) - len(both),
            "changed": sum(self.before[shard] != self.after[shard] for shard in both),
        }


@dataclass
class Changes:
    """What is learnt while the decisions pass by."""

    shards: Shards
    held: list[pa.Table] = field(default_factory=list)  # what came or went
    decisions: Counter[str] = field(default_factory=Counter)
    why: dict[str, Counter[str]] = field(default_factory=lambda: {"came": Counter(), "went": Counter()})
    by: dict[str, dict[str, Counter[str]]] = field(
        default_factory=lambda: {name: {"came": Counter(), "went": Counter()} for name in DIMENSIONS}
    )
    new: int = 0
    gone: int = 0

    def add(self, before: pa.Table, after: pa.Table) -> pa.Table:
        """The changes among the rows of some shards, as `CHANGES` without places."""
        at = pc.index_in(before["sample_id"], value_set=after["sample_id"].combine_chunks()).combine_chunks()
        differs = pc.fill_null(pc.not_equal(before["reason"], after["reason"].take(at)), False)
        a, b = before.filter(differs), after.take(at.filter(differs.combine_chunks()))
        fresh = np.ones(len(after), bool)
        fresh[np.asarray(at.drop_null())] = False
        gone, new = before.filter(at.is_null()), after.filter(pa.array(fresh))
        self.gone, self.new = self.gone + len(gone), self.new + len(new)
        for pair in pc.value_counts(pc.binary_join_element_wise(a["reason"], b["reason"], " -> ")).to_pylist():
            self.decisions[pair["values"]] += pair["counts"]
        known_after = self.shards.after if self.shards.after is not None else _names(after)
        known_before = self.shards.before if self.shards.before is not None else _names(before)
        table = pa.concat_tables(
            [
                _decided_anew(a, b),
                _one_sided(gone, known_after, GONE, "before"),
                _one_sided(new, known_before, NEW, "after"),
            ]
        )
        self.held.append(table.filter(pc.is_in(table["change"], MOVED)))
        return table

    def release(self) -> pa.Table:
        """What came or went so far; it is held no more."""
        held = pa.concat_tables([CHANGES.empty_table(), *self.held])
        self.held.clear()
        return held

    def count(self, rows: pa.Table) -> None:
        """Count placed rows that came or went."""
        for change in ("came", "went"):
            own = rows.filter(pc.equal(rows["change"], change))
            cluster = own["cluster_after" if change == "came" else "cluster_before"].cast(pa.string())
            for counter, column in (
                (self.why[change], own["why"]),
                (self.by["cluster"][change], cluster),
                *((self.by[name][change], own[name]) for name in DIMENSIONS if name != "cluster"),
            ):
                for pair in pc.value_counts(column).to_pylist():
                    counter[pair["values"]] += pair["counts"]

    def total(self, change: str) -> int:
        """How many came, or went."""
        return self.why[change].total()


def _names(rows: pa.Table) -> set[str]:
    return set(rows["shard"].unique().to_pylist())


def _why(before: str, after: str) -> tuple[str, str]:
    """What changed for samples that both decide over, and why."""
    if before in KEPT and after not in KEPT:
        return "went", WENT.get(after, f"now dropped: {after}")
    if before not in KEPT and after in KEPT:
        return "came", CAME.get(before, f"no longer dropped: {before}")
    return "decision", f"{before} -> {after}"


def _decided_anew(a: pa.Table, b: pa.Table) -> pa.Table:
    """Rows of `CHANGES` for samples of both, in the same order."""
    told = [_why(*reasons) for reasons in zip(a["reason"].to_pylist(), b["reason"].to_pylist(), strict=True)]
    return _changed_rows(
        b,
        change=[change for change, _ in told],
        why=[text for _, text in told],
        reason_before=a["reason"],
        reason_after=b["reason"],
        cluster_before=a["cluster"],
        cluster_after=b["cluster"],
        duplicate_of=b["duplicate_of"],
    )


def _one_sided(rows: pa.Table, others: Mapping[str, str] | set[str], words: dict[bool, str], side: str) -> pa.Table:
    """Rows of `CHANGES` for samples that only one manifest decides over."""
    kept = np.asarray(pc.is_in(rows["reason"], value_set=pa.array(KEPT)))
    change = ("went", "gone") if side == "before" else ("came", "new")
    elsewhere = {shard: words[shard not in others] for shard in _names(rows)}
    return _changed_rows(
        rows,
        change=np.where(kept, *change).tolist(),
        why=[elsewhere[shard] for shard in rows["shard"].to_pylist()],
        **{f"reason_{side}": rows["reason"], f"cluster_{side}": rows["cluster"]},
        duplicate_of=rows["duplicate_of"] if side == "after" else None,
    )


def _changed_rows(rows: pa.Table, **columns: Any) -> pa.Table:
    """A table of `CHANGES`; what is not given is null."""
    given = {**{name: rows[name] for name in COLUMNS[:4]}, **columns}
    arrays = []
    for column in CHANGES:
        value = given.get(column.name)
        value = pa.nulls(len(rows), column.type) if value is None else value
        arrays.append(pa.array(value, column.type) if isinstance(value, list) else value.cast(column.type))
    return pa.table(arrays, schema=CHANGES)
