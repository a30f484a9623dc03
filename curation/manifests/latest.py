"""Which manifest is in force: ``manifests/latest.json``, or ``latest-<name>.json`` of a named curation.

A run reads the pointer when it begins and swaps it when it ends; whoever finds it moved in between leaves it alone.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from curation.errors import ConflictError, RequestError
from curation.manifests.schema import HEADER_FILE, json_bytes
from curation.storage import Folder

POINTER = re.compile(r"latest(?:-([A-Za-z0-9._-]+))?\.json")


@dataclass(frozen=True)
class Latest:
    """A pointer as it was read.

    Attributes:
        id: of the manifest in force; None: there is none.
        version: see `Folder.versioned`; None: there is no such file.
    """

    id: str | None
    version: str | None


def open_published(url: str, storage: dict[str, Any] | None) -> Folder:
    """A workspace that has manifests, to be changed.

    Raises:
        RequestError: it has none, or cannot be written.
    """
    workspace = Folder(url, storage, "workspace")
    if not workspace.exists("manifests"):
        raise RequestError(f"there is no manifest in {workspace.public()}: give the workspace of a curate prune")
    workspace.check_writable()
    return workspace


def latest_path(name: str | None) -> str:
    """Where a curation's pointer lies, below the workspace; ``name``: its name, None for the one without."""
    return f"manifests/latest-{name}.json" if name else "manifests/latest.json"


def read_latest(workspace: Folder, name: str | None) -> Latest:
    """What is in force now.

    Raises:
        RequestError: the file is no pointer.
    """
    path = latest_path(name)
    found = workspace.versioned(path)
    if found is None:
        return Latest(None, None)
    try:
        return Latest(str(json.loads(found[0])["id"]), found[1])
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f'{workspace.public(path)} is no pointer: it should say {{"id": …}}; remove it') from error


def content_in_force(workspace: Folder, name: str | None, id: str) -> dict[str, Any]:
    """The content of the manifest that the pointer of a curation names.

    Raises:
        RequestError: the manifest is gone.
    """
    folder = workspace.child(f"manifests/{id}")
    try:
        content: dict[str, Any] = json.loads(folder.read(HEADER_FILE))["content"]
    except FileNotFoundError:
        raise RequestError(
            f"{folder.public()}, which is in force, is gone: put another manifest in force with curate rollback "
            f"workspace={workspace.public()}{f' name={name}' if name else ''} --to ID"
        ) from None
    return content


def publish_latest(workspace: Folder, name: str | None, expected: Latest, id: str) -> None:
    """Put a manifest in force, unless the pointer was moved since it was read.

    Raises:
        ConflictError: it was, and not to this very manifest; it stays as it is.
        RequestError: the store cannot swap.
    """
    path = latest_path(name)
    if workspace.swap(path, json_bytes({"id": id}), expected.version):
        return
    now = read_latest(workspace, name)
    if now.id != id:
        own = workspace.public(f"manifests/{id}/{HEADER_FILE}")
        raise ConflictError(
            f"another run won: {workspace.public(path)} went from {expected.id or 'nothing'} to {now.id or 'nothing'} "
            f"meanwhile, and stays there; {own} is whole but not in force: run again to go on from there, "
            f"or put it in force with curate rollback {own}" + (f" name={name}" if name else "")
        )


def read_pointers(workspace: Folder) -> Iterator[tuple[str | None, Latest]]:
    """The name and pointer of every curation of a workspace."""
    for file in workspace.list("manifests", recursive=False):
        if found := POINTER.fullmatch(file.path.rpartition("/")[2]):
            yield found[1], read_latest(workspace, found[1])
