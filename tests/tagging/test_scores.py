"""Entity F1 is seqeval's, the F1 of labels scikit-learn's."""

import random
import warnings

import numpy as np
import pytest

from gradvac.tagging.scores import entities, entity_counts, entity_f1, score, word_counts

seqeval_metrics = pytest.importorskip("seqeval.metrics")
sequence_labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
sklearn_metrics = pytest.importorskip("sklearn.metrics")

IOB = [f"{mark}-{kind}" for mark in "BI" for kind in ("PER", "LOC")] + ["O", "O"]
IOBES = [f"{mark}-{kind}" for mark in "BIES" for kind in ("PER", "LOC")] + ["O"]
POS = ["NOUN", "VERB", "ADP", "SCONJ", "INTJ", "PUNCT", "AUX", "DET"]


def tagging(rng, tags, sentences=4):
    return [[rng.choice(tags) for _ in range(rng.randint(1, 9))] for _ in range(sentences)]


def noisy(rng, gold, tags):
    return [[rng.choice(tags) if rng.random() < 0.4 else t for t in row] for row in gold]


@pytest.mark.filterwarnings("ignore")  # seqeval warns of tags without a mark, and of no entities
@pytest.mark.parametrize("tags", [IOB, IOBES, POS, ["B", "I", "O"]], ids=str)
def test_f1_of_random_taggings_is_that_of_seqeval(tags):
    rng = random.Random(5)
    for _ in range(1000 if tags is IOB else 200):
        gold = tagging(rng, tags)
        guess = noisy(rng, gold, tags)
        theirs = seqeval_metrics.f1_score(gold, guess, zero_division=0)
        assert float(entity_f1(entity_counts(gold, guess).sum(0))) == pytest.approx(100 * theirs)


@pytest.mark.parametrize(
    "tags",
    [
        ["I-PER", "I-PER"],  # no B at the beginning
        ["O", "I-PER", "O"],
        ["B-PER", "I-LOC"],  # the kind changes inside
        ["B-PER", "B-PER"],
        ["I-PER", "B-PER", "I-PER"],
        ["B-PER", "O", "I-PER"],
        ["S-PER", "E-PER", "I-PER"],
        ["B-X-Y", "I-X-Y", "I-Y"],  # a dash in the kind
        ["O"],
    ],
    ids=str,
)
def test_corner_cases_have_the_entities_of_seqeval(tags):
    assert entities(tags) == sequence_labeling.get_entities(tags)


def test_nothing_to_find_is_no_score():
    assert float(entity_f1(entity_counts([["O"]], [["O"]]).sum(0))) == 0


@pytest.mark.filterwarnings("ignore")
def test_f1_of_labels_is_that_of_scikit_learn():
    rng = random.Random(6)
    for _ in range(50):
        gold = tagging(rng, POS)
        guess = noisy(rng, gold, POS)
        ours = score(gold, guess, [*POS, "NEVER"])
        flat = [t for row in gold for t in row], [t for row in guess for t in row]
        assert ours.accuracy == pytest.approx(100 * sklearn_metrics.accuracy_score(*flat))
        for name in ("macro", "weighted"):
            theirs = sklearn_metrics.f1_score(*flat, average=name, zero_division=0)
            assert getattr(ours, f"{name}_f1") == pytest.approx(100 * theirs)
        assert (ours.sentences, ours.words) == (4, len(flat[0]))


def test_counts_add_up_over_sentences():
    counts = word_counts([["A", "B"], ["B"]], [["A", "A"], ["B"]], ["A", "B"])
    assert np.array_equal(counts.sum(0), [[1, 2, 1], [1, 1, 2]])
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"shorter|longer"):
        word_counts([["A", "B"]], [["A"]], ["A", "B"])
