"""Failures measured in other implementations of GradVac and PCGrad, as tests that ours lacks them.

Each docstring says what happens there.
"""

import math

import pytest
import torch

from gradvac.errors import GradientError
from gradvac.methods import GradVac, PCGrad
from tests.methods.helpers import geometry, names, random_order, relative, task_gradients
from tests.reference.algorithm1 import Algorithm1


@pytest.mark.parametrize("norm", [1.0, 1e-3, 1e-5, 1e-8])
def test_small_gradients_are_edited_as_large_ones(norm):
    """An absolute 1e-8 in a denominator: the update is 25% off at norms of 1e-5."""
    method, literal = GradVac(beta=0.5), Algorithm1(0.5, {"t0", "t1"})
    generator = torch.Generator().manual_seed(0)
    for step in range(10):
        g = task_gradients("conflicting", 2, 20, generator)
        g = g / g.norm(dim=1, keepdim=True) * norm
        geo = geometry(g, step=step)
        expected = literal.step({"g": {"t0": g[0], "t1": g[1]}}, random_order(0, geo))
        assert relative(method.weights(geo)[0] @ g, expected["g"]) <= 1e-12


def test_thirty_parallel_steps_do_not_explode_on_the_next():
    """A target of almost 1 without a cap: the update is 9e8 times too long."""
    method = GradVac(beta=0.5)
    g = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    for step in range(30):
        method.weights(geometry(g, step=step))
    g = torch.eye(2, dtype=torch.float64)
    total = method.weights(geometry(g, step=30))[0] @ g
    assert float(total.norm()) <= 2 / math.sqrt(1 - 0.999**2)


@pytest.mark.parametrize("kind", [GradVac, PCGrad])
def test_exactly_opposed_gradients_are_finite(kind):
    """A cosine of -1.0000001 and the root of a negative number: NaN in half of the trials."""
    method = kind()
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        g = torch.randn(1, 50, generator=generator)
        g = torch.cat([g, -g * torch.rand(1, generator=generator)]).double()
        geo = geometry(g, step=step)
        geo.gram[0] *= 1 + 1e-7 * torch.randn(2, 2, dtype=torch.float64)  # as fp32 sums would
        assert bool(method.weights(geo).isfinite().all())


def test_one_bad_loss_does_not_disable_a_pair_for_ever():
    """NaN enters the moving average; the pair is then silently never edited again."""
    method = GradVac(beta=0.5)
    good = geometry(torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    method.weights(good)
    before = method.targets(["g"], names("t", 2))
    with pytest.raises(GradientError):
        method.weights(geometry(torch.full((2, 2), torch.nan, dtype=torch.float64)))
    assert torch.equal(method.targets(["g"], names("t", 2)), before)


def test_targets_belong_to_names_and_not_to_rows():
    """State kept by row: targets of languages {0,1,2} are applied to {0,4,5}, 2.8 times the sum."""
    first, other = ("t0", "t1", "t2"), ("t0", "t4", "t5")
    generator = torch.Generator().manual_seed(0)
    method = GradVac(beta=0.1)
    for step in range(30):
        method.weights(geometry(task_gradients("shared", 3, 50, generator), first, step))
    learnt = method.targets(["g"], first)
    assert float(learnt.sum()) > 1
    g = geometry(task_gradients("independent", 3, 50, generator), other, 30)
    assert torch.equal(method.weights(g), PCGrad().weights(g))  # strangers start from 0
    assert torch.equal(method.targets(["g"], first), learnt)


def test_a_step_with_fewer_tasks_keeps_all_targets():
    """State is thrown away without a word whenever the number of tasks changes."""
    generator = torch.Generator().manual_seed(0)
    method = GradVac(beta=0.1)
    method.weights(geometry(task_gradients("shared", 3, 50, generator), ("a", "b", "c")))
    before = method.targets(["g"], ("a", "b", "c"))[0]
    method.weights(geometry(task_gradients("shared", 2, 50, generator), ("c", "a"), 1))
    after = method.targets(["g"], ("a", "b", "c"))[0]
    changed = (after != before).nonzero().tolist()
    assert changed == [[0, 2], [2, 0]]


def test_orders_are_redrawn_for_every_group():
    """One order shared by all groups; line 11 of the algorithm is inside the loop over groups."""
    g = task_gradients("conflicting", 8, 30, torch.Generator().manual_seed(0))
    weights = PCGrad().weights(geometry({"a": g, "b": g}))
    assert not torch.allclose(weights[0], weights[1])


def test_no_gradient_is_projected_on_itself():
    """Loops that include j = i edit an unconflicted pair now and then by rounding."""
    generator = torch.Generator().manual_seed(0)
    method = PCGrad()
    for step in range(50):
        g = task_gradients("shared", 4, 50, generator)
        method.weights(geometry(g, step=step))
        assert method.report()["comparisons"].tolist() == [4 * 3]
        assert method.report()["edits"].tolist() == [0]
