"""Growth of a selection: what was kept stays, and newcomers take what the draw leaves of each cluster's share.

The draw over everything says how many samples each cluster shall have. Of its places those of rows that were kept
already count as filled; the rest go to fresh rows, first to those that the draw keeps, by rank, then by priority.
"""

import numpy as np
from numpy.typing import NDArray

from curation.manifests.exchange import Columns, merge
from curation.manifests.order import row_priority
from curation.manifests.steps import Plan, running

AFTER = 2.0**33  # beyond every rank: newcomers come after all that were kept


def _stays(rows: Columns) -> NDArray[np.bool_]:
    return (rows["was"] >= 0) & running(rows)


def send_to_cluster(plan: Plan, rows: Columns) -> tuple[Columns, NDArray[np.integer]]:
    """Rows that the draw keeps, that were kept, or that are fresh, to the partition of their cluster."""
    drawn, fresh = rows["rank"] >= 0, rows["fresh"] & running(rows)
    columns = {
        "cluster": rows["cluster"],
        "drawn": np.where(drawn, rows["rank"], -1),
        "stays": np.where(_stays(rows), rows["was"], -1),
        "fresh": fresh,
        "priority": np.nan_to_num(row_priority(plan, rows)),
        **{name: rows[name] for name in ("upper", "lower")},
    }
    there = drawn | fresh | (columns["stays"] >= 0)
    return columns, np.where(there, plan.partition[rows["cluster"]], -1)


def grow(plan: Plan, number: int, rows: Columns) -> tuple[Columns, None]:
    """The score of every kept row for `order.order_all`: the parent's rank, newcomers after all of these; else NaN."""
    cluster, stays = rows["cluster"], rows["stays"] >= 0
    k = int(cluster.max(initial=-1)) + 1
    room = np.bincount(cluster[rows["drawn"] >= 0], minlength=k) - np.bincount(cluster[stays], minlength=k)
    candidates = np.flatnonzero(rows["fresh"] & ~stays)
    turn = np.where(rows["drawn"] >= 0, rows["drawn"], plan.budget + rows["priority"])[candidates]
    order = np.lexsort((rows["lower"][candidates], rows["upper"][candidates], turn, cluster[candidates]))
    candidates, turn = candidates[order], turn[order]
    own = cluster[candidates]
    first = np.searchsorted(own, own, side="left")
    taken = np.arange(len(own)) - first < room[own]
    score = np.where(stays, rows["stays"].astype(np.float64), np.nan)
    score[candidates[taken]] = AFTER + turn[taken]
    return {"grown": score}, None


def count(*layers: Columns) -> NDArray[np.int64]:
    """Rows that are kept: int64 (1,)."""
    return np.array([(~np.isnan(merge(layers)["grown"])).sum()])
