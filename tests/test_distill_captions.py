"""What a model of text is told of each class."""

import logging
import random

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from curation.distillation import captions
from curation.distillation.captions import aggregated_texts, captions_count, few, sentences, spoken, template_texts
from curation.distillation.settings import DistillConfig
from curation.errors import RequestError

TEMPLATE = "A satellite image of {}"
SAID = {
    "Airport": [
        "Many planes are parked next to a long building .",
        "Many planes are parked next to a long building. There are two runways.",
        "Some planes stand near a terminal\nThere are two runways",
        "A red truck.",
    ],
    "Pond": ["Green trees are around a pond.", "A pond is near a road; green trees are around a pond", " . "],
}


def rows(said=SAID):
    return [(f"{label}{number:03d}", label, text) for label, texts in said.items() for number, text in enumerate(texts)]


def anything(text):
    return True


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("BaseballField", "baseball field"),
        ("storage_tanks", "storage tanks"),
        ("Sea-Lake ", "sea lake"),
        ("B02", "b02"),
        ("7", "7"),
        ("_", "_"),
    ],
)
def test_a_label_is_said_in_words(label, said):
    assert spoken(label) == said
    assert template_texts([label], TEMPLATE) == [f"A satellite image of {said}"]


def test_numbers_as_labels_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "curation"):
        template_texts(["1", "2", "pond"], TEMPLATE)
    assert "2 of 3 labels are numbers (1, 2)" in caplog.text


def test_sentences_are_told_apart_and_alike_ones_are_alike():
    assert sentences("Two PLANES .  A runway!\nIt is wet;so") == ["two planes.", "a runway.", "it is wet.", "so."]
    assert sentences(" . ") == []


def test_the_most_typical_sentences_follow_the_template():
    airport, pond, none = aggregated_texts(["Airport", "Pond", "School"], TEMPLATE, rows(), anything)
    assert airport.startswith("A satellite image of airport. many planes are parked next to a long building. there are")
    assert pond.startswith("A satellite image of pond. green trees are around a pond. a pond is near a road.")
    assert none == "A satellite image of school"


def test_each_sentence_is_the_one_that_brings_the_text_nearest_to_its_class():
    [text] = aggregated_texts(["Airport"], "{}", rows(), anything)
    every = [sentence for caption in SAID["Airport"] for sentence in sentences(caption)]
    said = sorted(set(every))
    tfidf = TfidfVectorizer(token_pattern=r"\w+").fit(said)
    mean = tfidf.transform(every).toarray().mean(0)

    def cosine(chosen):
        total = tfidf.transform(chosen).toarray().sum(0)
        return total @ mean / np.linalg.norm(total) / np.linalg.norm(mean)

    chosen: list[str] = []
    while left := [s for s in said if s not in chosen]:
        best = max(left, key=lambda s: round(cosine([*chosen, s]), 9))
        if chosen and cosine([*chosen, best]) <= cosine(chosen) + 1e-9:
            break
        chosen.append(best)
    assert text == " ".join(["airport.", *chosen])


def test_a_text_is_never_longer_than_the_encoder_reads():
    for most in range(4, 40):
        for text in aggregated_texts(["Airport", "Pond"], TEMPLATE, rows(), lambda t, n=most: len(t.split()) <= n):
            assert len(text.split()) <= max(most, 5)


def test_classes_without_captions_are_named_and_none_at_all_is_refused(caplog):
    with caplog.at_level(logging.WARNING, "curation"):
        aggregated_texts(["Pond", "School"], TEMPLATE, rows(), anything)
    assert "1 of 2 classes have no caption (School): theirs is the template" in caplog.text
    with pytest.raises(RequestError, match="no sample has a caption; .*distill.captions=template"):
        aggregated_texts(["School"], TEMPLATE, [*rows(), ("a", "School", " . ")], anything)


def test_the_few_that_are_read_do_not_depend_on_the_order_or_the_parts(monkeypatch):
    monkeypatch.setattr(captions, "KEPT", 7)
    draw = random.Random(0)
    every = [(f"{draw.getrandbits(64):016x}", draw.choice("abc"), f"caption {n}") for n in range(60)]
    expected = sorted(r for label in "abc" for r in sorted(r for r in every if r[1] == label)[:7])
    assert few(every) == expected
    for _ in range(5):
        draw.shuffle(every)
        assert few([*few(every[:25]), *few(every[25:])]) == expected


def test_captions_without_weights_have_no_effect_which_is_said(caplog):
    assert captions_count(DistillConfig(captions="aggregated", weights="a/b"))
    assert not captions_count(DistillConfig(weights="a/b"))
    assert not caplog.text
    assert not captions_count(DistillConfig(captions="aggregated"))
    assert "no effect without distill.weights" in caplog.text
