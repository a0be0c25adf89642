"""Whether one tagging run is better than another, language by language."""

from __future__ import annotations

from gradvac.experiment.compare.results import Result
from gradvac.tagging.scores import accuracy, entity_counts, entity_f1, word_counts
from gradvac.tagging.significance import TRIALS, randomisation_test


def p_values_of_tags(base: Result, own: Result, language: str, samples: int) -> dict[str, float]:
    """Two-sided p-values of F1 and accuracy by approximate randomisation over sentences.

    ``samples`` trials, 0 for `TRIALS`.
    """
    (gold, before), (_, after) = base.tags[language], own.tags[language]
    words = lambda tags: word_counts(gold, tags, own.labels)
    spans = lambda tags: entity_counts(gold, tags)
    trials = samples or TRIALS
    return {
        "f1": randomisation_test(spans(before), spans(after), entity_f1, trials=trials),
        "accuracy": randomisation_test(words(before), words(after), accuracy, trials=trials),
    }
