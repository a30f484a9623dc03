"""A workspace in object storage, where nothing can be renamed, gets the same manifest."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from curation.catalog.store import CatalogStore
from curation.manifests.build import select
from curation.manifests.explain import explain
from curation.manifests.leakage import find_leaks
from curation.manifests.verify import verify
from curation.storage import Folder
from tests.s3 import s3_server
from tests.selection_recipes import HEADER, make_settings, make_workspace

pytestmark = pytest.mark.usefixtures("ray_local")


def test_the_manifest_is_the_same_in_object_storage(tmp_path: Path) -> None:
    local = make_workspace(tmp_path, shards=4)
    here = local.select()
    with s3_server() as s3:
        options = {"s3": {**s3.storage["s3"], "key": "test", "secret": "test"}}  # Ray's workers are older than it
        for path in tmp_path.rglob("*.parquet"):
            if "manifests" not in path.parts:
                s3.client.upload_file(str(path), s3.bucket, f"work/{path.relative_to(tmp_path)}")
        folder = Folder(f"{s3.url}/work", options)
        there = select(CatalogStore(folder, "cat"), folder.child("clusters/c"), make_settings(), 0, folder, HEADER)
        assert there.folder == here.folder
        assert there.url == f"{s3.url}/work/{here.folder}/manifest.json"
        names = {file.path for file in folder.list("manifests")}
        assert names == {file.path for file in Folder(str(tmp_path)).list("manifests")}
        for name in names:
            assert folder.read(name) == (tmp_path / name).read_bytes(), name
        assert verify(there.url, storage=options)["ok"]
        key = local.samples["key"][0].as_py()
        assert explain(there.url, key, options) == explain(here.url, key)
        leaks = [find_leaks(there.url, f"{s3.url}/work/catalog/cat/", storage=options)]  # all of the archive
        leaks.append(find_leaks(here.url, str(tmp_path / "catalog/cat")))
        assert (
            folder.read(leaks[0]["table"].removeprefix(f"{s3.url}/work/"))
            == Path(unquote(urlsplit(leaks[1]["table"]).path)).read_bytes()
        )
        assert leaks[0]["worst"] == leaks[1]["worst"]
        assert leaks[0]["overlapping"] == here.kept


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with s3_server() as s3:
        for folder in (Folder(str(tmp_path)), Folder(s3.url, s3.storage)):
            with pytest.raises(ValueError, match="halfway"), folder.writer("a/b") as file:
                file.write(b"x" * (6 << 20))
                raise ValueError("halfway")
            assert folder.list() == []
            with folder.writer("a/b") as file:
                file.write(b"x" * (6 << 20))
                file.write(b"y")
            folder.move("a/b", "c/d")
            assert [(file.path, file.size) for file in folder.list()] == [("c/d", (6 << 20) + 1)]
            folder.discard("c")
            folder.discard("c")
            assert folder.list() == []
