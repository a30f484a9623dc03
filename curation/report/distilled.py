"""The page of a distilled set: what it is worth, how near it comes to real images, and the images beside real ones."""

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, PackageLoader
from numpy.typing import NDArray

from curation.distillation.drawn import Candidate, Drawn
from curation.distillation.leakage import Images
from curation.distillation.students import reach
from curation.distillation.write import Units, round_robin
from curation.report.page import pages
from curation.report.words import flat, percent
from curation.scoring.thumbnail import picture
from curation.storage import Folder

IMAGE_BYTES = 6_000_000  # of all images, as text
CLASSES = 100  # that are shown, and rows of a table of classes
TITLES = {"similarity": "Cosine of embeddings", "ssim": "SSIM"}
ARMS = {
    "distilled": "the distilled set",
    "prototypes": "its prototypes, real images",
    "random": "random real images, as many",
    "full": "all real images",
}

Pixels = NDArray[np.uint8]


def write_page(
    workspace: Folder,
    name: str,
    header: Mapping[str, Any],
    drawn: Sequence[Drawn],
    pixels: Callable[[Drawn], Pixels],
    images: Images,
    units: Units,
    leakage: Mapping[str, Any],
    students: Mapping[str, Any] | None,
) -> str:
    """Write it.

    Args:
        workspace: the page goes to ``reports/<name>/index.html`` below it.
        name: of the set's folder.
        header: of its manifest.
        drawn: what was drawn for every prototype.
        pixels: gives the image that was chosen for a prototype, uint8 (bands, s, s).
        images: the real ones that were learnt from.
        units: of the archive.
        leakage: what ``leakage.json`` says.
        students: what ``students.json`` says; ``None``: none were trained.

    Returns:
        The page's URL.
    """
    text = render(name, header, drawn, pixels, images, units, leakage, students)
    path = f"reports/{name}/index.html"
    workspace.publish(path, text.encode("utf-8", "replace"))
    return workspace.public(path)


def render(
    name: str,
    header: Mapping[str, Any],
    drawn: Sequence[Drawn],
    pixels: Callable[[Drawn], Pixels],
    images: Images,
    units: Units,
    leakage: Mapping[str, Any],
    students: Mapping[str, Any] | None,
) -> str:
    """The page as HTML; see :func:`write_page`."""
    content, provenance = header["content"], header["provenance"]
    environment = pages(ChoiceLoader([PackageLoader("curation.report", ""), PackageLoader("curation.evaluation", "")]))
    environment.filters.update(points=_points)
    shown, hidden = _shown(drawn, pixels, images, units)
    told = environment.get_template("distilled.html").render(
        name=name,
        counts=content["counts"],
        classes=len({one.number for one in drawn}),
        prototypes=len(drawn),
        redrawn=sum(candidate.number >= content["config"]["distill"]["candidates"] for candidate in _all(drawn)),
        begun=provenance.get("begun"),
        verdicts=verdicts(students, leakage),
        arms=_arms(students),
        students=students,
        titles=TITLES,
        charts={measure: _chart(one) for measure, one in leakage["measures"].items()},
        leakage=leakage,
        shown=shown,
        hidden=hidden,
        drops=_drops(drawn),
        most=CLASSES,
        warnings=content["warnings"],
        settings=dict(flat(content["config"])),
        lineage=dict(flat({key: content[key] for key in ("distilled", "bands", "dtype", "radiometry", "files")})),
        provenance=dict(flat(provenance)),
    )
    return told + "\n"


def _all(drawn: Iterable[Drawn]) -> Iterable[Candidate]:
    return (candidate for one in drawn for candidate in one.candidates)


# in words


def verdicts(students: Mapping[str, Any] | None, leakage: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    return [*_worth(students), *_nearness(leakage)]


def _worth(students: Mapping[str, Any] | None) -> list[str]:
    if students is None:
        return ["No student was trained, so that nothing tells what the set is worth for training."]
    arms, random = students["arms"], students["differences"]["distilled"]
    said = [
        f"Students trained on the distilled set reach {percent(arms['distilled']['mean'])} of held-out accuracy; "
        f"on as many random real images {percent(arms['random']['mean'])} "
        f"({_held(random)}){_rest(arms)}."
    ]
    over = students.get("over_prototypes")
    if over is None:
        return said
    both = f"{percent(arms['prototypes']['mean'])} against {percent(arms['distilled']['mean'])} ({_held(over)})"
    if over["verdict"] == "worse":
        said.append(
            f"Real prototypes beat the synthetic images: {both}. Where real images may be handed on, the prototypes "
            "themselves (prototypes.parquet) are the better set, and cost no diffusion."
        )
    elif over["verdict"] == "better":
        said.append(f"The synthetic images beat the real prototypes that they were made from: {both}.")
    else:
        said.append(
            f"The synthetic images and the real prototypes that they were made from could not be told apart: {both}; "
            f"{reach(students['seeds'], over)}. Where real images may be handed on, the prototypes "
            "(prototypes.parquet) cost no diffusion."
        )
    return said


def _rest(arms: Mapping[str, Any]) -> str:
    return f"; on all real images {percent(arms['full']['mean'])}" if "full" in arms else ""


def _held(one: Mapping[str, Any]) -> str:
    """A difference of the set to something else."""
    words = {"better": "the set is better", "worse": "the set is worse", "no difference": "no difference could be told"}
    return f"{words[one['verdict']]}: {_points(one['mean'])} points, {_points(one['low'])} to {_points(one['high'])}"


def _nearness(leakage: Mapping[str, Any]) -> list[str]:
    dropped, lost = leakage["dropped"], leakage["lost"]
    limited = leakage["measures"]["ssim"]["limit"] is not None
    said = "Images were not held against a limit of nearness to real ones (distill.leakage.quantile=null)."
    if limited:
        drops = f"{dropped or 'None'} of the images drawn {'was' if dropped < 2 else 'were'} dropped"
        left = f"; {lost} prototype{' is' if lost == 1 else 's are'} left without an image" if lost else ""
        said = f"{drops} for being too near a real one{left}."
    tells = [
        words
        for key, words in (
            ("training", "which real images were learnt from at all"),
            ("prototypes", "which of these were prototypes"),
        )
        if any(one["telling"] and one["auc"] > 0.5 for one in (leakage["membership"][key] or {}).values())
    ]
    if tells:
        return [f"{said} The images that are kept tell better than by chance {' and '.join(tells)}."]
    if not any(leakage["membership"].values()):
        return [f"{said} Nothing could be tested on whether the images tell what they were learnt from."]
    return [f"{said} A membership test could not tell from the images which real images were learnt from."]


def _points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share + 0:+.1f}".replace("-", "−")


# tables and charts


def _arms(students: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The best first."""
    if students is None:
        return []
    rows = [
        {"name": ARMS.get(name, name), **arm, "against": students["differences"].get(name)}
        for name, arm in students["arms"].items()
    ]
    return sorted(rows, key=lambda row: -row["mean"])


def _chart(measure: Mapping[str, Any]) -> dict[str, Any]:
    """Bars of two histograms side by side, each as shares of its own, in percent of the highest; and the limit."""
    kinds = {kind: np.array(measure[kind], float) / max(sum(measure[kind]), 1) for kind in ("real", "synthetic")}
    peak = max(float(np.max(list(kinds.values()))), 1e-9)
    low, high = measure["edges"][0], measure["edges"][-1]
    limit = measure["limit"]
    return {
        "bins": len(measure["edges"]) - 1,
        "peak": peak,
        "bars": {
            kind: [(i, round(100 * (1 - share / peak), 2), round(100 * share / peak, 2)) for i, share in enumerate(own)]
            for kind, own in kinds.items()
        },
        "ticks": [(low + share * (high - low), share) for share in (0, 0.25, 0.5, 0.75, 1)],
        "limit": limit,
        "at": None if limit is None else min(max((limit - low) / (high - low), 0.0), 1.0),
        "quantiles": {who: found for who, found in measure["quantiles"].items() if found},
    }


def _drops(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Classes of which an image was too near a real one, most of them first."""
    rows: dict[str, dict[str, Any]] = {}
    for one in sorted(drawn, key=lambda one: one.number):
        row = rows.setdefault(one.label, {"label": one.label, "drawn": 0, "leaks": 0, "kept": 0, "lost": 0})
        row["drawn"] += len(one.candidates)
        row["leaks"] += sum(candidate.leaks for candidate in one.candidates)
        row["kept" if one.chosen else "lost"] += 1
    return sorted((row for row in rows.values() if row["leaks"]), key=lambda row: -row["leaks"])


# images


def _shown(
    drawn: Sequence[Drawn], pixels: Callable[[Drawn], Pixels], images: Images, units: Units
) -> tuple[list[dict[str, Any]], int]:
    """Classes with their images, and how many images had no room: the first of each class come first."""
    order = round_robin(drawn)
    classes = sorted({one.number for one in order})[:CLASSES]
    wanted = {name for one in order for name in (one.sample_id, one.chosen and one.chosen.nearest) if name}
    places = np.flatnonzero(np.isin(images.ids, np.array(sorted(wanted), "S32")))
    place = {images.ids[at].decode(): int(at) for at in places}
    room, found = IMAGE_BYTES, defaultdict(list)
    for one in (one for one in order if one.number in classes):
        chosen = one.chosen
        assert chosen is not None
        trio = [
            _uri(pixels(one), units),
            *(_real(name, place, images, units) for name in (one.sample_id, chosen.nearest)),
        ]
        room -= sum(len(uri or "") for uri in trio)
        if room < 0:
            break
        found[one.number].append(
            {
                "image": trio[0],
                "prototype": trio[1],
                "nearest": trio[2],
                "key": one.name(chosen),
                "real": one.key,
                "own": chosen.nearest == one.sample_id,
                "again": sum(candidate.leaks for candidate in one.candidates),
                "candidate": chosen,
            }
        )
    labels = {one.number: one.label for one in order}
    every = [
        {"label": labels[n], "rows": found[n], "images": sum(one.number == n for one in order)}
        for n in classes
        if found[n]
    ]
    return every, len(order) - sum(map(len, found.values()))


def _real(name: str | None, place: Mapping[str, int], images: Images, units: Units) -> str | None:
    at = place.get(name or "")
    return None if at is None else _uri(images.read(at), units)


def _uri(tile: Pixels, units: Units) -> str:
    """A small PNG of a tile."""
    out = io.BytesIO()
    mask = np.ones(tile.shape[1:], bool)
    picture(units.restore(tile), mask, units.ranges, units.bands, units.radiometry).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
