"""``curate pretrain`` from outside: an archive is curated with features that were learned from it alone."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from curation.errors import RequestError
from jobs import pretrain, prune, verify
from tests.recipes import write_rgb_archive

SMALL = [
    "catalog.fit_samples=64",
    "encoder.filters=8",
    "pretrain.method=simsiam",
    "pretrain.architecture=resnet10t",
    "pretrain.size=16",
    "pretrain.batch=16",
    "pretrain.epochs=2",
    "runtime.num_cpus=2",
]


def file_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


@pytest.fixture(scope="module")
def archive(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    write_rgb_archive(folder / "archive", tiles=120, size=32, shards=2, seed=0)
    write_rgb_archive(folder / "test", tiles=48, size=32, shards=1, seed=1)
    return folder


def test_an_archive_is_pruned_with_features_learned_from_it_alone(archive: Path, tmp_path: Path) -> None:
    common = [f"archive.url={archive / 'archive'}", f"workspace={tmp_path}"]
    told = pretrain.run([*SMALL, *common, f"pretrain.test.url={archive / 'test'}", "pretrain.probe=1"])
    assert told["steps"] == 2 * 120 // 16
    assert [probe["step"] for probe in told["probes"]] == [0, 8, 15]
    assert told["pruning_share"] == 0
    assert file_of(told["encoder"]).is_file()
    assert not (tmp_path / "pretrained" / told["run"] / "ray").exists()
    again = pretrain.run([*SMALL, *common, f"pretrain.test.url={archive / 'test'}", "pretrain.probe=1"])
    assert again == told
    kept = prune.run(["encoder=timm", f"encoder.checkpoint={told['encoder']}", "select.budget=0.25", *common])
    assert kept["kept"] == 30
    assert verify.run([kept["manifest"], *common])["ok"]


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """SIGKILL to one training worker, once there is a checkpoint that is not the last."""
    while not list(folder.glob("pretrained/*/checkpoints/*.pt")):
        time.sleep(0.02)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and "RayTrainWorker" in (entry / "cmdline").read_text():
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
                return
        except OSError:
            continue


def test_a_killed_worker_changes_nothing(archive: Path, tmp_path: Path) -> None:
    """Two ranks; one dies in mid-pass; Ray Train starts both again from the newest checkpoint."""
    common = [*SMALL, f"archive.url={archive / 'archive'}", f"workspace={tmp_path}", "pretrain.workers=2"]
    common += ["pretrain.checkpoint=2", "pretrain.epochs=4"]
    killed: list[int] = []
    thread = threading.Thread(target=kill_a_worker, args=(tmp_path, killed))
    thread.start()
    told: dict[str, Any] = pretrain.run(common)
    thread.join()
    assert killed
    cut = file_of(told["encoder"]).read_bytes()
    (tmp_path / "pretrained" / told["run"]).rename(tmp_path / "elsewhere")
    assert file_of(pretrain.run(common)["encoder"]).read_bytes() == cut


def test_what_cannot_be_is_one_line(archive: Path, tmp_path: Path) -> None:
    common = [*SMALL, f"archive.url={archive / 'archive'}", f"workspace={tmp_path}"]
    with pytest.raises(RequestError, match="120 samples give no step"):
        pretrain.run([*common, "pretrain.batch=128"])
    with pytest.raises(RequestError, match="pretrain.workers"):
        pretrain.run([*common, "runtime.device=cuda"])
