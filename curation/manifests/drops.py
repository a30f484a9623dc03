"""The stages that drop samples before the draw: no clear view, little information, the same place, near-duplicates."""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.errors import RequestError
from curation.manifests import steps
from curation.manifests.draft import Draft
from curation.manifests.duplicates import find_alike, find_duplicates
from curation.manifests.places import Found, find_places, unite
from curation.manifests.schema import SKETCHES
from curation.selection.places import CROWD, Rule

OPTICAL = re.compile("red|green|blue|nir|B[0-9]{1,2}A?")  # what bands are called that clouds hide the ground in


def drop_samples(draft: Draft, bands: Sequence[str]) -> None:
    """Apply the stages that the settings ask for.

    Args:
        draft: whose rows are read.
        bands: of the archive.

    Raises:
        RequestError: a stage has nothing to go by, or leaves less than the budget.
    """
    settings = draft.settings
    if settings.min_valid is not None or settings.max_cloud is not None:
        _drop_unclear(draft, bands)
        draft.check("the validity and cloud stage (select.min_valid, select.max_cloud) leaves")
    if settings.entropy.keep is not None:
        _cut_entropy(draft, settings.entropy.keep)
        draft.check("the entropy stage leaves")
    if settings.place.overlap is not None:
        _drop_places(draft, settings.place.overlap)
        if settings.grouped:
            draft.settle_units()
        draft.check("the place stage leaves")
    if settings.duplicates:
        _drop_duplicates(draft)
        if settings.grouped:
            draft.settle_units()
        draft.check("the near-duplicate stage leaves")


def _drop_unclear(draft: Draft, bands: Sequence[str]) -> None:
    """Drop what has too few valid or too many cloudy pixels; ``bands``: of the archive."""
    draft.add(steps.drop_unclear)
    if draft.settings.unit:
        draft.settle_units()
    optical = any("reflectance" in survey.states for survey in draft.surveys)
    optical = optical or any(OPTICAL.fullmatch(band.rpartition(".")[2]) for band in bands)
    clouded = sum(survey.clouded for survey in draft.surveys)
    if draft.settings.max_cloud is not None and optical and not clouded:
        draft.warn(
            "the data are optical, but nothing tells which samples are cloudy: "
            f"select.max_cloud={draft.settings.max_cloud:g} has dropped none"
        )


def _cut_entropy(draft: Draft, keep: float) -> None:
    """Keep the top share of what is left, by one exact threshold; of fresh rows those above the parent's."""
    if draft.again is not None:
        least = draft.again.content["selection"]["least_entropy"]
        draft.add(steps.cut_below, least)
        draft.tell_least_entropy(least)
        return
    draft.tell_least_entropy(-draft.cut("entropy", -1, int(keep * draft.left + 0.5), "entropy"))


def _drop_places(draft: Draft, overlap: float) -> None:
    """Keep the best of the tiles of one place: of neighbouring days, then of all dates as configured.

    Raises:
        RequestError: no sample has a footprint.
    """
    settings = draft.settings.place
    fallen, found = find_places(draft.parts, draft.shards, draft.shared, Rule(overlap, settings.days))
    _warn_of_footprints(draft, found)
    draft.mark(fallen, "place")
    draft.told["place"] = {"copies": found.fallen}
    if settings.keep is None:
        return
    best = settings.keep if isinstance(settings.keep, int) else 1
    rule = Rule(overlap, season=settings.keep == "season", best=best)
    fallen, found = find_places(draft.parts, draft.shards, draft.shared, rule)
    if settings.keep == "unit":
        draft.add(unite, fallen)
        draft.told["place"]["units"] = found.rows - found.fallen
    else:
        draft.mark(fallen, "place")
        draft.told["place"]["dates"] = found.fallen


def _warn_of_footprints(draft: Draft, found: Found) -> None:
    if not found.tiles:
        raise RequestError(
            f"select.place.overlap needs footprints, but none of {found.rows} samples has one: "
            "add them to the sidecars (docs/formats.md), or take select.place.overlap=null"
        )
    if lacking := found.rows - found.tiles:
        draft.warn(f"select.place: {lacking} of {found.rows} samples have no footprint and are of no place")
    if 2 * found.crowded > found.rows:
        draft.warn(
            f"select.place: {found.crowded} of {found.rows} samples have exactly the footprint of more than "
            f"{CROWD} others: where it is a whole scene's, different tiles fall as one place, and "
            "select.place.overlap=null is right"
        )


def _drop_duplicates(draft: Draft) -> None:
    """Keep one of each group of near-duplicates."""
    neighbours = _neighbours(draft.centroids)
    sizes, fresh = draft.sizes, None
    if draft.again is not None:
        files = [file.path.removeprefix("../") for file in draft.again.files(SKETCHES)]
        around = draft.again.parent.parent
        draft.parts, fresh = find_alike(draft.parts, draft.shards, draft.shared, neighbours, around, files)
        sizes = draft.total(steps.count_compared, len(sizes))
    groups, draft.told["duplicates"], draft.sketches = find_duplicates(
        draft.parts, draft.shards, draft.shared, sizes, neighbours, draft.folder, fresh
    )
    draft.mark(groups, "duplicate")


def _neighbours(centroids: pa.Table) -> NDArray[np.int32]:
    """(K, W) the nearest other clusters of each; itself, where few others are known."""
    listed = centroids["neighbours"].combine_chunks()
    lengths = pc.list_value_length(listed).to_numpy()
    width = int(lengths.max(initial=0))
    neighbours = np.repeat(np.arange(len(lengths), dtype=np.int32)[:, None], width, axis=1)
    neighbours[np.arange(width) < lengths[:, None]] = listed.flatten().to_numpy()
    return neighbours
