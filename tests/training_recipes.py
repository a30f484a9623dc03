"""Tiles of a small archive, made without its images, and the decisions beside a manifest of `tests.kept`."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from torch.utils.data import Dataset

from curation.catalog.tiles import Tiles
from curation.manifests.schema import DECISIONS_SCHEMA, FILES_FILE, FILES_SCHEMA, decisions_path
from curation.storage import Folder
from tests.kept import Archive

COUNTS = {"root0/a/2.tar": 5, "root0/a/10.tar": 7, "root0/b.tar": 1, "root0/empty.tar": 0, "root1/a.tar": 11}


def write_tiles(folder: Path, counts: dict[str, int] = COUNTS, bands: int = 2, size: int = 4) -> Tiles:
    """One safetensors file a shard; row i's tile begins with i."""
    made, row = Tiles(Folder(str(folder / "tiles")), bands, size), 0
    for shard in sorted(counts):
        noise = np.random.default_rng(row).integers(0, 255, (counts[shard], bands, size, size), np.uint8)
        noise[:, 0, 0, 0] = np.arange(row, row + counts[shard])
        path = folder / "tiles" / made.path(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file({"tiles": noise}, path, {"digest": "feed"})
        row += counts[shard]
    return made


def write_decisions(archive: Archive) -> list[str]:
    """Two parts, as the shards' hashes have it; gives the archive's sample ids by row, as the catalog has them."""
    folder = archive.manifest.parents[1] / "catalog" / "feed"
    kept = {row["sample_id"]: row for row in pq.read_table(archive.manifest / "manifest.parquet").to_pylist()}
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.parquet")}
    parts: list[list[dict[str, Any]]] = [[], []]
    ids: list[str] = []
    for number, shard in enumerate(sorted(paths)):
        for row in pq.read_table(paths[shard], columns=["sample_id", "shard", "index", "key"]).to_pylist():
            ids.append(row["sample_id"])
            own = kept.get(row["sample_id"], {})
            row |= {"decision": "kept" if own else "dropped", "reason": "sampled" if own else "quota", "cluster": 0}
            row |= {"distance": 0.5, "rank": own.get("rank"), "weight": own.get("weight")}
            parts[number % 2].append({name: row.get(name) for name in DECISIONS_SCHEMA.names})
    (archive.manifest / "decisions").mkdir()
    for number, rows in enumerate(parts):
        table = pa.Table.from_pylist(rows, DECISIONS_SCHEMA)
        pq.write_table(table, archive.manifest / decisions_path(number), row_group_size=29)
    files = [{"path": decisions_path(number), "size": 0, "sha256": "", "rows": 0} for number in range(len(parts))]
    pq.write_table(pa.Table.from_pylist(files, FILES_SCHEMA), archive.manifest / FILES_FILE)
    return ids


def blocks(path: str, word: str) -> list[str]:
    """The Python blocks of a document that have a word in them."""
    text = (Path(__file__).parents[1] / path).read_text()
    return [block for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if word in block]


class Own(Dataset[str]):
    """Somebody's own dataset, whose items are their keys."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, item: int) -> str:
        return self.keys[item]


def own_dataset(archive: Archive) -> Own:
    """Items of all the archive's samples, in an order of their own."""
    folder = archive.manifest.parents[1] / "catalog" / "feed"
    keys = [pq.read_table(path, columns=["key"])["key"].to_pylist() for path in sorted(folder.rglob("*.parquet"))]
    return Own(sum(keys, [])[::-1])
