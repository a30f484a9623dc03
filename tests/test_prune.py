"""The main job from outside: what comes out adds up, and is the same however it was run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import explain, prune, verify
from tests.command import Outcome, curate
from tests.conftest import Pruned


def again(pruned: Pruned, *more: str) -> dict[str, Any]:
    """The same job in the same workspace, in this process."""
    return prune.run([*pruned.arguments, f"workspace={pruned.workspace}", *more])


def kept(result: dict[str, Any]) -> Any:
    return pq.read_table(Outcome(0, json.dumps(result), "").file("manifest").parent / "manifest.parquet")


def test_every_sample_is_accounted_for(pruned: Pruned) -> None:
    result = pruned.outcome.result
    read = good = bad = 0
    for path in (pruned.workspace / "catalog").rglob("root0/**/*.parquet"):
        footer = json.loads(pq.read_metadata(path).metadata[b"curation"])
        assert footer["read"] == footer["kept"] + footer["quarantined"]
        read, good, bad = read + footer["read"], good + footer["kept"], bad + footer["quarantined"]
    assert (result["samples"], result["quarantined"]) == (good, bad)
    assert result["samples"] == result["kept"] + result["dropped"]
    assert result["kept"] == int(0.15 * result["samples"] + 0.5)
    assert read == good + bad
    manifest = pq.read_table(pruned.folder / "manifest.parquet")
    assert manifest.num_rows == result["kept"]
    assert sorted(manifest["rank"].to_pylist()) == list(range(manifest.num_rows))
    decisions = pq.read_table(pruned.folder / "decisions")
    assert decisions.num_rows == result["samples"]
    assert pruned.outcome.file("report").read_text().lstrip().lower().startswith("<!doctype html>")


def test_running_it_again_encodes_nothing_and_changes_nothing(ray_local: None, pruned: Pruned) -> None:
    before = {path: path.stat().st_mtime_ns for path in (pruned.workspace / "catalog").rglob("*.parquet")}
    assert again(pruned) == pruned.outcome.result
    assert before == {path: path.stat().st_mtime_ns for path in (pruned.workspace / "catalog").rglob("*.parquet")}


def test_a_smaller_budget_is_the_first_ranks_of_a_larger_one(ray_local: None, pruned: Pruned) -> None:
    large = pq.read_table(pruned.folder / "manifest.parquet").to_pylist()
    small = kept(again(pruned, "select.budget=20"))
    assert set(small["sample_id"].to_pylist()) == {row["sample_id"] for row in large if row["rank"] < 20}


PRESETS = sorted(path.stem for path in (Path(__file__).parent.parent / "conf/select").glob("*.yaml"))
QUICK = ["score.experts=1", "score.epochs=1", "score.size=16"]


@pytest.mark.parametrize("select", [name for name in PRESETS if name != "balanced"])
def test_every_preset_runs_and_verifies(ray_local: None, pruned: Pruned, select: str) -> None:
    result = again(pruned, f"select={select}", *QUICK)
    assert result["kept"] == pruned.outcome.result["kept"]
    assert verify.run([result["manifest"], "--deep"])["ok"]


def test_lists_and_units_of_the_user(ray_local: None, pruned: Pruned, tmp_path: Path) -> None:
    rows = pq.read_table(pruned.folder / "decisions").to_pylist()
    unwanted = [row["key"] for row in rows if row["decision"] == "kept"][:3]
    wanted = next(row["key"] for row in rows if row["reason"] == "quota")
    (tmp_path / "not these, please.csv").write_text("key\n" + "\n".join(unwanted))
    (tmp_path / "these.csv").write_text(f"key\n{wanted}")
    lists = [f"select.exclude={tmp_path / 'not these, please.csv'}", f"select.require={tmp_path / 'these.csv'}"]
    result = again(pruned, *lists)
    keys = kept(result)["key"].to_pylist()
    assert result["kept"] == pruned.outcome.result["kept"] == len(keys)
    assert wanted in keys and not set(unwanted) & set(keys)


def test_levels_of_clusters(ray_local: None, pruned: Pruned) -> None:
    result = again(pruned, "cluster.levels=[4,16]")
    assert kept(result).num_rows == pruned.outcome.result["kept"]


def test_vectors_from_elsewhere(ray_local: None, pruned: Pruned, tmp_path: Path) -> None:
    """No pixels are read; new vectors under the same name are noticed, and move to another path is not."""
    rows = pa.concat_tables(
        pq.read_table(path, columns=["key", "embedding"]) for path in (pruned.workspace / "catalog").rglob("*.parquet")
    )
    vectors = tmp_path / "vectors.parquet"

    def write(change: float) -> None:
        matrix = np.stack(rows["embedding"].to_numpy()).astype(np.float32)
        matrix[: len(matrix) // 2, 0] += change
        pq.write_table(pa.table({"key": rows["key"], "embedding": list(matrix)}), vectors)

    def run() -> dict[str, Any]:
        encoder = ["encoder=precomputed", f"encoder.path={vectors}"]
        arguments = [a for a in pruned.arguments if not a.startswith("encoder")]
        return prune.run([*arguments, *encoder, f"workspace={tmp_path / 'ws'}", "runtime.max_actors=1"])

    write(0)
    first = run()
    assert first["kept"] == pruned.outcome.result["kept"]
    assert verify.run([first["manifest"], "--deep"])["ok"]
    write(1)
    changed = run()
    assert changed["manifest"] != first["manifest"]


def test_a_manifest_verifies_and_explains_itself(pruned: Pruned) -> None:
    url = pruned.outcome.result["manifest"]
    verified = curate("verify", url, "--deep")
    assert verified.status == 0, verified.stderr
    decisions = pq.read_table(pruned.folder / "decisions").to_pylist()
    kept, dropped = (next(r["sample_id"] for r in decisions if r["decision"] == d) for d in ("kept", "dropped"))
    explained = curate("explain", url, kept)
    assert explained.status == 0, explained.stderr
    assert explained.result["decision"] == "kept"
    assert explain.run([url, dropped])["decision"] == "dropped"


def test_a_damaged_manifest_does_not_verify(pruned: Pruned, tmp_path: Path) -> None:
    source = pruned.folder
    copy = tmp_path / source.name  # a manifest's folder is called by its id
    copy.mkdir()
    for path in source.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            data = path.read_bytes()
            damaged = data[:60] + bytes([data[60] ^ 1]) + data[61:]
            target.write_bytes(damaged if path.name == "manifest.parquet" else data)
    command = [sys.executable, "-m", "jobs.verify", str(copy / "manifest.json")]  # of the checkout, as it also goes
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 1
    assert "manifest.parquet" in outcome.stderr
