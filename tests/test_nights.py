"""Nights on a small cluster: a node dies, the head dies, the store fails; each morning's manifest is the same."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence.nights import Night, Rough, Site, live_through
from tests.faulty_proxy import watched
from tests.recipes import write_rgb_archive
from tests.s3 import s3_server
from tests.small_cluster import small_cluster

SETTINGS = ("encoder.filters=8", "catalog.fit_samples=64", "cluster.k=6", "recurate.free_at=null")
QUICK = {
    "RAY_health_check_period_ms": "500",  # not 3000: how soon the head notices a dead node
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # not 60: how long a run waits for a dead head
}


def run_here(job: str, arguments: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = importlib.import_module(f"jobs.{job}").run(arguments)
    return result


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_local")
def test_whatever_breaks_at_night_the_morning_is_the_same(tmp_path: Path) -> None:
    paths = sorted(write_rgb_archive(tmp_path / "shards", tiles=280, shards=7).iterdir())
    first, second, third, *later, last = paths
    nights = [
        Night({path.name: path for path in (first, second, third)}),
        Night({path.name: path for path in later[:2]}, done=("node",)),
        Night({later[2].name: later[2], second.name: last}, gone=(first.name,), done=("head", "storage")),
    ]
    calm = Site(str(tmp_path / "calm"), {}, SETTINGS)  # on one machine's disk
    with s3_server() as server, watched(server) as proxy, small_cluster(head_cpus=0, **QUICK) as cluster:
        rough = Rough(Site(server.url, proxy.storage, SETTINGS), cluster, proxy, outage=4)
        rows = live_through(nights, calm, run_here, rough)
    assert [(row["new"], row["changed"], row["gone"]) for row in rows] == [(3, 0, 0), (2, 0, 0), (1, 1, 1)]
    assert len({row["manifest"] for row in rows}) == 3
