"""A kept sample as it comes out of its shard, and what its row of the manifest says of where it lies."""

from dataclasses import dataclass
from typing import Any

from curation.archive.names import PICKLES, extension
from curation.archive.sample import RawSample, Sample, Window
from curation.errors import AccessError
from curation.storage import Folder, without_secrets

LISTED = " (of scenes that a list named only the catalog knows the files: read the manifest in its workspace)"


@dataclass(slots=True)
class Kept:
    """A kept sample with its files.

    Attributes:
        row: the manifest's columns.
        url: of the shard, without credentials.
        raw: its files as they lie in the shard; of a tile its image's, one object for all tiles of an image that
            follow each other.
        image: suffix of the image member that the manifest speaks of; ``npy`` where the shard has no files to hand on.
        sample: its pixels, where they are decoded already.
    """

    row: dict[str, Any]
    url: str
    raw: RawSample
    image: str
    sample: Sample | None = None


def window_of(row: dict[str, Any]) -> Window | None:
    """The tile in its image; ``None``: all of it."""
    return None if row["window"] is None else Window(**row["window"])


def image_key(row: dict[str, Any]) -> str:
    """The key of a sample's image: that of a tile without what its window added."""
    window = window_of(row)
    return str(row["key"]) if window is None else str(row["key"]).removesuffix(window.suffix)


def member_key(row: dict[str, Any]) -> str:
    """What the members of a tar are called: of several times in one zipped Zarr without ``_t`` and its place."""
    key = image_key(row)
    return key if row["position"] is None else key.removesuffix("_t" + "_".join(map(str, row["position"])))


def is_safe(name: str) -> bool:
    """A pickle is not handed on: what decodes samples by suffix would load it."""
    return extension(name) not in PICKLES


def gone(folder: Folder, path: str, row: dict[str, Any], why: str) -> AccessError:
    """The error for a kept sample that is not there, or not the one that the manifest means."""
    return AccessError(
        f"sample {row['key']!r} of {folder.public(path)} has gone or changed: {without_secrets(why)}; "
        "say with roots={name: URL} where the archive is now, or make the manifest again"
    )
