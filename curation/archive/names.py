"""What a member's name says: its key, its suffix, and whether it holds pixels or says something about them."""

import re
from collections.abc import Sequence

IMAGES = frozenset({"jpg", "jpeg", "png", "tif", "tiff", "npy", "webp", "bmp", "jp2", "zip"})  # zip: a zipped Zarr
SIDECARS = frozenset({"json", "cls", "txt"})
SHARDS = frozenset({"tar", "parquet", "zip"})
PICKLES = frozenset({"pkl", "pickle", "pt", "pth", "pyd", "joblib"})

ALIASES = {  # of bands by what they see, in the names of Sentinel-2
    "red": ("red", "b04", "b4"),
    "green": ("green", "b03", "b3"),
    "blue": ("blue", "b02", "b2"),
    "nir": ("nir", "b08", "b8", "b8a"),
}

_PREVIEW = re.compile(r"(?:^|[_.-])(?:thumb|thumbnail|preview|quicklook|browse)(?:$|[_.-])", re.IGNORECASE)
# Bands of classes or flags, not measurements: Sentinel-2's, Landsat's, MODIS', and what people call their own.
_CATEGORICAL = re.compile(
    r"(?:.*[/_.-])?(?:scl|fmask|qa\d*|qa_\w+|b?qa|msk_\w+|(?:\w+_)?mask|cloudmask|clm|cld|clp)", re.IGNORECASE
)
_UNSAFE = re.compile(r"[/\\]|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)


def extension(name: str) -> str:
    """What follows the last dot, in lower case: ``tif`` of ``a/b.B02.TIF``; empty without a dot."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def is_categorical(band: str) -> bool:
    """Whether a band holds classes or flags (``SCL``, ``QA60``, ``cloud_mask``): numbers that must not be mixed."""
    return _CATEGORICAL.fullmatch(band) is not None


def is_shard(path: str) -> bool:
    """Whether a file that is named alone can be a shard, or a scene."""
    return extension(path) in SHARDS or extension(path) in IMAGES


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member by WebDataset's rule: the key ends at the first dot of the last part.

    >>> split_name("north.v1/tile.B02.tif")
    ('north.v1/tile', 'B02.tif')
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix


def is_hidden(path: str) -> bool:
    """Whether the last part of a path begins with a dot: no sample is meant by it."""
    return path.rpartition("/")[2].startswith(".")


def is_unsafe(name: str) -> bool:
    """Whether a member's name is absolute or leads out of the archive."""
    return _UNSAFE.match(name) is not None


def is_text(name: str) -> bool:
    """Whether a name is valid UTF-8, so that it can stand in a catalog."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def printable(name: str) -> str:
    """A name as it may stand in a quarantine: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def holds_pixels(suffix: str, members: list[str] | None) -> bool:
    """Whether a member holds pixels: it is one of ``archive.members``, or without that list any image."""
    return suffix in members if members is not None else extension("." + suffix) in IMAGES


def is_preview(name: str) -> bool:
    """Whether a column or member is a small picture for people."""
    return _PREVIEW.search(name) is not None


def matters(suffix: str, members: list[str] | None) -> bool:
    """Whether a member is used: it holds pixels or is a sidecar."""
    return suffix.lower() in SIDECARS or holds_pixels(suffix, members)


def find_band(name: str, bands: Sequence[str]) -> int | None:
    """Where a band is: exactly so called, else in any case, else without a modality (``S2L2A.B04``), else by an alias.

    >>> find_band("red", ["S1GRD.vv", "S2L2A.B04"])
    1
    """
    if name in bands:
        return list(bands).index(name)
    lowered = [band.lower() for band in bands]
    for alias in ALIASES.get(name.lower(), (name.lower(),)):
        for have in (lowered, [band.rpartition(".")[2] for band in lowered]):
            if alias in have:
                return have.index(alias)
    return None
