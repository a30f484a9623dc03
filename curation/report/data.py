"""Gathers what the page shows, in Ray tasks over parts and shards.

Three passes, each bounded whatever the number of samples: counts over all
decisions; then the tiles worth showing, once the counts say which clusters
and groups are telling; then the previews and embeddings of those few. What a
task returns is counts or a bounded best-of, merged in a tree of tasks.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.catalog.artefact import load_audit
from curation.catalog.calibration import load_calibration
from curation.catalog.store import CatalogStore, chunks
from curation.errors import CurationError
from curation.manifests.chain import decision_parts, read_part
from curation.manifests.schema import BATCH, KEPT, REASONS
from curation.scoring.thumbnail import in_share
from curation.selection.sampling import hash01
from curation.storage import Folder

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

REASON = {reason: code for code, reason in enumerate(REASONS)}

BITS = 8.0  # entropy of 256 bins ends here
BINS = 80  # of the entropy histogram
STEPS = 16  # of the ladder of example tiles over entropy
POINTS = 4000  # of the map
GROUPS = 12  # of duplicates shown
LABELS = 5000  # classes counted one by one; the rarest beyond are added up
EXAMPLES = 4  # quarantined samples a reason

SHARDS_A_TASK = 200
FAN_IN = 8  # results merged by one task
SEED = 0x5EED  # of the order in which examples are drawn; not the selection's


@dataclass
class Counts:
    """Counts over decisions; mergeable.

    Attributes:
        clusters: (K + 1, reasons); the last row is for samples without a cluster.
        entropy: (bins, reasons), of the samples that have an entropy.
        threshold: of the entropy stage, bits; the highest, if there should be several.
        labels: label -> (reasons,); ``None`` for the samples without one.
        groups: values of select.by -> (reasons,).
        rare: (reasons,), of the labels beyond ``LABELS``.
        copies: representative's sample_id -> duplicates dropped for it; large groups, and any.
    """

    clusters: Ints
    entropy: Ints = field(default_factory=lambda: np.zeros((BINS, len(REASONS)), np.int64))
    threshold: float | None = None
    labels: dict[str | None, Ints] = field(default_factory=dict)
    groups: dict[str, Ints] = field(default_factory=dict)
    rare: Ints = field(default_factory=lambda: np.zeros(len(REASONS), np.int64))
    copies: Counter[str] = field(default_factory=Counter)

    @property
    def reasons(self) -> dict[str, int]:
        """Samples a reason."""
        return dict(zip(REASONS, self.clusters.sum(axis=0).tolist(), strict=True))


@dataclass
class Readings:
    """What reading the shards gave; mergeable."""

    read: int = 0
    samples: int = 0
    quarantined: Counter[tuple[str, str]] = field(default_factory=Counter)  # (stage, error)
    examples: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    profiles: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Tile:
    """A sample with what the page says of it; ``image`` is a preview's bytes, ``patch`` a tiny one's."""

    sample_id: str
    shard: str
    key: str
    reason: str
    cluster: int | None
    distance: float | None
    entropy: float | None
    duplicate_of: str | None
    label: str | None
    image: bytes | None
    patch: bytes | None
    footprint: dict[str, float] | None = None  # of the map's tiles, as their incidence angle
    incidence_angle: float | None = None

    @property
    def kept(self) -> bool:
        """Whether it is in the manifest."""
        return self.reason in KEPT


@dataclass(frozen=True)
class Group:
    """A sample, and some of the near-duplicates that it stands for."""

    representative: Tile | None
    size: int  # duplicates dropped
    copies: list[Tile]


@dataclass(frozen=True)
class Figures:
    """All that the page shows.

    Attributes:
        centroids: what clusters/<id>/centroids.parquet says of each, but for vectors.
        telling: why a cluster is shown -> its numbers.
        tiles: (family, slot) -> tiles in order; see ``FAMILIES``.
        points: tiles of the map, without previews; ``places``: (n, 2), their first two principal components;
        ``explained``: those components' share of the variance.
        calibration: how well copies are told on this archive, if it was measured.
        audit: rows of what its numbers were found to be, if that was asked.
    """

    header: dict[str, Any]
    fit: dict[str, Any]
    centroids: pa.Table
    counts: Counts
    readings: Readings
    telling: dict[str, list[int]]
    tiles: dict[tuple[str, int], list[Tile]]
    groups: list[Group]
    points: list[Tile]
    places: Floats
    explained: float
    calibration: dict[str, Any] | None
    audit: list[dict[str, Any]]


def gather(store: CatalogStore, shards: Sequence[str], clusters: Folder, manifest: Folder) -> Figures:
    """Read everything that the page shows.

    Args:
        store: the catalog.
        shards: names of the archive's shards.
        clusters: ``clusters/<id>``.
        manifest: ``manifests/<id>``.

    Raises:
        CurationError: the decisions are not those of the catalog's samples.
    """
    header = json.loads(manifest.read("manifest.json"))
    fit = json.loads(clusters.read("fit.json"))
    centroids = _centroids(clusters)
    parts = decision_parts(manifest)
    counting = [_count.remote(manifest, part, store, centroids.num_rows) for part in parts]
    reading = [_readings.remote(store, list(chunk)) for chunk in chunks(shards, SHARDS_A_TASK)]
    counts: Counts = _merged(counting, _merge_counts)
    readings: Readings = _merged(reading, _merge_readings)
    decided = int(counts.clusters.sum())
    if decided != readings.samples:
        raise CurationError(f"{readings.samples} samples in the catalog, but {decided} decisions: select again")

    telling = _telling(counts.clusters[:-1])
    previews = float(header["content"]["config"]["catalog"]["thumbnails"])
    wanted = Wanted(
        clusters=np.array(sorted({number for numbers in telling.values() for number in numbers}), np.int64),
        groups=_groups_to_show(counts.copies, GROUPS, previews),
        point_share=POINTS / max(decided, 1),
        previews=previews,
    )
    picks: Picks = _merged([_pick.remote(manifest, part, wanted) for part in parts], _merge_picks)
    tiles, points, vectors = _fetch_all(store, picks.rows)
    places, explained = _principal(vectors)
    return Figures(
        header=header,
        fit=fit,
        centroids=centroids,
        counts=counts,
        readings=readings,
        telling=telling,
        tiles=tiles,
        groups=_groups(wanted, picks, tiles),
        points=points,
        places=places,
        explained=explained,
        calibration=load_calibration(store.workspace, store.catalog_id),
        audit=load_audit(store.workspace, store.catalog_id),
    )


def _centroids(clusters: Folder) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(clusters.read("centroids.parquet")))
    return file.read(["cluster", "kind", "scene", "scene_share", "distance_mean"])


def _merged(results: list[Any], merge: Callable[..., Any]) -> Any:
    """Merge tasks' results in a tree of tasks, in the given order, so that the driver receives one."""
    task = ray.remote(num_cpus=1)(merge)
    while len(results) > 1:
        results = [task.remote(*some) for some in chunks(results, FAN_IN)]
    return ray.get(results[0])


# first pass: counts


@ray.remote(num_cpus=1)
def _count(manifest: Folder, part: list[str], store: CatalogStore, clusters: int) -> Counts:
    """Count one part's decisions."""
    counts = Counts(np.zeros((clusters + 1, len(REASONS)), np.int64))
    labels = _Labels(store)
    columns = ["shard", "index", "reason", "cluster", "entropy", "threshold", "duplicate_of", "group"]
    for batch in read_part(manifest, part, columns).to_batches(BATCH):
        reason = _reasons(batch["reason"])
        cluster = np.asarray(batch["cluster"].fill_null(clusters)).astype(np.int64)
        counts.clusters += _table(cluster, reason, clusters + 1)
        known = np.asarray(batch["entropy"].is_valid())
        entropy = np.asarray(batch["entropy"].fill_null(0.0), np.float64)
        counts.entropy += _table(entropy_bins(entropy[known]), reason[known], BINS)
        cut = batch["threshold"].filter(pa.array(reason == REASON["entropy"])).drop_null()
        if len(cut):
            counts.threshold = _highest(counts.threshold, pc.max(cut).as_py())
        for label, row in labels.count(batch, reason):
            counts.labels[label] = counts.labels.get(label, 0) + row
        for name, row in _by_value(batch["group"], reason):
            if name is not None:
                counts.groups[name] = counts.groups.get(name, 0) + row
        copies = pc.value_counts(batch["duplicate_of"].filter(pa.array(reason == REASON["duplicate"])).drop_null())
        counts.copies.update(dict(zip(copies.field(0).to_pylist(), copies.field(1).to_pylist(), strict=True)))
    return _bounded(counts)


def _merge_counts(*several: Counts) -> Counts:
    first = several[0]
    total = Counts(
        clusters=np.sum([one.clusters for one in several], axis=0),
        entropy=np.sum([one.entropy for one in several], axis=0),
        labels={label: row.copy() for label, row in first.labels.items()},
        rare=np.sum([one.rare for one in several], axis=0),
    )
    for one in several:
        for name, row in one.groups.items():
            total.groups[name] = total.groups.get(name, 0) + row
        total.threshold = _highest(total.threshold, one.threshold)
        total.copies.update(one.copies)
        if one is not first:
            for label, row in one.labels.items():
                total.labels[label] = total.labels.get(label, 0) + row
    return _bounded(total)


def _bounded(counts: Counts) -> Counts:
    """Keep the largest labels and duplicate groups; equals by name, so that the result does not depend on order."""
    by_size = sorted(counts.labels, key=lambda label: (-int(counts.labels[label].sum()), label or ""))
    for label in by_size[LABELS:]:
        counts.rare = counts.rare + counts.labels.pop(label)
    counts.copies = Counter({name: counts.copies[name] for name in _groups_to_show(counts.copies, 100 * GROUPS, 0)})
    return counts


def _groups_to_show(copies: Counter[str], n: int, previews: float) -> list[str]:
    """Representatives: half of them those with most duplicates, then any, by id, which is a hash.

    Those with a preview come first among their equals.
    """
    by_size = sorted(copies, key=lambda name: (-copies[name], not in_share(name, previews), name))
    rest = sorted(by_size[n // 2 :], key=lambda name: (not in_share(name, previews), name))
    return by_size[: n // 2] + rest[: n - n // 2]


def _highest(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _reasons(column: Any) -> Ints:
    """Reason codes; a word that is not in the vocabulary is a fault of ours."""
    codes = pc.index_in(column, pa.array(REASONS))
    if codes.null_count:
        raise CurationError(f"unknown reason in the decisions: {column.filter(codes.is_null())[0].as_py()}")
    return np.asarray(codes).astype(np.int64)


def _table(rows: Ints, reason: Ints, n: int) -> Ints:
    """Counts (n, reasons) of pairs."""
    width = len(REASONS)
    return np.bincount(rows * width + reason, minlength=n * width).reshape(n, width).astype(np.int64)


def _by_value(column: pa.Array, reason: Ints) -> Iterator[tuple[str | None, Ints]]:
    """Each value of a column of text, null too, with its counts (reasons,)."""
    encoded = column.dictionary_encode()
    names = [*encoded.dictionary.to_pylist(), None]
    codes = np.asarray(encoded.indices.fill_null(len(names) - 1)).astype(np.int64)
    table = _table(codes, reason, len(names))
    yield from ((name, row) for name, row in zip(names, table, strict=True) if row.any())


def entropy_bins(entropy: Floats) -> Ints:
    """The histogram's bin of each entropy in bits."""
    return np.clip((entropy * (BINS / BITS)).astype(np.int64), 0, BINS - 1)


class _Labels:
    """Labels of decisions, joined from the catalog a shard at a time (decisions lie in the order of their shards)."""

    def __init__(self, store: CatalogStore) -> None:
        self.store, self.shard = store, ""
        self.table: pa.Table = None

    def count(self, batch: pa.RecordBatch, reason: Ints) -> Iterator[tuple[str | None, Ints]]:
        """Each label in the batch with its counts (reasons,), a shard at a time."""
        runs = pc.run_end_encode(batch["shard"], pa.int64())
        start = 0
        for shard, stop in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            yield from _by_value(self._labels(shard, np.asarray(batch["index"][start:stop])), reason[start:stop])
            start = stop

    def _labels(self, shard: str, index: Ints) -> pa.Array:
        if shard != self.shard:
            self.shard, self.table = shard, self.store.read(shard, ["index", "label"]).combine_chunks()
        return self.table["label"].take(pa.array(_positions(self.table, index, shard))).combine_chunks()


def _positions(table: pa.Table, index: Ints, shard: str) -> Ints:
    """Where ``index`` stands in a catalog table, which is sorted by it."""
    have = np.asarray(table["index"])
    at = np.searchsorted(have, index)
    if len(index) and (at.max() >= len(have) or (have[at] != index).any()):
        raise CurationError(f"the decisions name samples of {shard} that its catalog file lacks: select again")
    return at.astype(np.int64)


# reading: what the footers and the quarantine say


@ray.remote(num_cpus=1)
def _readings(store: CatalogStore, shards: list[str]) -> Readings:
    found = Readings()
    for shard in shards:
        footer = store.footer(shard)
        if footer is None:
            raise CurationError(f"{shard} has no catalog file: run the catalog job")
        found.read += footer["read"]
        found.samples += footer["kept"]
        if footer["profile"] not in found.profiles:
            found.profiles.append(footer["profile"])
        for row in store.quarantine(shard).to_pylist() if footer["quarantined"] else []:
            kind = row["stage"], row["error"]
            found.quarantined[kind] += 1
            examples = found.examples.setdefault(kind, [])
            if len(examples) < EXAMPLES:
                examples.append(row)
    return found


def _merge_readings(*several: Readings) -> Readings:
    total = Readings(sum(one.read for one in several), sum(one.samples for one in several))
    for one in several:
        total.quarantined.update(one.quarantined)
        total.profiles += [profile for profile in one.profiles if profile not in total.profiles]
        for kind, examples in one.examples.items():
            total.examples[kind] = (total.examples.get(kind, []) + examples)[:EXAMPLES]
    return total


# second pass: the tiles worth showing

ROW = ("sample_id", "shard", "index", "key", "reason", "cluster", "distance", "entropy", "duplicate_of")
FAMILIES = {  # what a slot of each is, and how many tiles it holds
    "nearest": 4,  # cluster
    "farthest": 8,  # four of them, should the nearest be among them
    "kept": 4,
    "dropped": 4,
    "reason": 32,  # code of the reason
    "below": 12,  # the one slot: dropped by the entropy stage, the highest first
    "above": 12,  # passed it, the lowest first
    "step": 1,  # of the ladder over entropy
    "representative": 1,  # group of duplicates
    "copy": 6,
    "point": POINTS,  # the map
}


@dataclass(frozen=True)
class Wanted:
    """What the counts say is worth showing.

    Attributes:
        clusters: numbers of the telling clusters, rising.
        groups: representatives of the groups of duplicates.
        point_share: share of the samples that the map shows.
        previews: share of the samples that have a thumbnail.
    """

    clusters: Ints
    groups: list[str]
    point_share: float
    previews: float


@dataclass(frozen=True)
class Picks:
    """The best rows of each (family, slot), and the sizes of the groups of duplicates; mergeable."""

    rows: pa.Table
    copies: Ints


@ray.remote(num_cpus=1)
def _pick(manifest: Folder, part: list[str], wanted: Wanted) -> Picks:
    """The best rows of one part."""
    best: list[pa.Table] = []
    copies = np.zeros(len(wanted.groups), np.int64)
    for batch in read_part(manifest, part, ROW).to_batches(BATCH):
        rows, found = _candidates(batch, wanted)
        best = [_best(pa.concat_tables([*best, rows]))]
        copies += found
    return Picks(best[0], copies) if best else Picks(_EMPTY, copies)


def _merge_picks(*several: Picks) -> Picks:
    rows = _best(pa.concat_tables([one.rows for one in several]))
    return Picks(rows, np.sum([one.copies for one in several], axis=0))


def _candidates(batch: pa.RecordBatch, wanted: Wanted) -> tuple[pa.Table, Ints]:
    """The best rows of a batch for every (family, slot), and the duplicates counted a group."""
    n = batch.num_rows
    u = np.asarray(hash01(batch["sample_id"], SEED), np.float64)
    reason = _reasons(batch["reason"])
    kept = reason < len(KEPT)
    cluster = _index(np.asarray(batch["cluster"].fill_null(-1)).astype(np.int64), wanted.clusters)
    distance = np.asarray(batch["distance"].fill_null(0.0), np.float64)
    entropy = np.asarray(batch["entropy"].fill_null(np.nan), np.float64)
    groups = pa.array(wanted.groups, pa.string())
    group = np.asarray(pc.index_in(batch["duplicate_of"], groups).fill_null(-1)).astype(np.int64)
    group[reason != REASON["duplicate"]] = -1
    stands = np.asarray(pc.index_in(batch["sample_id"], groups).fill_null(-1)).astype(np.int64)
    cut = reason == REASON["entropy"]
    passing = ("sampled", "nearest", "guided", "place", "duplicate", "hard", "quota")
    passed = np.isin(reason, [REASON[name] for name in passing])
    zeros = np.zeros(n, np.int64)
    slots = {  # family: slot (below 0: none), order
        "nearest": (cluster, distance),
        "farthest": (cluster, -distance),
        "kept": (np.where(kept, cluster, -1), u),
        "dropped": (np.where(kept, -1, cluster), u),
        "reason": (np.where(kept | (reason == REASON["duplicate"]), -1, reason), u),
        "below": (np.where(cut, 0, -1), -entropy),
        "above": (np.where(passed & np.isfinite(entropy), 0, -1), entropy),
        "step": (np.where(np.isfinite(entropy), entropy_bins(np.nan_to_num(entropy)) * STEPS // BINS, -1), u),
        "representative": (stands, u),
        "copy": (group, u),
        "point": (np.where(u < wanted.point_share, zeros, -1), u),
    }
    bare = ~np.fromiter((in_share(name, wanted.previews) for name in batch["sample_id"].to_pylist()), bool, n)
    chosen = []
    for family, (slot, order) in slots.items():
        rows = np.flatnonzero(slot >= 0)
        plain = bare & (family != "point")
        rows = rows[np.lexsort((u[rows], order[rows], plain[rows], slot[rows]))]
        rows = rows[_place_in_run(slot[rows]) < FAMILIES[family]]
        chosen.append(_picked(batch.take(pa.array(rows)), family, slot[rows], plain[rows], order[rows]))
    return pa.concat_tables(chosen), np.bincount(group[group >= 0], minlength=len(wanted.groups)).astype(np.int64)


def _picked(rows: pa.RecordBatch, family: str, slot: Ints, bare: NDArray[np.bool_], order: Floats) -> pa.Table:
    table = pa.Table.from_batches([rows])
    marks = {"family": pa.array([family] * len(slot), pa.string()), "slot": slot, "bare": bare, "order": order}
    for name, values in marks.items():
        table = table.append_column(name, pa.array(values))
    return table


_EMPTY = pa.schema(
    [
        *((name, pa.string()) for name in ("sample_id", "shard")),
        ("index", pa.int64()),
        *((name, pa.string()) for name in ("key", "reason")),
        ("cluster", pa.int32()),
        *((name, pa.float32()) for name in ("distance", "entropy")),
        ("duplicate_of", pa.string()),
        ("family", pa.string()),
        ("slot", pa.int64()),
        ("bare", pa.bool_()),
        ("order", pa.float64()),
    ]
).empty_table()


def _best(rows: pa.Table) -> pa.Table:
    """The first rows of each (family, slot), those with a preview before those without."""
    by = [(name, "ascending") for name in ("family", "slot", "bare", "order", "sample_id")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=by))
    family = rows["family"].combine_chunks().dictionary_encode()
    room = np.array([FAMILIES[name] for name in family.dictionary.to_pylist()], np.int64)
    code = np.asarray(family.indices).astype(np.int64)
    place = _place_in_run(code * (1 << 40) + np.asarray(rows["slot"]))
    return rows.filter(pa.array(place < room[code])) if rows.num_rows else rows


def _place_in_run(values: Ints) -> Ints:
    """0, 1, 2, … within each run of equal values."""
    n = len(values)
    starts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1]))) if n else np.zeros(0, np.int64)
    return np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))


def _index(values: Ints, among: Ints) -> Ints:
    """The values themselves where they are among ``among`` (sorted), -1 elsewhere."""
    return np.where(np.isin(values, among), values, -1)


def _telling(clusters: Ints) -> dict[str, list[int]]:
    """The clusters worth a look: the largest, those cut hardest, those kept most fully; each once.

    Args:
        clusters: (K, reasons).
    """
    size, kept = clusters.sum(axis=1), clusters[:, : len(KEPT)].sum(axis=1)
    share = kept / np.maximum(size, 1)
    number = np.arange(len(size))
    worth = size >= max(8, float(np.median(size[size > 0])) / 2) if (size > 0).any() else size > 0
    taken: set[int] = set()
    telling: dict[str, list[int]] = {}
    orders = {
        "largest": (np.lexsort((number, -size)), size > 0),
        "cut": (np.lexsort((number, -size, share)), worth),
        "spared": (np.lexsort((number, -size, -share)), worth),
    }
    for why, (order, candidates) in orders.items():
        telling[why] = [int(c) for c in order if candidates[c] and int(c) not in taken][:8]
        taken.update(telling[why])
    return telling


# third pass: previews and embeddings of the rows that were picked


def _fetch_all(
    store: CatalogStore, rows: pa.Table
) -> tuple[dict[tuple[str, int], list[Tile]], list[Tile], NDArray[np.float16]]:
    """Tiles by (family, slot), the map's tiles, and their embeddings (n, dim)."""
    on_map = pc.equal(rows["family"], "point")
    shown, mapped = rows.filter(pc.invert(on_map)), rows.filter(on_map)
    pictures = _fetched(store, shown, ["label", "thumbnail", "patch"])
    vectors = _fetched(store, mapped, ["label", "embedding", "footprint", "incidence_angle"])
    tiles: dict[tuple[str, int], list[Tile]] = {}
    for row in shown.to_pylist():
        tiles.setdefault((row["family"], row["slot"]), []).append(_tile(row, pictures[row["sample_id"]]))
    points = mapped.to_pylist()
    embeddings = [vectors[row["sample_id"]]["embedding"] for row in points]
    return tiles, [_tile(row, vectors[row["sample_id"]]) for row in points], np.array(embeddings, np.float16)


def _fetched(store: CatalogStore, rows: pa.Table, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Catalog columns of the given rows, by sample_id; tasks read the shards they lie in."""
    indices: dict[str, set[int]] = {}
    for shard, index in zip(rows["shard"].to_pylist(), rows["index"].to_pylist(), strict=True):
        indices.setdefault(shard, set()).add(index)
    wanted = [(shard, sorted(indices[shard])) for shard in sorted(indices)]
    tasks = [_fetch.remote(store, list(chunk), columns) for chunk in chunks(wanted, SHARDS_A_TASK // 4)]
    return {row["sample_id"]: row for task in tasks for row in ray.get(task).to_pylist()}


@ray.remote(num_cpus=1)
def _fetch(store: CatalogStore, wanted: list[tuple[str, list[int]]], columns: list[str]) -> pa.Table:
    found = []
    for shard, index in wanted:
        table = store.read(shard, ["sample_id", "index", *columns])
        found.append(table.take(pa.array(_positions(table, np.array(index, np.int64), shard))))
    return pa.concat_tables(found)


def _tile(row: dict[str, Any], extra: dict[str, Any]) -> Tile:
    said = {name: row[name] for name in ROW if name != "index"}
    return Tile(
        **said,
        label=extra["label"],
        image=extra.get("thumbnail"),
        patch=extra.get("patch"),
        footprint=extra.get("footprint"),
        incidence_angle=extra.get("incidence_angle"),
    )


def _groups(wanted: Wanted, picks: Picks, tiles: dict[tuple[str, int], list[Tile]]) -> list[Group]:
    groups = []
    for slot in range(len(wanted.groups)):
        representative = next(iter(tiles.get(("representative", slot), [])), None)
        groups.append(Group(representative, int(picks.copies[slot]), tiles.get(("copy", slot), [])))
    return sorted(groups, key=lambda group: -group.size)


def _principal(vectors: NDArray[np.float16]) -> tuple[Floats, float]:
    """The first two principal components (n, 2), and their share of the variance; signs are fixed by the axes."""
    if min(vectors.shape) < 3:
        return np.zeros((len(vectors), 2)), 0.0
    centred = vectors.astype(np.float64)
    centred -= centred.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    two = axes[:, ::-1][:, :2]
    two = two * np.sign(two[np.abs(two).argmax(axis=0), [0, 1]])
    return centred @ two, float(variances[::-1][:2].sum() / max(variances.sum(), 1e-30))
