"""``curate compare`` from outside: arms are measured once, go on after a kill, and what decides is told for people."""

import json
import shutil
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from curation.errors import RequestError
from jobs import compare
from tests.browser import Browser
from tests.command import start
from tests.recipes import write_rgb_archive
from tests.test_report import FAINT, OUTSIDE
from tests.test_resume import kill_family

SMALL = [
    "catalog.fit_samples=64",
    "encoder.filters=8",
    "compare.scorer={name: random_conv, seed: 5, filters: 8}",
    "compare.strategies=[balanced,oracle]",
    "compare.budgets=[0.2]",
    "compare.seeds=2",
    "compare.steps=3",
    "compare.size=16",
    "runtime.max_actors=1",
]
ARMS = 2 * (1 + 3)  # seeds times full, random, balanced and oracle


@dataclass
class Compared:
    """A finished comparison."""

    archive: Path
    workspace: Path
    result: dict[str, Any]

    @property
    def arguments(self) -> list[str]:
        return [*SMALL, f"archive.url={self.archive / 'archive'}", f"compare.test.url={self.archive / 'test'}"]

    @property
    def folder(self) -> Path:
        return self.workspace / "comparisons" / Path(self.result["comparison"]).parent.name

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "comparison.json").read_text()))

    def again(self, workspace: Path) -> "Compared":
        """The same command in a workspace."""
        return Compared(self.archive, workspace, compare.run([*self.arguments, f"workspace={workspace}"]))

    def figures(self) -> list[dict[str, Any]]:
        """Every figure, without what it took."""
        return pq.read_table(self.folder / "results.parquet").drop_columns("seconds").to_pylist()

    def arms(self) -> dict[str, int]:
        """Files of measurements, and when they were written."""
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "arms").iterdir()}


@pytest.fixture(scope="module")
def compared(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compare")
    write_rgb_archive(folder / "archive", tiles=120, size=32, shards=2, seed=0)
    write_rgb_archive(folder / "test", tiles=48, size=32, shards=1, seed=1)
    write_rgb_archive(folder / "copies", tiles=8, size=32, shards=1, seed=0)  # the archive's first tiles again
    (folder / "copies" / "rgb-000.tar").rename(folder / "test" / "copied.tar")
    return Compared(folder, folder / "workspace", {}).again(folder / "workspace")


def test_every_arm_is_measured_in_every_way(compared: Compared) -> None:
    assert len(compared.arms()) == 3 * ARMS
    rows = compared.figures()
    arms = {(row["strategy"], row["budget"], row["seed"], row["kept"]) for row in rows}
    assert arms == {
        *(("full", 1.0, seed, 120) for seed in (0, 1)),
        *((name, 0.2, seed, 24) for name in ("random", "balanced", "oracle") for seed in (0, 1)),
    }
    macro = [row["value"] for row in rows if row["metric"].endswith("_macro")]
    assert len(macro) == 5 * ARMS and all(0 <= value <= 1 for value in macro)


def test_the_result_line_says_what_to_do(compared: Compared) -> None:
    result = compared.result
    assert set(result) == {"comparison", "report", "verdict", "best", "advice"}
    assert set(result["verdict"]) == {"balanced@0.2", "oracle@0.2"}
    assert set(result["verdict"].values()) <= {"better", "worse", "no difference"}
    assert result["best"]["0.2"] in ("balanced", "random", "full")
    assert result["advice"].startswith("At 20 %, ")


def test_test_samples_of_the_archive_do_not_decide(compared: Compared) -> None:
    counts = compared.told["samples"]
    assert (counts["test"], counts["test_shared"], counts["test_deciding"]) == (56, 8, 48)
    assert any(text.startswith("8 of 56 test samples are in the archive") for text in compared.told["warnings"])


def test_no_manifest_is_published(compared: Compared) -> None:
    assert not (compared.workspace / "manifests").exists()


def test_a_test_set_that_is_the_archive_is_refused(ray_local: None, compared: Compared) -> None:
    arguments = [*compared.arguments, f"workspace={compared.workspace}"]
    with pytest.raises(RequestError, match="disjoint from the archive"):
        compare.run([*arguments, f"compare.test.url={compared.archive / 'archive'}"])


@pytest.mark.parametrize(
    "scorer", ["{name: random_conv, seed: 0}", "{name: random_conv, seed: 0, filters: 4, batch: 8}"]
)
def test_the_encoder_that_selects_does_not_score(ray_local: None, compared: Compared, scorer: str) -> None:
    arguments = [text for text in compared.arguments if not text.startswith("compare.scorer")]
    with pytest.raises(RequestError, match="compare.scorer is the encoder that selects"):
        compare.run([*arguments, f"workspace={compared.workspace}", f"compare.scorer={scorer}"])


def test_only_what_is_missing_is_trained(ray_local: None, compared: Compared, tmp_path: Path) -> None:
    shutil.copytree(compared.workspace, tmp_path / "workspace")
    other = Compared(compared.archive, tmp_path / "workspace", compared.result)
    before = other.arms()
    gone = sorted(name for name in before if "-1-" in name)[:4]
    for name in gone:
        (other.folder / "arms" / name).unlink()
    again = other.again(other.workspace)
    after = again.arms()
    assert {name for name in after if after[name] != before[name]} == set(gone)
    assert again.figures() == compared.figures()
    assert again.result["verdict"] == compared.result["verdict"]


def test_a_killed_comparison_goes_on(ray_local: None, compared: Compared, tmp_path: Path) -> None:
    shutil.copytree(
        compared.workspace, tmp_path / "workspace", ignore=shutil.ignore_patterns("arms", "results.parquet")
    )
    other = Compared(compared.archive, tmp_path / "workspace", compared.result)
    tag = f"compare-{tmp_path.name}"
    cluster = f"runtime.address={ray.get_runtime_context().gcs_address}"
    process = start("compare", *compared.arguments, f"workspace={other.workspace}", cluster, CURATE_TEST_RUN=tag)
    arms, deadline = other.folder / "arms", time.monotonic() + 200
    while not (arms.exists() and len(list(arms.glob("*.json"))) > 2) and time.monotonic() < deadline:
        time.sleep(0.2)
    kill_family(process, tag)
    process.communicate()
    before = {name: at for name, at in other.arms().items() if name.endswith(".json")}
    assert len(before) > 2
    again = other.again(other.workspace)
    after = again.arms()
    assert before.items() <= after.items()
    assert again.figures() == compared.figures()


class Outline(HTMLParser):
    """Elements that are still open, and what is fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script" and not [name for name, _ in attrs if name.startswith("on")]
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_well_formed_file(compared: Compared) -> None:
    page = Path(compared.result["report"].removeprefix("file://")).read_text()
    outline = Outline(page)
    assert outline.open == []
    assert all(url.startswith(("data:", "#")) for url in outline.fetched)
    assert compared.told["advice"][0].split(":")[0] in page
    assert page.index("<table") < page.index("<svg")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole(compared: Compared, browser: Browser, width: int, dark: bool) -> None:
    url = compared.result["report"]
    browser.open(url, width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert [asked for asked in browser.requests() if not asked.startswith("data:")] == [url]
    assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(FAINT) == []
