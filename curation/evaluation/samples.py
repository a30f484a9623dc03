"""All that a comparison must know of every sample, gathered once by Ray tasks and shared by all arms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.catalog.labels import Labels
from curation.catalog.store import CatalogStore, chunks
from curation.catalog.tiles import Tiles
from curation.clustering.assign import embeddings
from curation.errors import CurationError, RequestError
from curation.manifests.exchange import submit
from curation.manifests.schema import ROWS_FILE
from curation.selection.groups import group_texts
from curation.selection.sampling import sortable, split_ids
from curation.storage import Folder

MOST = 1_000_000  # samples; their features are held in memory
SHARDS = 64  # read in one task
REGION_KM = 1000.0  # side of a region whose balance is told
COLUMNS = ["sample_id", "entropy", "time", "footprint", "embedding"]

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Samples in the order of shards, then of their catalog files.

    Attributes:
        shards: names.
        rows: int64 (shards,), samples of each.
        position: int64 (n,), row in the shard's tiles.
        ids: S16 (n,), see `manifests.duplicates.sortable`.
        features: float16 (n, d), the scorer's, of unit length.
        labels: string (n,), null where there is none.
        entropy: float32 (n,), NaN where it is not known.
        groups: ``region`` and ``season``, string (n,), `UNKNOWN` where nothing tells.
    """

    shards: tuple[str, ...]
    rows: Ints
    position: Ints
    ids: NDArray[np.bytes_]
    features: NDArray[np.float16]
    labels: pa.Array
    entropy: NDArray[np.float32]
    groups: dict[str, pa.Array]

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: NDArray[np.bytes_]) -> Ints:
        """Row numbers of ids.

        Raises:
            CurationError: one is not among the samples.
        """
        order = np.argsort(self.ids)
        place = np.minimum(np.searchsorted(self.ids, ids, sorter=order), len(order) - 1)
        rows = order[place]
        if (self.ids[rows] != ids).any():
            raise CurationError(
                "a selection names samples that the scorer's catalog lacks: this is a fault of the program"
            )
        return rows.astype(np.int64)

    def pixels(self, tiles: Tiles, rows: Ints) -> Pixels:
        """Their tiles ``(len(rows), bands, size, size)``, in that order; a shard at a time."""
        ends = np.cumsum(self.rows)
        shard = np.searchsorted(ends, rows, side="right")
        made = np.empty((len(rows), tiles.bands, tiles.size, tiles.size), np.uint8)
        for number in np.unique(shard).tolist():
            mine = np.flatnonzero(shard == number)
            local = self.position[rows[mine]]
            first = int(local.min())
            made[mine] = tiles.read(self.shards[number], slice(first, int(local.max()) + 1))[local - first]
        return made


def gather(
    selector: CatalogStore | None, scorer: CatalogStore, shards: Sequence[str], labels: Labels
) -> tuple[Any, int, int]:
    """Gather the samples of some shards.

    Args:
        selector: only samples that this catalog has too.
        scorer: whose columns and embeddings count.
        shards: names.
        labels: where they are said.

    Returns:
        a reference to `Samples`, how many they are, and how many have a label.

    Raises:
        RequestError: there are more than `MOST`.
    """
    parts = [submit(_part, selector, scorer, list(some), labels) for some in chunks(sorted(shards), SHARDS)]
    samples, count, labelled = submit(_together, *parts, returns=3)
    return samples, ray.get(count), ray.get(labelled)


def _part(selector: CatalogStore | None, scorer: CatalogStore, shards: list[str], labels: Labels) -> Samples:
    tables, positions = [], []
    for shard in shards:
        table = scorer.read(shard, COLUMNS).append_column("label", labels.read(scorer, shard))
        there = np.arange(len(table))
        if selector is not None:
            known = selector.read(shard, ["sample_id"])["sample_id"].combine_chunks()
            there = np.flatnonzero(pc.is_in(table["sample_id"], value_set=known).to_numpy())
        tables.append(table.take(pa.array(there)))
        positions.append(there)
    table = pa.concat_tables(tables)
    return Samples(
        shards=tuple(shards),
        rows=np.array([len(one) for one in tables], np.int64),
        position=np.concatenate(positions).astype(np.int64),
        ids=sortable(*split_ids(table["sample_id"])),
        features=embeddings(table),
        labels=table["label"].combine_chunks(),
        entropy=table["entropy"].to_numpy().astype(np.float32),
        groups={key: group_texts([key], table, REGION_KM).cast(pa.string()) for key in ("region", "season")},
    )


def _together(*parts: Samples) -> tuple[Samples, int, int]:
    count = sum(map(len, parts))
    if count > MOST:
        raise RequestError(
            f"compare holds the features of all {count:,} samples in memory and is sized for {MOST:,}: "
            "give some of the shards as archive.url, such as a glob"
        )
    made = Samples(
        shards=tuple(shard for part in parts for shard in part.shards),
        rows=np.concatenate([part.rows for part in parts]),
        position=np.concatenate([part.position for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        features=np.concatenate([part.features for part in parts]),
        labels=pa.concat_arrays([part.labels for part in parts]),
        entropy=np.concatenate([part.entropy for part in parts]),
        groups={name: pa.concat_arrays([part.groups[name] for part in parts]) for name in parts[0].groups},
    )
    return made, count, count - int(made.labels.null_count)


def kept_rows(manifest: Folder, samples: Samples) -> Ints:
    """The rows of a manifest's samples, in the order of their rank."""
    with manifest.open(manifest.info(ROWS_FILE)) as file:
        table = pq.read_table(file, columns=["sample_id", "rank"]).sort_by("rank")
    return samples.find(sortable(*split_ids(table["sample_id"])))


def decisive(test: Samples, shared: list[str]) -> tuple[Ints, dict[str, int]]:
    """The rows of a test set that have a label and are not shared, and counts of it."""
    labelled = test.labels.is_valid().to_numpy(zero_copy_only=False)
    theirs = sortable(*split_ids(pa.array(shared, pa.string())))
    rows = np.flatnonzero(labelled & ~np.isin(test.ids, theirs))
    classes = pc.unique(test.labels.take(pa.array(rows)))
    counts = {"unlabelled": int((~labelled).sum()), "deciding": len(rows), "classes": len(classes)}
    return rows, {f"test_{name}": count for name, count in counts.items()}


def classes_apart(samples: Samples, test: Samples, rows: Ints) -> tuple[dict[str, int], list[str], int]:
    """Deciding samples of each class that the archive lacks; the archive's classes; classes of two samples or more."""
    ours = sorted(set(pc.unique(samples.labels).drop_null().to_pylist()))
    theirs = {row["values"]: row["counts"] for row in pc.value_counts(test.labels.take(pa.array(rows))).to_pylist()}
    lacking = {name: count for name, count in sorted(theirs.items()) if name not in ours}
    return lacking, ours, sum(count > 1 for count in theirs.values())
