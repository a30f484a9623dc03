"""What tasks do where the classes of a bank guide a selection (`selection.guided`); `draw` says in which order.

Columns that they add to those of `steps`: ``guided_class`` (a code), ``guided_probability``, ``guided_place`` (from 0,
among all rows that may be guided) and ``guided``, whether that place is why it was kept.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.clustering.classifier import CLASSIFIER, Classifier
from curation.manifests.exchange import Columns, merge
from curation.manifests.order import read_vectors
from curation.manifests.steps import CODE, OPEN, Guide, Plan, Shards, running
from curation.selection.guided import (
    claims,
    class_shares,
    explained,
    guided_order,
    merged,
    posterior,
    wanted,
)
from curation.selection.sampling import Floats


class Learnt(NamedTuple):
    """What a sample of the archive tells: the share that the bank explains, and the classes' shares."""

    share: float
    class_shares: Floats


def _guide(plan: Plan) -> Guide:
    assert plan.guide is not None
    return plan.guide


def _classifier(plan: Plan) -> Classifier:
    return Classifier.from_bytes(plan.clusters.read(CLASSIFIER))


def _may_be(plan: Plan, rows: Columns) -> NDArray[np.bool_]:
    """Rows in the running that have content enough."""
    found: NDArray[np.bool_] = running(rows) & (rows["entropy"] >= _guide(plan).calmest)
    return found


def count(plan: Plan, *layers: Columns) -> NDArray[np.int64]:
    """How many rows may be guided, the required ones apart: int64 (1,)."""
    rows = merge(layers)
    return np.array([(_may_be(plan, rows) & (rows["reason"] == OPEN)).sum()])


def send_to_sample(plan: Plan, rows: Columns, shards: Shards) -> tuple[Columns, NDArray[np.integer]]:
    """Of the rows that may be guided a share by their hash, with their embeddings."""
    there = _may_be(plan, rows) & (rows["lower"].astype(np.float64) <= _guide(plan).sampled * 2.0**64)
    columns = {"upper": rows["upper"], "lower": rows["lower"], "embedding": read_vectors(plan, shards, there)}
    return columns, np.where(there, 0, -1)


def learn(plan: Plan, number: int, rows: Columns) -> tuple[Columns, Learnt]:
    """What the sample tells."""
    classifier = _classifier(plan)
    order = np.lexsort((rows["lower"], rows["upper"]))  # sums hang on it
    p = classifier.probabilities(rows["embedding"][order]) if len(order) else np.empty((0, len(classifier.classes)))
    return {}, Learnt(explained(p.max(1), classifier.confidence), class_shares(p))


def send_to_piece(plan: Plan, rows: Columns, shards: Shards) -> tuple[Columns, NDArray[np.integer]]:
    """Rows that may be guided to the partition of their piece, with their embeddings."""
    guide, there = _guide(plan), _may_be(plan, rows)
    piece = (rows["lower"] % np.uint64(guide.pieces)).astype(np.int64)
    columns = {
        "upper": rows["upper"],
        "lower": rows["lower"],
        "piece": piece,
        "required": rows["reason"] == CODE["required"],
        "embedding": read_vectors(plan, shards, there),
    }
    return columns, np.where(there, piece * guide.partitions // guide.pieces, -1)


def order_pieces(plan: Plan, number: int, rows: Columns) -> tuple[Columns, None]:
    """The place of every row in its piece, as far as the budget goes, as one among all rows; its class."""
    guide, classifier = _guide(plan), _classifier(plan)
    place, likely = np.full(len(rows["upper"]), np.nan), np.zeros(len(rows["upper"]), np.float32)
    code = np.zeros(len(rows["upper"]), np.int32)
    for piece in np.unique(rows["piece"]):
        own = np.flatnonzero(rows["piece"] == piece)
        own = own[np.lexsort((rows["lower"][own], rows["upper"][own]))]
        p, required = classifier.probabilities(rows["embedding"][own]), rows["required"][own]
        free = int((~required).sum())
        picks = wanted(free, guide.rows, guide.pieces, plan.budget - guide.required, guide.share)
        place[own] = merged(guided_order(p, guide.class_shares, required, picks), free, guide.rows)
        q = posterior(p, guide.class_shares)
        code[own], likely[own] = q.argmax(1), q.max(1)
    return {"guided_place": place, "guided_class": code, "guided_probability": likely}, None


def _claims(plan: Plan, rows: Columns) -> tuple[Floats, Floats]:
    """Of every row by the bank and by the draw."""
    guide = _guide(plan)
    drawn = np.where(rows["drawn"] < 0, np.nan, rows["drawn"] - guide.required)
    return claims(rows["guided_place"], drawn, guide.share)


def claim(plan: Plan, *layers: Columns) -> Columns:
    """The better claim of every row as its score; what rank was given by the draw."""
    rows = merge(layers)
    rows["drawn"] = rows["rank"]
    score = np.minimum(*_claims(plan, rows))
    return {"drawn": rows["drawn"], "score": np.where(np.isfinite(score), score, np.nan)}


def settle(plan: Plan, last: float, *layers: Columns) -> tuple[Columns, int]:
    """Which kept rows have a claim by the bank up to the last kept one; the first rank that no draw has within it."""
    rows = merge(layers)
    by_bank, by_draw = _claims(plan, rows)
    kept = (rows["rank"] >= 0) & (rows["reason"] == OPEN)
    end = int(rows["drawn"][kept & (by_draw <= last)].max(initial=_guide(plan).required - 1)) + 1
    return {"guided": kept & (by_bank <= last)}, end
