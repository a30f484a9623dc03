"""Draws a manifest from a catalog and its clusters: Ray tasks over parts and cluster ranges.

Each stage adds a layer of columns to every part and gives the driver counts.
What a stage decides rests on sample ids, the seed and counts over everything,
so that it does not depend on how rows are spread or in which order tasks end.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from curation.archive.tables import Table
from curation.catalog.store import CatalogStore
from curation.manifests.again import Again
from curation.manifests.draw import draw, grow
from curation.manifests.drops import drop_samples
from curation.manifests.finish import finish
from curation.manifests.opening import load, open_draft, settle_names
from curation.manifests.schema import Manifest
from curation.selection.settings import SelectConfig
from curation.storage import Folder


def select(
    store: CatalogStore,
    clusters: Folder,
    settings: SelectConfig,
    seed: int,
    workspace: Folder,
    header: dict[str, Any],
    tables: Sequence[Table] = (),
    scores: Folder | None = None,
    label: str = "label",
    sources: pa.Table | None = None,
    parent: Again | None = None,
) -> Manifest:
    """Decide over every sample, and publish the manifest under its id; `manifests.latest` puts it in force.

    Args:
        store: the complete catalog.
        clusters: ``clusters/<id>``.
        settings: what to keep.
        seed: of the draws.
        workspace: where ``manifests/<id>`` goes.
        header: what the job knows of ``content`` and ``provenance``; counts, hashes and more warnings are added.
        tables: beside the archive.
        scores: ``scores/<id>``, where the strategy goes by a score.
        label: the column of the catalog or a table that has the classes, where it goes by them.
        sources: the archive's ledger, to lie beside the manifest.
        parent: what it goes on from.

    Raises:
        RequestError: the archive cannot give what is asked for.
    """
    draft = open_draft(store, clusters, settings, seed, workspace, tables, scores, label, sources, parent)
    draft.warnings += header["content"].get("warnings", [])
    load(draft)
    if settings.by:
        settle_names(draft, "group")
    if draft.plan.strategy.labelled:
        settle_names(draft, "label")
    if settings.unit:
        draft.settle_units()
    splits = "select.splits, " if draft.plan.splits else ""
    known = ", and what has a label or score," if draft.unscored else ""
    draft.check(f"{splits}select.exclude and select.clusters{known} leave")
    drop_samples(draft, header["content"].get("bands", []))
    draw(draft)
    if parent is not None and parent.grow:
        grow(draft)
    return finish(draft, header)
