"""What nobody needs goes, what a kept manifest needs stays: whatever the lineage, wherever gc is killed."""

import json
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation.errors import ConflictError, CurationError, RequestError
from curation.manifests import collect as module
from curation.manifests.chain import referenced
from curation.manifests.collect import collect
from curation.manifests.diff import diff
from curation.manifests.rollback import check_whole, rollback
from curation.manifests.verify import verify
from curation.storage import Folder
from tests.command import curate
from tests.lineage_recipes import Lineage, Row, clusters, sample
from tests.s3 import s3_server


class Killed(BaseException):
    """What a SIGKILL is to a process: nothing is done any more."""


@dataclass
class Made:
    """A workspace of several lineages.

    Attributes:
        sources: of each manifest its shards; None: it does not tell.
    """

    lineage: Lineage
    ids: list[str] = field(default_factory=list)
    parents: dict[str, str | None] = field(default_factory=dict)
    content: dict[str, dict[str, str]] = field(default_factory=dict)
    sources: dict[str, set[str] | None] = field(default_factory=dict)
    pointers: dict[str | None, str] = field(default_factory=dict)

    @property
    def workspace(self) -> Folder:
        return Folder(str(self.lineage.folder))


def make(folder: Path, seed: int, manifests: int = 9) -> Made:
    """Manifests with and without parents, over clusters, catalogs and shards that change on the way."""
    draw = random.Random(seed)
    made = Made(Lineage(folder))
    for number in range(manifests):
        parent = draw.choice([None, *made.ids[-3:], *made.ids[-1:] * 3])
        content = dict(made.content[parent]) if parent else {}
        if parent is None or draw.random() < 0.3:
            content = {"clusters": f"c{draw.randrange(6)}", "catalog": f"cat{draw.randrange(3)}"}
        rows: dict[tuple[str, int], Row] = {}
        if parent:
            rows = {(row["shard"], row["index"]): row for row in made.lineage.rows[parent]}
        for shard in draw.sample([f"root0/{name}.tar" for name in "abcdefgh"], 3):
            rows = {at: row for at, row in rows.items() if at[0] != shard}
            for i in range(draw.randrange(4)):
                rows[shard, i] = sample(shard, i, draw.choice(["sampled", "quota"]), number)
        made.lineage.catalog(list(rows.values()), content["catalog"])
        id = made.lineage.write(list(rows.values()), parent, draw.choice([2, 2, 3]), scores=f"s{number % 4}", **content)
        made.ids.append(id)
        made.parents[id], made.content[id] = parent, content
        made.sources[id] = {shard for shard, _ in rows}
        if draw.random() < 0.1:
            (folder / f"manifests/{id}/sources.parquet").unlink()
            made.sources[id] = None
        write(folder / f"reports/{id}/index.html", b"page")
    for number in range(6):
        clusters(folder, f"c{number}", goes_on_from=f"c{number - 3}" if number > 3 else None)
        write(folder / f"scores/s{number}/score.json", b"{}")
    for catalog in ("cat0", "cat1", "cat2", "unused"):
        write(folder / f"encoders/{catalog}/artefact.safetensors", b"artefact")
        write(folder / f"catalog/{catalog}/references/bank.tar.parquet", b"rows")
        write(folder / f"quarantine/{catalog}/root0/a.tar.parquet", b"rows")
    for name in (None, "sar")[: draw.randrange(1, 3)]:
        made.pointers[name] = draw.choice(made.ids[manifests // 2 :])
        made.lineage.point(made.pointers[name], name)
    return made


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def needed(made: Made, keep: int) -> set[str]:
    """The manifests that must stay, by the definition."""
    kept: set[str] = set()
    for id in made.pointers.values():
        line: list[str | None] = [id]
        while len(line) <= keep and line[-1]:
            line.append(made.parents[line[-1]])
        kept |= {one for one in line if one}
    while more := {other for id in kept for other in referenced(made.workspace.child(f"manifests/{id}"))} - kept:
        kept |= more
    return kept


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def check_kept(made: Made, keep: int, kept: set[str]) -> None:
    """All that the kept manifests need is there."""
    folder = made.lineage.folder
    for id in kept:
        assert verify(made.lineage.manifest(id))["problems"] == [], id
        content = made.content[id]
        number = int(content["clusters"][1:])
        for name in [number, number - 3][: 2 if number > 3 else 1]:
            assert (folder / f"clusters/c{name}/centroids.parquet").exists()
        assert (folder / f"encoders/{content['catalog']}/artefact.safetensors").exists()
        assert (folder / f"catalog/{content['catalog']}/references/bank.tar.parquet").exists()
        for shard in made.sources[id] or {row["shard"] for row in made.lineage.rows[id]}:
            assert (folder / f"catalog/{content['catalog']}/{shard}.parquet").exists()
        assert (folder / f"reports/{id}/index.html").exists()
    assert (folder / "catalog/unused/references/bank.tar.parquet").exists()
    assert (folder / "clusters").is_dir()


@settings(max_examples=20, deadline=None)
@example(seed=97, keep=1, killed_after=24)  # between a catalog file and its quarantine
@given(seed=st.integers(0, 2**30), keep=st.integers(0, 4), killed_after=st.integers(0, 40))
def test_what_kept_manifests_need_stays_wherever_gc_is_killed(
    tmp_path_factory: pytest.TempPathFactory, seed: int, keep: int, killed_after: int
) -> None:
    made = make(tmp_path_factory.mktemp("gc"), seed)
    folder = made.lineage.folder
    kept = needed(made, keep)
    gone = set(made.ids) - kept
    undisturbed = shutil.copytree(folder, folder.parent / f"{folder.name}-copy")
    before = tree(folder)
    told = collect(made.workspace, keep)
    assert tree(folder) == before and not told["removed"]
    assert set(told["kept"]["first"]) == kept and set(told["manifests"]["first"]) == gone
    result = collect(Folder(str(undisturbed)), keep, remove=True)
    assert result == {**told, "removed": True, "workspace": result["workspace"]}
    sizes = {path: (folder / path).stat().st_size for path in before - tree(undisturbed)}
    quarantined = sum(size for path, size in sizes.items() if path.startswith("quarantine"))
    assert told["bytes"] <= sum(sizes.values()) <= told["bytes"] + quarantined

    with pytest.MonkeyPatch.context() as patch:
        left = [killed_after]

        def dying(method: Any) -> Any:
            def call(self: Folder, *arguments: str) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                method(self, *arguments)

            return call

        patch.setattr(module, "ThreadPoolExecutor", Serial)
        patch.setattr(Folder, "move", dying(Folder.move))
        patch.setattr(Folder, "remove", dying(Folder.remove))
        try:
            collect(made.workspace, keep, remove=True)
        except Killed:
            pass
    for id in made.ids:
        if (folder / f"manifests/{id}/manifest.json").exists():
            check_whole(made.workspace, id)
    check_kept(made, keep, kept)
    collect(made.workspace, keep, remove=True)
    assert tree(folder) == tree(undisturbed)
    check_kept(made, keep, kept)
    assert {path.name for path in (folder / "manifests").iterdir() if path.is_dir()} == kept
    again = collect(made.workspace, keep, remove=True)
    assert again["manifests"]["count"] == again["folders"]["count"] == again["shards"]["count"] == 0


class Serial:
    """A pool of one, in this thread."""

    def __init__(self, workers: int) -> None:
        self.map = map

    def __enter__(self) -> "Serial":
        return self

    def __exit__(self, *_: object) -> None:
        pass


# a chain by hand


def chain(folder: Path, length: int = 4, parts: int = 1) -> tuple[Lineage, list[str]]:
    """Each night a shard arrives and the oldest goes; the last manifest is in force. A single part is written anew."""
    lineage, ids = Lineage(folder), []
    for night in range(length):
        rows = [sample(f"root0/{n}.tar", i, "sampled", n) for n in range(night, night + 3) for i in range(3)]
        lineage.catalog(rows)
        clusters(folder, f"c{night}")
        ids.append(lineage.write(rows, ids[-1] if ids else None, parts, clusters=f"c{night}"))
    write(folder / "encoders/cat0/artefact.safetensors", b"artefact")
    lineage.point(ids[-1])
    return lineage, ids


def test_the_command_says_what_would_go_and_removes_it_when_told_to(tmp_path: Path) -> None:
    lineage, ids = chain(tmp_path)
    kept = {ids[2], ids[3]}
    before = tree(tmp_path)
    dry = curate("gc", f"workspace={tmp_path}", "--keep", "1")
    assert dry.status == 0 and tree(tmp_path) == before
    assert "--yes removes it" in dry.stderr and f"  {ids[0]}" in dry.stderr
    done = curate("gc", f"workspace={tmp_path}", "--keep", "1", "--yes")
    assert done.result["removed"] and set(done.result["kept"]["first"]) == kept
    assert not (tmp_path / "catalog/cat0/root0/0.tar.parquet").exists()  # only the first night has read it
    assert (tmp_path / "catalog/cat0/root0/5.tar.parquet").exists()
    assert not (tmp_path / "clusters/c0").exists() and (tmp_path / "clusters/c3").exists()
    for id in kept:
        assert verify(lineage.manifest(id))["ok"]
    assert diff(lineage.manifest(ids[2]), lineage.manifest(ids[3]))["kept"]["came"] == 3
    assert curate("gc", f"workspace={tmp_path}", "--keep", "many").status == 2
    assert curate("gc", "--yes").status == 2
    assert curate("gc", f"workspace={tmp_path}/typo", "--yes").status == 2 and not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    "where", ["unfinished/{now}-abc/part", "runs/20260101T000000Z-recurate-abcd.json", "unfinished/odd/part"]
)
def test_nothing_goes_while_a_run_may_need_it(tmp_path: Path, where: str) -> None:
    _, ids = chain(tmp_path)
    heartbeat = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run = {"state": "running", "job": "recurate", "heartbeat": heartbeat}
    path = tmp_path / where.format(now=int(time.time()))
    write(path, json.dumps(run).encode())
    workspace = Folder(str(tmp_path))
    with pytest.raises(CurationError, match="nothing is removed while a run may need it") as error:
        collect(workspace, 0, remove=True)
    assert error.value.result and error.value.result["manifests"]["count"] and not error.value.result["removed"]
    assert (tmp_path / f"manifests/{ids[0]}/manifest.json").exists()
    if "odd" not in where:
        assert collect(workspace, 0, remove=True, now=time.time() + 90_000)["removed"]  # killed, more than a day ago
    path.unlink()
    for state in ({"state": "done"}, {"job": "gc"}):
        write(tmp_path / "runs/x.json", json.dumps(run | state).encode())
        assert collect(workspace, 0, remove=True)["removed"]


def test_the_last_days_manifests_stay(tmp_path: Path) -> None:
    lineage, ids = chain(tmp_path)
    path = tmp_path / f"manifests/{ids[0]}/manifest.json"
    header = json.loads(path.read_text())
    header["provenance"] |= {"begun": "2026-11-26T03:00:00Z", "seconds": 60.0}
    path.write_text(json.dumps(header))
    published = 1795662060.0
    assert ids[0] in collect(Folder(str(tmp_path)), 0, now=published + 86_000)["kept"]["first"]
    assert ids[0] in collect(Folder(str(tmp_path)), 0, now=published + 87_000)["manifests"]["first"]


def test_what_a_distilled_set_names_stays(tmp_path: Path) -> None:
    chain(tmp_path)
    assert "clusters/c0" in (before := collect(Folder(str(tmp_path)), 0)["folders"])["first"]
    header = {"id": "x", "content": {"distilled": {"catalog": "cat0", "clusters": "c0"}}}
    write(tmp_path / "distilled/abc/manifest.json", json.dumps(header).encode())
    write(tmp_path / "distilled/abc/students/0123/random-0.json", b"0.5")  # no object, and nobody need read it
    assert "clusters/c0" not in (after := collect(Folder(str(tmp_path)), 0)["folders"])["first"]
    assert after["count"] == before["count"] - 1


def test_what_is_put_in_force_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback between gc's look and its first removal: one of the two notices, and all is as it was."""
    lineage, ids = chain(tmp_path)
    workspace = Folder(str(tmp_path))
    before = tree(tmp_path)
    plan = module.plan_removal

    def slowly(*arguments: Any) -> Any:
        found = plan(*arguments)
        assert rollback(workspace, to=ids[0])["after"] == ids[0]
        return found

    monkeypatch.setattr(module, "plan_removal", slowly)
    with pytest.raises(ConflictError, match=f"manifest {ids[0]} came to be needed"):
        collect(workspace, 0, remove=True)
    assert tree(tmp_path) - before == {"manifests/.latest.json.lock"} and before <= tree(tmp_path)
    assert verify(lineage.manifest(ids[0]))["ok"]


def test_what_was_published_elsewhere_and_applied_here_stays(tmp_path: Path) -> None:
    lineage, ids = chain(tmp_path)
    applied = lineage.write([sample("copy/0.tar", 0, "sampled")], applied={"published": "p"}, catalog="theirs")
    told = collect(Folder(str(tmp_path)), 0)
    assert set(told["kept"]["first"]) == {ids[-1], applied}


@pytest.mark.parametrize("damage", ["manifests/latest.json", "header", "files", "no pointer"])
def test_what_cannot_be_understood_is_never_superfluous(tmp_path: Path, damage: str) -> None:
    _, ids = chain(tmp_path)
    if damage == "header":
        write(tmp_path / f"manifests/{ids[1]}/manifest.json", b"{")
    elif damage == "no pointer":
        (tmp_path / "manifests/latest.json").unlink()
    elif damage == "files":
        (tmp_path / f"manifests/{ids[3]}/files.parquet").unlink()
    else:
        write(tmp_path / damage, b'{"id": "nobody"}')
    before = tree(tmp_path)
    with pytest.raises(RequestError):
        collect(Folder(str(tmp_path)), 0, remove=True)
    assert tree(tmp_path) == before


def test_in_object_storage(tmp_path: Path) -> None:
    lineage, ids = chain(tmp_path, 5, parts=3)
    assert referenced(Folder(lineage.manifest(ids[4])))
    with s3_server() as s3:
        for path in tree(tmp_path):
            s3.client.upload_file(str(tmp_path / path), s3.bucket, f"work/{path}")
        workspace = Folder(f"{s3.url}/work", s3.storage)
        there, here = collect(workspace, 1, remove=True), collect(Folder(str(tmp_path)), 1, remove=True)
        assert {**there, "workspace": ""} == {**here, "workspace": ""}
        assert {file.path for file in workspace.list()} == tree(tmp_path)
        manifests = [f"{s3.url}/work/manifests/{id}" for id in ids[3:]]
        assert verify(manifests[1], storage=s3.storage)["ok"]
        told = diff(*manifests, f"{s3.url}/work/changed.parquet", s3.storage)
        assert (told["kept"], told["by"]) == tuple(
            diff(lineage.manifest(ids[3]), lineage.manifest(ids[4]))[key] for key in ("kept", "by")
        )
        assert workspace.exists("changed.parquet")
        assert rollback(workspace)["after"] == ids[3]
