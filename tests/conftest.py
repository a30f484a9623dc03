"""Fixtures that several test files share."""

import os

# As workers have it. Two test processes on two cores would else have four threads that spin while they wait for each
# other; set before anything loads numpy or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import curation.s3
import curation.storage.retries
from tests.browser import Browser, find_browser
from tests.command import Outcome, curate
from tests.faulty_proxy import Watched, watched
from tests.forked_workers import forked_workers
from tests.recipes import write_sample_archive
from tests.s3 import S3

SLOW = (
    "test_distill_job",
    "test_nights",
    "test_pretrain_jobs",
    "test_consistency",
    "test_training_feed",
    "test_training_pruner",
    "test_object_store",
    "test_resume",
    "test_compare",
    "test_recurate",
    "test_submit",
    "test_choose",
    "test_catalog",
    "test_metrics",
    "test_filter",
    "test_radiometry_catalog",
    "test_prune_containers",
    "test_manifest_stages",
)


def shares_pruned(path: Path) -> bool:
    """Whether a test file goes by the fixture `pruned`, which is made once a worker."""
    return "pruned: Pruned" in path.read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of workers side by side one takes a file whole, and one all files that share `pruned`.

    Not by ``--dist loadgroup``: xdist 3.8 renames tests for it in a way that pytest 9.2 does not see.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Whole(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "pruned" if shares_pruned(config.rootpath / file) else file

    return Whole(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    sharing = {path for path in {item.path for item in items} if shares_pruned(path)}
    items.sort(key=lambda item: (item.path not in sharing, item.path.stem not in SLOW))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A small local Ray, started once a session."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes longer than 30,
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # and this is a part of it
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")  # not 1000: the next test needs them
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # not 2: trainings here take less
    with forked_workers():
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real one, to look at pages with."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    with Browser(program) as opened:
        yield opened


@pytest.fixture
def proxy(s3: S3) -> Iterator[Watched]:
    """What a test's S3 server is asked for, and what of it fails."""
    with watched(s3) as one:
        yield one


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between tries."""
    for module in (curation.s3, curation.storage.retries):
        monkeypatch.setattr(module, "pause", lambda attempt: 0.0)


@pytest.fixture(scope="session")
def sample_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample ``archive`` and its ``references``."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample_archive(folder, tiles=400)
    return folder


@dataclass
class Pruned:
    """An undisturbed run of the main job; others are held against it.

    Attributes:
        arguments: what it was asked for, but for the workspace.
        seconds: how long it took.
    """

    archive: Path
    arguments: list[str]
    workspace: Path
    outcome: Outcome
    seconds: float

    @property
    def folder(self) -> Path:
        """Of the manifest."""
        return self.outcome.file("manifest").parent


@pytest.fixture(scope="session")
def pruned(sample_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """The sample archive, pruned."""
    workspace = tmp_path_factory.mktemp("workspace with spaces, and [brackets]=100%")
    arguments = [
        f"archive.url={sample_archive / 'archive'}",
        f"references.url={sample_archive / 'references'}",
        "catalog.fit_samples=64",
        "encoder.filters=8",
    ]
    began = time.monotonic()
    outcome = curate("prune", *arguments, f"workspace={workspace}")
    assert outcome.status == 0, outcome.stderr
    return Pruned(sample_archive, arguments, workspace, outcome, time.monotonic() - began)
