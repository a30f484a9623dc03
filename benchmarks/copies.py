"""Precision and recall of near-duplicates in an archive whose sidecars say which tiles show one place.

Tiles of one ``row`` and ``col`` (pixels) are copies, mirrored or rotated; all other pairs are not, the neighbours
that overlap by half among them. Measured on the search alone, all tiles in one cluster, and on the decisions of a
whole ``curate prune`` with the default config. Pairs are counted within whole groups. Beside it, what a user would
write: ImageHash's perceptual hash of each tile in its eight orientations, copies within a Hamming distance of
``HAMMING``. ``ratio`` is our seconds for describing and searching over its seconds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from curation.jobs.prune import run
from PIL import Image

from benchmarks.output import print_result
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Sample
from curation.archive.settings import ArchiveConfig
from curation.catalog.calibration import load_calibration
from curation.catalog.schema import catalog_schema
from curation.scoring.signature import signature_and_patch
from curation.selection.duplicates import COLUMNS, find_duplicates
from curation.storage import Folder, local_path

HAMMING = 8  # of 64 bits

Place = tuple[int, int]
Tiles = dict[str, tuple[Sample, Place]]  # by key


def read(tars: Iterable[str]) -> Tiles:
    """All tiles, with where they lie."""
    settings, tiles = ArchiveConfig(), {}
    for root in list_archive(list(tars)):
        for shard in root.shards:
            for raw in read_shard(root.folder, shard, settings):
                assert isinstance(raw, RawSample), raw
                said = json.loads(raw.data["json"])
                tiles[raw.key] = decode(raw, settings), (said["row"], said["col"])
    return tiles


def ours(tiles: Tiles) -> dict[str, str]:
    """Group of each tile: describe, then search with all in one cluster."""
    columns: dict[str, Any] = {"sample_id": list(tiles), "valid_fraction": [1.0] * len(tiles)}
    both = []
    for sample, _ in tiles.values():
        ranges = np.array([[0, 255]] * len(sample.pixels), np.float32)  # as the catalog does for uint8
        both.append(signature_and_patch(sample.pixels, sample.mask, ranges))
    columns |= {"signature": [list(outline) for outline, _ in both], "patch": [patch for _, patch in both]}
    schema = catalog_schema(1)
    nothing = [None] * len(tiles)
    rows = pa.table({name: pa.array(columns.get(name, nothing), schema.field(name).type) for name in COLUMNS})
    found = find_duplicates(rows.append_column("cluster", pa.array(np.zeros(len(tiles), np.int32))))
    of = dict(zip(found["sample_id"].to_pylist(), found["duplicate_of"].to_pylist(), strict=True))
    return {key: of.get(key, key) for key in tiles}


def phash(tiles: Tiles) -> dict[str, str]:
    """Group of each tile by perceptual hashes: the first tile that is near in one of the eight orientations."""
    plain: list[np.ndarray] = []
    group: dict[str, str] = {}
    heads: list[str] = []
    for key, (sample, _) in tiles.items():
        picture = sample.pixels.mean(axis=0).round().astype(np.uint8)
        views = [np.rot90(side, k) for side in (picture, picture[::-1]) for k in range(4)]
        hashes = np.stack([imagehash.phash(Image.fromarray(np.ascontiguousarray(view))).hash.ravel() for view in views])
        near = (np.stack(plain)[:, None] != hashes).sum(axis=2).min(axis=1) if plain else np.zeros(0)
        if len(near) and near.min() <= HAMMING:
            group[key] = heads[int(near.argmin())]
        else:
            group[key] = key
            heads.append(key)
            plain.append(hashes[0])
    return group


def pruned(tars: Iterable[str], workspace: str) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Group of each tile in the decisions of a whole run, and what the run measured on the archive."""
    result = run([f"archive.url=[{','.join(tars)}]", f"workspace={workspace}"])
    folder = Path(local_path(result["manifest"])).parent
    decided = ds.dataset(folder / "decisions").to_table(columns=["sample_id", "key", "duplicate_of"]).to_pylist()
    key_of = {row["sample_id"]: row["key"] for row in decided}
    catalog = json.loads((folder / "manifest.json").read_text())["content"]["catalog"]
    groups = {row["key"]: key_of[row["duplicate_of"] or row["sample_id"]] for row in decided}
    return groups, load_calibration(Folder(workspace), catalog)


def figures(groups: Mapping[str, str], tiles: Tiles) -> dict[str, Any]:
    """Precision and recall of the pairs within groups, and how many of them overlap by part."""
    members: dict[str, list[str]] = defaultdict(list)
    places: dict[Place, int] = defaultdict(int)
    for key, head in groups.items():
        members[head].append(key)
        places[tiles[key][1]] += 1
    merged = right = overlapping = 0
    for group in members.values():
        for i, one in enumerate(group):
            for other in group[:i]:
                (sample, a), (_, b) = tiles[one], tiles[other]
                merged += 1
                right += a == b
                _, height, width = sample.pixels.shape
                overlapping += a != b and abs(a[0] - b[0]) < height and abs(a[1] - b[1]) < width
    pairs = sum(n * (n - 1) // 2 for n in places.values())
    return {
        "precision": right / max(merged, 1),
        "recall": right / max(pairs, 1),
        "pairs": pairs,
        "merged": merged,
        "overlapping_merged": overlapping,
        "groups": len(members),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tar", nargs="+", help="tars whose sidecars have row and col, in pixels")
    tars = parser.parse_args().tar
    tiles = read(tars)
    seconds, found = {}, {}
    for name, side in (("search", ours), ("phash", phash)):
        start = time.process_time()
        found[name] = figures(side(tiles), tiles)
        seconds[name] = time.process_time() - start
        print(f"{name}: {found[name]} in {seconds[name]:.1f} s", file=sys.stderr)
    with tempfile.TemporaryDirectory() as workspace:
        groups, calibration = pruned([str(Path(tar).resolve()) for tar in tars], workspace)
    print_result(
        seconds["search"] / seconds["phash"],
        **found["search"],
        tiles=len(tiles),
        seconds=seconds["search"],
        prune=figures(groups, tiles),
        phash={**found["phash"], "seconds": seconds["phash"]},
        calibration=calibration,
    )


if __name__ == "__main__":
    main()
