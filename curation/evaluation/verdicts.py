"""What a table of results allows to be said: verdicts against random, what to do at each budget, what predicts what.

Every measure is one family of comparisons: all strategies at all budgets, by one metric. ``oracle`` is a reference
point and no choice: it is judged apart, so that it costs the others no power.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from curation.evaluation.arms import FULL
from curation.evaluation.statistics import LEVEL, advise, gap_closed, judge, paired, rank_correlation
from curation.report.words import duration

RANDOM, ORACLE = "random", "oracle"
METRICS = {  # of each measure, the deciding one first
    "label": {"linear_macro": "linear probe", "network_macro": "network from scratch"},
    "pretraining": {"linear_macro": "linear probe, frozen", "knn_macro": "5-NN, frozen"},
}
CHEAP = {  # what a person calls it, and whether more is better
    "coverage_mean": ("mean distance to the nearest kept", False),
    "coverage_worst": ("worst distance to the nearest kept", False),
    "vendi": ("spectral diversity (Vendi score)", True),
    "frechet_unfiltered": ("Fréchet distance to the archive", False),
    "frechet_filtered": ("Fréchet distance to its top by entropy", False),
    "cluster_entropy": ("evenness over clusters", True),
    "class_entropy": ("evenness over classes", True),
    "tail_recall": ("share kept of the rarest fifth of classes", True),
    "region_entropy": ("evenness over regions", True),
    "season_entropy": ("evenness over seasons", True),
}

Figures = dict[tuple[str, float], list[float]]  # (strategy, budget) -> one figure a seed


def judge_all(table: pa.Table, measures: Sequence[str]) -> dict[str, Any]:
    """Everything that is judged.

    Args:
        table: `compare.RESULTS`.
        measures: that were taken, the deciding one first.

    Returns:
        ``measures``: by measure and metric, ``arms`` (means with intervals, differences, verdicts) and ``budgets``
        (what to do); ``correlations``; ``verdict`` and ``best`` by the first metric of the first measure.
    """
    judged = {
        measure: {metric: _judge_metric(figures_of(table, measure, metric)) for metric in METRICS[measure]}
        for measure in measures
    }
    found: dict[str, Any] = {
        "measures": judged,
        "correlations": _correlations(table, measures),
        "verdict": {},
        "best": {},
    }
    if measures:
        decides = judged[measures[0]][next(iter(METRICS[measures[0]]))]
        found["verdict"] = {name: arm["verdict"] for name, arm in decides["arms"].items() if "verdict" in arm}
        found["best"] = {f"{at['budget']:g}": at["choice"] if at["prune"] else FULL for at in decides["budgets"]}
    return found


def figures_of(table: pa.Table, measure: str, metric: str) -> Figures:
    """One metric's figures, by seed, of the arms that have one for every seed."""
    mine = table.filter(pc.and_(pc.equal(table["measure"], measure), pc.equal(table["metric"], metric)))
    found: dict[tuple[str, float], dict[int, float]] = {}
    for row in mine.select(["strategy", "budget", "seed", "value"]).to_pylist():
        found.setdefault((row["strategy"], row["budget"]), {})[row["seed"]] = row["value"]
    seeds = sorted({seed for values in found.values() for seed in values})
    return {arm: [values[seed] for seed in seeds] for arm, values in found.items() if len(values) == len(seeds)}


def _judge_metric(figures: Figures) -> dict[str, Any]:
    budgets = sorted({budget for name, budget in figures if name != FULL})
    arms: dict[str, dict[str, Any]] = {}
    for (name, budget), values in figures.items():
        low, high = interval(values)
        arms[f"{name}@{budget:g}"] = {
            "strategy": name,
            "budget": budget,
            "mean": float(np.mean(values)),
            "low": low,
            "high": high,
        }
    against = {
        (name, budget): paired(values, figures[RANDOM, budget])
        for (name, budget), values in figures.items()
        if name not in (RANDOM, FULL)
    }
    judged: dict[str, Any] = {}
    for family in ([a for a in against if a[0] != ORACLE], [a for a in against if a[0] == ORACLE]):
        judged |= judge({f"{name}@{budget:g}": against[name, budget] for name, budget in family})
    for key, one in judged.items():
        arm = arms[key]
        arm |= {"difference": asdict(one.difference), "p": one.p, "verdict": one.verdict, "detectable": one.detectable}
        if (ORACLE, arm["budget"]) in figures:
            at = arm["budget"]
            arm["gap_closed"] = gap_closed(figures[arm["strategy"], at], figures[RANDOM, at], figures[ORACLE, at])
    told = []
    for budget in budgets:
        here = {name: values for (name, at), values in figures.items() if at == budget and name != ORACLE}
        here[FULL] = figures[FULL, 1.0]
        mine = {name: judged[f"{name}@{budget:g}"] for name in here if name not in (RANDOM, FULL)}
        advice = advise(here, mine, FULL, RANDOM)
        full = paired(here[FULL], here[RANDOM])
        better = [name for name in mine if mine[name].verdict == "better"]
        choice = max(better, key=lambda name: np.mean(here[name])) if better else RANDOM
        told.append(
            {
                "budget": budget,
                **asdict(advice),
                "choice": choice,
                "choice_words": mine[choice].words if better else "",
                "full_against_random": asdict(full),
            }
        )
    return {"arms": arms, "budgets": told}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % t interval of a mean over seeds."""
    spread = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(np.mean(values)) - spread, float(np.mean(values)) + spread


def _correlations(table: pa.Table, measures: Sequence[str]) -> list[dict[str, Any]]:
    """How far cheaper measures order the arms of a budget as dearer ones do; the full set is no arm here."""
    dear = [(measure, next(iter(METRICS[measure]))) for measure in measures]
    cheap = [("cheap", metric) for metric in CHEAP]
    if dear[1:]:
        cheap.append(("label", "linear_macro"))
    found = []
    for measure, metric in dear:
        theirs = figures_of(table, measure, metric)
        for other, by in cheap:
            ours = figures_of(table, other, by)
            if other == measure or not ours:
                continue
            sign = -1 if other == "cheap" and not CHEAP[by][1] else 1
            for budget in sorted({at for _, at in theirs if at < 1}):
                names = [arm for arm in theirs if arm[1] == budget and arm in ours]
                pair = [[sign * float(np.mean(ours[a])) for a in names], [float(np.mean(theirs[a])) for a in names]]
                one = rank_correlation(*pair)
                found.append({"cheap": [other, by], "dear": [measure, metric], "budget": budget, **asdict(one)})
    return found


def advice(judged: Mapping[str, Any], costs: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """What to do, a sentence a budget, by the first measure; the same by a second; and where these contradict."""
    if not judged["measures"]:
        return [
            "Nothing is decided: cheap measures describe a choice, they do not tell what it is worth. Give a labelled "
            "test set: compare.test.url=URL."
        ]
    first, *others = judged["measures"]
    lines = [line for measure in judged["measures"] for line in _sentences(judged, measure, costs, measure != first)]
    for other in others:
        lines += _disagreements(judged, first, other)
    return lines


def _sentences(
    judged: Mapping[str, Any], measure: str, costs: Mapping[str, Mapping[str, float | None]], named: bool
) -> Iterable[str]:
    """What to do by one measure, a sentence a budget."""
    for at in _decides(judged, measure)["budgets"]:
        words = at["words"]
        if not at["prune"]:
            told = f"take {at['choice']}, {at['choice_words']}" if at["choice_words"] else "draw at random"
            words += f"; if you cannot afford it, {told}"
        if at["choice"] != RANDOM and not named:
            cost = costs.get(at["choice"], {})
            seconds = sum(cost.get(step) or 0.0 for step in ("cluster", "score", "select"))
            words += f"; {at['choice']} took {duration(seconds)} to cluster, score and select"
        yield f"{f'By {measure}, at' if named else 'At'} {share(at['budget'])}, {words}."


def _decides(judged: Mapping[str, Any], measure: str) -> dict[str, Any]:
    return dict(judged["measures"][measure][next(iter(METRICS[measure]))])


def _disagreements(judged: Mapping[str, Any], first: str, other: str) -> Iterable[str]:
    one, two = (_decides(judged, measure)["arms"] for measure in (first, other))
    against = [
        f"{name} is {two[name]['verdict']}, not {arm['verdict']}"
        for name, arm in one.items()
        if {arm.get("verdict"), two.get(name, {}).get("verdict")} == {"better", "worse"}
    ]
    if against:
        yield f"By {other} it is the other way round: {'; '.join(against)}."


def short_table(told: Mapping[str, Any]) -> str:
    """The deciding metric for a terminal: means in percent, and the verdicts that are not "no difference"."""
    if not told["measures"]:
        return "no measure decides: see the report for the cheap ones"
    first = next(iter(told["measures"]))
    decides = _decides(told, first)
    arms, budgets = decides["arms"], [at["budget"] for at in decides["budgets"]]
    names = list(dict.fromkeys(arm["strategy"] for arm in arms.values() if arm["strategy"] != FULL))
    width = max(map(len, (*names, FULL)))
    title = f"{first}, {METRICS[first][next(iter(METRICS[first]))]}, macro accuracy in %"
    lines = [title, f"{'':{width}}" + "".join(f"{share(budget):>22}" for budget in budgets)]
    for name in names:
        cells = [_cell(arms.get(f"{name}@{budget:g}")) for budget in budgets]
        lines.append(f"{name:{width}}" + "".join(f"{cell:>22}" for cell in cells))
    lines.append(f"{FULL:{width}}  {100 * arms[f'{FULL}@1']['mean']:.1f}")
    return "\n".join(lines)


def _cell(arm: Mapping[str, Any] | None) -> str:
    if arm is None:
        return "–"
    verdict = arm.get("verdict", "")
    half = 100 * (arm["high"] - arm["low"]) / 2
    return f"{'' if verdict == 'no difference' else verdict + ' '}{100 * arm['mean']:.1f} ± {half:.1f}"


def share(budget: float) -> str:
    """A budget as people write it."""
    return f"{100 * budget:.6g} %"


def plain(value: Any) -> Any:
    """A value that JSON can hold: what is no number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
