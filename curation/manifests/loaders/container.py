"""Kept samples that are no known run of bytes: the shard's own reader reads just them.

So are the rows of Parquet files, the slices of Zarr arrays, the tiles and the
bands of scenes, and tars whose offsets only a catalog could tell.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

from curation.archive.decode import image_member
from curation.archive.names import IMAGES, SIDECARS, extension, split_name
from curation.archive.reader import read_shard
from curation.archive.sample import Member, RawSample, Rejection, Wanted
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard, group_scenes, scene_key, shards_of
from curation.errors import AccessError, BadSample
from curation.manifests.loaders.kept import LISTED, Kept, gone, image_key, is_safe, window_of
from curation.storage import FileInfo, Folder

Row = dict[str, Any]


def is_container(path: str, settings: ArchiveConfig) -> bool:
    """Whether a shard whose rows have no offset is read by its own reader: all but folders of images are."""
    return extension(path) in ("parquet", "zarr", "zip") or settings.scene is not None


def find_shard(folder: Folder, name: str, settings: ArchiveConfig) -> Shard | None:
    """The shard of a name, listed anew; ``None`` where its files make no such shard any more.

    Args:
        folder: its root's folder.
        name: ``<root>/<path below it>``.
        settings: how the archive was read.

    Raises:
        FileNotFoundError: a file of it is not there.
    """
    root, _, path = name.partition("/")
    files = [file for one in _counterparts(path, settings) for file in _files(folder, one, settings)]
    return next((shard for shard in shards_of(root, files, settings) if shard.path == path), None)


def is_scene(path: str, key: str, members: Sequence[Member]) -> bool:
    """Whether a shard is one scene, by a sample's key and its members: files that are not the shard itself."""
    own = extension(path) not in ("tar", "parquet", "zip", "zarr") and key == scene_key(path)
    return own and bool(members) and all(member.file for member in members)


def _scene(folder: Folder, name: str, members: Sequence[Member], settings: ArchiveConfig) -> Shard:
    """A scene as the catalog knows it: a list may have named files and bands that nothing else tells.

    Raises:
        AccessError: what its numbers mean only the list said.
    """
    files = tuple(folder.info(member.file or "") for member in members)
    alone = sum(extension(member.name) in IMAGES for member in members) == 1
    bands = []
    for member, file in zip(members, files, strict=True):
        stem, _, kind = member.name.rpartition(".")
        whole = alone and member.name == os.path.basename(file.path) and stem not in (settings.bands or ())
        bands.append(kind.lower() if kind.lower() in SIDECARS else "" if whole else stem)
    root, _, path = name.partition("/")
    if settings.scene is None or path not in group_scenes(files, settings.scene):
        _check_told(folder, path, settings)
    return Shard(root, path, "scene", files=files, bands=tuple(bands))


def _check_told(folder: Folder, path: str, settings: ArchiveConfig) -> None:
    """Refuse a scene of which only a list's properties, which are not at hand, said what its numbers mean."""
    parts = (settings.radiometry.found or {}).values()
    if settings.radiometry.offset == "auto" and any(part.get("mixed") or part.get("suspect") for part in parts):
        raise AccessError(
            f"{folder.public(path)}: which offset its numbers have only the list said, scene by scene, and no manifest "
            "keeps that: prune the scenes of each processing baseline as an archive of their own"
        )


def _counterparts(path: str, settings: ArchiveConfig) -> list[str]:
    """Where the shard of each modality lies, that of the first at ``path``."""
    parts = path.split("/")
    first = next((modality for modality in settings.modalities or () if modality in parts), None)
    if first is None:
        return [path]
    at = parts.index(first)
    return ["/".join([*parts[:at], modality, *parts[at + 1 :]]) for modality in settings.modalities or ()]


def _files(folder: Folder, path: str, settings: ArchiveConfig) -> list[FileInfo]:
    """The files that a shard is made of, and maybe others beside them."""
    if extension(path) in ("tar", "parquet", "zip"):
        return [folder.info(path)]
    if extension(path) == "zarr":
        return folder.list(path)
    above = settings.tile.size is not None and settings.scene != "folder"  # cut, a scene is a shard, else their folder
    inside = os.path.dirname(path) if above else path
    return folder.list("" if inside == "." else inside)


def prefix_of(file: str | None, settings: ArchiveConfig) -> str:
    """What stands before the suffixes of a tar's members: with several modalities the one that the tar is of."""
    parts = (file or "").split("/")
    return next((f"{modality}." for modality in settings.modalities or () if modality in parts), "")


def read_wanted(
    folder: Folder, name: str, kept: Sequence[Row], settings: ArchiveConfig, known: Sequence[Sequence[Member]] = ()
) -> Iterator[Kept]:
    """The kept samples of one shard, by its reader.

    Args:
        folder: its root's folder.
        name: the shard's.
        kept: the manifest's rows, in the shard's order.
        settings: how the archive was read.
        known: the members of each row, by the catalog; none where it is not at hand.

    Raises:
        AccessError: a sample has gone or is not what it was.
    """
    path = name.partition("/")[2]
    try:
        if known and all(is_scene(path, image_key(row), known[0]) for row in kept):
            shard: Shard | None = _scene(folder, name, known[0], settings)
        else:
            shard = find_shard(folder, name, settings)
    except FileNotFoundError:
        shard = None
    if shard is None:
        raise gone(folder, path, kept[0], "the shard is not there" + ("" if known else LISTED))
    wanted = [Wanted(image_key(row), _position(row), window_of(row)) for row in kept]
    source = read_shard(folder, shard, settings, wanted)
    for (row, raw), members in zip(_matched(folder, path, kept, source), known or repeat(()), strict=False):
        there = {(member.name, member.size) for member in raw.members}
        missing = next((member for member in members if (member.name, member.size) not in there), None)
        if missing is not None:
            raise gone(folder, path, row, f"{missing.name} of {missing.size} bytes is not there")
        yield _checked(folder, path, row, raw, settings)


def _matched(
    folder: Folder, path: str, kept: Sequence[Row], source: Iterator[RawSample | Rejection]
) -> Iterator[tuple[Row, RawSample]]:
    """Each row with what the reader gave for it: its tile, or its image, one object for all of the image's tiles."""
    came: dict[tuple[Any, ...], RawSample] = {}
    for row, following in zip(kept, [*kept[1:], None], strict=True):
        image = (image_key(row), _position(row))
        tile = (*image, window_of(row))
        while tile not in came and (*image, None) not in came:
            raw = _next(folder, path, row, source)
            came[raw.key, raw.position, raw.window] = raw
        yield row, came.pop(tile) if tile[-1] and tile in came else came[*image, None]
        if following is None or (image_key(following), _position(following)) != image:
            came.pop((*image, None), None)


def _next(folder: Folder, path: str, row: Row, source: Iterator[RawSample | Rejection]) -> RawSample:
    """The next sample that the reader gives; what it should give is due for ``row``."""
    while True:
        try:
            raw = next(source, None)
        except AccessError as error:
            raise gone(folder, path, row, str(error)) from error
        if raw is None:
            raise gone(folder, path, row, "it is not there")
        if isinstance(raw, RawSample):
            return replace(raw, data={suffix: data for suffix, data in raw.data.items() if is_safe(f".{suffix}")})
        if raw.key in (row["key"], image_key(row)):
            raise gone(folder, path, row, raw.message)


def _checked(folder: Folder, path: str, row: Row, raw: RawSample, settings: ArchiveConfig) -> Kept:
    """A sample as it is handed on, if its image is the one that the manifest means."""
    if row["size"] is None and row["offset"] is None and raw.members:  # told by keys alone: see `archive.keys`
        found = [raw.members.index(_image(folder, path, row, raw, settings))] if raw.data else [0]
    else:
        found = [i for i, member in enumerate(raw.members) if _is_image(member, row, path)]
    if not found:
        where = f"is not of {row['size']} bytes" if row["offset"] is None else "lies elsewhere in the shard"
        raise gone(folder, path, row, f"its image {where}")
    image = raw.members[found[0]]
    if image.offset is not None:
        return Kept(row, folder.public(path), raw, prefix_of(image.file, settings) + split_name(image.name)[1])
    if raw.images:
        return Kept(row, folder.public(path), raw, "npy")
    suffixes = list(raw.data)  # one a member, in their order
    return Kept(row, folder.public(path), raw, min(suffixes[i] for i in found))


def _image(folder: Folder, path: str, row: Row, raw: RawSample, settings: ArchiveConfig) -> Member:
    try:
        return image_member(raw, settings)
    except BadSample as error:
        raise gone(folder, path, row, error.message) from error


def _is_image(member: Member, row: Row, path: str) -> bool:
    here = row["offset"] is None or member.file in (None, path)
    return here and (member.offset, member.size) == (row["offset"], row["size"])


def _position(row: Row) -> tuple[int, ...] | None:
    return None if row["position"] is None else tuple(row["position"])
