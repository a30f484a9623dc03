"""One shard to one catalog file: the actor that owns a shard, and the ledger that counts and watches.

The actor reads its shard in order, has chunks decoded (by itself, by CPU tasks
elsewhere, or in a subprocess where a sample is suspected of killing workers),
and forwards tiles in one constant, padded batch shape.
"""

import hashlib
import logging
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, WorkerCrashedError

from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Rejection, Sample
from curation.archive.shards import Shard
from curation.archive.tables import Sieve, TableFilter
from curation.catalog.artefact import Artefact, encoder_config, load_artefact
from curation.catalog.careful import Subprocess, stream
from curation.catalog.rows import Result, RowMaker
from curation.catalog.schema import QUARANTINE_SCHEMA, catalog_schema
from curation.catalog.store import CatalogStore
from curation.config import Config
from curation.encoders.base import Encoder, build_encoder, compute_dtype
from curation.encoders.precomputed import Precomputed
from curation.errors import AccessError, BadSample, ChangedError, CurationError
from curation.runtime import limit_threads, numeric_profile
from curation.storage import Folder

log = logging.getLogger("curation")

CHUNK = 32  # samples decoded at once, at most
CHUNK_BYTES = 32 << 20  # and not many more bytes of them than that: a few chunks wait to be decoded
TRIES = 3  # readings of a shard before its access error counts
PAUSE = 1.0  # seconds between two reports to the ledger
FATAL_TRIES = 2  # deaths after which a shard is decoded in a subprocess


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Ledger:
    """Counts what is under way; knows how often a shard was begun, which tells of samples that kill workers."""

    def __init__(self) -> None:
        self.begun: dict[str, int] = {}
        self.told: dict[str, Counter[str]] = {}  # by root, since somebody took it

    def begin(self, shard: str) -> int:
        """Note the start of a shard; how often it was begun before."""
        before = self.begun.get(shard, 0)
        self.begun[shard] = before + 1
        return before

    def finish(self, shard: str) -> None:
        """Forget a shard that ended without killing anybody."""
        self.begun.pop(shard, None)

    def advance(self, root: str, figures: Counter[str]) -> None:
        """Add to the figures of a root, see `Meter`."""
        self.told.setdefault(root, Counter()).update(figures)

    def take(self) -> dict[str, Counter[str]]:
        """What was added since the last time, by root."""
        told, self.told = self.told, {}
        return told


@dataclass(frozen=True)
class EncodeSpec:
    """What an encoding actor is made with; small, so that Ray can make a dead actor again."""

    config: Config
    store: CatalogStore
    device: str
    decode_ahead: int
    deadline: float | None
    filter: TableFilter | None = None  # of the archive's samples


class ShardEncoder:
    """The Ray Data actor: batches of one shard in, one line of outcome each out."""

    def __init__(self, spec: EncodeSpec, ledger: Any) -> None:
        self.spec, self.ledger = spec, ledger
        limit_threads(int(spec.config.encoder.get("threads", 1)))

    # made with the first shard: what an actor refuses while it is made is a death to Ray, without a reason

    @cached_property
    def artefact(self) -> Artefact:
        """What was fitted."""
        return load_artefact(self.spec.config, self.spec.store.workspace)

    @cached_property
    def encoder(self) -> Encoder:
        """As the artefact has it."""
        spec, artefact = self.spec, self.artefact
        threads = int(spec.config.encoder.get("threads", 1))
        config = encoder_config(spec.config)
        return build_encoder(config, artefact.arrays, artefact.bands, artefact.dtype, spec.device, threads)

    @cached_property
    def maker(self) -> RowMaker:
        """What makes rows of samples."""
        return row_maker(self.spec.config, self.artefact, self.encoder)

    @cached_property
    def profile(self) -> dict[str, str]:
        """The numeric one, of this process."""
        return numeric_profile(self.spec.device, compute_dtype(self.spec.config.encoder, self.spec.device))

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[str]]:
        """Encode the shards of a batch."""
        tasks: list[tuple[Folder, Shard]] = [pickle.loads(task) for task in batch["task"]]  # from our own driver
        outcomes = [self._outcome(folder, shard) for folder, shard in tasks]
        return {"shard": [shard.name for _, shard in tasks], "outcome": outcomes}

    def _outcome(self, folder: Folder, shard: Shard) -> str:
        """``done``, ``stopped``, or why the shard could not be read."""
        if self.spec.deadline is not None and time.time() > self.spec.deadline:
            return "stopped"
        if self.spec.store.is_current(shard.name, shard.fingerprint, self.artefact.sha256):
            return "done"  # by an actor that died with other shards still in hand
        before = ray.get(self.ledger.begin.remote(shard.name))
        error = ""
        for _ in range(TRIES):
            try:
                self._encode(folder, shard, careful=before >= FATAL_TRIES)
                error = ""
                break
            except AccessError as access:
                error = str(access)
                if isinstance(access, ChangedError):
                    break
        with suppress(RayActorError):  # it counts what it was told until now, or nobody does
            ray.get(self.ledger.finish.remote(shard.name))
        return error or "done"

    def _encode(self, folder: Folder, shard: Shard, careful: bool) -> None:
        archive = self.spec.config.archive
        sieve = Sieve(self.spec.filter, archive) if self.spec.filter and shard.filter else None
        if careful and shard.format not in ("tar", "folder"):  # whose readers do not decode
            items = survivors(read_shard, folder, shard, archive)
            source = _Source(items if sieve is None else sieve.sift(items))
        else:
            source = _Source(read_shard(folder, shard, archive, sieve=sieve))
        with (
            _decoder(self.maker, shard.name, careful, self.spec.decode_ahead) as decoded,
            closing(_prefetched(_chunks(source))) as chunks,
        ):
            rows = ShardRows(self.encoder)
            meter = Meter(self.ledger, shard.root, rows)
            for results in meter.waiting(decoded(chunks)):
                for result in results:
                    rows.add(result)
            table, quarantined = rows.finish(shard.name)
            meter.tell()
        if source.read != rows.raws or rows.read != table.num_rows + quarantined.num_rows:
            raise CurationError(
                f"{shard.name}: {source.read} samples were read, but {rows.raws} looked at, and of their {rows.read} "
                f"tiles came {table.num_rows} rows and {quarantined.num_rows} quarantined ones; nothing was published"
            )
        if not self.encoder.needs_pixels:  # the vectors are content too
            source.digest.update(table["embedding"].combine_chunks().flatten().to_numpy().tobytes())
        footer = {
            "catalog_id": self.spec.store.catalog_id,
            "fingerprint": shard.fingerprint,
            "digest": source.digest.hexdigest(),
            "artefact": self.artefact.sha256,
            "profile": self.profile,
            "read": rows.read,
            "kept": table.num_rows,
            "quarantined": quarantined.num_rows,
            "empty": rows.empty,
            "filtered": sieve.refused if sieve else 0,
        }
        self.spec.store.publish(shard.name, table, quarantined, footer)


def survivors(read: Callable[..., Iterable[RawSample | Rejection]], *args: Any) -> Iterator[RawSample | Rejection]:
    """What a reader gives in a process of its own; if that dies, one rejection for the rest of the shard."""
    index = 0
    try:
        for item in stream(read, *args):
            yield item
            index += 1
    except BadSample as error:
        yield Rejection("", index, error.stage, error.kind, error.message)


def row_maker(config: Config, artefact: Artefact, encoder: Encoder) -> RowMaker:
    """The row maker that goes with an encoder and its artefact."""
    common = (
        artefact.settled(config.archive),
        artefact.bands,
        artefact.dtype,
        artefact.radiometry,
        artefact.arrays.get("range", np.zeros((0, 2), np.float32)),
    )
    if isinstance(encoder, Precomputed):
        return RowMaker(*common, _no_tile, config.catalog.thumbnails, lookup=encoder.lookup)
    return RowMaker(*common, encoder.prepare, config.catalog.thumbnails)


def _no_tile(sample: Sample) -> NDArray[Any]:
    raise AssertionError("this encoder looks at no pixels")


@dataclass
class ShardRows:
    """The rows of one shard as they grow; encodes whenever a batch is full.

    Samples are numbered as they come: a raw one that was cut into tiles counts as many times as there are tiles with a
    valid pixel; ``empty`` are those without.
    """

    encoder: Encoder
    columns: list[dict[str, Any]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    embeddings: list[NDArray[np.float16]] = field(default_factory=list)
    tiles: list[NDArray[Any]] = field(default_factory=list)

    raws: int = 0
    read: int = 0
    empty: int = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Samples and quarantined so far."""
        return self.read, len(self.rejections)

    def add(self, results: Sequence[Result]) -> None:
        """Take what came of the next raw sample."""
        self.raws += 1
        for result in results:
            if result is None:
                self.empty += 1
                continue
            index, self.read = self.read, self.read + 1
            if isinstance(result, Rejection):
                self.rejections.append(replace(result, index=index))
                continue
            self.columns.append({**result.columns, "index": index})
            self.tiles.append(result.tile)
            if len(self.tiles) == self.encoder.batch:
                self._encode()

    def _encode(self) -> None:
        if self.tiles:
            tiles = np.stack(self.tiles)
            vectors = self.encoder.encode(tiles) if self.encoder.needs_pixels else tiles
            self.embeddings.append(vectors.astype(np.float16))
            self.tiles.clear()

    def finish(self, shard: str) -> tuple[pa.Table, pa.Table]:
        """The catalog's rows and the quarantine's; an embedding that is not finite goes to the latter."""
        self._encode()
        dim = self.encoder.dim
        vectors = np.concatenate(self.embeddings) if self.embeddings else np.zeros((0, dim), np.float16)
        finite = np.isfinite(vectors).all(axis=1)
        for position in np.flatnonzero(~finite):
            row = self.columns[position]
            message = "the encoder gave a number that is not finite"
            self.rejections.append(Rejection(row["key"], row["index"], "encode", "NotFinite", message))
        schema = catalog_schema(dim)
        kept = [self.columns[position] for position in np.flatnonzero(finite)]
        plain = pa.schema([item for item in schema if item.name != "embedding"])
        table = pa.Table.from_pylist(kept, plain)
        flat = pa.array(vectors[finite].ravel(), pa.float16())
        table = table.append_column(schema.field("embedding"), pa.FixedSizeListArray.from_arrays(flat, dim))
        quarantine = [
            {"shard": shard, "index": r.index, "key": r.key, "stage": r.stage, "error": r.kind, "message": r.message}
            for r in sorted(self.rejections, key=lambda r: (r.index, r.key))
        ]
        return table, pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA)


Chunk = Sequence[RawSample | Rejection]
Results = list[list[Result]]  # for each raw sample


class Meter:
    """Tells the ledger now and then what came of a shard, and how long its encoder waited for decoded chunks.

    Figures: ``samples``, ``quarantined``; ``waiting`` and ``encoding``, seconds. An encoder that decodes by itself
    waits for itself.
    """

    def __init__(self, ledger: Any, root: str, rows: ShardRows) -> None:
        self.ledger, self.root, self.rows = ledger, root, rows
        self.told, self.seconds = (0, 0), Counter[str]()
        self.told_at = self.since = time.monotonic()

    def waiting(self, chunks: Iterator[Results]) -> Iterator[Results]:
        """Pass decoded chunks on."""
        for results in chunks:
            self._spent("waiting")
            yield results
            self._spent("encoding")
            if self.since - self.told_at > PAUSE:
                self.tell()
        self._spent("waiting")

    def _spent(self, doing: str) -> None:
        now = time.monotonic()
        self.seconds[doing] += now - self.since  # type: ignore[assignment] # a Counter of seconds
        self.since = now

    def tell(self) -> None:
        """Tell what was not told yet; the time since the last chunk went to encoding."""
        self._spent("encoding")
        now = self.rows.counts
        new = Counter(samples=now[0] - self.told[0], quarantined=now[1] - self.told[1])
        self.ledger.advance.remote(self.root, new + self.seconds)
        self.told, self.told_at = now, self.since
        self.seconds.clear()


class _decoder:  # noqa: N801 - used like a function
    """How chunks become rows: in this process, by Ray tasks in a bounded window, or in a subprocess."""

    def __init__(self, maker: RowMaker, shard: str, careful: bool, ahead: int) -> None:
        self.maker, self.shard, self.careful, self.ahead = maker, shard, careful, ahead
        self.subprocess = Subprocess()

    def __enter__(self) -> Callable[[Iterable[Chunk]], Iterator[Results]]:
        if self.careful:
            return self._in_subprocess
        return self._in_tasks if self.ahead else self._here

    def __exit__(self, *_: object) -> None:
        self.subprocess.close()

    def _here(self, chunks: Iterable[Chunk]) -> Iterator[Results]:
        return (self.maker.rows(self.shard, chunk) for chunk in chunks)

    def _in_tasks(self, chunks: Iterable[Chunk]) -> Iterator[Results]:
        maker = ray.put(self.maker)
        window: deque[tuple[Any, Chunk]] = deque()
        for chunk in chunks:
            window.append((_rows_task.remote(maker, self.shard, chunk), chunk))
            if len(window) >= self.ahead:
                yield self._result(*window.popleft())
        while window:
            yield self._result(*window.popleft())

    def _result(self, task: Any, chunk: Chunk) -> Results:
        try:
            results: Results = ray.get(task)
        except WorkerCrashedError:  # every time that Ray tried it
            results = [self._alone(raw) for raw in chunk]
        return results

    def _in_subprocess(self, chunks: Iterable[Chunk]) -> Iterator[Results]:
        for chunk in chunks:
            yield [self._alone(raw) for raw in chunk]

    def _alone(self, raw: RawSample | Rejection) -> list[Result]:
        try:
            return self.subprocess.call(self.maker.rows, self.shard, [raw])[0]
        except BadSample as error:
            return [Rejection(raw.key, raw.index, error.stage, error.kind, error.message)]


@ray.remote(num_cpus=1)
def _rows_task(maker: RowMaker, shard: str, chunk: Chunk) -> Results:
    limit_threads(1)
    return maker.rows(shard, chunk)


class _Source:
    """Passes samples on, counts them, and adds names and bytes to the shard's content digest."""

    def __init__(self, samples: Iterable[RawSample | Rejection]) -> None:
        self.samples, self.read, self.digest = samples, 0, hashlib.blake2b(digest_size=16)

    def __iter__(self) -> Iterator[RawSample | Rejection]:
        for raw in self.samples:
            self.read += 1
            if isinstance(raw, RawSample):
                for suffix, data in raw.data.items():
                    self._add(f"{raw.key}\0{suffix}\0{len(data)}\0")
                    self.digest.update(data)
                for name, image in raw.images.items():
                    self._add(f"{raw.key}\0{raw.position}\0{raw.window}\0{name}\0{image.pixels.shape}\0")
                    self.digest.update(image.pixels.tobytes())
            else:
                self._add(f"{raw.key}\0{raw.kind}\0")
            yield raw

    def _add(self, text: str) -> None:
        self.digest.update(text.encode("utf-8", "surrogateescape"))


def _chunks(samples: Iterable[RawSample | Rejection]) -> Iterator[Chunk]:
    chunk: list[RawSample | Rejection] = []
    size = 0
    for raw in samples:
        chunk.append(raw)
        size += raw.nbytes if isinstance(raw, RawSample) else 0
        if len(chunk) == CHUNK or size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _prefetched(chunks: Iterator[Chunk], ahead: int = 4) -> Generator[Chunk, None, None]:
    """Read in a thread, a few chunks ahead, so that the encoder does not wait for storage; closed, it reads no more."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Chunk | None]] = deque(pool.submit(next, chunks, None) for _ in range(ahead))
        try:
            while (chunk := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, chunks, None))
                yield chunk
        finally:
            for future in waiting:
                future.cancel()
