"""A manifest that was tampered with, or whose archive has gone, does not pass."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.errors import RequestError
from curation.manifests.schema import Manifest, content_id
from curation.manifests.verify import verify
from tests.recipes import write_tar
from tests.selection_recipes import HEADER, Workspace, make_workspace

pytestmark = pytest.mark.usefixtures("ray_local")


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour % 256, colour // 256, 3)).save(buffer, "png")
    return buffer.getvalue()


def with_archive(folder: Path) -> tuple[Workspace, Manifest]:
    """A manifest over tars that are really there."""
    workspace = make_workspace(folder, shards=4, rows=20, clusters=2)
    samples = workspace.samples
    placed = {}
    for shard in samples["shard"].unique().to_pylist():
        keys = samples.filter(pc.equal(samples["shard"], shard))["key"].to_pylist()
        path = write_tar(folder / "archive" / shard, [(f"{key}.png", png(i)) for i, key in enumerate(keys)])
        with tarfile.open(path) as tar:
            placed |= {member.name: (member.offset_data, member.size) for member in tar}
    names = [f"{key}.png" for key in samples["key"].to_pylist()]
    offset, size = zip(*(placed[name] for name in names), strict=True)
    members = [[{"name": name, "offset": placed[name][0], "size": placed[name][1]}] for name in names]
    workspace = make_workspace(folder, 4, 20, 2, offset=offset, size=size, members=members)
    header = {**HEADER, "provenance": {"roots": {"root": str(folder / "archive/root")}}}
    return workspace, workspace.select(header=header)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("workspace")
    return folder, with_archive(folder)[1]


@pytest.fixture
def copy(made: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """A manifest's folder to break; the archive lies beside its workspace."""
    shutil.copytree(made[0], tmp_path / "copy")
    return tmp_path / "copy" / made[1].folder


def test_a_sound_manifest_passes_and_every_kept_sample_is_read(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    result = verify(manifest.url, deep=True)
    assert result["problems"] == []
    assert result["ok"]
    assert result["read"] == result["kept"] == manifest.kept
    assert result["samples"] == manifest.samples


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def reseal(folder: Path) -> Path:
    """Bring every hash and the folder's name up to date, so that only the rows can give the change away."""
    files = pq.read_table(folder / "files.parquet").to_pylist()
    for file in files:
        data = (folder / file["path"]).read_bytes()
        file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    pq.write_table(pa.Table.from_pylist(files), folder / "files.parquet")
    header = json.loads((folder / "manifest.json").read_text())
    header["content"]["files"] = hashlib.sha256((folder / "files.parquet").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(header))
    return folder.rename(folder.parent / content_id(header["content"]))


def test_changed_missing_and_unsealed_files_are_named(copy: Path) -> None:
    part = copy / "decisions/part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[10] ^= 1
    part.write_bytes(bytes(data))
    (copy / "decisions/part-00002.parquet").unlink()
    problems = verify(str(copy / "manifest.json"))["problems"]
    assert len(problems) == 2
    assert problems[0].startswith("decisions/part-00001.parquet: other bytes")
    assert problems[1] == "decisions/part-00002.parquet is missing"
    (copy / "files.parquet").write_bytes(part.read_bytes())
    assert "files.parquet is not the one" in verify(str(copy))["problems"][0]


def test_another_header_has_another_id(copy: Path) -> None:
    header = json.loads((copy / "manifest.json").read_text())
    header["content"]["config"] = {"seed": 1}
    (copy / "manifest.json").write_text(json.dumps(header))
    assert "not that of its folder" in verify(str(copy))["problems"][0]


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("manifest.parquet", lambda t: t.take(pa.array([1, 0, *range(2, len(t))])), "not sorted"),
        ("manifest.parquet", lambda t: t.slice(1), "kept samples"),
        ("manifest.parquet", lambda t: t.set_column(12, t.schema.field(12), pa.array([0] * len(t))), "has rank"),
        ("decisions/part-00000.parquet", lambda t: t.slice(1), "decisions"),
        (
            "decisions/part-00000.parquet",
            lambda t: t.set_column(4, t.schema.field(4), pa.array(["dropped"] * len(t))),
            "does not follow from its reason",
        ),
    ],
)
def test_rows_that_do_not_add_up_are_found_behind_true_hashes(
    copy: Path, file: str, change: Callable[[pa.Table], pa.Table], problem: str
) -> None:
    rewrite(copy / file, change)
    problems = verify(str(reseal(copy)))["problems"]
    assert any(problem in text for text in problems), problems


def test_samples_that_have_gone_or_broken_are_named(copy: Path) -> None:
    workspace = copy.parent.parent
    kept = pq.read_table(copy / "manifest.parquet").to_pylist()
    gone, broken = kept[0], next(row for row in kept if row["shard"] != kept[0]["shard"])
    (workspace / "archive" / gone["shard"]).unlink()
    with open(workspace / "archive" / broken["shard"], "r+b") as file:
        file.seek(broken["offset"] + 8)
        file.write(b"\0" * 30)
    result = verify(str(copy), deep=True, roots={"root": str(workspace / "archive/root")})
    assert not result["ok"]
    lost = sum(row["shard"] == gone["shard"] for row in kept)
    assert len(result["problems"]) == lost + 1
    assert result["read"] == len(kept) - lost - 1
    assert any(broken["key"] in text for text in result["problems"])


def test_no_manifest_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no manifest"):
        verify(str(tmp_path / "manifest.json"))
