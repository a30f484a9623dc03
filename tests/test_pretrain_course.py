"""A worker's training without Ray: it goes on where it was killed, draws what is due, and its encoder opens."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.encoders.base import build_encoder, fit_artefact
from curation.errors import RequestError
from curation.runtime import numeric_profile
from curation.storage import Folder
from curation.training.course import ENCODER, RUN, Course, Plan, SideSet
from curation.training.export import Input, open_encoder
from curation.training.index import write_index
from curation.training.journal import read_rows
from curation.training.settings import DinoConfig, PretrainConfig, PruneConfig
from tests.training_recipes import COUNTS, write_tiles

TOTAL = sum(COUNTS.values())
WHAT = Input(("B1", "B2"), 16, (120.0, 130.0), (70.0, 75.0), ((0.0, 255.0), (0.0, 255.0)), (0.0, 0.0))
PROFILE = {"device": "cpu"}


def plan_of(folder: Path, **keys: Any) -> Plan:
    """A training of 14 steps over 24 samples."""
    settings = PretrainConfig(
        **{
            "method": "simsiam",
            "architecture": "test_resnet",
            "size": 16,
            "batch": 4,
            "epochs": 14 * 4 / TOTAL,
            "checkpoint": 3,
            "dino": DinoConfig(outputs=32, local=1),
            **keys,
        }
    )
    tiles = write_tiles(folder.parent / "data", size=16)
    return Plan(
        settings=settings,
        seed=1,
        folder=Folder(str(folder)),
        tiles=tiles,
        shards=tuple(COUNTS),
        total=TOTAL,
        steps=14,
        what=WHAT,
        side=SideSet(tiles, tuple(COUNTS), np.arange(20), np.arange(20) % 2, np.arange(20) < 10),
        cache=folder / "cache",
        mix=False,
        made_of={},
    )


class Killed(Exception):
    """In the place of SIGKILL."""


def killed_at(course: Course, step: int) -> Course:
    """It dies before that step is taken."""
    whole = course.trainer.step

    def one(*arguments: Any) -> float:
        if course.trainer.done == step:
            raise Killed
        return whole(*arguments)

    course.trainer.step = one  # type: ignore[method-assign]
    return course


@pytest.mark.parametrize("method", ["simsiam", "dino"])
def test_a_training_that_was_killed_ends_with_the_same_encoder(tmp_path: Path, method: str) -> None:
    whole, cut = plan_of(tmp_path / "whole", method=method), plan_of(tmp_path / "cut", method=method)
    Course(whole, "cpu", PROFILE).run()
    for step in (2, 8):
        with pytest.raises(Killed):
            killed_at(Course(cut, "cpu", PROFILE), step).run()
    assert [file.path for file in cut.folder.list("checkpoints")] == [f"checkpoints/{n:09d}.pt" for n in (3, 6)]
    Course(cut, "cpu", PROFILE).run()
    assert cut.folder.read(ENCODER) == whole.folder.read(ENCODER)
    rows = [read_rows(plan.folder.child("metrics")) for plan in (whole, cut)]
    assert rows[0] == rows[1]
    told = json.loads(cut.folder.read(RUN))
    assert told["steps"] == 14
    assert [probe["step"] for probe in told["probes"]] == [0, 14]
    assert not cut.folder.exists("checkpoints")
    assert any(file.path.startswith("metrics/events.out.tfevents") for file in cut.folder.list())


def test_another_numeric_profile_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "run")
    with pytest.raises(Killed):
        killed_at(Course(plan, "cpu", PROFILE), 4).run()
    with pytest.raises(RequestError, match="numeric profile"):
        Course(plan, "cpu", {"device": "other"})
    assert Course(replace(plan, mix=True), "cpu", {"device": "other"}).trainer.done == 3


def drawn_into(plan: Plan, calls: list[int]) -> Callable[[int, str], Callable[[], dict[str, float]]]:
    """Keeps the even rows in version 1, the odd ones in version 2, and so on."""

    def begin(version: int, path: str) -> Callable[[], dict[str, float]]:
        calls.append(version)
        vectors = open_encoder(plan.folder, f"{plan.folder.url}/{path}", "cpu")(plan.tiles.read("root0/a/2.tar"))
        assert len(vectors) == 5 and np.isfinite(vectors).all()

        def end() -> dict[str, float]:
            rows = np.arange(version - 1, TOTAL, 2)
            write_index(plan.folder.child("index"), version, rows, np.full(len(rows), 2.0), TOTAL, {})
            return {"embedding": 1.0, "clustering": 2.0, "drawing": 0.5}

        return end

    return begin


@pytest.mark.parametrize("lag", [0, 1])
def test_what_is_due_is_drawn_and_trained_on(tmp_path: Path, lag: int) -> None:
    """12 steps to the end of the second pass: the first draw is due after one epoch, the second half an epoch later."""
    prune = PruneConfig(strategy="random", keep=0.5, warm=1, every=0.5, lag=lag)
    whole, cut = (plan_of(tmp_path / name, prune=prune, weighted=True) for name in ("whole", "cut"))
    calls: list[int] = []
    seen: list[tuple[int, list[int]]] = []
    course = Course(whole, "cpu", PROFILE, drawn_into(whole, calls))
    read = course.dataset.read

    def reading(rows: Any) -> Any:
        seen.append((course.version, list(rows)))
        return read(rows)

    course.dataset.read = reading  # type: ignore[method-assign]
    course.run()
    for version, rows in seen:
        assert all(not version or row % 2 == (version - 1) % 2 for row in rows)
    versions = [version for version, _ in seen]
    assert versions == sorted(versions)
    assert versions.count(0) == (6 if not lag else 12)
    told = json.loads(whole.folder.read(RUN))
    assert [draw["version"] for draw in told["draws"]] == calls
    assert told["seconds"]["clustering"] == 2.0 * len(calls)
    assert 0 < told["pruning_share"] < 1
    for step in (8, 13):
        with pytest.raises(Killed):
            killed_at(Course(cut, "cpu", PROFILE, drawn_into(cut, [])), step).run()
    Course(cut, "cpu", PROFILE, drawn_into(cut, [])).run()
    assert cut.folder.read(ENCODER) == whole.folder.read(ENCODER)


def test_the_encoder_says_all_that_the_main_job_needs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "run")
    course = Course(plan, "cpu", PROFILE)
    course.run()
    config = {"name": "timm", "architecture": None, "checkpoint": str(tmp_path / "run" / "encoder"), "size": None}
    config |= {"mean": None, "std": None, "batch": 64}
    ranges = np.float32([[0, 255], [0, 255]])
    artefact = fit_artefact(config, [], WHAT.bands, ranges, 0)
    encoder = build_encoder(config, artefact, WHAT.bands, "uint8", "cpu", 1)
    tiles = plan.tiles.read("root1/a.tar")
    np.testing.assert_allclose(encoder.encode(tiles), course.trainer.embed(tiles), atol=1e-4)
    for key, value in (("architecture", "resnet18"), ("size", 64), ("mean", [0.5, 0.5])):
        with pytest.raises(RequestError, match=rf"encoder\.{key}=.* contradicts .*: leave encoder\.{key} out"):
            fit_artefact({**config, key: value}, [], WHAT.bands, ranges, 0)
    with pytest.raises(RequestError, match=r"for 2 band\(s\) \(B1, B2\), and the archive has 3"):
        fit_artefact(config, [], ("B1", "B2", "B3"), np.float32([[0, 255]] * 3), 0)


def test_profiles_are_plain_values() -> None:
    """A checkpoint that nothing is unpickled from holds no others."""
    assert all(type(value) is str for value in numeric_profile("cpu", "fp32").values())
