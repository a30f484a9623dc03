"""The page: its counts add up, its tiles are the right ones, it is one safe file, and a browser shows it whole."""

import io
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from curation.archive.sample import sample_id
from curation.catalog.calibration import calibration_path
from curation.catalog.schema import QUARANTINE_SCHEMA, catalog_schema
from curation.catalog.store import CatalogStore, parquet_bytes
from curation.errors import CurationError
from curation.manifests.schema import DECISIONS_SCHEMA, DROPPED, KEPT, REASONS
from curation.report.data import Figures, gather
from curation.report.page import WHY, _stages, write_report
from curation.report.words import duration, p_value, percent, size
from curation.scoring.signature import signature_and_patch
from curation.scoring.thumbnail import in_share
from curation.storage import Folder

SHARDS, ROWS, CLUSTERS, DIM, PARTS = 5, 80, 9, 8, 2
ALL = SHARDS * ROWS
NASTY = "<script>alert(1)</script>&\"' ключ"
RANGES = np.float32([[0, 255]] * 3)
CALIBRATION = {
    "tiles": 123,
    "placed": 7,
    "threshold": 0.9,
    "encoded_as": "JPEG of <quality> 75",
    "copies": {
        kind: {"of": 123, "merged": 120, "share": 120 / 123, "low": 0.9308, "high": 0.9917}
        for kind in ("turned", "encoded", "shifted", "relit")
    },
    "others": {
        "any": {"of": 3075, "merged": 0, "share": 0.0, "low": 0.0, "high": 0.001248, "same_ground": 11},
        "nearest": {"of": 0, "merged": 0, "share": None, "low": 0.0, "high": 1.0},
    },
}
AUDIT = [
    {"modality": "S2", "declared_offset": None, "tiles": 10, "dark_p5": 88.5, "below_1000": 9, "shards": "<old>.tar"},
    {"modality": "S2", "declared_offset": -1000, "tiles": 30, "dark_p5": 1093.0, "below_1000": 0, "shards": "new.tar"},
    {"modality": "S1", "units": "db", "tiles": 40, "shards": "radar.tar"},
]
LABELS = ("forest", "<b>town</b>", "water", None)


@dataclass
class Workspace:
    """A small finished run, and its decisions in one table."""

    folder: Folder
    store: CatalogStore
    shards: list[str]
    decisions: pa.Table
    labels: dict[str, str | None]

    @property
    def clusters(self) -> Folder:
        return self.folder.child("clusters/c1")

    @property
    def manifest(self) -> Folder:
        return self.folder.child("manifests/m1")

    def copy(self, root: Path) -> "Workspace":
        """The same run elsewhere, to be spoilt."""
        shutil.copytree(self.folder.base, root)
        folder = Folder(str(root))
        return replace(self, folder=folder, store=CatalogStore(folder, self.store.catalog_id))

    def report(self, **more: Any) -> str:
        url = write_report(self.store, self.shards, self.clusters, self.manifest, self.folder, more.get("reads"))
        return Path(url.removeprefix("file://")).read_text("utf-8")

    def publish_decisions(self, rows: pa.Table, parts: int = 1) -> None:
        """Write decisions in so many parts, in the place of all others."""
        for file in self.manifest.list("decisions"):
            self.manifest.remove(file.path)
        shards = [self.shards.index(shard) % parts for shard in rows["shard"].to_pylist()]
        for part in range(parts):
            mine = rows.filter(pa.array([number == part for number in shards]))
            self.manifest.publish(f"decisions/part-{part:05d}.parquet", parquet_bytes(mine))
        files = [
            {"path": f"decisions/part-{part:05d}.parquet", "size": 0, "sha256": "", "rows": 0} for part in range(parts)
        ]
        self.manifest.publish("files.parquet", parquet_bytes(pa.Table.from_pylist(files)))

    def gather(self) -> Figures:
        return gather(self.store, self.shards, self.clusters, self.manifest)

    def rows(self, **equal: Any) -> list[dict[str, Any]]:
        return [row for row in self.decisions.to_pylist() if all(row[key] == value for key, value in equal.items())]


def noise(rng: np.random.Generator) -> np.ndarray:
    """A tile (3, 64, 64) about one colour."""
    return np.clip(rng.normal(rng.uniform(40, 200, (3, 1, 1)), 20, (3, 64, 64)), 0, 255).astype(np.uint8)


def picture(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(rng).transpose(1, 2, 0)).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def make_workspace(root: Path, pixels: bool = True, cut: float | None = 3.0) -> Workspace:
    """Fabricate catalog, quarantine, clusters and manifest in the pipeline's formats."""
    rng = np.random.default_rng(7)
    folder = Folder(str(root))
    store = CatalogStore(folder, "abc")
    shards = [f"root/part {i}.tar" for i in range(SHARDS)]
    decisions: list[dict[str, Any]] = []
    labels: dict[str, str | None] = {}
    for number, shard in enumerate(shards):
        rows = [row(rng, shard, i, number, pixels) for i in range(1, ROWS + 1)]  # index 0 is quarantined
        decisions += [decide(rng, item, cut) for item in rows]
        labels |= {item["sample_id"]: item["label"] for item in rows}
        schema = catalog_schema(DIM)
        bad = {"shard": shard, "index": 0, "key": NASTY, "stage": "decode", "error": "BadImage", "message": "<i>!</i>"}
        footer = {"read": ROWS + 1, "kept": ROWS, "quarantined": 1, "profile": {"device": "cpu"}}
        table = pa.Table.from_pylist([{k: v for k, v in item.items() if k in schema.names} for item in rows], schema)
        store.publish(shard, table, pa.Table.from_pylist([bad], QUARANTINE_SCHEMA), footer)
    mark_duplicates(decisions)
    table = pa.Table.from_pylist(decisions, DECISIONS_SCHEMA)
    publish_clusters(folder, table)
    content = {
        "archive": {"roots": ["root"]},
        "warnings": [],
        "clusters": "c1",
        "config": {
            "seed": 0,
            "archive": {"max_bad_fraction": 0.05},
            "catalog": {"thumbnails": 0.5},
            "encoder": {"name": "random_conv", "dim": DIM},
            "select": {"strategy": "balanced", "budget": 0.15, "duplicates": True},
        },
    }
    provenance = {
        "begun": "2031-05-06T07:08:09Z",
        "roots": {"root": "s3://bucket/<archive>"},
        "encoder": {"note": "A test encoder: 5-NN 0.5 on <nothing>."},
    }
    if pixels:
        folder.publish(calibration_path("abc"), json.dumps(CALIBRATION).encode())
    header = {"content": content, "provenance": provenance}
    folder.publish("manifests/m1/manifest.json", json.dumps(header).encode())
    workspace = Workspace(folder, store, shards, table, labels)
    workspace.publish_decisions(table, PARTS)
    return workspace


def row(rng: np.random.Generator, shard: str, index: int, number: int, pixels: bool) -> dict[str, Any]:
    key = f"{NASTY}/{index}" if index < 3 else f"tile-{number}-{index:04d}"
    name = sample_id(shard, key)
    shown = in_share(name, 0.5) and pixels
    vector = rng.normal(size=DIM)
    return {
        "sample_id": name, "shard": shard, "index": index, "key": key,
        "label": LABELS[index % len(LABELS)],
        "entropy": float(rng.uniform(1, 7.9)) if pixels else None,
        "thumbnail": picture(rng) if shown else None,
        "patch": signature_and_patch(noise(rng), np.ones((64, 64), bool), RANGES)[1] if pixels else None,
        "embedding": (vector / np.linalg.norm(vector)).astype(np.float16),
        "cluster": int(min(rng.geometric(0.3) - 1, CLUSTERS - 1)), "distance": float(rng.uniform(0.1, 1.2)),
    }  # fmt: skip


def decide(rng: np.random.Generator, item: dict[str, Any], cut: float | None) -> dict[str, Any]:
    low = cut is not None and item["entropy"] is not None and item["entropy"] < cut
    reason = "entropy" if low else str(rng.choice(["sampled", "quota", "quota", "quota", "excluded"]))
    decision = "kept" if reason == "sampled" else "dropped"
    named = ("sample_id", "shard", "index", "key", "cluster", "distance", "entropy")
    threshold = cut if reason == "entropy" else None
    return {**{name: item[name] for name in named}, "decision": decision, "reason": reason, "threshold": threshold}


def mark_duplicates(decisions: list[dict[str, Any]]) -> None:
    """Three groups of 9, 5 and 2 duplicates, which lie in other shards than what stands for them."""
    kept = [row for row in decisions if row["reason"] == "sampled"][:3]
    spare = iter([row for row in decisions[::-1] if row["reason"] == "quota"])
    for representative, copies in zip(kept, (9, 5, 2), strict=True):
        for _ in range(copies):
            next(spare).update(reason="duplicate", duplicate_of=representative["sample_id"])


def publish_clusters(folder: Folder, decisions: pa.Table) -> None:
    sizes = np.bincount(np.asarray(decisions["cluster"]), minlength=CLUSTERS)
    scenes = ["Forest", "<i>Bay</i>", None]
    table = pa.table(
        {
            "cluster": pa.array(range(CLUSTERS), pa.int32()),
            "kind": ["reference" if c % 3 < 2 else "free" for c in range(CLUSTERS)],
            "scene": pa.array([scenes[c % 3] for c in range(CLUSTERS)], pa.string()),
            "scene_share": pa.array([0.8 if c % 3 < 2 else None for c in range(CLUSTERS)], pa.float32()),
            "size": sizes,
            "distance_mean": pa.array([0.5] * CLUSTERS, pa.float32()),
            "distance_std": pa.array([0.1] * CLUSTERS, pa.float32()),
            "neighbours": pa.array([[0]] * CLUSTERS, pa.list_(pa.int32())),
            "centroid": pa.array([[0.0] * DIM] * CLUSTERS, pa.list_(pa.float32())),
        }
    )
    folder.publish("clusters/c1/centroids.parquet", parquet_bytes(table))
    folder.publish("clusters/c1/fit.json", b"{}")


@pytest.fixture(scope="module")
def workspace(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def figures(workspace: Workspace) -> Figures:
    return workspace.gather()


@pytest.fixture(scope="module")
def page(workspace: Workspace) -> str:
    return workspace.report()


@pytest.fixture(scope="module")
def rich(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same run with all that a run may have: radar, splits, groups, clouds, a filter."""
    other = workspace.copy(tmp_path_factory.mktemp("rich") / "run")
    rows = other.decisions.to_pylist()
    for i, row in enumerate(rows):
        row["group"] = ["winter / A&B", "summer / A&B", "? / ?"][i % 3]
        if row["reason"] == "quota":
            row["reason"] = ("quota", "cloud", "invalid", "split")[i % 4]
            row["split"] = "test" if row["reason"] == "split" else None
    other = replace(other, decisions=pa.Table.from_pylist(rows, DECISIONS_SCHEMA))
    other.publish_decisions(other.decisions)
    header = json.loads(other.manifest.read("manifest.json"))
    content = header["content"]
    content["config"]["select"] |= {"by": ["season", "country"], "splits": {"test": 0.1}}
    content |= {"bands": ["VV", "VH"], "speckle_entropy": [5.5, 5.75], "radiometry": "db", "dtype": "float32"}
    content |= {"selection": {"splits": {"test": 12}}, "counts": {"filtered": 1234, "empty": 5}}
    other.manifest.publish("manifest.json", json.dumps(header).encode())
    other.folder.publish("encoders/abc/audit.json", json.dumps(AUDIT).encode())
    return other


def test_the_page_says_what_the_bank_guides_or_why_not(workspace, tmp_path):
    for number, (told, words) in enumerate(
        [
            (None, None),
            ({"share": 0.0, "why_not": "there is no bank"}, "guide nothing here: there is no bank."),
            (
                {"share": 0.0, "explained": 0.0, "classes": ["a"]},
                "guide nothing here: they do not explain the archive.",
            ),
            (
                {"share": 0.3, "explained": 0.25, "classes": ["a", "b"]},
                "guide 30.0 % of the selection: as many of each",
            ),
        ]
    ):
        other = workspace.copy(tmp_path / str(number))
        header = json.loads(other.manifest.read("manifest.json"))
        header["content"]["selection"] = {"guided": told} if told else {}
        other.manifest.publish("manifest.json", json.dumps(header).encode())
        page = " ".join(other.report().split())
        found = re.findall("The classes of (?:a|the) bank guide.*?[.]", page)
        assert (words in page, len(found)) == (True, 1) if words else not found


# what is counted


def test_counts_are_those_of_the_decisions(workspace, figures):
    rows = workspace.rows()
    assert figures.readings.read == SHARDS * (ROWS + 1)
    assert figures.readings.samples == len(rows) == ALL
    assert figures.counts.reasons == {reason: Counter(row["reason"] for row in rows)[reason] for reason in REASONS}
    for cluster in range(CLUSTERS):
        for code, reason in enumerate(REASONS):
            expected = len(workspace.rows(cluster=cluster, reason=reason))
            assert figures.counts.clusters[cluster, code] == expected
    assert figures.counts.threshold == 3.0
    assert figures.counts.entropy.sum() == len(rows)
    assert figures.readings.quarantined == {("decode", "BadImage"): SHARDS}


def test_labels_come_from_the_catalog(workspace, figures):
    expected = Counter((workspace.labels[row["sample_id"]], row["reason"]) for row in workspace.rows())
    found = {
        (label, reason): int(n)
        for label, counts in figures.counts.labels.items()
        for reason, n in zip(REASONS, counts, strict=True)
        if n
    }
    assert found == expected


def test_a_missing_decision_is_no_page(workspace, tmp_path):
    other = workspace.copy(tmp_path / "copy")
    other.publish_decisions(other.decisions.slice(1))
    with pytest.raises(CurationError, match=f"{ALL} samples in the catalog, but {ALL - 1} decisions"):
        other.gather()


def test_groups_before_and_after_are_those_of_the_decisions(rich):
    figures = rich.gather()
    expected = Counter((row["group"], row["reason"]) for row in rich.rows())
    found = {
        (name, reason): int(n)
        for name, counts in figures.counts.groups.items()
        for reason, n in zip(REASONS, counts, strict=True)
        if n
    }
    assert found == expected


def test_the_page_says_what_else_there_is(rich, page):
    told = " ".join(re.sub("<[^>]*>", " ", rich.report()).split())
    for reason in ("cloud", "invalid", "split"):
        (row,) = [stage for stage in _stages(rich.gather()) if stage["reason"] == reason]
        assert f"{WHY[reason]} {row['removed']}" in told
    assert "1,234 samples were never read, as archive.filter lets only others pass" in told
    assert "5 tiles without a valid pixel were left out" in told
    assert "test 12 tiles, 3.0 %" in told.replace("\u00a0", " ")
    assert "Encoder and entropy saw db (float32)" in told
    assert "S2 – 10 88.5 9 &lt;old&gt;.tar" in told and "S1 db 40 radar.tar" in told
    assert "speckle alone would report in radar's bands: 5.6 bits (VV 5.5, VH 5.8)" in told
    assert "speckle alone 5.6" in told  # beside the histogram
    assert "balances over beside the clusters: season, country" in told and "winter / A&amp;B" in told
    for absent in ("What the numbers mean", "Splits", "speckle alone", "Groups", "never read"):
        assert absent not in page


# which tiles are shown


def test_cluster_tiles_are_its_nearest_and_farthest(workspace, figures):
    sizes = Counter(row["cluster"] for row in workspace.rows())
    assert figures.telling["largest"] == sorted(sizes, key=lambda cluster: (-sizes[cluster], cluster))[:8]
    for cluster in figures.telling["largest"]:
        members = [row for row in workspace.rows(cluster=cluster) if in_share(row["sample_id"], 0.5)]
        members.sort(key=lambda row: row["distance"])
        near = [tile.sample_id for tile in figures.tiles["nearest", cluster] if tile.image]
        far = [tile.sample_id for tile in figures.tiles["farthest", cluster] if tile.image]
        assert near == [row["sample_id"] for row in members[:4]]
        assert far == [row["sample_id"] for row in members[::-1][:8]]
        assert all(tile.kept for tile in figures.tiles.get(("kept", cluster), []))
        assert not any(tile.kept for tile in figures.tiles.get(("dropped", cluster), []))


def test_tiles_on_either_side_of_the_threshold_are_the_closest(workspace, figures):
    seen = [row for row in workspace.rows() if in_share(row["sample_id"], 0.5)]
    below = sorted((row["entropy"] for row in seen if row["reason"] == "entropy"), reverse=True)[:12]
    above = sorted(row["entropy"] for row in seen if row["reason"] in ("sampled", "quota", "duplicate"))[:12]
    assert [tile.entropy for tile in figures.tiles["below", 0]] == below
    assert [tile.entropy for tile in figures.tiles["above", 0]] == above


def test_duplicates_stand_beside_what_stands_for_them(workspace, figures):
    assert [group.size for group in figures.groups] == [9, 5, 2]
    for group in figures.groups:
        assert group.representative is not None
        assert group.representative.reason == "sampled"
        assert len(group.copies) == min(group.size, 6)
        assert {tile.duplicate_of for tile in group.copies} == {group.representative.sample_id}


def test_every_tile_shows_its_own_picture(workspace, figures):
    tiles = [tile for found in figures.tiles.values() for tile in found]
    catalog = {row["sample_id"]: row for shard in workspace.shards for row in workspace.store.read(shard).to_pylist()}
    for tile in tiles:
        row = catalog[tile.sample_id]
        assert (tile.image, tile.patch, tile.label) == (row["thumbnail"], row["patch"], row["label"])
    assert {tile.reason for tile in tiles} == {row["reason"] for row in workspace.rows()}


def test_the_map_lies_along_the_axes_of_most_variance(figures):
    assert len(figures.points) == len(figures.places) == ALL
    assert np.allclose(figures.places.mean(axis=0), 0, atol=1e-6)
    assert np.var(figures.places[:, 0]) >= np.var(figures.places[:, 1]) > 0


# the page


class Outline(HTMLParser):
    """What a page holds: its tags, what it would fetch, its headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag not in ("img", "meta", "link", "input", "br", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag


def test_it_is_one_well_formed_file_without_scripts_or_links(page):
    outline = Outline(page)
    assert outline.open == []
    assert outline.tags["script"] == outline.tags["iframe"] == 0
    assert outline.tags["b"] < 10  # the labels' own are text
    assert all(url.startswith(("data:", "#")) for url in outline.fetched)
    assert "url(" not in page
    assert "@import" not in page
    assert len(page) < 5_000_000


def test_what_people_wrote_is_text(page):
    for raw in ("<script>", "<b>town</b>", "<i>Bay</i>", "<i>!</i>", "<nothing>", "<archive>"):
        assert raw not in page
    for shown in ("&lt;script&gt;alert(1)", "&lt;b&gt;town&lt;/b&gt;", "&lt;i&gt;Bay", "5-NN 0.5 on &lt;nothing&gt;"):
        assert shown in page


def test_it_shows_every_stage_and_what_it_left(workspace, page):
    text = re.sub(r"<[^>]+>", " ", page)
    reasons = Counter(row["reason"] for row in workspace.rows())
    left = ALL
    for reason in DROPPED:
        if reasons[reason]:
            left -= reasons[reason]
            assert re.search(rf"{reason}\b[^0-9]+{reasons[reason]}\s+[0-9.]+\xa0%\s+{left}\b", text), reason
    assert left == sum(reasons[reason] for reason in KEPT)
    assert f"{left} of {ALL} tiles kept" in text


def test_the_same_inputs_give_the_same_page(workspace, page):
    assert workspace.report() == page


def test_what_parts_the_rows_lie_in_does_not_matter(workspace, page, tmp_path):
    other = workspace.copy(tmp_path / "copy")
    other.publish_decisions(other.decisions, parts=3)
    assert other.report() == page


def test_warnings_stand_above_everything(workspace, page, tmp_path):
    assert 'class="warnings"' not in page
    other = workspace.copy(tmp_path / "copy")
    forest = np.asarray(other.decisions["cluster"]) % 3 == 0
    reason = pc.if_else(pa.array(forest), "entropy", other.decisions["reason"])
    other.publish_decisions(
        other.decisions.set_column(other.decisions.schema.get_field_index("reason"), "reason", reason)
    )
    other.folder.publish("clusters/c1/fit.json", b'{"references": {"beyond_share": 0.37}}')
    header = json.loads(other.manifest.read("manifest.json"))
    header["content"]["warnings"] = ["mind the <gap>"]
    other.manifest.publish("manifest.json", json.dumps(header).encode())
    page = other.report()
    top = re.sub(r"<[^>]+>", "", page[page.index("<header>") : page.index('id="stages"')])
    assert "mind the &lt;gap&gt;" in top
    assert f"removed more than 90 % of 1 scene: Forest (100\xa0% of {forest.sum()})" in top
    assert "Nothing is left of 1 scene: Forest." in top
    assert "37.0\xa0% of the archive lie farther from every reference" in top


def test_vectors_without_pixels_give_a_page_without_tiles(ray_local, tmp_path):
    page = make_workspace(tmp_path, pixels=False, cut=None).report()
    outline = Outline(page)
    assert outline.tags["img"] == 0
    assert 'id="entropy"' not in page
    assert 'id="copies"' not in page
    assert 'id="map"' in page


def test_how_copies_are_told_is_shown_where_it_was_measured_and_asked_for(workspace, page, tmp_path):
    text = re.sub(r"<[^>]+>", " ", page[page.index('id="copies"') : page.index('id="dropped"')])
    text = " ".join(text.replace("\xa0", " ").split())
    assert "Measured on 123 tiles" in text
    assert "mirrored or rotated 120 123 97.6 % 93.08 to 99.17 %" in text
    assert "encoded again (JPEG of &lt;quality&gt; 75) 120 123" in text
    assert "any two tiles 0 3,075 0 % 0 to 0.12 %" in text
    assert "the one most like it" not in text  # no such pair
    assert "7 of the tiles have one" in text
    assert "11 of the pairs drawn" in text
    other = workspace.copy(tmp_path / "copy")
    header = json.loads(other.manifest.read("manifest.json"))
    header["content"]["config"]["select"]["duplicates"] = False
    other.manifest.publish("manifest.json", json.dumps(header).encode())
    assert 'id="copies"' not in other.report()


def test_what_reading_costs_is_shown_where_it_is_known(workspace, page):
    cost = {"bytes": 12_300_000, "requests": 45, "seconds": 6.7}
    reads = {"samples": 89, "shards": 6, "pays_after_epochs": 3}
    told = workspace.report(reads=reads | dict.fromkeys(("ranged", "sequential", "chosen", "materialised"), cost))
    assert "pays after 3 epochs" in told
    assert told.count("12.3 MB") == 4
    assert 'id="reading"' not in page


def test_figures_are_written_for_people():
    assert [percent(x) for x in (0, 0.0004, 0.1234, 1)] == ["0\xa0%", "< 0.1\xa0%", "12.3\xa0%", "100\xa0%"]
    assert [size(x) for x in (999, 1234, 5.6e12, 7e15)] == ["999 B", "1.23 kB", "5.6 TB", "7 PB"]
    assert [duration(x) for x in (0.0123, 59, 90, 7200, 1e6)] == ["12.3 ms", "59 s", "1.5 min", "2 h", "11.6 days"]
    assert [p_value(x) for x in (1e-9, 0.0009999, 0.001, 0.25)] == ["< 0.001", "< 0.001", "0.001", "0.250"]


# in a browser


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole(rich, browser, width, dark):
    rich.report()
    url = rich.folder.public("reports/m1/index.html")
    browser.open(url, width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    images = browser.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert len(images) > 100
    assert min(images) >= 20
    assert [asked for asked in browser.requests() if not asked.startswith("data:")] == [url]
    assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(FAINT) == []


# elements that stick out of the page, unless they are in a box of their own that scrolls
OUTSIDE = """
[...document.body.querySelectorAll('*')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 1 && !e.closest('.scroll, .skip, svg');
}).map(e => e.outerHTML.slice(0, 200))
"""

# text whose contrast with the page's background is below 4.5 to 1 (WCAG 2, AA)
FAINT = """
(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)|transparent/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const faint = e => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 4.5;
  };
  const texts = [...document.body.querySelectorAll('*')].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !e.closest('svg'));
  return texts.filter(faint).map(e => e.outerHTML.slice(0, 200));
})()
"""
