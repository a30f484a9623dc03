"""``curate leakage MANIFEST --against TABLE``: which kept samples a benchmark has too.

``select.place.overlap=SHARE`` lets only overlaps from that share on count.
"""

import logging
from collections.abc import Sequence
from typing import Any

from curation.cli import execute, leave, split_arguments, take_option
from curation.config import load_config
from curation.errors import CurationError, RequestError
from curation.manifests.leakage import find_leaks


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Compare, print the worst; the status is 1 where anything leaks."""
    rest = list(arguments)
    against = take_option(rest, "--against", "the benchmark's table")
    places, overrides = split_arguments(rest, 1)
    if not places or against is None:
        raise RequestError("leakage takes a manifest and a benchmark: curate leakage MANIFEST --against TABLE")
    manifest = places[0]
    config = load_config(overrides)
    place = config.select.place
    result = find_leaks(manifest, against, place.overlap or 0.0, place.days, config.runtime.storage)
    if not result["leaking"]:
        return result
    logging.getLogger("curation").info("%s\n", _table(result["worst"]))
    counts = {"overlap the benchmark": result["overlapping"], "are near-duplicates by embedding": result["alike"]}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count is not None)
    error = CurationError(f"{result['leaking']} of {result['kept']} kept samples leak ({told}): {result['table']}")
    error.result = result
    raise error


def _table(worst: list[dict[str, Any]]) -> str:
    lines = ["overlap  cosine  sample, and the benchmark's tile"]
    for row in worst:
        share, cosine = (f"{row[name]:7.3f}" if row[name] is not None else "      -" for name in ("overlap", "cosine"))
        lines.append(f"{share} {cosine}  {row['key']}, {row['overlaps'] or row['like']}")
    return "\n".join(lines)


if __name__ == "__main__":
    leave(execute(run))
