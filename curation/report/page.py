"""Renders the page: one HTML file that needs nothing else, no script in it, every text escaped.

Figures come from ``data.gather``; what is computed here is shares, bar
lengths and words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from curation.catalog.calibration import GAIN, SHIFT
from curation.catalog.store import CatalogStore
from curation.clustering.references import WARN_BEYOND
from curation.manifests.finish import LOSS
from curation.manifests.schema import DROPPED, KEPT, REASONS
from curation.report import data
from curation.report.data import BINS, BITS, REASON, Figures, Ints, Tile
from curation.report.gallery import Gallery
from curation.report.ground import ground_map, incidence_share
from curation.report.words import count, duration, flat, interval, number, p_value, percent, short, size
from curation.storage import Folder

ROWS = 30  # of a before-and-after table
CLUSTER_ROWS = 300  # of the table of all clusters
SCENES = 8  # that have a colour on the map

WHY = {
    "quarantined": "could not be read or decoded; see Quarantine",
    "excluded": "named by select.exclude",
    "cluster_excluded": "in a cluster of select.clusters.exclude",
    "split": "in a block of another split (select.splits)",
    "split_edge": "across blocks of different splits",
    "unscored": "without the label or score that the strategy needs",
    "invalid": "too few valid pixels: below select.min_valid",
    "cloud": "too cloudy: above select.max_cloud",
    "entropy": "too little information: below the entropy threshold",
    "place": "a better tile of its place stays",
    "duplicate": "a better near-duplicate stands for it",
    "hard": "among the hardest by select.score: the share select.ccs.beta",
    "quota": "not drawn: its quota, or the budget, was filled by others",
}
TELLING = {
    "largest": ("The largest clusters", "Where most of the archive lies."),
    "cut": ("Cut hardest", "The smallest share kept, among clusters of a fair size."),
    "spared": ("Kept most fully", "The largest share kept, among clusters of a fair size."),
}


def write_report(
    store: CatalogStore,
    shards: Sequence[str],
    clusters: Folder,
    manifest: Folder,
    workspace: Folder,
    reads: Mapping[str, Any] | None,
) -> str:
    """Write the page of a manifest.

    Args:
        store: the catalog.
        shards: names of the archive's shards.
        clusters: ``clusters/<id>``.
        manifest: ``manifests/<id>``.
        workspace: the page goes to ``reports/<id>/index.html`` below it.
        reads: what ``manifests.access.plan_reads`` says of the kept samples.

    Returns:
        The page's URL.

    Raises:
        CurationError: the manifest was not made from this catalog.
    """
    name = manifest.base.rpartition("/")[2]
    figures = data.gather(store, shards, clusters, manifest)
    path = f"reports/{name}/index.html"
    workspace.publish(path, render(name, figures, reads).encode("utf-8", "replace"))
    return workspace.public(path)


def pages(loader: BaseLoader) -> Environment:
    """What renders pages: every text escaped, nothing undefined, figures in words."""
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(n=count, pct=percent, num=number, size=size, time=duration, short=short, p=p_value)
    environment.globals.update(interval=interval)
    return environment


def render(name: str, figures: Figures, reads: Mapping[str, Any] | None) -> str:
    """The page as HTML."""
    environment = pages(PackageLoader("curation.report", ""))
    template = environment.get_template("template.html")
    return template.render(_context(name, figures, reads)) + "\n"


def _context(name: str, figures: Figures, reads: Mapping[str, Any] | None) -> dict[str, Any]:
    content, provenance = figures.header["content"], figures.header["provenance"]
    reasons, read = figures.counts.reasons, figures.readings.read
    kept = sum(reasons[reason] for reason in KEPT)
    gallery = Gallery()
    labels, scenes = _labels(figures), _scenes(figures)
    balances = [balance for balance in (labels, scenes) if balance]
    groups = _balance("group", figures.counts.groups, None)
    return {
        "name": name,
        "read": read,
        "samples": figures.readings.samples,
        "kept": kept,
        "kept_reasons": {reason: reasons[reason] for reason in KEPT if reasons[reason]},
        "begun": provenance.get("begun"),
        "places": list(provenance.get("roots", {}).values()),
        "encoder": _encoder(content, provenance),
        "config": dict(flat(content["config"])),
        "lineage": dict(flat({key: content[key] for key in content if key not in ("config", "counts", "warnings")})),
        "fit": dict(flat(figures.fit)),
        "provenance": dict(flat(provenance)),
        "warnings": warnings(figures, balances),
        "stages": _stages(figures),
        "entropy": _entropy(figures, gallery),
        "balances": balances + ([groups] if groups else []),
        "by": ", ".join(content["config"]["select"].get("by", [])),
        "splits": content.get("selection", {}).get("splits", {}),
        "guided": content.get("selection", {}).get("guided"),
        "passed": {name: content.get("counts", {}).get(name, 0) for name in ("filtered", "empty")},
        "numbers": _numbers(figures),
        "copies": _copies(figures),
        "groups": _groups(figures, gallery),
        "mosaics": _mosaics(figures, gallery),
        "clusters": _clusters(figures, gallery),
        "map": _map(figures, labels, scenes),
        "ground": ground_map(figures.points),
        "incidence": incidence_share(figures.points),
        "quarantine": _quarantine(figures),
        "reads": reads,
        "omitted": gallery.omitted,
        "most": ROWS,
    }


# warnings


def warnings(figures: Figures, balances: Sequence["Balance"]) -> list[str]:
    """What a reader must know before believing the rest; ``balances``: of the labels, then of the scenes."""
    content, reasons = figures.header["content"], figures.counts.reasons
    said = [str(text) for text in content.get("warnings", [])]
    bad, read = sum(figures.readings.quarantined.values()), figures.readings.read
    allowed = content["config"]["archive"]["max_bad_fraction"]
    if bad > allowed * read:
        said.append(
            f"{count(bad)} of {count(read)} samples ({percent(bad / read)}) are quarantined, "
            f"more than the {percent(allowed)} that archive.max_bad_fraction allows."
        )
    if reasons["entropy"] and len(balances) == 2:
        said += _wiped(balances[-1])  # of the labels the header speaks
    for balance in balances:
        gone = [row.name for row in balance.rows if row.before and not row.after]
        if gone:
            said.append(f"Nothing is left of {balance.noun(len(gone))}: {_named(gone)}.")
    if (beyond := _beyond(figures) or 0) > WARN_BEYOND:
        said.append(
            f"{percent(beyond)} of the archive lie farther from every reference than 99 % of the bank's own samples "
            "do: the bank does not know this content. Add free clusters (cluster.free) or a wider bank."
        )
    duplicates = content.get("selection", {}).get("duplicates", {})
    if guessed := duplicates.get("by_embedding", 0):
        said.append(
            f"{count(guessed)} of {count(duplicates['found'])} near-duplicates were told by their embeddings alone: "
            "there were no pixels to confirm them."
        )
    if len(figures.readings.profiles) > 1:
        said.append(
            f"The embeddings come from {len(figures.readings.profiles)} kinds of machines: "
            "another run may differ in a few tiles."
        )
    return said


def _beyond(figures: Figures) -> float | None:
    """Share of the archive that lies beyond the bank's own 99th percentile of distance; None without a bank."""
    share: float | None = figures.fit.get("references", {}).get("beyond_share")
    return share


def _wiped(balance: "Balance") -> list[str]:
    lost = [(row.entropy / row.before, row) for row in balance.rows if row.entropy > LOSS * row.before]
    if not lost:
        return []
    names = _named([f"{row.name} ({percent(share)} of {count(row.before)})" for share, row in lost])
    return [f"The entropy stage removed more than {100 * LOSS:.0f} % of {balance.noun(len(lost))}: {names}."]


def _named(names: Sequence[str], most: int = 6) -> str:
    names = [short(name, 60) for name in names]
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


# stages


def _stages(figures: Figures) -> list[dict[str, Any]]:
    """The way from read to kept: what each stage took, and what was left after it."""
    reasons, read = figures.counts.reasons, figures.readings.read
    taken = {"quarantined": read - figures.readings.samples, **{reason: reasons[reason] for reason in DROPPED}}
    select = figures.header["content"]["config"]["select"]
    asked = {
        "quarantined": True,
        "place": select.get("place", {}).get("overlap") is not None,
        "duplicate": select["duplicates"],
        "quota": True,
    }
    left, stages = read, []
    for reason, removed in taken.items():
        if removed == 0 and not asked.get(reason):
            continue
        left -= removed
        stages.append(
            {
                "reason": reason,
                "why": WHY[reason],
                "removed": removed,
                "left": left,
                "left_share": left / max(read, 1),
                "removed_share": removed / max(read, 1),
            }
        )
    return stages


# entropy


def _entropy(figures: Figures, gallery: Gallery) -> dict[str, Any] | None:
    """The histogram in the range that is populated, its threshold, and tiles along it."""
    table = figures.counts.entropy
    total = table.sum(axis=1)
    if not total.any():
        return None
    filled = np.flatnonzero(total)
    per_bit = BINS / BITS
    first, last = int(filled[0] // per_bit * per_bit), int(-(-(filled[-1] + 1) // per_bit) * per_bit)
    shown = table[first:last]
    stacks = {
        "kept": shown[:, : len(KEPT)].sum(axis=1),
        "entropy": shown[:, REASON["entropy"]],
        "other": np.delete(shown, [*range(len(KEPT)), REASON["entropy"]], axis=1).sum(axis=1),
    }
    low, high = first / per_bit, last / per_bit
    threshold = figures.counts.threshold
    return {
        "bars": _stacked(stacks),
        "bins": last - first,
        "peak": int(total.max()),
        "ticks": [(bit, (bit - low) / (high - low)) for bit in range(round(low), round(high) + 1)],
        "threshold": threshold,
        "threshold_at": None if threshold is None else (threshold - low) / (high - low),
        "means": _means(figures),
        "speckle": _speckle(figures, low, high),
        "below": gallery(reversed(figures.tiles.get(("below", 0), [])), "entropy"),
        "above": gallery(figures.tiles.get(("above", 0), []), "entropy") if threshold is not None else [],
        "steps": gallery(
            (tile for slot in range(data.STEPS) for tile in figures.tiles.get(("step", slot), [])), "entropy"
        ),
        "totals": {kind: int(counts.sum()) for kind, counts in stacks.items()},
    }


def _speckle(figures: Figures, low: float, high: float) -> dict[str, Any] | None:
    """The entropy that speckle alone would have in radar's bands, and where it lies between ``low`` and ``high`` bits.

    It has no place where other bands count too.
    """
    content = figures.header["content"]
    told = content.get("speckle_entropy") or []
    bands = {name: bits for name, bits in zip(content.get("bands", []), told, strict=False) if bits is not None}
    if not bands:
        return None
    mean = float(np.mean(list(bands.values())))
    alone = len(bands) == len(told) and low <= mean <= high
    return {"mean": mean, "bands": bands, "at": (mean - low) / (high - low) if alone else None}


def _stacked(stacks: dict[str, Ints]) -> list[tuple[str, int, float, float]]:
    """Bars (kind, bin, top, height) of a stacked histogram, in percent of the highest stack, from the top down."""
    peak = max(int(np.sum(list(stacks.values()), axis=0).max()), 1)
    base = np.zeros(len(next(iter(stacks.values()))))
    bars = []
    for kind, counts in stacks.items():
        heights = 100 * counts / peak
        bars += [
            (kind, i, round(100 - float(base[i] + heights[i]), 2), round(float(heights[i]), 2))
            for i in np.flatnonzero(counts).tolist()
        ]
        base = base + heights
    return bars


def _means(figures: Figures) -> dict[str, float]:
    """Mean entropy before and after, from the histogram's bins."""
    middle = (np.arange(BINS) + 0.5) * BITS / BINS
    table = figures.counts.entropy
    before, after = table.sum(axis=1), table[:, : len(KEPT)].sum(axis=1)
    return {
        "before": float(middle @ before / max(before.sum(), 1)),
        "after": float(middle @ after / max(after.sum(), 1)),
    }


# what the numbers mean


def _numbers(figures: Figures) -> dict[str, Any] | None:
    """The state of the numbers, and what the fitted tiles told of it: rows of the same columns together."""
    state = figures.header["content"].get("radiometry") or "unknown"
    if state == "unknown" and not figures.audit:
        return None
    tables: dict[tuple[str, ...], list[list[Any]]] = {}
    for row in figures.audit:
        shown = {name: value for name, value in row.items() if value != "" or name != "modality"}
        tables.setdefault(tuple(shown), []).append(["–" if value is None else value for value in shown.values()])
    return {
        "state": state,
        "dtype": figures.header["content"].get("dtype"),
        "tables": tables,
        "words": ("modality", "units", "shards"),
    }


# balance of classes, scenes and groups


@dataclass(frozen=True)
class Row:
    """A class before and after."""

    name: str
    before: int
    after: int
    entropy: int  # dropped by the entropy stage
    before_share: float
    after_share: float


@dataclass(frozen=True)
class Balance:
    """Classes before and after, the largest first.

    ``effective`` is the number of equally large classes of the same Shannon
    entropy (exp H; Hill 1973), before and after.
    """

    kind: str  # "class", "scene" or "group"
    rows: list[Row]
    effective: tuple[float, float]
    unnamed: Row | None
    widest: float  # share

    def noun(self, n: int) -> str:
        """``1 class``, ``2 scenes``."""
        return f"{n} {self.kind if n == 1 else self.plural}"

    @property
    def plural(self) -> str:
        """``classes``, ``scenes`` or ``groups``."""
        return "classes" if self.kind == "class" else f"{self.kind}s"


def _labels(figures: Figures) -> Balance | None:
    named = {label: row for label, row in figures.counts.labels.items() if label is not None}
    if figures.counts.rare.any():
        named["(rarer classes, added up)"] = figures.counts.rare
    return _balance("class", named, figures.counts.labels.get(None))


def _scenes(figures: Figures) -> Balance | None:
    table = figures.counts.clusters
    scenes = figures.centroids["scene"].combine_chunks().dictionary_encode()
    names = scenes.dictionary.to_pylist()
    sums = np.zeros((len(names) + 1, len(REASONS)), np.int64)  # the last: of no scene
    np.add.at(sums, np.asarray(scenes.indices.fill_null(len(names))), table[:-1])
    return _balance("scene", dict(zip(names, sums, strict=False)), sums[-1] + table[-1])


def _balance(kind: str, named: Mapping[str, Ints], unnamed: Ints | None) -> Balance | None:
    if not named:
        return None
    everything = np.sum([*named.values()], axis=0)
    before, after = int(everything.sum()), int(everything[: len(KEPT)].sum())
    rows = [_row(name, table, before, after) for name, table in named.items()]
    rows.sort(key=lambda row: (-row.before, row.name))
    rest = None
    if unnamed is not None and unnamed.any():
        rest = _row("no scene of the bank" if kind == "scene" else "no label", unnamed, before, after)
    effective = (_effective([row.before for row in rows]), _effective([row.after for row in rows]))
    widest = max(max(row.before_share, row.after_share) for row in rows)
    return Balance(kind, rows, effective, rest, widest)


def _row(name: str, table: Ints, before: int, after: int) -> Row:
    n, kept = int(table.sum()), int(table[: len(KEPT)].sum())
    return Row(name, n, kept, int(table[REASON["entropy"]]), n / max(before, 1), kept / max(after, 1))


def _effective(counts: Sequence[int]) -> float:
    shares = np.array([n for n in counts if n], np.float64)
    shares /= max(shares.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


# duplicates and mosaics

CHANGED = {
    "turned": "mirrored or rotated",
    "encoded": "encoded again",
    "shifted": f"shifted by up to {100 * SHIFT:.0f}\u00a0% of a side",
    "relit": f"brighter or darker by up to {100 * GAIN:.0f}\u00a0%",
}
OTHERS = {"any": "any two tiles", "nearest": "a tile and the one most like it"}


def _copies(figures: Figures) -> dict[str, Any] | None:
    """How well copies are told on this archive, if they were looked for and it was measured."""
    measured = figures.calibration
    if measured is None or not figures.header["content"]["config"]["select"]["duplicates"]:
        return None
    changed = {**CHANGED, "encoded": f"encoded again ({measured['encoded_as']})"}
    return {
        "tiles": measured["tiles"],
        "placed": measured["placed"],
        "same_ground": measured["others"]["any"]["same_ground"],
        "found": [(changed[kind], row) for kind, row in measured["copies"].items()],
        "merged": [(OTHERS[kind], row) for kind, row in measured["others"].items() if row["of"]],
    }


def _groups(figures: Figures, gallery: Gallery) -> list[dict[str, Any]]:
    groups = []
    for group in figures.groups:
        head = gallery([group.representative]) if group.representative else []
        copies = gallery(group.copies)
        if head and copies:
            groups.append({"head": head[0], "copies": copies, "size": group.size, "more": group.size - len(copies)})
    return groups


def _mosaics(figures: Figures, gallery: Gallery) -> list[dict[str, Any]]:
    reasons = figures.counts.reasons
    found = []
    for reason in DROPPED:
        tiles = gallery(figures.tiles.get(("reason", REASON[reason]), []))
        if tiles:
            found.append({"reason": reason, "why": WHY[reason], "tiles": tiles, "count": reasons[reason]})
    return found


# clusters


def _clusters(figures: Figures, gallery: Gallery) -> dict[str, Any]:
    table = figures.counts.clusters[:-1]
    before, after = table.sum(axis=1), table[:, : len(KEPT)].sum(axis=1)
    order = np.lexsort((np.arange(len(before)), -before))
    filled = order[before[order] > 0]
    rows = filled[:CLUSTER_ROWS]
    return {
        "total": len(before),
        "filled": len(filled),
        "beyond": _beyond(figures),
        "covered": int((after > 0).sum()),
        "before": _profile(before[filled], before.max(initial=1)),
        "after": _profile(after[filled], after.max(initial=1)),
        "peaks": (int(before.max(initial=0)), int(after.max(initial=0))),
        "effective": (_effective(before.tolist()), _effective(after.tolist())),
        "rows": [_cluster_row(about, table[c]) for c, about in zip(rows, _about(figures, rows), strict=True)],
        "telling": [
            {
                "title": TELLING[why][0],
                "why": TELLING[why][1],
                "cards": [
                    _card(figures, about, table[about["cluster"]], gallery) for about in _about(figures, numbers)
                ],
            }
            for why, numbers in figures.telling.items()
            if numbers
        ],
    }


def _about(figures: Figures, clusters: Sequence[int] | Ints) -> list[dict[str, Any]]:
    """Rows of the centroids' table, which is in the order of the clusters' numbers."""
    rows: list[dict[str, Any]] = figures.centroids.take(pa.array(clusters, pa.int64())).to_pylist()
    return rows


def _profile(counts: Ints, peak: int) -> dict[str, Any]:
    """Sorted bars as one SVG path over (n, 100); more than 500 clusters are drawn as means of equal runs."""
    heights = np.array([run.mean() for run in np.array_split(counts, max(1, min(len(counts), 500))) if len(run)])
    gap = 0.15 if len(heights) <= 150 else 0
    path = "".join(
        f"M{i + gap:g} 100V{100 - 100 * h / peak:.4g}H{i + 1 - gap:g}V100Z" for i, h in enumerate(heights.tolist())
    )
    return {"path": path, "n": max(len(heights), 1)}


def _cluster_row(about: dict[str, Any], table: Ints) -> dict[str, Any]:
    before, after = int(table.sum()), int(table[: len(KEPT)].sum())
    return {
        "number": about["cluster"],
        "kind": about["kind"],
        "scene": about["scene"],
        "scene_share": about["scene_share"],
        "before": before,
        "after": after,
        "share": after / max(before, 1),
        "distance": about["distance_mean"],
        "dropped": {reason: int(table[REASON[reason]]) for reason in DROPPED if table[REASON[reason]]},
    }


def _card(figures: Figures, about: dict[str, Any], table: Ints, gallery: Gallery) -> dict[str, Any]:
    cluster = about["cluster"]
    tiles = {family: figures.tiles.get((family, cluster), []) for family in ("nearest", "farthest", "kept", "dropped")}
    near = {tile.sample_id for tile in tiles["nearest"]}
    tiles["farthest"] = [tile for tile in tiles["farthest"] if tile.sample_id not in near][: len(near)]
    rows = {family: gallery(sorted(chosen, key=_order(family))) for family, chosen in tiles.items()}
    parts = [(reason, int(table[REASON[reason]])) for reason in REASONS if table[REASON[reason]]]
    return {**_cluster_row(about, table), "tiles": rows, "parts": parts}


def _order(family: str) -> Any:
    """Nearest and farthest by their distance again, whatever their kind of preview."""
    sign = {"nearest": 1, "farthest": -1}.get(family, 0)
    return lambda tile: sign * (tile.distance or 0.0)


# the map


def _map(figures: Figures, labels: Balance | None, scenes: Balance | None) -> dict[str, Any] | None:
    if len(figures.points) < 3:
        return None
    x, y = _scaled(figures.places)
    named, kind = (scenes, "scene") if scenes else (labels, "class")
    clusters = sorted({tile.cluster for tile in figures.points if tile.cluster is not None})
    scene_of = {about["cluster"]: about["scene"] for about in _about(figures, clusters)}
    coloured = [row.name for row in named.rows[:SCENES]] if named else []
    points = []
    for i, tile in enumerate(figures.points):
        name = tile.label if kind == "class" else scene_of.get(tile.cluster)
        colour = coloured.index(name) if name in coloured else None
        points.append({"x": x[i], "y": y[i], "kept": tile.kept, "colour": colour, "title": _point(tile, name)})
    points.sort(key=lambda point: bool(point["kept"]))  # kept ones on top
    return {
        "points": points,
        "kind": kind,
        "names": coloured,
        "explained": figures.explained,
        "kept": sum(tile.kept for tile in figures.points),
    }


def _scaled(places: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Places on a canvas of 1000 by 600; the outermost half percent is drawn at its edge."""
    low, high = np.percentile(places, [0.25, 99.75], axis=0)
    unit = np.clip((places - low) / np.maximum(high - low, 1e-9), 0, 1)
    places = np.rint([20, 580] + unit * [960, -560]).astype(int)
    return places[:, 0].tolist(), places[:, 1].tolist()


def _point(tile: Tile, name: str | None) -> str:
    parts = [short(tile.key, 60), name and short(name, 40), "kept" if tile.kept else f"dropped: {tile.reason}"]
    return " · ".join(part for part in parts if part)


# the rest


def _quarantine(figures: Figures) -> list[dict[str, Any]]:
    rows = []
    for (stage, error), n in sorted(figures.readings.quarantined.items(), key=lambda item: (-item[1], item[0])):
        rows.append({"stage": stage, "error": error, "count": n, "examples": figures.readings.examples[stage, error]})
    return rows


def _encoder(content: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Its config, and what is known of its quality."""
    config = content["config"]["encoder"]
    note = provenance.get("encoder", {}).get("note")
    return {"name": config["name"], "note": note, "config": dict(flat(config))}
