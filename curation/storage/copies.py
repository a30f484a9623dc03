"""Files that must be memory-mapped: where they lie, or a local copy."""

import hashlib
import shutil
from pathlib import Path

from curation.errors import RequestError
from curation.storage.folder import Folder


def local_copy(folder: Folder, path: str, cache: Path | None) -> Path:
    """The local path of a file; a remote one is fetched once, complete or absent, under a name of its version.

    Raises:
        FileNotFoundError: there is no such file.
        RequestError: it is remote and there is no ``cache``.
        AccessError: it could not be read.
    """
    if folder.local:
        return Path(folder.full(path))
    if cache is None:
        raise RequestError(f"{folder.public(path)} cannot be memory-mapped there: give cache=, a local folder")
    listed = folder.info(path)
    name = hashlib.blake2b("\0".join([folder.url, path, listed.version]).encode(), digest_size=16).hexdigest()
    copies = Folder(str(cache))
    if not copies.exists(name):
        with folder.open(listed) as source, copies.writer(name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return Path(copies.full(name))
