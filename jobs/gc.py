"""``curate gc workspace=W [--keep N] [--yes]``: remove the manifests that nobody needs, and what only they need.

What is in force stays, with its last N ancestors and what these need; without ``--yes`` it only says what would go.
"""

import logging
from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave, take_option
from curation.config import load_config
from curation.errors import RequestError
from curation.manifests.collect import collect
from curation.manifests.latest import open_published
from curation.runs import record_in

KEEP = 30  # a month of nights
ROWS = 10  # of a kind, on the screen

log = logging.getLogger("curation")


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Print what would go; with ``--yes`` remove it."""
    rest = [text for text in arguments if text != "--yes"]
    remove = len(rest) < len(arguments)
    keep = take_option(rest, "--keep", "how many ancestors stay") or str(KEEP)
    if not keep.isdecimal():
        raise RequestError(f"--keep {keep}: give a whole number of ancestors, 0 or above")
    config = load_config(rest)
    config.require("workspace")
    assert config.workspace
    workspace = open_published(config.workspace, config.runtime.storage)
    if remove:
        record_in(workspace, config.runtime.log_json)
    result = collect(workspace, int(keep), remove)
    log.info("%s\n", _table(result))
    return result


def _table(result: dict[str, Any]) -> str:
    would = "removed" if result["removed"] else "would remove"
    lines = [f"keeps {result['kept']['count']:,} manifests: those in force, up to {result['keep']} ancestors of each, "]
    lines[0] += "those of the last day, and whatever these have files of"
    names = {"manifests": "manifests", "folders": "folders that only these name", "shards": "catalog files"}
    for kind, what in names.items():
        told = result[kind]
        lines.append(f"{would} {told['count']:,} {what}")
        lines += [f"  {name}" for name in told["first"][:ROWS]]
        lines += ["  …"] if told["count"] > ROWS else []
    lines.append(f"{would} {result['bytes'] / 1e9:.4g} GB")
    if result["left"]["count"]:
        lines.append(f"leaves {result['left']['count']:,} folders that no manifest names, such as")
        lines += [f"  {name}" for name in result["left"]["first"][:ROWS]]
    for line in result.get("unfinished", {}).get("first", [])[:ROWS]:
        lines.append(f"nothing would be removed now: {line}")
    if not result["removed"] and result["manifests"]["count"]:
        lines.append("--yes removes it")
    return "\n".join(lines)


if __name__ == "__main__":
    leave(execute(run))
