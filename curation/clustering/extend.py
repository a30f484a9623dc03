"""Clusters that go on: new free centroids beside the old ones, and old ids carried over to a new fit."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.catalog.store import parquet_bytes
from curation.clustering.classifier import CLASSIFIER
from curation.clustering.kmeans import fit_kmeans
from curation.clustering.nearest import Floats, Nearest, Vectors
from curation.clustering.points import Rows
from curation.storage import Folder

NEIGHBOURS = 8
NUMBERS = pa.list_(pa.int32())
RETIRED = "retired"  # kind of a cluster that a refit has no centroid for; its id is not given again


def read_centroids(clusters: Folder) -> tuple[Floats, NDArray[np.int32]]:
    """The centroids in use ``(k, d)`` float32, and the ids of their clusters."""
    table = pq.read_table(pa.BufferReader(clusters.read("centroids.parquet")), columns=["kind", "centroid"])
    used = np.flatnonzero(table["kind"].to_numpy() != RETIRED)
    return np.stack(table["centroid"].to_numpy()[used]), used.astype(np.int32)


def add_free(clusters: Folder, target: Folder, far: Vectors, k: int, seed: int, spherical: bool) -> Folder:
    """Publish clusters with ``k`` more free centroids, fitted to samples that no centroid explains.

    Old clusters keep ids, members and statistics; new ones come after them, without members as yet.

    Args:
        clusters: ``clusters/<id>``, complete.
        target: the folder of all clusters.
        far: ``(n, d)``, in an order that does not depend on the run.
        k: at most n.
        seed: of the fit.
        spherical: as the old ones were fitted.

    Returns:
        The new ``clusters/<id>``; no assignments lie in it.
    """
    table = pq.read_table(pa.BufferReader(clusters.read("centroids.parquet")))
    added = fit_kmeans(Rows({0: lambda: far}, seed), k, seed, spherical=spherical).centroids
    name = hashlib.sha256(clusters.base.rpartition("/")[2].encode() + added.tobytes()).hexdigest()[:16]
    folder = target.child(name)
    if folder.exists("centroids.parquet"):
        return folder
    old, ids = read_centroids(clusters)
    number, all_ids = table.num_rows, np.concatenate([ids, table.num_rows + np.arange(k)]).astype(np.int32)
    like, _ = Nearest(old)(added)  # levels above: those of the nearest old cluster
    rows = {
        "cluster": pa.array(range(number, number + k), pa.int32()),
        "kind": pa.array(["free"] * k),
        "scene": pa.nulls(k, pa.string()),
        "scene_share": pa.nulls(k, pa.float32()),
        "neighbours": pa.array([[]] * k, NUMBERS),
        "ancestors": table["ancestors"].take(pa.array(ids[like])).combine_chunks(),
        "centroid": pa.array(list(added), pa.list_(pa.float32())),
        "size": pa.array([0] * k, pa.int64()),
        **{name: pa.array([0.0] * k, pa.float32()) for name in ("distance_mean", "distance_std")},
    }
    table = pa.concat_tables([table, pa.table([rows[name] for name in table.column_names], schema=table.schema)])
    near = neighbours_of(np.concatenate([old, added]), all_ids, table.num_rows)
    table = table.set_column(table.schema.get_field_index("neighbours"), "neighbours", near)
    for file in (CLASSIFIER, "cells.npy"):
        if clusters.exists(file):
            folder.publish(file, clusters.read(file))
    fit = json.loads(clusters.read("fit.json"))
    fit |= {"k": table.num_rows, "extends": clusters.base.rpartition("/")[2], "added": k}
    folder.publish("fit.json", json.dumps(fit, indent=1, sort_keys=True).encode())
    folder.publish("centroids.parquet", parquet_bytes(table))
    return folder


def carry_ids(old: Floats, old_ids: NDArray[np.int32], new: Floats, first: int) -> NDArray[np.int32]:
    """Ids for new centroids: an old one goes on in the centroid that is its nearest, and whose nearest it is.

    Args:
        old: ``(k, d)`` float32.
        old_ids: their ids.
        new: ``(m, d)`` float32.
        first: the first id that was never used, which the others are numbered from.

    Returns:
        ``(m,)``.
    """
    to_old, _ = Nearest(old)(new)
    to_new, _ = Nearest(new)(old)
    mutual = to_new[to_old] == np.arange(len(new))
    ids = np.empty(len(new), np.int32)
    ids[mutual] = old_ids[to_old[mutual]]
    ids[~mutual] = first + np.arange((~mutual).sum(), dtype=np.int32)
    return ids


def renumbered(table: pa.Table, old: Folder) -> tuple[pa.Table, dict[str, Any]]:
    """A new fit's clusters by the ids of the earlier ones that they go on from, with those that do not as `RETIRED`.

    Args:
        table: of the new fit: ``cluster``, ``kind``, ``scene``, ``scene_share``, ``neighbours``, ``ancestors``,
            ``centroid``.
        old: ``clusters/<id>``.

    Returns:
        The table by id, and how many ids go on, are retired and are new.
    """
    before = pq.read_table(pa.BufferReader(old.read("centroids.parquet")), columns=table.column_names)
    centroids, used = read_centroids(old)
    ids = carry_ids(centroids, used, np.stack(table["centroid"].to_numpy()), before.num_rows)
    number = max(before.num_rows, int(ids.max()) + 1)
    near = [[int(ids[one]) for one in row] for row in table["neighbours"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("neighbours"), "neighbours", pa.array(near, NUMBERS))
    retired = np.setdiff1d(np.arange(before.num_rows), ids)
    gone = before.take(pa.array(retired))
    levels = len(table["ancestors"][0])
    for name, values in (
        ("kind", pa.array([RETIRED] * len(retired), pa.string())),
        ("neighbours", pa.array([[]] * len(retired), NUMBERS)),
        ("ancestors", pa.array([[0] * levels] * len(retired), NUMBERS)),
    ):
        gone = gone.set_column(gone.schema.get_field_index(name), name, values)
    both = pa.concat_tables([table, gone.cast(table.schema)])
    place = np.empty(number, np.int64)
    place[np.concatenate([ids, retired])] = np.arange(number)
    both = both.take(pa.array(place)).set_column(0, "cluster", pa.array(range(number), pa.int32()))
    kept = int(np.isin(ids, used).sum())
    return both, {"ids": kept, "retired": len(used) - kept, "new": len(ids) - kept}


def neighbours_of(centroids: Floats, ids: NDArray[np.integer], number: int, cells: Floats | None = None) -> pa.Array:
    """The ids of the nearest other clusters of each, nearest first; none of those that are not in use.

    Args:
        centroids: ``(k, d)`` in use.
        ids: theirs.
        number: of all clusters.
        cells: see :class:`Nearest`.
    """
    _, found = Nearest(centroids, coarse=cells).search(centroids, NEIGHBOURS + 1)
    near: list[list[int]] = [[] for _ in range(number)]
    for own, row in enumerate(found):
        near[ids[own]] = [int(ids[c]) for c in row if c not in (own, -1)][:NEIGHBOURS]
    return pa.array(near, NUMBERS)
