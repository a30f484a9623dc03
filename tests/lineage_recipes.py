"""Manifests that go on from each other, in the true format, without Ray: for the tests of diff, gc and rollback."""

import datetime
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.archive.sample import sample_id
from curation.catalog.schema import catalog_schema
from curation.catalog.sources import COUNTS, SOURCES_SCHEMA
from curation.manifests.schema import DECISIONS_SCHEMA, FILES_SCHEMA, KEPT, MANIFEST_SCHEMA, content_id, json_bytes

OF_ITS_DAY = ("rank", "weight", "threshold")  # of a row of an ancestor's file these are that manifest's

Row = dict[str, Any]


def sample(shard: str, index: int, reason: str = "quota", cluster: int = 0, **columns: Any) -> Row:
    """A decided sample; ``label``, ``scene``, ``time``, ``footprint``, ``duplicate_of`` and the like as given."""
    key = columns.pop("key", f"{shard}-{index:03}")
    own = {"sample_id": sample_id(shard, key), "shard": shard, "index": index, "key": key}
    return {**own, "reason": reason, "cluster": cluster, "distance": 0.5, "score": 1.0, **columns}


@dataclass
class Lineage:
    """A workspace, and of each manifest in it the files of its parts and the rows that these make up."""

    folder: Path
    parts: dict[str, list[list[str]]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)

    def write(
        self,
        rows: list[Row],
        parent: str | None = None,
        parts: int = 2,
        sources: dict[str, str] | None = None,
        **content: Any,
    ) -> str:
        """Publish a manifest; its id. With a parent, what did not change is referenced, as `recurate` does it.

        Args:
            rows: every sample, see `sample`.
            parent: id.
            parts: of the decisions.
            sources: shard to fingerprint; None: the rows' shards, as they are.
            content: of the header.
        """
        rows = sorted(rows, key=lambda row: (row["shard"], row["index"]))
        kept = [row for row in rows if row["reason"] in KEPT]
        for rank, row in enumerate(kept):
            row |= {"rank": rank, "weight": 2.0}
        made: dict[str, tuple[bytes, int]] = {"manifest.parquet": (_bytes(kept, MANIFEST_SCHEMA), len(kept))}
        paths, listed = [["manifest.parquet"]], []
        for number in range(parts):
            own = [row for row in rows if _part(row["shard"], parts) == number]
            before = self._before(parent, number, parts)
            paths.append(self._settle(f"decisions/part-{number:05}.parquet", own, before, made))
        reasons: dict[str, int] = {}
        for row in rows:
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
        for path in [path for part in paths for path in part]:
            data, count = made.get(path) or ((self.folder / "manifests/x" / path).resolve().read_bytes(), 0)
            listed.append({"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": count})
        listing = _bytes(listed, FILES_SCHEMA)
        counts = {"samples": len(rows), "kept": len(kept), "dropped": len(rows) - len(kept), "quarantined": 0}
        content = {
            "catalog": "cat0",
            "clusters": "c0",
            "config": {"archive": {}},
            "parent": parent,
            "counts": {**counts, "reasons": reasons},
            "files": hashlib.sha256(listing).hexdigest(),
            **content,
        }
        id = content_id(content)
        folder = self.folder / "manifests" / id
        for path, (data, _) in made.items():
            _write(folder / path, data)
        _write(folder / "files.parquet", listing)
        if sources is None:
            sources = dict.fromkeys(sorted({row["shard"] for row in rows}), "{}")
        counts = dict.fromkeys(COUNTS, 0)
        named = [{"shard": name, "fingerprint": sources[name], "digest": "-", **counts} for name in sorted(sources)]
        _write(folder / "sources.parquet", _bytes(named, SOURCES_SCHEMA))
        _write(folder / "manifest.json", json_bytes({"content": content, "provenance": {"roots": {}}}))
        self.parts[id] = [[path if path[0] == "." else f"../{id}/{path}" for path in part] for part in paths[1:]]
        self.rows[id] = [dict(row) for row in rows]
        return id

    def point(self, id: str, name: str | None = None) -> None:
        """Put a manifest in force."""
        _write(self.folder / f"manifests/latest{f'-{name}' if name else ''}.json", json_bytes({"id": id}))

    def catalog(self, rows: list[Row], id: str = "cat0") -> None:
        """Catalog files of the rows' shards."""
        schema = catalog_schema(2)
        nowhen = {"time": None, "footprint": None, "embedding": [1.0, 0.0]}
        for shard in {row["shard"] for row in rows}:
            own = [{**nowhen, **row} for row in rows if row["shard"] == shard]
            table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in own], schema)
            path = self.folder / f"catalog/{id}/{shard}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)

    def manifest(self, id: str) -> str:
        """The path of a manifest's folder."""
        return str(self.folder / "manifests" / id)

    def _before(self, parent: str | None, number: int, parts: int) -> tuple[list[str], list[Row]] | None:
        if parent is None or len(self.parts[parent]) != parts:
            return None
        return self.parts[parent][number], [r for r in self.rows[parent] if _part(r["shard"], parts) == number]

    def _settle(
        self, path: str, rows: list[Row], before: tuple[list[str], list[Row]] | None, made: dict[str, tuple[bytes, int]]
    ) -> list[str]:
        """The files of a part: the parent's, and one with what changed; all anew where a sample is gone."""
        if before is None or {row["sample_id"] for row in before[1]} - {row["sample_id"] for row in rows}:
            made[path] = (_bytes(rows, DECISIONS_SCHEMA), len(rows))
            return [path]
        known = {row["sample_id"]: _lasting(row) for row in before[1]}
        changed = [row for row in rows if known.get(row["sample_id"]) != _lasting(row)]
        if changed:
            made[path] = (_bytes(changed, DECISIONS_SCHEMA), len(changed))
        return [*before[0], *([path] if changed else [])]


def _part(shard: str, parts: int) -> int:
    return hashlib.blake2b(shard.encode()).digest()[0] % parts


def _lasting(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in OF_ITS_DAY}


def _bytes(rows: list[Row], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    decided = [{"decision": "kept" if row.get("reason") in KEPT else "dropped", **row} for row in rows]
    table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in decided], schema)
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def when(month: int) -> datetime.datetime:
    """Some moment of a month."""
    return datetime.datetime(2026, month, 5, tzinfo=datetime.UTC)


def clusters(folder: Path, id: str = "c0", **said: Any) -> None:
    """A folder of clusters; ``said``: what its ``fit.json`` says."""
    _write(folder / f"clusters/{id}/fit.json", json.dumps(said).encode())
    _write(folder / f"clusters/{id}/centroids.parquet", b"centroids")
