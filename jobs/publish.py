"""``curate publish MANIFEST [DEST]``: what may be shared with the world, without anything of where it lies.

``--license NAME`` (again for each) lets only samples of these licences out; ``--column NAME`` adds a column of the
catalog; ``--attribution TEXT`` says whom to name; ``--allow NAME`` lets the name of a host, bucket or user out.
"""

import logging
from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave, split_arguments
from curation.config import load_config
from curation.errors import RequestError
from curation.manifests.publication import publish

OPTIONS = ("--license", "--column", "--attribution", "--allow")


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Publish; samples without a licence are told."""
    rest = list(arguments)
    given: dict[str, list[str]] = {option: [] for option in OPTIONS}
    while option := next((text for text in rest if text.startswith("--")), None):
        at = rest.index(option)
        if option not in OPTIONS or at + 1 == len(rest):
            raise RequestError(f"{option}: publish takes {', '.join(OPTIONS)}, each with a value")
        given[option].append(rest.pop(at + 1))
        del rest[at]
    places, overrides = split_arguments(rest, 2)
    if not places:
        raise RequestError("publish takes a manifest, and perhaps a folder to write: curate publish MANIFEST [DEST]")
    config = load_config(overrides)
    result = publish(
        places[0],
        places[1] if len(places) > 1 else None,
        licenses=given["--license"],
        columns=given["--column"],
        attribution=" ".join(given["--attribution"]) or None,
        allow=given["--allow"],
        storage=config.runtime.storage,
    )
    if result["unlicensed"]:
        logging.getLogger("curation").warning(
            "publish: %d of %d samples state no licence; --license NAME publishes only those that do",
            *(result["unlicensed"], result["samples"]),
        )
    return result


if __name__ == "__main__":
    leave(execute(run))
