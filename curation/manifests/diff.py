"""What came, what went and why, from one manifest to another.

Decisions pass by part by part; held are the samples that came or went, and counts.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.catalog.sources import SOURCES_FILE
from curation.errors import CurationError, RequestError
from curation.manifests.aligned import pairs
from curation.manifests.changes import CHANGES, COLUMNS, MOVED, Changes, Shards
from curation.manifests.placed import Side, place
from curation.manifests.reading import ManifestReader
from curation.manifests.schema import HEADER_FILE, ROWS_FILE, batches
from curation.selection.groups import UNKNOWN
from curation.storage import Folder, is_local, local_path

MANY = 20  # rows told of a dimension, transitions, and header keys
LONG = 200  # characters told of a header's value
GENERATIONS = 10_000  # looked back through for an ancestor
UNTOLD = ("counts.", "files", "warnings", "selection.frozen")  # header keys that always differ, or say nothing alone


def diff(before: str, after: str, out: str | None = None, storage: dict[str, Any] | None = None) -> dict[str, Any]:
    """Compare two manifests.

    Args:
        before: URL of a ``manifest.json``, as all readers take it.
        after: of another; they may be of other clusters, catalogs and workspaces.
        out: URL of a Parquet file for every sample whose decision changed, rows as `CHANGES`, not sorted.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.

    Returns:
        ``kept`` and ``samples`` (before, after, and what came, went, or is new, gone), ``why`` (of what came and went),
        ``decisions`` (reason before -> after), ``by`` (of each of `changes.DIMENSIONS` the rows that changed most:
        ``name``, ``came``, ``went`` and, but for region and month, kept ``before`` and ``after``), ``header`` (keys
        that differ), ``clusters`` (same, carried over or other: whether their numbers mean the same), ``table`` (URL of
        ``out``).

    Raises:
        RequestError: there is no such manifest, a file of it is gone, or ``out`` cannot be written.
        CurationError: the figures do not add up: a manifest is damaged.
    """
    one, other = ManifestReader(before, storage), ManifestReader(after, storage)
    changes = Changes(Shards(_sources(one.folder), _sources(other.folder)))
    with ExitStack() as stack:
        write = _writer(stack, out, storage)
        for rows in pairs(one.folder, other.folder, COLUMNS):
            table = changes.add(*rows)
            write(table.filter(pc.invert(pc.is_in(table["change"], MOVED))))
        for table in place(changes.release(), Side(one, storage), Side(other, storage)):
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


def _sources(manifest: Folder) -> dict[str, str] | None:
    """Shard to fingerprint; None for a manifest that says nothing of them."""
    try:
        table = pq.read_table(pa.BufferReader(manifest.read(SOURCES_FILE)), columns=["shard", "fingerprint"])
    except FileNotFoundError:
        return None
    return dict(zip(table["shard"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))


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
    changes: Changes, before: dict[str, Counter[str]], after: dict[str, Counter[str]], clusters: str
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
    if folder.local and os.path.isdir(folder.full(name)):
        raise RequestError(f"--out {folder.public(name)} is a folder: give a file's name")
    folder.check_writable()
    file = stack.enter_context(folder.writer(name))
    writer = stack.enter_context(pq.ParquetWriter(pa.PythonFile(file, "w"), CHANGES, compression="zstd"))

    def write(rows: pa.Table) -> None:
        if len(rows):
            writer.write_table(rows)

    return write


def _folder_and_name(url: str, storage: dict[str, Any] | None) -> tuple[Folder, str]:
    head, _, name = (local_path(url) if is_local(url) else url).rpartition("/")
    return Folder(head or "/", storage), name
