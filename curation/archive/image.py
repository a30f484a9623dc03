"""Image files other than TIFF to arrays: JPEG, PNG, WebP, BMP, JPEG 2000 and npy; sizes are checked before decoding."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import Image as PillowImage

from curation.archive.gmljp2 import read_gmljp2
from curation.archive.sample import Image
from curation.errors import BadSample

RGB = ("red", "green", "blue")
MAX_BANDS = 4096

_PILLOW: dict[str, Callable[[io.BytesIO], PillowImage]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
# What a Pillow mode becomes before its numbers are taken; modes that are not here are taken or refused as they are.
_CONVERTED = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",  # Pillow undoes Adobe's inversion
    "YCbCr": "RGB",
    "HSV": "RGB",
}
_BANDS = {"L": ("gray",), "LA": ("gray",), "RGB": RGB, "RGBA": RGB, "F": ("gray",), "I": ("gray",)}


def bad_image(message: str, kind: str = "BadImage") -> BadSample:
    """The error of a file that cannot be decoded."""
    return BadSample("decode", kind, message)


def check_pixels(height: int, width: int, bands: int, max_pixels: int) -> None:
    """Refuse an image by what its header claims, before any memory is taken.

    Raises:
        BadSample: ``TooManyPixels``, or ``BadShape`` where a side is 0.
    """
    if min(height, width, bands) < 1:
        raise bad_image(f"{width} x {height} pixels, {bands} bands", "BadShape")
    if height * width > max_pixels or height * width * bands > 16 * max_pixels or bands > MAX_BANDS:
        limit = f"the limit is archive.max_pixels={max_pixels}"
        raise bad_image(f"{width} x {height} pixels, {bands} bands; {limit}", "TooManyPixels")


# JPEG


def decode_jpeg(data: bytes, max_pixels: int) -> Image:
    """Grey and RGB by libjpeg-turbo itself, which takes half as long as through Pillow; all else by Pillow."""
    process, precision, height, width, components = jpeg_frame(data)
    check_pixels(height, width, components, max_pixels)
    simple = process in (0xC0, 0xC1, 0xC2) and precision == 8 and components in (1, 3)
    if not simple or not data.endswith(b"\xff\xd9"):  # libjpeg fills what is cut short with grey, Pillow tells
        return decode_pillow("jpeg", data, max_pixels)
    return _from_array(imagecodecs.jpeg8_decode(data))


def jpeg_frame(data: bytes | memoryview) -> tuple[int, int, int, int, int]:
    """Coding process, bits a sample, height, width and components, from the frame header (ITU-T T.81, B.2.2)."""
    position = 2
    try:
        while True:
            marker = data[position + 1]
            if data[position] != 0xFF:
                raise bad_image("jpg: damaged before the frame header")
            if marker == 0xFF:
                position += 1
            elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return marker, *struct.unpack_from(">BHHB", data, position + 4)
            elif marker in (0xD9, 0xDA):
                raise bad_image("jpg: no frame header")
            else:
                position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    except (IndexError, struct.error):
        raise bad_image("jpg: cut short in the header", "TruncatedImage") from None


# PNG


def decode_png(data: bytes, max_pixels: int) -> Image:
    """Decode a PNG; 16 bits in colour or with alpha without Pillow, which would cut them to 8."""
    if len(data) < 33:
        raise bad_image("png: cut short in the header", "TruncatedImage")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    check_pixels(height, width, 4, max_pixels)
    if depth == 16 and colour != 0:
        _check_deep_png(data, width, height, {2: 3, 4: 2, 6: 4}.get(colour, 0))
        return _from_array(imagecodecs.png_decode(data))
    return decode_pillow("png", data, max_pixels)


def _check_deep_png(data: bytes, width: int, height: int, channels: int) -> None:
    """See that a 16-bit PNG is whole: imagecodecs 2026.3 breaks the interpreter by many errors in its PNG decoder."""
    position, parts = 8, []
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + size]
        if data[position + 8 + size : position + 12 + size] != struct.pack(">I", zlib.crc32(body)):
            break
        if body[:4] == b"IDAT":
            parts.append(body[4:])
        if body[:4] == b"IEND":
            break
        position += 12 + size
    if data[position + 4 : position + 8] != b"IEND":
        raise bad_image("png: cut short or damaged", "TruncatedImage")
    row = 1 + width * channels * 2
    inflater = zlib.decompressobj()
    try:
        lines = inflater.decompress(b"".join(parts), row * height + 1)
    except zlib.error as error:
        raise bad_image(f"png: {error}") from None
    if data[28] != 0:
        raise bad_image("png: interlaced 16-bit colour is not read", "Unsupported")
    if len(lines) != row * height or max(lines[::row]) > 4:
        raise bad_image("png: its rows are not as many or not as long as the header says")


# Pillow


def decode_pillow(kind: str, data: bytes, max_pixels: int) -> Image:
    """Decode by one of Pillow's own readers.

    Raises:
        BadSample: it is damaged, too large, or of a kind that is not read.
    """
    with _PILLOW[kind](io.BytesIO(data)) as image:
        check_pixels(image.height, image.width, 4, max_pixels)
        return _from_pillow(image)


def _from_pillow(image: PillowImage) -> Image:
    transparent = image.info.get("transparency")
    mode = _CONVERTED.get(image.mode, image.mode)
    if mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        return Image(values[None], ("gray",), None if transparent is None else values != transparent)
    if transparent is not None and mode in ("L", "RGB"):
        mode += "A"
    if mode not in _BANDS:
        raise bad_image(f"{image.format}: the colour mode {image.mode} is not read", "Unsupported")
    converted = image
    if image.mode == "1" and mode == "LA":
        converted = image.convert("L")
    if converted.mode != mode:
        converted = converted.convert(mode)
    return _from_array(np.asarray(converted))


def _from_array(values: NDArray[Any]) -> Image:
    """Grey, grey and alpha, RGB or RGBA, of shape ``(height, width[, channels])``."""
    if values.ndim == 2:
        return Image(np.ascontiguousarray(values)[None], ("gray",))
    colours = {1: 1, 2: 1, 3: 3, 4: 3}[values.shape[2]]
    mask = np.asarray(values[..., colours] > 0) if values.shape[2] > colours else None
    bands = RGB if colours == 3 else ("gray",)
    return Image(np.ascontiguousarray(values[..., :colours].transpose(2, 0, 1)), bands, mask)


# JPEG 2000


def decode_jp2(data: bytes, max_pixels: int) -> Image:
    """Decode by OpenJPEG, which keeps more than 8 bits."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 42:
        raise bad_image("jp2: cut short in the header", "TruncatedImage")
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    (components,) = struct.unpack_from(">H", data, start + 40)
    check_pixels(bottom - top, right - left, components, max_pixels)
    values = imagecodecs.jpeg2k_decode(data)
    if values.ndim == 2 or (values.shape[2] == 3 and values.dtype == np.uint8):
        image = _from_array(values)
    else:
        image = Image(np.ascontiguousarray(values.transpose(2, 0, 1)), numbered(values.shape[2]))
    image.place = read_gmljp2(data[:start])
    return image


# npy


def decode_npy(data: bytes, layout: str | None, max_pixels: int) -> Image:
    """Decode an array of numbers: ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``; never a pickle.

    Args:
        data: the file.
        layout: ``chw``, ``hwc``, or ``None``: the shorter one of first and last axis is the bands'.
        max_pixels: limit of height times width.

    Raises:
        BadSample: ``UnsafeFile`` for an object array, ``AmbiguousLayout`` where the axes do not tell.
    """
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except ValueError as error:
        raise bad_image(f"npy: {error}") from None
    if dtype.hasobject:
        raise bad_image("npy: an array of objects is a pickle, which is never read", "UnsafeFile")
    if len(shape) not in (2, 3):
        raise bad_image(f"npy: shape {shape}; an image has 2 or 3 axes", "BadShape")
    first = layout == "chw" or (layout is None and shape[0] < shape[-1])
    if len(shape) == 3 and layout is None and shape[0] == shape[2]:
        raise bad_image(f"npy: shape {shape}; set archive.layout to chw or hwc", "AmbiguousLayout")
    bands, height, width = shape if len(shape) == 3 and first else (shape[2:] or (1,)) + shape[:2]
    check_pixels(height, width, bands, max_pixels)
    start, size = file.tell(), bands * height * width * dtype.itemsize
    if len(data) - start != size:
        raise bad_image(f"npy: {len(data) - start} bytes where the header says {size}", "TruncatedImage")
    values = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    if values.ndim == 2:
        values = values[None]
    elif not first:
        values = values.transpose(2, 0, 1)
    return Image(np.ascontiguousarray(values), numbered(bands))


def numbered(count: int) -> tuple[str, ...]:
    """``b1``, ``b2``, …: the names of bands that have none."""
    return tuple(f"b{i + 1}" for i in range(count))
