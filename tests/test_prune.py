"""The main job from outside: what comes out adds up, and is the same however it was run."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.command import Outcome, curate
from tests.recipes import write_sample_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_archive(folder, tiles=400)
    return folder


def prune(archive: Path, workspace: Path, *more: str) -> Outcome:
    return curate(
        "prune",
        f"archive.url={archive / 'archive'}",
        f"references.url={archive / 'references'}",
        f"workspace={workspace}",
        "encoder.filters=8",
        *more,
    )


@pytest.fixture(scope="module")
def done(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    workspace = tmp_path_factory.mktemp("workspace with spaces, and [brackets]=100%")
    outcome = prune(archive, workspace)
    assert outcome.status == 0, outcome.stderr
    return workspace, outcome


def test_every_sample_is_accounted_for(done):
    workspace, outcome = done
    result = outcome.result
    read = kept = bad = 0
    for path in (workspace / "catalog").rglob("root0/**/*.parquet"):
        footer = json.loads(pq.read_metadata(path).metadata[b"curation"])
        assert footer["read"] == footer["kept"] + footer["quarantined"]
        read, kept, bad = read + footer["read"], kept + footer["kept"], bad + footer["quarantined"]
    assert (result["samples"], result["quarantined"]) == (kept, bad)
    assert result["samples"] == result["kept"] + result["dropped"]
    assert result["kept"] == int(0.15 * result["samples"] + 0.5)
    assert read == kept + bad
    manifest = pq.read_table(outcome.file("manifest").parent / "manifest.parquet")
    assert manifest.num_rows == result["kept"]
    assert sorted(manifest["rank"].to_pylist()) == list(range(manifest.num_rows))
    decisions = pq.read_table(outcome.file("manifest").parent / "decisions")
    assert decisions.num_rows == result["samples"]
    assert outcome.file("report").read_text().lstrip().lower().startswith("<!doctype html>")


def test_running_it_again_encodes_nothing_and_changes_nothing(archive, done):
    workspace, first = done
    before = {path: path.stat().st_mtime_ns for path in (workspace / "catalog").rglob("*.parquet")}
    again = prune(archive, workspace)
    assert again.status == 0, again.stderr
    assert "to encode" not in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (workspace / "catalog").rglob("*.parquet")}
    assert again.result == first.result


def test_one_core_and_a_fresh_workspace_give_the_same_bytes(archive, done, tmp_path):
    _, first = done
    alone = prune(archive, tmp_path, "runtime.num_cpus=1")
    assert alone.status == 0, alone.stderr
    for name in ("manifest.parquet", "files.parquet"):
        assert (first.file("manifest").parent / name).read_bytes() == (
            alone.file("manifest").parent / name
        ).read_bytes()
    assert first.file("manifest").parent.name == alone.file("manifest").parent.name


def test_a_smaller_budget_is_the_first_ranks_of_a_larger_one(archive, done):
    workspace, first = done
    small = prune(archive, workspace, "select.budget=20")
    assert small.status == 0, small.stderr
    large = pq.read_table(first.file("manifest").parent / "manifest.parquet")
    expected = {row["sample_id"] for row in large.to_pylist() if row["rank"] < 20}
    found = pq.read_table(small.file("manifest").parent / "manifest.parquet")
    assert set(found["sample_id"].to_pylist()) == expected


@pytest.mark.parametrize("select", ["rs_prune", "random", "entropy"])
def test_every_preset_runs(archive, done, select):
    workspace, first = done
    outcome = prune(archive, workspace, f"select={select}")
    assert outcome.status == 0, outcome.stderr
    assert outcome.result["kept"] == first.result["kept"]


def test_a_manifest_verifies_and_explains_itself(done):
    _, first = done
    verified = curate("verify", first.result["manifest"], "--deep")
    assert verified.status == 0, verified.stderr
    decisions = pq.read_table(first.file("manifest").parent / "decisions").to_pylist()
    for decision in ("kept", "dropped"):
        row = next(row for row in decisions if row["decision"] == decision)
        explained = curate("explain", first.result["manifest"], row["sample_id"])
        assert explained.status == 0, explained.stderr
        assert explained.result["decision"] == decision


def test_a_damaged_manifest_does_not_verify(done, tmp_path):
    _, first = done
    source = first.file("manifest").parent
    copy = tmp_path / source.name  # a manifest's folder is called by its id
    copy.mkdir()
    for path in source.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            data = path.read_bytes()
            damaged = data[:60] + bytes([data[60] ^ 1]) + data[61:]
            target.write_bytes(damaged if path.name == "manifest.parquet" else data)
    outcome = curate("verify", str(copy / "manifest.json"))
    assert outcome.status == 1
    assert "manifest.parquet" in outcome.stderr
