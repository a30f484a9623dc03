"""The sample archive is what it says: uneven classes, near-duplicates, flat and broken tiles, and a disjoint bank."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from curation.archive.decode import conform, decode
from curation.archive.listing import list_archive
from curation.archive.sample import Rejection, Sample
from curation.archive.settings import ArchiveConfig
from curation.errors import BadSample
from tests.archive_tools import read_all
from tests.recipes import BANDS, CLASSES, _plan, write_rgb_archive, write_sample_archive
from tests.scenes import SCENES


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("sample")
    write_sample_archive(dest, tiles=400)
    return dest


def samples(url: Path) -> tuple[list[Sample], list[str]]:
    good, bad = [], []
    for item in read_all(url):
        if isinstance(item, Rejection):
            bad.append(item.kind)
            continue
        try:
            good.append(conform(decode(item, ArchiveConfig()), BANDS, "uint16"))
        except BadSample as error:
            bad.append(error.kind)
    return good, bad


def test_the_archive_is_long_tailed_with_flat_and_broken_tiles(archive: Path) -> None:
    good, bad = samples(archive / "archive")
    assert len(good) + len(bad) == 400
    assert sorted(bad) == ["EmptyMember", "TruncatedImage"]  # two in 400
    labels = Counter(sample.label for sample in good)
    assert set(labels) == set(CLASSES) == set(SCENES)
    assert labels["ocean"] > 100 * labels["airport"] / 2
    assert any(sample.pixels.std() == 0 for sample in good)
    assert any(0 < sample.mask.mean() < 1 for sample in good)
    for sample in good:
        assert sample.pixels.shape == (4, 64, 64)
        assert sample.time and sample.footprint and sample.license and sample.source_id


def test_about_one_in_ten_is_a_near_duplicate(archive: Path) -> None:
    good, _ = samples(archive / "archive")
    places: dict[str | None, list[Sample]] = defaultdict(list)
    for sample in good:
        places[sample.source_id].append(sample)
    copies = sum(len(group) - 1 for group in places.values())
    assert 30 <= copies <= 40
    alike = 0
    for group in places.values():
        for one in group[1:]:
            first = group[0].pixels.astype(float)
            turned = [np.rot90(m, k, (1, 2)) for m in (one.pixels, one.pixels[..., ::-1]) for k in range(4)]
            alike += any(np.abs(t - first).mean() < 0.1 * first.mean() for t in turned)
    assert alike > 0.6 * copies  # the others were shifted


def test_the_bank_is_small_even_labelled_and_disjoint(archive: Path) -> None:
    bank, bad = samples(archive / "references")
    assert not bad
    assert set(Counter(sample.label for sample in bank).values()) == {12}
    elsewhere = {sample.source_id for sample in samples(archive / "archive")[0]}
    assert not elsewhere & {sample.source_id for sample in bank}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    write_sample_archive(tmp_path / "a", tiles=40)
    write_sample_archive(tmp_path / "b", tiles=40)
    written = [
        {str(path.relative_to(dest)): path.read_bytes() for path in sorted(dest.rglob("*.tar"))}
        for dest in (tmp_path / "a", tmp_path / "b")
    ]
    assert written[0] == written[1] and len(written[0]) == 5
    assert _plan(40, 0) != _plan(40, 1)


def test_shards_lie_in_folders(archive: Path) -> None:
    (root,) = list_archive(str(archive / "archive"))
    assert [shard.path for shard in root.shards] == sorted(f"{2023 + i % 2}/tiles-{i:03d}.tar" for i in range(8))


def test_rgb_archives(tmp_path: Path) -> None:
    write_rgb_archive(tmp_path, tiles=8, size=100)
    items = [decode(item, ArchiveConfig()) for item in read_all(tmp_path) if not isinstance(item, Rejection)]
    assert [item.pixels.shape for item in items] == [(3, 100, 100)] * 8
    assert {item.label for item in items} == {"field", "town", "desert", "forest"}
