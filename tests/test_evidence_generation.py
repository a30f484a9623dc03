"""The generation experiment: what it asks ``curate prune`` for, how it judges, and that its samples survive on disk."""

from pathlib import Path

import numpy as np

from benchmarks.evidence.diffusion import (
    BANDS,
    DRAWN,
    ROW,
    SIZE,
    Job,
    generate_all,
    network,
    read_sheet,
    train,
    write_jobs,
    write_sheet,
)
from benchmarks.evidence.generation import Arm, claims, judged
from curation.config import load_config
from curation.evaluation.statistics import paired


def test_arms_are_configs_of_prune() -> None:
    published = load_config(Arm("rs_prune", 0.15, 3).overrides())
    assert (published.select.strategy, published.select.entropy.keep, published.cluster.free) == ("rs_prune", 0.3, 0)
    assert (published.select.budget, published.seed) == (0.15, 3)
    assert load_config(Arm("stage2", 0.3, 0).overrides()).select.entropy.keep is None
    assert load_config(Arm("entropy", 0.3, 0).overrides()).select.strategy == "entropy"


def test_lower_distances_are_better() -> None:
    low, high = [1.0, 1.1, 0.9, 1.0], [2.0, 2.2, 1.9, 2.0]
    said = judged({"good": paired(low, high), "bad": paired(high, low), "same": paired([1.0, 2, 1, 2], [2.0, 1, 2, 1])})
    assert [row["verdict"] for row in said.values()] == ["better", "worse", "no difference"]


def test_a_win_against_the_filtered_reference_alone_is_called_bias() -> None:
    def less(verdict: str) -> dict[str, dict[str, dict[str, str]]]:
        return {"rs_prune_less": {rival: {"verdict": verdict} for rival in ("random", "full", "entropy")}}

    biased = {"unfiltered": less("worse"), "filtered": less("better"), "archive": less("worse")}
    first, second = claims({"0.15": biased})
    assert "unfiltered no, filtered yes" in first and "bias is confirmed" in first
    assert "filtered better" in second
    assert "bias" not in claims({"0.15": {name: less("better") for name in biased}})[0]


def test_training_is_seeded_and_samples_survive(tmp_path: Path) -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (8, BANDS, SIZE, SIZE), np.uint8)
    weights = []
    for seed in (0, 0, 1):
        net = network(seed)
        assert train(net, tiles, seed, 2, 4) > 0
        weights.append(next(net.parameters()).detach().numpy())
    assert (weights[0] == weights[1]).all() and (weights[0] != weights[2]).any()
    drawn = np.random.default_rng(1).integers(0, 255, (DRAWN, BANDS, SIZE, SIZE), np.uint8)
    write_sheet(tmp_path / "sheet.png", drawn)
    assert (read_sheet(tmp_path / "sheet.png") == drawn).all()


def test_what_was_written_down_is_trained_once(tmp_path: Path) -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (8, BANDS, SIZE, SIZE), np.uint8)
    write_jobs(tmp_path, tiles, [Job("untrained", [0], 0, 0, 4, ROW), Job("half", [0, 2, 4, 6], 1, 1, 4, ROW)])
    generate_all(tmp_path, 1, "cpu")
    first = (tmp_path / "arms" / "half.json").stat().st_mtime_ns
    generate_all(tmp_path, 1, "cpu")
    assert (tmp_path / "arms" / "half.json").stat().st_mtime_ns == first
    assert read_sheet(tmp_path / "samples" / "half.png").shape == (ROW, BANDS, SIZE, SIZE)
