"""How well copies are told is measured on the archive itself: as brute force measures it, and always the same."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from curation.archive.listing import list_archive
from curation.archive.sample import Member, Sample
from curation.catalog import calibration
from curation.catalog.artefact import catalog_id
from curation.catalog.calibration import calibrate, calibration_path, load_calibration, wilson
from curation.catalog.fit import load_or_fit
from curation.config import load_config
from curation.scoring.likeness import Patches, likeness
from curation.scoring.signature import signature_and_patch
from curation.selection.duplicates import RADIUS, THRESHOLD
from curation.storage import Folder
from tests.duplicate_recipes import SIDE, ground, relit, turned, window
from tests.recipes import write_sample_archive

RANGES = np.array([[0, 255]] * 3, np.float32)


def sample(key: str, pixels: np.ndarray, footprint: tuple[float, float, float, float] | None = None) -> Sample:
    mask = np.ones(pixels.shape[1:], bool)
    return Sample(key, 0, pixels, mask, ("r", "g", "b")[: len(pixels)], Member(key, 0, 1), footprint=footprint)


@pytest.fixture(scope="module")
def tiles() -> list[np.ndarray]:
    """Thirty grounds, three of them twice, and four blank tiles of one level."""
    first = [window(ground(seed)) for seed in range(30)]
    again = [turned(first[0], 3), relit(first[1], 1.1, 5), window(ground(2), 2, -2)]
    return [*first, *again, *[np.full((3, SIDE, SIDE), 90, np.uint8)] * 4]


def merged(a: np.ndarray, b: np.ndarray) -> bool:
    """As the search decides, from its definition: one pair at a time."""
    mask = np.ones(a.shape[1:], bool)
    (one, first), (other, second) = signature_and_patch(a, mask, RANGES), signature_and_patch(b, mask, RANGES)
    patches = [Patches(np.frombuffer(data, np.uint8)[None]) for data in (first, second)]
    zero = np.array([0])
    near = np.linalg.norm(one - other) <= RADIUS
    return bool(near and likeness(patches[0], zero, patches[1], zero, THRESHOLD)[0] >= THRESHOLD)


def test_figures_are_those_of_brute_force(tiles: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    n = len(tiles)
    monkeypatch.setattr(calibration, "PARTNERS", n)  # every pair
    found = calibrate([sample(f"tile {i}", tile) for i, tile in enumerate(tiles)], RANGES)
    assert found["tiles"] == n
    assert found["placed"] == 0
    same = {(0, 30), (1, 31), (2, 32)}
    pairs = [pair for pair in itertools.combinations(range(n), 2) if merged(tiles[pair[0]], tiles[pair[1]])]
    assert same < set(pairs)
    others = found["others"]["any"]
    assert others["same_ground"] == len(same)
    assert others["of"] == n * (n - 1) // 2 - len(same)
    assert others["merged"] == len(set(pairs) - same) == 6  # of the blank ones
    nearest = found["others"]["nearest"]
    assert 0 < nearest["merged"] <= 4
    assert nearest["of"] <= n
    for kind, figures in found["copies"].items():
        assert figures["of"] == n
        blank = 0 if kind != "relit" else 4  # a blank tile of another level may be any other
        assert figures["merged"] >= n - blank - 1, kind


def test_footprints_decide_what_is_different(tiles: list[np.ndarray]) -> None:
    blank = tiles[-1]
    row = [(0.01 * i, 0.0, 0.01 * i + 0.02, 0.02) for i in range(40)]  # each overlaps its two neighbours
    found = calibrate([sample(f"tile {i}", blank, box) for i, box in enumerate(row)], RANGES)
    assert found["placed"] == 40
    assert found["others"]["any"]["merged"] == found["others"]["nearest"]["merged"] == 0
    one_ground = [sample(f"tile {i}", tiles[5], box) for i, box in enumerate(row)]
    others = calibrate(one_ground, RANGES)["others"]  # all alike, and the footprints say that they are not
    assert others["any"]["merged"] == others["any"]["of"] < 40 * 19
    assert others["nearest"]["share"] == 1


@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 1), ("uint8", 5), ("uint16", 4), ("int16", 1), ("float32", 2)])
def test_any_dtype_can_be_measured(dtype: str, bands: int) -> None:
    samples = []
    for i in range(12):
        pixels = (ground(i, bands, 64).astype(np.float32) * (1 if dtype == "uint8" else 20)).astype(dtype)
        samples.append(sample(f"tile {i}", pixels))
        samples[-1].mask[:9, :20] = False
    ranges = np.array([[0, 255 if dtype == "uint8" else 5100]] * bands, np.float32)
    found = calibrate(samples, ranges)
    assert {figures["share"] for figures in found["copies"].values()} == {1.0}
    assert found["others"]["any"]["merged"] == 0


def test_order_changes_nothing_and_cost_is_bounded(tiles: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample(f"tile {i}", tile) for i, tile in enumerate(tiles)]
    assert calibrate(samples, RANGES) == calibrate(samples[::-1], RANGES)
    monkeypatch.setattr(calibration, "VALUES", 10 * tiles[0].size)
    assert calibrate(samples, RANGES)["tiles"] == 10
    assert calibrate(samples[:1], RANGES)["others"]["any"]["of"] == 0
    assert calibrate([sample("tiny", np.full((3, 1, 2), 7, np.uint8))], RANGES)["tiles"] == 1


def test_wilson_is_the_interval_of_the_tables() -> None:
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


def test_it_is_written_once_beside_the_artefact_and_copied_with_it(ray_local: None, tmp_path: Path) -> None:
    write_sample_archive(tmp_path, tiles=60)
    made, other = Folder(str(tmp_path / "made")), Folder(str(tmp_path / "other"))
    config = load_config([f"archive.url={tmp_path / 'archive'}", f"workspace={tmp_path}", "encoder.filters=8"])
    roots = list_archive(config.archive.url)
    artefact = load_or_fit(config, roots, made, None)
    path = calibration_path(catalog_id(config))
    first = made.read(path)
    assert load_calibration(made, catalog_id(config)) == json.loads(first)
    assert load_or_fit(config, roots, made, None).sha256 == artefact.sha256
    assert made.read(path) == first
    load_or_fit(config, roots, other, made.child("catalog"))
    assert other.read(path) == first
    assert load_calibration(other, "another") is None
