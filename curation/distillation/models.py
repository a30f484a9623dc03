"""Folders of trained models: written whole, and brought to where they are loaded; the numeric profile of a folder."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curation.errors import RequestError
from curation.storage import Folder

ACCOUNT = "account.json"  # a model that has one is whole
PROFILE = "profile.json"
CACHE = Path(tempfile.gettempdir()) / "curation-distill"  # of a machine, for copies of what lies in a remote workspace


def publish(folder: Folder, save: Callable[[Path], None], account: dict[str, Any]) -> None:
    """Write a model's files, and its account last.

    Args:
        folder: of the model.
        save: writes the files to a local folder.
        account: how it was made.
    """
    with tempfile.TemporaryDirectory() as local:
        save(Path(local))
        for path in sorted(Path(local).rglob("*")):
            if path.is_file():
                folder.publish(path.relative_to(local).as_posix(), path.read_bytes())
    folder.publish(ACCOUNT, json.dumps(account, indent=1, ensure_ascii=False).encode())


def account_of(folder: Folder) -> dict[str, Any] | None:
    """How a model was made; None where there is none, or not all of it."""
    try:
        return dict(json.loads(folder.read(ACCOUNT)))
    except FileNotFoundError:
        return None


def id_of(folder: Folder) -> str:
    """The last part of its name: the hash of what decided it."""
    return folder.base.rpartition("/")[2]


def fetched(folder: Folder) -> Path:
    """A local folder with a model's files: its own, or below `CACHE` a copy of a remote one."""
    if folder.local:
        return Path(folder.base)
    name = hashlib.blake2b(folder.url.encode(), digest_size=16).hexdigest()
    copy = Folder(str(CACHE / name))
    for file in folder.list():
        if not copy.exists(file.path):  # a model that is whole does not change
            copy.publish(file.path, folder.read(file.path))
    return Path(copy.base)


def check_profile(folder: Folder, profile: dict[str, str], mix: bool) -> None:
    """See that all files of a folder are made on one numeric profile: the first to write there says which.

    Raises:
        RequestError: it was another one, and ``mix`` does not allow that.
    """
    folder.create(PROFILE, json.dumps(profile, sort_keys=True).encode())
    first = json.loads(folder.read(PROFILE))
    if first != profile and not mix:
        raise RequestError(
            f"{folder.public()} was begun on another numeric profile ({first}, here {profile}): go on there, or allow "
            "the mixture with runtime.mix_profiles=true"
        )
