"""A training loop on Ray Train: what its workers die of is told while they begin again."""

from pathlib import Path
from typing import Any

import pytest

from curation.errors import CurationError
from curation.storage import Folder
from curation.training.group import Group, train


def _fails_until(config: dict[str, Any]) -> None:
    """Raises as often as it is told to."""
    begun = sorted(Path(config["marks"]).iterdir())
    (Path(config["marks"]) / str(len(begun))).touch()
    if len(begun) < config["failures"]:
        raise RuntimeError(f"failure {len(begun)}: the device is lost")


def test_a_failure_is_told_and_too_many_are_an_error(
    ray_local: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "marks").mkdir()
    folder, told = Folder(str(tmp_path / "run")), {"marks": str(tmp_path / "marks")}

    def run(failures: int) -> None:
        given, group = {**told, "failures": failures}, Group(1, 1.0, 0.0)
        train(_fails_until, given, group, folder, 1, "pretrain.restarts", lambda finished: finished.result())

    run(1)
    said = [record.getMessage() for record in caplog.records if record.name == "curation"]
    assert len(said) == 1
    assert "failure 0: the device is lost; it goes on from the last checkpoint, 1 of pretrain.restarts=1" in said[0]
    assert not (tmp_path / "run" / "ray").exists()
    with pytest.raises(CurationError, match="failed more than pretrain.restarts=1 times.*failure 3: the device"):
        run(4)
