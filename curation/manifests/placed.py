"""Class, region and month of samples that came or went: from the manifest that keeps them, and its catalog."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.catalog.schema import FOOTPRINT
from curation.catalog.store import CatalogStore
from curation.errors import AccessError
from curation.manifests.changes import CHANGES, GONE, QUARANTINED
from curation.manifests.reading import ManifestReader, open_catalog
from curation.selection.groups import UNKNOWN, group_texts
from curation.storage import IN_FLIGHT

SHARDS = 256  # whose catalog files are read together, some at once
REGION_KM = 1000.0  # side of a region's cell where the manifest's config says none
CATALOG = pa.schema([("sample_id", pa.string()), ("time", pa.timestamp("us", tz="UTC")), ("footprint", FOOTPRINT)])


class Side:
    """A manifest, and the catalog that it was drawn from."""

    def __init__(self, manifest: ManifestReader, storage: dict[str, Any] | None) -> None:
        self.manifest, self.store = manifest, open_catalog(manifest, storage)
        index = manifest.shards()
        names, first, stop = index.names.to_pylist(), index.first.tolist(), index.stop.tolist()
        self.rows = dict(zip(names, zip(first, stop, strict=True), strict=True))
        config = manifest.header["content"].get("config", {})
        self.region_km = float(config.get("select", {}).get("region_km", REGION_KM))

    @property
    def catalog(self) -> tuple[str, ...]:
        """Where its catalog lies."""
        return tuple(folder.url for folder, _ in self.store.folders)

    def classes(self, shard: str, ids: pa.Array) -> pa.ChunkedArray:
        """The label, else the scene, of kept samples of a shard."""
        kept = self.manifest.rows(*self.rows[shard])
        at = pc.index_in(ids, value_set=kept["sample_id"].combine_chunks())
        return pc.coalesce(kept["label"], kept["scene"]).take(at)


def place(held: pa.Table, before: Side, after: Side) -> Iterator[pa.Table]:
    """Rows of `CHANGES` that came or went, by shard and some shards at a time, with what is known of each place.

    Raises:
        AccessError: a catalog file is there but could not be read.
    """
    held = held.sort_by([("shard", "ascending"), ("index", "ascending"), ("change", "ascending")]).combine_chunks()
    runs = _runs(held["shard"])
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        while some := list(islice(runs, SHARDS)):
            wanted = [
                (shard, side, rows)
                for shard, start, stop in some
                for change, side in (("went", before), ("came", after))
                if len(rows := _of(held.slice(start, stop - start), change))
            ]
            stores = {(side.catalog, shard): side.store for shard, side, _ in wanted}
            read = pool.map(lambda item: _read(item[1], item[0][1]), stores.items())
            catalog = dict(zip(stores, read, strict=True))
            yield _named([_place(*item, catalog[item[1].catalog, item[0]], after) for item in wanted], after.region_km)


def _of(rows: pa.Table, change: str) -> pa.Table:
    return rows.filter(pc.equal(rows["change"], change))


def _read(store: CatalogStore, shard: str) -> pa.Table:
    """What the catalog has of a shard; no rows where its file is gone, as that of a vanished shard may be."""
    try:
        return store.read(shard, CATALOG.names)
    except AccessError:
        if store.footer(shard) is not None:
            raise
        return CATALOG.empty_table()


def _place(shard: str, side: Side, rows: pa.Table, catalog: pa.Table, after: Side) -> pa.Table:
    """Rows of `CHANGES` of one shard, with their class, and the columns ``time`` and ``footprint``."""
    ids = rows["sample_id"].combine_chunks()
    rows = _set(rows, "class", side.classes(shard, ids))
    gone = pc.equal(rows["why"], GONE[False])
    if pc.any(gone).as_py():
        lost = after.store.quarantine(shard)["key"].combine_chunks()
        now = pc.and_(gone, pc.is_in(rows["key"], value_set=lost))
        rows = _set(rows, "why", pc.if_else(now, QUARANTINED, rows["why"]))
    at = pc.index_in(ids, value_set=catalog["sample_id"].combine_chunks())
    for name in CATALOG.names[1:]:
        rows = rows.append_column(name, catalog[name].combine_chunks().take(at))
    return rows


def _named(tables: list[pa.Table], region_km: float) -> pa.Table:
    """Rows of `CHANGES`, with texts for what is known of the place and time; `UNKNOWN` for what is not."""
    rows = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    named = {
        "class": pc.fill_null(rows["class"], UNKNOWN),
        "region": group_texts(["region"], rows, region_km).cast(pa.string()),
        "month": pc.fill_null(pc.strftime(rows["time"].cast(pa.timestamp("us")), format="%Y-%m"), UNKNOWN),
    }
    for name, values in named.items():
        rows = _set(rows, name, values)
    return rows.select(CHANGES.names).cast(CHANGES)


def _runs(shards: pa.ChunkedArray) -> Iterator[tuple[str, int, int]]:
    """Each shard of a sorted column, and its rows."""
    start = 0
    if len(shards):
        encoded = pc.run_end_encode(shards.combine_chunks())
        for shard, stop in zip(encoded.values.to_pylist(), encoded.run_ends.to_pylist(), strict=True):
            yield shard, start, stop
            start = stop


def _set(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)
