"""A small catalog with clusters, as the earlier stages leave them, for the tests of selection and manifests."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.archive.sample import sample_id
from curation.archive.tables import Table
from curation.catalog.schema import QUARANTINE_SCHEMA, catalog_schema
from curation.catalog.store import CatalogStore
from curation.manifests.build import select
from curation.manifests.schema import Manifest
from curation.selection.settings import ClusterEdits, EntropyConfig, SelectConfig
from curation.selection.strategies import STRATEGIES
from curation.storage import Folder

DIM = 8
HEADER: dict[str, Any] = {
    "content": {"config": {}, "roots": ["root"], "catalog": "cat"},
    "provenance": {"roots": {}},
}


@dataclass
class Workspace:
    """Folders, and all samples in one table: the catalog's columns, cluster and distance, by (shard, index)."""

    folder: Path
    samples: pa.Table

    @property
    def store(self) -> CatalogStore:
        return CatalogStore(Folder(str(self.folder)), "cat")

    def select(
        self,
        seed: int = 0,
        header: dict[str, Any] = HEADER,
        tables: Sequence[Table] = (),
        label: str = "label",
        **settings: Any,
    ) -> Manifest:
        config = make_settings(**settings)
        folder = Folder(str(self.folder))
        scores = folder.child("scores/s") if STRATEGIES[config.strategy].scored else None
        return select(self.store, folder.child("clusters/c"), config, seed, folder, header, tables, scores, label)

    def read(self, manifest: Manifest) -> pa.Table:
        """The kept rows."""
        return pq.read_table(self.folder / manifest.folder / "manifest.parquet")

    def decisions(self, manifest: Manifest) -> dict[str, list[Any]]:
        """All decisions, in the order of ``samples``."""
        tables = [pq.read_table(path) for path in sorted((self.folder / manifest.folder / "decisions").iterdir())]
        return pa.concat_tables(tables).sort_by([("shard", "ascending"), ("index", "ascending")]).to_pydict()


def make_settings(**settings: Any) -> SelectConfig:
    """Balanced, a quarter, no duplicates; ``entropy_keep``, ``clusters_exclude`` and ``clusters_weight`` as such."""
    settings = {"budget": 0.25, "duplicates": False, "representativeness": 0.5, **settings}
    entropy = EntropyConfig(settings.pop("entropy_keep", None))
    clusters = ClusterEdits(settings.pop("clusters_exclude", []), settings.pop("clusters_weight", None))
    return SelectConfig(**settings, entropy=entropy, clusters=clusters)


def make_workspace(
    folder: Path, shards: int = 12, rows: int = 50, clusters: int = 6, parts: int = 3, **columns: Any
) -> Workspace:
    """Samples of skewed clusters, in shards of up to ``rows``; every seventh index is quarantined.

    Args:
        columns: catalog columns that take the place of the made ones; values by sample.
    """
    random = np.random.default_rng(5)
    store = CatalogStore(Folder(str(folder)), "cat")
    centroids = random.normal(size=(clusters, DIM))
    made = []
    for shard in range(shards):
        name = f"root/sub {shard % 4}/tiles-{shard:03d}.tar"
        index = np.flatnonzero(np.arange(rows - shard) % 7 != 3)
        cluster = np.minimum(random.geometric(0.4, len(index)) - 1, clusters - 1)
        vector = centroids[cluster] + random.normal(size=(len(index), DIM)) * 0.7
        for i, k, v in zip(index.tolist(), cluster.tolist(), vector, strict=True):
            key = f"dir/{shard:03d}_{i:04d}"
            made.append(
                {
                    "sample_id": sample_id(name, key),
                    "shard": name,
                    "index": i,
                    "key": key,
                    "offset": 1536 * i + 512,
                    "size": 1000,
                    "members": [{"name": f"{key}.jpg", "offset": 1536 * i + 512, "size": 1000}],
                    "source_id": f"product-{shard:03d}-{i // 5}",
                    "label": ["water", "field", "town"][k % 3],
                    "time": datetime.datetime(2020, 1 + shard, 1 + i % 28, 12, tzinfo=datetime.UTC),
                    "footprint": {"west": shard, "south": i, "east": shard + 0.5, "north": i + 0.5},
                    "valid_fraction": 1.0,
                    "entropy": float(np.float32(2 + k + random.integers(0, 16) / 16)),
                    "embedding": (v / np.linalg.norm(v)).astype(np.float16),
                    "cluster": k,
                    "distance": float(np.float32(random.gamma(4, 0.2))),
                }
            )
    made.sort(key=lambda row: (row["shard"], row["index"]))
    schema = catalog_schema(DIM).append(pa.field("cluster", pa.int32())).append(pa.field("distance", pa.float32()))
    samples = pa.Table.from_pylist(made, schema=schema)
    for name, values in columns.items():
        position = schema.get_field_index(name)
        samples = samples.set_column(position, schema.field(position), pa.array(values, schema.field(position).type))
    for name in samples["shard"].unique().to_pylist():
        table = samples.filter(pa.compute.equal(samples["shard"], name)).drop(["cluster", "distance"])
        lost = [dict(shard=name, index=3, key=f"lost of {name}", stage="decode", error="Torn", message="-")]
        footer = {"read": table.num_rows + 1, "kept": table.num_rows, "quarantined": 1}
        store.publish(name, table, pa.Table.from_pylist(lost, schema=QUARANTINE_SCHEMA), footer)
    write_clusters(folder / "clusters/c", samples, clusters, parts)
    return Workspace(folder, samples)


def write_clusters(folder: Path, samples: pa.Table, clusters: int, parts: int) -> None:
    """Centroids, and assignments in ``parts`` parts; the scenes are the classes, the last cluster has none."""
    cluster, distance = samples["cluster"].to_numpy(), samples["distance"].to_numpy()
    members = [distance[cluster == k] for k in range(clusters)]
    centroids = {
        "cluster": pa.array(range(clusters), pa.int32()),
        "kind": ["reference"] * clusters,
        "scene": [*(["water", "field", "town"] * clusters)[: clusters - 1], None],
        "size": [len(own) for own in members],
        "distance_mean": pa.array([own.mean() if len(own) else 0 for own in members], pa.float32()),
        "distance_std": pa.array([own.std() if len(own) else 0 for own in members], pa.float32()),
        "ancestors": pa.array([[k % 2] for k in range(clusters)], pa.list_(pa.int32())),
        "neighbours": pa.array([[(k + 1) % clusters] for k in range(clusters)], pa.list_(pa.int32())),
    }
    (folder / "assignments").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(centroids), folder / "centroids.parquet")
    names = samples["shard"].unique().to_pylist()
    assigned = samples.select(["sample_id", "shard", "index", "cluster", "distance"])
    for path in (folder / "assignments").iterdir():
        path.unlink()
    for part in range(parts):
        there = pa.compute.is_in(assigned["shard"], value_set=pa.array(names[part::parts], pa.string()))
        pq.write_table(assigned.filter(there), folder / f"assignments/part-{part:05d}.parquet", row_group_size=40)


def write_scores(workspace: Workspace, **columns: np.ndarray) -> None:
    """Parts parallel to the assignments; of each score its ranks too, overall and by label. NaN is null."""
    rows = workspace.samples
    label = np.array([name or "" for name in rows["label"].to_pylist()])
    table = {name: rows[name] for name in ("sample_id", "shard", "index")}
    for name, value in columns.items():
        of_class = np.full(len(value), np.nan)
        for one in set(label):
            of_class[label == one] = _ranks(value[label == one])
        for suffix, found in (("", value), ("_rank", _ranks(value)), ("_class_rank", of_class)):
            table[name + suffix] = pa.array(found.astype(np.float32), from_pandas=True)
    scores = pa.table(table)
    (workspace.folder / "scores/s").mkdir(parents=True, exist_ok=True)
    for path in sorted((workspace.folder / "clusters/c/assignments").iterdir()):
        names = pq.read_table(path, columns=["shard"])["shard"].unique()
        own = scores.filter(pa.compute.is_in(scores["shard"], value_set=names))
        pq.write_table(own, workspace.folder / "scores/s" / path.name)


def _ranks(value: np.ndarray) -> np.ndarray:
    """From 0 to 1; NaN where there is no value."""
    known, rank = ~np.isnan(value), np.full(len(value), np.nan)
    rank[known] = np.argsort(np.argsort(value[known], kind="stable")) / max(known.sum() - 1, 1)
    return rank
