"""Writes a draft out as a manifest: decisions and kept rows, and last the header that gives it its id."""

import dataclasses
import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from curation.catalog.sources import SOURCES_FILE
from curation.catalog.store import parquet_bytes as catalog_bytes
from curation.errors import CurationError
from curation.manifests import steps
from curation.manifests.again import Again
from curation.manifests.draft import Draft
from curation.manifests.drift import Drift, Spread, entropy_shift, far_share, share_shift
from curation.manifests.exchange import submit
from curation.manifests.schema import (
    DECISIONS,
    DROPPED,
    FILES_FILE,
    FILES_SCHEMA,
    HEADER_FILE,
    KEPT,
    ROW_GROUP,
    SKETCHES,
    File,
    Manifest,
    content_id,
    decisions_path,
    json_bytes,
    parquet_bytes,
)
from curation.manifests.steps import Survey
from curation.manifests.write import Written, write_part, write_rows

ROWS_A_RANGE = 8 * ROW_GROUP  # kept rows that are merged at once
LOSS = 0.9  # share of a class that the entropy stage may take before a warning names it
NAMED = 20  # classes in one warning


def finish(draft: Draft, header: dict[str, Any]) -> Manifest:
    """Write everything; the header last, since its presence means that the rest is there.

    Args:
        draft: that every row is decided in.
        header: what the job knows of ``content`` and ``provenance``.

    Raises:
        CurationError: samples were lost on the way.
    """
    name = f"unfinished/{draft.folder.base.rpartition('/')[2]}"
    written, file = _write(draft)
    reasons = sum((part.reasons for part in written), Counter())
    kept = draft.samples - sum(reasons[reason] for reason in DROPPED)
    _warn_of_classes(draft, written)
    if draft.plan.splits:
        held_out = sum((part.held_out for part in written), Counter())
        draft.told["splits"] = {name: held_out[name] for name in draft.plan.splits}
    if draft.settings.grouped:
        draft.told["left_free"] = draft.plan.budget - kept  # the next unit did not fit
    if draft.again is None:
        draft.told["frozen"] = sum((part.spread for part in written), Spread()).frozen()
    else:
        _tell_of_parent(draft, draft.again, kept, sum(part.came for part in written))
    own = [file, *(part.file for part in written if part.file is not None), *draft.sketches]
    files = _with_parents(draft, file, written)
    listing = parquet_bytes(pa.Table.from_pylist([dataclasses.asdict(file) for file in files], schema=FILES_SCHEMA))
    content = {
        **header["content"],
        "counts": {
            **header["content"].get("counts", {}),
            **{"samples": draft.samples, "kept": kept, "dropped": draft.samples - kept},
            "reasons": {reason: count for reason, count in reasons.items() if count},
        },
        "selection": {"budget": draft.plan.budget, **draft.told},
        "warnings": draft.warnings,
        "files": hashlib.sha256(listing).hexdigest(),
    }
    folder = f"manifests/{content_id(content)}"
    for file in own:
        draft.workspace.move(f"{name}/{file.path}", f"{folder}/{file.path}")
    draft.workspace.discard(name)
    draft.workspace.publish(f"{folder}/{FILES_FILE}", listing)
    if draft.sources is not None:
        draft.workspace.publish(f"{folder}/{SOURCES_FILE}", catalog_bytes(draft.sources))
    draft.workspace.publish(f"{folder}/{HEADER_FILE}", json_bytes({**header, "content": content}))
    return Manifest(
        folder=folder,
        url=draft.workspace.public(f"{folder}/{HEADER_FILE}"),
        samples=draft.samples,
        kept=kept,
        dropped={reason: reasons[reason] for reason in DROPPED if reasons[reason]},
        warnings=draft.warnings,
    )


def _write(draft: Draft) -> tuple[list[Written], File]:
    """Decisions and kept rows.

    Raises:
        CurationError: samples were lost on the way.
    """
    splits = _splits(draft.surveys, draft.plan.budget)
    befores = [None if draft.again is None else draft.again.before(number) for number in range(len(draft.parts))]
    parts = [
        submit(
            *(write_part, draft.shared, number, draft.folder, splits, befores[number], shards, *layers),
            returns=len(splits) + 2,
        )
        for number, (shards, layers) in enumerate(zip(draft.shards, draft.parts, strict=True))
    ]
    written: list[Written] = ray.get([part[0] for part in parts])
    ranges = list(zip(*(part[1:] for part in parts), strict=True))
    rows: File = ray.get(submit(write_rows, draft.folder, ranges))
    decided = sum((part.reasons for part in written), Counter())
    kept = sum(decided[reason] for reason in KEPT)
    if decided.total() != draft.samples or kept != rows.rows:
        counts = f"{decided.total()} decisions, {rows.rows} of {kept} kept rows"
        raise CurationError(f"of {draft.samples} samples there are {counts}: this is a fault of the program")
    return written, rows


def _with_parents(draft: Draft, rows: File, written: list[Written]) -> list[File]:
    """All files that make the manifest up: of each part those of the parent that still hold, then its own."""
    files = [rows]
    kept: dict[str, list[File]] = {}
    if draft.again is not None:
        for file in draft.again.files(DECISIONS):
            kept.setdefault(file.path.rpartition("/")[2], []).append(file)
    for number, part in enumerate(written):
        if draft.again is not None and not draft.again.pieces[number].whole:
            files += kept.get(decisions_path(number).rpartition("/")[2], [])
        files += [part.file] if part.file is not None else []
    return files + (draft.again.files(SKETCHES) if draft.again is not None else []) + draft.sketches


def _tell_of_parent(draft: Draft, before: Again, kept: int, came: int) -> None:
    """What drift there is, held against what was frozen with the first draw; what came and went of the kept."""
    draft.told["frozen"] = before.frozen
    now = draft.total(steps.count_clusters, len(draft.sizes))
    drift = Drift(
        samples=int(before.spread.distances.sum()),
        far_share=far_share(before.spread, before.frozen["reach"]),
        share_shift=share_shift(now, draft.sizes),
        entropy_shift=entropy_shift(before.spread, before.frozen),
    )
    went = before.content["counts"]["kept"] - (kept - came)
    draft.told["recurate"] = {**before.told, "drift": drift.figures(), "came": came, "went": went}


def _warn_of_classes(draft: Draft, written: list[Written]) -> None:
    before = sum((part.classes for part in written), Counter())
    fell = sum((part.calm for part in written), Counter())
    if lost := sorted(name for name, count in before.items() if fell[name] > LOSS * count):
        named = ", ".join(f"{name} ({fell[name]} of {before[name]})" for name in lost[:NAMED])
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        draft.warn(f"the entropy stage takes more than {LOSS:.0%} of: {named}{more}")


def _splits(surveys: list[Survey], budget: int) -> list[str]:
    """Shard names that cut the archive into ranges of about equally many rows, out of those that the parts gave."""
    known = sorted(pair for survey in surveys for pair in survey.shards)
    rows = np.cumsum([count for _, count in known])
    number = -(-budget // ROWS_A_RANGE)
    at = np.searchsorted(rows, rows[-1] * np.arange(1, number) / number)
    return sorted({known[i][0] for i in at})
