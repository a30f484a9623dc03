"""What is told of a training while it runs: ``metrics.jsonl``, and events for TensorBoard beside it."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from curation.storage import Folder

FILE = "metrics.jsonl"
PAUSE = 5.0  # seconds from one writing to the next


class Journal:
    """The figures of a run, by step.

    Args:
        folder: that they are written to.
        rows: what a checkpoint knew; what was told after it is told again.
        step: of that checkpoint.
    """

    def __init__(self, folder: Folder, rows: list[dict[str, Any]], step: int) -> None:
        self.folder, self.rows = folder, list(rows)
        self._events = Path(folder.full("") if folder.local else tempfile.mkdtemp())
        self._writer = SummaryWriter(str(self._events), purge_step=step + 1)
        self._written = 0.0

    def note(self, step: int, **values: Any) -> None:
        """Add figures, and texts for people."""
        self.rows.append({"step": step, **values})
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        if time.monotonic() - self._written > PAUSE:
            self.publish()

    def publish(self) -> None:
        """Write all."""
        self._writer.flush()
        self.folder.publish(FILE, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        if not self.folder.local:
            for path in self._events.iterdir():
                self.folder.publish(path.name, path.read_bytes())
        self._written = time.monotonic()


def read_rows(folder: Folder) -> list[dict[str, Any]]:
    """The figures so far."""
    try:
        return [json.loads(line) for line in folder.read(FILE).splitlines()]
    except FileNotFoundError:
        return []
