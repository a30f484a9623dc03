"""Every sample can be asked for: by id or key, kept or dropped, quarantined or unknown."""

from pathlib import Path

import numpy as np
import pytest

from curation.archive.sample import sample_id
from curation.errors import RequestError
from curation.manifests.explain import explain
from curation.manifests.schema import Manifest
from tests.selection_recipes import Workspace, make_workspace

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Manifest]:
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    return workspace, workspace.select(entropy_keep=0.7)


def test_a_kept_sample_by_key_with_its_figures(made: tuple[Workspace, Manifest]) -> None:
    workspace, manifest = made
    kept = workspace.read(manifest).to_pylist()[5]
    told = explain(manifest.url, kept["key"])
    assert told["decision"] == "kept"
    assert told["sample_id"] == kept["sample_id"]
    assert (told["rank"], told["weight"]) == (kept["rank"], kept["weight"])
    assert f"{told['priority']:.6g}" in told["why"]
    assert f"{told['threshold']:.6g}" in told["why"]
    assert told["stands_for_it"] is None


@pytest.mark.parametrize("reason", ["quota", "entropy"])
def test_for_a_dropped_sample_the_nearest_kept_of_its_cluster_stands(
    made: tuple[Workspace, Manifest], reason: str
) -> None:
    workspace, manifest = made
    decided = workspace.decisions(manifest)
    at = decided["reason"].index(reason)
    told = explain(manifest.url, decided["sample_id"][at])
    assert told["why"].startswith("dropped: ")
    vectors = np.array(workspace.samples["embedding"].to_pylist(), np.float32)
    kept = [i for i, c in enumerate(decided["cluster"]) if c == told["cluster"] and decided["decision"][i] == "kept"]
    nearest = kept[int(np.argmin(np.linalg.norm(vectors[kept] - vectors[at], axis=1)))]
    assert told["stands_for_it"]["by"] == "embedding"
    assert told["stands_for_it"]["sample_id"] == decided["sample_id"][nearest]


def test_a_quarantined_sample_by_key_and_by_id(made: tuple[Workspace, Manifest]) -> None:
    shard = "root/sub 2/tiles-002.tar"
    for name in (f"lost of {shard}", sample_id(shard, f"lost of {shard}")):
        told = explain(made[1].url, name)
        assert told["decision"] == "quarantined"
        assert told["why"] == "quarantined: it could not be used (decode, Torn): -"


def test_an_unknown_sample_and_a_key_that_several_have(made: tuple[Workspace, Manifest], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no sample 'nobody'"):
        explain(made[1].url, "nobody")
    workspace = make_workspace(tmp_path, shards=2, rows=10, clusters=2, parts=1)
    keys = [f"tile-{i}" for i in workspace.samples["index"].to_pylist()]
    ids = [sample_id(s, k) for s, k in zip(workspace.samples["shard"].to_pylist(), keys, strict=True)]
    manifest = make_workspace(tmp_path, 2, 10, 2, 1, key=keys, sample_id=ids).select()
    with pytest.raises(RequestError, match="2 samples have the key 'tile-0'"):
        explain(manifest.url, "tile-0")
