"""Renders the pages of comparisons and choices: one HTML file each, no script in it, every text escaped.

Tables come first; a chart repeats what a table says. What is computed here is shares, places in charts, and words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import ChoiceLoader, PackageLoader

from curation.evaluation.arms import FULL
from curation.evaluation.verdicts import CHEAP, METRICS, RANDOM, figures_of, share
from curation.report.page import pages
from curation.report.words import flat, percent
from curation.storage import Folder

WIDTH, HEIGHT, LEFT, BOTTOM = 240, 150, 46, 20  # of a panel, of its left and lower edge


def write_comparison(workspace: Folder, told: Mapping[str, Any], table: pa.Table) -> str:
    """Write a comparison's page.

    Args:
        workspace: the page goes to ``reports/<id>/index.html`` below it.
        told: what ``comparison.json`` says.
        table: `compare.RESULTS`.

    Returns:
        The page's URL.
    """
    return _write(workspace, told["id"], "compare.html", _comparison(told, table))


def write_choice(workspace: Folder, told: Mapping[str, Any]) -> str:
    """Write a choice's page from what ``choice.json`` says; the page's URL."""
    return _write(workspace, told["id"], "choose.html", {**told, "settings": dict(flat(told["config"]))})


def _write(workspace: Folder, name: str, template: str, context: Mapping[str, Any]) -> str:
    loader = ChoiceLoader([PackageLoader("curation.evaluation", ""), PackageLoader("curation.report", "")])
    environment = pages(loader)
    environment.filters.update(points=_points, told=_told, share=share)
    page = environment.get_template(template).render({**context, "name": name}) + "\n"
    path = f"reports/{name}/index.html"
    workspace.publish(path, page.encode("utf-8", "replace"))
    return workspace.public(path)


def _points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share + 0:+.1f}".replace("-", "−")


def _told(share: float) -> str:
    """A difference that could be told, in points; none is larger than 100."""
    return f"{100 * share:.1f}" if share < 1 else "> 100"


def _comparison(told: Mapping[str, Any], table: pa.Table) -> dict[str, Any]:
    measures = [
        {"measure": measure, "metric": metric, "title": METRICS[measure][metric], **_measure(judged)}
        for measure, metrics in told["measures"].items()
        for metric, judged in metrics.items()
    ]
    return {
        **told,
        "tables": measures,
        "cheap": _cheap(table),
        "titles": {name: title for name, (title, _) in CHEAP.items()},
        "predicts": [{**one, "named": _named(one)} for one in told["correlations"] if one["arms"] >= 4],
        "settings": dict(flat(told["config"])),
        "machine": dict(flat(told["environment"])),
        "full": FULL,
    }


def _named(one: Mapping[str, Any]) -> tuple[str, str]:
    """What a correlation is of."""
    names = []
    for measure, metric in (one["cheap"], one["dear"]):
        names.append(CHEAP[metric][0] if measure == "cheap" else f"{measure}: {METRICS[measure][metric]}")
    return names[0], names[1]


def _measure(judged: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of each budget, the best first, and a panel a strategy."""
    arms = judged["arms"]
    budgets = [
        {**at, "rows": sorted((a for a in arms.values() if a["budget"] == at["budget"]), key=lambda a: -a["mean"])}
        for at in judged["budgets"]
    ]
    return {"budgets": budgets, "all": arms[f"{FULL}@1"], "panels": _panels(arms, [b["budget"] for b in budgets])}


def _panels(arms: Mapping[str, Mapping[str, Any]], budgets: Sequence[float]) -> dict[str, Any]:
    """A small chart a strategy: its means and intervals over the budgets, random's, and the full set's mean."""
    ends = [arm[end] for arm in arms.values() for end in ("low", "high")]
    low, high = float(np.floor(20 * max(min(ends), 0)) / 20), float(np.ceil(20 * min(max(ends), 1)) / 20)
    high = max(high, low + 0.05)

    def x(budget: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 10) * (budgets.index(budget) + 0.5) / len(budgets), 1)

    def y(value: float) -> float:
        return round(6 + (HEIGHT - BOTTOM - 6) * (1 - (min(max(value, low), high) - low) / (high - low)), 1)

    def line(name: str) -> list[dict[str, float]]:
        mine = [arms[f"{name}@{budget:g}"] for budget in budgets if f"{name}@{budget:g}" in arms]
        return [{"x": x(a["budget"]), "y": y(a["mean"]), "top": y(a["high"]), "foot": y(a["low"])} for a in mine]

    names = list(dict.fromkeys(arm["strategy"] for arm in arms.values() if arm["strategy"] not in (FULL, RANDOM)))
    return {
        "size": (WIDTH, HEIGHT),
        "edge": (LEFT, HEIGHT - BOTTOM),
        "ticks": [(y(value), percent(value)) for value in (low, high)],
        "budgets": [(x(budget), share(budget)) for budget in budgets],
        "full": y(arms[f"{FULL}@1"]["mean"]),
        "random": line(RANDOM),
        "of": {name: line(name) for name in names},
    }


def _cheap(table: pa.Table) -> list[dict[str, Any]]:
    """Means of the cheap measures, a table a budget; the full set stands in each."""
    figures = {metric: figures_of(table, "cheap", metric) for metric in CHEAP}
    figures = {metric: found for metric, found in figures.items() if found}
    arms = list(dict.fromkeys(arm for found in figures.values() for arm in found))
    budgets = sorted({budget for name, budget in arms if name != FULL})
    tables = []
    for budget in budgets:
        here = [arm for arm in arms if arm[1] == budget] + [arm for arm in arms if arm[0] == FULL]
        rows = {arm[0]: [np.mean(figures[m][arm]) if arm in figures[m] else None for m in figures] for arm in here}
        tables.append({"budget": budget, "metrics": list(figures), "rows": rows})
    return tables
