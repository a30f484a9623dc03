"""A draw with an encoder on Ray: as one process would draw, whoever does it and however often it is killed."""

import hashlib
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from curation.catalog.store import CatalogStore
from curation.clustering.nearest import nearest, one_thread
from curation.clustering.points import Rows
from curation.encoders.base import in_batches
from curation.errors import CurationError, RequestError
from curation.selection.sampling import split_ids
from curation.storage import Folder
from curation.training import draws, pruner
from curation.training.index import read_index
from curation.training.pruner import RedrawSpec, groups_of, redraw
from curation.training.settings import PruneConfig
from tests.training_recipes import write_tiles

COUNTS = {"root0/a/2.tar": 150, "root0/a/10.tar": 170, "root0/b.tar": 1, "root0/empty.tar": 0, "root1/a.tar": 180}
TOTAL = sum(COUNTS.values())
ENCODER = "encoder.npy"


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner, "ROWS", 150)


def load(folder: Folder, encoder: str, device: str, log: str = "", pause: float = 0.0):
    """A projection of the pixels that is as long as its file says."""
    matrix = np.load(folder.full(encoder))

    def embed(tiles: np.ndarray) -> np.ndarray:
        if log:
            Path(log, f"{time.time_ns()}").touch()
            time.sleep(pause)
        return tiles.reshape(len(tiles), -1).astype(np.float32) @ matrix

    return embed


@pytest.fixture
def spec(tmp_path: Path) -> RedrawSpec:
    """An archive of five shards, and how to prune it."""
    tiles = write_tiles(tmp_path, COUNTS)
    for shard, count in COUNTS.items():
        ids = [hashlib.blake2b(f"{shard} {i}".encode(), digest_size=16).hexdigest() for i in range(count)]
        path = tmp_path / "catalog" / "feed" / f"{shard}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"sample_id": pa.array(ids, pa.string())}), path)
    (tmp_path / "pretrained" / "run").mkdir(parents=True)
    np.save(
        tmp_path / "pretrained" / "run" / "encoder.npy",
        np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32),
    )
    store = CatalogStore(Folder(str(tmp_path)), "feed")
    run = Folder(str(tmp_path / "pretrained" / "run"))
    prune = PruneConfig("balanced", keep=0.2, diversity=0.5)
    return RedrawSpec(tiles, store, tuple(COUNTS), run, prune, seed=3, load=load)


def drawn(spec: RedrawSpec, version: int) -> tuple[list[int], list[float]]:
    index = read_index(spec.folder.child("index"), version)
    assert index.total == TOTAL and index.kept == len(index.rows)
    return index.rows.tolist(), index.weights.tolist()


def in_one_process(spec: RedrawSpec, version: int) -> tuple[list[int], list[float]]:
    """The same without Ray and files."""
    forward, shards = load(spec.folder, ENCODER, "cpu"), sorted(COUNTS)
    tiles = [spec.tiles.read(shard) for shard in shards]
    vectors = [in_batches(some, pruner.BATCH, forward) for some in tiles]
    words = [split_ids(spec.store.read(shard)["sample_id"])[0] for shard in shards]
    groups = [shards.index("root0/a/10.tar"), shards.index("root0/a/2.tar"), slice(2, 5)]
    x = [np.concatenate(vectors[g] if isinstance(g, slice) else [vectors[g]]).astype(np.float16) for g in groups]
    w = [np.concatenate(words[g] if isinstance(g, slice) else [words[g]]) for g in groups]
    levels = draws.choose_levels(None, TOTAL, TOTAL)
    points = Rows(dict(enumerate(partial(np.copy, part) for part in x)), draws.fit_seed(3, version))
    leaves = draws.fit(points, levels, 3, version)
    with one_thread():
        leaf, distance = nearest(np.concatenate(x), leaves.centroids)
    made = draws.draw(leaf, distance, np.concatenate(w), leaves.ancestors, TOTAL // 5, 0.5, 3, version)
    return made.rows.tolist(), made.weights.tolist()


def test_as_one_process_draws_and_for_any_number_of_workers(spec, ray_local):
    assert [group.start for group in groups_of(spec)] == [0, 170, 320]
    seconds = redraw(spec, 1, ENCODER)
    assert set(seconds) == {"embedding", "clustering", "drawing"} and min(seconds.values()) > 0
    assert drawn(spec, 1) == in_one_process(spec, 1)
    assert not spec.folder.exists("draws/000001")
    other = replace(spec, folder=Folder(f"{spec.folder.url}-2"), workers=2, cpus=0.5)
    other.folder.publish(ENCODER, spec.folder.read(ENCODER))
    redraw(other, 1, ENCODER)
    for name in ("rows.npy", "weights.npy", "index.json"):
        assert other.folder.read(f"index/000001/{name}") == spec.folder.read(f"index/000001/{name}")

    before = spec.folder.read("index/000001/index.json")
    np.save(spec.folder.full("later.npy"), np.ones((32, 4), np.float32))
    assert set(redraw(spec, 1, "later.npy").values()) == {0.0}  # it is there
    assert spec.folder.read("index/000001/index.json") == before


def test_killed_in_mid_draw_it_goes_on(spec, tmp_path, ray_local):
    log = tmp_path / "log"
    log.mkdir()
    slow = replace(spec, load=partial(load, log=str(log), pause=1.0))

    @ray.remote(max_retries=0)
    def other_process() -> None:
        pruner.ROWS = 150
        (log.parent / "pid").write_text(str(os.getpid()))
        redraw(slow, 1, ENCODER)

    running = other_process.remote()
    place = Path(spec.folder.base) / "draws" / "000001"
    for _ in range(600):
        if done := [file.name for file in place.rglob("part-*.npz") if not file.name.startswith(".")]:
            break
        time.sleep(0.1)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(running)
    assert 1 <= len(done) < 3 and not spec.folder.exists("index")
    time.sleep(1.5)  # what its actor was in the middle of
    done = [file.name for file in place.rglob("part-*.npz")]
    before = len(list(log.iterdir()))

    redraw(replace(slow, load=partial(load, log=str(log))), 1, ENCODER)
    assert len(list(log.iterdir())) - before == 3 - len(done)  # a forward a group: what was there was not embedded
    assert drawn(spec, 1) == in_one_process(spec, 1)


def test_a_killed_worker_starts_again(spec, tmp_path, ray_local):
    marker = tmp_path / "killed"

    def deadly(folder: Folder, path: str, device: str):
        forward = load(folder, path, device)

        def embed(tiles: np.ndarray) -> np.ndarray:
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(tiles)

        return embed

    redraw(replace(spec, load=deadly), 2, ENCODER)
    assert marker.exists() and drawn(spec, 2) == in_one_process(spec, 2)


def test_a_share_is_embedded_and_the_rest_waits_for_another_draw(spec, ray_local):
    half = replace(spec, prune=replace(spec.prune, share=0.5, diversity=0.0))
    words = np.concatenate([split_ids(spec.store.read(shard)["sample_id"])[0] for shard in sorted(COUNTS)])
    seen = []
    for version in (1, 2):
        redraw(half, version, ENCODER)
        rows, weights = drawn(half, version)
        assert len(rows) == TOTAL // 5 and min(weights) >= 2
        assert draws.in_share(words, 0.5, 3, version)[rows].all()
        seen.append(set(rows))
    assert len(seen[0] & seen[1]) < len(seen[0])
    with pytest.raises(RequestError, match=r"share=0.1 embeds fewer samples than .*keep=0.2 keeps"):
        replace(spec, prune=replace(spec.prune, share=0.1))


def test_random_needs_no_encoder(spec, ray_local):
    random = replace(spec, prune=PruneConfig("random", keep=0.2))
    redraw(random, 4, "")
    words = np.concatenate([split_ids(spec.store.read(shard)["sample_id"])[0] for shard in sorted(COUNTS)])
    made = draws.random(words, 0.2, 3, 4)
    assert drawn(random, 4) == (made.rows.tolist(), made.weights.tolist())


def test_an_encoder_that_has_diverged_is_told(spec, ray_local):
    np.save(spec.folder.full(ENCODER), np.full((32, 8), np.nan, np.float32))
    with pytest.raises(CurationError, match="not finite"):
        redraw(spec, 1, ENCODER)
    assert not spec.folder.exists("index")
