"""Ours against the literal, float64 Algorithm 1 of the paper."""

import pytest
import torch

from gradvac.methods import GradVac, PCGrad
from tests.methods.helpers import (
    REGIMES,
    geometry,
    names,
    random_order,
    relative,
    task_gradients,
)
from tests.reference.algorithm1 import Algorithm1

SIZES = {"layer0": 500, "layer1": 30, "bias": 7, "embedding": 200}


def run_both(method, literal, tasks, regime, steps, batch_of=None, seed=0):
    """Train both on the same gradients; yield (ours, theirs) per step and group."""
    generator = torch.Generator().manual_seed(11)
    for step in range(steps):
        batch = tasks if batch_of is None else batch_of(step)
        g = {k: task_gradients(regime, len(batch), p, generator) for k, p in SIZES.items()}
        geo = geometry(g, batch, step)
        weights = method.weights(geo)
        vectors = {k: dict(zip(batch, rows, strict=True)) for k, rows in g.items()}
        expected = literal.step(vectors, random_order(seed, geo))
        for k, (group, rows) in enumerate(g.items()):
            yield weights[k] @ rows, expected[group]
        counted = dict(zip(SIZES, method.report()["edits"].tolist(), strict=True))
        assert counted == {group: literal.edits[group] for group in SIZES}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n_tasks", [1, 2, 3, 8, 16])
def test_thirty_steps_of_all_tasks(n_tasks, regime):
    tasks = names("t", n_tasks)
    method, literal = GradVac(beta=0.1, seed=0), Algorithm1(0.1, set(tasks))
    pairs = run_both(method, literal, tasks, regime, steps=30)
    assert max(relative(a, b) for a, b in pairs) <= 1e-10
    ema = method.targets(SIZES, tasks)
    for (i, j, k), value in literal.phi_hat.items():
        ours = ema[list(SIZES).index(k), tasks.index(i), tasks.index(j)]
        assert abs(float(ours) - value) <= 1e-10


@pytest.mark.parametrize("regime", REGIMES)
def test_subset_of_tasks_to_edit(regime):
    tasks = names("t", 6)
    chosen = ["t1", "t4", "t5"]
    method, literal = GradVac(beta=0.1, tasks=chosen), Algorithm1(0.1, set(chosen))
    pairs = run_both(method, literal, tasks, regime, steps=30)
    assert max(relative(a, b) for a, b in pairs) <= 1e-10


def test_tasks_that_come_and_go():
    tasks = names("t", 12)
    chosen = tasks[::2]

    def batch_of(step):
        picked = torch.randperm(12, generator=torch.Generator().manual_seed(step))[:5]
        return tuple(tasks[i] for i in picked.tolist())

    method, literal = GradVac(beta=0.1, tasks=chosen), Algorithm1(0.1, set(chosen))
    pairs = run_both(method, literal, tasks, "shared", steps=40, batch_of=batch_of)
    assert max(relative(a, b) for a, b in pairs) <= 1e-10


def test_pcgrad_is_algorithm1_with_targets_of_zero():
    tasks = names("t", 8)
    pairs = run_both(PCGrad(seed=3), Algorithm1(0.0, set(tasks)), tasks, "conflicting", 10, seed=3)
    assert max(relative(a, b) for a, b in pairs) <= 1e-10
