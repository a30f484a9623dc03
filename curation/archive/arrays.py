"""Arrays of a Zarr store, format 2 or 3: in a folder, in a zip, or in the bytes of a zip.

A small zip (a member of a tar) of format 2 is decoded by numcodecs itself:
zarr takes milliseconds to open a group, as long as decoding a tile.
"""

from __future__ import annotations

import asyncio
import bz2
import errno
import io
import itertools
import json
import lzma
import math
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from curation.archive.image import bad_image
from curation.errors import AccessError, BadSample
from curation.storage import GAP, IN_FLIGHT, coalesce

if TYPE_CHECKING:
    from curation.storage import FileInfo, Folder

METADATA = (".zarray", ".zgroup", "zarr.json", ".zmetadata")
MAX_METADATA = 1 << 26  # bytes of one JSON file
_SLACK = 1 << 16  # bytes that a compressed chunk may be larger than its numbers

Selection = tuple[slice, ...]


@dataclass(frozen=True)
class Array:
    """An array that is not read yet.

    Attributes:
        name: its path in the store; empty where the store is one array.
        chunks: of a sharded array the shards': what is one file.
        dims: a name an axis, empty where it has none.
        fill: what stands for a chunk that is not there; ``None``: nothing does.
        read: the numbers of a selection, one slice an axis; chunks that are not there are ``fill``.
        keys: the files of a selection's chunks, whether or not they are there.
        missing: those that are not there.
        sharded: whether a part of such a file can be read alone.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    attrs: Mapping[str, Any]
    fill: Any
    read: Callable[[Selection], NDArray[Any]]
    keys: Callable[[Selection], list[str]]
    missing: Callable[[Selection], list[str]]
    sharded: bool = False

    @property
    def everything(self) -> Selection:
        """The selection of all its numbers."""
        return tuple(slice(0, length) for length in self.shape)


class Files:
    """The files of a store by their path in it.

    Attributes:
        sizes: bytes of each, as they are handed out.
        waits: for a disk or a store, so that others can be read at the same time.
        far: in a store where each request takes its time.
    """

    sizes: dict[str, int]
    waits: bool
    far = False

    def ahead(self, keys: Iterable[str]) -> None:
        """Fetch files that are read next, where they are far, in the place of those that were fetched before."""

    def spans(self, keys: Iterable[str]) -> list[int]:
        """The bytes of each request by which an object store would give these files."""
        return [self.sizes[key] for key in dict.fromkeys(keys) if key in self.sizes]

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        raise NotImplementedError


class FolderFiles(Files):
    """The listed files of a folder."""

    waits = True

    def __init__(self, folder: Folder, path: str, files: Iterable[FileInfo]) -> None:
        prefix = "" if path == "." else path + "/"
        self.folder, self.files = folder, {file.path.removeprefix(prefix): file for file in files}
        self.sizes = {key: file.size for key, file in self.files.items()}
        self.far, self.held = not folder.local, dict[str, bytes]()

    def ahead(self, keys: Iterable[str]) -> None:
        """Fetch files that are read next, ``IN_FLIGHT`` at once."""
        there = [key for key in dict.fromkeys(keys) if key in self.files]
        if self.far and there:
            with ThreadPoolExecutor(min(IN_FLIGHT, len(there))) as pool:
                whole = pool.map(lambda key: self._fetch(key, 0, self.sizes[key]), there)
                self.held = dict(zip(there, whole, strict=True))

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Some bytes of a file; fewer than were listed are an access error."""
        return self.held[key][start:stop] if key in self.held else self._fetch(key, start, stop)

    def _fetch(self, key: str, start: int, stop: int) -> bytes:
        file = self.files[key]
        try:
            return self.folder.read_range(file.path, start, stop, file.version)
        except FileNotFoundError as error:
            raise AccessError(f"{self.folder.public(file.path)}: it vanished after it was listed") from error


class ZipFiles(Files):
    """The files of a zip.

    Args:
        file: the zip, seekable.

    Raises:
        BadSample: it is none, is cut short or damaged.
    """

    waits = False

    def __init__(self, file: Any) -> None:
        with _zip_faults("it"):
            self.zip, self.lock = zipfile.ZipFile(file), Lock()
        infos = {info.filename: info for info in self.zip.infolist()}  # of several of one name the last counts
        tops = [name.rpartition("/")[0] for name in infos if name.rpartition("/")[2] in METADATA]
        top = min(tops, key=len, default="")
        prefix = f"{top}/" if top and not infos.keys() & set(METADATA) else ""
        self.infos = {name.removeprefix(prefix): info for name, info in infos.items() if name.startswith(prefix)}
        self.sizes = {key: info.file_size for key, info in self.infos.items()}

    @cached_property
    def _ends(self) -> dict[int, int]:
        """Where what begins at an offset ends: a header, the file, at times more."""
        return dict(pairwise(sorted({*(info.header_offset for info in self.zip.infolist()), self.zip.start_dir})))

    def ranges(self, keys: Iterable[str]) -> list[tuple[int, int]]:
        """Where files lie in the zip, with their headers."""
        starts = dict.fromkeys(self.infos[key].header_offset for key in keys if key in self.infos)
        return [(start, self._ends[start]) for start in starts if start in self._ends]

    def spans(self, keys: Iterable[str]) -> list[int]:
        """The bytes of each request by which an object store would give these files."""
        return [stop - start for start, stop in coalesce(self.ranges(keys), GAP)]

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        with self.lock, _zip_faults(key), self.zip.open(self.infos[key]) as file:
            if start:
                file.seek(start)
            return file.read(stop - start)


class RemoteZipFiles(ZipFiles):
    """The files of a zip in an object store: those that are read next come by few requests."""

    far = True

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        super().__init__(folder.open(file, random=True))
        self.folder, self.file = folder, file

    def ahead(self, keys: Iterable[str]) -> None:
        """Fetch files that are read next, near ones together."""
        with self.lock:
            self.zip.fp = self.folder.open(self.file, random=True, ahead=self.ranges(keys))


@contextmanager
def _zip_faults(name: str) -> Iterator[None]:
    """What ``zipfile`` raises on damaged files, as a bad sample; what the disk or the store raises passes."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        kind = "TruncatedImage" if "not a zip" in str(error) else "BadImage"
        raise bad_image(f"zip: {name}: {error}", kind) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a seek to where no file reaches
            raise
        raise bad_image(f"zip: {name}: {error.strerror or error}") from error


# by zarr


class _Store(Store):
    """What zarr reads from."""

    supports_writes = supports_deletes = False
    supports_listing = True

    def __init__(self, files: Files) -> None:
        super().__init__(read_only=True)
        self.files, self._is_open = files, True

    def __eq__(self, other: object) -> bool:
        return self is other

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        size = self.files.sizes.get(key)
        if size is None:
            return None
        start, stop = 0, size
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, min(size, byte_range.end)
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(0, size - byte_range.suffix)
        if self.files.waits:
            data = await asyncio.to_thread(self.files.read, key, start, stop)
        else:
            data = self.files.read(key, start, stop)
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self.files.sizes

    async def list(self) -> AsyncIterator[str]:
        for key in self.files.sizes:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self.files.sizes:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        below = prefix.rstrip("/") + "/" if prefix else ""
        for name in {key.removeprefix(below).split("/")[0] for key in self.files.sizes if key.startswith(below)}:
            yield name

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        raise NotImplementedError


def open_arrays(files: Files) -> dict[str, Array]:
    """The arrays of a store by name, in the order of their names.

    Raises:
        BadSample: ``UnsafeFile``, an array holds pickles; ``BadImage``, its metadata cannot be read.
    """
    store, found = _Store(files), {}
    files.ahead(metadata_keys(files))
    for key in sorted(files.sizes):
        name, _, base = key.rpartition("/")
        if base not in (".zarray", "zarr.json"):
            continue
        metadata = _json(files, key)
        if base == "zarr.json" and metadata.get("node_type") != "array":
            continue
        _refuse_pickles(name, metadata)
        try:
            array = zarr.open_array(store, path=name, mode="r", zarr_format=2 if base == ".zarray" else 3)
            found[name] = _from_zarr(name, array, files)
        except (AccessError, BadSample, MemoryError):
            raise
        except Exception as error:  # zarr raises whatever it likes on metadata that it does not know
            if _is_text_like(metadata):
                continue  # a coordinate that is not needed
            raise bad_image(f"zarr: {name or 'the array'}: {' '.join(str(error).split())[:200]}") from error
    return found


def metadata_keys(files: Files) -> list[str]:
    """The files that say what the arrays of a store are."""
    return [key for key in files.sizes if key.rpartition("/")[2] in (*METADATA, ".zattrs")]


def _from_zarr(name: str, array: Any, files: Files) -> Array:
    chunks, shape = tuple(array.shards or array.chunks), tuple(array.shape)
    attrs = dict(array.attrs)

    def keys(selection: Selection) -> list[str]:
        found = (array.metadata.encode_chunk_key(place) for place in _places(chunks, selection))
        return [f"{name}/{key}" if name else key for key in found]

    def missing(selection: Selection) -> list[str]:
        return [key for key in keys(selection) if key not in files.sizes]

    dims = getattr(array.metadata, "dimension_names", None) or attrs.get("_ARRAY_DIMENSIONS")
    about = name, shape, chunks, np.dtype(array.dtype), _dims(dims, shape), attrs, array.fill_value
    return Array(*about, array.get_basic_selection, keys, missing, array.shards is not None)


def _places(chunks: tuple[int, ...], selection: Selection) -> Iterable[tuple[int, ...]]:
    """Where the chunks that a selection touches lie in the grid of chunks."""
    return itertools.product(
        *(range(part.start // size, -(-part.stop // size)) for part, size in zip(selection, chunks, strict=True))
    )


def _dims(names: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    if isinstance(names, list | tuple) and len(names) == len(shape):
        return tuple(str(name or "") for name in names)
    return ("",) * len(shape)


def _json(files: Files, key: str) -> dict[str, Any]:
    if files.sizes[key] > MAX_METADATA:
        raise bad_image(f"zarr: {key} is of {files.sizes[key]} bytes", "TooLarge")
    try:
        found = json.loads(files.read(key, 0, files.sizes[key]))
    except (ValueError, RecursionError) as error:
        raise bad_image(f"zarr: {key}: {error}") from None
    if not isinstance(found, dict):
        raise bad_image(f"zarr: {key} is no object")
    return found


def _refuse_pickles(name: str, metadata: Mapping[str, Any]) -> None:
    codecs = [*(metadata.get("filters") or []), metadata.get("compressor"), *(metadata.get("codecs") or [])]
    ids = [str(codec.get("id") or codec.get("name")) for codec in codecs if isinstance(codec, dict)]
    if any("pickle" in one for one in ids) or (metadata.get("dtype") == "|O" and "vlen-utf8" not in ids):
        raise bad_image(f"zarr: {name} holds pickled objects, which are never read", "UnsafeFile")


def _is_text_like(metadata: Mapping[str, Any]) -> bool:
    shape = metadata.get("shape")
    return isinstance(shape, list) and len(shape) < 2


# by numcodecs


def unzip_arrays(data: bytes, max_bytes: int) -> dict[str, Array]:
    """The arrays in the bytes of a zipped store.

    Args:
        data: the zip.
        max_bytes: numbers of an array that is larger are refused.

    Raises:
        BadSample: it is damaged or too large, or holds pickles.
    """
    files = ZipFiles(io.BytesIO(data))
    if not any(key.endswith(".zarray") for key in files.sizes):
        return open_arrays(files)
    return {name: _from_zip(name, files, max_bytes) for name in sorted(_names(files))}


def _names(files: Files) -> Iterator[str]:
    return (key.rpartition("/")[0] for key in files.sizes if key.rpartition("/")[2] == ".zarray")


def _from_zip(name: str, files: ZipFiles, max_bytes: int) -> Array:
    at = f"{name}/" if name else ""
    metadata = _json(files, f"{at}.zarray")
    attrs = _json(files, f"{at}.zattrs") if f"{at}.zattrs" in files.sizes else {}
    _refuse_pickles(name, metadata)
    try:
        shape, chunks = tuple(map(int, metadata["shape"])), tuple(map(int, metadata["chunks"]))
        dtype, fill, order = np.dtype(metadata["dtype"]), metadata.get("fill_value"), metadata.get("order", "C")
        separator, codecs = metadata.get("dimension_separator", "."), _codecs(json.dumps(_of_codecs(metadata)))
        if len(chunks) != len(shape) or min(chunks, default=1) < 1 or min(shape, default=1) < 0:
            raise ValueError(f"chunks {chunks} of shape {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise bad_image(f"zarr: {name}: {error}") from error
    fill = dtype.type(fill) if dtype.kind == "f" and isinstance(fill, str) else fill  # NaN, Infinity

    def keys(selection: Selection) -> list[str]:
        return [at + (separator.join(map(str, place)) or "0") for place in _places(chunks, selection)]

    def missing(selection: Selection) -> list[str]:
        return [key for key in keys(selection) if key not in files.sizes]

    def read(selection: Selection) -> NDArray[Any]:
        if math.prod(chunks) * dtype.itemsize > max_bytes:
            raise bad_image(f"zarr: {name} has chunks of {math.prod(chunks)} numbers", "TooManyPixels")
        wanted = tuple(part.stop - part.start for part in selection)
        out: NDArray[Any] | None = None
        for place, key in zip(_places(chunks, selection), keys(selection), strict=True):
            chunk = _chunk(files, key, dtype, chunks, order, codecs, fill)
            if wanted == chunks and all(part.start % size == 0 for part, size in zip(selection, chunks, strict=True)):
                return chunk
            if out is None:
                out = np.empty(wanted, dtype)
            first = [index * size for index, size in zip(place, chunks, strict=True)]
            low = [max(part.start, at) for part, at in zip(selection, first, strict=True)]
            high = [min(part.stop, at + n) for part, at, n in zip(selection, first, chunks, strict=True)]
            here = tuple(slice(a - p.start, b - p.start) for a, b, p in zip(low, high, selection, strict=True))
            there = tuple(slice(a - at, b - at) for a, b, at in zip(low, high, first, strict=True))
            out[here] = chunk[there]
        return np.empty(wanted, dtype) if out is None else out

    dims = _dims(attrs.get("_ARRAY_DIMENSIONS"), shape)
    return Array(name, shape, chunks, dtype, dims, attrs, fill, read, keys, missing)


def _of_codecs(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The codecs in the order of decoding."""
    found = [metadata.get("compressor"), *reversed(metadata.get("filters") or [])]
    return [codec for codec in found if codec is not None]


@lru_cache(maxsize=256)
def _codecs(configs: str) -> tuple[Any, ...]:
    return tuple(numcodecs.get_codec(config) for config in json.loads(configs))


def _chunk(
    files: Files,
    key: str,
    dtype: np.dtype[Any],
    chunks: tuple[int, ...],
    order: Any,
    codecs: tuple[Any, ...],
    fill: Any,
) -> NDArray[Any]:
    if key not in files.sizes:
        return np.full(chunks, 0 if fill is None else fill, dtype)
    expected = math.prod(chunks) * (dtype.itemsize or 1)
    if dtype.hasobject:  # strings by vlen-utf8: small, and of no fixed size
        expected = _SLACK
    if files.sizes[key] > 2 * expected + _SLACK:
        raise bad_image(f"zarr: {key} is of {files.sizes[key]} bytes where it holds {expected}", "TooManyPixels")
    values: Any = files.read(key, 0, files.sizes[key])
    for codec in codecs:
        values = _decoded(codec, values, expected, key)
    flat = np.asarray(values) if dtype.hasobject else np.frombuffer(memoryview(values).cast("B"), dtype)
    if flat.size != math.prod(chunks):
        raise bad_image(f"zarr: {key} holds {flat.size} numbers where it should {math.prod(chunks)}", "TruncatedImage")
    return flat.reshape(chunks, order="F" if order == "F" else "C")


def _decoded(codec: Any, data: Any, expected: int, key: str) -> Any:
    """Decode, but refuse what would grow beyond ``expected`` bytes (and some slack) before it does."""
    limit = 2 * expected + _SLACK
    name = codec.codec_id
    try:
        if name in ("zlib", "gzip"):
            return zlib.decompressobj(47).decompress(data, limit)  # 47: either header
        if name == "bz2":
            return bz2.BZ2Decompressor().decompress(data, limit)
        if name == "lzma":
            return lzma.LZMADecompressor(codec.format, filters=codec.filters).decompress(data, limit)
        if name in ("blosc", "lz4") and isinstance(data, bytes):
            at = 4 if name == "blosc" else 0
            if int.from_bytes(data[at : at + 4], "little") > limit:
                raise bad_image(f"zarr: {key} claims more bytes than the {expected} that it holds", "TooManyPixels")
        if name == "zstd" and isinstance(data, bytes) and _zstd_size(data) > limit:
            raise bad_image(f"zarr: {key} claims more bytes than the {expected} that it holds", "TooManyPixels")
        return codec.decode(data)
    except (BadSample, MemoryError):
        raise
    except Exception as error:  # codecs raise whatever they like
        raise bad_image(f"zarr: {key}: {' '.join(str(error).split())[:160] or type(error).__name__}") from error


def _zstd_size(data: bytes) -> int:
    """Bytes of the content by the frame's header (RFC 8878, 3.1.1.1); boundless where it does not say."""
    flag = data[4] if len(data) > 4 else 0
    single, kind = flag >> 5 & 1, flag >> 6
    at = 5 + (not single) + (0, 1, 2, 4)[flag & 3]
    width = (single, 2, 4, 8)[kind]
    if not width:
        return 1 << 62
    return int.from_bytes(data[at : at + width], "little") + (256 if kind == 1 else 0)
