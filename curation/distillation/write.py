"""Writes a distilled set: shards of its images, and a manifest that says of every image drawn what became of it.

The same images, the same bytes. Everything goes into one folder: ``shards/``
first, ``manifest.json`` last, whose presence means that the rest is there. The
header has its own id, for the folder is named by what was asked for.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from curation.archive import sample
from curation.archive.geotiff import encode_geotiff
from curation.archive.sample import sample_id
from curation.distillation.drawn import Candidate, Drawn
from curation.errors import RequestError
from curation.manifests.schema import (
    DECISIONS_SCHEMA,
    DISTILLED_SCHEMA,
    FILES_FILE,
    FILES_SCHEMA,
    HEADER_FILE,
    KEPT_ROW_GROUP,
    MANIFEST_SCHEMA,
    OF_DISTILLED,
    ROWS_FILE,
    File,
    Manifest,
    content_id,
    decisions_path,
    json_bytes,
    parquet_bytes,
)
from curation.materialized.shards import Sink, add_member, end_tar
from curation.storage import Folder, public_url

Pixels = NDArray[np.uint8]

ROOT = "distilled"  # the root that the shards lie below
SHARDS = "shards"
SHARD_BYTES = 256 << 20  # of a shard, about
CHOSEN, MARGIN, LEAKAGE = OF_DISTILLED
NOWHERE = -1  # index of what lies in no shard


@dataclass(frozen=True)
class Units:
    """What an archive's numbers are, and so those of images that are made after it.

    Attributes:
        bands: names.
        dtype: of the numbers.
        ranges: float32 (bands, 2), what 0 and 255 of a tile stand for.
        radiometry: what the numbers mean.
    """

    bands: tuple[str, ...]
    dtype: str
    ranges: NDArray[np.float32]
    radiometry: str = "unknown"

    @classmethod
    def of(cls, artefact: Any) -> "Units":
        """Those of a catalog's artefact."""
        return cls(artefact.bands, artefact.dtype, np.asarray(artefact.arrays["range"]), artefact.radiometry)

    @property
    def drawable(self) -> bool:
        """Whether a PNG holds them."""
        return self.dtype == "uint8" and len(self.bands) in (1, 3)

    def restore(self, tile: Pixels) -> NDArray[Any]:
        """A tile, uint8 (bands, h, w), in the archive's numbers: 8-bit ones are as stored, others were scaled."""
        if self.dtype == "uint8":
            return tile
        low, high = self.ranges.astype(np.float64).T[:, :, None, None]
        values: NDArray[Any] = low + tile / 255 * (high - low)
        if self.dtype != "float32":
            kind = np.iinfo(self.dtype)
            values = np.clip(np.rint(values), kind.min, kind.max)
        return values.astype(self.dtype)

    def encode(self, tile: Pixels) -> tuple[str, bytes]:
        """The suffix and the bytes of an image file: PNG of 8 bits and one or three bands, else a GeoTIFF."""
        if not self.drawable:
            return "tif", encode_geotiff(sample.Image(self.restore(tile), self.bands))
        out = io.BytesIO()
        image = tile[0] if len(tile) == 1 else np.ascontiguousarray(tile.transpose(1, 2, 0))
        Image.fromarray(image).save(out, "PNG")
        return "png", out.getvalue()


@dataclass(frozen=True)
class Lineage:
    """What a distilled set was made of and how; all of it counts in its id.

    Attributes:
        config: of the run, without URLs and runtime; at least ``distill`` and ``seed``. ``archive`` is how the real
            images were read; in the header it stands with what the set is made of, as the set is read in another way.
        made_of: ``archive`` (root names and digest), ``catalog`` and ``artefact`` (ids), ``models`` (their ids),
            ``prototypes`` (the digest of their table), and whatever else decided.
        limits: ``similarity`` and ``ssim`` from which on an image leaks; ``None``: none was dropped for it.
        warnings: one line each.
    """

    config: Mapping[str, Any]
    made_of: Mapping[str, Any]
    limits: Mapping[str, float] | None = None
    warnings: Sequence[str] = ()


def write_set(
    folder: Folder,
    drawn: Sequence[Drawn],
    pixels: Callable[[Drawn], Pixels],
    units: Units,
    lineage: Lineage,
    provenance: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Write the images that were chosen, then what was decided; nothing where it is done already.

    Args:
        folder: ``distilled/<id>``.
        drawn: of every prototype, in any order.
        pixels: gives the chosen image of a prototype, uint8 (bands, h, w); called once for each, in the order of rank.
        units: of the archive.
        lineage: what it was made of.
        provenance: URLs without credentials, versions, times; no part of the id.
        shard_bytes: a shard ends once it has as many.

    Raises:
        RequestError: no image is left.
    """
    if folder.exists(HEADER_FILE):
        return _manifest(folder, json.loads(folder.read(HEADER_FILE)))
    order = round_robin(drawn)
    if not order:
        raise RequestError(
            "every image that was drawn is too near a real one, so that nothing is left to write: give a smaller "
            "distill.leakage.quantile (null drops none), or more distill.leakage.redraws"
        )
    rows: list[dict[str, Any]] = []
    files: list[File] = []
    left = iter(enumerate(order))
    while len(rows) < len(order):
        files.append(
            _write_shard(folder, len(files), left, pixels, units, lineage.config.get("seed"), rows, shard_bytes)
        )
    tables = {
        ROWS_FILE: (_table(rows, _with(MANIFEST_SCHEMA)), KEPT_ROW_GROUP),
        decisions_path(0): (_table(_decisions(drawn, rows), _with(DECISIONS_SCHEMA)), KEPT_ROW_GROUP),
    }
    for path, (table, group) in tables.items():
        data = parquet_bytes(table, group)
        folder.publish(path, data)
        files.append(File.of(path, data, table.num_rows))
    listing = parquet_bytes(pa.Table.from_pylist([vars(file) for file in files], FILES_SCHEMA))
    folder.publish(FILES_FILE, listing)
    content = _content(tables[decisions_path(0)][0], units, lineage, hashlib.sha256(listing).hexdigest())
    roots = {ROOT: public_url(folder.child(SHARDS).url)}
    header = {"id": content_id(content), "content": content, "provenance": {**provenance, "roots": roots}}
    folder.publish(HEADER_FILE, json_bytes(header))
    return _manifest(folder, header)


def round_robin(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Prototypes with an image, by rank: the first of each class, then the second of each; every prefix is balanced."""
    turn: Counter[int] = Counter()
    turns = []
    for one in sorted((one for one in drawn if one.chosen), key=lambda one: (one.number, one.prototype)):
        turns.append((turn[one.number], one.number, one))
        turn[one.number] += 1
    return [one for _, _, one in sorted(turns, key=lambda item: item[:2])]


def _write_shard(
    folder: Folder,
    number: int,
    left: Iterator[tuple[int, Drawn]],
    pixels: Callable[[Drawn], Pixels],
    units: Units,
    seed: Any,
    rows: list[dict[str, Any]],
    most: int,
) -> File:
    """Write the next shard, and add the rows of its images."""
    path, count = f"{SHARDS}/{ROOT}-{number:06d}.tar", 0
    with folder.writer(path) as target:
        sink = Sink(target)
        for rank, one in left:
            chosen = one.chosen
            assert chosen is not None
            suffix, data = units.encode(pixels(one))
            key = one.name(chosen)
            row = _row(one, chosen, f"{ROOT}/{ROOT}-{number:06d}.tar", key)
            add_member(sink, f"{key}.json", _sidecar(row, seed))
            offset = add_member(sink, f"{key}.{suffix}", data)
            rows.append({**row, "index": count, "offset": offset, "size": len(data), "rank": rank})
            count += 1
            if sink.size >= most:
                break
        end_tar(sink)
    return File(path, sink.size, sink.sha256.hexdigest(), count)


def _row(one: Drawn, candidate: Candidate, shard: str, key: str) -> dict[str, Any]:
    """What manifest and decisions say alike."""
    return {
        "sample_id": sample_id(shard, key),
        "shard": shard,
        "key": key,
        "cluster": one.cluster,
        "distance": candidate.distance,
        "scene": one.label,
        "label": one.label,
        "prototype": one.sample_id,
        "candidate": candidate.number,
        **{name: getattr(candidate, name) for name in ("margin", "similarity", "nearest", "ssim", "ssim_nearest")},
    }


def _sidecar(row: Mapping[str, Any], seed: Any) -> bytes:
    """What is said of an image beside it."""
    names = ("label", "prototype", "nearest", "candidate", "margin", "similarity", "ssim")
    return json.dumps({**{name: row[name] for name in names}, "seed": seed}, ensure_ascii=False).encode()


def _decisions(drawn: Sequence[Drawn], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row of every image drawn; the dropped lie nowhere and count to the shard of what was kept in their place."""
    kept = {row["cluster"]: row for row in rows}
    found = []
    for one in drawn:
        best = kept.get(one.cluster)
        for candidate in one.candidates:
            own = best is not None and candidate.number == best["candidate"]
            reason = CHOSEN if own else LEAKAGE if candidate.leaks else MARGIN
            row = best if own else _row(one, candidate, (best or rows[0])["shard"], one.name(candidate))
            assert row is not None
            found.append(
                {
                    "index": NOWHERE,
                    **row,
                    "decision": "kept" if own else "dropped",
                    "reason": reason,
                    "score": candidate.margin,
                    "threshold": best["margin"] if best and reason == MARGIN else None,
                    "duplicate_of": None if own or best is None else best["sample_id"],
                }
            )
    return sorted(found, key=lambda row: (row["shard"], row["index"], row["cluster"], row["candidate"]))


def _with(schema: pa.Schema) -> pa.Schema:
    return pa.unify_schemas([schema, DISTILLED_SCHEMA])


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def _content(decisions: pa.Table, units: Units, lineage: Lineage, files: str) -> dict[str, Any]:
    """The header's content."""
    reasons = {pair["values"]: pair["counts"] for pair in decisions["reason"].value_counts().to_pylist()}
    kept = reasons.get(CHOSEN, 0)
    read = {"band_names": list(units.bands)} if units.drawable else {}  # a PNG says of no band what it is called
    archive = {**lineage.made_of.get("archive", {}), "config": lineage.config.get("archive")}
    return {
        "archive": {"roots": [ROOT], "digest": None},
        "bands": list(units.bands),
        "dtype": units.dtype,
        "radiometry": units.radiometry,
        "catalog": None,
        "clusters": None,
        "config": {**lineage.config, "archive": read},
        "counts": {
            "samples": decisions.num_rows,
            "kept": kept,
            "dropped": decisions.num_rows - kept,
            "reasons": dict(sorted(reasons.items())),
        },
        "selection": {"budget": kept, "nested": True},
        "distilled": {**lineage.made_of, "archive": archive, "limits": lineage.limits and dict(lineage.limits)},
        "warnings": list(lineage.warnings),
        "parent": None,
        "files": files,
    }


def _manifest(folder: Folder, header: Mapping[str, Any]) -> Manifest:
    counts = header["content"]["counts"]
    return Manifest(
        folder=folder.base,
        url=folder.public(HEADER_FILE),
        samples=counts["samples"],
        kept=counts["kept"],
        dropped={name: counts["reasons"][name] for name in (MARGIN, LEAKAGE) if name in counts["reasons"]},
        warnings=header["content"]["warnings"],
    )
