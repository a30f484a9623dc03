"""Zarr stores and zips as shards: with a sample axis, or of one image."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from curation.archive.sample import Effort, RawSample, Rejection, Wanted
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.tables import Sieve
from curation.archive.tiling import windows
from curation.archive.zarr.arrays import open_arrays
from curation.archive.zarr.files import Files, FolderFiles, RemoteZipFiles, ZipFiles
from curation.archive.zarr.layout import Layout
from curation.archive.zarr.plan import Plan
from curation.archive.zarr.samples import read_samples
from curation.errors import AccessError, BadSample
from curation.storage import BLOCK, Folder


def read_zarr(
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
    bare: bool = False,
) -> Iterator[RawSample | Rejection]:
    """The samples of a store or a zip, chunk by chunk, numbered from 0; each chunk is read and decoded once.

    ``bare``: no chunk of pixels is read, and an image that is to be cut comes once.

    Memory holds the samples of one chunk; of an image that is to be cut and has several rows of chunks, the rows that
    a row of tiles lies in.

    Raises:
        AccessError: a file vanished, or gave fewer bytes than the listing said.
    """
    try:
        files, layout = _open(folder, shard, settings)
        if files.far:
            layout.coordinates.fetch_small(files)
        if math.prod(layout.samples):
            layout.key((0,) * len(layout.samples))  # so that what names the samples is known to be readable
    except (AccessError, MemoryError, OSError):
        raise
    except BadSample as error:
        kind = "DamagedShard" if error.kind in ("BadImage", "TruncatedImage", "BadSidecar") else error.kind
        yield Rejection("", 0, "read", kind, error.message)
        return
    except Exception as error:  # zarr raises whatever it likes on metadata that contradict each other
        yield Rejection("", 0, "read", "DamagedShard", f"zarr: {' '.join(str(error).split())[:200]}")
        return
    plan = Plan(layout, files, settings.tile, only, sieve)
    for index, item in enumerate(_keys(plan) if bare else read_samples(plan, settings)):
        yield replace(item, index=index)


def _keys(plan: Plan) -> Iterator[RawSample | Rejection]:
    """The samples in the order of `read_samples`, without pixels: what coordinates say of them."""
    for _, positions in plan.blocks():
        for position in positions:
            key = plan.layout.key(position)
            try:
                yield RawSample(key, 0, [], {}, said=plan.layout.said(position), position=position)
            except BadSample as error:
                yield Rejection(key, 0, error.stage, error.kind, error.message)


def survey_zarr(folder: Folder, shard: Shard, settings: ArchiveConfig) -> Effort:
    """What reading a store or a zip takes: its metadata, its coordinates, and each chunk of its images and masks.

    Raises:
        BadSample: it makes no samples.
    """
    files, layout = _open(folder, shard, settings)
    spans = [*files.spans(files.metadata), *files.spans(layout.coordinates.small_keys())]
    for keys in Plan(layout, files, settings.tile, None, None).requests():
        spans += files.spans(keys)
    if isinstance(files, ZipFiles):
        spans.append(min(BLOCK, shard.size))  # its directory
    count, size = math.prod(layout.samples), settings.tile.size
    cut = 1 if size is None else sum(1 for _ in windows(*layout.first.size, size, settings.tile.stride or size))
    return Effort(count * cut, sum(spans), len(spans) + 1, True)


def _open(folder: Folder, shard: Shard, settings: ArchiveConfig) -> tuple[Files, Layout]:
    files: Files
    if shard.file is None:
        files = FolderFiles(folder, shard.path, shard.files)
    else:
        files = ZipFiles(folder.open(shard.file)) if folder.local else RemoteZipFiles(folder, shard.file)
    stem = shard.path.rpartition("/")[2].removesuffix(".zip").removesuffix(".zarr")
    return files, Layout(open_arrays(files), settings.members, stem)
