"""What there is to read: the roots that a URL names, and the shards below each of them."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec.utils import glob_translate

from curation.archive.lists import read_list
from curation.archive.names import IMAGES, SIDECARS, extension, is_shard, is_text, printable
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard, shards_of
from curation.errors import AccessError, RequestError
from curation.storage import FileInfo, Folder, Options, is_local, local_path, options_for, public_url

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Root:
    """A named part of the archive; its shards are sorted by path."""

    name: str
    folder: Folder
    shards: tuple[Shard, ...]


def list_archive(url: Any, options: Options | None = None, settings: ArchiveConfig | None = None) -> list[Root]:
    """List the roots and shards that ``url`` names.

    Args:
        url: one literal URL of a folder, a shard, a list of scenes, or a glob (``*``, ``?``,
            ``[…]``, ``**``), as typed; a list of them, or a mapping of names to
            them; also the text ``[a, b]`` or ``{name: url}`` where no such path exists.
        options: per protocol, root or place, what its file system is made with.
        settings: how files make shards; ``None``: by the defaults.

    Returns:
        The roots in the order given; unnamed ones are ``root0``, ``root1``, ….

    Raises:
        RequestError: no such path, no shard there, no credentials, or two shards of one id.
        AccessError: the store does not answer.
    """
    roots = [_list_root(name, one, options_for(options, name, one), settings) for name, one in _named(url)]
    _check_ids(roots)
    return roots


def moved_roots(options: Options | None, settings: ArchiveConfig) -> dict[str, str] | None:
    """Where the roots of a manifest lie by ``archive.url``; ``None``: where the manifest says.

    Raises:
        RequestError, AccessError: as :func:`list_archive`.
    """
    if settings.url is None:
        return None
    return {root.name: root.folder.url for root in list_archive(settings.url, options, settings)}


def list_files(url: str, options: Options | None = None) -> list[FileInfo]:
    """Every file that one URL names, or that lies below what it names, whatever it is.

    Raises:
        RequestError: there is nothing.
        AccessError: the store does not answer.
    """
    return _files_at(url, options_for(options, "root0", url))[1]


def root_names(url: Any) -> list[str]:
    """What the roots that ``url`` names are called."""
    return [name for name, _ in _named(url)]


# from what was typed to named URLs


def _named(url: Any) -> list[tuple[str, str]]:
    if isinstance(url, str):
        url = _parse(url)
    if isinstance(url, Mapping):
        pairs = [(str(name), one) for name, one in url.items()]
    elif isinstance(url, Sequence) and not isinstance(url, str):
        pairs = [(f"root{i}", one) for i, one in enumerate(url)]
    else:
        pairs = [("root0", url)]
    if not pairs or not all(isinstance(one, str) and one.strip() for _, one in pairs):
        raise RequestError(f"the archive's url is {url!r}: give a path, a URL, a list of them or {{name: url}}")
    for name, _ in pairs:
        if not name or "/" in name or name in (".", "..") or not is_text(name):
            raise RequestError(f"{printable(name)!r} cannot name a root: take letters and digits, without '/'")
    return pairs


def _parse(text: str) -> str | list[str] | dict[str, str]:
    """The list or mapping that a text spells, if it spells one and is not the name of something that exists."""
    inner = text.strip()
    kind = inner[:1] + inner[-1:]
    if kind not in ("[]", "{}") or os.path.lexists(local_path(text)):
        return text
    items = [item for item in _split(inner[1:-1]) if item]
    if kind == "[]":
        return [_unquote(item) for item in items]
    named: dict[str, str] = {}
    for item in items:
        name, colon, one = item.partition(":")
        if not colon or _unquote(name) in named:
            raise RequestError(f"{text} is no mapping of different names to URLs: write {{name: url, other: url}}")
        named[_unquote(name)] = _unquote(one)
    return named


def _split(text: str) -> Iterator[str]:
    """Cut at the commas that stand outside quotes and brackets."""
    start, depth, quote = 0, 0, ""
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not text[start:i].rpartition(":")[2].strip():
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            yield text[start:i].strip()
            start = i + 1
    yield text[start:].strip()


def _unquote(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


# from one URL to a root


def _list_root(name: str, url: str, options: Options | None, settings: ArchiveConfig | None) -> Root:
    try:
        folder, found = _find(name, url, options, settings)
    except AccessError as error:
        cause = error.__cause__
        if isinstance(cause, PermissionError) or "Credentials" in type(cause).__name__:
            advice = "set them by environment, profile or instance role" if not is_local(url) else "check its mode"
            raise RequestError(f"{error}; {advice}") from error
        raise
    shards = tuple(sorted(found, key=lambda shard: shard.path))
    for shard in shards:
        if not is_text(shard.path):
            raise RequestError(f"the name of {printable(shard.name)} is not UTF-8: rename it")
    if not shards and settings and settings.scene not in (None, "file", "folder"):
        raise RequestError(
            f"archive.scene={settings.scene} matches no image in {public_url(url)}: see that it fits their paths"
        )
    if not shards:
        looked_for = f"looked for *.tar, *.parquet, *.zarr, *.zip and images ({', '.join(sorted(IMAGES))})"
        raise RequestError(f"no shard found in {public_url(url)}: {looked_for}")
    return Root(name, folder, shards)


def _find(
    name: str, url: str, options: Options | None, settings: ArchiveConfig | None
) -> tuple[Folder, Iterable[Shard]]:
    """The root's folder and the shards below it."""
    folder, files, alone = _files_at(url, options)
    if alone:
        listed = read_list(name, folder, files[0].path, settings)
        if listed is not None:
            return listed
        if not is_shard(url):
            may = "a tar, Parquet, zipped Zarr or TIFF, a list (txt, STAC json), or a folder"
            raise RequestError(f"{public_url(url)} is no shard: give {may}")
    return folder, shards_of(name, files, settings)


def _files_at(url: str, options: Options | None) -> tuple[Folder, list[FileInfo], bool]:
    """A root's folder, the files below it that a URL names, and whether it names just one file."""
    if not is_local(url) and _MAGIC.search(url.split("://", 1)[1].split("/")[0]):
        raise RequestError(f"{public_url(url)}: a bucket's name cannot be a pattern")
    folder = Folder(url, options)
    kind = folder.kind()
    if kind is None:
        return *_find_glob(url, options), False
    base = folder.url.rpartition("/")[2]
    if kind == "file":
        return folder.parent, [folder.parent.info(base)], True
    if base.endswith(".zarr"):  # a store is a shard, as a tar is
        return folder.parent, folder.parent.list(base), False
    return folder, folder.list(), False


def _find_glob(url: str, options: Options | None) -> tuple[Folder, list[FileInfo]]:
    """The root is all before the first part that is a pattern and not the name of something."""
    whole = local_path(url) if is_local(url) else url.rstrip("/")
    parts = whole.split("/")
    for i, part in enumerate(parts):
        prefix = "/".join(parts[:i])
        if _MAGIC.search(part) and Folder(f"{prefix}/{part}", options).kind() is None:
            break
    else:
        raise RequestError(f"there is nothing at {public_url(url)}: check the path")
    folder = Folder(prefix or "/", options)
    try:
        pattern = re.compile(glob_translate("/".join(parts[i:])))
    except (ValueError, re.error) as error:
        raise RequestError(f"{public_url(url)} is no valid pattern: {error}") from error
    return folder, _matching(folder.list(), pattern)


def _matching(files: list[FileInfo], pattern: re.Pattern[str]) -> list[FileInfo]:
    """The files that match, or lie in a folder that does, and the sidecars beside them."""
    folders: dict[str, bool] = {"": False}

    def inside(folder: str) -> bool:
        if folder not in folders:
            folders[folder] = pattern.match(folder) is not None or inside(folder.rpartition("/")[0])
        return folders[folder]

    return [
        file
        for file in files
        if extension(file.path) in SIDECARS or pattern.match(file.path) or inside(file.path.rpartition("/")[0])
    ]


# from files to shards


def _check_ids(roots: list[Root]) -> None:
    seen: dict[str, tuple[Root, Shard]] = {}
    for root in roots:
        for shard in root.shards:
            if shard.name in seen:
                raise RequestError(
                    f"two shards would share the id {shard.name}: {_url(*seen[shard.name])} and {_url(root, shard)}; "
                    "give their roots other names, {name: url, other: url}"
                )
            seen[shard.name] = root, shard


def _url(root: Root, shard: Shard) -> str:
    return root.folder.public("" if shard.path == "." else shard.path)
