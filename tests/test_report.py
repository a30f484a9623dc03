"""The page: its counts add up, its tiles are the right ones, it is one safe file, and a browser shows it whole."""

import io
import json

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.archive.sample import sample_id
from curation.catalog.schema import QUARANTINE_SCHEMA, catalog_schema
from curation.catalog.store import CatalogStore, parquet_bytes
from curation.errors import CurationError
from curation.report import data
from curation.report.data import REASONS, Figures, gather
from curation.report.page import write_report
from curation.storage import Folder
from tests.browser import Browser, find_browser

SHARDS, ROWS, CLUSTERS, DIM, PARTS = 6, 120, 9, 8, 2
NASTY = "<script>alert(1)</script>&\"' ключ"
LABELS = ("forest", "<b>town</b>", "water", None)


@dataclass
class Workspace:
    """A small finished run, and its decisions in one table."""

    folder: Folder
    store: CatalogStore
    shards: list[str]
    decisions: pa.Table
    labels: dict[str, str | None]

    @property
    def clusters(self) -> Folder:
        return self.folder.child("clusters/c1")

    @property
    def manifest(self) -> Folder:
        return self.folder.child("manifests/m1")

    def report(self, **more: Any) -> str:
        url = write_report(self.store, self.shards, self.clusters, self.manifest, self.folder, more.get("reads"))
        return Path(url.removeprefix("file://")).read_text("utf-8")

    def gather(self) -> Figures:
        return gather(self.store, self.shards, self.clusters, self.manifest)

    def rows(self, **equal: Any) -> list[dict[str, Any]]:
        return [row for row in self.decisions.to_pylist() if all(row[key] == value for key, value in equal.items())]


def picture(rng: np.random.Generator) -> bytes:
    pixels = np.clip(rng.normal(rng.uniform(40, 200, 3), 20, (64, 64, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def make_workspace(root: Path, pixels: bool = True, cut: float | None = 3.0) -> Workspace:
    """Fabricate catalog, quarantine, clusters and manifest in the pipeline's formats."""
    rng = np.random.default_rng(7)
    folder = Folder(str(root))
    store = CatalogStore(folder, "abc")
    shards = [f"root/part {i}.tar" for i in range(SHARDS)]
    decisions: list[dict[str, Any]] = []
    labels: dict[str, str | None] = {}
    for number, shard in enumerate(shards):
        rows = [row(rng, shard, i, number, pixels) for i in range(1, ROWS + 1)]  # index 0 is quarantined
        decisions += [decide(rng, item, cut) for item in rows]
        labels |= {item["sample_id"]: item["label"] for item in rows}
        schema = catalog_schema(DIM)
        bad = {"shard": shard, "index": 0, "key": NASTY, "stage": "decode", "error": "BadImage", "message": "<i>cut</i>"}
        footer = {"read": ROWS + 1, "kept": ROWS, "quarantined": 1, "profile": {"device": "cpu"}}
        table = pa.Table.from_pylist([{k: v for k, v in item.items() if k in schema.names} for item in rows], schema)
        store.publish(shard, table, pa.Table.from_pylist([bad], QUARANTINE_SCHEMA), footer)
    mark_duplicates(decisions)
    table = pa.Table.from_pylist(decisions, DECISIONS)
    for part in range(PARTS):
        mine = pa.array([shards.index(row["shard"]) % PARTS == part for row in decisions])
        folder.publish(f"manifests/m1/decisions/part-{part:05d}.parquet", parquet_bytes(table.filter(mine)))
    publish_clusters(folder, table)
    content = {
        "roots": ["root"],
        "warnings": [],
        "encoder": {"note": "A test encoder: 5-NN 0.5 on <nothing>."},
        "clusters": "c1",
        "config": {
            "seed": 0,
            "archive": {"max_bad_fraction": 0.01},
            "catalog": {"thumbnails": 0.5},
            "encoder": {"name": "random_conv", "dim": DIM},
            "select": {"strategy": "balanced", "budget": 0.15},
        },
    }
    header = {"content": content, "provenance": {"versions": {"curation": "0"}}}
    folder.publish("manifests/m1/manifest.json", json.dumps(header).encode())
    return Workspace(folder, store, shards, table, labels)


DECISIONS = pa.schema(
    [
        *((name, pa.string()) for name in ("sample_id", "shard")),
        ("index", pa.int64()),
        *((name, pa.string()) for name in ("key", "decision", "reason")),
        ("cluster", pa.int32()),
        *((name, pa.float32()) for name in ("distance", "entropy")),
        *((name, pa.float64()) for name in ("priority", "threshold")),
        ("duplicate_of", pa.string()),
        ("rank", pa.int64()),
        ("weight", pa.float64()),
    ]
)


def row(rng: np.random.Generator, shard: str, index: int, number: int, pixels: bool) -> dict[str, Any]:
    key = f"{NASTY}/{index}" if index < 3 else f"tile-{number}-{index:04d}"
    name = sample_id(shard, key)
    shown = data.in_share(name, 0.5) and pixels
    vector = rng.normal(size=DIM)
    return {
        "sample_id": name, "shard": shard, "index": index, "key": key,
        "label": LABELS[(index * index) % len(LABELS)],
        "entropy": float(rng.uniform(1, 7.9)) if pixels else None,
        "thumbnail": picture(rng) if shown else None,
        "patch": rng.integers(0, 256, 16 * 16 * 3, np.uint8).tobytes() if pixels else None,
        "embedding": (vector / np.linalg.norm(vector)).astype(np.float16),
        "cluster": int(min(rng.geometric(0.3) - 1, CLUSTERS - 1)), "distance": float(rng.uniform(0.1, 1.2)),
    }  # fmt: skip


def decide(rng: np.random.Generator, item: dict[str, Any], cut: float | None) -> dict[str, Any]:
    low = cut is not None and item["entropy"] is not None and item["entropy"] < cut
    reason = "entropy" if low else str(rng.choice(["sampled", "quota", "quota", "quota", "excluded"]))
    decision = "kept" if reason == "sampled" else "dropped"
    named = ("sample_id", "shard", "index", "key", "cluster", "distance", "entropy")
    threshold = cut if reason == "entropy" else None
    return {**{name: item[name] for name in named}, "decision": decision, "reason": reason, "threshold": threshold}


def mark_duplicates(decisions: list[dict[str, Any]]) -> None:
    """Three groups of 9, 5 and 2 duplicates, which lie in other shards than what stands for them."""
    kept = [row for row in decisions if row["reason"] == "sampled"][:3]
    spare = iter([row for row in decisions[::-1] if row["reason"] == "quota"])
    for representative, size in zip(kept, (9, 5, 2), strict=True):
        for _ in range(size):
            next(spare).update(reason="duplicate", duplicate_of=representative["sample_id"])


def publish_clusters(folder: Folder, decisions: pa.Table) -> None:
    sizes = np.bincount(np.asarray(decisions["cluster"]), minlength=CLUSTERS)
    scenes = ["Forest", "<i>Bay</i>", None]
    table = pa.table(
        {
            "cluster": pa.array(range(CLUSTERS), pa.int32()),
            "kind": ["reference" if c % 3 < 2 else "free" for c in range(CLUSTERS)],
            "scene": pa.array([scenes[c % 3] for c in range(CLUSTERS)], pa.string()),
            "scene_share": pa.array([0.8 if c % 3 < 2 else None for c in range(CLUSTERS)], pa.float32()),
            "size": sizes,
            "distance_mean": pa.array([0.5] * CLUSTERS, pa.float32()),
            "distance_std": pa.array([0.1] * CLUSTERS, pa.float32()),
            "neighbours": pa.array([[0]] * CLUSTERS, pa.list_(pa.int32())),
            "centroid": pa.array([[0.0] * DIM] * CLUSTERS, pa.list_(pa.float32())),
        }
    )
    folder.publish("clusters/c1/centroids.parquet", parquet_bytes(table))
    folder.publish("clusters/c1/fit.json", b"{}")
