"""``curate plan [--pilot N] [--distill]``: shards, bytes, expected time and cost, before spending them."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from curation.archive.listing import list_archive
from curation.archive.tables import open_filter, open_tables
from curation.catalog.plan import plan
from curation.cli import execute, leave
from curation.config import load_config
from curation.errors import RequestError


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Plan; only a pilot starts Ray and writes to the workspace."""
    rest, pilot = [argument for argument in arguments if argument != "--distill"], 0
    if "--pilot" in rest:
        position = rest.index("--pilot")
        number = rest[position + 1] if position + 1 < len(rest) else ""
        if not number.isdigit() or int(number) < 1:
            raise RequestError("--pilot takes the number of shards to encode first: --pilot 2")
        pilot = int(number)
        del rest[position : position + 2]
    config = load_config(rest)
    config.require("archive.url")
    roots = list_archive(config.archive.url, config.runtime.storage, config.archive)
    tables = open_tables(config.archive.tables, config.runtime.storage)
    result = plan(config, roots, pilot, open_filter(tables, config.archive.filter))
    if "--distill" in arguments:
        from curation.distillation.plan import plan_distillation  # torch and diffusers

        result["distill"] = plan_distillation(config, roots, tables, result)
    logging.getLogger("curation").info(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    leave(execute(run))
