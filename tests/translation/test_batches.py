"""Batches: a pure function of (seed, step), sampled by temperature, little padding."""

import numpy as np
import pytest
import torch

from gradvac.errors import RecipeError
from gradvac.translation.batches import Batch, BatchPlan, EncodedTask, Sentences, in_order
from gradvac.translation.vocabulary import BOS, EOS, PAD, sampling_probabilities


def corpus(sizes: dict[str, int], seed: int = 0) -> dict[str, EncodedTask]:
    """Random sentences with the long-tailed lengths of real text; source and target correlate."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, size in sizes.items():
        lengths = np.clip(rng.lognormal(2.3, 0.7, size).astype(int), 1, 120)
        side = []
        for ratio in (1.1, 1.0):
            n = np.maximum(1, (lengths * ratio * rng.uniform(0.8, 1.2, size)).astype(int))
            side.append(Sentences.of([[*rng.integers(4, 99, k), EOS] for k in n]))
        out[name] = EncodedTask(*side)
    return out


SIZES = {"fr-en": 6000, "de-en": 3000, "hi-en": 300, "ne-en": 60}


def equal(a: Batch, b: Batch) -> bool:
    parts = ("source", "target_in", "target_out", "task", "sentence")
    return all(torch.equal(getattr(a, p), getattr(b, p)) for p in parts)


def test_a_batch_depends_on_seed_and_step_alone():
    data = corpus(SIZES)
    forward = BatchPlan(data, tokens=400, temperature=5, seed=7, pool=4)
    seen = [forward(step) for step in range(40)]
    for step in (39, 0, 17, 5):  # any order, and a plan that never saw the steps before
        assert equal(seen[step], BatchPlan(data, tokens=400, temperature=5, seed=7, pool=4)(step))
    assert not equal(seen[3], BatchPlan(data, tokens=400, temperature=5, seed=8, pool=4)(3))


@pytest.mark.parametrize("temperature", [1.0, 5.0, 100.0, float("inf")])
def test_directions_are_drawn_with_the_probabilities_of_the_paper(temperature):
    sizes = np.array(list(SIZES.values()), dtype=float)
    wanted = sizes ** (1 / temperature) / (sizes ** (1 / temperature)).sum()
    assert sampling_probabilities(sizes, temperature) == pytest.approx(wanted)
    plan = BatchPlan(corpus(SIZES), tokens=2000, temperature=temperature, seed=1, pool=16)
    counts = sum(torch.bincount(plan(step).task, minlength=4).numpy() for step in range(16 * 20))
    total = counts.sum()
    # five standard deviations of a binomial share
    assert np.all(np.abs(counts / total - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / total))


def test_temperature_must_be_positive():
    with pytest.raises(RecipeError, match="temperature must be positive, found 0"):
        sampling_probabilities(np.ones(2), 0)


def test_each_epoch_of_a_direction_visits_every_sentence_once():
    plan = BatchPlan(corpus({"a-en": 50, "b-en": 20}), tokens=100, temperature=1, seed=3, pool=2)
    visited: dict[int, list[int]] = {0: [], 1: []}
    number = 0
    while min(len(v) for v in visited.values()) < 60:
        drawn = [plan._draw(number)]
        for batches in drawn:
            for task, sentence in batches:
                for t, s in zip(task.tolist(), sentence.tolist(), strict=True):
                    visited[t].append(s)
        number += 1
    # within a pool the order is by length, so count whole epochs only: after n draws every
    # sentence was seen floor or ceil of n / size times
    for t, size in ((0, 50), (1, 20)):
        counts = np.bincount(visited[t], minlength=size)
        assert counts.max() - counts.min() <= 1


def test_padding_stays_below_fifteen_percent_and_tokens_near_the_target():
    plan = BatchPlan(corpus(SIZES), tokens=1500, temperature=5, seed=1)
    batches = [plan(step) for step in range(64)]
    assert np.mean([b.padding for b in batches]) < 0.15
    assert np.mean([b.tokens for b in batches]) == pytest.approx(1500, rel=0.05)
    assert max(b.tokens for b in batches) < 1.3 * 1500


def test_layout_of_a_batch():
    data = {
        "fr-en": EncodedTask(
            Sentences.of([[9, 5, 3], [9, 5, 6, 3]]), Sentences.of([[7, 3], [8, 3]])
        ),
        "de-en": EncodedTask(Sentences.of([[9, 3]]), Sentences.of([[7, 8, 7, 3]])),
    }
    plan = BatchPlan(data, tokens=100, temperature=1, seed=1, pool=1)
    batch = plan(0)
    assert batch.target_in[:, 0].eq(BOS).all()
    for out, inn in zip(batch.target_out, batch.target_in, strict=True):
        n = int((out != PAD).sum())
        assert out[n - 1] == EOS and out[n:].eq(PAD).all()
        assert torch.equal(inn[1:n], out[: n - 1])
    for index in batch.present:
        part = batch.of_task(index)
        assert part.tasks[index] == ("fr-en", "de-en")[index]
        assert part.tokens == int((batch.target_out[batch.task == index] != PAD).sum())
        assert (part.target_out != PAD).any(0).all(), "no column of padding alone"
    assert sum(batch.of_task(i).tokens for i in batch.present) == batch.tokens


def test_no_batch_is_empty_even_when_one_sentence_is_longer_than_the_rest_together():
    long = Sentences.of([[4] * 500 + [EOS], *[[5, EOS]] * 7])
    plan = BatchPlan({"a-en": EncodedTask(long, long)}, tokens=4, temperature=1, seed=1, pool=8)
    for step in range(24):
        assert len(plan(step).task) >= 1


def test_in_order_gives_every_sentence_once():
    data = corpus({"a-en": 300})
    seen = [s for b in in_order(data, ("a-en",), 0, tokens=500) for s in b.sentence.tolist()]
    assert sorted(seen) == list(range(300))


def test_a_direction_without_sentences_is_refused_by_name():
    empty = EncodedTask(Sentences.of([]), Sentences.of([]))
    with pytest.raises(RecipeError, match="xh-en"):
        BatchPlan(corpus({"a-en": 5}) | {"xh-en": empty}, tokens=9, temperature=1, seed=1)
