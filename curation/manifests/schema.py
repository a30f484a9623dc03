"""The manifest's files: their columns, their vocabulary, and how their bytes come to be the same every time."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.catalog.schema import WINDOW
from curation.storage import CHUNK, Folder

KEPT = ("sampled", "required", "nearest", "guided")
DROPPED = (  # in the order of the stages
    *("split", "split_edge", "excluded", "cluster_excluded", "unscored", "invalid", "cloud"),
    *("entropy", "place", "duplicate", "hard", "quota"),
)
REASONS = KEPT + DROPPED
OF_DISTILLED = ("chosen", "margin", "leakage")  # of a distilled set: its kept, then its dropped

HEADER_FILE = "manifest.json"  # written last: its presence means that the rest is there
ROWS_FILE = "manifest.parquet"
FILES_FILE = "files.parquet"
DECISIONS = "decisions"  # folder of their parts
SKETCHES = "sketches"  # and of those of the rows that nothing stands for

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("source_id", pa.string()),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("offset", pa.int64()),  # of the image member's data in the shard, bytes
        pa.field("size", pa.int64()),
        pa.field("key", pa.string(), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),  # Euclidean between unit vectors
        pa.field("scene", pa.string()),  # the reference class that the cluster stands for
        pa.field("entropy", pa.float32()),  # bits
        pa.field("label", pa.string()),
        pa.field("rank", pa.int64(), nullable=False),  # the first n are what budget n selects
        pa.field("weight", pa.float64()),  # 1 / inclusion probability
        pa.field("position", pa.list_(pa.int64())),  # see the catalog
        pa.field("window", WINDOW),
        pa.field("radiometry", pa.string()),
    ]
)

DECISIONS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("decision", pa.string(), nullable=False),  # kept or dropped
        pa.field("reason", pa.string(), nullable=False),  # one of REASONS
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
        pa.field("group", pa.string()),  # the values of select.by
        pa.field("split", pa.string()),  # of select.splits; null: training, or none
        pa.field("valid_fraction", pa.float32()),
        pa.field("cloud_fraction", pa.float32()),
        pa.field("entropy", pa.float32()),
        pa.field("score", pa.float64()),  # what its strategy goes by, such as select.score or its gain
        pa.field("priority", pa.float64()),  # the smallest are kept; null where it was not reached
        pa.field("threshold", pa.float64()),  # first refused priority of its stratum, or what its stage demands
        pa.field("duplicate_of", pa.string()),  # sample_id of the representative of its group
        pa.field("rank", pa.int64()),
        pa.field("weight", pa.float64()),
        pa.field("source_id", pa.string()),  # these as in the manifest
        pa.field("label", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("position", pa.list_(pa.int64())),
        pa.field("window", WINDOW),
        pa.field("radiometry", pa.string()),
    ]
)

GUIDED_SCHEMA = pa.schema(  # further columns of decisions, where the bank's classes guide
    [
        pa.field("guided_class", pa.string()),  # of the bank's classes the likeliest; null where it is never guided
        pa.field("guided_probability", pa.float32()),  # of that class, by the archive's class shares
        pa.field("guided_place", pa.float64()),  # in the guided order, from 0; null where that ended before it
    ]
)

DISTILLED_SCHEMA = pa.schema(  # further columns of a distilled set's rows and decisions
    [
        pa.field("prototype", pa.string()),  # sample_id of the real image that guided it
        pa.field("candidate", pa.int32()),  # its number among the images drawn for that prototype
        pa.field("margin", pa.float32()),  # of the classifier: its class's logit less the largest other
        pa.field("similarity", pa.float32()),  # largest cosine to a real image; null where none was looked for
        pa.field("nearest", pa.string()),  # sample_id of that real image
        pa.field("ssim", pa.float32()),  # largest SSIM among the nearest by cosine, over the eight ways to turn it
        pa.field("ssim_nearest", pa.string()),  # sample_id of that one
    ]
)

FILES_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),  # bytes
        pa.field("sha256", pa.string(), nullable=False),  # hex
        pa.field("rows", pa.int64(), nullable=False),
    ]
)

ROW_GROUP = 1 << 17  # rows
BATCH = 1 << 16  # rows held at once where a whole file passes by
KEPT_ROW_GROUP = 1 << 14  # of the manifest's rows: a shuffled epoch reads them group by group
WRITING: dict[str, Any] = {
    "compression": "zstd",
    "column_encoding": {"sample_id": "DELTA_LENGTH_BYTE_ARRAY", "index": "DELTA_BINARY_PACKED"},
    "write_statistics": ["shard", "index", "cluster", "rank"],
    "use_dictionary": [
        "source_id",
        "shard",
        "scene",
        "label",
        "radiometry",
        "decision",
        "reason",
        "cluster",
        "threshold",
        "group",
        "split",
    ],
}


@dataclass(frozen=True)
class Manifest:
    """A published manifest.

    Attributes:
        folder: ``manifests/<id>``, below the workspace.
        url: of its ``manifest.json``, as it may be printed.
        samples: readable samples of the archive.
        kept: samples in the manifest.
        dropped: the others by reason, in the order of the stages.
        warnings: one line each.
    """

    folder: str
    url: str
    samples: int
    kept: int
    dropped: dict[str, int]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    """One row of ``files.parquet``."""

    path: str
    size: int
    sha256: str
    rows: int

    @staticmethod
    def of(path: str, data: bytes, rows: int) -> "File":
        """What is said of a file of these bytes."""
        return File(path, len(data), hashlib.sha256(data).hexdigest(), rows)


def decisions_path(number: int) -> str:
    """Where the decisions of a part lie in a manifest's folder."""
    return f"{DECISIONS}/part-{number:05d}.parquet"


def parquet_bytes(table: pa.Table, row_group: int = ROW_GROUP) -> bytes:
    """A table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group, **WRITING)
    return sink.getvalue()


def sketch_bytes(table: pa.Table) -> bytes:
    """Sketches as a Parquet file; they do not compress."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)
    return sink.getvalue()


@contextmanager
def open_parquet(folder: Folder, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read piece by piece."""
    with folder.open(folder.info(path)) as source, pq.ParquetFile(source) as file:
        yield file


def batches(folder: Folder, path: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file, `BATCH` rows at a time."""
    with open_parquet(folder, path) as file:
        yield from file.iter_batches(BATCH, columns=list(columns))


def file_digest(folder: Folder, path: str) -> tuple[int, str]:
    """Bytes of a file, and their SHA-256 in hex.

    Raises:
        FileNotFoundError: there is none.
    """
    info, digest = folder.info(path), hashlib.sha256()
    with folder.open(info) as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return info.size, digest.hexdigest()


def json_bytes(value: Any) -> bytes:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def content_id(content: dict[str, Any]) -> str:
    """A manifest's id: 128-bit BLAKE2b of its header's ``content``."""
    return hashlib.blake2b(json_bytes(content), digest_size=16).hexdigest()
