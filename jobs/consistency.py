"""``curate consistency``: how far each sample's image agrees with its caption, its label or another modality."""

import json
from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.scoring.consistency import ABOUT
from curation.scoring.consistent import check_encoder
from curation.stages import open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Fill the catalog where that is not done yet, then judge; the result says where the figures are."""
    with open_run(arguments) as job:
        check_encoder(job.config)
        folder = job.consistency(job.catalog())
        about = json.loads(folder.read(ABOUT))
        told = {name: about[name] for name in ("scored", "sources", "positive")}
        return {"consistency": folder.public(), "samples": about["rows"], **told}


if __name__ == "__main__":
    leave(execute(run))
