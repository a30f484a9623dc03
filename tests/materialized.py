"""Materialises without Ray: what the job does, shard by shard in this process."""

from pathlib import Path
from typing import Any

import yaml

from curation.manifests.reading import ManifestReader
from curation.materialized.build import Work, finish, write_shard
from curation.materialized.plan import Plan, asked_for, freeze, measure, pieces
from curation.materialized.settings import MaterializeConfig
from curation.storage import Folder


def begin(url: str, dest: Path | str, *options: str, roots: dict[str, str] | None = None, storage: Any = None) -> Work:
    """The frozen plan, and what goes with it."""
    manifest, folder = ManifestReader(url, storage), Folder(str(dest), storage)
    told = dict(option.split("=") for option in ("name=shard", *options))
    config = MaterializeConfig(**{name: yaml.safe_load(value) for name, value in told.items()})
    work = Work(asked_for(manifest, config, 0), manifest, folder, roots or {}, storage)
    return Work(freeze(measure(work.plan, work.fetcher()), folder), manifest, folder, work.roots, storage)


def write(url: str, dest: Path | str, *options: str, backwards: bool = False, **more: Any) -> Plan:
    """A whole folder."""
    work = begin(url, dest, *options, **more)
    jobs = list(pieces(work.plan, work.manifest.shards(work.plan.budget)))
    receipts = [write_shard(work, piece) for piece in (reversed(jobs) if backwards else jobs)]
    finish(work.plan, work.manifest, work.dest, sorted(receipts, key=lambda receipt: receipt["shard"]))
    return work.plan


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
