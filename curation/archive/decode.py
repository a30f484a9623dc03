"""From the bytes of a key to a tile: pixels with their bands' names, a validity mask, and what the sidecars say.

What a file holds decides how it is decoded, not its name. Numbers keep their
dtype and are never stretched. Whatever cannot be read rightly is a
:class:`~curation.errors.BadSample` with a reason.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.archive.clouds import detect, is_mask, mask_values, read_masks, take_masks
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
from curation.archive.names import PICKLES, SIDECARS, extension, holds_pixels, is_categorical, split_name
from curation.archive.radiometry import clean, declared_offset, in_units
from curation.archive.sample import Image, Member, RawSample, Sample
from curation.archive.settings import ArchiveConfig
from curation.archive.sidecar import gather, in_name, read_fields
from curation.archive.tiff import decode_tiff
from curation.archive.tiling import cloudy
from curation.archive.zarr.member import decode_zarr
from curation.errors import BadSample

_KEPT = frozenset(map(np.dtype, ("uint8", "uint16", "int16", "float32")))
_MAGIC = (
    b"\xff\xd8\xff",
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", b"\xff\x4f\xff\x51", b"PK\x03\x04"),
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def decode(raw: RawSample, settings: ArchiveConfig) -> Sample:
    """Decode a sample; its bands are ``settings.bands`` where they are set.

    Raises:
        BadSample: the reason it cannot be used.
    """
    image, member, flags, said = stored(raw, settings)
    bands, pixels = image.bands, _settle(image.pixels)
    clouds, unseen = read_masks(flags, settings.clouds)
    if clouds is None and settings.clouds.detector is not None:
        clouds = detect(pixels, valid_pixels(pixels, image.mask, image.nodata), bands)
    if settings.bands is not None and tuple(settings.bands) != bands:
        pixels, bands = _select(pixels, bands, tuple(settings.bands)), tuple(settings.bands)
    mask = valid_pixels(pixels, image.mask, image.nodata if settings.nodata is None else settings.nodata)
    mask = mask if unseen is None else mask & ~unseen
    if not mask.any():
        raise bad_image("no pixel is valid", "NoValidPixels")
    fields = read_fields(said, settings.fields)
    there = image.place.footprint(*pixels.shape[1:]) if image.place else None
    if raw.window is not None:  # what is said of a scene is not true of a tile
        fields |= {"footprint": there, "cloud_fraction": None}
    fields["footprint"] = fields["footprint"] or there
    sample = Sample(
        key=raw.key + (raw.window.suffix if raw.window else ""),
        index=raw.index,
        pixels=pixels,
        mask=mask,
        bands=bands,
        image=_member(raw, member),
        members=raw.members,
        position=raw.position,
        window=raw.window,
        place=image.place,
        clouds=clouds,
        radiometry=str(said.get("radiometry") or "unknown"),
        hints=_hints(said | {"source_id": fields["source_id"]}, flags, settings),
        **fields,
    )
    sample = in_units(clean(sample, settings.radiometry), settings.radiometry)
    if clouds is not None:  # what pixels tell counts for more than what is said
        sample.cloud_fraction = cloudy(clouds, sample.mask)
    return sample


def stored(raw: RawSample, settings: ArchiveConfig) -> tuple[Image, str, dict[str, NDArray[Any]], dict[str, Any]]:
    """What a sample's files hold: decoded and on one grid, numbers and units as they are stored.

    Returns:
        The image with all bands (but not yet ``settings.bands`` of them); its first member's suffix; its mask bands
        ``(height, width)`` by name; what is said of it, by the sidecars' names.

    Raises:
        BadSample: the reason it cannot be used.
    """
    image, member, flags, told = _image_and_masks(raw, settings)
    return image, member, flags, {**told, **gather(raw.data, {**in_name(raw.key, settings.name_pattern), **raw.said})}


def conform(sample: Sample, bands: tuple[str, ...], dtype: str, radiometry: str | None = None) -> Sample:
    """The sample with exactly these bands, in this order; a grey 8-bit one may stand for red, green, blue.

    Args:
        sample: as decoded.
        bands: those that it must come to.
        dtype: of its numbers.
        radiometry: the state that its numbers must have; ``None``: any.

    Raises:
        BadSample: ``WrongBands``, ``WrongDtype`` or ``WrongRadiometry``, it has others.
    """
    if radiometry is not None and sample.radiometry != radiometry:
        raise bad_image(f"its numbers are {sample.radiometry}, the archive's are {radiometry}", "WrongRadiometry")
    if str(sample.pixels.dtype) != dtype:
        raise bad_image(f"its numbers are {sample.pixels.dtype}, the archive's are {dtype}", "WrongDtype")
    if sample.bands == bands:
        return sample
    return replace(sample, pixels=_select(sample.pixels, sample.bands, bands), bands=bands)


# which files


def _image_and_masks(
    raw: RawSample, settings: ArchiveConfig
) -> tuple[Image, str, dict[str, NDArray[Any]], dict[str, Any]]:
    """The image of a key, its first member's suffix, its mask bands on its grid by name, and what its files say."""
    found = _images(raw, settings)
    images, masks = take_masks(found, settings.clouds)
    for one in found.values():
        masks |= {name: Image(values[None], (name,), place=one.place) for name, values in one.masks.items()}
    if not images:
        raise bad_image(f"no image in it but masks: {', '.join(masks)}"[:200], "NoImage")
    chosen = bool(settings.members or settings.scene or raw.images) or _in_columns(raw, settings)
    image = _one_image(images, settings, anyhow=chosen)
    if settings.band_names is not None:
        named = replace(image, bands=_named(image, settings.band_names))
        rest, more = take_masks({"": named}, settings.clouds)
        image, masks = rest.get("", named), masks | more
    height, width = image.pixels.shape[1:]
    flags = {name: _mask_to_grid(name, mask, image, (height, width)) for name, mask in masks.items()}
    told = {name: value for one in reversed(found.values()) for name, value in one.said.items()}
    return image, next(iter(images)), flags, told


def _hints(said: Mapping[str, Any], flags: Mapping[str, NDArray[Any]], settings: ArchiveConfig) -> dict[str, Any]:
    """What the fit looks at, as long as it has not."""
    hints: dict[str, Any] = {"offset": declared_offset(said)}
    if flags and settings.clouds.found is None:
        hints["cloud_values"] = mask_values(flags)
    return hints


def _images(raw: RawSample, settings: ArchiveConfig) -> dict[str, Image]:
    """The images of a key by suffix or band, in the order of the bands."""
    suffixes = _image_suffixes(raw, settings)
    return {
        suffix: raw.images.get(suffix) or decode_file(suffix, raw.data[suffix], settings, raw.position or ())
        for suffix in suffixes
    }


def _image_suffixes(raw: RawSample, settings: ArchiveConfig) -> list[str]:
    """The suffixes that hold pixels, in the order of the bands; of modalities, of each after the other."""
    members, modalities = settings.members, settings.modalities or []
    if members is not None:
        missing = [suffix for suffix in members if suffix not in raw.data and suffix not in raw.images]
        if missing:
            raise bad_image(f"it has no member {missing[0]} (archive.members)", "MissingMember")
        masks = [name for name in (*raw.images, *raw.data) if name not in members and is_mask(name, settings.clouds)]
        return [*members, *masks]
    for suffix in raw.data:
        if extension("." + suffix) in PICKLES:
            advice = "to pass it by, name the members that hold pixels in archive.members"
            raise bad_image(f"{suffix} is a pickle, which is never read; {advice}", "UnsafeFile")
    columns = raw.data if _in_columns(raw, settings) else {}
    files = {name for name in raw.data if holds_pixels(name, None)} | {
        name for name, data in columns.items() if extension("." + name) not in SIDECARS and looks_like_image(data)
    }
    found = [*raw.images, *sorted(files)]
    if modalities:
        found.sort(key=lambda name: [name.partition(".")[0] == modality for modality in modalities], reverse=True)
    if not found:
        have = ", ".join(sorted(raw.data)) or "nothing"
        raise bad_image(f"no image in it: it has {have}"[:200], "NoImage")
    return found


def image_member(raw: RawSample, settings: ArchiveConfig) -> Member:
    """The member that a catalog's ``offset`` and ``size`` speak of, by names alone: no file is decoded.

    Raises:
        BadSample: no member is an image, or one is a pickle.
    """
    names = _image_suffixes(raw, settings)
    return _member(raw, next((name for name in names if not is_mask(name, settings.clouds)), names[0]))


def _in_columns(raw: RawSample, settings: ArchiveConfig) -> bool:
    """Whether its files may be cells, whose names are no file names, and which belong together whatever their size."""
    return raw.position is not None or settings.modalities is not None


def _member(raw: RawSample, suffix: str) -> Member:
    """The member that a suffix stands for: exactly, else the first whose suffix ends it (``S2.tif``: ``tif``)."""
    named = [(split_name(member.name)[1], member) for member in raw.members]
    modality, _, rest = suffix.partition(".")
    for own, member in named:
        if member.file and modality in member.file.split("/") and rest in (own, member.name):
            return member
    for own, member in named:
        if suffix in (own, member.name) or (member.offset is None and member.name.endswith(f".{suffix}")):
            return member
    return next((member for own, member in named if own and suffix.endswith(f".{own}")), raw.members[0])


# one file


def looks_like_image(data: bytes) -> bool:
    """Whether some bytes begin as a file does that is decoded here."""
    return data[:8].startswith(_MAGIC) or data[4:8] == b"jP  " or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def decode_file(suffix: str, data: bytes, settings: ArchiveConfig, position: tuple[int, ...] = ()) -> Image:
    """Decode one file; of a zipped Zarr the sample at ``position``.

    Raises:
        BadSample: it is damaged, too large, or of a kind that is not read; the message begins with ``suffix``.
    """
    try:
        if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return decode_zarr(data, settings.max_pixels, position, settings.nodata)
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
    stems = [suffix.rpartition(".")[0] or suffix for suffix in images]
    methods = ["nearest" if is_categorical(stem) else settings.resampling for stem in stems]
    parts = [_to_grid(*pair, grid, method) for pair, method in zip(images.items(), methods, strict=True)]
    pixels = np.concatenate([part for part, _ in parts])
    place = grid.place or next((image.place for image in images.values() if image.place), None)
    return Image(pixels, tuple(names), np.logical_and.reduce([mask for _, mask in parts]), None, place)


def names_in(suffix: str, bands: Sequence[str]) -> list[str]:
    """What the bands of one file of several are called."""
    stem = suffix.removesuffix(".zip").rpartition(".")[0] if holds_pixels(suffix, None) else suffix
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


def _mask_to_grid(name: str, mask: Image, image: Image, shape: tuple[int, int]) -> NDArray[Any]:
    """A mask band's values ``(height, width)`` on the grid of the pixels, each the nearest."""
    own = mask.pixels.shape[1], mask.pixels.shape[2]
    if not same_ground(own, mask.place, shape, image.place):
        raise bad_image(f"{name} does not cover the same ground as the other bands", "BandMismatch")
    values = mask.pixels
    if own != shape:
        values, _ = resample(values, np.ones(values.shape[1:], bool), shape, "nearest")
    flat: NDArray[Any] = values[0]
    return flat


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
    return np.ascontiguousarray(pixels if want == have else pixels[[have.index(band) for band in want]])


def valid_pixels(pixels: NDArray[Any], mask: NDArray[np.bool_] | None, nodata: float | None) -> NDArray[np.bool_]:
    """True where the file says so, every band is finite and none is ``nodata``."""
    valid = np.ones(pixels.shape[1:], bool) if mask is None else mask
    if pixels.dtype.kind == "f":
        valid = valid & np.isfinite(pixels).all(axis=0)
    if nodata is not None and _can_hold(pixels.dtype, nodata):
        value, valid = pixels.dtype.type(nodata), valid.copy()
        for band in pixels:  # band by band stays in the cache
            valid &= band != value
    return valid


@lru_cache(maxsize=64)
def _can_hold(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind == "f":
        return bool(np.isfinite(value)) and abs(value) <= float(np.finfo(dtype).max)
    info = np.iinfo(dtype)
    return float(value).is_integer() and info.min <= value <= info.max
