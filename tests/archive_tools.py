"""Reading an archive in a test: everything in its shards, and decoded."""

from pathlib import Path
from typing import Any

from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import Member, RawSample, Rejection, Sample
from curation.archive.settings import ArchiveConfig


def read_all(url: Path | str, **settings: Any) -> list[RawSample | Rejection]:
    """What comes out of every shard, in order; numbers are checked to run from 0 in each."""
    found = []
    config = ArchiveConfig(**settings)
    for root in list_archive(str(url), settings=config):
        for shard in root.shards:
            items = list(read_shard(root.folder, shard, config))
            assert [item.index for item in items] == list(range(len(items)))
            found += items
    return found


def raw(**members: bytes) -> RawSample:
    """A sample of members by suffix; ``_`` in a suffix is a dot."""
    data = {suffix.replace("_", "."): content for suffix, content in members.items()}
    listed = [Member(f"key.{suffix}", 512, len(content)) for suffix, content in data.items()]
    return RawSample("key", 0, listed, data)


def decoded(settings: dict[str, Any] | None = None, **members: bytes) -> Sample:
    """The sample that some members make."""
    return decode(raw(**members), ArchiveConfig(**(settings or {})))
