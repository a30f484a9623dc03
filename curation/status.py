"""``curate status``: the runs of a workspace, what is under way and how far, its manifests and catalogs (no Ray)."""

import json
import time
from calendar import timegm
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from curation.errors import RequestError
from curation.runs import RUNS, duration
from curation.storage import IN_FLIGHT, Folder

SHOWN = 20  # runs, besides those that are under way
LOOKED = 200  # newest records that are read
SILENT = 120.0  # seconds without a heartbeat after which nobody may be there: a slow store may take half a minute


def status(
    workspace: Folder, everything: bool = False, files: bool = False, now: float | None = None
) -> dict[str, Any]:
    """What the records, pointers and artefacts of a workspace tell.

    Args:
        workspace: its folder.
        everything: all runs, not the newest `SHOWN` and those under way of the newest `LOOKED`.
        files: count each catalog's files, which is a listing.
        now: seconds since the epoch; ``None``: by the clock.

    Returns:
        ``workspace``; ``runs``, newest first: the records with ``alive`` (a heartbeat came lately), ``silent`` (seconds
        since the last one) and without what belongs to runs that are over; ``recorded``, how many there are;
        ``under_way``; ``manifests``, one a pointer; ``catalogs``.

    Raises:
        RequestError: there is no such folder.
        AccessError: it could not be read.
    """
    now = time.time() if now is None else now
    if workspace.kind() != "directory":
        raise RequestError(
            f"there is no workspace {workspace.public()}: name the folder that runs were told to write to"
        )
    found = [file.path for file in workspace.list(RUNS, recursive=False) if file.path.endswith(".json")]
    found.sort(reverse=True)  # names begin with the time
    looked = found if everything else found[:LOOKED]
    told = [_judged(record, now) for record in _read_all(workspace, looked)]
    runs = [run for at, run in enumerate(told) if everything or at < SHOWN or run["alive"]]
    return {
        "workspace": workspace.public(),
        "runs": runs,
        "recorded": len(found),
        "under_way": sum(run["alive"] for run in told),
        "manifests": _manifests(workspace),
        "catalogs": _catalogs(workspace, files),
    }


def _read_all(workspace: Folder, paths: Iterable[str]) -> list[dict[str, Any]]:
    """Records, in the order of the paths; of one that is no JSON, its name."""

    def read(path: str) -> dict[str, Any] | None:
        name = path.rpartition("/")[2].removesuffix(".json")
        try:
            found = json.loads(workspace.read(path))
            return {**found, "run": name} if isinstance(found, dict) else {"run": name}
        except FileNotFoundError:  # removed since it was listed
            return None
        except ValueError:
            return {"run": name}

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return [record for record in pool.map(read, paths) if record is not None]


def _judged(record: dict[str, Any], now: float) -> dict[str, Any]:
    """A record, and whether its run is under way."""
    heartbeat = _seconds(record.get("heartbeat"))
    running = record.get("state") == "running" and heartbeat is not None
    silent = max(0.0, round(now - heartbeat, 1)) if running and heartbeat is not None else None
    return {"state": "unreadable", **record, "silent": silent, "alive": silent is not None and silent < SILENT}


def _seconds(stamp: Any) -> float | None:
    """A time of a record, since the epoch."""
    try:
        return float(timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))
    except (TypeError, ValueError):
        return None


def _manifests(workspace: Folder) -> list[dict[str, Any]]:
    """What each pointer ``manifests/latest*.json`` leads to; only its id where that cannot be read."""
    found = []
    for file in workspace.list("manifests", recursive=False):
        pointer = file.path.rpartition("/")[2]
        if not (pointer.startswith("latest") and pointer.endswith(".json")):
            continue
        row: dict[str, Any] = {"name": pointer.removesuffix(".json").removeprefix("latest").removeprefix("-") or None}
        try:
            row["id"] = json.loads(workspace.read(file.path))["id"]
            header = json.loads(workspace.read(f"manifests/{row['id']}/manifest.json"))
            content, counts = header["content"], header["content"]["counts"]
            row |= {"samples": counts["samples"], "kept": counts["kept"], "parent": content.get("parent")}
            row["begun"] = header["provenance"].get("begun")
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            row["broken"] = True
        found.append(row)
    return sorted(found, key=lambda row: row["name"] or "")


def _catalogs(workspace: Folder, files: bool) -> list[dict[str, Any]]:
    """Catalogs by the artefacts that they were encoded with."""
    names = sorted({file.path.split("/")[1] for file in workspace.list("encoders")})
    if not files:
        return [{"id": name} for name in names]
    return [{"id": name, "files": len(workspace.list(f"catalog/{name}"))} for name in names]


# for people


def table(found: dict[str, Any]) -> str:
    """What `status` gives, as lines."""
    shown, recorded = len(found["runs"]), found["recorded"]
    of = "" if shown == recorded else f" ({shown} of {recorded}; --all shows them all)"
    parts: dict[str, list[tuple[str, ...]]] = {
        f"runs{of}": [(run["run"], _state(run), _took(run), _about(run)) for run in found["runs"]],
        "manifests": [_pointer(row) for row in found["manifests"]],
        "catalogs": [(row["id"], f"{row['files']} files" if "files" in row else "") for row in found["catalogs"]],
    }
    return "\n".join(f"{title}\n{_columns(rows)}" for title, rows in parts.items())


def _columns(rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "  none"
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _state(run: dict[str, Any]) -> str:
    if run["state"] == "running":
        return "under way" if run["alive"] else f"no sign of life since {run.get('heartbeat')}"
    return f"{run['state']} ({run['exit_status']})" if run.get("exit_status") else str(run["state"])


def _took(run: dict[str, Any]) -> str:
    return duration(run["seconds"]) if isinstance(run.get("seconds"), int | float) else ""


def _about(run: dict[str, Any]) -> str:
    """How far it is, how it ended, or why it stopped."""
    told = []
    if run["state"] == "running":
        stage = run.get("stage") or {"name": "starting"}
        told.append(stage["name"])
        if stage.get("share") is not None:
            told.append(f"{stage['share']:.0%}")
        if stage.get("samples"):
            told.append(f"{stage['samples']:,} samples, {stage.get('rate') or 0:.0f}/s")
        if stage.get("left") is not None and run["alive"]:
            told.append(f"{duration(stage['left'])} left")
    elif run.get("error"):
        message = run["error"]["message"]
        told.append(f"{run['error']['class']}: {message if len(message) < 100 else message[:99] + '…'}")
    else:
        result = run.get("result") or {}
        told += [f"{result[name]:,} {name}" for name in ("samples", "kept") if isinstance(result.get(name), int)]
    if run.get("quarantined"):
        told.append(f"{run['quarantined']:,} quarantined")
    if run.get("warned"):
        told.append(f"{run['warned']:,} warning{'s' if run['warned'] > 1 else ''}")
    return ", ".join(told)


def _pointer(row: dict[str, Any]) -> tuple[str, ...]:
    name, made = row["name"] or "latest", row.get("id", "")
    if row.get("broken"):
        return name, made, "cannot be read: curate verify it, or curate rollback", ""
    parent = f"parent {row['parent']}" if row["parent"] else ""
    return name, made, f"{row['kept']:,} of {row['samples']:,} kept, {row['begun']}", parent
