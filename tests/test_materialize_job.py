"""``curate materialize`` as people run it: any number of workers, killed on the way, into object storage."""

import os
import time
from pathlib import Path

import pytest

from curation.config import load_config
from curation.errors import AccessError, IncompleteError
from curation.manifests.reading import ManifestReader
from curation.materialized.build import materialize
from curation.materialized.check import verify_materialized
from tests.command import curate, start
from tests.conftest import Pruned
from tests.kept import write_archive, write_header
from tests.materialized import begin, contents, write
from tests.s3 import s3_server
from tests.test_loaders_s3 import upload
from tests.test_resume import kill_family


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_or_not_on_one_worker_or_more_it_writes_the_same(pruned: Pruned, tmp_path: Path) -> None:
    manifest = str(pruned.folder / "manifest.json")
    kept = ManifestReader(manifest).num_rows
    options = ("materialize.samples=2", "materialize.name=kept")
    tag = f"{os.getpid()}-materialize"
    process = start("materialize", manifest, str(tmp_path / "a/x"), *options, CURATE_TEST_RUN=tag)
    while len(list((tmp_path / "a/x").glob("kept-*.tar"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    kill_family(process, tag)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "a/x/.receipts").glob("*.json")}
    assert not (tmp_path / "a/x/SHA256SUMS").exists()
    again = curate("materialize", manifest, str(tmp_path / "a/x"), *options)
    assert again.status == 0, again.stderr
    assert again.result["written"] <= again.result["shards"] - len(done) < again.result["shards"]
    assert (again.result["samples"], again.result["shards"]) == (kept, -(-kept // 2))
    alone = curate("materialize", manifest, str(tmp_path / "b/x"), *options, "runtime.num_cpus=1")
    assert alone.status == 0, alone.stderr
    killed = {name: data for name, data in contents(tmp_path / "a/x").items() if not name.endswith(".tmp")}
    assert killed == contents(tmp_path / "b/x")
    checked = curate("verify", str(tmp_path / "b/x"))
    assert checked.status == 0 and checked.result["samples"] == kept
    (tmp_path / "b/x/kept-000001.tar").unlink()
    assert curate("verify", str(tmp_path / "b/x")).status == 1

    over = [*pruned.arguments[2:], f"archive.url={tmp_path / 'a/x'}", f"workspace={tmp_path / 'workspace'}"]
    outcome = curate("prune", *over, "select.budget=0.5")
    assert outcome.status == 0, outcome.stderr
    assert (outcome.result["samples"], outcome.result["quarantined"]) == (kept, 0)


def test_a_wrong_request_is_one_line(tmp_path: Path) -> None:
    wrong = [
        ["manifest"],
        ["manifest", "materialize.budget=3"],
        ["nowhere", "dest"],
        ["a", "b", "materialize.format=zip"],
    ]
    for arguments in wrong:
        outcome = curate("materialize", *arguments)
        assert outcome.status == 2
        assert outcome.stderr.count("\n") == 1, outcome.stderr


def test_shards_that_cannot_be_written_are_counted_and_the_others_are_there(ray_local, tmp_path: Path) -> None:
    archive = write_archive(tmp_path, loose=0)
    options = ("samples=5", "shuffle=false", "name=shard")
    config = load_config([f"materialize.{option}" for option in options])
    tar = min(archive.root.rglob("*.tar"))
    content = tar.read_bytes()
    tar.write_bytes(b"")
    with pytest.raises(AccessError, match="has gone or changed"):  # while it looks what samples take
        materialize(str(archive.manifest), str(tmp_path / "dest"), config)
    tar.write_bytes(content)
    begin(str(archive.manifest), tmp_path / "dest", *options)
    tar.write_bytes(content[:-60_000] + bytes(60_000))
    with pytest.raises(
        IncompleteError, match=r"\d+ of \d+ shards could not be written, \d+ are; the first: sample 's00"
    ):
        materialize(str(archive.manifest), str(tmp_path / "dest"), config)
    tar.write_bytes(content)
    result = materialize(str(archive.manifest), str(tmp_path / "dest"), config)
    assert 0 < result["written"] < result["shards"]
    assert result["samples"] == len(archive.ids)
    assert verify_materialized(str(tmp_path / "dest"))["ok"]


def test_the_bytes_are_the_same_in_object_storage(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, shards=2)
    write(str(archive.manifest), tmp_path / "here/set", "bytes=60000")
    with s3_server() as s3:
        write_header(archive.manifest, {"root0": f"{s3.url}/archive"})
        upload(s3, tmp_path / "archive", "archive/")
        upload(s3, tmp_path / "workspace", "workspace/")
        url = f"{s3.url}/workspace/manifests/0123abcd/manifest.json"
        plan = write(url, f"{s3.url}/there/set", "bytes=60000", storage=s3.storage)
        listed = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix="there/set/")["Contents"]
        there = {o["Key"].removeprefix("there/set/"): o["Size"] for o in listed}
        for number in range(plan.shards):
            name = plan.shard(number)
            body = s3.client.get_object(Bucket=s3.bucket, Key=f"there/set/{name}")["Body"].read()
            assert body == (tmp_path / "here/set" / name).read_bytes()
        assert there.keys() == contents(tmp_path / "here/set").keys()
        assert verify_materialized(f"{s3.url}/there/set", s3.storage)["ok"]
