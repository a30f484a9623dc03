"""From a catalog to its clusters: the files, the three ways of the bank, going on after a stop, and wrong requests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.archive.sample import sample_id
from curation.catalog.build import Catalog
from curation.catalog.sources import SOURCES_SCHEMA
from curation.catalog.store import CatalogStore, parquet_bytes
from curation.clustering import assign, build
from curation.clustering.classifier import Classifier
from curation.clustering.nearest import nearest
from curation.clustering.settings import ClusterConfig
from curation.errors import RequestError
from curation.runtime import Resources
from curation.storage import Folder

DIM = 8
CENTRES = np.random.default_rng(7).standard_normal((6, DIM))


def vectors(classes: np.ndarray, seed: int) -> np.ndarray:
    x = CENTRES[classes] + 0.2 * np.random.default_rng(seed).standard_normal((len(classes), DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def write_shard(store: CatalogStore, shard: str, classes: np.ndarray, seed: int) -> None:
    """A catalog file with the columns that clustering reads; every third sample was quarantined."""
    rows = vectors(classes, seed)
    table = pa.table(
        {
            "sample_id": [sample_id(shard, str(i)) for i in range(len(rows))],
            "shard": [shard] * len(rows),
            "index": pa.array([i * 3 // 2 for i in range(len(rows))], pa.int64()),
            "label": [f"class {c}" for c in classes],
            "entropy": pa.array(5 + classes, pa.float32()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIM),
        }
    )
    store.own.publish(store.path(shard), parquet_bytes(table, {}))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Five shards with classes 0 to 5, and a bank of classes 0 to 3 only."""
    store = CatalogStore(Folder(str(tmp_path_factory.mktemp("workspace"))), "id")
    rng, shards = np.random.default_rng(0), [f"root0/{name}.tar" for name in ("c", "a", "b/x", "e", "d")]
    for number, shard in enumerate(shards):
        write_shard(store, shard, rng.integers(0, 6, 100 + 40 * number), number)
    write_shard(store, "references/bank.tar", np.repeat(np.arange(4), 30), 99)
    unused: Any = None
    counts = {"read": 1350, "kept": 900, "quarantined": 450}
    return Catalog(
        store,
        unused,
        tuple(sorted(shards)),
        ("references/bank.tar",),
        counts,
        "",
        None,
        (),
        SOURCES_SCHEMA.empty_table(),
    )


def run(catalog: Catalog, folder: Folder, mode: str = "none", cpus: float = 2, **settings: Any) -> dict[str, Any]:
    return build.build_clusters(catalog, mode, ClusterConfig(**settings), 0, folder, Resources(cpus, 0, "cpu"))


def centroids(folder: Folder) -> pa.Table:
    return pq.read_table(pa.BufferReader(folder.read("centroids.parquet")))


def parts(folder: Folder) -> list[pa.Table]:
    return [pq.read_table(pa.BufferReader(folder.read(f.path))) for f in folder.list("assignments")]


def content(folder: Folder) -> dict[str, bytes]:
    return {file.path: folder.read(file.path) for file in folder.list()}


def test_files_say_what_they_promise(
    ray_local: None, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assign, "ROWS", 400)
    folder = Folder(str(tmp_path))
    report = run(catalog, folder, k=12)
    assert report["k"] == 12 and report["rows"] == 900 and len(report["objective"]) == report["iterations"]
    table, written = centroids(folder), parts(folder)
    assert len(written) == 3 and sum(map(len, written)) == 900
    where = [set(part["shard"].to_pylist()) for part in written]
    assert sum(map(len, where)) == 5 == len(set.union(*where))
    for part in written:
        order = list(zip(part["shard"].to_pylist(), part["index"].to_pylist(), strict=True))
        assert order == sorted(order)
    rows = pa.concat_tables(written)
    shard = "root0/b/x.tar"
    vectors = assign.embeddings(catalog.store.read(shard))
    labels, distances = nearest(vectors, np.stack(table["centroid"].to_numpy()))
    mine = rows.filter(pa.compute.equal(rows["shard"], shard))
    np.testing.assert_array_equal(mine["cluster"], labels)
    np.testing.assert_array_equal(mine["distance"], distances)
    for cluster in range(12):
        distance = rows["distance"].to_numpy()[rows["cluster"].to_numpy() == cluster].astype(float)
        assert table["size"][cluster].as_py() == len(distance)
        assert table["distance_mean"][cluster].as_py() == pytest.approx(distance.mean(), rel=1e-5)
        assert table["distance_std"][cluster].as_py() == pytest.approx(distance.std(), abs=1e-5)
    vectors = np.stack(table["centroid"].to_numpy()).astype(float)
    true = np.linalg.norm(vectors[:, None] - vectors, axis=2).argsort(1)[:, 1:9]
    np.testing.assert_array_equal(np.stack(table["neighbours"].to_numpy()), true)


def test_frozen_references_stay_and_free_centroids_take_what_the_bank_never_saw(
    ray_local: None, catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder(str(tmp_path))
    report = run(catalog, folder, "frozen", k=8, free=4)
    table = centroids(folder)
    assert table["kind"].to_pylist() == ["reference"] * 8 + ["free"] * 4
    assert set(table["scene"].to_pylist()[:8]) == {f"class {c}" for c in range(4)}
    assert report["references"]["beyond_share"] == pytest.approx(1 / 3, abs=0.08)
    assert "the bank does not show what is there" in caplog.text
    unseen, _ = nearest(vectors(np.repeat([4, 5], 50), 5), np.stack(table["centroid"].to_numpy()))
    assert (unseen >= 8).mean() > 0.9


def test_seeding_references_come_first_and_move(ray_local: None, catalog: Catalog, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    run(catalog, folder, "seed", k=12)
    table = centroids(folder)
    assert table.num_rows == 12
    assert set(table["kind"].to_pylist()[6:]) == {"free"} and "reference" in table["kind"].to_pylist()[:6]


def test_a_bank_of_two_classes_gives_a_classifier(ray_local: None, catalog: Catalog, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    run(catalog, folder, "seed", k=12)
    made = Classifier.from_bytes(folder.read("classifier.npz"))
    assert made.classes.tolist() == [f"class {c}" for c in range(4)]
    assert made.bank.shape == (120, DIM)
    assert made.least_entropy == 5
    classes = np.repeat(np.arange(4), 20)
    assert (made.probabilities(vectors(classes, 3)).argmax(1) == classes).mean() > 0.95
    folder.remove("classifier.npz")  # of a run before there were any
    run(catalog, folder, "seed", k=12)
    assert folder.read("classifier.npz") == made.to_bytes()


def test_number_of_actors_does_not_show(ray_local: None, catalog: Catalog, tmp_path: Path) -> None:
    one, two = Folder(str(tmp_path / "1")), Folder(str(tmp_path / "2"))
    run(catalog, one, "seed", cpus=1, k=10, levels=[3, 10])
    run(catalog, two, "seed", cpus=2, k=10, levels=[3, 10])
    assert content(one) == content(two)
    ancestors = [row for [row] in centroids(one)["ancestors"].to_pylist()]
    assert set(ancestors) == {0, 1, 2}


def test_a_stopped_run_goes_on_and_ends_alike(
    ray_local: None, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assign, "ROWS", 400)
    whole, stopped = Folder(str(tmp_path / "1")), Folder(str(tmp_path / "2"))
    run(catalog, whole, k=9)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "assign", fail)
        with pytest.raises(KeyboardInterrupt):
            run(catalog, stopped, k=9)
    stopped.publish("assignments/part-00001.parquet", whole.read("assignments/part-00001.parquet"))
    before = stopped.info("assignments/part-00001.parquet")
    monkeypatch.setattr(build, "_Fit", fail)  # it is not fitted a second time
    run(catalog, stopped, k=9)
    assert stopped.info("assignments/part-00001.parquet") == before
    assert content(stopped) == content(whole)


def test_a_sample_is_a_share_of_the_ids(ray_local: None, catalog: Catalog, tmp_path: Path) -> None:
    some = build.Sampled(catalog.store, catalog.shards, 0.5)()
    assert 350 < len(some) < 550
    report = run(catalog, Folder(str(tmp_path)), k=5, sample=450)
    assert report["sample_share"] == 0.5 and json.dumps(report)


@pytest.mark.parametrize(
    ("mode", "settings", "says"),
    [
        ("none", {"k": 901}, "there are only 900 samples"),
        ("none", {"levels": [10, 10]}, "must rise"),
        ("none", {"levels": [2, 8], "k": 9}, "leave one out"),
        ("none", {"k": 50, "sample": 20}, "raise it"),
        ("seed", {"k": 10, "free": 10}, "lower it"),
    ],
)
def test_what_cannot_be_is_refused(
    ray_local: None, catalog: Catalog, tmp_path: Path, mode: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        run(catalog, Folder(str(tmp_path)), mode, **settings)
    assert not list(tmp_path.iterdir())
