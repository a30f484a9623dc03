"""Puts an older manifest in force again: the parent of the present one, or any that is whole."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import RequestError
from curation.manifests.chain import listed
from curation.manifests.latest import publish_latest, read_latest
from curation.manifests.schema import FILES_FILE, HEADER_FILE, content_id
from curation.storage import Folder

SHOWN = 5  # manifests proposed


def rollback(workspace: Folder, name: str | None = None, to: str | None = None) -> dict[str, Any]:
    """Move the pointer of a curation.

    Args:
        workspace: that it lies in.
        name: of the curation.
        to: id of a manifest; None: the parent of the one in force.

    Returns:
        ``manifest`` (URL), ``before`` and ``after`` (ids), the manifest's counts, and its ``report``.

    Raises:
        RequestError: there is no such manifest, or it is not whole; nothing was moved.
        ConflictError: another run moved the pointer meanwhile.
    """
    latest = read_latest(workspace, name)
    to = to or _parent(workspace, latest.id)
    content = check_whole(workspace, to)
    publish_latest(workspace, name, latest, to)
    if not workspace.exists(f"manifests/{to}/{HEADER_FILE}"):  # `curate gc` removes headers, then looks at pointers
        now = read_latest(workspace, name)
        if latest.id and now.id == to:
            publish_latest(workspace, name, now, latest.id)
        raise RequestError(f"manifest {to} was being removed by curate gc: take another one")
    counts, page = content["counts"], f"reports/{to}/index.html"
    return {
        "manifest": workspace.public(f"manifests/{to}/{HEADER_FILE}"),
        "before": latest.id,
        "after": to,
        **{key: counts[key] for key in ("samples", "kept", "dropped", "quarantined") if key in counts},
        "report": workspace.public(page) if workspace.exists(page) else None,
    }


def check_whole(workspace: Folder, id: str) -> dict[str, Any]:
    """See that all files of a manifest are there, at their sizes; ``verify`` reads them too.

    Returns:
        the header's ``content``.

    Raises:
        RequestError: they are not.
    """
    folder = workspace.child(f"manifests/{id}")
    try:
        content: dict[str, Any] = json.loads(folder.read(HEADER_FILE))["content"]
        listing = folder.read(FILES_FILE)
    except FileNotFoundError:
        raise RequestError(f"there is no whole manifest {id} in {workspace.public('manifests')}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{folder.public(HEADER_FILE)} is no header of a manifest: {error}") from error
    if content_id(content) != id or hashlib.sha256(listing).hexdigest() != content["files"]:
        raise RequestError(f"manifest {id} is damaged: see curate verify {folder.public()}")
    sizes = pq.read_table(pa.BufferReader(listing), columns=["size"])["size"].to_pylist()
    wanted = dict(zip((f"manifests/{path}" for path in listed(folder)), sizes, strict=True))
    there: dict[str, int] = {}
    for owner in sorted({path.split("/")[1] for path in wanted}):  # a manifest with a parent has files of ancestors
        there |= {file.path: file.size for file in workspace.list(f"manifests/{owner}")}
    if wrong := sorted(path for path, size in wanted.items() if there.get(path) != size):
        raise RequestError(
            f"manifest {id} is not whole: {workspace.public(wrong[0])} is missing or of another size"
            + (f", and {len(wrong) - 1} more" if wrong[1:] else "")
        )
    return content


def _parent(workspace: Folder, id: str | None) -> str:
    if id is None:
        raise RequestError(f"nothing is in force in {workspace.public()}: name a manifest with --to ID")
    try:
        parent = json.loads(workspace.read(f"manifests/{id}/{HEADER_FILE}"))["content"].get("parent")
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise RequestError(
            f"manifest {id}, which is in force, has no readable header: name one with --to ID"
        ) from error
    if parent is None:
        others = sorted((pair for pair in _begun(workspace) if pair[1] != id), reverse=True)[:SHOWN]
        such = ", ".join(f"{other} ({when})" if when else other for when, other in others)
        raise RequestError(
            f"manifest {id} has no parent: name a manifest with --to ID" + (such and f", such as {such}")
        )
    return str(parent)


def _begun(workspace: Folder) -> Iterator[tuple[str, str]]:
    """When each manifest's run began, and the manifest's id."""
    for file in workspace.list("manifests"):
        if file.path.endswith(f"/{HEADER_FILE}"):
            header = json.loads(workspace.read(file.path))
            yield str(header.get("provenance", {}).get("begun", "")), file.path.split("/")[1]
