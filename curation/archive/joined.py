"""Modalities side by side: shards of one name in several folders, read in step; a sample is a key of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from curation.archive.clouds import is_mask
from curation.archive.sample import Image, Member, RawSample, Rejection, Wanted
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.sidecar import gather
from curation.archive.tables import Sieve
from curation.errors import BadSample
from curation.storage import Folder

if TYPE_CHECKING:  # it imports this module
    from curation.archive.reader import Reader


LAG = 32  # samples by which the order of keys may differ between modalities
WAITING = 256 << 20  # bytes that may wait for their counterparts


def read_joined(
    readers: Mapping[str, Reader],
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
) -> Iterator[RawSample | Rejection]:
    """The samples that all modalities have, numbered from 0, in the order in which the last one of each came.

    Where one modality breaks off, one rejection stands for the rest, as it does in a shard alone.

    Raises:
        AccessError: a part vanished or gave fewer bytes than the listing said.
    """
    streams = []
    for number, (modality, part) in enumerate(shard.parts):
        asked = only  # positions are the first one's
        if only is not None and number:
            asked = [replace(wanted, position=None) for wanted in only]
        items = readers[part.format](folder, part, own_settings(settings, modality), asked, None)
        streams.append(_Stream(modality, part, items))
    for index, item in enumerate(_Join(streams).read()):
        yield replace(item, index=index)


def own_settings(settings: ArchiveConfig, modality: str) -> ArchiveConfig:
    """The settings of a part: its own members, without the modality before them."""
    if settings.members is None:
        return settings
    own = [member.removeprefix(f"{modality}.") for member in settings.members if member.startswith(f"{modality}.")]
    return replace(settings, members=own or None)


@dataclass
class _Stream:
    """One modality's part of the shard."""

    modality: str
    part: Shard
    items: Iterator[RawSample | Rejection]
    last: str = ""
    sorted: bool = True
    ended: bool = False
    broken: bool = False


@dataclass
class _Pending:
    """What came of a key so far; ``since`` counts the samples that were whole by then."""

    since: int
    items: dict[str, RawSample | Rejection] = field(default_factory=dict)


class _Join:
    """Puts the parts' samples together by key.

    As long as the keys of every part come in the order of their names, as they mostly do, the part that is behind is
    read: however many keys in a row one of them lacks, few wait.
    """

    def __init__(self, streams: Sequence[_Stream]) -> None:
        self.streams = streams
        self.pending: dict[str, _Pending] = {}
        self.finished: set[str] = set()
        self.whole = 0

    def read(self) -> Iterator[RawSample | Rejection]:
        """One sample of each part in turn, and whatever is whole by then."""
        while not all(stream.ended for stream in self.streams):
            for stream in self._behind():
                yield from self._step(stream)
            yield from self._overdue(self.whole - LAG)
            if any(stream.ended and stream.broken for stream in self.streams):
                return  # what the others still have can have no counterpart
        yield from self._overdue(self.whole + 1)

    def _behind(self) -> Sequence[_Stream]:
        live = [stream for stream in self.streams if not stream.ended]
        return [min(live, key=lambda stream: stream.last)] if self._sorted else live

    @property
    def _sorted(self) -> bool:
        return all(stream.sorted for stream in self.streams)

    def _step(self, stream: _Stream) -> Iterator[RawSample | Rejection]:
        item = None if stream.ended else next(stream.items, None)
        if item is None:
            stream.ended = True
            return
        if isinstance(item, Rejection) and not item.key:  # of more than a sample
            stream.broken |= item.kind != "TrailingData"
            yield replace(item, message=f"{stream.modality}: {item.message}")
            return
        key = _name(item)
        stream.sorted &= stream.last <= key
        stream.last = key
        pending = self.pending.get(key)
        if key in self.finished or (pending and stream.modality in pending.items):
            if isinstance(item, Rejection):  # a member or key that came twice
                yield replace(item, message=f"{stream.modality}: {item.message}")
            return
        pending = self.pending.setdefault(key, _Pending(self.whole))
        pending.items[stream.modality] = item
        if isinstance(item, Rejection) or len(pending.items) == len(self.streams):
            yield self._finish(key)

    def _finish(self, key: str) -> RawSample | Rejection:
        items = self.pending.pop(key).items
        self.finished.add(key)
        self.whole += 1
        for modality, item in items.items():
            if isinstance(item, Rejection):
                return replace(item, message=f"{modality}: {item.message}")
        own = [(stream, item) for stream in self.streams if isinstance(item := items[stream.modality], RawSample)]
        try:
            return _joined(own)
        except BadSample as error:
            return Rejection(key, 0, error.stage, error.kind, error.message)

    def _overdue(self, before: int) -> Iterator[Rejection]:
        """Reject what came so long ago that its counterpart should have come.

        Not where that may lie in what was rejected already as the rest of a row group or shard.
        """
        late = [key for key, pending in self.pending.items() if pending.since < before]
        for key in late:
            yield from self._missing(key)
        while self._too_many():
            yield from self._missing(min(self.pending) if self._sorted else next(iter(self.pending)))

    def _too_many(self) -> bool:
        count = len(self.pending)
        if count <= len(self.streams):
            return False
        return count > LAG * len(self.streams) or sum(map(_size, self.pending.values())) > WAITING

    def _missing(self, key: str) -> Iterator[Rejection]:
        there = self.pending.pop(key).items
        self.finished.add(key)
        missing = [stream.modality for stream in self.streams if stream.modality not in there and not stream.broken]
        if missing:
            message = f"{', '.join(missing)} has no such key, or not within {LAG} samples of {', '.join(there)}"
            yield Rejection(key, 0, "read", "MissingModality", message)


def _size(pending: _Pending) -> int:
    raws = (item for item in pending.items.values() if isinstance(item, RawSample))
    return sum(member.size for raw in raws for member in raw.members)


def _name(item: RawSample | Rejection) -> str:
    if isinstance(item, RawSample) and item.window is not None:
        return item.key + item.window.suffix
    return item.key


def _joined(own: Sequence[tuple[_Stream, RawSample]]) -> RawSample:
    """One sample of the modalities' samples; files and images get the modality before their names.

    Raises:
        BadSample: ``BadSidecar``.
    """
    first = own[0][1]
    members: list[Member] = []
    data: dict[str, bytes] = {}
    images: dict[str, Image] = {}
    said: dict[str, Any] = {}
    for stream, raw in own:
        members += [replace(member, file=member.file or stream.part.path) for member in raw.members]
        data |= {f"{stream.modality}.{suffix}": content for suffix, content in raw.data.items()}
        alone = sum(not is_mask(name) for name in raw.images) == 1
        for name, image in raw.images.items():
            images[stream.modality if alone and not is_mask(name) else f"{stream.modality}.{name}"] = image
        said = {**gather(raw.data, raw.said), **said}
    return RawSample(first.key, 0, members, data, images, said, first.position, first.window)
