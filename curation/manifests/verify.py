"""Checks a manifest: every file is what the header says, every figure adds up, every kept sample can be read."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.errors import AccessError, BadSample
from curation.manifests.chain import decision_parts, listed, read_part, referenced
from curation.manifests.loaders.decoded import Decoder
from curation.manifests.loaders.fetch import Fetcher
from curation.manifests.reading import ManifestReader
from curation.manifests.schema import FILES_FILE, KEPT, OF_DISTILLED, REASONS, ROWS_FILE, batches, file_digest
from curation.selection.sampling import mix, split_ids
from curation.storage import Folder

SHOWN = 100  # problems listed


def verify(
    url: str, deep: bool = False, storage: dict[str, Any] | None = None, roots: dict[str, str] | None = None
) -> dict[str, Any]:
    """Check a manifest.

    Args:
        url: of ``manifest.json``.
        deep: also read and decode every kept sample out of the archive.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.
        roots: root name to URL, where the archive has moved since.

    Returns:
        ``ok``, ``problems`` (one line each, the first hundred), ``wrong`` (how many there are), ``samples``, ``kept``,
        ``files``, and with ``deep`` ``read``, the kept samples that could be.

    Raises:
        RequestError: there is no manifest.
    """
    manifest = ManifestReader(url, storage)
    problems = list(_check_files(manifest))
    if not problems:
        problems += _check_rows(manifest)
    content = manifest.header["content"]
    result = {
        "manifest": manifest.folder.public("manifest.json"),
        "samples": content["counts"]["samples"],
        "kept": manifest.num_rows,
        "files": len(_files(manifest.folder)) + 1 if not problems else None,
    }
    if deep and not problems:
        unreadable = list(_check_archive(Fetcher(manifest, "all", roots or {}, storage), manifest))
        problems += unreadable
        result["read"] = manifest.num_rows - len(unreadable)
    return {**result, "ok": not problems, "problems": problems[:SHOWN], "wrong": len(problems)}


def _files(folder: Folder) -> list[dict[str, Any]]:
    return list(pq.read_table(pa.BufferReader(folder.read(FILES_FILE))).to_pylist())


def _check_files(manifest: ManifestReader) -> Iterator[str]:
    """The header's own id, the list of files, and each file's bytes."""
    folder, content = manifest.folder, manifest.header["content"]
    if (
        manifest.header.get("id", folder.base.rpartition("/")[2]) != manifest.id
    ):  # a distilled set's own, else the folder's
        yield f"manifest.json: its content has the id {manifest.id}, not that of its folder"
    try:
        if hashlib.sha256(folder.read(FILES_FILE)).hexdigest() != content["files"]:
            yield f"{FILES_FILE} is not the one that manifest.json seals"
            return
    except FileNotFoundError:
        yield f"{FILES_FILE} is missing"
        return
    for file, path in zip(_files(folder), listed(folder), strict=True):
        try:
            size, digest = file_digest(folder.parent, path)
        except FileNotFoundError:
            yield f"{file['path']} is missing"
            continue
        if (size, digest) != (file["size"], file["sha256"]):
            yield f"{file['path']}: other bytes than were written ({size} where there were {file['size']})"


def _check_rows(manifest: ManifestReader) -> Iterator[str]:
    """Counts, order, ranks, and that decisions and kept rows speak of the same samples."""
    counts = manifest.header["content"]["counts"]
    kept = _Seen(counts["kept"])
    last = ("", -1)
    for batch in batches(manifest.folder, ROWS_FILE, ["sample_id", "shard", "index", "rank"]):
        kept.add(batch)
        shard, index = batch["shard"], batch["index"]
        rows = [last, *zip(shard.to_pylist(), index.to_pylist(), strict=True)]
        if wrong := next((b for a, b in pairwise(rows) if a >= b), None):
            yield f"{ROWS_FILE} is not sorted by shard and index at {wrong}"
        last = rows[-1]
    yield from kept.problems(ROWS_FILE)
    reasons: Counter[str] = Counter()
    decided = _Seen(counts["kept"])
    for files in decision_parts(manifest.folder):
        part = read_part(manifest.folder, files, ["sample_id", "decision", "reason", "rank"])
        stays = pc.equal(part["decision"], "kept")
        found = Counter({pair["values"]: pair["counts"] for pair in part["reason"].value_counts().to_pylist()})
        reasons += found
        of_kept = pc.is_in(part["reason"], value_set=pa.array([*KEPT, OF_DISTILLED[0]]))
        if set(found) - {*REASONS, *OF_DISTILLED} or not of_kept.equals(stays):
            yield f"{files[-1]}: a decision does not follow from its reason"
        decided.add(part.filter(stays))
    own = not referenced(manifest.folder)  # an ancestor's decisions have the ranks of their day
    yield from decided.problems("decisions", ranked=own)
    if decided.ids != kept.ids or (own and decided.mark != kept.mark):
        yield "the kept samples of the decisions are not those of the manifest"
    if dict(reasons) != counts["reasons"] or reasons.total() != counts["samples"]:
        yield f"the decisions count {dict(reasons)}, the header {counts['reasons']} of {counts['samples']}"
    if counts["samples"] != counts["kept"] + counts["dropped"]:
        yield f"{counts['samples']} samples are not {counts['kept']} kept and {counts['dropped']} dropped"


class _Seen:
    """Ids and ranks that went by: marks that do not depend on their order, of ids alone and with ranks; the ranks."""

    def __init__(self, number: int) -> None:
        self.number, self.rows, self.ids, self.mark = number, 0, 0, 0
        self.ranks = np.zeros(number, bool)

    def add(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Take note of some rows."""
        rank: NDArray[np.int64] = batch["rank"].fill_null(-1).to_numpy(zero_copy_only=False)
        upper, lower = split_ids(batch["sample_id"])
        self.ids = (self.ids + int(mix(upper ^ mix(lower)).sum())) % 2**64
        self.mark = (self.mark + int(mix(upper ^ mix(lower ^ mix(rank.astype(np.uint64)))).sum())) % 2**64
        self.rows += len(rank)
        self.ranks[rank[(rank >= 0) & (rank < self.number)]] = True

    def problems(self, name: str, ranked: bool = True) -> Iterator[str]:
        """What does not hold once all went by; ``ranked``: whether their ranks must be all there are."""
        if self.rows != self.number:
            yield f"{name}: {self.rows} kept samples, {self.number} by the header"
        elif ranked and not self.ranks.all():
            yield f"{name}: no sample has rank {int(np.argmin(self.ranks))}"


def _check_archive(fetcher: Fetcher, manifest: ManifestReader) -> Iterator[str]:
    """Read every kept sample where the manifest says that it lies, and decode it."""
    content = manifest.header["content"]
    index, decoder = manifest.shards(), Decoder(manifest.archive, content.get("bands"), content.get("dtype"))
    for first, stop in zip(index.first.tolist(), index.stop.tolist(), strict=True):
        rows = manifest.rows(first, stop)
        try:
            yield from list(_undecodable(fetcher, rows, decoder))
        except AccessError:  # which of them?
            for i in range(len(rows)):
                try:
                    yield from list(_undecodable(fetcher, rows.slice(i, 1), decoder))
                except AccessError as error:
                    yield str(error)


def _undecodable(fetcher: Fetcher, rows: pa.Table, decoder: Decoder) -> Iterator[str]:
    for kept in fetcher.read([rows]):
        try:
            decoder.sample(kept)
        except BadSample as error:
            yield f"{kept.row['shard']}: {kept.row['key']}: {error}"
