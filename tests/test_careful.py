"""Reading that may kill its process: what came before counts, the rest is one rejection."""

import os
import threading
from collections.abc import Iterator

import pytest

from curation.archive.sample import RawSample, Rejection
from curation.catalog.careful import stream
from curation.catalog.encode import _prefetched, survivors
from curation.errors import AccessError


def read(count: int, end: str) -> Iterator[RawSample]:
    """Some samples, and then as asked."""
    for index in range(count):
        yield RawSample(f"key{index}", index, [], {"txt": b"x"})
    if end == "dies":
        os._exit(139)
    if end == "access":
        raise AccessError("it vanished")


def test_a_reader_that_lives_gives_all() -> None:
    assert [raw.key for raw in stream(read, 3, "")] == ["key0", "key1", "key2"]
    assert list(stream(read, 0, "")) == []


def test_a_reader_that_dies_costs_the_rest() -> None:
    *samples, last = survivors(read, 3, "dies")
    assert [raw.key for raw in samples] == ["key0", "key1", "key2"]
    assert isinstance(last, Rejection)
    assert (last.index, last.stage, last.kind) == (3, "read", "DecoderCrash")


def test_its_errors_are_the_readers_own() -> None:
    with pytest.raises(AccessError, match="vanished"):
        list(survivors(read, 2, "access"))


def test_who_stops_listening_leaves_no_process() -> None:
    items = survivors(read, 10_000, "")
    next(items)
    items.close()  # type: ignore[attr-defined]


def test_who_stops_listening_leaves_no_thread() -> None:
    begun: list[int] = []

    def chunks() -> Iterator[list[RawSample | Rejection]]:
        for number in range(100):
            begun.append(number)
            yield [RawSample(f"key{number}", number, [], {})]

    threads = threading.active_count()
    ahead = _prefetched(chunks())
    assert [chunk[0].key for chunk in (next(ahead), next(ahead))] == ["key0", "key1"]
    ahead.close()
    assert threading.active_count() == threads and len(begun) < 10
