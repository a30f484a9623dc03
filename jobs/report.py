"""``curate report``: write the page of the newest manifest again, from the same config that made it."""

from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.errors import RequestError
from curation.manifests.latest import content_in_force, read_latest
from curation.manifests.schema import Manifest
from curation.stages import finish, open_run


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Find the manifest that is in force, and write its page."""
    with open_run(arguments) as job:
        name = read_latest(job.workspace, job.config.name).id
        if name is None:
            raise RequestError(f"no manifest in {job.workspace.public()}: run curate prune first")
        catalog = job.catalog(encode=False)
        folder = f"manifests/{name}"
        content = content_in_force(job.workspace, job.config.name, name)
        if content["catalog"] != catalog.store.catalog_id:
            raise RequestError(
                f"manifest {name}, which is in force, was made with another encoder or archive.* config: give the same"
            )
        counts = content["counts"]
        manifest = Manifest(
            folder=folder,
            url=job.workspace.public(f"{folder}/manifest.json"),
            samples=counts["samples"],
            kept=counts["kept"],
            dropped={},
        )
        clusters = job.workspace.child(f"clusters/{content['clusters']}")
        return finish(job, catalog, manifest, job.report(catalog, clusters, manifest))


if __name__ == "__main__":
    leave(execute(run))
