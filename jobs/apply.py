"""``curate apply PUBLISHED archive.url=COPY workspace=URL``: a published manifest over another copy of the same data.

The copy is read by the published ``archive`` config; ``archive.*`` keys on the command line go over it.
"""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from curation.archive.listing import list_archive
from curation.cli import execute, leave, split_arguments
from curation.config import load_config, to_dict
from curation.errors import RequestError
from curation.manifests.apply import Copy, apply
from curation.manifests.publication import open_publication
from curation.manifests.reading import archive_settings
from curation.runs import record_in
from curation.runtime import ray_for_a_job, start_ray
from curation.storage import Folder


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Apply; what is missing is told, listed, and no error unless it is everything."""
    places, overrides = split_arguments(arguments, 1)
    if not places:
        raise RequestError("apply takes a publication: curate apply PUBLISHED archive.url=COPY workspace=URL")
    config = load_config(overrides)
    config.require("archive.url", "workspace")
    assert config.workspace
    storage = config.runtime.storage
    workspace = Folder(config.workspace, storage, "workspace")
    publication = open_publication(places[0], storage)
    workspace.check_writable()
    record_in(workspace, config.runtime.log_json)
    settled: dict[str, Any] = publication.content["made"]["config"].get("archive", {})
    told: dict[str, Any] = {}
    given = [text.partition("=")[0] for text in overrides]
    if "config" in given:
        raise RequestError("apply takes its config from the publication: give archive.* keys on the command line")
    for key in given:
        group, _, name = key.partition(".")
        if group == "archive" and name != "url":
            first = name.partition(".")[0]
            merged = OmegaConf.create({**settled, **told})
            OmegaConf.update(merged, name, OmegaConf.select(OmegaConf.create(to_dict(config.archive)), name))
            told[first] = OmegaConf.to_container(merged)[first]  # type: ignore[index,call-overload]
    settings = archive_settings({**settled, **told})
    roots = list_archive(config.archive.url, storage, settings)
    with ray_for_a_job():
        start_ray(config.runtime)
        return apply(publication, Copy(roots, settings, told), workspace)


if __name__ == "__main__":
    leave(execute(run))
