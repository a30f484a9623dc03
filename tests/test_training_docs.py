"""The code that README and docs/training.md show does what they say. (What needs Ray Train: test_training_feed.)"""

from typing import Any

import pytest
from torch.utils.data import DataLoader

from curation.manifests.reading import ManifestReader
from curation.training.manifest import from_manifest
from tests.kept import Archive, write_archive
from tests.training_recipes import blocks, own_dataset, write_decisions

LATEST = "quickstart/workspace/manifests/latest.json"


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    made = write_archive(tmp_path_factory.mktemp("docs"), shards=5, samples=80, size=300)
    write_decisions(made)
    return made


def run(block: str, archive: Archive, **names: Any) -> dict[str, Any]:
    names |= {"dataset": own_dataset(archive), "DataLoader": DataLoader}
    exec(block.replace(LATEST, str(archive.manifest)).replace("...", "train(batch)"), names)
    return names


def kept_keys(archive: Archive) -> list[str]:
    return sorted(ManifestReader(str(archive.manifest)).table(["key"])["key"].to_pylist())


def test_the_readmes_lines(archive):
    plain, _ = blocks("README.md", "KeptSampler")
    assert len(plain.split("\n\n")) == 2  # imports, and under ten lines
    assert len(plain.splitlines()) < 12
    batches: list[list[str]] = []
    run(plain, archive, train=batches.append)
    each = len(kept_keys(archive))
    given = sum(batches, [])
    for number in range(10):
        assert sorted(given[number * each : (number + 1) * each]) == kept_keys(archive)
    assert given[:each] != given[each : 2 * each]


def test_the_pages_lines_go_on_in_mid_pass(archive):
    block = next(block for block in blocks("docs/training.md", "KeptSampler") if "load_state_dict" in block)
    whole: list[list[str]] = []
    run(block, archive, state=None, passes=2, train=whole.append)

    class Stop(Exception):
        pass

    def stop(batch: list[str]) -> None:
        if len(before) == 4:
            raise Stop
        before.append(batch)

    before: list[list[str]] = []
    after: list[list[str]] = []
    names = {"state": None, "passes": 2, "train": stop, "dataset": own_dataset(archive), "DataLoader": DataLoader}
    with pytest.raises(Stop):
        exec(block.replace(LATEST, str(archive.manifest)), names)
    state = names["state"]
    assert isinstance(state, dict) and state["pass"] == 1 and state["position"] > 0
    run(block, archive, state=state, passes=2, train=after.append)
    assert before + after == whole


def test_a_stream(archive):
    block = next(iter(blocks("docs/training.md", "KeptStream")))
    tars = sorted(map(str, archive.root.rglob("*.tar")))
    names = {"url": str(archive.manifest), "archive_url": str(archive.root), "shards": tars}
    names = run(block, archive, from_manifest=from_manifest, **names)
    kept = ManifestReader(str(archive.manifest)).table(["key", "shard"]).to_pylist()
    assert sorted(s["__key__"] for s in names["dataset"]) == sorted(
        row["key"] for row in kept if row["shard"].endswith(".tar")
    )
