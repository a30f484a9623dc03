"""The page of a night: what was taken in, what drift it shows, and what the new manifest has that the last had not."""

from collections.abc import Mapping
from typing import Any

from jinja2 import PackageLoader

from curation.manifests.schema import DROPPED, KEPT, Manifest
from curation.report.page import pages
from curation.report.words import flat
from curation.storage import Folder


def write_page(workspace: Folder, manifest: Manifest, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Write it.

    Args:
        workspace: the page goes to ``reports/<id>/index.html`` below it.
        manifest: the new one.
        before: content of the parent's header.
        now: content of its own.

    Returns:
        The page's URL.
    """
    name = manifest.folder.rpartition("/")[2]
    told = now["selection"]["recurate"]
    reasons = [
        (reason, before["counts"]["reasons"].get(reason, 0), now["counts"]["reasons"].get(reason, 0))
        for reason in (*KEPT, *DROPPED)
    ]
    counts = [(key, before["counts"].get(key, 0), now["counts"].get(key, 0)) for key in ("samples", "kept", "dropped")]
    page = pages(PackageLoader("curation.report", "")).get_template("recurate.html")
    text = page.render(
        name=name,
        parent=now["parent"],
        told=told,
        drift=told["drift"],
        counts=counts,
        reasons=[row for row in reasons if row[1] or row[2]],
        warnings=now["warnings"],
        lineage=dict(flat({key: now[key] for key in now if key not in ("config", "counts", "warnings", "selection")})),
    )
    path = f"reports/{name}/index.html"
    workspace.publish(path, (text + "\n").encode("utf-8", "replace"))
    return workspace.public(path)
