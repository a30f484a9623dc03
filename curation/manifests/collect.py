"""Removes what a workspace can do without: `curate gc`.

In this order, so that a run that is killed in between leaves no header without its files, and the next one goes on: the
headers are set aside under another name (what they name is still known), what they alone needed goes, their files go,
and last what was set aside.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from curation.errors import ConflictError, CurationError
from curation.manifests.chain import referenced
from curation.manifests.latest import read_pointers
from curation.manifests.retention import TOMBSTONE, Plan, plan_removal, unfinished
from curation.manifests.schema import HEADER_FILE
from curation.storage import IN_FLIGHT, Folder

SHOWN = 100  # names of a kind in the result
MARKERS = ("centroids.parquet", "score.json", "consistency.json")  # whose presence means that the rest is there


def collect(workspace: Folder, keep: int, remove: bool = False, now: float | None = None) -> dict[str, Any]:
    """Say what a workspace can do without, and remove it if asked to.

    Args:
        workspace: it all lies in.
        keep: ancestors of each manifest in force that stay.
        remove: do it.
        now: seconds since 1970.

    Returns:
        ``removed`` (whether it was), ``kept`` (manifests), ``manifests``, ``folders`` and ``shards`` (catalog files)
        that go, ``left`` (folders that no manifest names), each a count and the first names; ``bytes``.

    Raises:
        RequestError: something cannot be understood; nothing was removed.
        CurationError: a run that may need it is under way, or another gc is; nothing was removed.
        ConflictError: another manifest was put in force meanwhile; nothing was removed.
    """
    plan = plan_removal(workspace, keep, now)
    result = {
        "workspace": workspace.public(),
        "removed": False,
        "keep": keep,
        "pointers": {name or "": id for name, id in plan.pointers.items()},
        "kept": _told(sorted(plan.kept)),
        **{name: _told(getattr(plan, name)) for name in ("manifests", "folders", "shards", "left")},
        "bytes": plan.bytes,
    }
    under_way = unfinished(workspace, now)
    if under_way:
        result["unfinished"] = _told(under_way)
    if not remove:
        return result
    if under_way:
        error = CurationError(f"nothing is removed while a run may need it: {under_way[0]}; wait for it, or for a day")
        error.result = result
        raise error
    _remove(workspace, plan)
    return {**result, "removed": True}


def _told(names: list[str]) -> dict[str, Any]:
    return {"count": len(names), "first": names[:SHOWN]}


def _remove(workspace: Folder, plan: Plan) -> None:
    _set_aside(workspace, plan)
    for folder in plan.folders:
        files = [file.path for file in workspace.list(folder)]
        _remove_files(workspace, [path for path in files if path.rpartition("/")[2] in MARKERS])
        _remove_files(workspace, files)
        workspace.discard(folder)
    quarantines = [path.replace("catalog/", "quarantine/", 1) for path in plan.shards]
    _remove_files(workspace, [*plan.shards, *quarantines])
    for id in plan.manifests:
        folder = f"manifests/{id}"
        _remove_files(workspace, [file.path for file in workspace.list(folder) if not file.path.endswith(TOMBSTONE)])
        workspace.discard(folder)


def _set_aside(workspace: Folder, plan: Plan) -> None:
    """Give headers another name; all have theirs again where one turns out to be needed.

    Raises:
        CurationError: another gc is under way; ConflictError: a manifest that goes was put in force, or gone on from.
    """
    moved: list[str] = []
    for id in plan.manifests:
        try:
            workspace.move(f"manifests/{id}/{HEADER_FILE}", f"manifests/{id}/{TOMBSTONE}")
            moved.append(id)
        except FileNotFoundError:  # a run that was killed has set it aside
            if not workspace.exists(f"manifests/{id}/{TOMBSTONE}"):
                raise CurationError(f"manifest {id} is being removed by another gc: let that one end") from None
    wanted = _wanted(workspace, plan)
    if wanted:
        for id in moved:
            workspace.move(f"manifests/{id}/{TOMBSTONE}", f"manifests/{id}/{HEADER_FILE}")
        raise ConflictError(
            f"manifest {wanted[0]} came to be needed while gc looked: nothing was removed; run it again"
        )


def _wanted(workspace: Folder, plan: Plan) -> list[str]:
    """Those that go and that a pointer names now, or a manifest that was not there before has files of."""
    files = workspace.list("manifests")
    headers = {file.path.split("/")[1] for file in files if file.path.endswith(f"/{HEADER_FILE}")}
    named = {str(latest.id) for _, latest in read_pointers(workspace)}
    for id in headers - plan.kept:
        named |= referenced(workspace.child(f"manifests/{id}"))
    return sorted(named & set(plan.manifests))


def _remove_files(workspace: Folder, paths: Iterable[str]) -> None:
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        list(pool.map(workspace.remove, paths))
