"""The readers over S3: the same bytes as from a disk, by the requests that were planned, through faults."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from curation.errors import AccessError
from curation.manifests.access import OBJECT_STORE, plan_reads
from curation.manifests.loaders.torch import TorchSamples
from curation.manifests.loaders.webdataset import WebDatasetSamples
from curation.storage import Folder
from tests.kept import Archive, write_archive, write_header
from tests.layouts import SCENES, keep, write_images, write_modalities, write_parquet, write_scenes, write_zarr
from tests.s3 import S3, free_port, s3_server, wait_for


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def archive(s3, tmp_path_factory) -> Archive:
    """On S3 and, the truth, on this disk."""
    local = write_archive(tmp_path_factory.mktemp("s3"), shards=2, size=100_000, share=0.15, loose=3)
    write_header(local.manifest, {"root0": f"{s3.url}/archive"})
    upload(s3, local.root.parent)
    return local


def upload(s3: S3, folder: Path, prefix: str = "") -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.client.upload_file(str(path), s3.bucket, prefix + str(path.relative_to(folder)))


def manifest_url(s3: S3, archive: Archive) -> str:
    return f"{s3.url}/{archive.manifest.relative_to(archive.root.parent)}/manifest.json"


@pytest.mark.parametrize("members", ["all", "image"])
def test_the_same_bytes_as_from_a_disk(s3, archive, members):
    url = manifest_url(s3, archive)
    there = list(WebDatasetSamples(url, members=members, storage=s3.storage, rank=0, world_size=1))
    here = list(
        WebDatasetSamples(
            str(archive.manifest), members=members, roots={"root0": str(archive.root)}, rank=0, world_size=1
        )
    )
    for sample in (*there, *here):
        sample.pop("__url__")
    assert there == here
    assert len(there) == len(archive.ids)


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (write_images, {"tile": {"size": 16, "stride": 12}}),
        (write_modalities, {"modalities": ["S2L2A", "S1GRD"], "members": ["S2L2A.tif", "S1GRD.tif"]}),
        (write_scenes, {"scene": SCENES, "grid": "B02"}),
        (write_scenes, {"scene": SCENES, "grid": "B02", "tile": {"size": 16, "stride": 12}}),
        (write_parquet, {"members": ["B02", "B03"]}),
        (write_zarr, {"tile": {"size": 16, "stride": 12}}),
    ],
)
def test_tiles_modalities_and_scenes_have_the_same_pixels(s3, tmp_path, write, settings):
    write(tmp_path / "archive")
    url, truth = keep(tmp_path, settings)
    upload(s3, tmp_path / "archive", f"{tmp_path.name}/")
    roots = {"root0": f"{s3.url}/{tmp_path.name}"}
    samples = TorchSamples(url, decode=True, roots=roots, storage=s3.storage, rank=0, world_size=1)
    given = {sample["sample_id"]: sample["pixels"].numpy() for sample in samples}
    assert given.keys() == truth.keys()
    assert all((given[name] == truth[name]).all() for name in truth)


def test_workers_of_a_loader_read_it_too(s3, archive):
    samples = TorchSamples(manifest_url(s3, archive), storage=s3.storage, rank=0, world_size=1)
    next(iter(samples))  # this process has used its connection before the workers are forked
    batches = list(samples.loader(4, 2))
    assert {
        name: files for b in batches for name, files in zip(b["sample_id"], b["files"], strict=True)
    } == archive.files


def test_the_requests_are_those_of_the_plan(s3, archive, monkeypatch):
    asked: list[tuple[str, int, int]] = []
    original = Folder.read_range

    def counted(self: Folder, path: str, start: int, stop: int, version: object = None) -> bytes:
        if path.endswith(".tar"):
            asked.append((path, start, stop))
        return original(self, path, start, stop, version)

    monkeypatch.setattr(Folder, "read_range", counted)
    samples = WebDatasetSamples(
        manifest_url(s3, archive), members="image", storage=s3.storage, rank=0, world_size=1, shuffle=0
    )
    assert len(list(samples)) == len(archive.ids)
    table = samples.manifest.table()
    tars = table.filter(pa.compute.is_valid(table["offset"]))
    sizes = {name: (archive.root / name.partition("/")[2]).stat().st_size for name in set(tars["shard"].to_pylist())}
    whole = pa.array([sizes[name] for name in tars["shard"].to_pylist()])
    plan = plan_reads(tars["shard"], tars["offset"], tars["size"], whole, OBJECT_STORE)
    assert plan["ranged"]["requests"] == len(asked) > len(sizes)
    assert plan["ranged"]["bytes"] == sum(stop - start for _, start, stop in asked)
    assert plan["chosen"]["bytes"] < plan["sequential"]["bytes"]


def test_what_fails_now_and_then_is_asked_for_again(s3, archive):
    port = free_port()
    backend = s3.endpoint.rpartition(":")[2]
    proxy = subprocess.Popen([sys.executable, "-m", "tests.faulty_proxy", str(port), backend, "3"])
    try:
        wait_for(f"http://127.0.0.1:{port}/{s3.bucket}", proxy)
        storage = {"s3": {"endpoint_url": f"http://127.0.0.1:{port}"}}
        samples = WebDatasetSamples(manifest_url(s3, archive), storage=storage, rank=0, world_size=1)
        given = {s["__meta__"]["sample_id"]: {k: v for k, v in s.items() if k[:2] != "__"} for s in samples}
    finally:
        proxy.terminate()
        proxy.wait()
    assert given == archive.files


def test_a_shard_that_is_not_there_names_the_sample(s3, archive, tmp_path):
    with pytest.raises(AccessError, match=r"sample '.*' of s3://bucket/elsewhere/.* has gone or changed"):
        list(
            WebDatasetSamples(
                str(archive.manifest),
                members="image",
                roots={"root0": f"{s3.url}/elsewhere"},
                storage=s3.storage,
                rank=0,
                world_size=1,
            )
        )
