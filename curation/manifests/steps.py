"""What the tasks of a selection do with the rows of a part before they are ordered (`opening`, `drops`).

Columns of a row on its way: ``upper``, ``lower`` (its id), ``cluster``,
``distance``, ``reason`` (a code); where they are asked for ``entropy``,
``split`` (see `selection.blocks`), ``group`` and ``label`` (codes), ``unclear``
(the reason that the validity and cloud stage has), ``value`` (of `select.score`,
float32) and its ``rank_of_all`` and ``rank_of_class``; ``of_upper``, ``of_lower``
once something stands for others; of its unit, if there are units:
``unit_upper``, ``unit_lower``, ``stratum``, ``size`` and the means
``unit_weight``, ``unit_distance``, ``unit_entropy``; of its place: ``score``,
``threshold``, ``rank``, and of an order on embeddings ``value`` and ``priority``;
where a bank guides, those of `guided`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.archive.tables import Table, lookup
from curation.catalog.schema import catalog_schema
from curation.catalog.store import CatalogStore
from curation.errors import CurationError, RequestError
from curation.manifests.exchange import Columns, merge
from curation.manifests.schema import REASONS
from curation.selection import counting, units
from curation.selection.blocks import EDGE, Blocks, boxes, split_codes
from curation.selection.groups import group_texts
from curation.selection.importance import HARD_IS_HIGH
from curation.selection.lists import SampleList
from curation.selection.sampling import split_ids
from curation.selection.settings import SelectConfig
from curation.selection.strategies import STRATEGIES, Strategy
from curation.selection.tree import Tree
from curation.storage import Folder

CODE = {reason: np.uint8(code) for code, reason in enumerate(REASONS)}
OPEN = np.uint8(len(REASONS))  # no rule has decided yet

CATALOG = (
    *("index", "key", "offset", "size", "position", "window", "source_id", "label"),
    *("valid_fraction", "cloud_fraction", "entropy", "radiometry"),
)
"""What a manifest takes from the catalog; decisions have it too, so that a later run need not open catalog files."""


SPLITS = 64  # shard names that a part tells of itself, at most
GROUPS = 1 << 16  # at most: the driver knows their names


@dataclass(frozen=True)
class Strata:
    """What rows are ordered in.

    Attributes:
        partition: (strata,) where each is ordered.
        pieces: (clusters or classes,) into how many strata each is split by a hash; None: each is one.
        low, high: of the hardness by score that is cut into bins.
        bin: (bins,) the number of each bin as a stratum: the fullest first.
    """

    partition: NDArray[np.int16]
    pieces: NDArray[np.int64] | None = None
    low: float = 0.0
    high: float = 0.0
    bin: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))


@dataclass(frozen=True)
class Guide:
    """How the classes of a bank guide a selection; see `selection.guided`.

    Attributes:
        classes: their names.
        calmest: bits of entropy below which a row is never guided.
        rows: that may be guided, the required ones apart.
        required: rows that are required, whether they may be guided or not.
        sampled: share of the rows that the next two are measured on.
        share: of the selection that goes by the bank.
        class_shares: (C,) of the archive.
        pieces: that the rows are split into by a hash, and
        partitions: that these are ordered in.
    """

    classes: tuple[str, ...]
    calmest: float
    rows: int = 0
    required: int = 0
    sampled: float = 1.0
    share: float = 0.0
    class_shares: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    pieces: int = 1
    partitions: int = 1


@dataclass(frozen=True)
class Plan:
    """What every task must know; the driver fills in what it learns on the way.

    Attributes:
        excluded: (K,) clusters that nothing is kept of.
        mean: (K,) of the distances, and
        std: their standard deviation: the frozen normalisers.
        scene: (K,) names or null.
        partition: (K,) of clusters.
        lists: ``exclude`` and ``require``, where there are such.
        columns: of the catalog, that the steps before the last need.
        joined: columns of tables, that they need too.
        splits: names, in the order of their codes.
        scores: ``scores/<id>``, where the strategy goes by a score.
        label: the column of the classes.
        names: of ``group`` and ``label``, in the order of their codes; the empty label is for samples without.
        strata: what rows are ordered in, where the strategy has strata.
        weights: (strata,) by which their seats go out.
        tree: by which clusters' seats go out where levels decide.
        quotas: (strata,) None where units are cut overall, or one order decides.
        guide: what the bank's classes say, where they guide.
        budget: samples.
        running: samples that reach the draw.
        bin_partition: (65536,) of the scores' bins, below 0 beyond the budget.
        before: (partitions,) rows in the partitions before each.
        least_entropy: of what was kept for its entropy.
        hardest: score of what was kept though `select.ccs.beta` of the hardest fell.
        threshold: the first refused priority where one order decides; NaN where nothing was refused.
        grown: whether the order of all goes by `grown`.
    """

    store: CatalogStore
    clusters: Folder
    settings: SelectConfig
    seed: int
    excluded: NDArray[np.bool_]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    scene: pa.Array
    partition: NDArray[np.int16]
    lists: dict[str, SampleList]
    columns: tuple[str, ...]
    joined: dict[Table, tuple[str, ...]]
    splits: tuple[str, ...]
    scores: Folder | None = None
    label: str = "label"
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    strata: Strata = field(default_factory=lambda: Strata(np.zeros(0, np.int16)))
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    tree: Tree | None = None
    quotas: NDArray[np.int64] | None = None
    guide: Guide | None = None
    budget: int = 0
    running: int = 0
    bin_partition: NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))
    before: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    least_entropy: float = np.nan
    hardest: float = np.nan
    threshold: float = np.nan
    grown: bool = False

    @property
    def strategy(self) -> Strategy:
        """As named in the settings."""
        return STRATEGIES[self.settings.strategy]

    @property
    def hardness(self) -> int:
        """1 if a high `select.score` means a hard sample, else -1."""
        return 1 if self.settings.score in HARD_IS_HIGH else -1


class Shards(NamedTuple):
    """The shards of a part, in the order of its rows, and how many rows each has."""

    names: list[str]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Survey:
    """What the driver learns of a part when it is read.

    Attributes:
        rows: samples.
        without_entropy: of these, where entropy is asked for.
        unscored: rows without the label or score that the strategy needs.
        matched: rows that each list names.
        both: rows that both lists name.
        clouded: rows whose cloudy share is known, where it is asked for.
        states: of radiometry, likewise.
        footprints: rows that have one, where there are splits.
        splits: rows of each split, then of training.
        shards: some shard names and how many rows each stands for, up to the next.
    """

    rows: int
    without_entropy: int
    matched: dict[str, int]
    both: int
    shards: list[tuple[str, int]] = field(default_factory=list)
    unscored: int = 0
    clouded: int = 0
    states: frozenset[str] = frozenset()
    footprints: int = 0
    splits: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def load(plan: Plan, path: str) -> tuple[Columns, Shards, Survey, dict[str, list[str]]]:
    """Read a part of the assignments, and from the catalog, the tables and the scores what the rules ask for.

    Returns:
        the part's rows; its shards; what the driver learns; the names of its ``group``s and ``label``s, in the order
        of their codes here.
    """
    columns = ["sample_id", "shard", "cluster", "distance"]
    table = pq.read_table(pa.BufferReader(plan.clusters.read(path)), columns=columns, read_dictionary=["shard"])
    shards = runs(table["shard"])
    rows = start(plan, table)
    del table
    if plan.scores is not None:
        rows |= _scores(plan, path, len(rows["upper"]))
    catalog = with_tables(plan, read_catalog(plan.store, shards, plan.columns)) if plan.columns else None
    names, survey = judge(plan, rows, catalog)
    return rows, shards, dataclasses.replace(survey, shards=some_shards(shards)), names


def start(plan: Plan, table: pa.Table) -> Columns:
    """Rows by ``sample_id``, ``cluster`` and ``distance``, as long as no rule but that of the clusters has spoken."""
    upper, lower = split_ids(table["sample_id"])
    rows = {"upper": upper, "lower": lower, **{name: table[name].to_numpy() for name in ("cluster", "distance")}}
    rows["reason"] = np.where(plan.excluded[rows["cluster"]], CODE["cluster_excluded"], OPEN)
    return rows


def judge(
    plan: Plan, rows: Columns, catalog: pa.Table | None, carried: pa.Table | None = None
) -> tuple[dict[str, list[str]], Survey]:
    """Add to rows what the rules for single rows say of them.

    Args:
        plan: of the selection.
        rows: as `start` has them, and what the scores say.
        catalog: their catalog columns, where any are asked for.
        carried: a parent's decisions over them, whose groups and splits stay.

    Returns:
        the names of ``group``s and ``label``s, in the order of their codes here; what the driver learns.
    """
    number = len(rows["upper"])
    named = {name: np.zeros(number, bool) for name in ("require", "exclude")}
    told: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    lacking = np.isnan(rows["value"]) if "value" in rows else np.zeros(number, bool)
    if catalog is not None:
        if "entropy" in plan.columns:
            rows["entropy"] = catalog["entropy"].to_numpy()
        if plan.settings.unit:
            rows["unit_upper"], rows["unit_lower"] = units.unit_ids(
                catalog[plan.settings.unit], rows["upper"], rows["lower"]
            )
        named |= {name: listed.match(catalog) for name, listed in plan.lists.items()}
        rows["reason"][named["require"]] = CODE["required"]
        rows["reason"][named["exclude"]] = CODE["excluded"]
        if plan.settings.by:
            texts = _group_texts(plan, catalog) if carried is None else carried["group"]
            rows["group"], names["group"] = _codes(plan.settings, "group", texts)
        if plan.strategy.labelled:
            lacking |= catalog[plan.label].is_null().to_numpy()
            texts = pc.fill_null(catalog[plan.label].cast(pa.string()), "")
            rows["label"], names["label"] = _codes(plan.settings, "label", texts)
        told = _judge_place_and_sky(plan, catalog, rows, carried)
    rows["reason"][lacking & (rows["reason"] == OPEN)] = CODE["unscored"]
    return names, Survey(
        rows=number,
        without_entropy=int(np.isnan(rows["entropy"]).sum()) if "entropy" in rows else 0,
        matched={name: int(named[name].sum()) for name in plan.lists},
        both=int((named["require"] & named["exclude"]).sum()),
        unscored=int(lacking.sum()),
        **told,
    )


def _scores(plan: Plan, path: str, rows: int) -> Columns:
    """The score of each row of a part, and where the strategy draws by them its ranks; NaN where there is none.

    Raises:
        CurationError: they are of other rows.
    """
    assert plan.scores is not None
    columns = {"value": plan.settings.score}
    if plan.strategy.order == "importance":
        columns |= {"rank_of_all": f"{plan.settings.score}_rank", "rank_of_class": f"{plan.settings.score}_class_rank"}
    name = path.rpartition("/")[2]
    table = pq.read_table(pa.BufferReader(plan.scores.read(name)), columns=list(columns.values()))
    if table.num_rows != rows:
        raise CurationError(f"{name}: {table.num_rows} rows in the scores, {rows} in the clusters: they are of others")
    return {name: table[column].to_numpy().astype(np.float32) for name, column in columns.items()}


def _codes(settings: SelectConfig, column: str, texts: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """Texts, none null, as codes, and what the codes stand for.

    Raises:
        RequestError: there are too many.
    """
    encoded = texts.combine_chunks().dictionary_encode()
    check_names(settings, column, len(encoded.dictionary))
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def _group_texts(plan: Plan, catalog: pa.Table) -> pa.ChunkedArray:
    """The group of every row."""
    texts = group_texts(plan.settings.by, catalog, plan.settings.region_km)
    return pa.chunked_array([texts.cast(pa.string())])


def with_tables(plan: Plan, catalog: pa.Table) -> pa.Table:
    """The rows with what the tables say of them."""
    for table, columns in plan.joined.items():
        found = lookup(table, columns, catalog[table.on])
        for name in columns:
            catalog = catalog.append_column(name, found[name])
    return catalog


def check_names(settings: SelectConfig, column: str, number: int) -> None:
    """Refuse more groups or labels than the driver can know by name.

    Raises:
        RequestError: they are.
    """
    if number > GROUPS and column == "group":
        keys = ", ".join(settings.by)
        raise RequestError(f"select.by=[{keys}] makes more than {GROUPS} groups: take fewer or coarser keys")
    if number > GROUPS:
        raise RequestError(f"select.strategy={settings.strategy} balances classes, but there are more than {GROUPS}")


def code_names(plan: Plan, column: str, names: dict[str, list[str]], *layers: Columns) -> Columns:
    """The groups or labels of a part by the codes that hold for all parts."""
    codes = {name: code for code, name in enumerate(plan.names[column])}
    return {column: np.array([codes[name] for name in names[column]], np.int32)[merge(layers)[column]]}


def _judge_place_and_sky(plan: Plan, catalog: pa.Table, rows: Columns, carried: pa.Table | None) -> dict[str, Any]:
    """Give the rows their split, and the reason that the validity and cloud stage would have; tell what was seen."""
    told: dict[str, Any] = {}
    settings = plan.settings
    if plan.splits:
        if carried is not None:
            said = pc.index_in(carried["split"].cast(pa.string()), pa.array(plan.splits)).fill_null(len(plan.splits))
            edge = np.asarray(pc.equal(carried["reason"], "split_edge"))
            rows["split"] = np.where(edge, EDGE, said.to_numpy()).astype(np.uint8)
            told["footprints"] = len(edge)
        elif settings.split_by:
            said = catalog[settings.split_by].cast(pa.string())
            rows["split"] = pc.index_in(said, pa.array(plan.splits)).fill_null(len(plan.splits)).to_numpy()
            rows["split"] = rows["split"].astype(np.uint8)
        else:
            where = boxes(catalog["footprint"])
            shares = [(settings.splits or {})[name] for name in plan.splits]
            rows["split"] = split_codes(where, Blocks(settings.block_km), shares)
            told["footprints"] = int(where.known.sum())
        rows["reason"] = reason_of_split(plan, rows["split"], rows["reason"])
        told["splits"] = np.bincount(rows["split"], minlength=EDGE + 1)[: len(plan.splits) + 1]
    if settings.min_valid is not None or settings.max_cloud is not None:
        rows["unclear"] = np.full(len(rows["reason"]), OPEN)
    if settings.max_cloud is not None:
        cloud = catalog["cloud_fraction"].to_numpy()
        rows["unclear"][cloud > np.float32(settings.max_cloud)] = CODE["cloud"]
        told["clouded"] = int((~np.isnan(cloud)).sum())
        if "radiometry" in catalog.column_names:
            told["states"] = frozenset(catalog["radiometry"].drop_null().unique().to_pylist())
    if settings.min_valid is not None:
        valid = catalog["valid_fraction"].to_numpy()
        rows["unclear"][valid < np.float32(settings.min_valid)] = CODE["invalid"]
    return told


def reason_of_split(plan: Plan, split: NDArray[np.uint8], reason: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What lies in a split, or across several, falls before all other rules."""
    reason = np.where(split < len(plan.splits), CODE["split"], reason)
    return np.where(split == EDGE, CODE["split_edge"], reason)


def read_catalog(store: CatalogStore, shards: Shards, columns: tuple[str, ...]) -> pa.Table:
    """Columns of a part's shards, row by row as in the assignments.

    Raises:
        CurationError: the catalog has another number of rows.
    """
    tables = [catalog_schema(1).empty_table().select(columns)]
    for name, rows in zip(shards.names, shards.rows, strict=True):
        tables.append(store.read(name, columns))
        if tables[-1].num_rows != rows:
            raise CurationError(
                f"{name}: {tables[-1].num_rows} rows in the catalog, {rows} in the clusters' assignments: cluster again"
            )
    return pa.concat_tables(tables, promote_options="permissive")  # columns may or may not be marked nullable


def runs(column: pa.ChunkedArray) -> Shards:
    """The shards of a sorted dictionary column.

    Raises:
        CurationError: it is not sorted.
    """
    column = column.unify_dictionaries()
    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    codes = np.asarray(column.indices)
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    names = column.dictionary.take(pa.array(codes[first])).to_pylist()
    if names != sorted(set(names)):
        raise CurationError("the clusters' assignments are not sorted by shard: cluster again")
    return Shards(names, np.diff(np.append(first, len(codes))))


def some_shards(shards: Shards) -> list[tuple[str, int]]:
    """Every so many-th shard with the rows up to the next."""
    if not shards.names:
        return []
    first = np.unique(np.linspace(0, len(shards.names), SPLITS, endpoint=False).astype(int))
    return [(shards.names[i], int(rows)) for i, rows in zip(first, np.add.reduceat(shards.rows, first), strict=True)]


def running(rows: Columns) -> NDArray[np.bool_]:
    """Rows that may still be kept."""
    return np.isin(rows["reason"], (OPEN, CODE["required"]))


# validity and clouds


def drop_unclear(*layers: Columns) -> Columns:
    """Reasons after the validity and cloud stage, which required rows pass."""
    rows = merge(layers)
    return {"reason": np.where(rows["reason"] == OPEN, rows["unclear"], rows["reason"])}


# cuts at one exact threshold


def _keys(column: str, sign: int, rows: Columns) -> counting.Digits:
    """Keys by a float32 column times ``sign``, ties by the id's hash, of the rows that reach the cut."""
    there = running(rows)
    return counting.digits(counting.sortable(sign * rows[column][there]), rows["upper"][there])


def count_keys(column: str, sign: int, prefix: tuple[int, ...], *layers: Columns) -> NDArray[np.int64]:
    """One part's histogram for `counting.threshold`."""
    return counting.histogram(_keys(column, sign, merge(layers)), prefix)


def cut(column: str, sign: int, prefix: tuple[int, ...], reason: str, *layers: Columns) -> tuple[Columns, float]:
    """Reasons after the cut, which required rows pass, and the last value that passed it, times ``sign``."""
    rows = merge(layers)
    passed = np.zeros(len(rows["reason"]), bool)
    passed[running(rows)] = counting.up_to(_keys(column, sign, rows), prefix)
    reasons = rows["reason"].copy()
    reasons[(reasons == OPEN) & ~passed] = CODE[reason]
    return {"reason": reasons}, float((sign * rows[column][passed]).max(initial=-np.inf))


def cut_below(least: float, *layers: Columns) -> Columns:
    """Reasons after a cut of fresh rows at a frozen entropy, which required rows pass."""
    rows = merge(layers)
    calm = rows["fresh"] & (rows["reason"] == OPEN) & (rows["entropy"] < np.float32(least))
    return {"reason": np.where(calm, CODE["entropy"], rows["reason"])}


def count_clusters(number: int, *layers: Columns) -> NDArray[np.int64]:
    """Rows of each cluster, whether they are still in the running or not."""
    return np.bincount(merge(layers)["cluster"], minlength=number)


def count_compared(number: int, *layers: Columns) -> NDArray[np.int64]:
    """Rows of each cluster that near-duplicates are looked for among."""
    rows = merge(layers)
    there = running(rows) & rows["alike"]
    return np.bincount(rows["cluster"][there], minlength=number)
