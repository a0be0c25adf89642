"""Batches: a pure function of seed, step and shares; drawn with those shares; little padding."""

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvac.data.batches import (
    Batch,
    BatchPlan,
    in_order,
    random_batch,
)
from gradvac.data.encoded import BOS, EOS, PAD, EncodedTask, Sentences, Side
from gradvac.data.sampling import sampling_probabilities
from gradvac.errors import RecipeError


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
SMALL = corpus({"fr-en": 400, "de-en": 90, "ne-en": 7})


def plan_of(data: dict[str, EncodedTask], temperature: float = 5, **options: Any) -> BatchPlan:
    plan = BatchPlan(data, **options)
    plan.add_phase(0, sampling_probabilities(plan.sizes, temperature))
    return plan


def equal(a: Batch, b: Batch) -> bool:
    parts = ("source", "target_in", "target_out", "task", "sentence")
    return all(torch.equal(getattr(a, p), getattr(b, p)) for p in parts)


def test_a_batch_depends_on_seed_and_step_alone():
    data = corpus(SIZES)
    forward = plan_of(data, tokens=400, seed=7, pool=4)
    seen = [forward(step) for step in range(40)]
    for step in (39, 0, 17, 5):  # any order, and a plan that never saw the steps before
        assert equal(seen[step], plan_of(data, tokens=400, seed=7, pool=4)(step))
    assert not equal(seen[3], plan_of(data, tokens=400, seed=8, pool=4)(3))


@given(st.integers(0, 2**32), st.integers(1, 9), st.lists(st.integers(0, 40), max_size=5))
@settings(max_examples=30)
def test_a_batch_is_the_same_whatever_was_asked_for_before_it(seed, pool, before):
    plan = plan_of(SMALL, tokens=120, seed=seed, pool=pool)
    for step in before:
        plan(step)
    assert equal(plan(17), plan_of(SMALL, tokens=120, seed=seed, pool=pool)(17))


@pytest.mark.parametrize("temperature", [1.0, 5.0, 100.0, float("inf")])
def test_directions_are_drawn_with_the_probabilities_of_the_paper(temperature):
    sizes = np.array(list(SIZES.values()), dtype=float)
    wanted = sizes ** (1 / temperature) / (sizes ** (1 / temperature)).sum()
    assert sampling_probabilities(sizes, temperature) == pytest.approx(wanted)
    plan = plan_of(corpus(SIZES), temperature, tokens=2000, seed=1, pool=16)
    counts = sum(torch.bincount(plan(step).task, minlength=4).numpy() for step in range(16 * 20))
    total = counts.sum()
    # five standard deviations of a binomial share
    assert np.all(np.abs(counts / total - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / total))


def test_shares_change_at_the_step_they_are_said_to():
    plan = plan_of(corpus(SIZES), 1, tokens=2000, seed=1, pool=16)
    uniform = np.full(4, 0.25)
    plan.add_phase(100, uniform)  # within a pool: 100 = 6 * 16 + 4
    counts = np.array([torch.bincount(plan(step).task, minlength=4).numpy() for step in range(200)])
    for part, wanted in (counts[:100], plan.sizes / plan.sizes.sum()), (counts[100:], uniform):
        total = part.sum()
        spread = np.sqrt(wanted * (1 - wanted) / total)
        assert np.all(np.abs(part.sum(0) / total - wanted) < 5 * spread)


@pytest.mark.parametrize(("period", "pool"), [(6, 4), (4, 4), (3, 8)])
def test_a_phase_added_on_the_way_is_one_known_from_the_start(period, pool):
    """What a run that learns its shares sees is what it sees when resumed with all of them."""
    data, other = corpus(SIZES), np.array([0.1, 0.2, 0.3, 0.4])
    whole = plan_of(data, tokens=200, seed=2, pool=pool, period=period)
    seen = [whole(step) for step in range(2 * period)]
    whole.add_phase(2 * period, other)
    seen += [whole(step) for step in range(2 * period, 20)]
    resumed = plan_of(data, tokens=200, seed=2, pool=pool, period=period)
    resumed.add_phase(2 * period, other)
    for step in (19, 2 * period, 2 * period - 1, 0):
        assert equal(resumed(step), seen[step])


def test_a_phase_cannot_change_what_was_drawn():
    plan = plan_of(corpus(SIZES), tokens=200, seed=2, pool=4)
    plan(5)
    for first in (0, 7):
        with pytest.raises(ValueError, match=f"cannot begin at batch {first}"):
            plan.add_phase(first, np.full(4, 0.25))
    plan.add_phase(8, np.full(4, 0.25))
    with pytest.raises(ValueError, match="cannot begin at batch 3"):
        BatchPlan(corpus(SIZES), tokens=9, seed=1).add_phase(3, np.full(4, 0.25))


def test_a_random_batch_is_of_one_task_and_size_and_repeats_no_sentence():
    data = corpus(SIZES)
    batch = random_batch(data, tuple(data), 1, 2000, np.random.default_rng(0))
    assert batch.present == [1] and len(set(batch.sentence.tolist())) == len(batch.sentence)
    assert batch.tokens == pytest.approx(2000, rel=0.15)
    all_of_it = random_batch(data, tuple(data), 3, 10**6, np.random.default_rng(0))
    assert sorted(all_of_it.sentence.tolist()) == list(range(60))


def test_temperature_must_be_positive():
    with pytest.raises(RecipeError, match="temperature must be positive, found 0"):
        sampling_probabilities(np.ones(2), 0)


def test_each_epoch_of_a_direction_visits_every_sentence_once():
    plan = plan_of(corpus({"a-en": 50, "b-en": 20}), 1, tokens=100, seed=3, pool=2)
    plan.add_phase(5, np.array([0.5, 0.5]))  # an epoch goes on where the shares change
    visited: dict[int, list[int]] = {0: [], 1: []}
    step = 0
    while step < 6 or step % 2 == 0 or min(len(v) for v in visited.values()) < 60:
        batch = plan(step)
        for t, s in zip(batch.task.tolist(), batch.sentence.tolist(), strict=True):
            visited[t].append(s)
        step += 1
    # within a pool the order is by length, so count whole epochs only: after n draws every
    # sentence was seen floor or ceil of n / size times
    for t, size in ((0, 50), (1, 20)):
        counts = np.bincount(visited[t], minlength=size)
        assert counts.max() - counts.min() <= 1


def test_padding_stays_below_fifteen_percent_and_tokens_near_the_target():
    plan = plan_of(corpus(SIZES), tokens=1500, seed=1)
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
    plan = plan_of(data, 1, tokens=100, seed=1, pool=1)
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
    plan = plan_of({"a-en": EncodedTask(long, long)}, tokens=4, seed=1, pool=8)
    for step in range(24):
        assert len(plan(step).task) >= 1


def test_in_order_gives_every_sentence_once():
    data = corpus({"a-en": 300})
    seen = [s for b in in_order(data, ("a-en",), 0, tokens=500) for s in b.sentence.tolist()]
    assert sorted(seen) == list(range(300))


def test_a_direction_without_sentences_is_refused_by_name():
    empty = EncodedTask(Sentences.of([]), Sentences.of([]))
    with pytest.raises(RecipeError, match="xh-en"):
        BatchPlan(corpus({"a-en": 5}) | {"xh-en": empty}, tokens=9, seed=1)


class Formula(Side):
    """Sentences that exist nowhere: sentence i has 5 + i % 20 tokens, each i % 90 + 4."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, set[int]()

    def __len__(self) -> int:
        return self.size

    @property
    def tokens(self) -> int:
        return self.size // 20 * sum(range(5, 25))

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        self.seen.update(rows.tolist())
        return 5 + rows % 20

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return np.repeat(rows % 90 + 4, self.lengths_of(rows))


def test_twenty_five_billion_pairs_are_drawn_from_as_a_thousand_are():
    """Only sentences that are drawn are looked at, all numbers are exact, and none comes twice."""
    size = 25 * 10**9 // 20 * 20
    side = Formula(size)
    tracemalloc.start()
    plan = plan_of({"fr-en": EncodedTask(side, side)}, 1, tokens=2000, seed=5, pool=8)
    drawn = [i for step in range(16) for i in plan(step).sentence.tolist()]
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert len(set(drawn)) == len(drawn) == len(side.seen) > 1000
    assert max(drawn) > 2**34 and all(0 <= i < size for i in drawn)
    # uniform over the whole range: five standard deviations of the mean of uniform numbers
    assert np.mean(drawn) / size == pytest.approx(0.5, abs=5 * (12 * len(drawn)) ** -0.5)


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 2**32))
@settings(max_examples=40)
def test_ranks_share_the_batch_that_one_rank_would_see(world, step, seed):
    plan = plan_of(SMALL, tokens=120, seed=seed, pool=4)
    whole = plan(step)
    pairs = lambda b: list(zip(b.task.tolist(), b.sentence.tolist(), strict=True))
    shares = [plan(step, rank, world) for rank in range(world)]
    assert sorted(p for share in shares for p in pairs(share)) == sorted(pairs(whole))
    assert sum(share.tokens for share in shares) == whole.tokens
    for task in whole.present:  # of every task, no rank has more than one sentence above another
        own = [int((share.task == task).sum()) for share in shares]
        assert max(own) - min(own) <= 1


def test_two_ranks_partition_an_epoch():
    plan = plan_of(corpus({"a-en": 64}), 1, tokens=100, seed=3, pool=2)
    first: list[int] = []
    second: list[int] = []
    for step in itertools.count():
        rows = len(plan(step).sentence)
        if len(first) + len(second) + rows > 64:
            break
        first += plan(step, 0, 2).sentence.tolist()
        second += plan(step, 1, 2).sentence.tolist()
    assert not set(first) & set(second)
    assert len({*first, *second}) == len(first) + len(second) > 32
