"""What a model of text is told of a class: a template with its name, and, where wanted, its most typical captions.

The first version of DPD aggregates texts of a vision-language model and does not say how. Here (choice) they are the
archive's own captions, sentence by sentence, by their centroid: of each class those sentences follow the template that
together come nearest to the mean TF-IDF vector of all its sentences (Rossiello et al. 2017; greedily, as Ghalandari,
arXiv 1708.07690), as many as the text encoder takes in and as bring it nearer.
"""

import heapq
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.distillation.settings import DistillConfig
from curation.errors import require

log = logging.getLogger("curation")

KEPT = 500  # captions of a class that are read
WORD = r"(?u)\w+"
END = re.compile(r"(?<=[.!?])\s+|[\n;]+")
PARTS = re.compile(r"[_\-\s]+|(?<=[a-z])(?=[A-Z])")

Floats = NDArray[np.float64]
Captioned = tuple[str, str, str]  # sample_id, label, caption


def captions_count(settings: DistillConfig) -> bool:
    """Whether captions are to be read; warns where they are asked for and nothing would come of it."""
    wanted = settings.captions == "aggregated"
    if wanted and settings.weights is None:
        log.warning(
            "distill.captions=aggregated has no effect without distill.weights: a model trained from scratch knows "
            "classes by their number, not by a text"
        )
    return wanted and settings.weights is not None


def few(rows: Iterable[Captioned]) -> list[Captioned]:
    """Of each class the captions of ``KEPT`` samples, those with the smallest ids: a sample of them, as ids are hashes.

    What is left of parts may be put together and given again: in what order makes no difference.

    Args:
        rows: sample_id, label, caption; blank captions are passed over.
    """
    heaps: dict[str, list[tuple[_Last, Captioned]]] = {}
    for row in rows:
        if not re.search(WORD, row[2]):
            continue
        heap = heaps.setdefault(row[1], [])
        (heapq.heappush if len(heap) < KEPT else heapq.heappushpop)(heap, (_Last(row), row))
    return sorted(row for heap in heaps.values() for _, row in heap)


class _Last(tuple[str, ...]):
    """A row that is smaller the later it comes, for ``heapq``'s smallest is the first to go."""

    __slots__ = ()

    def __lt__(self, other: tuple[str, ...]) -> bool:
        return tuple.__gt__(self, other)


def spoken(label: str) -> str:
    """A label as one would say it: ``BaseballField`` and ``baseball_field`` are both a baseball field."""
    return " ".join(PARTS.sub(" ", label).split()).lower() or label


def template_texts(classes: Sequence[str], template: str) -> list[str]:
    """The template with each class's name in the place of ``{}``."""
    numbers = [name for name in classes if not re.search(r"[^\W\d_]", name)]
    if numbers:
        log.warning(
            "%d of %d labels are numbers (%s): a model of text makes nothing of them; give names in a table "
            "(archive.tables, distill.label)",
            *(len(numbers), len(classes), ", ".join(numbers[:3])),
        )
    return [template.replace("{}", spoken(name)) for name in classes]


def aggregated_texts(
    classes: Sequence[str], template: str, rows: Iterable[Captioned], fits: Callable[[str], bool]
) -> list[str]:
    """The template of each class, and after it the most typical sentences of its captions.

    Args:
        classes: their names.
        template: with ``{}`` where the name belongs.
        rows: captions, as :func:`few` leaves them; those of other classes are passed over.
        fits: whether the text encoder takes a text in whole.

    Raises:
        RequestError: no class has a caption.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = template_texts(classes, template)
    found: dict[str, Counter[str]] = {name: Counter() for name in classes}
    for _, label, caption in few(rows):
        if label in found:
            found[label].update(sentences(caption))
    require(
        any(found.values()),
        "distill.captions=aggregated: no sample has a caption; give captions in sidecars (docs/formats.md), or "
        "choose distill.captions=template",
    )
    without = [name for name in classes if not found[name]]
    if without:
        log.warning(
            "%d of %d classes have no caption (%s): theirs is the template",
            *(len(without), len(classes), ", ".join(without[:3])),
        )
    tfidf = TfidfVectorizer(token_pattern=WORD)
    tfidf.fit([sentence for name in classes for sentence in sorted(found[name])])
    for number, name in enumerate(classes):
        if found[name]:
            said = sorted(found[name])
            counts = np.array([found[name][sentence] for sentence in said], np.float64)
            texts[number] = _typical(texts[number].rstrip(" .") + ".", said, tfidf.transform(said), counts, fits)
    return texts


def sentences(caption: str) -> list[str]:
    """The sentences of a caption, in small letters (as CLIP reads them), each with a stop at its end."""
    parts = (" ".join(part.split()).rstrip(" .,!?").lower() for part in END.split(caption))
    return [part + "." for part in parts if re.search(WORD, part)]


def _typical(text: str, said: list[str], vectors: Any, counts: Floats, fits: Callable[[str], bool]) -> str:
    """The text, and after it sentence by sentence the one that brings the sum of all nearest to the mean's direction.

    Args:
        text: the template's.
        said: (n,) sentences, sorted: of equals the first is taken.
        vectors: (n, words) of unit length, sparse.
        counts: (n,) how often each was said.
        fits: whether a text is not too long.
    """
    mean = counts @ vectors
    along = vectors @ mean / np.linalg.norm(mean)
    total, near, left = np.zeros_like(mean), 0.0, np.ones(len(said), bool)
    while True:
        lengths = np.sqrt(total @ total + 2 * (vectors @ total) + 1)
        cosines = ((along[~left].sum() + along) / lengths).round(12)  # of the sum with each sentence
        order = np.argsort(-cosines, kind="stable")
        better = order[left[order] & (cosines[order] > near)]
        chosen = next((k for k in better if fits(f"{text} {said[k]}")), None)
        if chosen is None:
            return text
        near, left[chosen] = cosines[chosen], False
        total, text = total + vectors[[chosen]].toarray()[0], f"{text} {said[chosen]}"
