"""From a catalog to its clusters: sample, bank, fit, assignments, and the table of centroids.

Each step leaves its file when it is done, ``centroids.parquet`` last; a run that was stopped goes on from there.
"""

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.catalog.build import Catalog
from curation.catalog.store import CatalogStore, chunks, parquet_bytes
from curation.clustering.actors import ActorRows
from curation.clustering.assign import assign, embeddings
from curation.clustering.classifier import CLASSIFIER, fit_classifier
from curation.clustering.classifier import ROWS as BANK_ROWS
from curation.clustering.extend import RETIRED, neighbours_of, renumbered
from curation.clustering.hierarchy import FLAT, build_levels, fit_in_cells
from curation.clustering.kmeans import KMeans, default_k, fit_kmeans
from curation.clustering.nearest import Floats, Labels, Nearest, Vectors, nearest
from curation.clustering.points import Loader
from curation.clustering.references import WARN_BEYOND, References, fit_references, name_scenes
from curation.clustering.settings import ClusterConfig
from curation.errors import CurationError, RequestError
from curation.runtime import Resources
from curation.storage import Folder

log = logging.getLogger("curation")

ROWS = 32_768  # sampled rows a partition, about
PROBED = 2000  # points on which the search in cells is held against the exact one


def build_clusters(
    catalog: Catalog,
    mode: str,
    settings: ClusterConfig,
    seed: int,
    folder: Folder,
    resources: Resources,
    carried: Folder | None = None,
) -> dict[str, Any]:
    """Fit centroids, assign every row, and write ``centroids.parquet``, ``fit.json`` and ``assignments/…``.

    With a bank of two classes or more also ``classifier.npz``.

    Args:
        catalog: complete.
        mode: what the bank does: ``frozen``, ``seed`` or ``none``.
        settings: the group ``cluster``.
        seed: of everything drawn.
        folder: ``clusters/<id>``.
        resources: one actor a CPU, or a GPU, holds the sample; no result depends on how many.
        carried: earlier clusters, whose ids go on where their centroids do.

    Returns:
        What ``fit.json`` says.

    Raises:
        RequestError: the settings ask for what the data cannot give.
    """
    if not folder.exists("centroids.parquet"):
        if not folder.exists("fitted.parquet"):
            _Fit(catalog, settings, seed, resources).publish(mode, folder, carried)
        fitted = pq.read_table(pa.BufferReader(folder.read("fitted.parquet")))
        cells = np.load(io.BytesIO(folder.read("cells.npy"))) if folder.exists("cells.npy") else None
        rows, used = catalog.counts["kept"], np.flatnonzero(fitted["kind"].to_numpy() != RETIRED)
        centroids = np.stack(fitted["centroid"].to_numpy())
        spread = assign(
            catalog.store, catalog.shards, rows, centroids, folder, used=used, coarse=cells, device=resources.device
        )
        if spread.sizes.sum() != rows:
            raise CurationError(f"{spread.sizes.sum()} rows were assigned where the catalog counts {rows}")
        fitted = fitted.append_column("size", pa.array(spread.sizes, pa.int64()))
        fitted = fitted.append_column("distance_mean", pa.array(spread.mean, pa.float32()))
        fitted = fitted.append_column("distance_std", pa.array(spread.std, pa.float32()))
        folder.publish("centroids.parquet", parquet_bytes(fitted))
        folder.remove("fitted.parquet")
    if catalog.bank and not folder.exists(CLASSIFIER):
        ray.get(_fit_classifier.remote(catalog, folder))
    return dict(json.loads(folder.read("fit.json")))


@dataclass(frozen=True)
class Sampled:
    """Loads a share of the rows of some shards, chosen by the second half of their ids (which are hashes)."""

    store: CatalogStore
    shards: tuple[str, ...]
    share: float

    def __call__(self) -> NDArray[np.float16]:
        """``(n, d)``."""
        return np.concatenate([self._read(shard) for shard in self.shards])

    def _read(self, shard: str) -> NDArray[np.float16]:
        table = self.store.read(shard, ["sample_id", "embedding"])
        if self.share >= 1:
            return embeddings(table)
        half = pc.utf8_slice_codeunits(table["sample_id"], 16, 32)
        chosen: NDArray[np.bool_] = pc.less(half, f"{int(self.share * 2**64):016x}").to_numpy()
        return embeddings(table)[chosen]


@dataclass(frozen=True)
class Beyond:
    """Loads what lies farther from all references than 99 % of their bank."""

    loader: Loader
    references: References

    def __call__(self) -> Vectors:
        """``(n, d)``."""
        x = self.loader()
        _, distances = nearest(x, self.references.centroids)
        return x[distances > self.references.reach]


class _Fit:
    """Centroids in the making, and what there is to report of them."""

    def __init__(self, catalog: Catalog, settings: ClusterConfig, seed: int, resources: Resources) -> None:
        self.catalog, self.settings, self.seed, self.resources = catalog, settings, seed, resources
        self.rows = catalog.counts["kept"]
        self.levels = _levels(settings, self.rows)
        share = min(1.0, settings.sample / self.rows)
        together = max(1, round(ROWS * len(catalog.shards) / (share * self.rows)))
        groups = chunks(sorted(catalog.shards), together)
        self.loaders: list[Loader] = [Sampled(catalog.store, tuple(group), share) for group in groups]
        self.how: dict[str, Any] = {"spherical": settings.spherical, "max_iter": settings.max_iter, "tol": settings.tol}
        self.report: dict[str, Any] = {"rows": self.rows, "sample_share": share, "seed": seed, **self.how}
        self.cells: Floats | None = None

    def publish(self, mode: str, folder: Folder, carried: Folder | None) -> None:
        """Fit, and write ``cells.npy`` if there are cells, ``fit.json``, and last ``fitted.parquet``."""
        centroids, reference = self.fit(mode)
        k = len(centroids)
        scenes: list[str | None] = [None] * k
        shares: list[float | None] = [None] * k
        if self.catalog.bank:
            scenes, shares = ray.get(_name_scenes.remote(self.catalog, centroids))
        parents = build_levels(centroids, self.levels[-2::-1], self.seed, spherical=self.settings.spherical)
        table = pa.table(
            {
                "cluster": pa.array(range(k), pa.int32()),
                "kind": pa.array(np.where(reference, "reference", "free"), pa.string()),
                "scene": pa.array(scenes, pa.string()),
                "scene_share": pa.array(shares, pa.float32()),
                "neighbours": neighbours_of(centroids, np.arange(k), k, self.cells),
                "ancestors": pa.array(_ancestors(k, parents), pa.list_(pa.int32())),
                "centroid": pa.array(list(centroids), pa.list_(pa.float32())),
            }
        )
        if carried is not None:
            table, self.report["carried"] = renumbered(table, carried)
        if self.cells is not None:
            buffer = io.BytesIO()
            np.save(buffer, self.cells)
            folder.publish("cells.npy", buffer.getvalue())
        report = {**self.report, "k": table.num_rows, "levels": self.levels}
        folder.publish("fit.json", json.dumps(report, indent=1, sort_keys=True).encode())
        folder.publish("fitted.parquet", parquet_bytes(table))

    def fit(self, mode: str) -> tuple[Floats, NDArray[np.bool_]]:
        """Centroids ``(k, d)``, and which of them are the bank's."""
        k, free = self.levels[-1], self.settings.free
        if mode == "frozen":
            references, beyond = self.fit_references(k)
            points = self.hold([Beyond(loader, references) for loader in self.loaders])
            wanted = default_k(round(beyond * self.rows)) if free is None else free
            added, _ = self.fit_points(points, min(wanted, points.rows))
            centroids = np.concatenate([references.centroids, added])
            return centroids, np.arange(len(centroids)) < len(references.centroids)
        given = None
        if mode == "seed":
            room = k - (k // 2 if free is None else free)
            if room < 1:
                raise RequestError(f"cluster.free={free} leaves no reference among {k} clusters: lower it")
            given = self.fit_references(room)[0].centroids
        points = self.hold(self.loaders)
        if points.rows < k:
            raise RequestError(f"cluster.sample gives {points.rows} samples to fit {k} clusters on: raise it")
        centroids, moved = self.fit_points(points, k, given)
        return centroids, ~moved & (np.arange(k) < (0 if given is None else len(given)))

    def fit_references(self, room: int) -> tuple[References, float]:
        """The bank's centroids, and the share of the archive that they do not explain."""
        references: References = ray.get(_fit_bank.remote(self.catalog, room, self.seed, self.settings.spherical))
        counts = ray.get([_count_beyond.remote(loader, references) for loader in self.loaders])
        share = sum(beyond for _, beyond in counts) / max(1, sum(seen for seen, _ in counts))
        self.report["references"] = {
            "centroids": len(references.centroids),
            "reach": references.reach,
            "beyond_share": share,
        }
        if share > WARN_BEYOND:
            log.warning(
                "clusters: %.0f %% of the archive lies farther from every reference than 99 %% of the bank does: "
                "the bank does not show what is there",
                100 * share,
            )
        return references, share

    def hold(self, loaders: Sequence[Loader]) -> ActorRows:
        """Points in as many actors as the cluster has room for."""
        device = self.resources.device
        actors = self.resources.gpus if device == "cuda" else self.resources.cpus
        return ActorRows(loaders, self.seed, max(1, int(actors)), device)

    def fit_points(self, points: ActorRows, k: int, given: Floats | None = None) -> tuple[Floats, NDArray[np.bool_]]:
        """Centroids ``(k, d)``, the given ones first, and which of them were moved elsewhere on the way.

        So many centroids that they are fitted in cells leave the given ones where they are.
        """
        if not k:
            return points.head(0), np.zeros(0, bool)
        if k <= FLAT:
            fit = fit_kmeans(points, k, self.seed, init=given, **self.how)
            self.report |= _figures(fit)
            return fit.centroids, fit.moved
        given = points.head(0) if given is None else given
        fitted, fit = fit_in_cells(points, k - len(given), self.seed, **self.how)
        centroids, self.cells = np.concatenate([given, fitted]), fit.centroids
        agreement = _agreement(points.head(PROBED), centroids, self.cells)
        self.report |= {**_figures(fit), "cells": len(self.cells), "agreement": agreement}
        return centroids, np.zeros(k, bool)


def _levels(settings: ClusterConfig, rows: int) -> list[int]:
    """How many clusters there shall be on each level, from the top."""
    levels = list(settings.levels or [settings.k or default_k(rows)])
    if levels[-1] > rows:
        raise RequestError(f"{levels[-1]} clusters are asked for, but there are only {rows} samples: lower cluster.k")
    return levels


def _figures(fit: KMeans) -> dict[str, Any]:
    """The statistics of a fit, as they stand in ``fit.json``."""
    return {
        "passes_over_samples": fit.sampled,
        "iterations": len(fit.objective),
        "converged": fit.converged,
        "objective": fit.objective,
        "shift": fit.shift,
        "reseeded": fit.reseeded,
        "moved": int(fit.moved.sum()),
    }


def _ancestors(k: int, parents: Sequence[Labels]) -> list[list[int]]:
    """For each cluster those it belongs to on the levels above, upwards."""
    lineages: list[list[int]] = [[] for _ in range(k)]
    for own, lineage in enumerate(lineages):
        for above in parents:
            lineage.append(int(above[lineage[-1] if lineage else own]))
    return lineages


def _agreement(x: Floats, centroids: Floats, cells: Floats) -> float:
    """Share of points that the search in cells gives the truly nearest centroid."""
    exact, _ = Nearest(centroids)(x)
    found, _ = Nearest(centroids, coarse=cells)(x)
    return float((exact == found).mean())


@ray.remote(num_cpus=1)
def _fit_bank(catalog: Catalog, k: int, seed: int, spherical: bool) -> References:
    x, _ = _bank(catalog)
    return fit_references(x, k, seed, spherical)


@ray.remote(num_cpus=1)
def _name_scenes(catalog: Catalog, centroids: Floats) -> tuple[list[str | None], list[float | None]]:
    x, labels = _bank(catalog)
    return name_scenes(x, labels, centroids)


@ray.remote(num_cpus=1)
def _count_beyond(loader: Loader, references: References) -> tuple[int, int]:
    x = loader()
    _, distances = nearest(x, references.centroids)
    return len(x), int((distances > references.reach).sum())


@ray.remote(num_cpus=1)
def _fit_classifier(catalog: Catalog, folder: Folder) -> None:
    columns = ["sample_id", "label", "entropy", "embedding"]
    table = pa.concat_tables(catalog.store.read(shard, columns) for shard in catalog.bank)
    table = table.filter(table["label"].is_valid())
    by_hash = np.argsort(pc.utf8_slice_codeunits(table["sample_id"], 16, 32).to_numpy(), kind="stable")
    table = table.take(pa.array(by_hash[:BANK_ROWS]))
    labels = table["label"].to_numpy().astype(str)
    if len(set(labels.tolist())) > 1:
        folder.publish(CLASSIFIER, fit_classifier(embeddings(table), labels, table["entropy"].to_numpy()).to_bytes())


def _bank(catalog: Catalog) -> tuple[NDArray[np.float16], NDArray[np.str_]]:
    """Embeddings and labels of the labelled samples of the bank."""
    table = pa.concat_tables(catalog.store.read(shard, ["label", "embedding"]) for shard in catalog.bank)
    labelled = table["label"].is_valid().to_numpy()
    if labelled.sum() < 2:
        raise RequestError("references.url has fewer than two labelled samples: give each a label in its sidecar")
    return embeddings(table)[labelled], table["label"].drop_null().to_numpy().astype(str)
