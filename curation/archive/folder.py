"""A folder of loose images as one shard; its sidecars are the files of the same stem."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from curation.archive.names import SIDECARS, extension, is_text, matters, printable
from curation.archive.sample import Member, RawSample, Rejection, Wanted
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard, group_scenes, scene_key
from curation.archive.tables import Sieve
from curation.errors import ChangedError
from curation.storage import FileInfo, Folder

THREADS = 8  # requests at once to a remote store, where each takes tens of milliseconds
AHEAD = 32  # samples that are fetched before they are asked for


def read_folder(
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
    bare: bool = False,
) -> Iterator[RawSample | Rejection]:
    """The samples of a folder, sorted by key, numbered from 0.

    A sample is a stem; with ``archive.scene`` a scene, each of its files named by its band. ``bare``: images are not
    read, and come as no bytes.

    Raises:
        AccessError: a file vanished (ChangedError), or is not of its listed size.
    """

    def read(index: int, key: str, files: dict[str, FileInfo]) -> RawSample | Rejection:
        if not is_text(key):
            return Rejection(printable(key), index, "read", "BadName", f"the name {printable(key)} is not UTF-8")
        for file in files.values():
            suffix = extension(file.path)
            if file.size < 0:
                return Rejection(key, index, "read", "MissingAsset", f"{_base(file)} is listed but not there")
            if file.size == 0 and suffix != "txt" and matters(suffix, settings.members):
                return Rejection(key, index, "read", "EmptyMember", f"{_base(file)} has no bytes")
        members = [
            Member(_base(file), None, file.size, file.path if settings.scene else None) for file in files.values()
        ]
        data = {
            suffix: b"" if bare and extension(file.path) not in SIDECARS else _read(folder, file)
            for suffix, file in files.items()
        }
        return RawSample(key, index, members, data)

    groups = sorted(_groups(shard.files, settings.scene).items())
    if only is not None:
        keys = {wanted.key for wanted in only}
        groups = [group for group in groups if group[0] in keys]
    if sieve is not None and sieve.by_key and groups:
        allowed = sieve.allowed([key for key, _ in groups], [{}] * len(groups))
        groups = [group for group, passes in zip(groups, allowed, strict=True) if passes]
    calls = [partial(read, index, key, files) for index, (key, files) in enumerate(groups)]
    if folder.local:
        for call in calls:
            yield call()
    else:
        yield from _ahead(calls)


def _groups(files: tuple[FileInfo, ...], scene: str | None) -> dict[str, dict[str, FileInfo]]:
    """Keys to files by suffix."""
    groups: dict[str, dict[str, FileInfo]] = {}
    if scene is None:
        for file in files:
            groups.setdefault(_base(file).rpartition(".")[0], {})[_suffix(file)] = file
        return groups
    for name, own in group_scenes(files, scene).items():
        suffixes = [
            f"{band}.{_suffix(file)}" if band and band != _suffix(file) else _suffix(file) for band, file in own
        ]
        groups[scene_key(name)] = dict(zip(suffixes, (file for _, file in own), strict=True))
    return groups


def _base(file: FileInfo) -> str:
    return file.path.rpartition("/")[2]


def _suffix(file: FileInfo) -> str:
    return file.path.rpartition(".")[2]


def _read(folder: Folder, file: FileInfo) -> bytes:
    try:
        return folder.read_range(file.path, 0, file.size, file.version)
    except FileNotFoundError as error:
        raise ChangedError(f"{folder.public(file.path)}: it vanished after it was listed") from error


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
