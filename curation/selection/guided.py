"""What a classifier of the bank's classes says of the order: as many of each class, the typical first.

Classes count softly: a row adds to each the probability that it has there. How much of the selection goes by this is
the share of the archive that the bank explains; the rest goes by the draw, and the two merge like the claims of
`strategies.spread_order`.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from curation.selection.sampling import Floats

Ints = NDArray[np.int64]

LIMIT = 32_768  # rows of a piece, about: more are split by a hash of the id
SAMPLE = 65_536  # rows that share and class shares are measured on, about
MOST = 0.9  # share that goes by the bank at most
LEAST = 0.2  # and at least: a bank that explains less has other scenes, and guides nothing
CALM = 0.5  # bits below the bank's least entropy under which a row is without content, and never guided
SHIFT = 0.5  # power of the archive's class shares in the posterior: 0 uniform, 1 Bayes'
CLEAR = 0.5  # weight exp(-CLEAR entropy) of a row, the entropy of its classes in nats
OFFSET = 0.5  # rows that each class has before the first
STEPS = 100  # of expectation and maximisation
QUANTILES = np.linspace(0.3, 0.7, 11)


def explained(archive: Floats, bank: Floats) -> float:
    """Share of the archive that looks like the bank.

    The least, over thresholds t, of how often the archive's confidence is above t over how often that of the bank's
    left-out rows is: were a share e like the bank and the rest never confident, every t would give e.

    Args:
        archive: (n,) largest probability of each row.
        bank: (m,) the same of the bank's rows, each left out.

    Returns:
        0 to `MOST`.
    """
    if not len(archive):
        return 0.0
    shares = [(archive > t).mean() / max((bank > t).mean(), 1e-9) for t in np.quantile(bank, QUANTILES)]
    return float(min(MOST, *shares))


def class_shares(p: Floats) -> Floats:
    """(C,) shares of the classes in the archive, out of (n, C) probabilities under equal ones.

    By expectation and maximisation (Saerens, Latinne and Decaestecker 2002), with one row more of each class.
    """
    n, c = p.shape
    shares: Floats = np.full(c, 1 / c)
    for _ in range(STEPS):
        q = p * shares
        q /= q.sum(1, keepdims=True)
        shares = (q.sum(0) + 1) / (n + c)
    return shares


def posterior(p: Floats, shares: Floats) -> Floats:
    """(n, C) probabilities, p shares^`SHIFT` brought to 1: between equal shares and the archive's."""
    q: Floats = p * shares**SHIFT
    q /= q.sum(1, keepdims=True)
    return q


def guided_order(p: Floats, shares: Floats, required: NDArray[np.bool_], picks: int) -> Ints:
    """Who is worth most goes next: sum_c q_ic / (count_c + `OFFSET`) exp(-`CLEAR` H(p_i)), q being the `posterior`.

    The counts are the sums of q over those before. Exact, by lazy evaluation (Minoux 1978): no worth ever grows.

    Args:
        p: (n, C) of the rows of a piece, in the order that decides ties.
        shares: (C,) `class_shares`.
        required: (n,) these stand before all others.
        picks: how many rows beside the required ones are wanted.

    Returns:
        (n,) the place of each; -1 of required rows and of those beyond the picks.
    """
    q = posterior(p, shares)
    typical = np.exp(CLEAR * (p * np.log(np.maximum(p, 1e-300))).sum(1))
    count = q[required].sum(0) + OFFSET
    place = np.full(len(p), -1, np.int64)
    worth = (q / count).sum(1) * typical
    known = [(-float(worth[row]), int(row), 0) for row in np.flatnonzero(~required)]
    heapq.heapify(known)
    for turn in range(min(picks, len(known))):
        while known[0][2] != turn:
            row = known[0][1]
            heapq.heapreplace(known, (-float((q[row] / count).sum() * typical[row]), row, turn))
        row = heapq.heappop(known)[1]
        place[row] = turn
        count += q[row]
    return place


def merged(place: Ints, rows: int, of: int) -> Floats:
    """The places of a piece among those of all pieces, from 0: NaN where there is none.

    Args:
        place: (n,) in the piece, -1 where there is none.
        rows: of the piece.
        of: rows of all pieces.
    """
    return np.where(place < 0, np.nan, (place + 0.5) * (of / max(rows, 1)) - 0.5)


def wanted(rows: int, of: int, pieces: int, budget: int, share: float) -> int:
    """So many of a piece's rows may go before what the budget refuses, whatever the draw says.

    Of the first x claims by the bank and the first x by the draw, at least as many rows stay as there are of either; so
    the last row that fits claims no more than budget / (1 - share) and, while the bank has rows left,
    (budget + pieces) / share.
    """
    places = min(share / (1 - share), 1.0) * budget + pieces
    return int(np.ceil(places * rows / max(of, 1))) + 1


def claims(guided: Floats, drawn: Floats, share: float) -> tuple[Floats, Floats]:
    """What each row claims by the bank and by the draw: the better claim counts.

    So among the first n there are at most n claims below n, those of the first share n by the bank and of the first
    (1 - share) n by the draw, and all of these are in.

    Args:
        guided: (n,) place by the bank, from 0; NaN where there is none.
        drawn: (n,) the same by the draw.
        share: of the selection that goes by the bank, above 0, below 1.
    """
    return np.nan_to_num((guided + 1) / share, nan=np.inf), np.nan_to_num((drawn + 1) / (1 - share), nan=np.inf)
