"""Which rows a pass trains on, and with which weights: random, InfoBatch, small loss, and guided by consistency.

A rule gives every row an inclusion probability. As many rows as these sum to are drawn by systematic sampling over an
order by hashes of (seed, pass, row) (Madow 1949): each row comes with exactly its probability, the share left out is
met to the row, and every rank draws the same. A kept row weighs what it counts for over its probability, so that the
weighted sum over draws has the sum over all rows as its mean (Horvitz and Thompson 1952). Every row counts for 1, but
where a rule means to leave rows out (`small_loss`) or to count the unsound for less (`guided`).

Sources: InfoBatch is Qin et al. 2024 (2303.04947). `guided` is our reconstruction of multimodal-guided dynamic pruning
(2507.12750), whose text gives no formula: its form and all its constants are choices (docs/training.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curation.scoring.sim import ranks
from curation.selection.sampling import uniform
from curation.training.losses import LossAverages

Floats = NDArray[np.float64]

LEAST = 1e-3  # that a gate is open: what may come must weigh something
STARTS = 2.0**20  # places for the random start, so few that its sum with a count of rows is exact
SURE = 1 - 1e-9  # a probability from which a row is certain


class Draw(NamedTuple):
    """What `curation.training.index.write_index` takes.

    Attributes:
        rows: int32 (kept,), ascending.
        weights: float32 (kept,), as the module's docstring has them; their mean is not brought to 1.
    """

    rows: NDArray[np.int32]
    weights: NDArray[np.float32]


class Aim(NamedTuple):
    """What a rule wants of each row, float64 (total,): the probability to be drawn, and what the row counts for.

    The probabilities sum to a whole number, and are above 0 wherever a row counts.
    """

    probability: Floats
    counts: Floats


# From a random number in (0, 1) a row, which decides ties, and how many rows to leave out (None: as many as it likes).
Rule = Callable[[Floats, int | None], Aim]


@dataclass(frozen=True)
class Policy:
    """Draws the rows of each pass.

    Args:
        total: rows in all.
        rule: `random`, `infobatch`, `small_loss` or `guided`.
        left_out: share of the rows that a pass leaves out, to the nearest row (at least one stays); None: the rule's
            own, which only `infobatch` has.
        seed: of the draws.
        warm: passes on all rows before anything is left out.
        full_from: share of the passes after which all rows are trained on again (InfoBatch's); 1: never.

    Raises:
        ValueError: a number that cannot be.
    """

    total: int
    rule: Rule
    left_out: float | None
    seed: int = 0
    warm: int = 1
    full_from: float = 0.875

    def __post_init__(self) -> None:
        _check(0 < self.total <= 2**31, f"{self.total} rows: row numbers are of 32 bits, so give 1 to {2**31}")
        ok = self.left_out is None or 0 <= self.left_out < 1
        _check(ok, f"left_out={self.left_out}: give a share from 0 to below 1")
        _check(self.warm >= 0, f"warm={self.warm}: give a number of passes")
        _check(0 <= self.full_from <= 1, f"full_from={self.full_from}: give a share of the passes, from 0 to 1")

    def draw(self, number: int, passes: int) -> Draw:
        """The rows of a pass and their weights: the same on every rank, if the losses are.

        Args:
            number: of the pass, from 0.
            passes: in all.

        Raises:
            ValueError: there is no such pass.
        """
        dropped = self.dropped(number, passes)
        u = uniform(np.arange(self.total + 1, dtype=np.uint64) | np.uint64(number << 32), self.seed)
        u, start = u[:-1], float(u[-1])
        probability, counts = self.rule(u, dropped)
        rows = systematic(probability, u, start)
        return Draw(rows, (counts[rows] / probability[rows]).astype(np.float32))

    def dropped(self, number: int, passes: int) -> int | None:
        """How many rows a pass leaves out; None: as many as the rule likes.

        Raises:
            ValueError: there is no such pass.
        """
        _check(0 <= number < passes, f"pass {number} of {passes}: passes are counted from 0")
        if number < self.warm or number >= self.full_from * passes:
            return 0
        return None if self.left_out is None else min(round(self.left_out * self.total), self.total - 1)


def random() -> Rule:
    """Rows drawn afresh each pass, all alike (random-dynamic)."""

    def rule(u: Floats, dropped: int | None) -> Aim:
        return Aim(np.full(len(u), (len(u) - _stated(dropped)) / len(u)), np.ones(len(u)))

    return rule


def infobatch(losses: LossAverages, fraction: float = 0.5, most: float = 0.75) -> Rule:
    """Of the rows with a loss below the mean a fraction is dropped at random, and what stays of them weighs more.

    As published with ``left_out=None``: then what a pass leaves out hangs on how many rows lie below the mean, among
    which those never trained on are not. With a stated share the fraction is what that takes; where it would be more
    than ``most``, the threshold rises as far as it must and can (our choice). As published the loss is
    the last one, not an average: ``LossAverages(beta=0)``.

    Args:
        losses: merged before a draw, where there are several ranks.
        fraction: of the rows below the mean, where no share is stated; their number is rounded down.
        most: the fraction of the rows below the threshold that is dropped at most, where a share is stated.
    """
    _check(0 < most < 1, f"most={most}: give a share between 0 and 1")
    _check(0 <= fraction < 1, f"fraction={fraction}: give a share from 0 to below 1")

    def rule(u: Floats, dropped: int | None) -> Aim:
        loss = losses.values
        known = loss[~np.isnan(loss)]
        below = int((known < known.mean(dtype=np.float64)).sum()) if len(known) else 0
        if dropped is None:
            dropped = int(fraction * below)
        else:
            below = min(max(below, int(np.ceil(dropped / most))), len(u))
        probability = np.ones(len(u))
        probability[_rising(loss, u)[:below]] = (below - dropped) / max(below, 1)
        return Aim(probability, np.ones(len(u)))

    return rule


def small_loss(losses: LossAverages) -> Rule:
    """The rows of the smallest losses, which are likely labelled right (Han et al. 2018); the others count nothing.

    It is biased by design: take it with ``full_from=1``.

    Args:
        losses: merged before a draw, where there are several ranks; rows never trained on go last.
    """

    def rule(u: Floats, dropped: int | None) -> Aim:
        kept = np.zeros(len(u))
        kept[_rising(losses.values, u)[: len(u) - _stated(dropped)]] = 1
        return Aim(kept, kept)

    return rule


def guided(
    losses: LossAverages,
    consistency: ArrayLike | None,
    use: Literal["both", "difficulty", "consistency"] = "both",
    tau: float = 0.45,
    temperature: float = 0.1,
    drawn: float = 0.75,
    aim: Literal["sound", "full"] = "sound",
) -> Rule:
    """The highest of rank(loss) * gate are kept, gate = sigmoid((consistency - tau) / temperature); of the rest a draw.

    What is hard and sound comes every pass, what is easy or likely wrong now and then. With ``aim="full"`` the rest is
    drawn all alike, and the weights make up for it: gradients have those of all rows as their mean, wrong labels and
    all. With ``aim="sound"`` a row counts for as much as its gate is open, and the rest is drawn in proportion to that:
    gradients have those of the gated set as their mean, in the passes on all rows too.

    Args:
        losses: merged before a draw, where there are several ranks; a row never trained on is as hard as any.
        consistency: (total,) ranks from 0 to 1, as `curation.scoring.consistency` gives them; NaN, where nothing is
            known of a row, leaves its gate open. Not looked at with ``use="difficulty"``.
        use: ``difficulty``: every gate is open; ``consistency``: every row is equally hard.
        tau: the consistency at which a gate is half open.
        temperature: how slowly it opens.
        drawn: share of the kept rows that are drawn from the rest, at least one.
        aim: what gradients are true to, ``sound`` or ``full``.

    Raises:
        ValueError: consistency is wanting, of another length or not in [0, 1], or an argument cannot be.
    """
    _check(use in ("both", "difficulty", "consistency"), f"use={use}: choose both, difficulty or consistency")
    _check(aim in ("sound", "full"), f"aim={aim}: choose sound or full")
    _check(0 < drawn <= 1, f"drawn={drawn}: give a share above 0, to 1")
    _check(temperature > 0, f"temperature={temperature}: give a positive number")
    total = losses.total
    gate = np.ones(total) if use == "difficulty" else gates(consistency, total, tau, temperature)
    counts = gate if aim == "sound" else np.ones(total)

    def rule(u: Floats, dropped: int | None) -> Aim:
        kept = total - _stated(dropped)
        rest = max(1, round(drawn * kept))
        hard = np.ones(total) if use == "consistency" else ranks(np.nan_to_num(losses.values, nan=np.inf))
        lower = np.lexsort((u, -hard * gate))[kept - rest :]
        probability = np.ones(total)
        probability[lower] = proportional(counts[lower], rest)
        return Aim(probability, counts)

    return rule


def gates(consistency: ArrayLike | None, total: int, tau: float, temperature: float) -> Floats:
    """How far each row's gate is open, (total,), from `LEAST` to 1; 1 where the consistency is NaN.

    Raises:
        ValueError: consistency is wanting, of another length or not in [0, 1].
    """
    known = np.asarray(np.nan if consistency is None else consistency, np.float64)
    _check(known.shape == (total,), f"consistency of shape {known.shape}: give one number a row, of {total}")
    _check(bool(((known >= 0) & (known <= 1) | np.isnan(known)).all()), "consistency: give ranks from 0 to 1")
    with np.errstate(over="ignore"):
        opened = 1 / (1 + np.exp((tau - known) / temperature))
    return np.where(np.isnan(known), 1.0, np.maximum(opened, LEAST))


def _stated(dropped: int | None) -> int:
    _check(dropped is not None, "left_out=None: only infobatch leaves out a share of its own; give a share")
    assert dropped is not None
    return dropped


def _rising(loss: NDArray[np.float32], u: Floats) -> NDArray[np.int64]:
    """All rows by rising loss, ties by the random numbers; those never trained on, of NaN, go last."""
    return np.lexsort((u, loss))


def systematic(probability: Floats, u: Floats, start: float) -> NDArray[np.int32]:
    """Draw as many rows as the probabilities sum to, each with its own probability over a uniform start.

    Args:
        probability: (total,) from 0 to 1, whose sum is a whole number but for rounding.
        u: (total,), by which the rows are ordered.
        start: in (0, 1).

    Returns:
        int32, ascending.
    """
    taken = probability >= SURE
    maybe = np.flatnonzero((probability > 0) & ~taken)
    order = maybe[np.argsort(u[maybe])]
    ends = np.cumsum(probability[order])
    if len(ends):
        ends *= round(float(ends[-1])) / ends[-1]
        ends[-1] = round(float(ends[-1]))
        passed = np.floor(ends + np.floor(start * STARTS) / STARTS)
        taken[order[np.diff(passed, prepend=0.0) > 0]] = True
    return np.flatnonzero(taken).astype(np.int32)


def proportional(size: Floats, count: int) -> Floats:
    """Probabilities that sum to ``count`` and are in proportion to ``size`` (above 0), but for those that come to 1."""
    order = np.argsort(-size, kind="stable")
    falling = size[order]
    rest = np.cumsum(falling[::-1])[::-1]  # of each and all after it
    left = count - np.arange(len(size))
    certain = int(np.argmax(left * falling <= rest))
    probability = np.ones(len(size))
    probability[order[certain:]] = left[certain] * falling[certain:] / rest[certain]
    return np.minimum(probability, 1.0)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
