"""``curate status WORKSPACE [--all] [--files]``: its runs, what is under way and how far, its manifests and catalogs.

``--all`` shows old runs too, ``--files`` counts the catalogs' files; ``runtime.storage`` as anywhere.
"""

import logging
from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave
from curation.config import load_config
from curation.errors import RequestError
from curation.status import status, table
from curation.storage import Folder


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Look; nothing is written."""
    rest = [text for text in arguments if text not in ("--all", "--files")]
    if not rest or rest[0].startswith("-"):
        raise RequestError("status takes a workspace: curate status WORKSPACE [--all] [--files]")
    url, *overrides = rest
    workspace = Folder(url.removeprefix("workspace="), load_config(overrides).runtime.storage, "workspace")
    found = status(workspace, "--all" in arguments, "--files" in arguments)
    logging.getLogger("curation").info("%s", table(found))
    return found


if __name__ == "__main__":
    leave(execute(run))
