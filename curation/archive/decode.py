"""From the bytes of a key to a tile: pixels with their bands' names, a validity mask, and what the sidecars say.

What a file holds decides how it is decoded, not its name. Numbers keep their
dtype and are never stretched. Whatever cannot be read rightly is a
:class:`~curation.errors.BadSample` with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.grid import resample, same_ground
from curation.archive.image import (
    RGB,
    bad_image,
    decode_jp2,
    decode_jpeg,
    decode_npy,
    decode_pillow,
    decode_png,
)
from curation.archive.names import PICKLES, extension, holds_pixels, is_mask, split_name
from curation.archive.sample import Image, Member, RawSample, Sample
from curation.archive.sidecar import gather, read_fields
from curation.archive.tiff import decode_tiff
from curation.errors import BadSample

if TYPE_CHECKING:
    from curation.config import ArchiveConfig

_KEPT = frozenset(map(np.dtype, ("uint8", "uint16", "int16", "float32")))
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def decode(raw: RawSample, settings: ArchiveConfig) -> Sample:
    """Decode a sample; its bands are ``settings.bands`` where they are set.

    Raises:
        BadSample: the reason it cannot be used.
    """
    said = gather(raw.data, raw.said)
    images = _images(raw, settings)
    image = _one_image(images, settings, anyhow=bool(settings.members or settings.scene or raw.images))
    bands = _named(image, settings.band_names)
    pixels = _settle(image.pixels)
    if settings.bands is not None and tuple(settings.bands) != bands:
        pixels, bands = _select(pixels, bands, tuple(settings.bands)), tuple(settings.bands)
    mask = valid_pixels(pixels, image.mask, image.nodata if settings.nodata is None else settings.nodata)
    if not mask.any():
        raise bad_image("no pixel is valid", "NoValidPixels")
    fields = read_fields(said, settings.fields)
    there = image.place.footprint(*pixels.shape[1:]) if image.place else None
    if raw.window is not None:  # what is said of a scene is not true of a tile
        fields |= {"footprint": there, "cloud_fraction": None}
    fields["footprint"] = fields["footprint"] or there
    return Sample(
        key=raw.key + (raw.window.suffix if raw.window else ""),
        index=raw.index,
        pixels=pixels,
        mask=mask,
        bands=bands,
        image=_member(raw, next(iter(images))),
        members=raw.members,
        position=raw.position,
        window=raw.window,
        place=image.place,
        **fields,
    )


def conform(sample: Sample, bands: tuple[str, ...], dtype: str) -> Sample:
    """The sample with exactly these bands, in this order; a grey 8-bit one may stand for red, green, blue.

    Raises:
        BadSample: ``WrongBands`` or ``WrongDtype``, it has others.
    """
    if str(sample.pixels.dtype) != dtype:
        raise bad_image(f"its numbers are {sample.pixels.dtype}, the archive's are {dtype}", "WrongDtype")
    if sample.bands == bands:
        return sample
    return replace(sample, pixels=_select(sample.pixels, sample.bands, bands), bands=bands)


# which files


def _images(raw: RawSample, settings: ArchiveConfig) -> dict[str, Image]:
    """The images of a key by suffix or band, in the order of the bands."""
    suffixes = _image_suffixes(raw, settings.members)
    return {
        suffix: raw.images[suffix] if suffix in raw.images else decode_file(suffix, raw.data[suffix], settings)
        for suffix in suffixes
    }


def _image_suffixes(raw: RawSample, members: list[str] | None) -> list[str]:
    """The suffixes that hold pixels, in the order of the bands."""
    if members is not None:
        missing = [suffix for suffix in members if suffix not in raw.data and suffix not in raw.images]
        if missing:
            raise bad_image(f"it has no member {missing[0]} (archive.members)", "MissingMember")
        return list(members)
    for suffix in raw.data:
        if extension("." + suffix) in PICKLES:
            advice = "to pass it by, name the members that hold pixels in archive.members"
            raise bad_image(f"{suffix} is a pickle, which is never read; {advice}", "UnsafeFile")
    found = [*raw.images, *sorted(suffix for suffix in raw.data if holds_pixels(suffix, None))]
    if not found:
        have = ", ".join(sorted(raw.data)) or "nothing"
        raise bad_image(f"no image in it: it has {have}"[:200], "NoImage")
    return found


def _member(raw: RawSample, suffix: str) -> Member:
    """The member that a suffix stands for: exactly, else the first whose suffix ends it (``S2.tif``: ``tif``)."""
    named = [(split_name(member.name)[1], member) for member in raw.members]
    for own, member in named:
        if suffix in (own, member.name) or (member.offset is None and member.name.endswith(f".{suffix}")):
            return member
    return next((member for own, member in named if own and suffix.endswith(f".{own}")), raw.members[0])


# one file


def decode_file(suffix: str, data: bytes, settings: ArchiveConfig) -> Image:
    """Decode one file.

    Raises:
        BadSample: it is damaged, too large, or of a kind that is not read; the message begins with ``suffix``.
    """
    try:
        return _decode_bytes(data, settings)
    except MemoryError:
        raise
    except BadSample as error:
        told = error.message.startswith(suffix)
        raise BadSample(error.stage, error.kind, error.message if told else f"{suffix}: {error.message}") from error
    except Exception as error:  # decoders raise whatever they like on damaged files
        text = " ".join(_ADDRESS.sub("", str(error)).split())[:200]
        kind = "TruncatedImage" if "truncated" in text.lower() else "BadImage"
        raise bad_image(f"{suffix}: {text or type(error).__name__}", kind) from error


def _decode_bytes(data: bytes, settings: ArchiveConfig) -> Image:
    limit = settings.max_pixels
    if data[:3] == b"\xff\xd8\xff":
        return decode_jpeg(data, limit)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return decode_tiff(data, limit) or decode_pillow("tiff", data, limit)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return decode_png(data, limit)
    if data[:6] == b"\x93NUMPY":
        return decode_npy(data, settings.layout, limit)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return decode_pillow("webp", data, limit)
    if data[:2] == b"BM":
        return decode_pillow("bmp", data, limit)
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
        return decode_jp2(data, limit)
    if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise bad_image("it is a pickle, which is never read", "UnsafeFile")
    raise bad_image(f"not an image that is read here: it begins with {data[:8]!r}")


# several files


def _one_image(images: Mapping[str, Image], settings: ArchiveConfig, anyhow: bool) -> Image:
    """One image out of several of a key; a band is called by its file, ``B02``, or ``s1.vv`` where that has more.

    Files that nobody chose must be equal in shape and dtype: else one of them
    is likely to be no picture of the ground but a label. Others are brought to one grid.
    """
    if len(images) == 1:
        return next(iter(images.values()))
    names = [name for suffix, image in images.items() for name in names_in(suffix, image.bands)]
    kinds = {(str(image.pixels.dtype), image.pixels.shape) for image in images.values()}
    if (len(kinds) > 1 and not anyhow and settings.grid is None) or len(set(names)) < len(names):
        found = ", ".join(
            f"{suffix} {image.pixels.dtype} {'x'.join(map(str, image.pixels.shape))}"
            for suffix, image in images.items()
        )
        raise bad_image(f"{found}: say in archive.members which hold the pixels", "SeveralImages")
    grid = _grid(images, settings.grid)
    methods = ["nearest" if is_mask(suffix.rpartition(".")[0] or suffix) else settings.resampling for suffix in images]
    parts = [_to_grid(*pair, grid, method) for pair, method in zip(images.items(), methods, strict=True)]
    pixels = np.concatenate([part for part, _ in parts])
    place = grid.place or next((image.place for image in images.values() if image.place), None)
    return Image(pixels, tuple(names), np.logical_and.reduce([mask for _, mask in parts]), None, place)


def names_in(suffix: str, bands: Sequence[str]) -> list[str]:
    """What the bands of one file of several are called."""
    stem = suffix.rpartition(".")[0] if holds_pixels(suffix, None) else suffix
    return [stem] if len(bands) == 1 and stem else [f"{stem}.{band}" if stem else band for band in bands]


def _grid(images: Mapping[str, Image], name: str | None) -> Image:
    """The image whose grid counts: the one that ``archive.grid`` names, else the finest."""
    if name is None or len({image.pixels.shape[1:] for image in images.values()}) == 1:
        return max(images.values(), key=lambda image: image.pixels[0].size)
    for suffix, image in images.items():
        if name in (suffix, suffix.rpartition(".")[0], *image.bands):
            return image
    raise bad_image(f"it has no band {name} (archive.grid)", "WrongBands")


def _to_grid(suffix: str, image: Image, grid: Image, method: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """An image's pixels and mask on the grid of another one over the same ground."""
    mask = valid_pixels(image.pixels, image.mask, image.nodata)
    shape, own = grid.pixels.shape[1:], image.pixels.shape[1:]
    if not same_ground((own[0], own[1]), image.place, (shape[0], shape[1]), grid.place):
        sizes = " and ".join(f"{width} x {height}" for height, width in (own, shape))
        raise bad_image(f"{suffix} does not cover the same ground as the other bands ({sizes})", "BandMismatch")
    if own == shape:
        return image.pixels, mask
    return resample(image.pixels, mask, (shape[0], shape[1]), method)


def _named(image: Image, names: list[str] | None) -> tuple[str, ...]:
    if names is None:
        return image.bands
    if len(names) != len(image.bands):
        raise bad_image(f"it has {len(image.bands)} bands, archive.band_names names {len(names)}", "WrongBands")
    return tuple(names)


# numbers


def _settle(pixels: NDArray[Any]) -> NDArray[Any]:
    """One of the four dtypes of a sample, without loss beyond the rounding of float64 to float32."""
    dtype = pixels.dtype.newbyteorder("=")
    if dtype in _KEPT:
        return pixels.astype(dtype, copy=False)
    if dtype.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if dtype == np.int8:
        return pixels.astype(np.int16)
    if dtype.kind == "f" and dtype.itemsize <= 8:
        with np.errstate(over="ignore"):
            return pixels.astype(np.float32)
    if dtype.kind not in "iu":
        raise bad_image(f"its numbers are {dtype}; read are integers and floats", "WrongDtype")
    if pixels.max() > 2**24 or pixels.min() < -(2**24):
        raise bad_image(f"its {dtype} numbers do not fit a float32 exactly", "LossyDtype")
    return pixels.astype(np.float32)


def _select(pixels: NDArray[Any], have: tuple[str, ...], want: tuple[str, ...]) -> NDArray[Any]:
    """The wanted bands, in that order."""
    if have == ("gray",) and pixels.dtype == np.uint8 and set(want) <= set(RGB):
        return np.repeat(pixels, len(want), axis=0)
    missing = [band for band in want if band not in have]
    if missing:
        raise bad_image(f"it has no band {missing[0]}; it has {', '.join(have)}"[:200], "WrongBands")
    return np.ascontiguousarray(pixels[[have.index(band) for band in want]])


def valid_pixels(pixels: NDArray[Any], mask: NDArray[np.bool_] | None, nodata: float | None) -> NDArray[np.bool_]:
    """True where the file says so, every band is finite and none is ``nodata``."""
    valid = np.ones(pixels.shape[1:], bool) if mask is None else mask
    if pixels.dtype.kind == "f":
        valid = valid & np.isfinite(pixels).all(axis=0)
    if nodata is not None and _can_hold(pixels.dtype, nodata):
        valid = valid & (pixels != pixels.dtype.type(nodata)).all(axis=0)
    return valid


@lru_cache(maxsize=64)
def _can_hold(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind == "f":
        return bool(np.isfinite(value)) and abs(value) <= float(np.finfo(dtype).max)
    info = np.iinfo(dtype)
    return float(value).is_integer() and info.min <= value <= info.max
