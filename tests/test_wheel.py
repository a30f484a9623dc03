"""The wheel alone, in an empty environment: the command runs, with its config and its jobs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
UV = Path(sys.executable).parent / "uv"


def run(*command: object, cwd: Path) -> str:
    outcome = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    return outcome.stdout


@pytest.mark.timeout(600)
@pytest.mark.skipif(not UV.exists(), reason="uv is not beside this Python; `make setup` puts it there")
def test_the_wheel_installed_alone_runs(tmp_path):
    source = tmp_path / "source"
    kept = ("curation", "conf", "jobs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    for name in kept:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(path, source / name)
    run(UV, "build", "--wheel", "--quiet", "--out-dir", tmp_path / "dist", source, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "empty", cwd=tmp_path)
    python = tmp_path / "empty" / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--python", python, "-c", source / "constraints.txt", wheel, cwd=tmp_path)
    curate = python.parent / "curate"
    assert "prune" in run(curate, "--help", cwd=tmp_path)
    stages = ("prune", "catalog", "cluster", "select", "report")
    jobs = (*stages, "plan", "explain", "verify", "leakage", "submit", "schedule", "materialize", "recurate")
    run(python, "-c", f"import {', '.join(f'curation.jobs.{job}' for job in jobs)}", cwd=tmp_path)
    outcome = subprocess.run([curate, "plan", "archive.url=nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 2
    assert "nowhere" in outcome.stderr
