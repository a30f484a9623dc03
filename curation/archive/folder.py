"""A folder of loose images as one shard; its sidecars are the files of the same stem."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from curation.archive.names import extension, is_text, matters, printable
from curation.archive.sample import Member, RawSample, Rejection
from curation.errors import AccessError

if TYPE_CHECKING:
    from curation.archive.listing import Shard
    from curation.config import ArchiveConfig
    from curation.storage import FileInfo, Folder

THREADS = 8  # requests at once to a remote store, where each takes tens of milliseconds
AHEAD = 32  # samples that are fetched before they are asked for


def read_folder(folder: Folder, shard: Shard, settings: ArchiveConfig) -> Iterator[RawSample | Rejection]:
    """The samples of a folder, sorted by key, numbered from 0.

    Raises:
        AccessError: a file vanished, or is not of its listed size.
    """

    def read(index: int, key: str, files: list[FileInfo]) -> RawSample | Rejection:
        if not is_text(key):
            return Rejection(printable(key), index, "read", "BadName", f"the name {printable(key)} is not UTF-8")
        for file in files:
            suffix = extension(file.path)
            if file.size == 0 and suffix != "txt" and matters(suffix, settings.members):
                return Rejection(key, index, "read", "EmptyMember", f"{_base(file)} has no bytes")
        members = [Member(_base(file), None, file.size) for file in files]
        return RawSample(key, index, members, {_suffix(file): _read(folder, file) for file in files})

    groups = sorted(_groups(shard.files).items())
    calls = [partial(read, index, key, files) for index, (key, files) in enumerate(groups)]
    if folder.local:
        for call in calls:
            yield call()
    else:
        yield from _ahead(calls)


def _groups(files: tuple[FileInfo, ...]) -> dict[str, list[FileInfo]]:
    groups: dict[str, list[FileInfo]] = {}
    for file in files:
        groups.setdefault(_base(file).rpartition(".")[0], []).append(file)
    return groups


def _base(file: FileInfo) -> str:
    return file.path.rpartition("/")[2]


def _suffix(file: FileInfo) -> str:
    return file.path.rpartition(".")[2]


def _read(folder: Folder, file: FileInfo) -> bytes:
    try:
        return folder.read_range(file.path, 0, file.size, file.version)
    except FileNotFoundError as error:
        raise AccessError(f"{folder.public(file.path)}: it vanished after it was listed") from error


def _ahead(calls: Sequence[Callable[[], RawSample | Rejection]]) -> Iterator[RawSample | Rejection]:
    """The results in order, a bounded number of them fetched ahead."""
    with ThreadPoolExecutor(THREADS) as pool:
        running: deque[Future[RawSample | Rejection]] = deque()
        try:
            for call in calls:
                running.append(pool.submit(call))
                if len(running) >= AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
