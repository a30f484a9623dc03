"""What differences over seeds allow to be said: paired against random, corrected for how many were tried, in words.

Every arm is compared with random drawn by the same seeds (and trained with the same seeds), so that what a seed brings
to both falls out of the difference. Holm's correction (1979) holds over all comparisons that stand in one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "no difference"]

LEVEL = 0.05  # of the whole family; intervals are of 1 - LEVEL
POWER = 0.8  # chance with which a difference counts as one that the experiment could have told


@dataclass(frozen=True)
class Difference:
    """One arm against another over the same seeds.

    Attributes:
        seeds: how many.
        mean: of arm minus reference, in the measure's units.
        low, high: 95 % t interval of the mean, not corrected for other comparisons.
        p: two-sided, of the paired t test.
    """

    seeds: int
    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Judged:
    """A comparison as one of a family.

    Attributes:
        difference: the comparison alone.
        p: adjusted by Holm over the family.
        verdict: ``better`` or ``worse`` where the adjusted p is below 0.05, else ``no difference``.
        detectable: the smallest true difference that this experiment would have told in four cases of five, given how
            much the seeds scatter and how many comparisons there are; in the measure's units.
        words: for a person.
    """

    difference: Difference
    p: float
    verdict: Verdict
    detectable: float
    words: str


@dataclass(frozen=True)
class Correlation:
    """Spearman's over arms.

    Attributes:
        arms: how many.
        rho: -1 to 1; NaN where one of the measures is constant.
        low, high: 95 % interval; -1 and 1 with fewer than four arms, which say nothing.
    """

    arms: int
    rho: float
    low: float
    high: float


def paired(arm: Sequence[float] | Floats, reference: Sequence[float] | Floats) -> Difference:
    """The mean of arm minus reference with its t interval and paired t test.

    Args:
        arm: (seeds,) one figure a seed, at least two.
        reference: (seeds,) of the same seeds in the same order.

    Raises:
        ValueError: fewer than two seeds, or not equally many.
    """
    if len(arm) != len(reference) or len(arm) < 2:
        raise ValueError(
            f"{len(arm)} and {len(reference)} figures: at least two seeds, and the same of both, are needed"
        )
    difference = np.asarray(arm, np.float64) - np.asarray(reference, np.float64)
    mean, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
    half = float(stats.t.ppf(1 - LEVEL / 2, len(difference) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(difference) - 1)) if error > 0 else float(mean == 0)
    return Difference(len(difference), mean, mean - half, mean + half, p)


def holm(p: Sequence[float] | Floats) -> Floats:
    """Adjusted p values, float64 in the same order: the k-th smallest of m, times m - k + 1, rising (Holm 1979)."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def detectable(deviation: float, seeds: int, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that a paired t test tells with the given power.

    Args:
        deviation: standard deviation of the paired differences.
        seeds: at least two.
        level: two-sided, of this one test.
        power: chance of telling it.

    Returns:
        In the units of ``deviation``; solved with the noncentral t distribution.
    """
    return _shift(seeds, level, power) * deviation / float(np.sqrt(seeds))


@cache
def _shift(seeds: int, level: float, power: float) -> float:
    """The noncentrality at which the t test has that power."""
    critical = float(stats.t.isf(level / 2, seeds - 1))
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, seeds - 1, shift) - power, 0, 2 * critical + 10))


def judge(comparisons: Mapping[str, Difference], against: str = "random") -> dict[str, Judged]:
    """A verdict on each comparison of one family, corrected by Holm over all of them.

    Args:
        comparisons: shares (0 to 1) of arms against one reference, all that stand in one table.
        against: what the reference is called in the words.

    Returns:
        By the same names, in the same order.
    """
    adjusted = holm([difference.p for difference in comparisons.values()])
    found = {}
    for (name, difference), p in zip(comparisons.items(), adjusted.tolist(), strict=True):
        verdict: Verdict = "no difference" if p >= LEVEL else "better" if difference.mean > 0 else "worse"
        # Holm's strictest step is Bonferroni's: on the safe side, and known before the experiment
        told = detectable(_deviation(difference), difference.seeds, LEVEL / len(adjusted))
        found[name] = Judged(difference, p, verdict, told, _words(difference, p, verdict, told, len(adjusted), against))
    return found


def _deviation(difference: Difference) -> float:
    """Of the single differences, from the interval of their mean."""
    half = (difference.high - difference.low) / 2
    return float(half / stats.t.ppf(1 - LEVEL / 2, difference.seeds - 1) * np.sqrt(difference.seeds))


def _words(difference: Difference, p: float, verdict: Verdict, told: float, family: int, against: str) -> str:
    interval = f"95 % interval {points(difference.low)} to {points(difference.high)}, {difference.seeds} seeds"
    if verdict != "no difference":
        size = points(abs(difference.mean)).lstrip("+")
        return f"{verdict} than {against} by {size} points ({interval}; p = {p:.2g} among {family} comparisons)"
    return (
        f"no difference from {against} that {difference.seeds} seeds could tell: {points(difference.mean)} points "
        f"({interval}; p = {p:.2g} among {family} comparisons). One of {points(told).lstrip('+')} points would have "
        "been told in four cases of five; to tell a smaller one, run more seeds"
    )


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share + 0:+.1f}"


@dataclass(frozen=True)
class Advice:
    """What to do at one budget.

    Attributes:
        prune: False where the full set beats every arm.
        best: the arm with the highest mean; where it says to prune, of those that are better than random, if any is.
        equals: arms whose paired difference from the best has 0 in its 95 % interval: it cannot be told from them.
        words: for a person.
    """

    prune: bool
    best: str
    equals: list[str]
    words: str


def advise(
    figures: Mapping[str, Sequence[float] | Floats],
    judged: Mapping[str, Judged],
    full: str = "full",
    random: str = "random",
) -> Advice:
    """Whether and how to prune at one budget, by one measure.

    "Do not prune" needs the full set to beat each of the arms, by the 95 % interval of each paired difference: all of
    them at once is an intersection-union test, which keeps its level without a correction (Berger 1982).

    Args:
        figures: (seeds,) shares of each arm that could be chosen (so without ``oracle``), the full set and random among
            them, the same seeds in the same order.
        judged: verdicts of the arms but these two against random.
        full: name of the full set.
        random: name of the random draw.
    """
    arms = {name: np.asarray(values, np.float64) for name, values in figures.items() if name != full}
    better = [name for name in arms if name in judged and judged[name].verdict == "better"]
    highest = max(arms, key=lambda name: arms[name].mean())
    best = max(better, key=lambda name: arms[name].mean()) if better else highest
    prune = any(paired(figures[full], values).low <= 0 for values in arms.values())
    best = best if prune else highest
    equals = [name for name in arms if name != best and paired(arms[best], arms[name]).low <= 0]
    loss = paired(figures[full], arms[best])
    if not prune:
        words = f"do not prune: the full set beats every choice; the best, {best}, loses {_lost(loss)}"
        return Advice(False, best, equals, words)
    cost = f"against the full set it {'loses' if loss.mean > 0 else 'gains'} {_lost(loss)}"
    if better:
        others = f"; {', '.join(equals)} cannot be told from it" if equals else ""
        return Advice(True, best, equals, f"prune with {best}, {judged[best].words}; {cost}{others}")
    told = max((verdict.detectable for verdict in judged.values()), default=0.0)
    seeds = len(arms[best])
    able = f"nothing tried is better by as much as {seeds} seeds can tell ({points(told).lstrip('+')} points)"
    if told >= 1:  # of a share
        able = f"{seeds} seeds can tell no difference between so many arms: raise compare.seeds"
    words = f"draw at random: {able}; the highest mean has {best}, {cost}"
    return Advice(True, best, equals, words)


def _lost(loss: Difference) -> str:
    sign = 1 if loss.mean > 0 else -1
    low, high = sorted((sign * loss.low, sign * loss.high))
    return f"{points(abs(loss.mean)).lstrip('+')} points (95 % interval {points(low)} to {points(high)})"


def gap_closed(
    arm: Sequence[float] | Floats, random: Sequence[float] | Floats, oracle: Sequence[float] | Floats
) -> float:
    """How far of the way from random to the oracle an arm goes: 0 random, 1 the oracle; NaN where that is no better.

    The quotient of mean differences over the same seeds, in the same order.
    """
    way = float(np.mean(oracle) - np.mean(random))
    return float(np.mean(arm) - np.mean(random)) / way if way > 0 else float("nan")


def rank_correlation(cheap: Sequence[float] | Floats, dear: Sequence[float] | Floats) -> Correlation:
    """How far a cheap measure orders arms as a dear one does: Spearman's rho.

    Its interval is by Fisher's transform with Bonett and Wright's (2000) error, sqrt((1 + rho²/2) / (arms - 3)). Take
    arms of one budget: over several, any measure that grows with the kept set correlates with any other.

    Args:
        cheap: (arms,) means over seeds, turned so that more is better.
        dear: (arms,) of the same arms.

    Raises:
        ValueError: not equally many.
    """
    if len(cheap) != len(dear):
        raise ValueError(f"{len(cheap)} and {len(dear)} arms")
    arms = len(cheap)
    if arms < 2 or np.ptp(np.asarray(cheap)) == 0 or np.ptp(np.asarray(dear)) == 0:
        return Correlation(arms, float("nan"), -1.0, 1.0)
    rho = float(stats.spearmanr(cheap, dear).statistic)
    if arms < 4:
        return Correlation(arms, rho, -1.0, 1.0)
    inner = np.clip(rho, -1 + 1e-12, 1 - 1e-12)
    half = stats.norm.ppf(1 - LEVEL / 2) * np.sqrt((1 + rho**2 / 2) / (arms - 3))
    low, high = np.tanh(np.arctanh(inner) + np.array([-half, half]))
    return Correlation(arms, rho, float(low), float(high))
