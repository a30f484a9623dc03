"""The ledger of a listing: what each shard was when it was read, and what came of it, as its catalog file says.

It lies beside a manifest, so that the next run tells what is new, changed or gone without opening catalog files.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.archive.shards import Shard
from curation.errors import RequestError
from curation.storage import Folder

SOURCES_FILE = "sources.parquet"  # below a manifest's folder; no part of its id
COUNTS = ("read", "kept", "quarantined", "filtered", "empty")  # of a footer

SOURCES_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),  # JSON, as in the catalog file's footer
        pa.field("digest", pa.string(), nullable=False),  # of the catalog file's rows
        *(pa.field(name, pa.int64(), nullable=False) for name in COUNTS),
    ]
)
LISTED_SCHEMA = pa.schema([SOURCES_SCHEMA.field("shard"), SOURCES_SCHEMA.field("fingerprint")])
BATCH = 10_000  # shards turned into columns at once

_as_json = json.JSONEncoder(sort_keys=True).encode  # json.dumps would make an encoder for each


@dataclass(frozen=True)
class Changes:
    """How a listing differs from an earlier ledger; names, sorted.

    Attributes:
        added: shards that the ledger does not know.
        changed: those whose fingerprint is another.
        gone: those that the listing lacks.
        same: the ledger's rows of all others.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    same: pa.Table

    @property
    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {"added": len(self.added), "changed": len(self.changed), "gone": len(self.gone)}

    @property
    def any(self) -> bool:
        """Whether it does at all."""
        return bool(self.added or self.changed or self.gone)


def source_row(shard: str, footer: dict[str, Any]) -> dict[str, Any]:
    """A row of the ledger from the footer of a catalog file."""
    fingerprint = _as_json(footer["fingerprint"])
    counts = {name: footer[name] for name in COUNTS}
    return {"shard": shard, "fingerprint": fingerprint, "digest": footer["digest"], **counts}


def listed_table(shards: Iterable[Shard]) -> pa.Table:
    """Names and fingerprints of a listing; `LISTED_SCHEMA`."""
    names: list[str] = []
    fingerprints: list[str] = []
    batches: list[pa.RecordBatch] = []

    def flush() -> None:
        batches.append(pa.record_batch([pa.array(names), pa.array(fingerprints)], schema=LISTED_SCHEMA))
        names.clear()
        fingerprints.clear()

    for shard in shards:
        names.append(shard.name)
        fingerprints.append(_as_json(shard.fingerprint))
        if len(names) == BATCH:
            flush()
    flush()
    return pa.Table.from_batches(batches)


def compare(ledger: pa.Table, listed: pa.Table) -> Changes:
    """What is new, changed and gone.

    Args:
        ledger: `SOURCES_SCHEMA`, of the earlier listing.
        listed: `LISTED_SCHEMA`, of today's.
    """
    here, there = ledger["shard"].combine_chunks(), listed["shard"].combine_chunks()
    place = pc.index_in(there, value_set=here)
    known = np.asarray(pc.is_valid(place))
    rows = pa.array(np.asarray(pc.fill_null(place, 0))[known])
    same = np.zeros(len(there), bool)
    same[known] = np.asarray(pc.equal(listed["fingerprint"].filter(pa.array(known)), ledger["fingerprint"].take(rows)))
    gone = pc.invert(pc.is_in(here, value_set=there))
    return Changes(
        added=_names(there.filter(pa.array(~known))),
        changed=_names(there.filter(pa.array(known & ~same))),
        gone=_names(here.filter(gone)),
        same=ledger.take(place.filter(pa.array(same))),
    )


def digest_of(sources: pa.Table) -> str:
    """A hash over the shards' names and the digests of their rows."""
    digest = hashlib.sha256()
    for batch in sources.select(["shard", "digest"]).sort_by("shard").to_batches(BATCH):
        pairs = zip(batch["shard"].to_pylist(), batch["digest"].to_pylist(), strict=True)
        digest.update("".join(f"{name}\0{one}\n" for name, one in pairs).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def counts_of(sources: pa.Table) -> dict[str, int]:
    """Samples read, kept, quarantined, filtered and empty over all shards."""
    return {name: int(pc.sum(sources[name]).as_py() or 0) for name in COUNTS}


def lost_shards(sources: pa.Table) -> list[str]:
    """Shards of which there is nothing but what is quarantined."""
    others = pc.add(pc.add(sources["kept"], sources["filtered"]), sources["empty"])
    lost = sources.filter(pc.and_(pc.equal(others, 0), pc.greater(sources["quarantined"], 0)))
    return list(lost["shard"].to_pylist())


def merged(tables: Sequence[pa.Table]) -> pa.Table:
    """Ledgers of different shards as one, sorted."""
    return pa.concat_tables([SOURCES_SCHEMA.empty_table(), *tables]).sort_by("shard").combine_chunks()


def read_sources(manifest: Folder) -> pa.Table:
    """The ledger beside a manifest.

    Raises:
        RequestError: there is none.
    """
    try:
        return pq.read_table(pa.BufferReader(manifest.read(SOURCES_FILE)))
    except FileNotFoundError:
        raise RequestError(
            f"{manifest.public(SOURCES_FILE)} is missing, which tells the shards that were read: run curate prune again"
        ) from None


def _names(column: pa.Array) -> tuple[str, ...]:
    return tuple(sorted(column.to_pylist()))
