"""What came, what went and why, from one manifest to another.

Decisions pass by part by part; held are the samples that came or went, and counts.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.catalog.schema import FOOTPRINT
from curation.catalog.sources import SOURCES_FILE
from curation.errors import AccessError, CurationError
from curation.manifests.aligned import pairs
from curation.manifests.reading import ManifestReader, open_catalog
from curation.manifests.schema import HEADER_FILE, KEPT, ROWS_FILE, batches
from curation.selection.groups import UNKNOWN, group_texts
from curation.storage import Folder, is_local, local_path

MANY = 20  # rows told of a dimension, transitions, and header keys
LONG = 200  # characters told of a header's value
BATCH = 1 << 16  # samples that came or went, placed at once
GENERATIONS = 10_000  # looked back through for an ancestor
UNTOLD = ("counts.", "files", "warnings", "selection.frozen")  # header keys that always differ, or say nothing alone
REGION_KM = 1000.0  # side of a region's cell where the manifest's config says none
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
GONE = {True: "shard gone", False: "sample gone"}
NEW = {True: "new shard", False: "new sample"}
QUARANTINED = "quarantined now"


def diff(before: str, after: str, out: str | None = None, storage: dict[str, Any] | None = None) -> dict[str, Any]:
    """Compare two manifests.

    Args:
        before: URL of a ``manifest.json``, as all readers take it.
        after: of another; they may be of other clusters, catalogs and workspaces.
        out: URL of a Parquet file for every sample whose decision changed, rows as `CHANGES`, not sorted.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.

    Returns:
        ``kept`` and ``samples`` (before, after, and what came, went, or is new, gone), ``why`` (of what came and went),
        ``decisions`` (reason before -> after), ``by`` (of each of `DIMENSIONS` the rows that changed most: ``name``,
        ``came``, ``went`` and, but for region and month, kept ``before`` and ``after``), ``header`` (keys that differ),
        ``clusters`` (same, carried over or other: whether their numbers mean the same), ``table`` (URL of ``out``).

    Raises:
        RequestError: there is no such manifest, or a file of it is gone.
        CurationError: the figures do not add up: a manifest is damaged.
    """
    one, other = ManifestReader(before, storage), ManifestReader(after, storage)
    changes = _Changes(_Shards.of(one, other))
    with ExitStack() as stack:
        write = _writer(stack, out, storage)
        for rows in pairs(one.folder, other.folder, COLUMNS):
            table = changes.add(*rows)
            write(table.filter(pc.invert(pc.is_in(table["change"], pa.array(["came", "went"])))))
        for table in _place(changes, one, other, storage):
            changes.count(table)
            write(table)
    came, went = changes.total("came"), changes.total("went")
    if one.num_rows - went + came != other.num_rows:
        raise CurationError(
            f"{one.num_rows} kept - {went} + {came} are not {other.num_rows}: curate verify finds the damaged manifest"
        )
    relation = _clusters(one, other)
    counts = [reader.header["content"]["counts"] for reader in (one, other)]
    return {
        "manifest": other.folder.public(HEADER_FILE),
        "before": one.folder.public(HEADER_FILE),
        "kept": {"before": one.num_rows, "after": other.num_rows, "came": came, "went": went},
        "samples": {
            **{"before": counts[0]["samples"], "after": counts[1]["samples"]},
            **{"new": changes.new, "gone": changes.gone},
        },
        "shards": changes.shards.counts,
        "why": {name: dict(changes.why[name].most_common()) for name in ("came", "went")},
        "decisions": dict(changes.decisions.most_common(MANY)),
        "by": _dimensions(changes, _totals(one), _totals(other), relation),
        "header": _header(one.header["content"], other.header["content"]),
        "clusters": relation,
        "table": _folder_and_name(out, storage)[0].public(_folder_and_name(out, storage)[1]) if out else None,
    }


# shards


@dataclass(frozen=True)
class _Shards:
    """The frozen listings of both, where ``sources.parquet`` tells them."""

    before: dict[str, str] | None
    after: dict[str, str] | None

    @classmethod
    def of(cls, one: ManifestReader, other: ManifestReader) -> "_Shards":
        return cls(_sources(one.folder), _sources(other.folder))

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


def _sources(manifest: Folder) -> dict[str, str] | None:
    """Shard to fingerprint; None for a manifest that says nothing of them."""
    try:
        table = pq.read_table(pa.BufferReader(manifest.read(SOURCES_FILE)), columns=["shard", "fingerprint"])
    except FileNotFoundError:
        return None
    return dict(zip(table["shard"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))


# decisions


@dataclass
class _Changes:
    """What is learnt while the decisions pass by."""

    shards: _Shards
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
        stays = np.asarray(at.is_valid())
        a, b = before.filter(pa.array(stays)), after.take(at.drop_null())
        differs = pc.not_equal(a["reason"], b["reason"])
        a, b = a.filter(differs), b.filter(differs)
        fresh = np.ones(len(after), bool)
        fresh[np.asarray(at.drop_null())] = False
        gone, new = before.filter(pa.array(~stays)), after.filter(pa.array(fresh))
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
        self.held.append(table.filter(pc.is_in(table["change"], pa.array(["came", "went"]))))
        return table

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
    return _table(
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
    return _table(
        rows,
        change=np.where(kept, *change).tolist(),
        why=[elsewhere[shard] for shard in rows["shard"].to_pylist()],
        **{f"reason_{side}": rows["reason"], f"cluster_{side}": rows["cluster"]},
        duplicate_of=rows["duplicate_of"] if side == "after" else None,
    )


def _table(rows: pa.Table, **columns: Any) -> pa.Table:
    """A table of `CHANGES`; what is not given is null."""
    given = {**{name: rows[name] for name in COLUMNS[:4]}, **columns}
    arrays = []
    for column in CHANGES:
        value = given.get(column.name)
        value = pa.nulls(len(rows), column.type) if value is None else value
        arrays.append(pa.array(value, column.type) if isinstance(value, list) else value.cast(column.type))
    return pa.table(arrays, schema=CHANGES)


# places: class, region and month of what came or went


def _place(
    changes: _Changes, one: ManifestReader, other: ManifestReader, storage: dict[str, Any] | None
) -> Iterator[pa.Table]:
    """The samples that came or went, sorted by shard, some at a time, with class, region and month."""
    held = pa.concat_tables([CHANGES.empty_table(), *changes.held])
    changes.held.clear()
    held = held.sort_by([("shard", "ascending"), ("index", "ascending"), ("change", "ascending")]).combine_chunks()
    sides = {"went": _Side(one, storage), "came": _Side(other, storage)}
    quarantine = open_catalog(other, storage)
    waiting: list[pa.Table] = []
    for shard, start, stop in _runs(held["shard"]):
        for change, side in sides.items():
            rows = held.slice(start, stop - start)
            rows = rows.filter(pc.equal(rows["change"], change))
            if not len(rows):
                continue
            if pc.any(pc.equal(rows["why"], GONE[False])).as_py():
                lost = quarantine.quarantine(shard)["key"]
                now = pc.and_(
                    pc.equal(rows["why"], GONE[False]), pc.is_in(rows["key"], value_set=lost.combine_chunks())
                )
                rows = _set(rows, "why", pc.if_else(now, QUARANTINED, rows["why"]))
            waiting.append(side.place(shard, rows))
        if sum(map(len, waiting)) >= BATCH:
            yield _named(waiting, sides["came"].region_km)
            waiting = []
    if waiting:
        yield _named(waiting, sides["came"].region_km)


class _Side:
    """A manifest, and what it and its catalog tell of its kept samples."""

    def __init__(self, manifest: ManifestReader, storage: dict[str, Any] | None) -> None:
        self.manifest, self.store = manifest, open_catalog(manifest, storage)
        index = manifest.shards()
        names, first, stop = index.names.to_pylist(), index.first.tolist(), index.stop.tolist()
        self.rows = dict(zip(names, zip(first, stop, strict=True), strict=True))
        config = manifest.header["content"].get("config", {})
        self.region_km = float(config.get("select", {}).get("region_km", REGION_KM))

    def place(self, shard: str, rows: pa.Table) -> pa.Table:
        """Rows of `CHANGES` of one shard, with their class, and the columns ``time`` and ``footprint``."""
        ids = rows["sample_id"].combine_chunks()
        kept = self.manifest.rows(*self.rows[shard])
        at = pc.index_in(ids, value_set=kept["sample_id"].combine_chunks())
        rows = _set(rows, "class", pc.coalesce(kept["label"], kept["scene"]).take(at))
        try:
            catalog = self.store.read(shard, ["sample_id", "time", "footprint"])
            at = pc.index_in(ids, value_set=catalog["sample_id"].combine_chunks())
            time, footprint = (catalog[name].combine_chunks().take(at) for name in ("time", "footprint"))
        except AccessError:  # the shard is gone, and so is its file
            time, footprint = pa.nulls(len(rows), pa.timestamp("us", tz="UTC")), pa.nulls(len(rows), FOOTPRINT)
        return rows.append_column("time", time).append_column("footprint", footprint)


def _named(tables: list[pa.Table], region_km: float) -> pa.Table:
    """Rows of `CHANGES`, with texts for what is known of the place and time; `UNKNOWN` for what is not."""
    rows = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    month = pc.strftime(rows["time"].cast(pa.timestamp("us")), format="%Y-%m")
    named = {
        "class": pc.fill_null(rows["class"], UNKNOWN),
        "region": group_texts(["region"], rows, region_km).cast(pa.string()),
        "month": pc.fill_null(month, UNKNOWN),
    }
    for name, values in named.items():
        rows = _set(rows, name, values)
    return rows.select(CHANGES.names).cast(CHANGES)


def _runs(shards: pa.ChunkedArray) -> Iterator[tuple[str, int, int]]:
    """Each shard of a sorted column, and its rows."""
    encoded = pc.run_end_encode(shards.combine_chunks()) if len(shards) else None
    start = 0
    for shard, stop in zip(encoded.values.to_pylist(), encoded.run_ends.to_pylist(), strict=True) if encoded else ():
        yield shard, start, stop
        start = stop


def _set(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


# what is told


def _totals(manifest: ManifestReader) -> dict[str, Counter[str]]:
    """Kept samples by shard, cluster and class."""
    totals: dict[str, Counter[str]] = {name: Counter() for name in ("shard", "cluster", "class")}
    for batch in batches(manifest.folder, ROWS_FILE, ["shard", "cluster", "label", "scene"]):
        kind = pc.fill_null(pc.coalesce(batch["label"], batch["scene"]), UNKNOWN)
        for name, column in (
            ("shard", batch["shard"]),
            ("cluster", batch["cluster"].cast(pa.string())),
            ("class", kind),
        ):
            for pair in pc.value_counts(column).to_pylist():
                totals[name][pair["values"]] += pair["counts"]
    return totals


def _dimensions(
    changes: _Changes, before: dict[str, Counter[str]], after: dict[str, Counter[str]], clusters: str
) -> dict[str, Any]:
    """Of each dimension what changed most."""
    told = {}
    for name, moved in changes.by.items():
        totals = [before.get(name), after.get(name)]
        if name == "cluster" and clusters == "other":  # their numbers mean nothing to each other
            moved = {
                change: Counter({f"{label}:{k}": n for k, n in moved[change].items()})
                for change, label in (("came", "after"), ("went", "before"))
            }
            totals = [
                counts and Counter({f"{label}:{k}": n for k, n in counts.items()})
                for label, counts in zip(("before", "after"), totals, strict=True)
            ]
        largest = sorted(sum(moved.values(), Counter()).items(), key=lambda pair: (-pair[1], pair[0]))
        rows = []
        for label, _ in largest[:MANY]:
            row: dict[str, Any] = {"name": label, "came": moved["came"][label], "went": moved["went"][label]}
            for side, counts in zip(("before", "after"), totals, strict=True):
                if counts is not None:
                    row[side] = counts[label]
            rows.append(row)
        told[name] = {"changed": len(largest), "most": rows}
    return told


def _clusters(one: ManifestReader, other: ManifestReader) -> str:
    """Whether the numbers of their clusters mean the same: a manifest with a parent carries these over."""
    if one.header["content"].get("clusters") == other.header["content"].get("clusters"):
        return "same"
    related = any(a.id in _ancestors(b) for a, b in ((one, other), (other, one)))
    return "carried over" if related else "other"


def _ancestors(manifest: ManifestReader) -> set[str]:
    """Ids of the manifests that it goes on from, as far back as there are headers."""
    found: set[str] = set()
    parent = manifest.header["content"].get("parent")
    while parent is not None and len(found) < GENERATIONS and parent not in found:
        found.add(parent)
        try:
            parent = json.loads(manifest.folder.parent.read(f"{parent}/{HEADER_FILE}"))["content"].get("parent")
        except FileNotFoundError:
            break
    return found


def _header(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    """What else differs in the headers: dotted key to the values before and after, cut short."""
    one, other = (dict(_flat(content)) for content in (before, after))
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    keys = [key for key in keys if not key.startswith(UNTOLD)]
    return {key: [_short(one.get(key)), _short(other.get(key))] for key in keys[:MANY]}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _flat(below, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _short(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    return value if len(text) <= LONG else text[: LONG - 1] + "…"


# the table


def _writer(stack: ExitStack, out: str | None, storage: dict[str, Any] | None) -> Callable[[pa.Table], None]:
    """What adds rows to the file; it is there, whole, once the stack has ended."""
    if out is None:
        return lambda rows: None
    folder, name = _folder_and_name(out, storage)
    file = stack.enter_context(folder.writer(name))
    writer = stack.enter_context(pq.ParquetWriter(pa.PythonFile(file, "w"), CHANGES, compression="zstd"))

    def write(rows: pa.Table) -> None:
        if len(rows):
            writer.write_table(rows)

    return write


def _folder_and_name(url: str, storage: dict[str, Any] | None) -> tuple[Folder, str]:
    head, _, name = (local_path(url) if is_local(url) else url).rpartition("/")
    return Folder(head or "/", storage), name
