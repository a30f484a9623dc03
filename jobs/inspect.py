"""``curate inspect URL [config=FILE]``: what lies there, and a config to begin with."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation.archive.inspection import as_yaml, inspect_archive
from curation.archive.listing import root_names
from curation.cli import execute, leave
from curation.config import load_config
from curation.errors import RequestError, require

log = logging.getLogger("curation")


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Read a few shards; write ``archive.yaml``, or the file that ``config`` names, unless there is one."""
    target = Path(next((text.partition("=")[2] for text in arguments if text.startswith("config=")), "archive.yaml"))
    urls = [text for text in arguments if "=" not in text or text.startswith("archive.url=")]
    if len(urls) != 1:
        raise RequestError("inspect takes one URL: curate inspect URL [config=FILE]")
    if target.exists():
        raise RequestError(f"{target} is there already: name another file, config=FILE, or remove it")
    require(os.access(target.parent, os.W_OK), f"cannot write {target}: {target.parent} is no folder to write to")
    other = [text for text in arguments if "=" in text and not text.startswith(("archive.url=", "config=", "runtime."))]
    require(not other, f"{other and other[0]}: inspect finds archive.* out; it takes config=FILE and runtime.* keys")
    named = root_names(urls[0].removeprefix("archive.url="))
    require(named == ["root0"], f"inspect looks at one root at a time, not at {', '.join(named)}: give its URL alone")
    rest = [text for text in arguments if text not in urls and not text.startswith("config=")]
    found = inspect_archive(urls[0].removeprefix("archive.url="), load_config(rest).runtime.storage)
    target.write_text(as_yaml(found))
    for line in [*found.notes, *(f"? {question}" for question in found.questions)]:
        log.info("%s", line)
    log.info("\n%s: correct it, then: curate prune config=%s workspace=URL", target, target)
    return {"config": str(target), "archive": found.config, "questions": found.questions, **found.facts}


if __name__ == "__main__":
    leave(execute(run))
