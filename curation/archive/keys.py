"""What the samples of a shard are called, and where they lie: by headers, sidecars and key columns, not by pixels.

Of a tar the members' headers and its sidecars are read, of Parquet the columns
of keys and fields, of Zarr the coordinates. An image that is cut into tiles is
one entry. What only an image file's own tags say is not known here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from curation.archive.decode import image_member
from curation.archive.folder import read_folder
from curation.archive.joined import read_joined
from curation.archive.names import SIDECARS, extension
from curation.archive.parquet import read_parquet
from curation.archive.reader import Reader
from curation.archive.sample import RawSample, Rejection, Wanted
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard, scene_key
from curation.archive.sidecar import gather, in_name, read_fields
from curation.archive.tables import Sieve
from curation.archive.webdataset import read_tar
from curation.archive.zarr.shard import read_zarr
from curation.errors import AccessError, BadSample, ChangedError
from curation.storage import Folder


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of a shard.

    Attributes:
        key: by the reader's rule.
        index: its place in the shard from 0, as the reader counts: rejected ones too. (Where it is cut, the catalog
            counts tiles.)
        offset, size: of the image member, in bytes; ``None`` where that takes more than headers.
        position: see :class:`~curation.archive.sample.RawSample`.
        source_id, label: as a sidecar, a column or the key says.
    """

    key: str
    index: int
    offset: int | None
    size: int | None
    position: tuple[int, ...] | None
    source_id: str | None
    label: str | None


def read_keys(folder: Folder, shard: Shard, settings: ArchiveConfig) -> Iterator[Entry | Rejection]:
    """Every image of a shard in its order, numbered from 0, or why it cannot be used, as far as that shows.

    Raises:
        AccessError: the shard vanished, or gave fewer bytes than the listing said.
    """
    try:
        for index, raw in enumerate(_BARE[shard.format](folder, shard, settings, None, None)):
            try:
                yield raw if isinstance(raw, Rejection) else _entry(raw, index, shard, settings)
            except BadSample as error:
                yield Rejection(raw.key, index, error.stage, error.kind, error.message)
    except FileNotFoundError as error:
        raise ChangedError(f"{folder.public(shard.path)}: it vanished after it was listed") from error
    except OSError as error:
        raise AccessError(f"{folder.public(shard.path)}: {error.strerror or error}") from error


def _entry(raw: RawSample, index: int, shard: Shard, settings: ArchiveConfig) -> Entry:
    said = gather(raw.data, {**in_name(raw.key, settings.name_pattern), **raw.said})
    fields = read_fields(said, settings.fields)
    parts = [part for _, part in shard.parts] or [shard]
    image = image_member(raw, settings) if all(part.format in ("tar", "folder") for part in parts) else None
    offset, size = (image.offset, image.size) if image else (None, None)
    return Entry(raw.key, index, offset, size, raw.position, fields["source_id"], fields["label"])


def _scene(
    folder: Folder, shard: Shard, settings: ArchiveConfig, only: Sequence[Wanted] | None, sieve: Sieve | None
) -> Iterator[RawSample]:
    """A scene by its sidecars, and by what a list says of it."""
    sidecars = [file for file in shard.files if extension(file.path) in SIDECARS]
    data = {extension(file.path): folder.read(file.path) for file in sidecars}
    yield RawSample(scene_key(shard.path), 0, [], data, said=dict(shard.said))


_BARE: dict[str, Reader] = {
    "tar": partial(read_tar, bare=True),
    "folder": partial(read_folder, bare=True),
    "parquet": partial(read_parquet, bare=True),
    "zarr": partial(read_zarr, bare=True),
    "scene": _scene,
}
_BARE["joined"] = partial(read_joined, _BARE)
