"""``curate rollback workspace=W [--to ID]``: put the parent of the manifest in force, or another one, in force.

``curate rollback MANIFEST`` puts that one in force; with the URL of a pointer (``…/latest-<name>.json``), the parent of
what it names.
"""

from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave, split_arguments, take_option
from curation.config import load_config
from curation.errors import RequestError
from curation.manifests.latest import POINTER, open_published
from curation.manifests.reading import ManifestReader
from curation.manifests.rollback import rollback
from curation.runs import record_in


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Move a pointer back, or forward again."""
    rest = list(arguments)
    to = take_option(rest, "--to", "the id of a manifest")
    places, overrides = split_arguments(rest, 1)
    named = places[0] if places else None
    config = load_config(overrides)
    name, url, storage = config.name, config.workspace, config.runtime.storage
    if named is not None:
        manifest = ManifestReader(named, storage)
        around, found, id = manifest.url.rpartition("/manifests/")
        if not found or url is not None:
            raise RequestError("rollback takes workspace=W, or a manifest that lies in its workspace")
        pointer = POINTER.fullmatch(named.rpartition("/")[2])
        url, name = around or "/", pointer[1] if pointer else name
        to = to if pointer else id
    if url is None:
        raise RequestError("rollback takes a workspace: curate rollback workspace=W [--to ID]")
    workspace = open_published(url, storage)
    record_in(workspace, config.runtime.log_json)
    return rollback(workspace, name, to)


if __name__ == "__main__":
    leave(execute(run))
