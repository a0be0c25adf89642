"""Approximate randomisation against all exchanges there are."""

import itertools
import random

import numpy as np
import pytest

from gradvac.tagging.scores import accuracy, entity_counts, entity_f1, word_counts
from gradvac.tagging.significance import randomisation_test


def brute_force(gold, first, second, score_of):
    """The share of all exchanges that differ at least as much as what was seen."""
    seen = abs(score_of(gold, second) - score_of(gold, first))
    found = []
    for exchange in itertools.product((False, True), repeat=len(gold)):
        a = [y if e else x for x, y, e in zip(first, second, exchange, strict=True)]
        b = [x if e else y for x, y, e in zip(first, second, exchange, strict=True)]
        found.append(abs(score_of(gold, a) - score_of(gold, b)) >= seen - 1e-9)
    return sum(found) / len(found)


def case(seed):
    rng = random.Random(seed)
    tags = ["B-PER", "I-PER", "O"]
    gold = [[rng.choice(tags) for _ in range(6)] for _ in range(8)]
    spoil = lambda p: [[rng.choice(tags) if rng.random() < p else t for t in row] for row in gold]
    return gold, spoil(0.7), spoil(0.2), tags


@pytest.mark.parametrize("seed", range(3))
def test_p_values_are_those_of_all_exchanges(seed):
    gold, first, second, tags = case(seed)
    of_f1 = lambda g, h: float(entity_f1(entity_counts(g, h).sum(0)))
    found = randomisation_test(
        entity_counts(gold, first), entity_counts(gold, second), entity_f1, trials=20_000
    )
    assert found == pytest.approx(brute_force(gold, first, second, of_f1), abs=0.015)
    right = lambda g, h: sum(x == y for a, b in zip(g, h, strict=True) for x, y in zip(a, b))  # noqa: B905
    counts = (word_counts(gold, h, tags) for h in (first, second))
    found = randomisation_test(*counts, accuracy, trials=20_000)
    assert found == pytest.approx(brute_force(gold, first, second, right), abs=0.015)


def test_equal_systems_differ_by_chance_alone():
    counts = np.ones((5, 3), dtype=np.int64)
    assert randomisation_test(counts, counts, entity_f1, trials=50) == 1
