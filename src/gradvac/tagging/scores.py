"""Tagging scores: entity F1 by seqeval's definition, accuracy, macro and weighted F1.

Every score is a function of counts that are summed over sentences. This makes the test of
`gradvac.tagging.significance` fast: exchanging sentences means exchanging rows of counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Tags = Sequence[str]
Entity = tuple[str, int, int]


def entities(tags: Tags) -> list[Entity]:
    """Kind, first and last word of every entity of a sentence, as seqeval 1.2.2 finds them.

    This is conlleval's definition: an entity continues while its kind stays the same and no B
    or S begins a new one; an I without B also begins one. Tags without a prefix, such as UPOS, are
    read as seqeval and so XTREME read them: the first letter is the prefix. Only a tag of one
    letter differs (UPOS ``X``): in seqeval it continues into the next sentence.
    """
    found: list[Entity] = []
    begun = 0
    marks = [("O", ""), *((t[0], t[1:].split("-", 1)[-1] or "_") for t in tags), ("O", "")]
    for place, ((mark, kind), (after, next_kind)) in enumerate(itertools.pairwise(marks)):
        changes = kind != next_kind
        ends = mark in "ES" or (mark in "BI" and after in "BSO")
        if ends or (mark not in "O." and changes):
            found.append((kind, begun, place - 1))
        starts = after in "BS" or (mark in "ESO" and after in "EI")
        if starts or (after not in "O." and changes):
            begun = place
    return found


def entity_counts(gold: Sequence[Tags], predicted: Sequence[Tags]) -> np.ndarray:
    """Correct, predicted and gold entities of every sentence [N, 3]."""
    rows = []
    for reference, hypothesis in zip(gold, predicted, strict=True):
        there, found = set(entities(reference)), set(entities(hypothesis))
        rows.append((len(there & found), len(found), len(there)))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def entity_f1(counts: np.ndarray) -> np.ndarray:
    """Micro-averaged F1 of summed counts [..., 3], 0 to 100; 0 if there is no entity."""
    right, found, there = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return _percent(2 * right, found + there)


def word_counts(gold: Sequence[Tags], predicted: Sequence[Tags], labels: Tags) -> np.ndarray:
    """Correct, predicted and gold words, for every sentence and label [N, L, 3]."""
    index = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(gold), len(labels), 3), dtype=np.int64)
    for n, (reference, hypothesis) in enumerate(zip(gold, predicted, strict=True)):
        for tag, guess in zip(reference, hypothesis, strict=True):
            counts[n, index[guess], 1] += 1
            counts[n, index[tag], 2] += 1
            counts[n, index[tag], 0] += tag == guess
    return counts


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Share of correctly tagged words, of summed counts [..., L, 3], in percent."""
    return _percent(counts[..., 0].sum(-1), counts[..., 2].sum(-1))


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the labels in gold or prediction, of summed counts [..., L, 3]."""
    each, used = _label_f1(counts), (counts[..., 1] + counts[..., 2]) > 0
    return (each * used).sum(-1) / np.maximum(used.sum(-1), 1)


def weighted_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the labels, weighted by their gold frequency, of counts [..., L, 3]."""
    there = counts[..., 2]
    return (_label_f1(counts) * there).sum(-1) / np.maximum(there.sum(-1), 1)


def _label_f1(counts: np.ndarray) -> np.ndarray:
    return _percent(2 * counts[..., 0], counts[..., 1] + counts[..., 2])


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100.0 * np.asarray(part, np.float64) / np.maximum(whole, 1)


@dataclass(frozen=True)
class TaggingScore:
    """Scores of one language, 0 to 100.

    ``f1`` is seqeval's, which XTREME and Wang et al. 2021 report for entities; for parts of speech
    it is computed on runs of equal tags, as in seqeval.
    """

    f1: float
    accuracy: float
    macro_f1: float
    weighted_f1: float
    sentences: int
    words: int


def score(gold: Sequence[Tags], predicted: Sequence[Tags], labels: Tags) -> TaggingScore:
    """Score the tagging of one language; ValueError if numbers of tags differ in a sentence."""
    words = word_counts(gold, predicted, labels).sum(0)
    return TaggingScore(
        f1=float(entity_f1(entity_counts(gold, predicted).sum(0))),
        accuracy=float(accuracy(words)),
        macro_f1=float(macro_f1(words)),
        weighted_f1=float(weighted_f1(words)),
        sentences=len(gold),
        words=sum(map(len, gold)),
    )
