"""Which manifest is in force: named curations, two runs that end at once, and the way back."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curation.catalog.sources import SOURCES_SCHEMA
from curation.config import load_config
from curation.errors import ConflictError, RequestError
from curation.manifests.explain import explain
from curation.manifests.latest import Latest, latest_path, publish_latest, read_latest, read_pointers
from curation.manifests.reading import ManifestReader
from curation.manifests.rollback import rollback
from curation.manifests.schema import Manifest
from curation.manifests.verify import verify
from curation.stages import complete
from curation.storage import Folder
from tests.command import curate
from tests.lineage_recipes import Lineage, Row, sample


def archive(kept: int, shards: int = 4) -> list[Row]:
    """Ten samples a shard, of which the first few are kept."""
    return [
        sample(f"root0/{shard}.tar", i, "sampled" if i < kept else "quota")
        for shard in range(shards)
        for i in range(10)
    ]


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return Lineage(tmp_path)


def test_several_curations_share_a_workspace(lineage: Lineage) -> None:
    one, other = lineage.write(archive(3)), lineage.write(archive(4))
    workspace = Folder(str(lineage.folder))
    for name, id in ((None, one), ("sar-2026.v1", other)):
        assert read_latest(workspace, name) == Latest(None, None)
        publish_latest(workspace, name, Latest(None, None), id)
        assert json.loads((lineage.folder / latest_path(name)).read_text()) == {"id": id}
        pointer = f"{lineage.folder}/{latest_path(name)}"
        assert ManifestReader(pointer).id == id
        assert verify(pointer)["problems"] == []
        assert explain(pointer, "root0/0.tar-009")["reason"] == "quota"
    assert {name: latest.id for name, latest in read_pointers(workspace)} == {None: one, "sar-2026.v1": other}
    with pytest.raises(RequestError, match="there is no latest manifest"):
        ManifestReader(f"{lineage.folder}/manifests/latest-nobody.json")


def test_who_ends_second_leaves_the_first_in_force(lineage: Lineage) -> None:
    yesterday, first, second = (lineage.write(archive(kept)) for kept in (1, 2, 3))
    workspace = Folder(str(lineage.folder))
    lineage.point(yesterday)
    begun = [read_latest(workspace, None) for _ in range(3)]
    publish_latest(workspace, None, begun[0], first)
    with pytest.raises(
        ConflictError, match=f"another run won: .*latest.json went from {yesterday} to {first}"
    ) as error:
        publish_latest(workspace, None, begun[1], second)
    assert second in str(error.value) and error.value.exit_status == 1
    assert read_latest(workspace, None).id == first
    assert verify(lineage.manifest(second))["ok"]
    publish_latest(workspace, None, begun[2], first)  # the same manifest, by another run: no conflict
    assert read_latest(workspace, None).id == first


def test_a_run_that_is_overtaken_says_what_it_made(lineage: Lineage) -> None:
    yesterday, theirs, ours = (lineage.write(archive(kept)) for kept in (1, 2, 3))
    workspace = Folder(str(lineage.folder))
    counts = {"kept": 40, "quarantined": 0, "filtered": 0, "empty": 0, "read": 40}
    made = Manifest(f"manifests/{ours}", lineage.manifest(ours), 40, 12, {"quota": 28})
    run: Any = SimpleNamespace(
        config=load_config(["select.budget=12", "name=sar"]),
        workspace=workspace,
        clusters=lambda catalog: None,
        manifest=lambda catalog, clusters: made,
        report=lambda *_: "page",
    )
    catalog: Any = SimpleNamespace(counts=counts, sources=SOURCES_SCHEMA.empty_table())
    lineage.point(yesterday, "sar")
    begun = read_latest(workspace, "sar")
    lineage.point(theirs, "sar")
    with pytest.raises(ConflictError, match=f"to {theirs} .* curate rollback .*{ours}.* name=sar") as error:
        complete(run, catalog, begun)
    assert error.value.result and error.value.result["manifest"] == lineage.manifest(ours)
    assert read_latest(workspace, "sar").id == theirs
    assert complete(run, catalog, read_latest(workspace, "sar")) == error.value.result
    assert read_latest(workspace, "sar").id == ours


def test_a_pointer_that_is_none_is_named(lineage: Lineage) -> None:
    (lineage.folder / "manifests").mkdir()
    (lineage.folder / "manifests/latest.json").write_text("[]")
    with pytest.raises(RequestError, match=r"latest\.json is no pointer"):
        read_latest(Folder(str(lineage.folder)), None)


@pytest.mark.parametrize("name", ["a/b", "..\\x", "", "a b", "ü"])
def test_a_curations_name_becomes_part_of_a_file_name(name: str) -> None:
    with pytest.raises(RequestError, match="name"):
        load_config([f"name='{name}'"])
    assert load_config(["name=sar_2026.v1-x"]).name == "sar_2026.v1-x"
    assert load_config([]).name is None


# rollback


def chain(lineage: Lineage) -> list[str]:
    ids: list[str] = []
    for kept in (1, 2, 3):
        ids.append(lineage.write(archive(kept), parent=ids[-1] if ids else None))
    lineage.point(ids[-1])
    return ids


def test_back_to_the_parent_and_forward_again(lineage: Lineage) -> None:
    ids = chain(lineage)
    workspace = f"workspace={lineage.folder}"
    back = curate("rollback", workspace)
    assert back.status == 0, back.stderr
    assert (back.result["before"], back.result["after"]) == (ids[2], ids[1])
    assert back.file("manifest") == lineage.folder / f"manifests/{ids[1]}/manifest.json"
    assert {key: back.result[key] for key in ("samples", "kept", "dropped")} == {
        "samples": 40,
        "kept": 8,
        "dropped": 32,
    }
    assert curate("rollback", f"{lineage.folder}/manifests/latest.json").result["after"] == ids[0]
    refused = curate("rollback", workspace)
    assert refused.status == 2 and f"manifest {ids[0]} has no parent: name a manifest with --to ID" in refused.stderr
    assert curate("rollback", workspace, "--to", ids[1]).result["after"] == ids[1]
    assert curate("rollback", lineage.manifest(ids[2])).result["before"] == ids[1]
    assert read_latest(Folder(str(lineage.folder)), None).id == ids[2]


def test_a_named_curation_goes_back_alone(lineage: Lineage) -> None:
    ids = chain(lineage)
    lineage.point(ids[1], "sar")
    workspace = Folder(str(lineage.folder))
    assert rollback(workspace, "sar")["after"] == ids[0]
    assert (read_latest(workspace, "sar").id, read_latest(workspace, None).id) == (ids[0], ids[2])


def test_what_is_not_whole_is_refused(lineage: Lineage) -> None:
    ids = chain(lineage)
    workspace = Folder(str(lineage.folder))
    part = lineage.parts[ids[1]][0][0].removeprefix("../")
    assert part.startswith(ids[0])  # the parent's file
    data = (lineage.folder / "manifests" / part).read_bytes()
    (lineage.folder / "manifests" / part).write_bytes(data[:-1])
    with pytest.raises(RequestError, match=f"manifest {ids[1]} is not whole: .*{part} is missing or of another size"):
        rollback(workspace)
    (lineage.folder / "manifests" / part).write_bytes(data)
    shutil.copy(lineage.folder / f"manifests/{ids[0]}/files.parquet", lineage.folder / f"manifests/{ids[1]}")
    with pytest.raises(RequestError, match=f"manifest {ids[1]} is damaged"):
        rollback(workspace)
    for nobody in ("0" * 32, "../x"):
        with pytest.raises(RequestError, match="there is no whole manifest"):
            rollback(workspace, to=nobody)
    assert read_latest(workspace, None).id == ids[2]
