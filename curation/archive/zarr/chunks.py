"""Chunks of format 2, by numcodecs: none is decoded to more bytes than it should hold.

zarr takes milliseconds to open a group, and copies each chunk once more than is needed.
"""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import imagecodecs
import numcodecs
import numpy as np
from numcodecs.compat import ensure_contiguous_ndarray
from numpy.typing import NDArray

from curation.archive.image import bad_image
from curation.archive.zarr.files import Files
from curation.errors import BadSample

_SLACK = 1 << 16  # bytes that a compressed chunk may be larger than its numbers
_TEXT = 1 << 10  # bytes of a string by vlen-utf8, which is of no fixed size, on an average at most


@dataclass(frozen=True)
class Encoding:
    """How the chunks of an array are stored.

    Attributes:
        codecs: of numcodecs, in the order of decoding.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    fill: Any
    codecs: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a chunk that is decoded."""
        return math.prod(self.shape) * (_TEXT if self.dtype.hasobject else self.dtype.itemsize or 1)

    def read(self, files: Files, key: str) -> NDArray[Any]:
        """A chunk, maybe read-only, by its file; where that is not there, what stands for it.

        Raises:
            BadSample: it is damaged or cut short, or claims more bytes than it should hold.
        """
        if key not in files.sizes:
            nothing = "" if self.dtype.hasobject else self.dtype.type()
            return np.full(self.shape, nothing if self.fill is None else self.fill, self.dtype)
        self._check_size(files.sizes[key], key)
        values: Any = files.read(key, 0, files.sizes[key])
        for codec in self.codecs:
            values = self._decoded(codec, values, key)
        flat = np.asarray(values) if self.dtype.hasobject else ensure_contiguous_ndarray(values).view(self.dtype)
        if flat.size != math.prod(self.shape):
            should = f"{flat.size} numbers where it should {math.prod(self.shape)}"
            raise bad_image(f"zarr: {key} holds {should}", "TruncatedImage")
        return flat.reshape(self.shape, order=self.order)

    @property
    def _limit(self) -> int:
        return 2 * self.nbytes + _SLACK

    def _check_size(self, size: int, key: str) -> None:
        if size > self._limit:
            raise bad_image(f"zarr: {key} is of {size} bytes where it should hold {self.nbytes}", "TooManyPixels")

    def _decoded(self, codec: Any, data: Any, key: str) -> Any:
        """Decode, but refuse what would grow beyond all bounds before it does."""
        name, limit = codec.codec_id, self._limit
        try:
            if name in ("zlib", "gzip"):
                return zlib.decompressobj(47).decompress(data, limit)  # 47: either header
            if name == "bz2":
                return bz2.BZ2Decompressor().decompress(data, limit)
            if name == "lzma":
                return lzma.LZMADecompressor(codec.format, filters=codec.filters).decompress(data, limit)
            claimed = _CLAIMED[name](data) if name in _CLAIMED and isinstance(data, bytes) else 0
            if claimed is None:  # only zstd
                return imagecodecs.zstd_decode(data, out=limit)
            self._check_size(claimed, key)
            return codec.decode(data)
        except (BadSample, MemoryError):
            raise
        except Exception as error:  # codecs raise whatever they like
            raise bad_image(f"zarr: {key}: {' '.join(str(error).split())[:160] or type(error).__name__}") from error


def _zstd_size(data: bytes) -> int | None:
    """Bytes of the content by the frame's header (RFC 8878, 3.1.1.1); ``None`` where it does not say."""
    flag = data[4] if len(data) > 4 else 0
    single, kind = flag >> 5 & 1, flag >> 6
    at = 5 + (not single) + (0, 1, 2, 4)[flag & 3]
    width = (single, 2, 4, 8)[kind]
    if not width:
        return None
    return int.from_bytes(data[at : at + width], "little") + (256 if kind == 1 else 0)


_CLAIMED = {  # the bytes that a chunk says it is of
    "blosc": lambda data: int.from_bytes(data[4:8], "little"),
    "lz4": lambda data: int.from_bytes(data[:4], "little"),
    "zstd": _zstd_size,
}


def read_encoding(metadata: Mapping[str, Any]) -> Encoding:
    """The encoding by a ``.zarray``; what contradicts itself is a ``KeyError``, ``TypeError`` or ``ValueError``."""
    chunks, kind = tuple(map(int, metadata["chunks"])), metadata["dtype"]
    if len(chunks) != len(metadata["shape"]) or min(chunks, default=1) < 1 or min(metadata["shape"], default=1) < 0:
        raise ValueError(f"chunks {chunks} of shape {metadata['shape']}")
    dtype = np.dtype([tuple(part) for part in kind] if isinstance(kind, list) else kind)
    fill: Any = metadata.get("fill_value")
    if fill is not None and dtype.kind == "f":  # "NaN" and "Infinity", too
        fill = np.array(fill, dtype)[()]
    elif isinstance(fill, str) and dtype.kind in "SV":
        fill = base64.b64decode(fill)
    codecs = [metadata.get("compressor"), *reversed(metadata.get("filters") or [])]
    order: Literal["C", "F"] = "F" if metadata.get("order") == "F" else "C"
    return Encoding(chunks, dtype, order, fill, _codecs(json.dumps([codec for codec in codecs if codec is not None])))


@lru_cache(maxsize=256)
def _codecs(configs: str) -> tuple[Any, ...]:
    return tuple(numcodecs.get_codec(config) for config in json.loads(configs))
