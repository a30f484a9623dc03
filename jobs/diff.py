"""``curate diff A B [--out FILE.parquet]``: what came, what went and why, from manifest A to manifest B.

With one manifest, from its parent. ``--out`` names a Parquet file for every sample whose decision changed.
"""

import logging
from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave, split_arguments, take_option
from curation.config import load_config
from curation.errors import RequestError
from curation.manifests.diff import diff
from curation.manifests.reading import ManifestReader
from curation.selection.groups import UNKNOWN

ROWS = 10  # of a dimension, on the screen


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Compare, and print a table."""
    rest = list(arguments)
    out = take_option(rest, "--out", "a Parquet file's name")
    manifests, overrides = split_arguments(rest, 2)
    if not manifests:
        raise RequestError("diff takes one or two manifests: curate diff A B [--out FILE.parquet]")
    storage = load_config(overrides).runtime.storage
    after = manifests[-1]
    before = manifests[0] if len(manifests) == 2 else _parent(after, storage)
    result = diff(before, after, out, storage)
    logging.getLogger("curation").info("%s\n", _table(result))
    return result


def _parent(url: str, storage: dict[str, Any] | None) -> str:
    manifest = ManifestReader(url, storage)
    parent = manifest.header["content"].get("parent")
    if parent is None:
        raise RequestError(f"{manifest.folder.public()} has no parent: name the manifest to compare it with too")
    return f"{manifest.folder.url.rpartition('/')[0]}/{parent}"


def _table(result: dict[str, Any]) -> str:
    kept, samples, shards = result["kept"], result["samples"], result["shards"]
    lines = [f"kept      {kept['before']:,} -> {kept['after']:,}: {kept['came']:,} came, {kept['went']:,} went"]
    lines += [
        f"samples   {samples['before']:,} -> {samples['after']:,}: {samples['new']:,} new, {samples['gone']:,} gone"
    ]
    if shards:
        became = ", ".join(f"{shards[what]:,} {what}" for what in ("new", "gone", "changed"))
        lines += [f"shards    {shards['before']:,} -> {shards['after']:,}: {became}"]
    for change in ("came", "went"):
        lines += [f"{change:9} {count:>9,}  {why}" for why, count in list(result["why"][change].items())[:ROWS]]
    decisions = [f"{count:>9,}  {what}" for what, count in list(result["decisions"].items())[:ROWS]]
    lines += [f"{'decisions' if not i else '':9} {text}" for i, text in enumerate(decisions)]
    for name, told in result["by"].items():
        if told["changed"] and {row["name"] for row in told["most"]} != {UNKNOWN}:
            lines += ["", f"by {name}, {told['changed']:,} changed", *_dimension(told["most"][:ROWS])]
    if result["clusters"] == "other":
        lines += ["", "their clusters were fitted apart: the same number is not the same cluster"]
    if result["header"]:
        lines += ["", "header", *(_differs(*item) for item in list(result["header"].items())[:ROWS])]
    return "\n".join(lines)


def _differs(key: str, values: list[Any]) -> str:
    a, b = (text if len(text) <= 40 else f"{text[:39]}…" for text in map(str, values))
    return f"  {key}: {a} -> {b}"


def _dimension(rows: list[dict[str, Any]]) -> list[str]:
    names = [str(row["name"]) for row in rows]
    names = [name if len(name) <= 50 else f"…{name[-49:]}" for name in names]
    width = max(map(len, names))
    lines = []
    for name, row in zip(names, rows, strict=True):
        totals = f"  {row['before']:,} -> {row['after']:,}" if "before" in row and "after" in row else ""
        lines.append(f"  {name:{width}}  +{row['came']:<8,} -{row['went']:<8,}{totals}".rstrip())
    return lines


if __name__ == "__main__":
    leave(execute(run))
