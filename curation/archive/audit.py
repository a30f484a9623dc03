"""The fit's audit: what is declared of an archive's numbers, held against what its pixels say."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curation.archive.radiometry import LOW, SHELF, Evidence
from curation.archive.settings import UNITS, RadiometryConfig

ENOUGH = (5, 0.02)  # tiles on the shelf, and their share, that say something
STRAY = 0.01  # share of tiles below LOW that may be bad tiles, where others say that there is an offset
EMPTIER = (3, 2)  # times that the stretch before the shelf, and the one as wide after it, must be emptier
BRIGHT = 1.5  # reflectance that no tile's median reaches
TOO_BRIGHT = 0.2  # share of tiles beyond it that says that the scale is another
NAMED = 3  # shards that a message names


@dataclass(frozen=True)
class Audit:
    """What the fit made of all evidence.

    Attributes:
        found: by modality, what decoding needs besides the settings: ``archive.radiometry.found``.
        table: a row for each group of tiles: what was declared, how many, how dark.
        problem: why the archive is refused: one line, with what to do.
        notes: lines for the log.
    """

    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None
    notes: list[str] = field(default_factory=list)


def audit(seen: Sequence[Evidence], settings: RadiometryConfig) -> Audit:
    """Hold what is declared against what the pixels say, for each modality."""
    made = Audit()
    problems = []
    by_part: dict[str, list[Evidence]] = {}
    for one in seen:
        by_part.setdefault(one.part.prefix, []).append(one)
    for prefix, own in sorted(by_part.items()):
        found, table, problem, notes = (_audit_dn if own[0].part.kind == "sentinel2" else _audit_units)(own, settings)
        made.found[prefix] = found
        made.table.extend({"modality": prefix, **row} for row in table)
        made.notes.extend(f"{prefix}: {note}" if prefix else note for note in notes)
        problems += [f"{prefix}: {problem}" if prefix else problem] if problem else []
    return dataclasses.replace(made, problem=problems[0] if problems else None)


_Found = tuple[dict[str, Any], list[dict[str, Any]], str | None, list[str]]


def _audit_dn(seen: Sequence[Evidence], settings: RadiometryConfig) -> _Found:
    groups: dict[int | None, list[Evidence]] = {}
    for one in seen:
        groups.setdefault(one.declared, []).append(one)
    ordered = sorted(groups.items(), key=lambda item: str(item[0]))
    table = [_row(declared, own) for declared, own in ordered]
    blinding = [one for one in seen if one.bright > BRIGHT]
    if len(blinding) > TOO_BRIGHT * len(seen):
        numbers = f"{settings.scale * float(np.median([one.bright for one in blinding])):.0f}"
        problem = (
            f"{len(blinding)} of {len(seen)} tiles ({_shards(blinding)}) would have a median reflectance above "
            f"{BRIGHT:g} (numbers of about {numbers}): they are no DN of 1/{settings.scale:g}; give "
            "archive.radiometry.scale=N, the number that stands for a reflectance of 1 (65535 in exports to 16 bits)"
        )
        return {"offset": None, "suspect": {}}, table, problem, []
    if not any(np.isfinite(one.dark) for one in seen):
        return {"offset": 0, "suspect": {}}, table, None, ["its numbers are reflectance already"]
    suspect: dict[str, int] = {}
    lines: list[str] = []
    undeclared = None
    for declared, own in ordered:
        says = _says(own)
        low, shelf = sum(one.low for one in own), sum(one.on_shelf for one in own)
        mostly = 0 if low >= shelf else -1000
        if declared is None:
            undeclared, wrong = mostly if says else None, len(says) > 1
        else:
            wrong = -1000 in says if declared == 0 else low > STRAY * len(own)
        if wrong:
            suspect[str(declared)] = mostly
            lines.append(_contradiction(declared, own))
    notes = [f"{line}; {_DONE[settings.conflict]}" for line in lines]
    if isinstance(settings.offset, int):
        offset: int | None = settings.offset
        return {"offset": offset, "suspect": {}}, table, None, [f"{line}; offset {offset} as told" for line in lines]
    states = set(groups) - {None}
    offset = undeclared if None in groups else states.pop() if len(states) == 1 else None
    found: dict[str, Any] = {"offset": offset, "suspect": suspect if settings.conflict == "fix" else {}}
    if len(groups) > 1:
        found["mixed"] = True  # what is declared of a sample decides, not the archive's offset
    if lines and settings.conflict == "refuse":
        mend = "give archive.radiometry.offset=0 or -1000 for all, or archive.radiometry.conflict=fix to decide by tile"
        return found, table, f"{lines[0]}; {mend}", []
    if None in groups and offset is None:
        problem = (
            f"nothing says whether the DN of {len(groups[None])} tiles ({_shards(groups[None])}) have the offset of "
            "processing baseline 04.00: give archive.radiometry.offset=0 or -1000"
        )
        return found, table, problem, []
    if None in groups and not lines:
        notes.append(f"no baseline is declared; by {len(groups[None])} tiles the offset is {offset}")
    return found, table, None, notes


_DONE = {"refuse": "refused", "fix": "decided tile by tile", "ignore": "ignored"}


def _says(own: Sequence[Evidence]) -> set[int]:
    """Which offsets a group's pixels show: none, one, or both."""
    low, shelf = sum(one.low for one in own), sum(one.on_shelf for one in own)
    valley = sum(LOW <= one.dark < SHELF[0] for one in own)
    beyond = sum(SHELF[1] <= one.dark < 2 * SHELF[1] - SHELF[0] for one in own)
    alone = shelf > EMPTIER[0] * valley and shelf > EMPTIER[1] * beyond
    shifted = alone and shelf >= max(ENOUGH[0], ENOUGH[1] * len(own))
    plain = low > (STRAY * len(own) if shifted else 0)
    return {offset for offset, shown in ((0, plain), (-1000, shifted)) if shown}


def _contradiction(declared: int | None, own: Sequence[Evidence]) -> str:
    low, shelf = [one for one in own if one.low], [one for one in own if one.on_shelf]
    if declared == 0:
        return (
            f"{len(shelf)} of {len(own)} tiles declared without the offset of -1000 have it by their pixels "
            f"(dark ground at DN {SHELF[0]} to {SHELF[1]}, hardly any from {LOW} to there): {_shards(shelf)}"
        )
    if declared is not None:
        return f"{len(low)} of {len(own)} tiles declared with the offset {declared} have DN below {LOW}: {_shards(low)}"
    return (
        f"tiles with and without the offset of -1000 are mixed and nothing is declared: {len(low)} of {len(own)} tiles "
        f"have DN below {LOW} ({_shards(low)}), {len(shelf)} have dark ground at DN {SHELF[0]} to {SHELF[1]} "
        f"({_shards(shelf)})"
    )


def _shards(seen: Sequence[Evidence]) -> str:
    names = sorted({one.shard for one in seen})
    more = f" and {len(names) - NAMED} more shards" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _row(declared: int | None, own: Sequence[Evidence]) -> dict[str, Any]:
    dark = np.array([one.dark for one in own])
    finite = dark[np.isfinite(dark)]
    low, middle = np.percentile(finite, [5, 50]) if finite.size else (None, None)
    return {
        "declared_offset": declared,
        "tiles": len(own),
        "dark_p5": None if low is None else round(float(low), 1),
        "dark_p50": None if middle is None else round(float(middle), 1),
        f"below_{LOW}": sum(one.low for one in own),
        f"{LOW}_to_{SHELF[0]}": sum(LOW <= one.dark < SHELF[0] for one in own),
        f"{SHELF[0]}_to_{SHELF[1]}": sum(one.on_shelf for one in own),
        "median_brightest": round(float(np.median([one.bright for one in own])), 4),
        "shards": _shards(own),
    }


def _audit_units(seen: Sequence[Evidence], settings: RadiometryConfig) -> _Found:
    told = Counter(one.units for one in seen)
    table = [
        {"units": units, "tiles": count, "shards": _shards([one for one in seen if one.units == units])}
        for units, count in sorted(told.items(), key=lambda item: str(item[0]))
    ]
    if settings.units != "auto":
        return {"units": settings.units, "suspect": {}}, table, None, []
    known = sorted((item for item in told.items() if item[0]), key=lambda item: (-item[1], str(item[0])))
    if not known:
        problem = (
            f"the units of {len(seen)} tiles ({_shards(seen)}) cannot be told from their numbers: give "
            f"archive.radiometry.units, one of {', '.join(UNITS)}"
        )
        return {"units": None, "suspect": {}}, table, problem, []
    units = known[0][0]
    found: dict[str, Any] = {"units": units, "suspect": {}}
    notes = [f"its units are taken as {units}, by {known[0][1]} of {len(seen)} tiles"]
    if len(known) > 1:
        each = "; ".join(
            f"{count} tiles {name} ({_shards([one for one in seen if one.units == name])})" for name, count in known
        )
        line = f"several units are mixed: {each}"
        if settings.conflict == "refuse":
            mend = "give archive.radiometry.units for all, or archive.radiometry.conflict=fix to decide by tile"
            return found, table, f"{line}; {mend}", []
        notes = [f"{line}; {_DONE[settings.conflict]}"]
    return found, table, None, notes


def contradiction(seen: Sequence[Evidence], settings: RadiometryConfig) -> str | None:
    """How tiles that nothing is declared of contradict what was found of the archive they belong to."""
    by_part: dict[str, list[Evidence]] = {}
    for one in seen:
        if one.declared is None:
            by_part.setdefault(one.part.prefix, []).append(one)
    for prefix, own in sorted(by_part.items()):
        found = (settings.found or {}).get(prefix, {})
        if "None" in found.get("suspect", {}) or settings.conflict == "ignore":
            continue
        units = {one.units for one in own} - {None}
        told = settings.units == "auto" and settings.conflict != "fix"
        if own[0].part.kind == "sentinel1" and told and units - {found.get("units")}:
            return f"its numbers are {', '.join(sorted(map(str, units)))}, the archive's {found.get('units')}"
        says = _says(own)  # of a bank a class of bright soil is a heap too: one state it must not have at all
        if own[0].part.kind == "sentinel2" and settings.offset == "auto" and says and found.get("offset") not in says:
            return f"its DN have the offset {says.pop()} by their dark pixels, the archive's {found.get('offset')}"
    return None
