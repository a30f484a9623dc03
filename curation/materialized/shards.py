"""The two forms of a shard, written as a stream: a WebDataset tar, or a Parquet file. Same samples, same bytes."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from curation.manifests.loaders.kept import Kept
from curation.manifests.schema import MANIFEST_SCHEMA
from curation.materialized.files import COLUMNS, OWN, own_file, tar_key

BLOCK = 512
RECORD = 10240  # bytes that the length of a tar is a multiple of
ROW_GROUP = 32 << 20  # bytes of files in a row group, about


class Sink(io.RawIOBase):
    """Passes bytes on; tells how many came, and their hashes."""

    def __init__(self, target: BinaryIO) -> None:
        self.target, self.size = target, 0
        self.md5, self.sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()

    def writable(self) -> bool:
        """It can be written."""
        return True

    def tell(self) -> int:
        """Bytes so far."""
        return self.size

    def write(self, data: Any) -> int:
        """Pass some bytes on."""
        self.target.write(data)
        self.md5.update(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)


def write_tar(sink: Sink, samples: Iterable[Kept]) -> int:
    """A WebDataset tar: of each sample its files by suffix, ``curation.json`` with the manifest's columns among them.

    Headers tell nothing but name and size. A key that the shard has already is followed by the sample's id.

    Returns:
        How many samples there were.
    """
    count = 0
    for key, kept in _unique((tar_key(kept.row["key"]), kept) for kept in samples):
        count += 1
        for suffix, content in sorted({**kept.raw.data, OWN: own_file(kept.row)}.items()):
            add_member(sink, f"{key}.{suffix}", content)
    end_tar(sink)
    return count


def add_member(sink: Sink, name: str, content: bytes) -> int:
    """Write a file into a tar; where in it its data begin, in bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    short = len(name.encode()) <= tarfile.LENGTH_NAME  # wids knows no names in extended headers
    sink.write(info.tobuf(tarfile.USTAR_FORMAT if short else tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    offset = sink.size
    sink.write(content)
    sink.write(bytes(-len(content) % BLOCK))
    return offset


def end_tar(sink: Sink) -> None:
    """Write what a tar ends with."""
    end = sink.size + 2 * BLOCK
    sink.write(bytes(2 * BLOCK + -end % RECORD))


def tar_bytes(kept: Kept) -> int:
    """About how many bytes a sample takes in a tar."""
    return sum(
        BLOCK + len(content) + -len(content) % BLOCK for content in (*kept.raw.data.values(), own_file(kept.row))
    )


def parquet_schema(suffixes: Sequence[str]) -> pa.Schema:
    """The manifest's columns, one of bytes for each usual file, and ``others`` for the rest."""
    files = [pa.field(suffix, pa.binary()) for suffix in suffixes if suffix not in (*COLUMNS, "others")]
    others = pa.list_(pa.struct([("suffix", pa.string()), ("data", pa.binary())]))
    return pa.schema([*(MANIFEST_SCHEMA.field(name) for name in COLUMNS), *files, pa.field("others", others)])


def write_parquet(sink: Sink, samples: Iterable[Kept], schema: pa.Schema) -> int:
    """A Parquet file of :func:`parquet_schema`, a row a sample; keys are unique as in a tar.

    Returns:
        How many samples there were.
    """
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    compression = {field.name: "none" if pa.types.is_binary(field.type) else "zstd" for field in schema}
    compression |= {"others.list.element.suffix": "zstd", "others.list.element.data": "none"}
    compression |= {f"window.{side.name}": "zstd" for side in schema.field("window").type}
    repeated = [name for name in texts if name not in ("sample_id", "key")]
    options: dict[str, Any] = {"compression": compression, "use_dictionary": repeated, "write_statistics": texts}
    columns = [name for name in schema.names if name not in COLUMNS]
    rows: list[dict[str, Any]] = []
    count = size = 0
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, **options) as writer:
        for key, kept in _unique((kept.row["key"], kept) for kept in samples):
            count += 1
            files = kept.raw.data
            others = [{"suffix": suffix, "data": files[suffix]} for suffix in sorted(files) if suffix not in columns]
            own = {name: files[name] for name in columns if name in files}
            rows.append({**{name: kept.row[name] for name in COLUMNS}, "key": key, **own, "others": others})
            size += sum(map(len, files.values()))
            if size >= ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return count


def _unique(samples: Iterable[tuple[str, Kept]]) -> Iterator[tuple[str, Kept]]:
    """Samples with keys that differ."""
    seen: set[str] = set()
    for key, kept in samples:
        own = f"{key}_{kept.row['sample_id']}" if key in seen else key
        seen.add(own)
        yield own, kept
