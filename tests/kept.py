"""A small archive with a manifest over it, made without the code that is tested: tarfile, files, pyarrow."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.archive.sample import sample_id
from curation.catalog.schema import catalog_schema
from curation.manifests.schema import MANIFEST_SCHEMA

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Archive:
    """Where it lies, and the truth about it.

    Attributes:
        root: the archive's folder.
        manifest: the manifest's folder.
        files: of every kept sample: its files' bytes by suffix.
        ranks: of every kept sample.
    """

    root: Path
    manifest: Path
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """The kept samples, sorted."""
        return sorted(self.files)


def image(name: str, size: int) -> bytes:
    """Bytes that begin like a PNG and belong to one name."""
    noise = np.frombuffer(hashlib.blake2b(name.encode()).digest(), np.uint8)
    return PNG + np.resize(noise, size - len(PNG)).tobytes()


def write_archive(
    folder: Path,
    shards: int = 3,
    samples: int = 40,
    share: float = 0.4,
    loose: int = 12,
    catalog: bool = True,
    group: int = 37,
    size: int = 3000,
) -> Archive:
    """Tars with sidecars on either side of the image, a folder of files, and a manifest of some of it."""
    draw = np.random.default_rng(7)
    archive = Archive(folder / "archive", folder / "workspace" / "manifests" / "0123abcd")
    rows: list[dict[str, Any]] = []
    for number in range(shards):
        path = f"part {number // 2}/shard-{number:03}.tar"
        listed = _write_tar(archive.root / path, [_files(number, i, size + i) for i in range(samples)])
        rows += _rows(archive, f"root0/{path}", listed, draw, share, catalog and folder)
    if loose:
        listed = _write_loose(archive.root / "loose", [_files(99, i, size + i) for i in range(loose)])
        rows += _rows(archive, "root0/loose", listed, draw, share, catalog and folder)
    _write_manifest(archive, rows, draw, group)
    return archive


def _files(shard: int, number: int, size: int) -> tuple[str, dict[str, bytes]]:
    """Key and files of a sample; now and then a key that a tar header has no room or no letters for."""
    key = f"s{shard:02}/tile_{number:04}"
    if number % 10 == 3:
        key += "_" + "long" * 30
    if number % 10 == 6:
        key += "_Überflug"
    label = json.dumps({"label": f"class{number % 3}"}).encode()
    return key, {"cls": str(number).encode(), "png": image(key, size), "json": label, "pkl": b"never read"}


def _write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> list[dict[str, Any]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with tarfile.open(path) as tar:
        places = {member.name: member.offset_data for member in tar}
    return [
        {
            "key": key,
            "files": {suffix: content for suffix, content in files.items() if suffix != "pkl"},
            "members": [
                {"name": f"{key}.{suffix}", "offset": places[f"{key}.{suffix}"], "size": len(content)}
                for suffix, content in files.items()
            ],
        }
        for key, files in samples
    ]


def _write_loose(folder: Path, samples: list[tuple[str, dict[str, bytes]]]) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    listed = []
    for path, files in samples:
        key = path.rpartition("/")[2]
        kept = {suffix: files[suffix] for suffix in ("json", "png")}
        for suffix, content in kept.items():
            (folder / f"{key}.{suffix}").write_bytes(content)
        members = [{"name": f"{key}.{s}", "offset": None, "size": len(c)} for s, c in kept.items()]
        listed.append({"key": key, "files": kept, "members": members})
    return listed


def _rows(
    archive: Archive,
    shard: str,
    listed: list[dict[str, Any]],
    draw: np.random.Generator,
    share: float,
    catalog: Path | bool,
) -> list[dict[str, Any]]:
    """The manifest's rows of a shard; its catalog file beside them."""
    rows = []
    for index, sample in enumerate(listed):
        png = next(member for member in sample["members"] if member["name"].endswith("png"))
        sample |= {"sample_id": sample_id(shard, sample["key"]), "shard": shard, "index": index}
        sample |= {"offset": png["offset"], "size": png["size"]}
        if draw.random() < share:
            archive.files[sample["sample_id"]] = sample["files"]
            rows.append(sample)
    if isinstance(catalog, Path):
        path = catalog / "workspace" / "catalog" / "feed" / f"{shard}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = catalog_schema(4)
        full = [{name: sample.get(name) for name in schema.names} for sample in listed]
        pq.write_table(pa.Table.from_pylist(full, schema), path)
    return rows


def _write_manifest(archive: Archive, rows: list[dict[str, Any]], draw: np.random.Generator, group: int) -> None:
    rows.sort(key=lambda row: (row["shard"], row["index"]))
    for row, rank in zip(rows, draw.permutation(len(rows)).tolist(), strict=True):
        archive.ranks[row["sample_id"]] = rank
        row |= {
            "position": None,
            "window": None,
            "radiometry": "unknown",
            "rank": rank,
            "cluster": rank % 5,
            "distance": 0.5,
            "weight": None if rank % 2 else 2.0,
        }
        row |= {"label": f"class{rank % 3}" if rank % 4 else None, "scene": None, "entropy": 5.0, "source_id": None}
    archive.manifest.mkdir(parents=True)
    table = pa.Table.from_pylist([{name: row[name] for name in MANIFEST_SCHEMA.names} for row in rows], MANIFEST_SCHEMA)
    pq.write_table(table, archive.manifest / "manifest.parquet", row_group_size=group)
    write_header(archive.manifest, {"root0": archive.root.as_uri()})


def write_header(manifest: Path, roots: dict[str, str], **content: Any) -> None:
    """``manifest.json``, as far as the readers look at it."""
    content = {"catalog": "feed", "config": {"archive": {}}, **content}
    header = {"content": content, "provenance": {"roots": roots}}
    (manifest / "manifest.json").write_text(json.dumps(header))
