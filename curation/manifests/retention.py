"""What `curate gc` may remove: the manifests that nobody needs any more, and what only they need.

Kept are the manifests that are in force, their ancestors as far back as asked for, those of the last day, those that
`curate apply` made, whatever manifest any of these has files of, and everything that these name. Removed is what a
removed manifest names and nothing kept does; what no manifest ever named (a catalog that is still being filled, say) is
left alone.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.catalog.sources import SOURCES_FILE
from curation.errors import RequestError
from curation.manifests.chain import referenced
from curation.manifests.latest import latest_path, read_pointers
from curation.manifests.schema import HEADER_FILE
from curation.storage import FileInfo, Folder

TOMBSTONE = "removed.json"  # a removed manifest's header, for as long as its folder is being removed
DAY = 86_400  # seconds
KINDS = ("clusters", "scores")  # folders of the workspace whose folders manifests name
ABOUT = ("fit.json", "score.json", "consistency.json")  # what says in turn which others these need
ELSEWHERE = {  # results that may name them too, and what their files that say so end with
    **{"comparisons": ".json", "choices": ".json", "pretrained": ".json"},
    "distilled": f"/{HEADER_FILE}",
}
HARMLESS = ("gc", "status", "rollback", "diff", "verify", "explain", "inspect", "plan", "submit", "schedule")  # jobs


@dataclass
class Plan:
    """What would go.

    Attributes:
        pointers: name of each curation to the id in force.
        kept: ids of manifests.
        manifests: ids of those that go.
        folders: below the workspace, that go whole: clusters, scores, catalogs, quarantines, encoders, reports.
        shards: catalog files, and their quarantine files, that go from catalogs that stay.
        left: folders that no manifest names.
        bytes: of all that goes.
    """

    pointers: dict[str | None, str]
    kept: set[str]
    manifests: list[str]
    folders: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    bytes: int = 0


def plan_removal(workspace: Folder, keep: int, now: float | None = None) -> Plan:
    """See what a workspace can do without.

    Args:
        workspace: it all lies in.
        keep: ancestors of each manifest in force that stay.
        now: seconds since 1970.

    Raises:
        RequestError: something cannot be understood, so that nothing can be said to be superfluous.
    """
    now = time.time() if now is None else now
    files = workspace.list("manifests")
    headers = {id: _header(workspace, f"manifests/{id}/{HEADER_FILE}") for id in _having(files, HEADER_FILE)}
    pointers = {name: str(latest.id) for name, latest in read_pointers(workspace)}
    if not pointers:
        path = workspace.public(latest_path(None))
        raise RequestError(f"there is no {path}, so that nothing says what to keep: curate rollback puts one in force")
    kept = _kept(workspace, headers, pointers, keep, now)
    going = {id: header for id, header in headers.items() if id not in kept}
    for id in _having(files, TOMBSTONE) - headers.keys() - kept:
        going[id] = _header(workspace, f"manifests/{id}/{TOMBSTONE}")
    plan = Plan(pointers, kept, sorted(going))
    there = {kind: _sizes(workspace.list(kind)) for kind in (*KINDS, "reports", "encoders")}
    known = {f"{kind}/{name}" for kind in KINDS for name in there[kind]}
    known |= {f"catalog/{name}" for name in there["encoders"]}
    known |= {f"catalog/{header['content'].get('catalog')}" for header in (*headers.values(), *going.values())}
    staying = {id: header for id, header in headers.items() if id in kept}
    needed = _reach(workspace, [*staying.values(), *_results(workspace)], known)
    named = _reach(workspace, going.values(), known)
    plan.left = sorted(known - needed - named)
    for path in sorted(named - needed):
        kind, _, name = path.partition("/")
        plan.folders += [path] if kind in KINDS else [path, f"quarantine/{name}", f"encoders/{name}"]
    plan.folders += [f"reports/{id}" for id in plan.manifests if id in there["reports"]]
    for path in sorted(needed):
        if path.startswith("catalog/"):
            found = _superfluous(workspace, path, staying, going)
            plan.shards += sorted(found)
            plan.bytes += sum(found.values())
    sizes = _sizes(files)
    plan.bytes += sum(sizes.get(id, 0) for id in plan.manifests)
    plan.bytes += sum(file.size for path in plan.folders for file in workspace.list(path))
    return plan


def unfinished(workspace: Folder, now: float | None = None) -> list[str]:
    """The runs that may still need what no manifest in force names: one line each.

    A killed run's sign of life grows older, and after a day it counts no more.
    """
    now = time.time() if now is None else now
    found = []
    for name in sorted({file.path.split("/")[1] for file in workspace.list("unfinished")}):
        begun = name.partition("-")[0]
        if not begun.isdigit() or now - int(begun) < DAY:
            found.append(f"{workspace.public(f'unfinished/{name}')} is being written")
    for file in workspace.list("runs", recursive=False):
        run = _json(workspace, file.path)
        if run.get("state") == "running" and run.get("job") not in HARMLESS:
            seen = _seconds(run.get("heartbeat") or run.get("begun"))
            if seen is None or now - seen < DAY:
                found.append(f"{workspace.public(file.path)} says that it is running")
    return found


# manifests


def _kept(
    workspace: Folder, headers: Mapping[str, Any], pointers: Mapping[str | None, str], keep: int, now: float
) -> set[str]:
    """Ids of what is in force, of its ancestors, of the last day's, and of those that any of them has files of."""
    kept: set[str] = set()
    for name, id in pointers.items():
        if id not in headers:
            path = workspace.public(latest_path(name))
            raise RequestError(f"{path} names {id}, which is no whole manifest: curate rollback to another first")
        ancestor: str | None = id
        for _ in range(keep + 1):
            if ancestor is None or ancestor not in headers:
                break
            kept.add(ancestor)
            ancestor = headers[ancestor]["content"].get("parent")
    kept |= {id for id, header in headers.items() if "applied" in header["content"] or _is_young(header, now)}
    pending = sorted(kept)
    while pending:
        id = pending.pop()
        try:
            others = referenced(workspace.child(f"manifests/{id}"))
        except FileNotFoundError:
            if id in headers:
                raise RequestError(f"manifest {id} is not whole: see curate verify, or remove it by hand") from None
            continue  # files of what an earlier gc began to remove, and would not now
        pending += sorted(others - kept)
        kept |= others
    return kept


def _is_young(header: Mapping[str, Any], now: float) -> bool:
    """Whether a manifest was made within the last day."""
    provenance = header.get("provenance") or {}
    begun = _seconds(provenance.get("begun"))
    return begun is not None and now - begun - float(provenance.get("seconds") or 0) < DAY


def _having(files: Iterable[FileInfo], name: str) -> set[str]:
    """The folders below ``manifests`` that have a file of this name."""
    parts = [file.path.split("/") for file in files]
    return {part[1] for part in parts if len(part) == 3 and part[2] == name}


# what they name


def _reach(workspace: Folder, values: Iterable[Any], known: set[str]) -> set[str]:
    """Those of the known folders that some JSON values name, and those that are named by what lies there."""
    found: set[str] = set()
    by_name: dict[str, list[str]] = {}
    for path in known:
        by_name.setdefault(path.partition("/")[2], []).append(path)
    pending = list(values)
    while pending:
        new = {path for text in _texts(_without_parent(pending.pop())) for path in by_name.get(text, ())} - found
        found |= new
        pending += [_json(workspace, f"{path}/{name}") for path in sorted(new) for name in ABOUT]
    return found


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON value, and the parts of those that are paths."""
    if isinstance(value, str):
        yield from value.split("/")
    elif isinstance(value, dict):
        for name, below in value.items():
            yield name
            yield from _texts(below)
    elif isinstance(value, list):
        for below in value:
            yield from _texts(below)


def _without_parent(value: Any) -> Any:
    """A header without its parent, which it names and yet can do without."""
    if not isinstance(value, dict) or "content" not in value:
        return value
    return {**value, "content": {name: below for name, below in value["content"].items() if name != "parent"}}


def _results(workspace: Folder) -> Iterator[Any]:
    """What comparisons and the like say of themselves."""
    for folder, ending in ELSEWHERE.items():
        for file in workspace.list(folder):
            if file.path.endswith(ending):
                yield _json(workspace, file.path)


def _superfluous(workspace: Folder, path: str, staying: Mapping[str, Any], going: Mapping[str, Any]) -> dict[str, int]:
    """Files of a catalog that stays, of shards that only manifests that go have read; path to bytes."""
    users = [
        [id for id, header in headers.items() if f"catalog/{header['content'].get('catalog')}" == path]
        for headers in (going, staying)
    ]
    wanted = pa.array([], pa.string())
    for id in users[0]:
        if (shards := _sources(workspace, id)) is not None:
            wanted = pc.unique(pa.concat_arrays([wanted, shards]))
    for id in users[1]:
        shards = _sources(workspace, id) if len(wanted) else wanted
        if shards is None:  # nobody knows what it has read
            return {}
        wanted = wanted.filter(pc.invert(pc.is_in(wanted, value_set=shards)))
    if not len(wanted):
        return {}
    apart = workspace.list(path.replace("catalog/", "quarantine/", 1))  # a killed gc may leave these alone
    there = {file.path.replace("quarantine/", "catalog/", 1): 0 for file in apart}
    there |= {file.path: file.size for file in workspace.list(path)}
    names = (f"{path}/{shard}.parquet" for shard in wanted.to_pylist())
    return {name: there[name] for name in names if name in there}


def _sources(workspace: Folder, id: str) -> pa.Array | None:
    """The shards that a manifest was made of; None where it does not tell."""
    try:
        data = workspace.read(f"manifests/{id}/{SOURCES_FILE}")
    except FileNotFoundError:
        return None
    return pq.read_table(pa.BufferReader(data), columns=["shard"])["shard"].combine_chunks().cast(pa.string())


# files


def _header(workspace: Folder, path: str) -> dict[str, Any]:
    header = _json(workspace, path)
    if not isinstance(header.get("content"), dict):
        raise RequestError(f"{workspace.public(path)} is no header of a manifest: restore it, or remove its folder")
    return header


def _json(workspace: Folder, path: str) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file.

    Raises:
        RequestError: it is none.
    """
    try:
        value = json.loads(workspace.read(path))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RequestError(f"{workspace.public(path)} is no JSON ({error}): restore it, or remove it") from error
    return value if isinstance(value, dict) else {"": value}


def _sizes(files: Iterable[FileInfo]) -> dict[str, int]:
    """Bytes of the folders directly below the one that was listed."""
    sizes: dict[str, int] = {}
    for file in files:
        name = file.path.split("/")[1]
        sizes[name] = sizes.get(name, 0) + file.size
    return sizes


def _seconds(text: str | None) -> float | None:
    """Since 1970, of a time as headers and records have it; None where it is none."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return None
