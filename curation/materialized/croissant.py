"""Describes a materialised set in Croissant 1.0 (MLCommons): JSON-LD that data set search and loaders read.

Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from curation.archive.names import IMAGES, SIDECARS, extension
from curation.manifests.reading import ManifestReader
from curation.manifests.schema import MANIFEST_SCHEMA
from curation.materialized.files import COLUMNS, OWN
from curation.materialized.plan import Plan

CONFORMS = "http://mlcommons.org/croissant/1.0"
CONTEXT: dict[str, Any] = {  # the one that the specification prescribes
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "excludes": "cr:excludes",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_MEDIA = {
    **{"jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "tif": "image/tiff", "tiff": "image/tiff"},
    **{"webp": "image/webp", "bmp": "image/bmp", "jp2": "image/jp2", "json": "application/json", "txt": "text/plain"},
    **{"zip": "application/zip", "cls": "text/plain"},
}
_WORDS = {
    "sample_id": "128-bit hash of the sample's shard and key in the source archive",
    "source_id": "what the source calls it: product, grid cell, window",
    "shard": "the shard of the source archive that it comes from",
    "index": "its place in that shard, from 0",
    "key": "its key in that shard",
    "cluster": "number of its cluster",
    "distance": "Euclidean distance of its unit embedding to the cluster's centroid",
    "scene": "the reference class that its cluster stands for",
    "entropy": "Shannon entropy of its histogram over a fixed range, bits",
    "label": "its label in the source",
    "rank": "the samples with the n smallest are what a budget of n selects",
    "weight": "1 / inclusion probability: undoes the balancing in an estimate",
}


def describe(name: str, plan: Plan, manifest: ManifestReader, receipts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``croissant.json``.

    Args:
        name: of the data set.
        plan: what was written.
        manifest: from what.
        receipts: of the shards, in their order.
    """
    tar = plan.format == "webdataset"
    media = "application/x-tar" if tar else "application/x-parquet"
    files = [
        {
            "@type": "cr:FileObject",
            "@id": receipt["shard"],
            "name": receipt["shard"],
            "contentUrl": receipt["shard"],
            "contentSize": f"{receipt['bytes']} B",
            "encodingFormat": media,
            "md5": receipt["md5"],
            "sha256": receipt["sha256"],
        }
        for receipt in receipts
    ]
    sets, records = _of_tars(plan) if tar else _of_parquet(plan)
    licences = sorted({licence for receipt in receipts for licence in receipt["licences"]})
    begun = manifest.header.get("provenance", {}).get("begun")
    said = {"license": licences, "datePublished": str(begun)[:10] if begun else None}
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS,
        "name": name,
        "description": _description(plan, manifest, sum(receipt["unlicensed"] for receipt in receipts)),
        "version": "1.0.0",
        "isLiveDataset": False,
        **{name: value for name, value in said.items() if value},
        "distribution": [*files, *sets],
        "recordSet": records,
    }


def _description(plan: Plan, manifest: ManifestReader, unlicensed: int) -> str:
    """What it is and how it was made, in sentences."""
    content = manifest.header["content"]
    config, counts = content.get("config", {}), content.get("counts", {})
    of = f" of {counts['samples']}" if "samples" in counts else ""
    select = config.get("select", {})
    how = [
        f"{name}={value}"
        for name, value in {
            "select.strategy": select.get("strategy"),
            "select.budget": select.get("budget"),
            "encoder": config.get("encoder", {}).get("name"),
            "seed": config.get("seed"),
        }.items()
        if value is not None
    ]
    what = "satellite image samples, selected by curate"
    if "distilled" in content:
        what = "synthetic satellite images, distilled by curate from an archive of real ones"
    parts = [
        f"{plan.samples}{of} {what} (manifest {plan.manifest})",
        f"as {plan.shards} shards of {'WebDataset tars' if plan.format == 'webdataset' else 'Parquet'}.",
        f"How: {', '.join(how)}." if how else "",
        f"Bands: {', '.join(content['bands'])}." if content.get("bands") else "",
        f"Of {unlicensed} samples the source states no licence." if unlicensed else "",
    ]
    return " ".join(filter(None, parts))


def _of_tars(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The members by suffix, each with its records: key and content.

    The manifest's columns are the content of ``curation.json``, as text: fields by ``jsonPath`` would be neater, but
    mlcroissant 1.1 cannot read them out of members of an archive.
    """
    inside = [{"@id": plan.shard(number)} for number in range(plan.shards)]
    sets, records = [], []
    for suffix in [OWN, *(s for s in plan.suffixes if extension(f".{s}") in IMAGES | SIDECARS)]:
        media = _MEDIA.get(extension(f".{suffix}"), "application/octet-stream")
        one = {"@type": "cr:FileSet", "@id": _id(suffix), "name": suffix, "containedIn": inside}
        longer = [f"*.{other}" for other in (OWN, *plan.suffixes) if other.endswith(f".{suffix}")]
        globs = {"includes": f"*.{suffix}", **({"excludes": longer} if longer else {})}
        sets.append({**one, "encodingFormat": media, **globs})
        if longer or extension(f".{suffix}") in ("zip", "npy"):
            continue  # mlcroissant 1.1 does not see what is excluded; Croissant has no type for the others
        name, source = f"members/{suffix}", {"fileSet": {"@id": _id(suffix)}}
        key = {**source, "extract": {"fileProperty": "filename"}, "transform": {"regex": _key_of(suffix)}}
        content = {**source, "extract": {"fileProperty": "content"}}
        kind = "sc:ImageObject" if extension(f".{suffix}") in IMAGES else "sc:Text"
        words = f"The member {suffix} of each sample."
        if suffix == OWN:
            words = f"The manifest's columns of each sample, a JSON object: {_listed()}."
        fields = [_field(f"{name}/key", "sc:Text", key), _field(f"{name}/content", kind, content)]
        records.append(_record(name, words, fields))
    return sets, records


def _of_parquet(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All shards as one set of files, and their rows."""
    files = {"@type": "cr:FileSet", "@id": "rows", "name": "rows", "encodingFormat": "application/x-parquet"}
    fields = _columns()
    for suffix in plan.suffixes:
        if suffix not in (*COLUMNS, "others"):
            kind = "sc:ImageObject" if extension(f".{suffix}") in IMAGES - {"zip", "npy"} else "sc:Text"
            fields.append(
                _field(f"samples/{suffix}", kind, {"fileSet": {"@id": "rows"}, "extract": {"column": suffix}})
            )
    return (
        [{**files, "includes": f"{plan.name}-*.parquet"}],
        [_record("samples", "The manifest's columns and the files of each sample.", fields)],
    )


def _columns() -> list[dict[str, Any]]:
    """A field for each of the manifest's columns that is a single value."""
    fields = []
    for name in COLUMNS:
        kind = MANIFEST_SCHEMA.field(name).type
        if not pa.types.is_nested(kind):
            number = pa.types.is_integer(kind) and "sc:Integer" or pa.types.is_floating(kind) and "sc:Float"
            source = {"fileSet": {"@id": "rows"}, "extract": {"column": name}}
            fields.append(_field(f"samples/{name}", number or "sc:Text", source, _WORDS[name]))
    return fields


def _listed() -> str:
    """The manifest's columns in words."""
    return "; ".join(f"{name}: {words}" for name, words in _WORDS.items())


def _field(name: str, kind: str, source: dict[str, Any], words: str | None = None) -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": _id(name), "name": name, "dataType": kind}
    return {**field, **({"description": words} if words else {}), "source": source}


def _record(name: str, words: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": _id(name), "name": name, "description": words, "field": fields}


def _id(name: str) -> str:
    """A name as an ``@id``, in which there is no white space."""
    return re.sub(r"\s", "_", name)


def _key_of(suffix: str) -> str:
    """A pattern that takes the key off a member's name."""
    return f"^(.*)\\.{re.escape(suffix)}$"
