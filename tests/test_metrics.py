"""What Prometheus scrapes of a run is what the run counted, and the dashboard asks for nothing else."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import yaml

from curation.catalog.encode import Meter, ShardRows
from curation.metrics import COUNTERS, GAUGES, Metrics
from tests.command import start
from tests.recipes import write_rgb_archive
from tests.s3 import free_port

DOCS = Path(__file__).parent.parent / "docs"
KNOWN = {"RAY_AUTH_MODE": "token"}  # to a Ray that another process started
EXPORTED = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, int]]:
    """The address of a Ray, and the port that its metrics are scraped at."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_cluster", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    yield process.stdout.readline().strip(), port
    process.stdin.close()
    process.wait(60)


def scrape(port: int, run: str) -> dict[str, Counter[tuple[str, ...]]]:
    """Of each of our metrics the values by its own labels, of one run."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if "ray_curation_" in line]
    families = text_string_to_metric_families("\n".join(lines))
    keys = {name: labels for name, (_, labels) in (COUNTERS | GAUGES).items()}
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for family in families:
        for sample in family.samples:
            if sample.name in EXPORTED and sample.labels["run"] == run:
                name = sample.name.removeprefix("ray_").removesuffix("_total")
                found.setdefault(name, Counter())[tuple(sample.labels[key] for key in keys[name])] += sample.value
    return found


def test_what_prometheus_sees_of_a_run(cluster: tuple[str, int], tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    address, port = cluster
    write_rgb_archive(tmp_path / "archive", tiles=60, shards=3)
    (tmp_path / "archive" / "more").mkdir()
    (tmp_path / "archive" / "more" / "broken.jpg").write_bytes(b"\xff\xd8no picture")
    sizes = sum(path.stat().st_size for path in (tmp_path / "archive").rglob("*.*"))
    workspace, log = tmp_path / "workspace", tmp_path / "log.jsonl"
    arguments = [
        f"archive.url={tmp_path / 'archive'}",
        f"workspace={workspace}",
        f"runtime.address={address}",
        f"runtime.log_json={log}",
        "archive.max_bad_fraction=0.5",
        "encoder.filters=8",
    ]
    process = start("catalog", *arguments, **KNOWN)
    highest: dict[str, Counter[tuple[str, ...]]] = {}
    while process.poll() is None:
        for run in (path.stem for path in workspace.glob("runs/*.json")):
            for name, values in scrape(port, run).items():
                highest[name] = highest.get(name, Counter()) | values
        time.sleep(1)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    result = json.loads(stdout.splitlines()[-1])

    (path,) = workspace.glob("runs/*.json")
    record = json.loads(path.read_text())
    read = result["samples"] + result["quarantined"]
    assert result["quarantined"] == 1
    assert (record["samples"], record["quarantined"], record["shards"]) == (read, 1, result["shards"])
    assert record["result"] == result and record["bytes"] == sizes
    assert {"catalog", "encode"} <= set(record["stages"])
    rows = [pq.read_metadata(path).num_rows for path in workspace.rglob("catalog/**/*.parquet")]
    assert sum(rows) == result["samples"]

    assert highest["curation_stage"][("encode",)] == 1.0  # long enough to be seen once a second
    after = scrape(port, record["run"])  # what the driver told last came when it left
    for name in ("shards", "samples", "quarantined", "bytes"):
        assert after[f"curation_{name}"] == {("root0",): record[name]}, name
    spent = after["curation_encoder_seconds"]
    assert set(spent) == {("waiting",), ("encoding",)}
    assert 0 < sum(spent.values()) < 2 * record["stages"]["encode"] + 1

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["run"] for line in lines} == {record["run"]}
    assert next(line for line in lines if line["message"] == "encode ends")["samples"] == read


def test_without_ray_nothing_happens() -> None:
    metrics = Metrics("prune", "x")
    metrics.add("curation_samples", 5, root="root0")
    metrics.set("curation_drift", 0.5, measure="far_share")


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    panels = dashboard["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for text in expressions for name in re.findall(r"ray_curation_\w+", text)}
    assert asked == EXPORTED
    labels = {label for text in expressions for label in re.findall(r"by \(([^)]*)\)", text)}
    known = {"curate_job", "run", *(key for _, keys in (COUNTERS | GAUGES).values() for key in keys)}
    assert {label.strip() for text in labels for label in text.split(",")} <= known
    assert len({panel["id"] for panel in panels}) == len(panels) and all(panel["title"] for panel in panels)


def test_the_docs_tell_every_metric_and_their_yaml_is_some() -> None:
    text = (DOCS / "watching.md").read_text()
    assert set(re.findall(r"ray_curation_\w+", text)) >= EXPORTED
    assert set(re.findall(r"ray_curation_\w+", text)) <= EXPORTED
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    loaded = [yaml.safe_load(block) for block in blocks]
    assert any("scrape_configs" in block for block in loaded) and any("groups" in block for block in loaded)


def test_how_long_an_encoder_waits() -> None:
    told: Counter[str] = Counter()
    ledger = SimpleNamespace(advance=SimpleNamespace(remote=lambda root, figures: told.update(figures)))
    rows = SimpleNamespace(counts=(0, 0))

    def decoded() -> Iterator[list[Any]]:
        for _ in range(5):
            time.sleep(0.03)
            yield []

    meter = Meter(ledger, "root0", cast(ShardRows, rows))
    for number, _ in enumerate(meter.waiting(decoded())):
        time.sleep(0.01)
        rows.counts = (32 * (number + 1), number)
    time.sleep(0.05)  # the last batch is encoded when the chunks are over
    rows.counts = (150, 5)
    meter.tell()
    assert (told["samples"], told["quarantined"]) == (150, 5)
    assert told["waiting"] >= 0.15 and told["encoding"] >= 0.1
