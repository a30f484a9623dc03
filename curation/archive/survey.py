"""What reading a shard will take, by its headers alone: samples, bytes, and requests to an object store."""

from collections.abc import Callable

from curation.archive.joined import own_settings
from curation.archive.parquet import survey_parquet
from curation.archive.sample import Effort
from curation.archive.scene import survey_scene
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.zarr.shard import survey_zarr
from curation.errors import BadSample
from curation.storage import CHUNK, Folder

SURVEYS: dict[str, Callable[[Folder, Shard, ArchiveConfig], Effort]] = {
    "scene": survey_scene,
    "parquet": survey_parquet,
    "zarr": survey_zarr,
}


def survey(folder: Folder, shard: Shard, settings: ArchiveConfig) -> Effort:
    """Look into a shard's headers; ``samples`` is ``None`` where only reading tells (tars, folders, damage).

    Raises:
        AccessError: a file could not be read.
    """
    if shard.parts:
        parts = [survey(folder, part, own_settings(settings, modality)) for modality, part in shard.parts]
        known = [part.samples for part in parts if part.samples is not None]
        return Effort(
            min(known, default=None),
            sum(part.bytes for part in parts),
            sum(part.requests for part in parts),
            all(part.cut for part in parts),
        )
    try:
        if shard.format in SURVEYS:
            return SURVEYS[shard.format](folder, shard, settings)
    except BadSample:
        pass
    images = shard.format == "folder"  # each by one request, a tar by pieces
    requests = len(shard.contents) if images else sum(-(-file.size // CHUNK) for file in shard.contents)
    return Effort(None, shard.size, requests + 1)  # a last look finds it unchanged
