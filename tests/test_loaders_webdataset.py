"""The kept samples in a WebDataset pipeline: that library's stages take them as they take a tar's."""

import subprocess
import sys
from itertools import islice

import pytest

from curation.manifests.loaders.webdataset import WebDatasetSamples
from tests.kept import Archive, write_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("wds"), loose=4)


def samples(archive: Archive, **options) -> WebDatasetSamples:
    return WebDatasetSamples(str(archive.manifest), **{"rank": 0, "world_size": 1, **options})


@pytest.mark.parametrize("catalog", [True, False])
def test_each_kept_sample_comes_once_with_all_its_files_but_pickles(tmp_path, catalog):
    archive = write_archive(tmp_path, catalog=catalog)
    given = list(samples(archive))
    assert sorted(sample["__meta__"]["sample_id"] for sample in given) == archive.ids
    for sample in given:
        files = {name: content for name, content in sample.items() if not name.startswith("__")}
        assert files == archive.files[sample["__meta__"]["sample_id"]]
        assert sample["__key__"] == sample["__meta__"]["key"]
        assert sample["__url__"].startswith("file://")


def test_they_are_what_webdataset_itself_reads_from_the_tar(archive):
    wds = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted(archive.root.rglob("*.tar"))]
    theirs = {sample["__key__"]: sample for sample in wds.WebDataset(shards, shardshuffle=False)}
    for sample in samples(archive):
        if "loose" in sample["__url__"]:
            continue
        for name, content in sample.items():
            if not name.startswith("__"):
                assert content == theirs[sample["__key__"]][name]


def test_its_decoding_and_batching_stages_take_them(archive):
    wds = pytest.importorskip("webdataset")
    pipeline = wds.DataPipeline(
        samples(archive),
        wds.decode(),
        wds.to_tuple("__key__", "json", "__meta__"),
        wds.batched(8),
    )
    keys, labels, meta = zip(*pipeline, strict=True)
    assert sum(map(len, keys)) == len(archive.ids)
    assert {label["label"] for batch in labels for label in batch} == {"class0", "class1", "class2"}
    assert sorted(row["rank"] for batch in meta for row in batch) == list(range(len(archive.ids)))


def test_a_webdataset_loader_splits_them_over_its_workers(archive):
    wds = pytest.importorskip("webdataset")
    pipeline = wds.DataPipeline(samples(archive), wds.to_tuple("__meta__"))
    loader = wds.WebLoader(pipeline, num_workers=2, batch_size=None)
    assert sorted(meta["sample_id"] for (meta,) in loader) == archive.ids


def test_it_goes_on_in_mid_epoch(archive):
    whole = list(samples(archive, seed=5))
    first = samples(archive, seed=5)
    before = list(islice(first, 11))
    second = samples(archive, seed=5)
    second.load_state_dict(first.state_dict())
    assert before + list(second) == whole


def test_it_needs_neither_webdataset_nor_torch(archive):
    script = f"""
import subprocess
import sys
sys.modules["torch"] = sys.modules["webdataset"] = None
from curation.manifests.loaders.webdataset import WebDatasetSamples
samples = WebDatasetSamples({str(archive.manifest)!r}, rank=0, world_size=1)
samples.set_epoch(1)
print(len(list(samples)), samples.state_dict()["seen"], flush=True)
"""
    # not by its exit status: on a busy machine one such script in twenty is aborted by Arrow's threads as Python ends
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == [str(len(archive.ids))] * 2
