"""A manifest as a keep-index: rows of the archive, or places among the items of somebody's own dataset."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.errors import RequestError
from curation.manifests.reading import ManifestReader
from curation.training.index import KeepIndex
from curation.training.manifest import from_manifest
from tests.conftest import Pruned
from tests.kept import Archive, write_archive
from tests.training_recipes import write_decisions


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Archive, list[str]]:
    made = write_archive(tmp_path_factory.mktemp("kept"), size=300)
    return made, write_decisions(made)


def check(index: KeepIndex, ids: list[str], manifest: str, budget: int | None = None) -> None:
    """Each kept sample's row and weight, by the catalog's rows."""
    table = ManifestReader(manifest).table(["sample_id", "weight"], budget).to_pydict()
    truth = dict(zip(table["sample_id"], table["weight"], strict=True))
    given = {ids[row]: weight for row, weight in zip(index.rows, index.weights.tolist(), strict=True)}
    assert given.keys() == truth.keys()
    assert all(np.isclose(given[name], weight or np.nan, equal_nan=True) for name, weight in truth.items())
    for name, weight in given.items():
        assert np.isclose(index.weight_of_id(bytes.fromhex(name)) or 0, weight, equal_nan=True)


@pytest.mark.parametrize("budget", [None, 9])
def test_rows_of_the_archive(archive, budget):
    made, ids = archive
    index = from_manifest(str(made.manifest), budget=budget)
    assert index.total == len(ids) and index.kept == (budget or len(made.ids))
    check(index, ids, str(made.manifest), budget)
    assert index.sha256 == from_manifest(str(made.manifest), budget=budget).sha256


def test_places_in_your_own_dataset(archive):
    made, _ = archive
    keys = {row["sample_id"]: row["key"] for row in ManifestReader(str(made.manifest)).table().to_pylist()}
    own = [*keys.values(), *(f"of no manifest {i}" for i in range(20))]
    mixed = np.random.default_rng(0).permutation(own).tolist()
    index = from_manifest(str(made.manifest), keys=mixed)
    assert index.total == len(mixed)
    assert {mixed[row] for row in index.rows} == set(keys.values())
    check(index, [next((i for i in keys if keys[i] == key), "") for key in mixed], str(made.manifest))


def test_keys_that_do_not_tell(archive, tmp_path):
    made, _ = archive
    url = str(made.manifest)
    keys = ManifestReader(url).table(["key"])["key"].to_pylist()
    with pytest.raises(RequestError, match="the dataset has the key .* more than once"):
        from_manifest(url, keys=[*keys, keys[3]])
    with pytest.raises(RequestError, match=f"{keys[0]!r}, which is the key of no item"):
        from_manifest(url, keys=keys[1:])
    with pytest.raises(RequestError, match="budget=0"):
        from_manifest(url, budget=0)
    shutil.copytree(made.manifest, tmp_path / "copied")
    shutil.rmtree(tmp_path / "copied" / "decisions")
    with pytest.raises(RequestError, match="no decisions.* give keys"):
        from_manifest(str(tmp_path / "copied"))
    assert from_manifest(str(tmp_path / "copied"), keys=keys).kept == len(keys)


def test_the_main_jobs_own_manifest(pruned: Pruned):
    catalog = json.loads((pruned.folder / "manifest.json").read_text())["content"]["catalog"]
    files = sorted((pruned.workspace / "catalog" / catalog / "root0").rglob("*.parquet"), key=Path.as_posix)
    ids = [name for file in files for name in pq.read_table(file, columns=["sample_id"])["sample_id"].to_pylist()]
    index = from_manifest(str(pruned.folder))
    assert index.total == len(ids) == pruned.outcome.result["samples"]
    check(index, ids, str(pruned.folder))
