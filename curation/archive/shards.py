"""Which files make a shard, and which files of a shard make a sample."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curation.archive.names import IMAGES, SIDECARS, extension, is_hidden
from curation.archive.settings import ArchiveConfig
from curation.errors import RequestError
from curation.storage import FileInfo, listing_digest

_TABLE = re.compile(r"(?:.*[/_.-])?metadata\.parquet", re.IGNORECASE)
_TOKENS = re.compile(r"[_.\- ]+")


@dataclass(frozen=True)
class Shard:
    """What one reader reads from its beginning to its end.

    Attributes:
        root: name of its root.
        path: below the root, ``/`` between the parts; ``.`` where the root itself is the folder. Of a tar for each of
            several modalities the first one's.
        format: ``tar``; ``folder``, of images; ``parquet``; ``zarr``, a store or a zip; ``scene``, to be cut in tiles;
            ``joined``, a shard for each of several modalities.
        file: the one file that it is.
        files: else all of them, sorted: a folder's images and their sidecars, a scene's bands, a store's chunks.
        bands: of a scene, what each of ``files`` holds: a band, nothing where it has several, ``json`` for a sidecar.
        parts: of a joined shard, each modality and its shard.
        said: what a list says of a scene, by the sidecars' names.
        vectors: version of the precomputed vectors that its rows are made with; empty where pixels are read.
        filter: digest of the filter that its samples pass; empty where there is none.
    """

    root: str
    path: str
    format: str
    file: FileInfo | None = None
    files: tuple[FileInfo, ...] = ()
    bands: tuple[str, ...] = ()
    parts: tuple[tuple[str, Shard], ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)
    vectors: str = ""
    filter: str = ""

    @property
    def name(self) -> str:
        """The shard's id: ``<root>/<path below it>``."""
        return f"{self.root}/{self.path}"

    @property
    def contents(self) -> tuple[FileInfo, ...]:
        """Every file of the shard."""
        return self.files if self.file is None else (self.file,)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(max(0, file.size) for file in self.contents)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What differs once the shard's content does: size and version (of several files, a hash over theirs)."""
        if self.file is not None:
            found = self.file.fingerprint
        else:
            found = {"size": self.size, "version": listing_digest(self.files)}
        if self.vectors:
            found["vectors"] = self.vectors
        if self.filter:
            found["filter"] = self.filter
        if self.said:
            found["said"] = hashlib.blake2b(json.dumps(self.said, sort_keys=True).encode(), digest_size=16).hexdigest()
        return found


def shards_of(root: str, files: Iterable[FileInfo], settings: ArchiveConfig | None) -> Iterator[Shard]:
    """The shards that some files make.

    A tar, a Parquet file and a Zarr store (a folder ``*.zarr``, or a zip) is a
    shard each. Loose images are the samples of their folder; with
    ``archive.scene`` they are bands of scenes, and with ``archive.tile.size``
    too each scene is a shard of its own. Parquet files beside other shards, and
    those called ``metadata``, are tables.

    Raises:
        RequestError: a shard lacks one of ``archive.modalities``; two scenes would be the same band or sample; most of
            the bytes would be passed over as tables.
    """
    found = list(_plain_shards(root, files, settings))
    others = [shard for shard in found if shard.format != "parquet"]
    if others:
        tables = [shard for shard in found if shard.format == "parquet"]
        if sum(shard.size for shard in tables) > sum(shard.size for shard in others):
            raise RequestError(
                f"root {root!r}: beside {others[0].name} {len(tables)} Parquet files would be passed over as tables, "
                "and they are most of the archive: name what is to be read, URL/**/*.parquet or URL/**/*.tar"
            )
        found = others
    modalities = settings.modalities if settings else None
    yield from _side_by_side(found, modalities) if modalities else found


def is_table(path: str) -> bool:
    """Whether a Parquet file by its name tells of samples, and holds none."""
    return _TABLE.fullmatch(path) is not None


def _plain_shards(root: str, files: Iterable[FileInfo], settings: ArchiveConfig | None) -> Iterator[Shard]:
    loose: list[FileInfo] = []
    stores: dict[str, list[FileInfo]] = {}
    for file in files:
        kind = extension(file.path)
        before, zarr, _ = file.path.partition(".zarr/")
        if zarr:
            stores.setdefault(f"{before}.zarr", []).append(file)
        elif any(map(is_hidden, file.path.split("/"))) or file.path.endswith("/"):
            continue
        elif kind == "tar":
            yield Shard(root, file.path, "tar", file)
        elif kind == "zip":
            yield Shard(root, file.path, "zarr", file)
        elif kind == "parquet":
            if not is_table(file.path):
                yield Shard(root, file.path, "parquet", file)
        elif kind in IMAGES or kind in SIDECARS:
            loose.append(file)
    for path, inside in stores.items():
        yield Shard(root, path, "zarr", files=tuple(sorted(inside)))
    if settings is None or settings.scene is None:
        yield from _folders(root, loose)
        return
    for scene, own in sorted(group_scenes(loose, settings.scene).items()):
        if settings.tile.size is not None:
            yield Shard(root, scene, "scene", files=tuple(f for _, f in own), bands=tuple(band for band, _ in own))
    if settings.tile.size is None:
        yield from _folders_of_scenes(root, loose, settings.scene)


def _folders(root: str, loose: Iterable[FileInfo]) -> Iterator[Shard]:
    """The folders with images directly in them; sidecars are the files of the same stem."""
    folders: dict[str, list[FileInfo]] = {}
    for file in loose:
        folders.setdefault(os.path.dirname(file.path), []).append(file)
    for path, inside in folders.items():
        stems = {_stem(file.path) for file in inside if extension(file.path) in IMAGES}
        if stems:
            chosen = tuple(sorted(file for file in inside if _stem(file.path) in stems))
            yield Shard(root, path or ".", "folder", files=chosen)


def _folders_of_scenes(root: str, loose: Iterable[FileInfo], scene: str) -> Iterator[Shard]:
    """Scenes that are samples: those of one folder are a shard."""
    folders: dict[str, list[FileInfo]] = {}
    scenes = group_scenes(loose, scene)
    if {".", scene_key(".")} <= scenes.keys():
        raise RequestError(
            f"archive.scene: the images directly in {root} and those in its folder {scene_key('.')!r} would both be "
            f"the sample {scene_key('.')!r}: rename the folder"
        )
    for name, own in scenes.items():
        folders.setdefault(os.path.dirname(name), []).extend(file for _, file in own)
    for path, inside in folders.items():
        yield Shard(root, path or ".", "folder", files=tuple(sorted(inside)))


# scenes


def group_scenes(files: Iterable[FileInfo], scene: str) -> dict[str, list[tuple[str, FileInfo]]]:
    """The scenes that loose files make, each with its bands in the order of their names.

    Args:
        files: images and sidecars.
        scene: ``archive.scene``: ``file``; ``folder``; or a pattern, whose group ``scene`` names the scene and whose
            group ``band`` the band.

    Returns:
        A scene's name (a path) to pairs of band and file; the band is empty where a file is the whole scene, ``json``
        (``cls``, ``txt``) for a sidecar. A scene has at least one image.

    Raises:
        RequestError: two images would be the same band of a scene.
    """
    scenes: dict[str, list[tuple[str, FileInfo]]] = {}
    for file in sorted(files):
        for name, band in _scene_and_band(file.path, scene):
            scenes.setdefault(name, []).append((band, file))
    found = {}
    for name, own in scenes.items():
        images = [(band, file) for band, file in own if extension(file.path) in IMAGES]
        if images:
            sidecars = [(extension(file.path), file) for _, file in own if extension(file.path) in SIDECARS]
            if scene == "folder":
                bands = distinct_names([_stem(file.path).rpartition("/")[2] for _, file in images if len(images) > 1])
                bands = bands or [""]  # one file is the whole scene
                images = list(zip(bands, (file for _, file in images), strict=True))
            _check_bands(name, images)
            found[name] = sorted(images) + sidecars
    return found


def _check_bands(scene: str, images: Iterable[tuple[str, FileInfo]]) -> None:
    """Refuse two images of one band and kind: one of them would be lost."""
    seen: dict[tuple[str, str], str] = {}
    for band, file in images:
        other = seen.setdefault((band, extension(file.path)), file.path)
        if other != file.path:
            raise RequestError(
                f"archive.scene: {other} and {file.path} would both be the band {band!r} of the scene {scene!r}: "
                "take a pattern whose groups scene and band tell them apart"
            )


def scene_key(name: str) -> str:
    """The key of a scene by its name: the last part of it, ``scene`` where that is the root itself."""
    return "scene" if name == "." else name.rpartition("/")[2]


def _scene_and_band(path: str, scene: str) -> Iterator[tuple[str, str]]:
    if scene == "file":
        yield _stem(path), ""
    elif scene == "folder":
        yield os.path.dirname(path) or ".", ""
    elif (match := re.search(scene, path)) and (name := (match["scene"] or "").strip("/")):
        yield name, match.groupdict().get("band") or ""


def distinct_names(stems: Sequence[str]) -> list[str]:
    """What tells files of one folder apart: of ``T32_20190416_B02`` and ``T32_20190416_B03``, ``B02`` and ``B03``.

    >>> distinct_names(["T32_B02_10m", "T32_B03_10m"])
    ['B02', 'B03']
    """
    tokens = [_TOKENS.split(stem) for stem in stems]
    if len(stems) < 2 or len(set(map(len, tokens))) > 1:
        return list(stems)
    differing = [i for i, column in enumerate(zip(*tokens, strict=True)) if len(set(column)) > 1]
    return ["_".join(own[i] for i in differing) for own in tokens]


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


# modalities


def _side_by_side(shards: Sequence[Shard], modalities: Sequence[str]) -> Iterator[Shard]:
    """Shards whose paths differ in the folder that names a modality, as one."""
    groups: dict[str, dict[str, Shard]] = {}
    for shard in shards:
        parts = shard.path.split("/")
        for modality in modalities:
            if modality in parts:
                parts[parts.index(modality)] = "*"
                groups.setdefault("/".join(parts), {})[modality] = shard
                break
    for path, own in sorted(groups.items()):
        missing = [modality for modality in modalities if modality not in own]
        if missing:
            other = path.replace("*", missing[0])
            raise RequestError(
                f"archive.modalities: {next(iter(own.values())).name} has no counterpart {other}: add it, or "
                "narrow archive.url by a pattern to the shards that have all modalities"
            )
        ordered = tuple((modality, own[modality]) for modality in modalities)
        contents = tuple(file for _, shard in ordered for file in shard.contents)
        yield Shard(ordered[0][1].root, ordered[0][1].path, "joined", files=contents, parts=ordered)
