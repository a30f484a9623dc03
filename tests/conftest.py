"""Fixtures that several test files share."""

import os
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A small local Ray, started once a session."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes longer than 30
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    yield
    ray.shutdown()
