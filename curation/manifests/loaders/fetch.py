"""Gets the bytes of kept samples out of their shards, in the manifest's order, and checks that they are the ones meant.

Of a tar the members' bytes are read by offset, neighbours in one request where
that is cheaper (see :mod:`curation.manifests.access`): where kept samples lie
close this becomes one sequential pass by itself; the tars of several modalities
are read in step. What is no run of bytes, or of which no catalog is at hand to
say where it lies, comes by the shard's own reader (:mod:`.container`). The
tiles of one image share its bytes.
"""

import itertools
import logging
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curation.archive.names import IMAGES, SIDECARS, extension, split_name
from curation.archive.sample import Member, RawSample
from curation.archive.settings import ArchiveConfig
from curation.archive.sidecar import gather
from curation.catalog.store import CatalogStore
from curation.errors import AccessError, BadSample, RequestError
from curation.manifests.access import HEADER, LOCAL, OBJECT_STORE, Store, ranges
from curation.manifests.loaders.container import is_container, is_scene, prefix_of, read_wanted
from curation.manifests.loaders.kept import LISTED, Kept, gone, image_key, is_safe, member_key
from curation.manifests.reading import ManifestReader, open_catalog
from curation.storage import Folder, is_local

log = logging.getLogger("curation")

Members = Literal["all", "image"]
_MAGIC = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"\x93NUMPY": "npy",
    b"BM": "bmp",
    b"PK\x03\x04": "zip",
    b"\xff\x4f\xff\x51": "jp2",
}


Job = Callable[[], Iterable[Kept]]


class Fetcher:
    """Reads kept samples; made anew in each process.

    Args:
        manifest: what is kept.
        members: ``image``: only the image member of each sample; ``all``: every file of its key.
        roots: root name to URL, in place of what the manifest's provenance says.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.

    Raises:
        RequestError: ``members`` is neither.
    """

    def __init__(
        self, manifest: ManifestReader, members: Members, roots: dict[str, str], storage: dict[str, Any] | None
    ) -> None:
        if members not in ("all", "image"):
            raise RequestError(f"members={members!r}: choose all or image")
        self.manifest, self.members, self.storage = manifest, members, storage
        self.urls = {**manifest.header.get("provenance", {}).get("roots", {}), **roots}
        self.settings = manifest.archive
        self.folders: dict[str, Folder] = {}
        self.catalog = _catalog(manifest, storage)

    def read(self, runs: Iterable[pa.Table]) -> Iterator[Kept]:
        """The samples of each table of manifest rows (all of one shard, by index), in that order.

        Remote requests are made ahead, as many at once as the cost model counts with.

        Raises:
            AccessError: a sample has gone or is not what it was; the message names it.
            RequestError: a root has no URL.
        """
        jobs = (job for rows in runs for job in self._jobs(rows))
        if all(is_local(url) for url in self.urls.values()):
            for job in jobs:
                yield from job()
            return
        waiting: deque[Future[Iterable[Kept]]] = deque()
        with ThreadPoolExecutor(OBJECT_STORE.parallel) as pool:
            try:
                for job in jobs:
                    waiting.append(pool.submit(job))
                    if len(waiting) == OBJECT_STORE.parallel:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _jobs(self, rows: pa.Table) -> Iterator[Job]:
        """One request each."""
        name = rows["shard"][0].as_py()
        root, _, path = name.partition("/")
        folder = self.root(root)
        kept = rows.to_pylist()
        loose = rows["offset"].null_count > 0
        known = (self._members(name, kept) or ()) if loose else ()
        if loose and (is_container(path, self.settings) or (known and is_scene(path, image_key(kept[0]), known[0]))):
            return iter([partial(read_wanted, folder, name, kept, self.settings, known)])
        images = [list(tiles) for _, tiles in itertools.groupby(kept, image_key)]
        if not loose and self.members == "image":
            image = [[Member("", tiles[0]["offset"], tiles[0]["size"])] for tiles in images]
            return _tar_jobs(folder, path, images, image, self.settings)
        if loose:
            by_key = {image_key(row): own for row, own in zip(kept, known, strict=False)}
            files = [by_key[image_key(tiles[0])] for tiles in images] if known else _listed(folder, path, images)
            return _folder_jobs(folder, path, images, files, self.members)
        members = self._members(name, [tiles[0] for tiles in images])
        if members is None:
            return iter([partial(read_wanted, folder, name, kept, self.settings)])
        return _tar_jobs(folder, path, images, members, self.settings)

    def root(self, name: str) -> Folder:
        """The folder of a root.

        Raises:
            RequestError: nothing says where it lies.
        """
        if name not in self.urls:
            raise RequestError(f"the manifest does not say where its root {name!r} lies: give roots={{{name!r}: URL}}")
        if name not in self.folders:
            self.folders[name] = Folder(self.urls[name], self.storage, name)
        return self.folders[name]

    def _members(self, shard: str, kept: list[dict[str, Any]]) -> list[list[Member]] | None:
        """Every file of each sample by the catalog; ``None`` without one."""
        if self.catalog is None:
            return None
        try:
            table = self.catalog.read(shard, ["index", "members"])
        except AccessError as error:
            log.warning("%s; reading the whole shard instead", error)
            return None
        place = {index: i for i, index in enumerate(table["index"].to_pylist())}
        found = [place.get(row["index"]) for row in kept]
        if None in found:
            raise AccessError(f"{shard}: the catalog has no {kept[found.index(None)]['key']!r} that the manifest keeps")
        listed = table["members"].take(pa.array(found, pa.int64())).to_pylist()
        return [
            [Member(m["name"], m["offset"], m["size"], m["file"]) for m in own if is_safe(m["name"])] for own in listed
        ]


def _catalog(manifest: ManifestReader, storage: dict[str, Any] | None) -> CatalogStore | None:
    """The catalog that the manifest was drawn from, where it is still there."""
    if manifest.header["content"].get("catalog") is None:
        return None
    store = open_catalog(manifest, storage)
    return store if any(folder.exists() for folder, _ in store.folders) else None


# tars

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Piece:
    """An image's files, in each tar a run of bytes; the tiles of it that are kept."""

    tiles: list[Row]
    members: dict[str, list[Member]]  # by the tar that they lie in

    def start(self, tar: str) -> int:
        return min(_offset(member) for member in self.members[tar]) - HEADER

    def stop(self, tar: str) -> int:
        return max(_offset(member) + member.size for member in self.members[tar])


def _tar_jobs(
    folder: Folder, path: str, images: list[list[Row]], members: list[list[Member]], settings: ArchiveConfig
) -> Iterator[Job]:
    """One job a request, or with several modalities one to each of their tars."""
    pieces = []
    for tiles, own in zip(images, members, strict=True):
        by_tar: dict[str, list[Member]] = {}
        for member in own:
            by_tar.setdefault(member.file or path, []).append(member)
        pieces.append(_Piece(tiles, by_tar))
    if any(piece.members.keys() != pieces[0].members.keys() for piece in pieces):
        missing = next(piece for piece in pieces if piece.members.keys() != pieces[0].members.keys())
        raise gone(folder, path, missing.tiles[0], "the catalog has it in other tars than its neighbours")
    store: Store = LOCAL if folder.local else OBJECT_STORE
    edges = {len(pieces)}
    for tar in pieces[0].members:
        start, stop = (
            np.array([edge(piece, tar) for piece in pieces], np.int64) for edge in (_Piece.start, _Piece.stop)
        )
        edges.update(ranges(start, stop, store.gap).tolist())
    for first, last in itertools.pairwise(sorted(edges)):
        yield partial(_read_range, folder, path, pieces[first:last], settings)


def _read_range(folder: Folder, path: str, pieces: list[_Piece], settings: ArchiveConfig) -> list[Kept]:
    """Some neighbouring samples by one request a tar; what fails is tried sample by sample, to name the one."""
    blocks: dict[str, tuple[int, bytes]] = {}
    for tar in pieces[0].members:
        start = pieces[0].start(tar)
        try:
            blocks[tar] = start, folder.read_range(tar, start, max(piece.stop(tar) for piece in pieces))
        except (AccessError, FileNotFoundError) as error:
            if len(pieces) > 1:
                return [kept for piece in pieces for kept in _read_range(folder, path, [piece], settings)]
            raise gone(folder, tar, pieces[0].tiles[0], str(error)) from error
    return [kept for piece in pieces for kept in _cut(folder, path, piece, blocks, settings)]


def _cut(
    folder: Folder, path: str, piece: _Piece, blocks: dict[str, tuple[int, bytes]], settings: ArchiveConfig
) -> list[Kept]:
    """An image and its files out of ranges with their beginnings; each member's own header must agree."""
    row, key = piece.tiles[0], member_key(piece.tiles[0])
    members: list[Member] = []
    files: dict[str, bytes] = {}
    said: dict[str, Any] = {}
    image = ""
    for tar, (start, data) in blocks.items():
        own, prefix = {}, prefix_of(tar, settings)
        for member in piece.members[tar]:
            at = _offset(member) - start
            content = data[at : at + member.size]
            suffix = _check_header(folder, tar, row, key, member, data[at - HEADER : at]) or sniffed(content)
            files[prefix + suffix] = own[suffix] = content
            if tar == path and member.offset == row["offset"]:
                image = prefix + suffix
            members.append(member if member.name else replace(member, name=f"{key}.{suffix}"))
        if len(blocks) > 1:  # of several modalities the first to say something is believed
            said = {**_said(folder, tar, row, own), **said}
    if not image:
        raise gone(folder, path, row, "its image lies elsewhere in the shard")
    position = None if row["position"] is None else tuple(row["position"])
    raw = RawSample(image_key(row), row["index"], members, files, said=said, position=position)
    return [Kept(tile, folder.public(path), raw, image) for tile in piece.tiles]


def _said(folder: Folder, tar: str, row: Row, files: dict[str, bytes]) -> dict[str, Any]:
    """What the sidecars of one modality say: behind its name they are not known as such."""
    try:
        return gather(files, {})
    except BadSample as error:
        raise gone(folder, tar, row, str(error)) from error


def _check_header(folder: Folder, path: str, row: Row, key: str, member: Member, block: bytes) -> str:
    """The suffix of the member whose tar header this is; empty where the header has no room for the whole name.

    Raises:
        AccessError: it is not the header of the member that was meant.
    """
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise gone(folder, path, row, f"no member begins at byte {member.offset}") from error
    if header.size != member.size:
        raise gone(folder, path, row, f"{header.size} bytes where there were {member.size}")
    name = header.name
    cut = block[99] != 0 and block[345] == 0  # a longer name stands before this header
    if key.isascii() and split_name(name)[0] != key and not (cut and f"{key}.".startswith(name)):
        raise gone(folder, path, row, f"{name!r} lies in its place")
    if member.name:
        return split_name(member.name)[1]
    return "" if cut else split_name(name)[1]


# folders of files


def _folder_jobs(
    folder: Folder, path: str, images: list[list[Row]], members: list[list[Member]], which: Members
) -> Iterator[Job]:
    """One job an image."""
    for tiles, own in zip(images, members, strict=True):
        size = tiles[0]["size"]
        image = next((m for m in own if extension(m.name) in IMAGES and m.size == size), None)
        if image is None:
            raise gone(folder, path, tiles[0], f"no image of {size} bytes is there" + ("" if own else LISTED))
        yield partial(_read_files, folder, path, tiles, own if which == "all" else [image], image)


def _listed(folder: Folder, path: str, images: list[list[Row]]) -> list[list[Member]]:
    """The files of each image's key, found by listing the folder."""
    keys = [image_key(tiles[0]) for tiles in images]
    found: dict[str, list[Member]] = {key: [] for key in keys}
    for file in folder.list("" if path == "." else path, recursive=False):
        name = file.path.rpartition("/")[2]
        if (key := name.rpartition(".")[0]) in found and extension(name) in IMAGES | SIDECARS:
            found[key].append(Member(name, None, file.size))
    return [found[key] for key in keys]


def _read_files(folder: Folder, path: str, tiles: list[Row], members: list[Member], image: Member) -> list[Kept]:
    files, row = {}, tiles[0]
    for member in members:
        name = member.name if path == "." else f"{path}/{member.name}"
        try:
            content = folder.read(name)
        except (AccessError, OSError) as error:
            raise gone(folder, name, row, str(error)) from error
        if len(content) != member.size:
            raise gone(folder, name, row, f"{len(content)} bytes where there were {member.size}")
        files[member.name.rpartition(".")[2]] = content
    raw = RawSample(image_key(row), row["index"], members, files)
    suffix = image.name.rpartition(".")[2]
    return [Kept(tile, folder.public("" if path == "." else path), raw, suffix) for tile in tiles]


def _offset(member: Member) -> int:
    assert member.offset is not None
    return member.offset


def sniffed(content: bytes) -> str:
    """What kind of image it is, by its first bytes."""
    if content[8:12] == b"WEBP":
        return "webp"
    if content[4:8] == b"jP  ":
        return "jp2"
    return next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), "bin")
