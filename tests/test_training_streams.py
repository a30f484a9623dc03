"""A stream of real tars without what is left out, through webdataset's own pipelines and loaders."""

import math
from typing import Any

import pytest
import webdataset as wds
from torch.utils.data import DataLoader

from curation.archive.sample import sample_id
from curation.errors import RequestError
from curation.manifests.reading import ManifestReader
from curation.storage import Folder
from curation.training.index import KeepIndex, write_index
from curation.training.manifest import from_manifest
from curation.training.streams import KeptStream
from tests.kept import Archive, write_archive
from tests.training_recipes import write_decisions


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    made = write_archive(tmp_path_factory.mktemp("stream"), size=300)
    write_decisions(made)
    return made


def urls(archive: Archive) -> list[str]:
    return sorted(map(str, archive.root.rglob("*.tar")))


def stream(archive: Archive, index: KeepIndex | Folder | None = None) -> KeptStream:
    return KeptStream(index or from_manifest(str(archive.manifest)), {"root0": str(archive.root)})


def in_tars(archive: Archive) -> dict[str, dict[str, Any]]:
    rows = ManifestReader(str(archive.manifest)).table().to_pylist()
    return {row["key"]: row for row in rows if row["shard"].endswith(".tar")}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pipeline_gives_exactly_the_kept_samples(archive, workers):
    dataset = wds.WebDataset(urls(archive), shardshuffle=False).compose(stream(archive))
    given = {sample["__key__"]: sample for sample in DataLoader(dataset, batch_size=None, num_workers=workers)}
    truth = in_tars(archive)
    assert given.keys() == truth.keys()
    for key, sample in given.items():
        assert sample["png"] == archive.files[truth[key]["sample_id"]]["png"]
        weight = truth[key]["weight"]
        assert math.isnan(sample["__weight__"]) if weight is None else math.isclose(sample["__weight__"], weight)


def test_shuffled_shards_and_pipes(archive):
    pipes = [f"pipe:cat '{url}'" for url in urls(archive) if " " not in url]
    pipes += [url.replace("/", "file:/", 1) for url in urls(archive) if " " in url]
    stages = wds.SimpleShardList(pipes, seed=1), wds.tarfile_to_samples(), stream(archive), wds.shuffle(10)
    assert sorted(sample["__key__"] for sample in wds.DataPipeline(*stages)) == sorted(in_tars(archive))


def test_workers_that_stay_take_the_next_version(archive, tmp_path):
    folder, keys = Folder(str(tmp_path)), sorted(in_tars(archive))
    ids = [bytes.fromhex(in_tars(archive)[key]["sample_id"]) for key in keys]
    write_index(folder, 1, range(4), None, 500, {}, ids[:4])
    kept = stream(archive, folder)
    dataset = wds.WebDataset(urls(archive), shardshuffle=False).compose(kept)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    assert sorted(sample["__key__"] for sample in loader) == keys[:4]
    write_index(folder, 2, range(3), None, 500, {}, ids[-3:])
    assert sorted(sample["__key__"] for sample in loader) == keys[:4]
    kept.set_pass()
    assert sorted(sample["__key__"] for sample in loader) == keys[-3:]


def test_what_cannot_be_told(archive, caplog):
    with pytest.raises(RequestError, match="no sample ids"):
        stream(archive, KeepIndex.of(1, [1, 2], None, 10))
    elsewhere = KeptStream(from_manifest(str(archive.manifest)), {"root0": "/elsewhere"})
    samples = [{"__url__": urls(archive)[0], "__key__": "a"}]
    with pytest.raises(RequestError, match="lies below no root of .*/elsewhere/.*: give roots"):
        list(elsewhere(samples))
    assert list(stream(archive)(samples)) == []
    assert "of a stream's 1 samples none is kept by version 1" in caplog.text
    made = sample_id("root0/x.tar", "a")
    one = KeptStream(KeepIndex.of(1, [0], [2], 1, ids=[bytes.fromhex(made)]), {"root0": "s3://bucket/data"})
    for url in ("s3://bucket/data/x.tar", "pipe:aws s3 cp s3://bucket/data/x.tar -"):
        assert [sample["__weight__"] for sample in one([{"__url__": url, "__key__": "a"}])] == [2.0]
