"""Tiles of a small archive, made without its images: row i's tile begins with i."""

from pathlib import Path

import numpy as np
import safetensors.numpy

from curation.catalog.tiles import Tiles
from curation.storage import Folder

COUNTS = {"root0/a/2.tar": 5, "root0/a/10.tar": 7, "root0/b.tar": 1, "root0/empty.tar": 0, "root1/a.tar": 11}


def write_tiles(folder: Path, counts: dict[str, int] = COUNTS, bands: int = 2, size: int = 4) -> Tiles:
    """One safetensors file a shard."""
    made, row = Tiles(Folder(str(folder / "tiles")), bands, size), 0
    for shard in sorted(counts):
        noise = np.random.default_rng(row).integers(0, 255, (counts[shard], bands, size, size), np.uint8)
        noise[:, 0, 0, 0] = np.arange(row, row + counts[shard])
        path = folder / "tiles" / made.path(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file({"tiles": noise}, path, {"digest": "feed"})
        row += counts[shard]
    return made
