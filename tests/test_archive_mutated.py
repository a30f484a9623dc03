"""Files with bytes flipped, overwritten, swapped or cut: no crash, no hang, every sample is an image or a reason."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.archive.decode import decode
from curation.archive.sample import Rejection
from curation.archive.settings import ArchiveConfig
from curation.errors import BadSample
from tests.archive_tools import read_all
from tests.containers import major_tom_row, optical, ssl4eo, store, write_major_tom, write_terramesh, zip_store
from tests.recipes import geotiff, npy, write_tar

BOTH = ["S2L2A", "S1GRD"]


def major_tom(folder: Path) -> Path:
    return write_major_tom(folder / "a.parquet", [major_tom_row(i, 12) for i in range(3)])


def snappy(folder: Path) -> Path:
    rows = [npy(np.full((3, 9, 9), i, np.uint8)) for i in range(60)]
    pq.write_table(pa.table({"image": rows, "label": ["a"] * 60}), folder / "a.parquet", row_group_size=20)
    return folder / "a.parquet"


def zarr_2(folder: Path) -> Path:
    (folder / "a.zarr.zip").write_bytes(zip_store(ssl4eo("S2L2A", 3, size=12)))
    return folder / "a.zarr.zip"


def zarr_3(folder: Path) -> Path:
    bands = np.stack([optical(n, 16) for n in range(6)])
    how = {"chunks": (1, 12, 16, 16), "shards": (2, 12, 16, 16)}
    files = store({"bands": (bands, ("sample", "band", "y", "x"), how)}, 3)
    (folder / "a.zarr.zip").write_bytes(zip_store(files))
    return folder / "a.zarr.zip"


def tar(folder: Path) -> Path:
    members = [(f"{n}.tif", geotiff(optical(n, 12).astype(np.uint16), nodata="0")) for n in range(4)]
    return write_tar(folder / "a.tar", [*members, *((f"{n}.json", b'{"label": "a"}') for n in range(4))])


def joined(folder: Path) -> Path:
    write_terramesh(folder, BOTH, shards=1, each=4, splits=["train"])
    return next(folder.rglob("S1GRD/*.tar"))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some damage, half of it near the end, where indices lie."""
    changed, how = bytearray(data), rng.randrange(5)
    for _ in range(rng.choice([1, 1, 3, 20])):
        near_end = max(0, len(changed) - 1 - int(rng.expovariate(1 / 800)))
        at = rng.randrange(len(changed)) if rng.random() < 0.5 else near_end
        if how == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            changed[at : at + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(1, 40))
        elif how == 2:
            changed[at] = rng.choice([0, 255, 127, 128])
        elif how == 3:
            other = rng.randrange(len(changed))
            one, two = sorted((at, other))
            size = min(rng.randrange(1, 600), two - one, len(changed) - two)
            changed[one : one + size], changed[two : two + size] = changed[two : two + size], changed[one : one + size]
        else:
            changed = changed[: max(1, at)]
    return bytes(changed)


@pytest.mark.parametrize("make", [tar, major_tom, snappy, zarr_2, zarr_3, joined], ids=lambda make: make.__name__)
def test_damaged_files_cost_what_is_damaged(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    config = ArchiveConfig(modalities=BOTH if make is joined else None)
    whole, rng = path.read_bytes(), random.Random(make.__name__)
    outcomes = {"image": 0, "reason": 0}
    for _ in range(40):
        path.write_bytes(mutated(whole, rng))
        items = read_all(path if make is not joined else tmp_path, modalities=config.modalities)
        assert [item.index for item in items] == list(range(len(items))) and items  # never nothing at all
        for item in items:
            try:
                if isinstance(item, Rejection):
                    assert item.kind and item.message
                    outcomes["reason"] += 1
                else:
                    decode(item, config)
                    outcomes["image"] += 1
            except BadSample:
                outcomes["reason"] += 1
    assert min(outcomes.values()) > 10, outcomes
