"""Clusters that go on: more of them for what none explains, and ids that outlive a refit."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clustering.extend import RETIRED, add_free, carry_ids, read_centroids, renumbered
from curation.storage import Folder

DIM = 6


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def write(folder: Path, centroids: np.ndarray) -> Folder:
    k = len(centroids)
    table = {
        "cluster": pa.array(range(k), pa.int32()),
        "kind": ["free"] * k,
        "scene": pa.array([f"scene {i}" for i in range(k)]),
        "scene_share": pa.array([0.5] * k, pa.float32()),
        "neighbours": pa.array([[(i + 1) % k] for i in range(k)], pa.list_(pa.int32())),
        "ancestors": pa.array([[i % 2] for i in range(k)], pa.list_(pa.int32())),
        "centroid": pa.array(list(centroids), pa.list_(pa.float32())),
        "size": pa.array([10] * k, pa.int64()),
        "distance_mean": pa.array([0.3] * k, pa.float32()),
        "distance_std": pa.array([0.1] * k, pa.float32()),
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "centroids.parquet")
    (folder / "fit.json").write_text("{}")
    return Folder(str(folder))


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_ids_are_carried_to_whom_they_are_nearest_both_ways(k: int, m: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    old, new = unit(random.normal(size=(k, DIM))), unit(random.normal(size=(m, DIM)))
    old_ids = random.choice(1000, k, replace=False).astype(np.int32)
    ids = carry_ids(old, old_ids, new, 1000)
    assert len(set(ids.tolist())) == m
    distance = np.linalg.norm(old[:, None].astype(float) - new[None], axis=2)
    for j in range(m):
        i = int(distance[:, j].argmin())
        carried = int(distance[i].argmin()) == j
        assert ids[j] == old_ids[i] if carried else ids[j] >= 1000


def test_a_refit_to_the_same_centroids_carries_all(tmp_path: Path) -> None:
    centroids = unit(np.random.default_rng(0).normal(size=(12, DIM)))
    old = write(tmp_path / "old", centroids)
    table = pq.read_table(tmp_path / "old/centroids.parquet").drop(["size", "distance_mean", "distance_std"])
    order = np.random.default_rng(1).permutation(12)
    found, told = renumbered(table.take(pa.array(order)), old)
    assert np.array_equal(np.stack(found["centroid"].to_numpy()), centroids)
    assert told == {"ids": 12, "retired": 0, "new": 0}


def test_what_a_refit_drops_is_retired_and_never_given_again(tmp_path: Path) -> None:
    centroids = unit(np.random.default_rng(0).normal(size=(12, DIM)))
    old = write(tmp_path / "old", centroids)
    table = pq.read_table(tmp_path / "old/centroids.parquet")
    other = unit(np.random.default_rng(5).normal(size=(3, DIM)))
    new = pa.concat_tables([table.slice(2, 10), table.slice(0, 3)]).drop(["size", "distance_mean", "distance_std"])
    near = pa.array([[0]] * 13, pa.list_(pa.int32()))
    new = new.set_column(4, "neighbours", near).set_column(
        6, "centroid", pa.array([*centroids[2:], *other], pa.list_(pa.float32()))
    )
    found, told = renumbered(new, old)
    kinds = found["kind"].to_pylist()
    carried = [i for i in range(2, 12) if kinds[i] != RETIRED]
    assert told["ids"] >= len(carried) and told["ids"] + told["new"] == 13
    for i in carried:
        assert found["centroid"][i].as_py() == centroids[i].tolist()
    assert len(found) == 12 + told["new"] and kinds.count(RETIRED) == told["retired"]
    folder = tmp_path / "next"
    folder.mkdir()
    pq.write_table(found, folder / "centroids.parquet")
    _, used = read_centroids(Folder(str(folder)))
    assert set(used.tolist()) == {i for i, kind in enumerate(kinds) if kind != RETIRED}


def test_new_centroids_come_after_the_old_ones_which_stay_as_they_are(tmp_path: Path) -> None:
    centroids = unit(np.random.default_rng(0).normal(size=(5, DIM)))
    old = write(tmp_path / "clusters/old", centroids)
    far = unit(np.random.default_rng(2).normal(size=(40, DIM))).astype(np.float16)
    folder = add_free(old, Folder(str(tmp_path / "clusters")), far, 3, 0, True)
    again = add_free(old, Folder(str(tmp_path / "clusters")), far, 3, 0, True)
    assert folder.base == again.base
    was, now = (pq.read_table(Path(one.base) / "centroids.parquet") for one in (old, folder))
    same = [name for name in was.column_names if name != "neighbours"]
    assert now.slice(0, 5).select(same).equals(was.select(same)) and len(now) == 8
    assert now["size"].to_pylist()[5:] == [0, 0, 0] and now["kind"].to_pylist()[5:] == ["free"] * 3
    assert json.loads(folder.read("fit.json"))["added"] == 3
    distance = np.linalg.norm(
        np.stack(now["centroid"].to_numpy())[:, None] - np.stack(now["centroid"].to_numpy()), axis=2
    )
    for own, near in enumerate(now["neighbours"].to_pylist()):
        assert near[0] == int(np.argsort(distance[own])[1])
