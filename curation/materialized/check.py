"""Checks a materialised folder: every file has the bytes that were written, every shard as many samples."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.manifests.schema import file_digest
from curation.materialized.build import CROISSANT_FILE, INDEX_FILE, SUMS_FILE
from curation.materialized.plan import PLAN_FILE, find_plan
from curation.storage import Folder

SHOWN = 100  # problems listed


def is_materialized(url: str, storage: dict[str, Any] | None) -> bool:
    """Whether a folder was begun by ``curate materialize``."""
    return find_plan(Folder(url, storage, "materialize")) is not None


def verify_materialized(url: str, storage: dict[str, Any] | None = None) -> dict[str, Any]:
    """Check a materialised folder.

    Args:
        url: of the folder.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.

    Returns:
        ``ok``, ``problems`` (one line each, the first hundred), ``wrong`` (how many there are), ``destination``,
        ``files``, ``samples``.
    """
    folder = Folder(url, storage, "materialize")
    problems = list(_problems(folder))
    files: int | None = None
    samples: int | None = None
    try:
        index = json.loads(folder.read(INDEX_FILE))
        files, samples = len(folder.read(SUMS_FILE).splitlines()), index["nsamples"]
    except (FileNotFoundError, ValueError, KeyError):
        pass
    result = {"destination": folder.public(), "files": files, "samples": samples}
    return {**result, "ok": not problems, "problems": problems[:SHOWN], "wrong": len(problems)}


def _problems(folder: Folder) -> Iterator[str]:
    try:
        lines = folder.read(SUMS_FILE).decode().splitlines()
    except FileNotFoundError:
        yield f"{SUMS_FILE} is missing: the folder is not complete; run the same curate materialize again"
        return
    damaged = set()
    for digest, _, path in (line.partition("  ") for line in lines):
        try:
            if file_digest(folder, path)[1] != digest:
                damaged.add(path)
                yield f"{path}: other bytes than were written: remove it; then{_and_then(path)[1:]}"
        except FileNotFoundError:
            damaged.add(path)
            yield f"{path} is missing{_and_then(path)}"
    if INDEX_FILE in damaged:
        return
    for shard in json.loads(folder.read(INDEX_FILE))["shardlist"]:
        if shard["url"] not in damaged and (there := count_samples(folder, shard["url"])) != shard["nsamples"]:
            yield f"{shard['url']}: {there} samples, {shard['nsamples']} by {INDEX_FILE}"


def _and_then(path: str) -> str:
    """What writes a file that is gone again."""
    if path == PLAN_FILE:
        return ": remove the whole folder, and give the same curate materialize again"
    if path in (INDEX_FILE, CROISSANT_FILE):
        return f": remove {SUMS_FILE} too, and give the same curate materialize again, which writes all anew"
    return ": the same curate materialize writes it again"


def count_samples(folder: Folder, path: str) -> int:
    """The samples of a shard."""
    if path.endswith(".parquet"):
        with folder.open(folder.info(path), random=True) as file:
            return int(pq.read_metadata(file).num_rows)
    shard = Shard("materialized", path, "tar", folder.info(path))
    return sum(isinstance(raw, RawSample) for raw in read_shard(folder, shard, ArchiveConfig()))
