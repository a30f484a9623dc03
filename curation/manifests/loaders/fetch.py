"""Gets the bytes of kept samples out of their shards, in the manifest's order, and checks that they are the ones meant.

Of a tar the members' bytes are read by offset, neighbours in one request where
that is cheaper (see :mod:`curation.manifests.access`): where kept samples lie
close this becomes one sequential pass by itself. Only where all files of a key
are asked for and no catalog is at hand to say where they lie, the whole shard
is read and its headers followed.
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

from curation.archive.names import IMAGES, PICKLES, SIDECARS, extension, split_name
from curation.archive.reader import read_shard
from curation.archive.sample import Member, RawSample, Rejection
from curation.archive.shards import Shard
from curation.catalog.store import CatalogStore
from curation.config import ArchiveConfig
from curation.errors import AccessError, RequestError
from curation.manifests.access import HEADER, LOCAL, OBJECT_STORE, Store, ranges
from curation.manifests.reading import ManifestReader
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
}


@dataclass(slots=True)
class Kept:
    """A kept sample with its files.

    Attributes:
        row: the manifest's columns.
        url: of the shard, without credentials.
        raw: its files as they lie in the shard.
        image: suffix of the image member that the manifest speaks of.
    """

    row: dict[str, Any]
    url: str
    raw: RawSample
    image: str


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
        folder = self._root(root)
        kept = rows.to_pylist()
        if rows["offset"].null_count:
            files = self._members(name, kept) or _listed(folder, path, kept)
            return _folder_jobs(folder, path, kept, files, self.members)
        if self.members == "image":
            image = [[Member("", row["offset"], row["size"])] for row in kept]
            return _tar_jobs(folder, path, kept, image)
        members = self._members(name, kept)
        if members is None:
            return iter([partial(_pass, folder, name, kept, self.manifest.archive)])
        return _tar_jobs(folder, path, kept, members)

    def _root(self, name: str) -> Folder:
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
        return [[Member(m["name"], m["offset"], m["size"]) for m in own if _is_safe(m["name"])] for own in listed]


def _is_safe(name: str) -> bool:
    """A pickle is not handed on: what decodes samples by suffix would load it."""
    return extension(name) not in PICKLES


def _catalog(manifest: ManifestReader, storage: dict[str, Any] | None) -> CatalogStore | None:
    """The catalog that the manifest was drawn from, where its workspace is still around it or it was a shared one."""
    name = manifest.header["content"].get("catalog")
    workspace = Folder(manifest.folder.url.rpartition("/")[0].rpartition("/")[0] or "/", storage, "workspace")
    url = manifest.header.get("provenance", {}).get("catalog")
    shared = Folder(url, storage, "catalog") if url else None
    if name is None or not (workspace.exists(f"catalog/{name}") or (shared and shared.exists(name))):
        return None
    return CatalogStore(workspace, name, shared)


# tars


@dataclass(frozen=True, slots=True)
class _Piece:
    """A sample's files as a run of bytes of its shard."""

    row: dict[str, Any]
    members: list[Member]

    @property
    def start(self) -> int:
        return min(_offset(member) for member in self.members) - HEADER

    @property
    def stop(self) -> int:
        return max(_offset(member) + member.size for member in self.members)


def _tar_jobs(folder: Folder, path: str, kept: list[dict[str, Any]], members: list[list[Member]]) -> Iterator[Job]:
    """One job a request."""
    pieces = [_Piece(row, own) for row, own in zip(kept, members, strict=True)]
    store: Store = LOCAL if folder.local else OBJECT_STORE
    start, stop = (np.array([getattr(piece, edge) for piece in pieces], np.int64) for edge in ("start", "stop"))
    edges = [*ranges(start, stop, store.gap).tolist(), len(pieces)]
    for first, last in itertools.pairwise(edges):
        yield partial(_read_range, folder, path, pieces[first:last])


def _read_range(folder: Folder, path: str, pieces: list[_Piece]) -> list[Kept]:
    """Some neighbouring samples by one request; what fails is tried sample by sample, to name the one."""
    start = pieces[0].start
    try:
        data = folder.read_range(path, start, max(piece.stop for piece in pieces))
    except (AccessError, FileNotFoundError) as error:
        if len(pieces) > 1:
            return [kept for piece in pieces for kept in _read_range(folder, path, [piece])]
        raise _gone(folder, path, pieces[0].row, str(error)) from error
    return [_cut(folder, path, piece, data, start) for piece in pieces]


def _cut(folder: Folder, path: str, piece: _Piece, data: bytes, start: int) -> Kept:
    """One sample out of a range that begins at ``start``; each member's own header must agree."""
    row, files, image = piece.row, {}, ""
    for member in piece.members:
        at = _offset(member) - start
        content = data[at : at + member.size]
        suffix = _check_header(folder, path, row, member, data[at - HEADER : at]) or _sniffed(content)
        files[suffix] = content
        if member.offset == row["offset"]:
            image = suffix
    if not image:
        raise _gone(folder, path, row, "its image lies elsewhere in the shard")
    members = [Member(m.name or f"{row['key']}.{image}", m.offset, m.size) for m in piece.members]
    return Kept(row, folder.public(path), RawSample(row["key"], row["index"], members, files), image)


def _check_header(folder: Folder, path: str, row: dict[str, Any], member: Member, block: bytes) -> str:
    """The suffix of the member whose tar header this is; empty where the header has no room for the whole name.

    Raises:
        AccessError: it is not the header of the member that was meant.
    """
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _gone(folder, path, row, f"no member begins at byte {member.offset}") from error
    if header.size != member.size:
        raise _gone(folder, path, row, f"{header.size} bytes where there were {member.size}")
    name, key = header.name, row["key"]
    cut = block[99] != 0 and block[345] == 0  # a longer name stands before this header
    if key.isascii() and split_name(name)[0] != key and not (cut and f"{key}.".startswith(name)):
        raise _gone(folder, path, row, f"{name!r} lies in its place")
    if member.name:
        return split_name(member.name)[1]
    return "" if cut else split_name(name)[1]


def _pass(folder: Folder, shard: str, kept: list[dict[str, Any]], settings: ArchiveConfig) -> Iterator[Kept]:
    """The samples with all their files by one pass over the whole tar."""
    root, _, path = shard.partition("/")
    wanted = {row["index"]: row for row in kept}
    try:
        listed = Shard(root=root, path=path, format="tar", file=folder.info(path), files=())
        for raw in read_shard(folder, listed, settings):
            row = wanted.pop(raw.index, None)
            if row is not None:
                yield _matched(folder, path, row, raw)
            if not wanted:
                return
    except FileNotFoundError as error:
        raise _gone(folder, path, kept[0], "the shard is not there") from error
    if wanted:
        raise _gone(folder, path, next(iter(wanted.values())), "the shard ends before it")


def _matched(folder: Folder, path: str, row: dict[str, Any], raw: RawSample | Rejection) -> Kept:
    """A sample of a pass, if it is the one that the manifest means."""
    if raw.key != row["key"]:
        raise _gone(folder, path, row, f"{raw.key!r} lies in its place")
    if isinstance(raw, Rejection):
        raise _gone(folder, path, row, raw.message)
    for member in raw.members:
        if (member.offset, member.size) == (row["offset"], row["size"]):
            safe = {suffix: content for suffix, content in raw.data.items() if _is_safe(f".{suffix}")}
            return Kept(row, folder.public(path), replace(raw, data=safe), split_name(member.name)[1])
    raise _gone(folder, path, row, "its image lies elsewhere in the shard")


# folders of files


def _folder_jobs(
    folder: Folder, path: str, kept: list[dict[str, Any]], members: list[list[Member]], which: Members
) -> Iterator[Job]:
    """One job a sample."""
    for row, own in zip(kept, members, strict=True):
        image = next((m for m in own if extension(m.name) in IMAGES and m.size == row["size"]), None)
        if image is None:
            raise _gone(folder, path, row, f"no image of {row['size']} bytes is there")
        yield partial(_read_files, folder, path, row, own if which == "all" else [image], image)


def _listed(folder: Folder, path: str, kept: list[dict[str, Any]]) -> list[list[Member]]:
    """The files of each sample, found by listing the folder."""
    found: dict[str, list[Member]] = {row["key"]: [] for row in kept}
    for file in folder.list("" if path == "." else path, recursive=False):
        name = file.path.rpartition("/")[2]
        if (key := name.rpartition(".")[0]) in found and extension(name) in IMAGES | SIDECARS:
            found[key].append(Member(name, None, file.size))
    return [found[row["key"]] for row in kept]


def _read_files(folder: Folder, path: str, row: dict[str, Any], members: list[Member], image: Member) -> Iterable[Kept]:
    files = {}
    for member in members:
        name = member.name if path == "." else f"{path}/{member.name}"
        try:
            content = folder.read(name)
        except (AccessError, OSError) as error:
            raise _gone(folder, name, row, str(error)) from error
        if len(content) != member.size:
            raise _gone(folder, name, row, f"{len(content)} bytes where there were {member.size}")
        files[member.name.rpartition(".")[2]] = content
    raw = RawSample(row["key"], row["index"], members, files)
    return [Kept(row, folder.public("" if path == "." else path), raw, image.name.rpartition(".")[2])]


def _offset(member: Member) -> int:
    assert member.offset is not None
    return member.offset


def _sniffed(content: bytes) -> str:
    """What kind of image it is, by its first bytes."""
    if content[8:12] == b"WEBP":
        return "webp"
    return next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), "bin")


def _gone(folder: Folder, path: str, row: dict[str, Any], why: str) -> AccessError:
    return AccessError(
        f"sample {row['key']!r} of {folder.public(path)} has gone or changed: {why}; "
        "say with roots={name: URL} where the archive is now, or make the manifest again"
    )
