"""Reads any shard: one stream of samples and rejections, and proof that the shard was what the listing said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from curation.archive.folder import read_folder
from curation.archive.listing import Shard
from curation.archive.sample import RawSample, Rejection
from curation.archive.webdataset import read_tar
from curation.errors import AccessError
from curation.storage import Folder

if TYPE_CHECKING:
    from curation.config import ArchiveConfig


def read_shard(folder: Folder, shard: Shard, settings: ArchiveConfig) -> Iterator[RawSample | Rejection]:
    """Everything in a shard, in its order, numbered from 0 without gaps.

    Args:
        folder: the root's folder.
        shard: as the listing gave it.
        settings: how archives are read.

    Raises:
        AccessError: the shard vanished, changed, or gave fewer bytes than the
            listing said. It may come after the last sample: what was read
            counts only once the stream has ended.
    """
    reader = read_tar if shard.format == "tar" else read_folder
    try:
        yield from reader(folder, shard, settings)
        _check_unchanged(folder, shard)
    except FileNotFoundError as error:
        raise AccessError(f"{folder.public(shard.path)}: it vanished after it was listed") from error
    except OSError as error:
        raise AccessError(f"{folder.public(shard.path)}: {error.strerror or error}") from error


def _check_unchanged(folder: Folder, shard: Shard) -> None:
    if shard.file is not None:
        now = {shard.file.path: folder.info(shard.file.path)}
    else:
        now = {file.path: file for file in folder.list("" if shard.path == "." else shard.path, recursive=False)}
    for file in shard.contents:
        if file.path not in now:
            raise AccessError(f"{folder.public(file.path)}: it vanished after it was listed")
        if now[file.path] != file:
            raise AccessError(f"{folder.public(file.path)}: it changed after it was listed; run again")
