"""What comes out of a distillation: shards that every reader takes, a manifest that accounts for every image."""

import dataclasses
import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from curation.archive.decode import decode
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, sample_id
from curation.archive.settings import ArchiveConfig
from curation.distillation.drawn import Candidate, Drawn
from curation.distillation.leakage import Baseline, Images, Limits, Membership, Seen, account
from curation.distillation.write import Lineage, Units, round_robin, write_set
from curation.encoders.base import Preparation
from curation.errors import RequestError
from curation.manifests.explain import explain
from curation.manifests.loaders import ray_data
from curation.manifests.loaders.container import find_shard
from curation.manifests.loaders.order import Order
from curation.manifests.loaders.torch import TorchSamples
from curation.manifests.loaders.webdataset import WebDatasetSamples
from curation.manifests.reading import ManifestReader, open_catalog
from curation.manifests.schema import Manifest
from curation.manifests.verify import verify
from curation.report import distilled
from curation.storage import Folder
from tests.materialized import write as materialize

LABELS = {"bare land": 3, "forest": 2, "port, old": 1}  # prototypes of each class
RGB = Units(("red", "green", "blue"), "uint8", np.float32([[0, 255]] * 3))
LIMITS = {"similarity": 0.99, "ssim": 0.8}


def candidates(draw: np.random.Generator, leaking: int) -> tuple[Candidate, ...]:
    """Four, so many of the surest too near a real image; nobody looked at what is less sure than the kept."""
    found = [Candidate(i, float(margin), 0.5) for i, margin in enumerate(draw.normal(size=4))]
    for place, i in enumerate(sorted(range(4), key=lambda i: -found[i].margin)[: leaking + 1]):
        name = sample_id("root0/a.tar", f"real {i}")
        seen = {"similarity": 0.995 if place < leaking else 0.9, "ssim": 0.4, "nearest": name, "ssim_nearest": name}
        found[i] = dataclasses.replace(found[i], **seen, leaks=place < leaking)
    return tuple(found)


def drawing(leaking: dict[int, int] | None = None) -> list[Drawn]:
    """Every prototype of every class; ``leaking``: of a prototype over all classes, how many of its surest."""
    draw, found = np.random.default_rng(3), []
    for number, (label, prototypes) in enumerate(LABELS.items()):
        for prototype in range(prototypes):
            at, key = len(found), f"{label}/{prototype}"
            name = sample_id("root0/a.tar", key)
            own = candidates(draw, (leaking or {}).get(at, 0))
            found.append(Drawn(label, number, prototype, at, name, "root0/a.tar", at, key, own))
    return found


def images(bands: int, side: int = 24) -> Any:
    """Gives each prototype an image of its own."""

    def pixels(one: Drawn) -> np.ndarray:
        assert one.chosen
        return np.random.default_rng([one.cluster, one.chosen.number]).integers(0, 256, (bands, side, side), np.uint8)

    return pixels


def lineage(**more: Any) -> Lineage:
    config = {"seed": 7, "distill": {"ipc": 3}, "archive": {"bands": ["B04"], "tile": {"size": 64}}}
    return Lineage(config, {"archive": {"digest": "d"}, "models": {}}, LIMITS, **more)


def written(folder: Path, units: Units = RGB, drawn: list[Drawn] | None = None, **more: Any) -> Manifest:
    drawn = drawing() if drawn is None else drawn
    return write_set(Folder(str(folder)), drawn, images(len(units.bands)), units, lineage(), {"begun": "now"}, **more)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_prototype_gives_its_surest_image_and_every_other_one_drawn_has_its_reason(tmp_path: Path) -> None:
    drawn = drawing({0: 1, 4: 3})
    manifest = written(tmp_path / "set", drawn=drawn)
    assert (manifest.samples, manifest.kept, manifest.dropped) == (24, 6, {"margin": 14, "leakage": 4})
    rows = ManifestReader(manifest.url).table().to_pylist()
    assert {row["prototype"]: row["candidate"] for row in rows} == {
        one.sample_id: max((c for c in one.candidates if not c.leaks), key=lambda c: c.margin).number for one in drawn
    }
    decisions = pq.read_table(tmp_path / "set/decisions/part-00000.parquet").to_pylist()
    assert Counter(row["reason"] for row in decisions) == {"chosen": 6, "margin": 14, "leakage": 4}
    assert len({row["sample_id"] for row in decisions}) == 24
    assert verify(manifest.url, deep=True) == {
        **{"manifest": manifest.url, "samples": 24, "kept": 6, "files": 4, "read": 6, "ok": True, "problems": []},
        "wrong": 0,
    }


def test_the_first_n_by_rank_are_as_balanced_as_the_classes_allow(tmp_path: Path) -> None:
    rows = ManifestReader(written(tmp_path / "set").url).table().sort_by("rank").to_pylist()
    assert [row["label"] for row in rows] == [*LABELS, "bare land", "forest", "bare land"]
    assert [row["index"] for row in rows] == list(range(6))  # and a tar that is read from its start is too


def test_a_prototype_whose_images_are_all_too_near_gives_none(tmp_path: Path) -> None:
    drawn = drawing()
    drawn[5] = dataclasses.replace(
        drawn[5],
        candidates=tuple(dataclasses.replace(c, leaks=True, similarity=1.0, ssim=1.0) for c in drawn[5].candidates),
    )
    manifest = written(tmp_path / "set", drawn=drawn)
    assert (manifest.kept, manifest.dropped) == (5, {"margin": 15, "leakage": 4})
    assert verify(manifest.url, deep=True)["ok"]
    assert explain(manifest.url, "00002-00000-001")["stands_for_it"] is None
    none = [
        dataclasses.replace(one, candidates=tuple(dataclasses.replace(c, leaks=True) for c in one.candidates))
        for one in drawn
    ]
    with pytest.raises(RequestError, match="distill.leakage.quantile"):
        written(tmp_path / "none", drawn=none)


def test_the_same_images_give_the_same_bytes_in_whatever_order_they_come(tmp_path: Path) -> None:
    written(tmp_path / "one/set", shard_bytes=4096)
    written(tmp_path / "two/set", shard_bytes=4096, drawn=drawing()[::-1])
    one, two = files(tmp_path / "one/set"), files(tmp_path / "two/set")
    headers = [json.loads(found.pop("manifest.json")) for found in (one, two)]
    assert one == two and sum(name.endswith(".tar") for name in one) == 3
    made_of = headers[0]["content"]["distilled"]
    assert made_of["archive"] == {"digest": "d", "config": lineage().config["archive"]} and made_of["limits"] == LIMITS
    assert headers[0]["content"] == headers[1]["content"] and headers[0]["id"] == headers[1]["id"]
    before = (tmp_path / "one/set/manifest.json").stat().st_mtime_ns
    again = write_set(Folder(str(tmp_path / "one/set")), [], images(3), RGB, lineage(), {})
    assert again.kept == 6 and (tmp_path / "one/set/manifest.json").stat().st_mtime_ns == before


def test_what_breaks_off_leaves_no_manifest_and_is_written_over(tmp_path: Path) -> None:
    def full(one: Drawn) -> np.ndarray:
        if one.cluster == 4:
            raise OSError(28, "No space left on device")
        return images(3)(one)

    with pytest.raises(OSError, match="space"):
        write_set(Folder(str(tmp_path / "set")), drawing(), full, RGB, lineage(), {}, 4096)
    assert not (tmp_path / "set/manifest.json").exists()
    assert verify(written(tmp_path / "set").url, deep=True)["ok"]


def test_every_loader_gives_the_pixels_that_were_written(tmp_path: Path) -> None:
    manifest, drawn = written(tmp_path / "set", shard_bytes=8192), drawing()
    truth = {one.name(one.chosen): images(3)(one) for one in drawn if one.chosen}
    seen = {sample["key"]: sample["pixels"].numpy() for sample in TorchSamples(manifest.url, decode=True)}
    assert seen.keys() == truth.keys() and all(np.array_equal(seen[key], truth[key]) for key in truth)
    for sample in wds.DataPipeline(WebDatasetSamples(manifest.url), wds.decode("pil")):
        assert np.array_equal(np.asarray(sample["png"]).transpose(2, 0, 1), truth[sample["__key__"]])
        assert sample["json"]["label"] == sample["__meta__"]["label"] and sample["json"]["seed"] == 7
    tars = sorted(str(path) for path in (tmp_path / "set/shards").iterdir())
    plain = wds.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("__key__", "png", "json")
    assert [key for key, _, _ in plain] == [one.name(one.chosen) for one in round_robin(drawn) if one.chosen]


def test_a_task_of_ray_data_gives_the_files_with_labels_and_all_figures(tmp_path: Path) -> None:
    reader = ManifestReader(written(tmp_path / "set", shard_bytes=8192).url)
    order = Order(0, 0, 0)
    runs = [{**dataclasses.asdict(run), "given": 0} for run in order.runs(reader.shards(), 0, 6)]
    blocks = ray_data._read(reader, order, None, "all", {}, None, pa.Table.from_pylist(runs))
    truth = {one.name(one.chosen): (images(3)(one), one) for one in drawing() if one.chosen}
    for row in pa.concat_tables(blocks).to_pylist():
        pixels, one = truth.pop(row["key"])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))).transpose(2, 0, 1), pixels)
        assert (row["label"], row["prototype"]) == (one.label, one.sample_id) and row["margin"] is not None
    assert not truth


def test_the_readers_of_prune_find_labels_in_the_shards(tmp_path: Path) -> None:
    written(tmp_path / "set")
    folder = Folder(str(tmp_path / "set/shards"))
    shard = find_shard(folder, "root0/distilled-000000.tar", ArchiveConfig())
    assert shard
    raws = [raw for raw in read_shard(folder, shard, ArchiveConfig()) if isinstance(raw, RawSample)]
    samples = [decode(raw, ArchiveConfig()) for raw in raws]
    assert Counter(sample.label for sample in samples) == LABELS
    assert {sample.bands for sample in samples} == {RGB.bands}


def test_several_bands_come_back_in_the_archives_numbers_within_a_step(tmp_path: Path) -> None:
    ranges = np.float32([[0, 6000], [100, 4100.5], [-30, 5], [0, 0.6]])
    for dtype in ("uint16", "float32", "int16"):
        own = ranges[:2] if dtype != "float32" else ranges
        units = Units(tuple(f"B{i}" for i in range(len(own))), dtype, own, "unknown")
        manifest = written(tmp_path / dtype, units)
        assert verify(manifest.url, deep=True)["ok"]
        truth = {one.name(one.chosen): images(len(own))(one) for one in drawing() if one.chosen}
        for sample in TorchSamples(manifest.url, decode=True):
            tile, pixels = truth[sample["key"]], sample["pixels"].numpy().astype(np.float64)
            assert str(sample["pixels"].numpy().dtype) == dtype
            step = ((own[:, 1] - own[:, 0]) / 255)[:, None, None]
            assert (
                np.abs(pixels - (own[:, 0, None, None] + tile * step))
                <= np.maximum(step, 1e-6) / 2 + 0.5 * (dtype != "float32")
            ).all()
            shown = dataclasses.replace(_decoded(tmp_path / dtype, sample["key"]), key="")
            again = np.rint(Preparation(own, 24)(shown) * np.float32(255))
            assert np.abs(again - tile).max() <= 1


def _decoded(folder: Path, key: str) -> Any:
    tars, config = Folder(str(folder / "shards")), ArchiveConfig()
    shard = find_shard(tars, "root0/distilled-000000.tar", config)
    assert shard
    raws = (raw for raw in read_shard(tars, shard, config) if isinstance(raw, RawSample))
    return next(decode(raw, config) for raw in raws if raw.key == key)


def test_grey_and_renamed_bands_are_png_and_keep_their_names(tmp_path: Path) -> None:
    for bands in (("pan",), ("B11", "B8A", "B04")):
        manifest = written(tmp_path / bands[0], Units(bands, "uint8", np.float32([[0, 255]] * len(bands))))
        assert verify(manifest.url, deep=True)["ok"]
        with tarfile.open(tmp_path / bands[0] / "shards/distilled-000000.tar") as tar:
            member = tar.extractfile(next(name for name in tar.getnames() if name.endswith(".png")))
            assert member
            assert len(Image.open(io.BytesIO(member.read())).getbands()) == len(bands)


def test_explain_says_why_an_image_was_dropped_and_what_stands_for_it(tmp_path: Path) -> None:
    drawn = drawing({0: 1})
    manifest = written(tmp_path / "set", drawn=drawn)
    chosen = drawn[0].chosen
    assert chosen
    for candidate in drawn[0].candidates:
        told = explain(manifest.url, drawn[0].name(candidate))
        if candidate is chosen:
            assert told["why"].startswith("kept: of the images drawn for its prototype") and told["rank"] == 0
            continue
        assert told["stands_for_it"]["key"] == drawn[0].name(chosen)
        if candidate.leaks:
            assert f"its cosine to {candidate.nearest} is 0.995 (too near from 0.99 on)" in told["why"]
        else:
            assert f"its margin {candidate.margin:.4g} is not above {chosen.margin:.4g}" in told["why"]
    with pytest.raises(RequestError, match="decides over no sample"):
        explain(manifest.url, "no-such-key")


def test_what_needs_a_catalog_says_that_there_is_none(tmp_path: Path) -> None:
    manifest = ManifestReader(written(tmp_path / "set").url)
    with pytest.raises(RequestError, match="is a distilled set"):
        open_catalog(manifest, None)


def test_verify_finds_what_was_touched(tmp_path: Path) -> None:
    manifest = written(tmp_path / "set")
    tar = tmp_path / "set/shards/distilled-000000.tar"
    data = bytearray(tar.read_bytes())
    data[1024] ^= 1
    tar.write_bytes(data)
    assert "shards/distilled-000000.tar: other bytes" in verify(manifest.url)["problems"][0]
    data[1024] ^= 1
    tar.write_bytes(data)
    header = json.loads((tmp_path / "set/manifest.json").read_text())
    header["content"]["config"]["seed"] = 8
    (tmp_path / "set/manifest.json").write_text(json.dumps(header))
    assert "its content has the id" in verify(manifest.url)["problems"][0]


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_it_can_be_materialised_like_any_manifest(tmp_path: Path, form: str) -> None:
    manifest = written(tmp_path / "set", shard_bytes=4096)
    materialize(manifest.url, tmp_path / "out", f"format={form}")
    folder, config = Folder(str(tmp_path / "out")), ArchiveConfig()
    (name,) = [path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".tar", ".parquet")]
    shard = find_shard(folder, f"root0/{name}", config)
    assert shard
    found = [decode(raw, config) for raw in read_shard(folder, shard, config) if isinstance(raw, RawSample)]
    truth = {one.name(one.chosen): images(3)(one) for one in drawing() if one.chosen}
    assert {sample.key: sample.label for sample in found} == {
        one.name(one.chosen): one.label for one in drawing() if one.chosen
    }
    assert all(np.array_equal(sample.pixels, truth[sample.key]) for sample in found)


# the page


class Page(HTMLParser):
    """The texts of a page, its images, and whether anything would be fetched or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.images = 0
        self.outside: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        assert tag != "script"
        self.images += tag == "img"
        self.outside += [v for k in ("src", "href") if (v := told.get(k)) and not v.startswith(("data:", "#"))]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def marks(over: str, random: str = "no difference") -> dict[str, Any]:
    """What students reach, and the verdicts on the set against its prototypes and against random real images."""
    arm = {"mean": 0.5, "low": 0.4, "high": 0.6, "values": [0.5]}
    one = {"mean": -0.051, "low": -0.08, "high": -0.02, "p": 0.01, "detectable": 0.04, "words": ""}
    return {
        "seeds": 5,
        "arms": {name: arm for name in ("distilled", "prototypes", "random", "full")},
        "differences": {
            "distilled": {**one, "verdict": random},
            "prototypes": {**one, "verdict": "better"},
            "full": {**one, "verdict": "better"},
        },
        "over_prototypes": {**one, "verdict": over},
    }


def shown(
    folder: Path, drawn: list[Drawn], students: Mapping[str, Any] | None, units: Units = RGB, limit: float | None = 0.9
) -> Page:
    """The page of a set, with real images that hold every prototype and every nearest one."""
    manifest = written(folder, units, drawn)
    names = {one.sample_id for one in drawn} | {c.nearest for one in drawn for c in one.candidates if c.nearest}
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), len(units.bands), 24, 24), np.uint8)
    real = Images(np.array(sorted(names), "S32"), np.zeros((len(names), 1)), pixels.__getitem__)
    draw = np.random.default_rng(1)
    seen = [Seen(float(a), "", float(b), "") for a, b in draw.random((60, 2))]
    leaks = sum(c.leaks for one in drawn for c in one.candidates)
    lost = sum(one.chosen is None for one in drawn)
    membership = Membership.of(seen[:20], seen[20:40], [dataclasses.replace(one, ssim=1.5) for one in seen[40:]])
    told = account(seen[:6], Baseline.of(seen[20:]), Limits(limit, limit), membership, leaks, lost)
    header = json.loads((folder / "manifest.json").read_text())
    header["content"]["config"]["distill"]["candidates"] = 3
    assert manifest.kept == len(drawn) - lost
    arguments = drawn, images(len(units.bands)), real, units, told, students
    return Page(distilled.render("abc", header, *arguments))


def test_the_page_has_each_image_between_its_prototype_and_the_nearest_real_one(tmp_path: Path) -> None:
    page = shown(tmp_path / "set", drawing({0: 1, 4: 3}), marks("worse"))
    assert page.images == 3 * 6 and not page.outside
    assert "6 synthetic images of 3 classes" in page.text and "port, old" in page.text
    assert "4 of the images drawn were dropped for being too near a real one." in page.text
    assert "tell better than by chance which of these were prototypes" in page.text
    assert "no differential privacy" in page.text and "limit 0.900" in page.text
    assert "candidates, 6 of them again" in page.text


def test_the_page_says_in_words_where_real_prototypes_win(tmp_path: Path) -> None:
    for verdict, words in {
        "worse": "Real prototypes beat the synthetic images: 50.0\xa0% against 50.0\xa0% (the set is worse: −5.1",
        "better": "The synthetic images beat the real prototypes that they were made from",
        "no difference": "5 seeds tell one of 4.0 points in four cases of five",
    }.items():
        said = distilled.verdicts(marks(verdict), json.loads(json.dumps(_leakage())))
        assert words in said[1]
    page = shown(tmp_path / "set", drawing(), None, limit=None)
    assert "No student was trained" in page.text and "limit" in page.text and "Against random" not in page.text


def _leakage() -> dict[str, Any]:
    seen = [Seen(0.5, "", 0.5, "")] * 4
    return account(seen, Baseline.of(seen), Limits(None, None), Membership.of(seen, seen, []), 0, 0)


def test_a_page_that_is_full_says_how_many_images_are_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilled, "IMAGE_BYTES", 20_000)
    page = shown(tmp_path / "set", drawing(), None)
    assert 0 < page.images < 18 and f"{6 - page.images // 3} of 6 images are not shown" in page.text
    monkeypatch.setattr(distilled, "CLASSES", 1)
    monkeypatch.setattr(distilled, "IMAGE_BYTES", 10**6)
    page = shown(tmp_path / "set", drawing(), None)
    assert page.images == 9 and "3 of 6 images are not shown" in page.text


def test_the_page_draws_images_of_many_bands(tmp_path: Path) -> None:
    bands = ("B02", "B03", "B04", "B08")
    units = Units(bands, "float32", np.float32([[0, 0.6]] * 4), "reflectance")
    assert shown(tmp_path / "set", drawing(), marks("better"), units).images == 18
