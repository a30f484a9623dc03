"""The archives of the evidence: what is planted in them is there, and no scene is in two places."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.archives import Recipe, build
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Sample
from curation.archive.settings import ArchiveConfig
from tests.recipes import encoded, write_tar

RECIPE = Recipe(bank=3, test=3, head=20)


def scenes(path: Path, classes: int = 6, each: int = 60) -> Path:
    rng = np.random.default_rng(0)
    members = []
    for i in range(classes * each):
        pixels = np.kron(rng.integers(0, 255, (10, 10, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        said = json.dumps({"label": f"class{i % classes}"}).encode()
        members += [(f"scene_{i}.jpg", encoded(pixels)), (f"scene_{i}.json", said)]
    return write_tar(path, members)


def samples(folder: Path) -> list[tuple[Sample, dict[str, Any]]]:
    settings = ArchiveConfig()
    return [
        (decode(raw, settings), json.loads(raw.data["json"]))
        for root in list_archive(str(folder))
        for shard in root.shards
        for raw in read_shard(root.folder, shard, settings)
        if isinstance(raw, RawSample)
    ]


def test_tail_copies_and_flat_tiles(tmp_path: Path) -> None:
    said = build([scenes(tmp_path / "source.tar")], tmp_path / "made", RECIPE)
    found = samples(tmp_path / "made/archive")
    assert said["samples"] == len(found)
    copies = Counter(sample.source_id for sample, _ in found if sample.label)
    classes: dict[str, set[str]] = defaultdict(set)
    for sample, _ in found:
        if sample.label:
            classes[sample.label].add(str(sample.source_id))
    assert set(copies.values()) == {2, 3, 4}
    assert sorted(map(len, classes.values())) == [1, 1, 2, 4, 9, 20]  # 20 * 0.02 ^ (i / 5)
    flat = [sample for sample, _ in found if not sample.label]
    assert len(flat) == said["flat"] == round(0.05 * len(found))
    assert max(sample.pixels.std(axis=(1, 2)).max() for sample in flat) < 6


def test_folders_and_splits_share_no_scene(tmp_path: Path) -> None:
    source, seen = scenes(tmp_path / "source.tar"), []
    for split in ("tune", "report"):
        recipe = Recipe(split=split, bank=3, test=3)
        build([source], tmp_path / split, recipe)
        for part in ("archive", "references", "test"):
            labelled = [sample for sample, _ in samples(tmp_path / split / part) if sample.label]
            seen.append({sample.source_id for sample in labelled})
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_faults_and_missing_classes(tmp_path: Path) -> None:
    recipe = Recipe(bank=3, test=3, tail=1, copies=1, flat=0, half_bank=True, label_noise=0.2, blur=0.3)
    build([scenes(tmp_path / "source.tar")], tmp_path / "made", recipe)
    found = [said for _, said in samples(tmp_path / "made/archive")]
    assert len(found) == 6 * 54
    wrong = [said for said in found if "true_label" in said]
    assert all(said["label"] != said["true_label"] for said in wrong)
    assert 0.12 < len(wrong) / len(found) < 0.28
    assert 0.2 < sum("blurred" in said for said in found) / len(found) < 0.4
    assert len({sample.label for sample, _ in samples(tmp_path / "made/references")}) == 3


def test_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    source = scenes(tmp_path / "source.tar")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build([source], tmp_path / name, Recipe(seed=seed, bank=3, test=3, head=20))
    a, b, c = ((tmp_path / name / "archive/archive-000.tar").read_bytes() for name in "abc")
    assert a == b != c
