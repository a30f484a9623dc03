"""The arrays of a Zarr store: format 2 by numcodecs, format 3 by zarr."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.image import bad_image
from curation.archive.zarr.chunks import read_encoding
from curation.archive.zarr.files import Files, ZipFiles
from curation.errors import AccessError, BadSample

Selection = tuple[slice, ...]
Place = tuple[int, ...]  # of a chunk in the grid of chunks


@dataclass(frozen=True)
class Array:
    """An array that is not read yet.

    Attributes:
        name: its path in the store; empty where the store is one array.
        chunks: of a sharded array the shards': what is one file.
        dims: a name an axis, empty where it has none.
        fill: what stands for a chunk that is not there; ``None``: nothing does.
        files: those of the store.
        key: the file of a chunk, whether or not it is there.
        read: the numbers of a selection, one slice an axis; chunks that are not there are ``fill``.
        sharded: whether a part of such a file can be read alone.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    attrs: Mapping[str, Any]
    fill: Any
    files: Files
    key: Callable[[Place], str]
    read: Callable[[Selection], NDArray[Any]]
    sharded: bool = False

    @property
    def everything(self) -> Selection:
        """The selection of all its numbers."""
        return tuple(slice(0, length) for length in self.shape)

    def keys(self, selection: Selection) -> list[str]:
        """The files of a selection's chunks, whether or not they are there."""
        return [self.key(place) for place in _places(self.chunks, selection)]

    def missing(self, selection: Selection) -> list[str]:
        """Those that are not there."""
        return [key for key in self.keys(selection) if key not in self.files.sizes]


def open_arrays(files: Files, max_bytes: int | None = None) -> dict[str, Array]:
    """The arrays of a store by name, in the order of their names.

    Args:
        files: of the store.
        max_bytes: chunks of format 2 that are larger are refused when they are read.

    Raises:
        BadSample: ``UnsafeFile``, an array holds pickles; ``BadImage``, its metadata cannot be read.
    """
    found = {}
    files.ahead(files.metadata)
    for key in sorted(files.sizes):
        name, _, base = key.rpartition("/")
        if base not in (".zarray", "zarr.json"):
            continue
        metadata = files.json(key)
        if base == "zarr.json" and metadata.get("node_type") != "array":
            continue
        _refuse_pickles(name, metadata)
        try:
            found[name] = _format_3(name, files) if base == "zarr.json" else _format_2(name, metadata, files, max_bytes)
        except (AccessError, BadSample, MemoryError):
            raise
        except Exception as error:  # zarr and numcodecs raise whatever they like on metadata that they do not know
            if _is_text_like(metadata):
                continue  # a coordinate that is not needed
            raise bad_image(f"zarr: {name or 'the array'}: {' '.join(str(error).split())[:200]}") from error
    return found


def unzip_arrays(data: bytes, max_bytes: int) -> dict[str, Array]:
    """The arrays in the bytes of a zipped store, as :func:`open_arrays`."""
    return open_arrays(ZipFiles(io.BytesIO(data)), max_bytes)


def _format_2(name: str, metadata: Mapping[str, Any], files: Files, max_bytes: int | None) -> Array:
    at = f"{name}/" if name else ""
    attrs = files.json(f"{at}.zattrs") if f"{at}.zattrs" in files.sizes else {}
    shape, encoding = tuple(map(int, metadata["shape"])), read_encoding(metadata)
    separator = str(metadata.get("dimension_separator", "."))

    def key(place: Place) -> str:
        return at + (separator.join(map(str, place)) or "0")

    def chunk(place: Place) -> NDArray[Any]:
        return encoding.read(files, key(place))

    def read(selection: Selection) -> NDArray[Any]:
        if max_bytes is not None and encoding.nbytes > max_bytes:
            raise bad_image(f"zarr: {name} has chunks of {math.prod(encoding.shape)} numbers", "TooManyPixels")
        return _assembled(selection, encoding.shape, encoding.dtype, chunk)

    dims = _dims(attrs.get("_ARRAY_DIMENSIONS"), shape)
    return Array(name, shape, encoding.shape, encoding.dtype, dims, attrs, encoding.fill, files, key, read)


def _assembled(
    selection: Selection, chunks: tuple[int, ...], dtype: np.dtype[Any], chunk: Callable[[Place], NDArray[Any]]
) -> NDArray[Any]:
    """The numbers of a selection out of the chunks that it touches; of one whole chunk without a copy."""
    if all(
        (part.stop - part.start, part.start % size) == (size, 0) for part, size in zip(selection, chunks, strict=True)
    ):
        return chunk(tuple(part.start // size for part, size in zip(selection, chunks, strict=True)))
    out = np.empty([part.stop - part.start for part in selection], dtype)
    for place in _places(chunks, selection):
        first = [index * size for index, size in zip(place, chunks, strict=True)]
        low = [max(part.start, at) for part, at in zip(selection, first, strict=True)]
        high = [min(part.stop, at + size) for part, at, size in zip(selection, first, chunks, strict=True)]
        here = tuple(slice(a - p.start, b - p.start) for a, b, p in zip(low, high, selection, strict=True))
        there = tuple(slice(a - at, b - at) for a, b, at in zip(low, high, first, strict=True))
        out[here] = chunk(place)[there]
    return out


def _format_3(name: str, files: Files) -> Array:
    from curation.archive.zarr.format3 import open_format_3  # zarr takes half a second, and few archives need it

    array = open_format_3(name, files)
    attrs, shape = dict(array.attrs), tuple(array.shape)
    at, metadata = f"{name}/" if name else "", array.metadata
    dims = _dims(getattr(metadata, "dimension_names", None) or attrs.get("_ARRAY_DIMENSIONS"), shape)
    about = name, shape, tuple(array.shards or array.chunks), np.dtype(array.dtype), dims, attrs, array.fill_value

    def key(place: Place) -> str:
        return f"{at}{metadata.encode_chunk_key(place)}"

    return Array(*about, files, key, array.get_basic_selection, array.shards is not None)


def _places(chunks: tuple[int, ...], selection: Selection) -> Iterable[Place]:
    """Where the chunks that a selection touches lie in the grid of chunks."""
    return itertools.product(
        *(range(part.start // size, -(-part.stop // size)) for part, size in zip(selection, chunks, strict=True))
    )


def _dims(names: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    if isinstance(names, list | tuple) and len(names) == len(shape):
        return tuple(str(name or "") for name in names)
    return ("",) * len(shape)


def _refuse_pickles(name: str, metadata: Mapping[str, Any]) -> None:
    codecs = [*(metadata.get("filters") or []), metadata.get("compressor"), *(metadata.get("codecs") or [])]
    ids = [str(codec.get("id") or codec.get("name")) for codec in codecs if isinstance(codec, dict)]
    if any("pickle" in one for one in ids) or (metadata.get("dtype") == "|O" and "vlen-utf8" not in ids):
        raise bad_image(f"zarr: {name} holds pickled objects, which are never read", "UnsafeFile")


def _is_text_like(metadata: Mapping[str, Any]) -> bool:
    shape = metadata.get("shape")
    return isinstance(shape, list) and len(shape) < 2
