"""``curate choose``: what chance gives, and different advice for a redundant archive and for one without structure."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.evaluation.stability import kinds_agreement, overlap, recommend
from jobs import choose
from tests.recipes import encoded, write_tar
from tests.scenes import draw


@given(n=st.integers(50, 400), share=st.floats(0.1, 0.6), seed=st.integers(0, 1000))
def test_independent_draws_overlap_as_chance_says(n: int, share: float, seed: int) -> None:
    rng, count = np.random.default_rng(seed), max(2, int(share * n))
    found = [overlap(rng.permutation(n)[:count], rng.permutation(n)[:count], n) for _ in range(200)]
    assert (
        abs(np.mean([one.beyond for one in found])) < 4 * np.std([one.beyond for one in found]) / math.sqrt(200) + 0.01
    )


def test_the_same_selection_overlaps_wholly() -> None:
    assert overlap(np.arange(10), np.arange(10)[::-1], 100).beyond == 1


def test_kinds_agree_where_both_favour_the_same() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1], [900, 100])
    favour = [np.concatenate([rng.permutation(900)[:50], 900 + rng.permutation(100)[:50]]) for _ in range(2)]
    assert kinds_agreement(*favour, kinds) == pytest.approx(1)
    against = np.concatenate([rng.permutation(900)[:98], [900, 901]])
    assert kinds_agreement(favour[0], against, kinds) == pytest.approx(-1)
    draws = [[rng.permutation(1000)[:100] for _ in range(2)] for _ in range(200)]
    many = rng.integers(20, size=1000)
    assert abs(np.mean([kinds_agreement(*pair, many) for pair in draws])) < 0.1


def setting(k: int, budget: float, beyond: float, kinds: float) -> dict[str, Any]:
    return {"encoder": "e", "k": k, "budget": budget, "beyond": beyond, "kinds": kinds}


def test_the_smallest_setting_that_is_as_stable_as_any() -> None:
    swept = [setting(k, b, b, 0.9 if k > 10 else 0.4) for k in (10, 20, 40) for b in (0.1, 0.3, 0.32)]
    assert recommend(swept) == {"noise": False, "encoder": "e", "k": 20, "budget": 0.3}
    assert recommend([setting(10, 0.1, 0.05, 0.3), setting(20, 0.1, 0.09, 0.45)])["noise"]
    two = [setting(2, 0.1, 0.0, 1.0), setting(50, 0.1, 0.0, 0.6)]  # two kinds agree or not, whatever was kept
    assert recommend(two)["k"] == 50


def write_redundant(dest: Path) -> Path:
    """Few scenes, most of them many times: shifted, relit and encoded again."""
    rng = np.random.default_rng(1)
    members = []
    for i in range(30):
        (ground,) = draw(("field", "town", "forest", "desert", "mountain")[i % 5], 1, np.random.default_rng([5, i]))
        rgb = np.clip(ground[2::-1] / 4000 * 255, 0, 255).transpose(1, 2, 0)
        for copy in range(1 + i % 8):
            relit = np.clip(rgb * rng.uniform(0.95, 1.05), 0, 255).astype(np.uint8)
            members.append((f"{i:02d}_{copy}.jpg", encoded(relit[copy % 3 : copy % 3 + 64, :64], quality=85)))
    write_tar(dest / "a.tar", members)
    return dest


def write_noise(dest: Path) -> Path:
    """Tiles that have nothing in common and nothing apart."""
    rng = np.random.default_rng(2)
    tiles = rng.integers(0, 256, (130, 32, 32, 3), dtype=np.uint8)
    write_tar(dest / "a.tar", [(f"{i:03d}.png", encoded(tile, "PNG")) for i, tile in enumerate(tiles)])
    return dest


def chosen(archive: Path, workspace: Path) -> dict[str, Any]:
    arguments = ["catalog.fit_samples=64", "encoder.filters=8", "choose.k=[8]", "choose.budgets=[0.2]"]
    arguments.append("runtime.max_actors=1")
    return choose.run([f"archive.url={archive}", f"workspace={workspace}", *arguments])


def test_advice_differs_with_the_archive(ray_local: None, tmp_path: Path) -> None:
    redundant = chosen(write_redundant(tmp_path / "redundant"), tmp_path / "one")
    noise = chosen(write_noise(tmp_path / "noise"), tmp_path / "other")
    assert (redundant["noise"], redundant["k"], redundant["budget"]) == (False, 8, 0.2)
    assert redundant["advice"].startswith("Take cluster.k=8")
    assert noise["noise"] and "mostly noise" in noise["advice"]
    told = json.loads(Path(redundant["choice"].removeprefix("file://")).read_text())
    other = json.loads(Path(noise["choice"].removeprefix("file://")).read_text())
    assert told["redundancy"]["copies_share"] > 0.5 and other["redundancy"]["copies_share"] == 0
    assert told["redundancy"]["nearest_cosine"]["0.5"] > other["redundancy"]["nearest_cosine"]["0.5"]
    assert redundant["advice"] in Path(redundant["report"].removeprefix("file://")).read_text()
    assert not (tmp_path / "one" / "manifests").exists()
    assert chosen(tmp_path / "redundant", tmp_path / "one") == redundant
