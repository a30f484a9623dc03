"""Says of one sample what was decided, by which rule and figures, and which kept sample stands for it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.archive.sample import sample_id
from curation.catalog.schema import catalog_schema
from curation.catalog.store import CatalogStore
from curation.errors import AccessError, RequestError
from curation.manifests.chain import decision_parts, read_part
from curation.manifests.reading import ManifestReader, open_catalog
from curation.manifests.schema import DECISIONS_SCHEMA, DISTILLED_SCHEMA, GUIDED_SCHEMA, open_parquet
from curation.selection.strategies import STRATEGIES
from curation.storage import Folder

WHY = {
    "sampled": "kept: its priority {priority:.6g} is below {threshold:.6g}, the first that was refused",
    "within": "kept: its turn came within the budget",
    "required": "kept: select.require names it, or a sample of its unit; after curate apply, the publication does",
    "nearest": "kept: it is among the nearest to the centroid of cluster {cluster}",
    "guided": "kept: by the bank it is {guided_class} (probability {guided_probability:.2g}), and its turn among the "
    "guided, {guided_place:.6g} from 0, came within the budget",
    "excluded": "dropped: select.exclude names it, or a sample of its unit",
    "cluster_excluded": "dropped: select.clusters takes cluster {cluster} out",
    "split": "dropped: it lies in a block of the split {split}",
    "split_edge": "dropped: its footprint (or its unit) touches blocks of different splits",
    "unscored": "dropped: it has no label, or no score, which its strategy goes by",
    "invalid": "dropped: its valid share {valid_fraction:.4g} is below select.min_valid={threshold:g}",
    "cloud": "dropped: its cloudy share {cloud_fraction:.4g} is above select.max_cloud={threshold:g}",
    "entropy": "dropped: its entropy, {entropy:.4g} bits, is below {threshold:.4g} (or as much, and a hash decided)",
    "place": "dropped: it shows the place of {duplicate_of}, which is better",
    "duplicate": "dropped: it is a near-duplicate of {duplicate_of}",
    "hard": "dropped: its {name} {score:.6g} is beyond {threshold:.6g}, among the hardest (select.ccs.beta)",
    "quota": "dropped: its priority {priority:.6g} is not below {threshold:.6g}, the first that was refused",
    "full": "dropped: the budget was used up before its turn",
    "chosen": "kept: of the images drawn for its prototype {prototype} that are not too near a real one it has the "
    "largest margin, {margin:.4g}",
    "margin": "dropped: its margin {margin:.4g} is not above {threshold:.4g}, that of {duplicate_of}, which was kept "
    "for the same prototype",
    "leakage": "dropped: it is too near a real image: its cosine to {nearest} is {similarity:.4g} (too near from "
    "{limits[similarity]:.4g} on), its SSIM to {ssim_nearest} is {ssim:.4g} (too near from {limits[ssim]:.4g} on)",
}
FIGURE = {  # what an order goes by
    "k_center": "its distance to the nearest that its cluster took before it",
    "facility_location": "its gain, the likeness to a kept one that it adds to its cluster,",
    "semdedup": "its largest cosine to one that stands before it in its cluster",
    "score": "its {name}",
}
BY_FIGURE = {
    "sampled": "kept: {figure} {score:.6g} goes before {limit:.6g}, the first that was refused",
    "within": "kept: {figure} {score:.6g} came within the budget",
    "quota": "dropped: {figure} {score:.6g} does not go before {limit:.6g}, the first that was refused",
}
BY_MARGIN = {
    "sampled": "kept: its margin {score:.6g} makes it one of the prototypes of its class",
    "within": "kept: its class keeps all",
    "quota": "dropped: its margin {score:.6g} does not make it one of the prototypes of its class",
}
FIGURES = ("sample_id", "shard", "index", "key")


def explain(url: str, sample: str, storage: dict[str, Any] | None = None) -> dict[str, Any]:
    """Explain one decision.

    Args:
        url: of ``manifest.json``.
        sample: an id or a key.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.

    Returns:
        the decision's columns, ``why`` in words, and ``stands_for_it``: for a dropped sample the kept one that it is a
        copy or of the place of, or else the nearest kept one by embedding in its cluster (``by`` says which). For a
        quarantined one: where and why it broke.

    Raises:
        RequestError: the manifest decides over no such sample, or over several of that key.
    """
    manifest = ManifestReader(url, storage)
    content = manifest.header["content"]
    store = None if "distilled" in content else open_catalog(manifest, storage)
    found = _rows(manifest.folder, "sample_id", sample) or _rows(manifest.folder, "key", sample)
    if len(found) > 1:
        ids = ", ".join(f"{row['sample_id']} in {row['shard']}" for row in found[:5])
        raise RequestError(f"{len(found)} samples have the key {sample!r}: name one by its id, as {ids}")
    if not found:
        return (store and _quarantined(store, sample)) or _unknown(manifest, sample)
    row = found[0]
    if row["decision"] == "kept":  # its row of the decisions may be of an ancestor
        row |= _kept_row(manifest, row["sample_id"])
    stands = _stand_in(manifest, store, row) if row["decision"] == "dropped" else None
    settings, limits = content["config"].get("select", {}), content.get("distilled", {}).get("limits")
    return {**row, "why": _why({**row, "limits": limits}, settings), "stands_for_it": stands}


def _why(row: dict[str, Any], settings: dict[str, Any]) -> str:
    """In words; ``settings``: of the selection, as in the header."""
    rule, order = row["reason"], STRATEGIES[settings.get("strategy", "balanced")].order
    if rule == "sampled" and row["threshold"] is None:
        rule = "within"
    if rule == "quota" and (row["threshold"] is None or row["priority"] is None):
        rule = "full"
    words, told = WHY, {**row, "name": settings.get("score")}
    if order in FIGURE and rule in BY_FIGURE:
        sign = 1 if row["priority"] == row["score"] else -1
        told |= {"figure": FIGURE[order].format(**told), "limit": sign * (row["threshold"] or 0)}
        words = BY_FIGURE
    if order == "margin" and rule in BY_MARGIN:
        words = BY_MARGIN
    why = words[rule].format(**told)
    if rule in ("sampled", "quota") and row.get("guided_class") is not None:
        turn = "" if rule == "sampled" else ", but its turn did not come"
        why += f"; by the bank it is {row['guided_class']} (probability {row['guided_probability']:.2g}){turn}"
    if row.get("group") is not None and rule in ("sampled", "nearest", "quota"):
        why += f" in group {row['group']} of cluster {row['cluster']}"
    if words is WHY and rule in ("sampled", "within", "quota") and row["score"] is not None:
        why += f"; its {told['name']} is {row['score']:.6g}"
    return why


def _rows(folder: Folder, column: str, value: str) -> list[dict[str, Any]]:
    """The decisions with that value; other columns are read only where there is one."""
    found: list[dict[str, Any]] = []
    for files in decision_parts(folder):
        if pc.any(pc.equal(read_part(folder, files, [column])[column], value)).as_py():
            rows = read_part(folder, files, [*DECISIONS_SCHEMA.names, *GUIDED_SCHEMA.names, *DISTILLED_SCHEMA.names])
            found += rows.filter(pc.equal(rows[column], value)).to_pylist()
    return found


def _stand_in(manifest: ManifestReader, store: CatalogStore | None, row: dict[str, Any]) -> dict[str, Any] | None:
    """The kept representative of the sample's duplicates, or the nearest kept sample of its cluster."""
    kept = pa.concat_tables(
        group.filter(
            pc.or_(pc.equal(group["cluster"], row["cluster"]), pc.equal(group["sample_id"], row["duplicate_of"] or ""))
        )
        for group in _groups(manifest)
    )
    for other in kept.filter(pc.equal(kept["sample_id"], row["duplicate_of"] or "")).to_pylist():
        return {"by": row["reason"], **other}
    if store is None:
        return None
    try:
        own, others = (
            vectors(catalog_rows(store, rows, ["embedding"])["embedding"])
            for rows in (pa.Table.from_pylist([row]), kept)
        )
        distance = np.linalg.norm(others - own, axis=1)
    except AccessError:
        return None  # the catalog is no longer there
    if not len(distance):
        return None
    nearest = int(np.argmin(distance))
    return {"by": "embedding", "embedding_distance": float(distance[nearest]), **kept.slice(nearest, 1).to_pylist()[0]}


def _kept_row(manifest: ManifestReader, name: str) -> dict[str, Any]:
    """The sample's rank and weight, as the manifest has them."""
    for group in _groups(manifest):
        for row in group.filter(pc.equal(group["sample_id"], name)).select(["rank", "weight"]).to_pylist():
            return dict(row)
    return {}


def _groups(manifest: ManifestReader) -> Iterator[pa.Table]:
    with open_parquet(manifest.folder, "manifest.parquet") as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, [*FIGURES, "cluster", "scene", "rank", "weight"])


def catalog_rows(store: CatalogStore, rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Columns of the catalog for some rows of a manifest, which are sorted by shard.

    Raises:
        AccessError: the catalog is not there.
    """
    found = [catalog_schema(1).empty_table().select(columns)] if not rows.num_rows else []
    for shard in pc.unique(rows["shard"]).to_pylist():
        table = store.read(shard, ["index", *columns])
        wanted = rows.filter(pc.equal(rows["shard"], shard))["index"]
        found.append(table.select(columns).take(pc.index_in(wanted, value_set=table["index"].combine_chunks())))
    return pa.concat_tables(found, promote_options="permissive")


def vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """float32 (rows, dim) of a column of lists of one length.

    Raises:
        ValueError: they are of several.
    """
    flat = pc.list_flatten(column).combine_chunks().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(column), -1 if len(column) else 1)


def _quarantined(store: CatalogStore, sample: str) -> dict[str, Any] | None:
    folder = store.workspace.child(f"quarantine/{store.catalog_id}")
    for file in folder.list():
        for row in pq.read_table(pa.BufferReader(folder.read(file.path))).to_pylist():
            name = sample_id(row["shard"], row["key"])
            if sample in (row["key"], name):
                why = f"quarantined: it could not be used ({row['stage']}, {row['error']}): {row['message']}"
                return {"sample_id": name, **row, "decision": "quarantined", "why": why, "stands_for_it": None}
    return None


def _unknown(manifest: ManifestReader, sample: str) -> dict[str, Any]:
    raise RequestError(
        f"{manifest.folder.public()} decides over no sample {sample!r}: give an id of 32 hex digits, or a key in full"
    )
