"""``curate recurate`` over an archive that grows, changes and shrinks."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import ConflictError, CurationError, RequestError
from curation.manifests.latest import publish_latest, read_latest
from curation.manifests.verify import verify
from curation.storage import Folder
from jobs import prune, recurate, report
from tests.recipes import write_rgb_archive, write_tar

pytestmark = pytest.mark.usefixtures("ray_local")

QUICK = ["encoder.filters=8", "cluster.k=5", "select.budget=0.4", "seed=3"]


class Years:
    """An archive that tars come to, and its workspace."""

    def __init__(self, folder: Path) -> None:
        self.pool = write_rgb_archive(folder / "pool", tiles=120, size=32, shards=6)
        self.archive, self.workspace = folder / "archive", folder / "workspace"
        self.archive.mkdir()
        self.arguments = [f"archive.url={self.archive}", f"workspace={self.workspace}", *QUICK]

    def take(self, *numbers: int) -> None:
        for number in numbers:
            shutil.copy(self.pool / f"rgb-{number:03d}.tar", self.archive)

    def prune(self, *more: str) -> dict[str, Any]:
        return prune.run([*self.arguments, *more])

    def go_on(self, *more: str) -> dict[str, Any]:
        return recurate.run([*self.arguments, *more])

    def kept(self, result: dict[str, Any]) -> set[str]:
        folder = Path(result["manifest"].removeprefix("file://")).parent
        return set(pq.read_table(folder / "manifest.parquet", columns=["sample_id"])["sample_id"].to_pylist())


@pytest.fixture
def years(tmp_path: Path) -> Years:
    return Years(tmp_path)


def test_a_night_takes_in_what_is_new_and_a_second_run_does_nothing(years: Years) -> None:
    years.take(0, 1, 2)
    first = years.prune()
    catalog = {path: path.stat().st_mtime_ns for path in years.workspace.rglob("catalog/**/*.parquet")}
    years.take(3)
    second = years.go_on()
    assert second["changed"] and second["shards"] == {"added": 1, "changed": 0, "gone": 0}
    assert second["parent"] == first["manifest"].split("/")[-2]
    assert (second["samples"], second["kept"]) == (80, 32)
    assert second["came"] - second["went"] == second["kept"] - first["kept"]
    after = {path: path.stat().st_mtime_ns for path in years.workspace.rglob("catalog/**/*.parquet")}
    assert {path: after[path] for path in catalog} == catalog and len(after) == len(catalog) + 1
    assert verify(second["manifest"], deep=True)["problems"] == []
    assert "What came in" in Path(second["report"].removeprefix("file://")).read_text()
    before = {path: path.stat().st_mtime_ns for path in years.workspace.glob("manifests/**/*")}
    again = years.go_on()
    assert not again["changed"] and again["manifest"] == second["manifest"]
    assert (again["came"], again["went"], again["drift"]) == (0, 0, None)  # of this night
    assert {path: path.stat().st_mtime_ns for path in years.workspace.glob("manifests/**/*")} == before
    page = report.run(years.arguments)["report"]  # the whole page, of decisions that lie in two manifests
    assert "80" in Path(page.removeprefix("file://")).read_text()


def test_shards_that_change_and_vanish(years: Years) -> None:
    years.take(0, 1, 2, 3)
    years.prune()
    shutil.copy(years.pool / "rgb-004.tar", years.archive / "rgb-001.tar")  # other content by the old name
    (years.archive / "rgb-002.tar").unlink()
    second = years.go_on()
    assert second["shards"] == {"added": 0, "changed": 1, "gone": 1}
    assert (second["samples"], second["kept"]) == (60, 24)
    assert verify(second["manifest"], deep=True)["problems"] == []
    assert years.go_on()["changed"] is False


def test_growth_keeps_everything(years: Years) -> None:
    years.take(0, 1)
    first = years.prune()
    years.take(2, 3)
    grown = years.go_on("recurate.mode=grow")
    assert years.kept(first) <= years.kept(grown)
    assert years.go_on("recurate.mode=grow")["changed"] is False
    back = years.go_on()  # to the budget again, though no shard is new
    assert back["changed"] and back["kept"] == 32
    assert years.go_on("select.budget=0.2")["kept"] == 16


def test_a_refit_carries_ids_and_stands_until_something_is_new(years: Years) -> None:
    years.take(0, 1, 2)
    years.prune()
    years.take(3)
    refit = years.go_on("recurate.mode=refit")
    content = json.loads(Path(refit["manifest"].removeprefix("file://")).read_text())["content"]
    fit = json.loads((years.workspace / f"clusters/{content['clusters']}/fit.json").read_text())
    told = fit["carried"]
    assert told["ids"] + told["new"] == 5 and told["ids"] + told["retired"] == 5
    assert content["parent"] and content["refit"]
    assert years.go_on("recurate.mode=refit")["changed"] is False
    assert years.go_on()["changed"] is False
    assert years.go_on("recurate.mode=refit", "select.balance=1.0")["changed"]
    assert years.go_on("recurate.mode=refit")["changed"]
    years.take(4)
    onward = years.go_on()
    assert onward["samples"] == 100 and verify(onward["manifest"])["problems"] == []


def test_a_refit_looks_at_the_bank_again(years: Years) -> None:
    years.take(0, 1)
    bank = write_rgb_archive(years.archive.parent / "bank", tiles=8, size=32, shards=1, seed=1)
    asked = ("cluster.references=seed", f"references.url={bank}")
    years.prune(*asked)
    assert years.go_on(*asked, "recurate.mode=refit")["changed"]
    assert not years.go_on(*asked, "recurate.mode=refit")["changed"]
    write_rgb_archive(bank, tiles=12, size=32, shards=1, seed=2)
    assert not years.go_on(*asked)["changed"]  # frozen with the clusters
    assert years.go_on(*asked, "recurate.mode=refit")["changed"]
    with pytest.raises(RequestError, match=r"cluster.references \(by references.url\) is none, but was seed"):
        years.go_on()


def test_too_many_quarantined_is_said_each_night(years: Years) -> None:
    years.take(0)
    write_tar(years.archive / "broken.tar", [("a.jpg", b"no image"), ("b.jpg", b"neither")])
    allowed = "archive.max_bad_fraction=1"
    years.prune(allowed)
    assert not years.go_on(allowed)["changed"]
    for _ in range(2):
        with pytest.raises(CurationError, match="2 of 22 samples are quarantined") as caught:
            years.go_on()
    assert caught.value.result is not None and not caught.value.result["changed"]
    assert read_latest(Folder(str(years.workspace)), None).id in caught.value.result["manifest"]


def test_what_no_cluster_explains_gets_clusters_of_its_own(years: Years) -> None:
    vectors = years.archive.parent / "vectors"
    vectors.mkdir()

    def tar(name: str, around: int) -> None:
        """Forty tiles whose vectors, which somebody else has computed, lie about an axis."""
        keys = [f"{name}_{i:02}" for i in range(40)]
        write_tar(years.archive / f"{name}.tar", [(f"{key}.jpg", b"\xff\xd8\xff\xe0") for key in keys])
        rows = np.eye(8)[around] + np.random.default_rng(around).normal(0, 0.05, (40, 8))
        table = pa.table({"shard": [f"root0/{name}.tar"] * 40, "key": keys, "embedding": list(rows.astype(np.float32))})
        pq.write_table(table, vectors / f"{name}.parquet")

    years.arguments += ["encoder=precomputed", f"encoder.path={vectors}", "select.duplicates=false"]
    years.arguments = [argument for argument in years.arguments if "filters" not in argument]
    for number in range(5):
        tar(f"known{number}", number)
    years.prune()
    tar("new", 6)
    result = years.go_on()
    content = json.loads(Path(result["manifest"].removeprefix("file://")).read_text())["content"]
    told = content["selection"]["recurate"]
    assert result["drift"]["far_share"] == 1 and told["free_clusters"] == 6  # the root of 40
    table = pq.read_table(years.workspace / f"clusters/{content['clusters']}/centroids.parquet")
    assert table.num_rows == 5 + told["free_clusters"]
    rows = pq.read_table(Path(result["manifest"].removeprefix("file://")).parent / "manifest.parquet").to_pylist()
    assert {row["cluster"] >= 5 for row in rows if row["key"].startswith("new")} == {True}
    assert {row["cluster"] >= 5 for row in rows if not row["key"].startswith("new")} == {False}
    assert verify(result["manifest"])["problems"] == []
    tar("known7", 2)
    again = years.go_on()
    assert again["samples"] == 280 and again["drift"]["far_share"] < 0.2


def test_named_curations_share_what_is_encoded(years: Years) -> None:
    years.take(0, 1)
    years.prune()
    other = years.prune("name=small", "select.budget=0.1")
    years.take(2)
    one, two = years.go_on(), years.go_on("name=small", "select.budget=0.1")
    assert two["parent"] == other["manifest"].split("/")[-2] and (one["kept"], two["kept"]) == (24, 6)
    workspace = Folder(str(years.workspace))
    assert read_latest(workspace, None).id != read_latest(workspace, "small").id


def test_of_two_at_once_one_wins(years: Years, monkeypatch: pytest.MonkeyPatch) -> None:
    years.take(0, 1)
    first = years.prune()
    years.take(2)
    workspace, select = Folder(str(years.workspace)), recurate.recurate.__globals__["write_page"]

    def meanwhile(*args: Any) -> Any:
        publish_latest(workspace, None, read_latest(workspace, None), "f" * 32)
        return select(*args)

    monkeypatch.setitem(recurate.recurate.__globals__, "write_page", meanwhile)
    with pytest.raises(ConflictError, match="another run won"):
        years.go_on()
    assert read_latest(workspace, None).id == "f" * 32
    assert (years.workspace / "manifests" / first["manifest"].split("/")[-2]).exists()


def test_what_is_refused(years: Years) -> None:
    years.take(0, 1)
    with pytest.raises(RequestError, match="run curate prune first"):
        years.go_on()
    first = years.prune()
    with pytest.raises(RequestError, match=r"select.balance is 0.9, but was 0.5 .* recurate.mode=refit"):
        years.go_on("select.balance=0.9")
    with pytest.raises(RequestError, match="encoder.filters is 16, but was 8 .* recurate.mode=refit"):
        years.go_on("encoder.filters=16")
    with pytest.raises(RequestError, match="catalog.thumbnails is 0.0, but was 0.1"):
        years.go_on("catalog.thumbnails=0")
    with pytest.raises(RequestError, match="choose grow, rebalance or refit"):
        years.go_on("recurate.mode=replace")
    with pytest.raises(RequestError, match=r"units of samples.*recurate.mode=refit"):
        years.go_on("select.unit=source_id")
    for path in years.archive.iterdir():
        os.remove(path)
    years.take(5)
    with pytest.raises(RequestError, match=r"budget"):
        years.go_on("select.budget=30")
    assert read_latest(Folder(str(years.workspace)), None).id == first["manifest"].split("/")[-2]
    shutil.rmtree(Path(first["manifest"].removeprefix("file://")).parent)
    with pytest.raises(RequestError, match="which is in force, is gone: .* curate rollback"):
        years.go_on()
