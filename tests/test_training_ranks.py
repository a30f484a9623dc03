"""Real processes, real signals: ranks see one index or stop, and a killed rank costs nothing of the order."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.storage import Folder
from curation.training.index import read_index, write_index
from curation.training.sampler import KeptSampler
from tests.training_script import BATCH, EVERY, SEED, TOTAL

DEADLINE = 120  # seconds; importing torch takes long on a busy machine


def start(job: str, folder: Path, run: int, world: int = 2, **environment: str) -> list["subprocess.Popen[str]"]:
    given = {**os.environ, "RUN": str(run), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "tests.training_script", job, str(folder)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env={**given, "RANK": str(rank)}, **pipes) for rank in range(world)]


def finish(processes: list["subprocess.Popen[str]"]) -> list[str]:
    outputs = [process.communicate(timeout=DEADLINE) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [stdout for stdout, _ in outputs]


def lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    path = folder / f"rank{rank}.jsonl"
    complete = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in complete.splitlines()]


def undisturbed(folder: Path, rank: int) -> list[tuple[int, int, list[int]]]:
    """Pass, version and rows of each batch: the first two passes of version 1, the third of version 2."""
    batches = []
    for number, version in enumerate((1, 1, 2)):
        sampler = KeptSampler(read_index(Folder(str(folder / "index")), version), seed=SEED, rank=rank, world=2)
        sampler.set_pass(number)
        rows = list(sampler)
        batches += [(number, version, rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    return batches


def test_a_rank_killed_in_mid_pass_costs_nothing_of_the_order(tmp_path):
    """Killed in the second pass, when the pruner had a new version ready: the pass goes on with the old one."""
    folder = Folder(str(tmp_path / "index"))
    rows = np.flatnonzero(np.random.default_rng(0).random(TOTAL) < 0.4)
    write_index(folder, 1, rows, None, TOTAL, {})
    processes = start("train", tmp_path, 1, PAUSE="0.05")
    until = time.monotonic() + DEADLINE
    while sum(line["pass"] == 1 for line in lines(tmp_path, 1)) < EVERY + 2:
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.01)
    write_index(folder, 2, rows[::3], None, TOTAL, {})
    for process in reversed(processes):
        process.kill()  # SIGKILL
        process.wait()
    state = json.loads((tmp_path / "checkpoint.json").read_text())
    assert (state["pass"], state["version"]) == (1, 1) and 0 < state["position"] < len(rows)
    finish(start("train", tmp_path, 2))
    for rank in range(2):
        whole = undisturbed(tmp_path, rank)
        told = [(line["run"], (line["pass"], line["version"], line["rows"])) for line in lines(tmp_path, rank)]
        before, after = ([batch for run, batch in told if run == number] for number in (1, 2))
        assert before == whole[: len(before)]
        done = len([batch for batch in whole if batch[0] == 0]) + state["position"] // 2 // BATCH
        assert after == whole[done:]
        assert done <= len(before)


@pytest.mark.timeout(DEADLINE)
def test_a_rank_that_sees_another_index_stops(tmp_path):
    for rank in range(2):
        for name in ("same", "other", "older", "damaged"):
            folder = Folder(str(tmp_path / f"rank{rank}" / name))
            write_index(folder, 1, [1, 2, 3 + rank * (name == "other")], None, TOTAL, {})
            if name == "older" and rank == 0 or name == "same" and rank == 1:
                write_index(folder, 2, [1, 2], None, TOTAL, {})
            if name == "damaged" and rank == 1:
                Path(folder.full("000001/rows.npy")).write_bytes(b"")
    for said in finish(start("disagree", tmp_path, 1)):
        same, other, older, damaged, given = said.splitlines()
        assert same == "version 1"  # rank 0 decides, though rank 1 sees a newer one
        for line in (other, given):
            assert line.startswith("rank 1 sees another keep-index than rank 0: version 1 (")
        assert "no version 2" in older and "not version 2" in older
        assert "rows.npy is not the file that was written" in damaged
