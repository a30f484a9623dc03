"""Small pixels of every sample of the catalog: read once more from the archive, then shared by all that train on them.

One safetensors file a shard, ``tiles/<id>/<shard>.safetensors``, rows as in the shard's catalog file; its header
names the content that the catalog file was made from, so that a file is current or made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from curation.archive.decode import conform, decode
from curation.archive.listing import Root
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Sample, Window, sample_id
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.tiling import tiles
from curation.catalog.artefact import Artefact, load_artefact
from curation.catalog.encode import survivors
from curation.catalog.store import CatalogStore, chunks
from curation.config import Config
from curation.encoders.base import Preparation
from curation.errors import BadSample, CurationError, RequestError
from curation.runtime import Resources, limit_threads
from curation.storage import Folder

if TYPE_CHECKING:  # it brings Ray Data and pandas along, which tasks need not load
    from curation.catalog.build import Catalog

log = logging.getLogger("curation")

VERSION = 1  # raise when the same sample would give another tile
CHECKED = 500  # shards looked at in one task
AHEAD = 2  # tasks under way a CPU

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tiles:
    """The tiles of a catalog.

    Attributes:
        folder: ``tiles/<id>``.
        bands: how many.
        size: pixels a side.
    """

    folder: Folder
    bands: int
    size: int
    dtype = np.dtype(np.uint8)

    def read(self, shard: str, rows: slice = slice(None)) -> Pixels:
        """``(n, bands, size, size)`` of a shard, in the order of its catalog file; or of a run of its rows.

        Raises:
            FileNotFoundError: it has none yet.
        """
        first, n = self.place(shard)
        start, stop, _ = rows.indices(n)
        stop = max(start, stop)
        data = self.folder.read_range(self.path(shard), first + start * self.nbytes, first + stop * self.nbytes)
        return np.frombuffer(data, np.uint8).reshape(stop - start, self.bands, self.size, self.size)

    def place(self, shard: str) -> tuple[int, int]:
        """Where in a shard's file its tiles begin, in bytes, and how many they are.

        Raises:
            FileNotFoundError: it has none yet.
        """
        start, header = header_of(self.folder, self.path(shard))
        return start, int(header["tiles"]["shape"][0])

    def digest(self, shard: str) -> str | None:
        """Of the content that the shard's tiles were made from; ``None`` where there are none."""
        try:
            return str(header_of(self.folder, self.path(shard))[1]["__metadata__"]["digest"])
        except (FileNotFoundError, KeyError, ValueError):
            return None

    def path(self, shard: str) -> str:
        """Where a shard's tiles lie, below the folder."""
        return f"{shard}.safetensors"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one tile."""
        return self.bands, self.size, self.size

    @property
    def nbytes(self) -> int:
        """Of one tile."""
        return self.bands * self.size * self.size


def build_tiles(config: Config, roots: Sequence[Root], catalog: Catalog, resources: Resources, size: int) -> Tiles:
    """Make the tiles that are wanting, a Ray task a shard, and a bounded number of tasks under way.

    8-bit archives stay as stored; others are scaled over the artefact's fixed ranges to 0..255. Invalid pixels get
    the mean of their band's valid ones; a tile that is not square is squeezed, as by the encoders.

    Args:
        config: of the run.
        roots: whose shards; all must be in the catalog.
        catalog: complete.
        resources: what the cluster has; no result depends on it.
        size: pixels a side.

    Raises:
        RequestError: the catalog was made without pixels.
        AccessError: a shard changed or could not be read.
        CurationError: a sample of the catalog could not be read again.
    """
    artefact, store = catalog.artefact, catalog.store
    if not artefact.bands:
        raise RequestError(
            "encoder=precomputed looks at no pixels, so that nothing tells how to make tiles of them: "
            "take an encoder that reads the images, such as encoder=random_conv"
        )
    made_of = [VERSION, store.catalog_id, artefact.sha256, size]
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    made = Tiles(store.workspace.child(f"tiles/{name}"), len(artefact.bands), size)
    listed = [(root.folder, shard) for root in roots for shard in root.shards]
    looks = [_wanting.remote(made, store, [s.name for _, s in part]) for part in chunks(listed, CHECKED)]
    wanting = {shard for part in ray.get(looks) for shard in part}
    pending = sorted((item for item in listed if item[1].name in wanting), key=lambda i: (-i[1].size, i[1].name))
    if pending:
        log.info("tiles: %d of %d shards to read, %d px a side", len(pending), len(listed), size)
    running: list[Any] = []
    for folder, shard in pending:
        if len(running) >= AHEAD * max(1, int(resources.cpus)):
            done, running = ray.wait(running)
            ray.get(done)
        running.append(_make.remote(made, store, config, folder, shard))
    ray.get(running)
    return made


@ray.remote(num_cpus=1)
def _wanting(made: Tiles, store: CatalogStore, shards: Sequence[str]) -> list[str]:
    """Those without current tiles."""
    return [shard for shard in shards if made.digest(shard) != (store.footer(shard) or {}).get("digest", "")]


@ray.remote(num_cpus=1)
def _make(made: Tiles, store: CatalogStore, config: Config, folder: Folder, shard: Shard) -> None:
    limit_threads(1)
    write_tiles(made, store, config.archive, load_artefact(config, store.workspace), folder, shard)


def write_tiles(
    made: Tiles, store: CatalogStore, archive: ArchiveConfig, artefact: Artefact, folder: Folder, shard: Shard
) -> None:
    """Publish one shard's tiles; it holds one of them at a time.

    Raises:
        AccessError: the shard changed or could not be read.
        CurationError: a sample of the catalog could not be read again.
    """
    rows = store.read(shard.name, ["sample_id", "key", "window"])
    ids, footer = rows["sample_id"].to_pylist(), store.footer(shard.name) or {}
    images = {
        key.removesuffix(Window(**window).suffix) if window else key
        for key, window in zip(rows["key"].to_pylist(), rows["window"].to_pylist(), strict=True)
    }
    prepare = Preparation(artefact.arrays["range"], made.size)
    written = 0
    with made.folder.writer(made.path(shard.name)) as file:
        file.write(_head((len(ids), made.bands, made.size, made.size), str(footer.get("digest", ""))))
        for raw in _raws(store, archive, folder, shard):
            if raw.key not in images:  # quarantined, refused by a filter, or empty
                continue
            for sample in _samples(raw, archive, artefact):
                own = sample_id(shard.name, sample.key)
                if ids[written : written + 1] == [own]:
                    file.write(_eight_bits(prepare(sample)).tobytes())
                    written += 1
        if written < len(ids):
            raise CurationError(
                f"{shard.name}: of {len(ids)} samples of the catalog only {written} could be read again, in their "
                f"order; the first that could not is {rows['key'][written].as_py()!r}. The shard is not what it was: "
                f"remove {store.own.public(store.path(shard.name))} and run the same command again"
            )


def _raws(store: CatalogStore, archive: ArchiveConfig, folder: Folder, shard: Shard) -> Iterator[RawSample]:
    """The raw samples of a shard; in a process of its own where reading once killed one."""
    fatal = "DecoderCrash" in store.quarantine(shard.name)["error"].to_pylist()
    apart = fatal and shard.format not in ("tar", "folder")  # whose readers do not decode
    items = survivors(read_shard, folder, shard, archive) if apart else read_shard(folder, shard, archive)
    return (raw for raw in items if isinstance(raw, RawSample))


def _samples(raw: RawSample, archive: ArchiveConfig, artefact: Artefact) -> Iterator[Sample]:
    """The samples of the catalog's kind that a raw one holds, as the encoder saw them."""
    settled = artefact.settled(archive)
    try:
        sample = decode(raw, settled)
    except BadSample:
        return
    for tile in tiles(sample, archive.tile.size, archive.tile.stride):
        if tile.mask.any():
            try:
                yield conform(tile, artefact.bands, artefact.dtype, artefact.radiometry)
            except BadSample:
                continue


def _eight_bits(tile: NDArray[Any]) -> Pixels:
    """A prepared tile: uint8 as it is, [0, 1] to 0..255."""
    return np.rint(tile * np.float32(255)).astype(np.uint8) if tile.dtype != np.uint8 else tile


def _head(shape: tuple[int, ...], digest: str) -> bytes:
    """What a safetensors file of one uint8 array begins with."""
    tensor = {"dtype": "U8", "shape": list(shape), "data_offsets": [0, int(np.prod(shape))]}
    text = json.dumps({"__metadata__": {"digest": digest}, "tiles": tensor}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def header_of(folder: Folder, path: str) -> tuple[int, dict[str, Any]]:
    """Where a safetensors file's data begin, and its header.

    Raises:
        FileNotFoundError: there is none.
    """
    length = int.from_bytes(folder.read_range(path, 0, 8), "little")
    return 8 + length, json.loads(folder.read_range(path, 8, 8 + length))
