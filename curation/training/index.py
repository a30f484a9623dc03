"""The keep-index: which rows of an archive are trained on now, in versions that never change.

A version is a folder, ``<version>/rows.npy``, ``weights.npy`` and, for streams, ``ids.npy`` and ``places.npy``; its
``index.json`` is written last, so a version is complete or absent. Rows count an archive's samples: shards in sorted
order, in each the samples of its catalog file.
"""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curation.errors import CurationError, RequestError
from curation.storage import Folder, local_copy

Rows = NDArray[np.int32]
Weights = NDArray[np.float32]

HEADER = "index.json"
MOST = 2**31  # rows that int32 can number
BLOCK = 1 << 18  # rows read at once
RUN = 256  # rows that a search ends in
FILES: dict[str, Any] = {"rows": np.int32, "weights": np.float32, "ids": "S16", "places": np.int32}


@dataclass(frozen=True, eq=False)
class KeepIndex:
    """One version of the keep-index; of one that was read from files, the arrays are memory-mapped.

    Attributes:
        version: 0 is the full set.
        total: samples of the archive.
        header: its ``index.json``, with the hashes of all files.
        arrays: ``rows`` int32 (kept,), ascending, none for the full set; ``weights`` float32 (kept,), 1 / inclusion
            probability, NaN where a row has none; perhaps ``ids`` S16 (kept,), the sample ids' bytes, sorted, and
            ``places`` int32 (kept,), where in ``rows`` each id's is.
        source: the folder of versions and the cache that it was read from.
    """

    version: int
    total: int
    header: bytes
    arrays: Mapping[str, NDArray[Any]]
    source: tuple[Folder, Path | None] | None = None

    @classmethod
    def full(cls, total: int) -> "KeepIndex":
        """All of an archive, version 0; needs no files and no memory."""
        _check_total(total)
        ones = np.broadcast_to(np.float32(1), total)
        return cls(0, total, _header(0, total, total, {}, {}), {"weights": ones})

    @classmethod
    def of(
        cls,
        version: int,
        rows: ArrayLike,
        weights: ArrayLike | None,
        total: int,
        made_of: Mapping[str, Any] | None = None,
        ids: ArrayLike | None = None,
    ) -> "KeepIndex":
        """An index in memory, the same as one written and read.

        Args:
            version: above 0.
            rows: (kept,) ascending, from 0 to below ``total``.
            weights: (kept,) above 0, NaN for none; ``None``: none at all.
            total: samples of the archive.
            made_of: plain values that say what it was made of.
            ids: (kept,) S16, the bytes of each row's sample id, for streams.

        Raises:
            RequestError: this is no keep-index.
        """
        arrays = _arrays(version, rows, weights, total, ids)
        files = {f"{name}.npy": _sha256(_npy(array)) for name, array in arrays.items()}
        return cls(version, total, _header(version, total, len(arrays["rows"]), files, made_of or {}), arrays)

    @cached_property
    def sha256(self) -> str:
        """Of the header: equal where all is equal."""
        return _sha256(self.header)

    @property
    def kept(self) -> int:
        """How many rows are kept."""
        return len(self.arrays["weights"])

    @property
    def rows(self) -> Rows:
        """The kept rows, ascending; of the full set they are made anew."""
        return self.arrays["rows"] if "rows" in self.arrays else np.arange(self.total, dtype=np.int32)

    @property
    def weights(self) -> Weights:
        """1 / inclusion probability of each kept row."""
        return self.arrays["weights"]

    def blocks(self) -> Iterator[Rows]:
        """The rows in runs of ``BLOCK``, of which no more than one is in memory."""
        for start in range(0, self.kept, BLOCK):
            if "rows" in self.arrays:
                yield self._read("rows", start, BLOCK)
            else:
                yield np.arange(start, min(start + BLOCK, self.kept), dtype=np.int32)

    def at(self, places: NDArray[np.int64]) -> tuple[Rows, Weights]:
        """Some of the kept rows and their weights, by their places among these."""
        rows = np.array(self.arrays["rows"][places]) if "rows" in self.arrays else places.astype(np.int32)
        weights: Weights = np.array(self.weights[places])
        self.release()
        return rows, weights

    def weights_of(self, rows: ArrayLike) -> Weights:
        """The weights of some kept rows, float32 (n,).

        Raises:
            RequestError: one of them is not kept, or has no weight.
        """
        wanted = np.asarray(rows, np.int64)
        places = [self._place("rows", row) for row in wanted.astype(np.int32)] if "rows" in self.arrays else wanted
        missing = [row for row, place in zip(wanted, places, strict=True) if not 0 <= place < self.kept]
        if missing:
            raise RequestError(f"row {missing[0]} is not kept by version {self.version} of the keep-index")
        weights: Weights = np.array([self._read("weights", int(place), 1)[0] for place in places], np.float32)
        if np.isnan(weights).any():
            raise RequestError("the keep-index has no weights: its strategy draws nothing, train without them")
        return weights

    def weight_of_id(self, sample_id: bytes) -> float | None:
        """The weight (NaN for none) of the sample of an id, 16 bytes; ``None`` where it is not kept.

        Raises:
            RequestError: the index was made without ids.
        """
        if "ids" not in self.arrays:
            raise RequestError("the keep-index has no sample ids, by which a stream is filtered: make it with ids")
        place = self._place("ids", np.array([sample_id], "S16")[0])
        return None if place < 0 else float(self._read("weights", int(self._read("places", place, 1)[0]), 1)[0])

    @cached_property
    def _fences(self) -> dict[str, NDArray[Any]]:
        """The first of each run of what is searched."""
        found = {}
        for name in {"rows", "ids"} & self.arrays.keys():
            starts = range(0, self.kept, BLOCK)
            found[name] = np.concatenate([self._read(name, start, BLOCK)[::RUN].copy() for start in starts])
        return found

    def _place(self, name: str, value: np.generic) -> int:
        """Where in a sorted array a value is; -1 where it is not."""
        fences = self._fences[name]
        start = RUN * max(0, int(np.searchsorted(fences, value, side="right")) - 1)
        run = self._read(name, start, RUN)
        place = int(np.searchsorted(run, value))
        return start + place if place < len(run) and run[place] == value else -1

    def _read(self, name: str, start: int, count: int) -> NDArray[Any]:
        """A piece of an array; not through the map, of which a touch here and there makes all of it resident."""
        array = self.arrays[name]
        if name not in self._files:
            return array[start : start + count]
        size = array.dtype.itemsize
        offset = array.offset + start * size  # type: ignore[attr-defined]
        return np.frombuffer(
            os.pread(self._files[name].fileno(), min(count, self.kept - start) * size, offset), array.dtype
        )

    @cached_property
    def _files(self) -> dict[str, BinaryIO]:
        """The mapped files, opened."""
        mapped = {name: array.filename for name, array in self.arrays.items() if isinstance(array, np.memmap)}
        return {name: open(path, "rb", buffering=0) for name, path in mapped.items() if path}  # noqa: SIM115

    def write(self, folder: Folder) -> None:
        """Publish it among a folder's versions; where it is there already, nothing is new.

        Raises:
            RequestError: that version is there with another content; or this is the full set, which needs no files.
        """
        if self.version == 0:
            raise RequestError("version 0 of a keep-index is the full set: it is not written")
        place = folder.child(_name(self.version))
        if not place.exists(HEADER):
            for name, array in self.arrays.items():
                place.publish(f"{name}.npy", _npy(array))
            if place.create(HEADER, self.header):
                return
        if place.read(HEADER) != self.header:
            raise RequestError(
                f"{place.public()} holds another index: versions do not change, write it under a new one"
            )

    def release(self) -> None:
        """Give the pages of the maps back, so that they do not count as this process's memory."""
        for array in self.arrays.values():
            if isinstance(array.base, mmap.mmap):
                array.base.madvise(mmap.MADV_DONTNEED)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is not None:
            return _read_again, (self.version, self.sha256, *self.source)
        if self.version == 0:
            return KeepIndex.full, (self.total,)
        return KeepIndex, (self.version, self.total, self.header, self.arrays)


def write_index(
    folder: Folder,
    version: int,
    rows: ArrayLike,
    weights: ArrayLike | None,
    total: int,
    made_of: Mapping[str, Any],
    ids: ArrayLike | None = None,
) -> None:
    """Publish a version; the same one again is nothing new. Arguments: see :meth:`KeepIndex.of`.

    Raises:
        RequestError: this is no keep-index; the version is there with another content.
    """
    KeepIndex.of(version, rows, weights, total, made_of, ids).write(folder)


def versions(folder: Folder) -> list[int]:
    """The complete versions, ascending."""
    found = (file.path.split("/") for file in folder.list())
    return sorted(int(path[0]) for path in found if path[1:] == [HEADER] and path[0].isdigit())


def read_index(folder: Folder, version: int | None = None, cache: Path | None = None) -> KeepIndex:
    """Open a version, its files held against its header.

    Args:
        folder: of the versions.
        version: which; the newest without it.
        cache: a local folder that the files of a remote version are copied to.

    Raises:
        RequestError: there is no such version; or a remote one and no cache.
        CurationError: its files are damaged.
    """
    if version is None:
        complete = versions(folder)
        if not complete:
            raise RequestError(f"{folder.public()} has no complete keep-index: draw one, or begin with the full set")
        version = complete[-1]
    place = folder.child(_name(version))
    try:
        header = place.read(HEADER)
    except FileNotFoundError as error:
        raise RequestError(f"{place.public()} holds no complete keep-index: there is no version {version}") from error
    try:
        said = json.loads(header)
        kept, total, files = int(said["kept"]), int(said["total"]), dict(said["files"])
        arrays = {name.removesuffix(".npy"): _mapped(place, name, kept, files[name], cache) for name in files}
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise CurationError(f"{place.public()} is damaged ({error}): remove it and draw that version again") from error
    return KeepIndex(version, total, header, arrays, (folder, cache))


_opened: dict[str, KeepIndex] = {}  # what this process read last of each folder


def _read_again(version: int, sha256: str, folder: Folder, cache: Path | None) -> KeepIndex:
    """What was pickled in another process."""
    index = _opened.get(folder.url)
    if index is None or index.sha256 != sha256:
        index = read_index(folder, version, cache)
        if index.sha256 != sha256:
            raise CurationError(f"{folder.public(_name(version))} is another index here: give all processes the same")
        _opened[folder.url] = index
    return index


def _mapped(place: Folder, name: str, kept: int, sha256: str, cache: Path | None) -> NDArray[Any]:
    """A file of a version as an array.

    Raises:
        ValueError: it is not what the header says.
    """
    path = local_copy(place, name, cache)
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{name} is not the file that was written")
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != (kept,) or array.dtype != np.dtype(FILES[name.removesuffix(".npy")]):
        raise ValueError(f"{name} is {array.dtype}{array.shape}")
    return array


def _arrays(
    version: int, rows: ArrayLike, weights: ArrayLike | None, total: int, ids: ArrayLike | None
) -> dict[str, NDArray[Any]]:
    """The arrays of an index, checked."""
    _check_total(total)
    if version < 1:
        raise RequestError(f"version {version}: drawn versions of a keep-index count from 1; 0 is the full set")
    own = np.asarray(rows)
    if own.ndim != 1 or not len(own) or own[0] < 0 or own[-1] >= total or not (own[1:] > own[:-1]).all():
        raise RequestError(f"a keep-index has at least one row, ascending, each once, from 0 to below {total}")
    weights = np.full(len(own), np.nan) if weights is None else weights
    arrays = {"rows": own.astype(np.int32), "weights": np.asarray(weights, np.float32)}
    if arrays["weights"].shape != own.shape or not ((arrays["weights"] > 0) | np.isnan(arrays["weights"])).all():
        raise RequestError(f"a keep-index of {len(own)} rows has as many weights, each above 0 (or NaN for none)")
    if ids is not None:
        names = np.asarray(ids, "S16")
        order = np.argsort(names, kind="stable").astype(np.int32)
        if names.shape != own.shape or (names[order][1:] == names[order][:-1]).any():
            raise RequestError(f"a keep-index of {len(own)} rows has as many sample ids, each once")
        arrays |= {"ids": names[order], "places": order}
    return arrays


def _check_total(total: int) -> None:
    if not 1 <= total <= MOST:
        raise RequestError(f"an archive of {total} samples cannot be indexed: rows are int32, take 1 to {MOST}")


def _header(version: int, total: int, kept: int, files: Mapping[str, str], made_of: Mapping[str, Any]) -> bytes:
    said = {"version": version, "total": total, "kept": kept, "files": dict(files), "made_of": dict(made_of)}
    return json.dumps(said, sort_keys=True, indent=1).encode() + b"\n"


def _npy(array: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _name(version: int) -> str:
    return f"{version:06d}"
