"""Finds the samples of a publication in another copy of the same data, and makes a manifest over that copy.

The copy may lie elsewhere, be cut into other shards, or be in another format.
Tasks go through its headers, sidecars and key columns (`archive.keys`), or the
catalog files that are there, and hand on only what the publication may mean;
one task, which holds the published samples, settles which is which.
"""

import hashlib
import io
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.archive.keys import read_keys
from curation.archive.listing import Root
from curation.archive.sample import Rejection, Window, sample_id
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.catalog.store import CatalogStore, chunks
from curation.errors import RequestError
from curation.manifests.exchange import submit
from curation.manifests.publication import LICENSE, SAMPLES, SAMPLES_FILE, Publication
from curation.manifests.schema import (
    DECISIONS_SCHEMA,
    FILES_FILE,
    FILES_SCHEMA,
    HEADER_FILE,
    KEPT_ROW_GROUP,
    MANIFEST_SCHEMA,
    ROWS_FILE,
    WRITING,
    File,
    content_id,
    decisions_path,
    json_bytes,
    parquet_bytes,
)
from curation.runtime import versions
from curation.storage import Folder, public_url

log = logging.getLogger("curation")

Ints = NDArray[np.int64]

MISSING_FILE = "missing.parquet"
REASON = "required"  # of the kept: the publication names them
SHARDS = 32  # a task goes through
NONE, SEVERAL, OTHER = -1, -2, -3
WHY = {NONE: "not_found", SEVERAL: "ambiguous", OTHER: "other_source"}

FOUND = pa.schema(  # an image of the copy that may be one of the published
    [
        pa.field("image_id", pa.string()),  # of its shard and key
        pa.field("shard", pa.string()),
        pa.field("index", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("position", pa.list_(pa.int64())),
        pa.field("source_id", pa.string()),
        pa.field("label", pa.string()),
        pa.field("cataloged", pa.bool_()),
    ]
)
MISSING = pa.schema(
    [
        *(MANIFEST_SCHEMA.field(name) for name in ("sample_id", "source_id", "shard", "key", "window", "rank")),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
APPLIED = MANIFEST_SCHEMA.append(LICENSE)
CARRIED = ("source_id", "label", "scene", "cluster", "distance", "entropy", "weight", "radiometry", "window", "license")


@dataclass(frozen=True)
class Copy:
    """What the publication is applied to: roots as listed, and how their shards are read.

    Attributes:
        told: keys of ``archive`` that differ from the published config.
    """

    roots: Sequence[Root]
    settings: ArchiveConfig
    told: dict[str, Any]


def apply(publication: Publication, copy: Copy, workspace: Folder) -> dict[str, Any]:
    """Write the manifest over the copy; Ray runs already.

    Args:
        publication: whole, as `open_publication` gives it.
        copy: listed.
        workspace: it goes to ``manifests/<id>`` below; ``latest.json`` stays as it is.

    Returns:
        ``manifest`` (URL of ``manifest.json``), ``published`` (id), ``samples`` (published ones), ``found``, ``by``
        (what told them), ``missing``, ``reasons`` (of these), ``missing_list`` (URL, None without any), ``differs``
        (found with another size or label), ``unreadable`` (what headers and sidecars of the copy show to be broken).

    Raises:
        RequestError: none of the published samples is there.
        AccessError: a shard could not be read.
    """
    made = publication.content["made"]
    store = CatalogStore(workspace, made["catalog"]) if made.get("catalog") else None
    samples = submit(_samples, publication.folder)
    targets = submit(_targets, samples)
    work = [(root.folder, shard) for root in copy.roots for shard in root.shards]
    found, counted = [], []
    for some in chunks(work, SHARDS):
        rows, counts = submit(_scan, targets, some, copy.settings, store, returns=2)
        found.append(rows)
        counted.append(counts)
    unreadable = seen = 0
    for done, counts in enumerate(counted, 1):
        images, broken = ray.get(counts)
        seen, unreadable = seen + images, unreadable + broken
        if done % 100 == 0 or done == len(counted):
            log.info("apply: %d of %d shards, %d images", min(done * SHARDS, len(work)), len(work), seen)
    header = {"content": _content(publication, copy), "provenance": _provenance(publication, copy)}
    result: dict[str, Any] = ray.get(submit(_settle, samples, found, header, workspace, store))
    result["unreadable"] = unreadable
    _tell(result, copy)
    return result


def _tell(result: dict[str, Any], copy: Copy) -> None:
    """Warn of what is missing, and of what may be other data."""
    if result["missing"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result["reasons"].items())
        log.warning(
            "apply: %d of %d published samples are not in the manifest (%s): %s",
            *(result["missing"], result["samples"], reasons, result["missing_list"]),
        )
    if others := {name: count for name, count in result["differs"].items() if count}:
        log.warning(
            "apply: of %d found samples %s than was published: other data of the same names, or images that were "
            "encoded anew",
            result["found"],
            " and ".join(f"{count} have another {name}" for name, count in others.items()),
        )


def _content(publication: Publication, copy: Copy) -> dict[str, Any]:
    """The header's content, but for what is found: as published, over the copy's roots."""
    made = publication.content["made"]
    config = made["config"]
    return {
        **made,
        "archive": {"roots": [root.name for root in copy.roots], "digest": None},
        "config": {**config, "archive": {**config.get("archive", {}), **copy.told}},
        "applied": {"published": publication.id, "manifest": publication.content["manifest"]},
        "parent": None,
        "warnings": [],
    }


def _provenance(publication: Publication, copy: Copy) -> dict[str, Any]:
    return {
        "roots": {root.name: public_url(root.folder.url) for root in copy.roots},
        "published": publication.folder.public(),
        "catalog": None,
        "versions": {"python": platform.python_version(), **versions(("curation", "numpy", "pyarrow", "ray"))},
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# going through the copy


def _samples(folder: Folder) -> pa.Table:
    """The published samples, with the key and id of each one's image."""
    table = pq.read_table(pa.BufferReader(folder.read(SAMPLES_FILE))).combine_chunks()
    if lacking := [name for name in SAMPLES.names if name not in table.column_names]:
        raise RequestError(f"{folder.public(SAMPLES_FILE)} has no column {lacking[0]}: it is no publication of curate")
    shards, keys, windows = (table[name].to_pylist() for name in ("shard", "key", "window"))
    images = [
        key if window is None else key.removesuffix(Window(**window).suffix)
        for key, window in zip(keys, windows, strict=True)
    ]
    ids = [sample_id(shard, image) for shard, image in zip(shards, images, strict=True)]
    return table.append_column("image", pa.array(images, pa.string())).append_column(
        "image_id", pa.array(ids, pa.string())
    )


def _targets(samples: pa.Table) -> dict[str, pa.Array]:
    """What tells a published image: ids, sources, keys."""
    columns = {"image_id": "image_id", "source_id": "source_id", "image": "key"}
    return {name: pc.unique(samples[column]).drop_null() for column, name in columns.items()}


def _scan(
    targets: dict[str, pa.Array],
    work: Sequence[tuple[Folder, Shard]],
    settings: ArchiveConfig,
    store: CatalogStore | None,
) -> tuple[pa.Table, tuple[int, int]]:
    """Of some shards the images that may be published ones; how many images there are, and broken members."""
    tables, broken = [FOUND.empty_table()], 0
    for folder, shard in work:
        rows = _cataloged(store, shard)
        if rows is None:
            entries = list(read_keys(folder, shard, settings))
            rows = _read(shard, [entry for entry in entries if not isinstance(entry, Rejection)])
            broken += len(entries) - len(rows)
        tables.append(rows)
    images = pa.concat_tables(tables)
    by_id, by_source, by_key = (pc.is_in(images[name], value_set=values) for name, values in targets.items())
    return images.filter(pc.or_(by_id, pc.or_(by_source, by_key))).combine_chunks(), (len(images), broken)


def _read(shard: Shard, entries: Sequence[Any]) -> pa.Table:
    rows = [
        {**asdict(entry), "image_id": sample_id(shard.name, entry.key), "shard": shard.name, "cataloged": False}
        for entry in entries
    ]
    return pa.Table.from_pylist(rows, FOUND)


def _cataloged(store: CatalogStore | None, shard: Shard) -> pa.Table | None:
    """The images of a shard by its catalog file, where that was made of the shard as it is now."""
    footer = store.footer(shard.name) if store else None
    if store is None or footer is None or footer["fingerprint"] != shard.fingerprint:
        return None
    names = ["index", "key", "offset", "size", "position", "source_id", "label"]
    table = store.read(shard.name, [*names, "window"])
    first: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        window = row.pop("window")
        row["key"] = row["key"] if window is None else row["key"].removesuffix(Window(**window).suffix)
        first.setdefault(row["key"], row)
    rows = [
        {**row, "image_id": sample_id(shard.name, key), "shard": shard.name, "cataloged": True}
        for key, row in first.items()
    ]
    return pa.Table.from_pylist(rows, FOUND)


# which is which


def match(samples: pa.Table, found: pa.Table) -> tuple[Ints, dict[str, Ints]]:
    """The place in ``found`` of each sample's image.

    In this order: the same shard and key; the same source and key; the same
    source; the same key; each of the last three only where just one image has
    it on either side. Images that name different sources are never the same.

    Args:
        samples: with ``image_id``, ``image`` and ``source_id``.
        found: rows of `FOUND`, in any order.

    Returns:
        int64 (samples,), below 0 where there is none: `NONE`, `SEVERAL` or `OTHER`; and the samples that were told by
        ``sample_id``, ``source_id`` and ``key``.
    """
    codes = samples["image_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    own = samples.select(["image_id", "image", "source_id"]).take(pa.array(first)).combine_chunks()
    found = found.combine_chunks()
    place = np.full(len(own), NONE)
    by: dict[str, Ints] = {"sample_id": np.empty(0, np.int64)}
    taken = np.zeros(len(found) - OTHER, bool)  # the codes below 0 are places at its end, never taken
    for name, columns in (
        ("sample_id", [("image_id", "image_id")]),
        ("source_id", [("source_id", "source_id"), ("image", "key")]),
        ("source_id", [("source_id", "source_id")]),
        ("key", [("image", "key")]),
    ):
        mine, other = zip(*columns, strict=True)
        there = _pair(_joined(own, mine), _joined(found, other))
        there[(there >= 0) & ~_may_be(own["source_id"], found["source_id"], there)] = OTHER
        there[(there >= 0) & taken[there]] = NONE
        new = (place < 0) & (there >= 0)
        place = np.where(new, there, np.where((place < 0) & (there < 0), np.minimum(place, there), place))
        taken[there[new]] = True
        by[name] = np.append(by.get(name, np.empty(0, np.int64)), np.flatnonzero(new))
    of_image = np.searchsorted(codes[first], codes)
    return place[of_image], {name: np.flatnonzero(np.isin(of_image, images)) for name, images in by.items()}


def _joined(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """One text a row, null where a column is."""
    return pc.binary_join_element_wise(*(table[name] for name in columns), "\0")


def _pair(own: Any, theirs: Any) -> Ints:
    """Where in ``theirs`` the one value that equals each of ``own`` is; `NONE` or `SEVERAL` (on either side)."""
    own, theirs = _flat(own), _flat(theirs)
    values = pc.unique(own).drop_null()
    mine, other = (pc.index_in(column, value_set=values).fill_null(-1).to_numpy() for column in (own, theirs))
    where: Ints = np.full(len(values) + 1, NONE)  # the last: of no value
    where[other[other >= 0]] = np.flatnonzero(other >= 0)
    counts = np.bincount(other[other >= 0], minlength=len(values)), np.bincount(mine[mine >= 0], minlength=len(values))
    where[:-1][(counts[0] > 1) | ((counts[0] > 0) & (counts[1] > 1))] = SEVERAL
    found: Ints = where[mine]
    return found


def _flat(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _may_be(own: Any, theirs: Any, place: Ints) -> NDArray[np.bool_]:
    """Whether two images do not name different sources."""
    other = _flat(theirs).take(pa.array(place, mask=place < 0))
    differ = pc.not_equal(_flat(own), other).fill_null(False)
    return ~np.asarray(differ, bool)


# the manifest


def _settle(
    samples: pa.Table, scanned: Sequence[Any], header: dict[str, Any], workspace: Folder, store: CatalogStore | None
) -> dict[str, Any]:
    """Match, write, and count.

    Raises:
        RequestError: nothing was found.
    """
    found = pa.concat_tables(ray.get(list(scanned))).combine_chunks()
    place, by = match(samples, found)
    rows, cataloged = _rows(samples, found, place, store)
    place[np.setdiff1d(np.flatnonzero(place >= 0), rows["sample"].to_numpy())] = NONE  # the catalog dropped that tile
    missing = _missing(samples, place)
    reasons = {pair["values"]: pair["counts"] for pair in missing["reason"].value_counts().to_pylist()}
    if not len(rows):
        raise RequestError(
            f"none of the {len(samples)} published samples is there ({_listed(reasons)}): give archive.url a copy of "
            "the data that the publication is of, and archive.* keys where they are stored otherwise"
        )
    counts = {
        "samples": len(samples),
        "found": len(rows),
        "by": {name: int(np.isin(told, rows["sample"].to_numpy()).sum()) for name, told in by.items()},
        "missing": dict(sorted(reasons.items())),
    }
    differs = _differs(samples, found, place)
    content = header["content"]
    content["catalog"] = content.get("catalog") if cataloged else None
    content["applied"] |= counts
    url = _publish(workspace, header, rows.select(APPLIED.names), missing)
    return {
        "manifest": url,
        "published": content["applied"]["published"],
        "samples": len(samples),
        "found": len(rows),
        "by": counts["by"],
        "missing": len(missing),
        "reasons": counts["missing"],
        "missing_list": f"{url.removesuffix(HEADER_FILE)}{MISSING_FILE}" if len(missing) else None,
        "differs": differs,
    }


def _listed(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def _rows(samples: pa.Table, found: pa.Table, place: Ints, store: CatalogStore | None) -> tuple[pa.Table, bool]:
    """The manifest's rows, each with its ``sample``; whether all their shards have current catalog files."""
    there = np.flatnonzero(place >= 0)
    own, image = samples.take(pa.array(there)), found.take(pa.array(place[there]))
    windows = own["window"].to_pylist()
    keys = [
        key if window is None else key + Window(**window).suffix
        for key, window in zip(image["key"].to_pylist(), windows, strict=True)
    ]
    ids = [sample_id(shard, key) for shard, key in zip(image["shard"].to_pylist(), keys, strict=True)]
    columns = {name: own[name] for name in (*CARRIED, "rank")}
    columns |= {name: image[name] for name in ("shard", "index", "offset", "size", "position", "cataloged")}
    columns |= {"key": pa.array(keys, pa.string()), "sample_id": pa.array(ids, pa.string()), "sample": pa.array(there)}
    for side in ("row", "column"):
        columns[side] = pa.array([0 if window is None else window[side] for window in windows], pa.int64())
    order = [(name, "ascending") for name in ("shard", "index", "row", "column")]
    table = pa.table(columns).sort_by(order).combine_chunks()
    table = _numbered(table, store)
    ranks = np.argsort(np.argsort(table["rank"].to_numpy()))
    table = table.set_column(table.schema.get_field_index("rank"), MANIFEST_SCHEMA.field("rank"), pa.array(ranks))
    return table, bool(pc.all(table["cataloged"], min_count=0).as_py())


def _numbered(table: pa.Table, store: CatalogStore | None) -> pa.Table:
    """With ``index`` as a catalog has it, tiles counted; without one tiles are counted as they are found."""
    parts = [table.slice(0, 0)]
    for shard in pc.unique(table["shard"]).to_pylist():
        part = table.filter(pc.equal(table["shard"], shard))
        if part["window"].null_count < len(part):
            index = pa.array(np.arange(len(part)))
            if part["cataloged"][0].as_py() and store is not None:
                known = store.read(shard, ["sample_id", "index"])
                at = pc.index_in(part["sample_id"], value_set=known["sample_id"].combine_chunks())
                index = _flat(known["index"]).take(_flat(at))
            part = part.set_column(part.schema.get_field_index("index"), "index", index)
            part = part.filter(pc.is_valid(part["index"])).sort_by("index")
        parts.append(part)
    return pa.concat_tables(parts).combine_chunks()


def _missing(samples: pa.Table, place: Ints) -> pa.Table:
    """What was not found, by rank."""
    lost = np.flatnonzero(place < 0)
    table = samples.select(MISSING.names[:-1]).take(pa.array(lost))
    why = pa.array([WHY[int(code)] for code in place[lost]], pa.string())
    return table.append_column(MISSING.field("reason"), why).cast(MISSING).sort_by("rank").combine_chunks()


def _differs(samples: pa.Table, found: pa.Table, place: Ints) -> dict[str, int]:
    """How many found samples have another size or label than was published, where both are known."""
    there = np.flatnonzero(place >= 0)
    own, image = samples.take(pa.array(there)), found.take(pa.array(place[there]))
    return {name: int(pc.sum(pc.not_equal(own[name], image[name])).as_py() or 0) for name in ("size", "label")}


def _publish(workspace: Folder, header: dict[str, Any], rows: pa.Table, missing: pa.Table) -> str:
    """Write everything, the header last; the URL of that."""
    decided = {name: rows[name] for name in DECISIONS_SCHEMA.names if name in rows.column_names}
    decided |= {"decision": pa.array(["kept"] * len(rows)), "reason": pa.array([REASON] * len(rows))}
    empty = {name: pa.nulls(len(rows), DECISIONS_SCHEMA.field(name).type) for name in DECISIONS_SCHEMA.names}
    decisions = pa.table([{**empty, **decided}[name] for name in DECISIONS_SCHEMA.names], schema=DECISIONS_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(rows.cast(APPLIED), sink, row_group_size=KEPT_ROW_GROUP, **WRITING)
    data = {ROWS_FILE: sink.getvalue(), decisions_path(0): parquet_bytes(decisions)}
    files = [File.of(path, own, len(rows)) for path, own in data.items()]
    listing = parquet_bytes(pa.Table.from_pylist([asdict(file) for file in files], schema=FILES_SCHEMA))
    kept = {"samples": len(rows), "kept": len(rows), "dropped": 0, "reasons": {REASON: len(rows)}}
    content = {**header["content"], "counts": kept, "files": hashlib.sha256(listing).hexdigest()}
    folder = workspace.child(f"manifests/{content_id(content)}")
    for path, own in {**data, FILES_FILE: listing, MISSING_FILE: parquet_bytes(missing)}.items():
        folder.publish(path, own)
    folder.publish(HEADER_FILE, json_bytes({**header, "content": content}))
    return folder.public(HEADER_FILE)
