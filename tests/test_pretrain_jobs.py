"""``curate pretrain`` from outside: an archive is curated with features that were learned from it alone."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from curation.errors import RequestError
from curation.runtime import Resources
from curation.training.group import Group
from curation.training.pretrain import Room, room
from curation.training.settings import PretrainConfig, PruneConfig
from jobs import pretrain, prune, verify
from tests.recipes import write_rgb_archive

SMALL = [
    "catalog.fit_samples=64",
    "encoder.filters=8",
    "pretrain.method=simsiam",
    "pretrain.architecture=test_resnet",
    "pretrain.size=16",
    "pretrain.batch=16",
    "pretrain.epochs=2",
    "runtime.num_cpus=2",
    "runtime.max_actors=1",
]


def file_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


@pytest.fixture(scope="module")
def folder(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, a side set, and one workspace: its catalog is made once."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_rgb_archive(folder / "archive", tiles=120, size=32, shards=2, seed=0)
    write_rgb_archive(folder / "test", tiles=48, size=32, shards=1, seed=1)
    return folder


def arguments(folder: Path) -> list[str]:
    return [f"archive.url={folder / 'archive'}", f"workspace={folder / 'workspace'}"]


def test_an_archive_is_pruned_with_features_learned_from_it_alone(folder: Path) -> None:
    common, probed = arguments(folder), [f"pretrain.test.url={folder / 'test'}", "pretrain.probe=1"]
    told = pretrain.run([*SMALL, *common, *probed])
    assert told["steps"] == 2 * 120 // 16
    assert [probe["step"] for probe in told["probes"]] == [0, 8, 15]
    assert told["pruning_share"] == 0
    assert file_of(told["encoder"]).is_file()
    assert not (folder / "workspace" / "pretrained" / told["run"] / "ray").exists()
    assert pretrain.run([*SMALL, *common, *probed]) == told
    timm = ["encoder=timm", f"encoder.checkpoint={told['encoder']}", "runtime.max_actors=1"]
    kept = prune.run([*timm, "select.budget=0.25", *common])
    assert kept["kept"] == 30
    assert verify.run([kept["manifest"], *common])["ok"]


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """SIGKILL to one training worker, once there is a checkpoint."""
    while not list(folder.glob("workspace/pretrained/*/checkpoints/*.pt")):
        time.sleep(0.02)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and "RayTrainWorker" in (entry / "cmdline").read_text():
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
                return
        except OSError:
            continue


@pytest.mark.long
def test_a_killed_worker_changes_nothing(folder: Path) -> None:
    """Two ranks; one dies in mid-pass; Ray Train starts both again from the newest checkpoint."""
    common = [*SMALL, *arguments(folder), "pretrain.workers=2", "pretrain.checkpoint=2", "pretrain.epochs=2"]
    common += [f"pretrain.prune.{key}" for key in ("strategy=balanced", "keep=0.5", "warm=1", "every=1")]
    killed: list[int] = []
    thread = threading.Thread(target=kill_a_worker, args=(folder, killed), daemon=True)
    thread.start()
    told: dict[str, Any] = pretrain.run(common)
    thread.join()
    assert killed
    assert told["pruning_share"] > 0
    cut = file_of(told["encoder"]).read_bytes()
    (folder / "workspace" / "pretrained" / told["run"]).rename(folder / "elsewhere")
    assert file_of(pretrain.run(common)["encoder"]).read_bytes() == cut


def test_what_cannot_be_is_one_line(folder: Path) -> None:
    common = [*SMALL, *arguments(folder)]
    with pytest.raises(RequestError, match="120 samples give no step"):
        pretrain.run([*common, "pretrain.batch=128"])
    with pytest.raises(RequestError, match="pretrain.prune.keep=0.1 of 120 samples are fewer"):
        pretrain.run([*common, "pretrain.prune.strategy=random", "pretrain.prune.keep=0.1"])


def test_the_cluster_is_shared_out() -> None:
    settings = PretrainConfig(workers=2, prune=PruneConfig(strategy="balanced"))
    assert room(settings, Resources(2, 0, "cpu")) == Room(Group(2, 0.5, 0), 1, 0)
    assert room(settings, Resources(16, 2, "cuda")) == Room(Group(2, 1, 0.6), 2, 0.4)
    assert room(settings, Resources(16, 8, "cuda")) == Room(Group(2, 1, 1), 6, 1)
    assert room(replace(settings, prune=PruneConfig()), Resources(2, 0, "cpu")) == Room(Group(2, 1, 0), 1, 0)
    with pytest.raises(RequestError, match="1 CPU has no room for pretrain.workers=2"):
        room(settings, Resources(1, 0, "cpu"))
    with pytest.raises(RequestError, match="the cluster has 1"):
        room(settings, Resources(8, 1, "cuda"))
