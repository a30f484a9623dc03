"""Reads any shard: one stream of samples and rejections, and proof that the shard was what the listing said."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from curation.archive.folder import read_folder
from curation.archive.joined import read_joined
from curation.archive.lists import CHECKSUM
from curation.archive.parquet import read_parquet
from curation.archive.sample import RawSample, Rejection, Wanted
from curation.archive.scene import read_scene
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.tables import Sieve
from curation.archive.webdataset import read_tar
from curation.archive.zarr.shard import read_zarr
from curation.errors import AccessError, ChangedError
from curation.storage import Folder

Reader = Callable[
    [Folder, Shard, ArchiveConfig, Sequence[Wanted] | None, Sieve | None],
    Iterator[RawSample | Rejection],
]
READERS: dict[str, Reader] = {
    "tar": read_tar,
    "folder": read_folder,
    "parquet": read_parquet,
    "zarr": read_zarr,
    "scene": read_scene,
}
READERS["joined"] = partial(read_joined, READERS)


def read_shard(
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
) -> Iterator[RawSample | Rejection]:
    """Everything in a shard, in its order, numbered from 0 without gaps; with a sieve, what passes it.

    Args:
        folder: the root's folder.
        shard: as the listing gave it.
        settings: how archives are read.
        only: just these samples, in the shard's order; their numbers mean nothing then.
        sieve: passes by what a table says of the samples, where the format allows before their pixels are read.

    Raises:
        AccessError: the shard vanished, changed, or gave fewer bytes than the
            listing said. It may come after the last sample: what was read
            counts only once the stream has ended.
    """
    try:
        items = READERS[shard.format](folder, shard, settings, only, sieve)
        yield from items if sieve is None else sieve.sift(items)
        if only is None:
            _check_unchanged(folder, shard)
    except FileNotFoundError as error:
        raise ChangedError(f"{folder.public(shard.path)}: it vanished after it was listed") from error
    except OSError as error:
        raise AccessError(f"{folder.public(shard.path)}: {error.strerror or error}") from error


def _check_unchanged(folder: Folder, shard: Shard) -> None:
    if shard.parts:
        for _, part in shard.parts:
            _check_unchanged(folder, part)
        return
    listed = [file for file in shard.contents if file.size >= 0 and not file.version.startswith(CHECKSUM)]
    if shard.format == "folder" and not folder.url.startswith("http"):  # which lists no folders
        inside = {os.path.dirname(file.path) for file in shard.files}
        now = {file.path: file for file in folder.list(os.path.commonpath(inside), recursive=len(inside) > 1)}
    elif shard.format == "zarr" and shard.file is None:
        now = {file.path: file for file in folder.list(shard.path)}
    else:
        now = {file.path: folder.info(file.path) for file in listed}
    for file in listed:
        if file.path not in now:
            raise ChangedError(f"{folder.public(file.path)}: it vanished after it was listed")
        if now[file.path] != file:
            raise ChangedError(f"{folder.public(file.path)}: it changed after it was listed; run again")
