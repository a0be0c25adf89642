"""FAMO against its algorithm with autograd and Adam, and against TorchJD."""

import math

import pytest
import torch

from gradvac.errors import GradientError
from gradvac.methods import FAMO, StepGeometry
from tests.methods.helpers import geometry, relative
from tests.reference.famo import LiteralFAMO

K = 4


def losses(step, unit=1.0):
    """Losses that fall at different rates, with noise."""
    generator = torch.Generator().manual_seed(step)
    rate = torch.tensor([0.0, 0.01, 0.03, 0.1]).double()
    noise = 0.05 * torch.randn(K, generator=generator).double()
    return unit * (3 * torch.exp(-rate * step) + 1 + noise)


def ask(method, now, step, tasks=None):
    n = len(now)
    return method.weights(geometry(torch.eye(n).double(), tasks, step, now))[0]


def test_against_the_algorithm_with_the_losses_of_the_next_step():
    ours, literal = FAMO(0.025, 1e-3), LiteralFAMO(K, 0.025, 1e-3)
    for step in range(100):
        now = losses(step)
        if step:
            literal.update(losses(step - 1), now)
        assert relative(ask(ours, now, step), literal.task_weights(now)) <= 1e-12
    assert float(literal.w.detach().abs().max()) > 0.5  # it went somewhere


def test_against_torchjd_with_the_losses_after_the_step():
    famo = pytest.importorskip("torchjd.scalarization").FAMO
    ours, theirs = FAMO(), famo(K).double()
    for step in range(100):
        now, after = losses(step, unit=1e4), losses(step + 1000, unit=1e4)  # their eps is 1e-8
        variables = now.clone().requires_grad_()
        (expected,) = torch.autograd.grad(theirs(variables), variables)
        assert relative(ask(ours, now, step), expected) <= 1e-8
        theirs.update(after)
        ours.after({f"t{n}": float(after[n]) for n in range(K)})


def test_the_task_that_falls_slowest_gets_most():
    method = FAMO()
    for step in range(200):
        ask(method, losses(step), step)
    z = method.report()["preferences"][0]
    assert int(z.argmax()) == 0


def test_no_scale_of_the_losses_matters():
    one, other = FAMO(), FAMO()
    unit = torch.tensor([1e-8, 1.0, 1e3, 1e8]).double()
    for step in range(20):
        a, b = ask(one, losses(step), step), ask(other, losses(step) * unit, step)
        b = b * unit  # the gradients are scaled with their losses
        assert relative(b / b.sum(), a / a.sum()) <= 1e-10


def test_shares_do_not_look_like_progress():
    """The gradient of share * loss is at hand; the direction is that of the mean losses."""
    one, other = FAMO(), FAMO()
    for step in range(20):
        share = torch.rand(K, generator=torch.Generator().manual_seed(step)).double() + 0.1
        now, eye = losses(step), torch.eye(K).double()
        plain = ask(one, now, step)
        geo = geometry(eye, step=step)
        mixed = other.weights(
            StepGeometry(geo.gram, now * share, geo.tasks, geo.groups, step, share)
        )
        direction = mixed[0] * share
        assert relative(direction / direction.sum(), plain) <= 1e-12


def test_a_drop_over_several_steps_is_a_rate():
    one, other = FAMO(), FAMO()
    first, last = torch.tensor([4.0, 2.0]).double(), torch.tensor([1.0, 2.0]).double()
    ask(one, first, 0)
    ask(one, last, 2)
    ask(other, first, 0)
    ask(other, torch.tensor([2.0, 2.0]).double(), 1)  # half of the drop in half of the time
    assert one.state_dict()["logits"] == other.state_dict()["logits"]


def test_lower_bounds_by_name():
    method, plain = FAMO(min_losses={"t1": 1.5}), FAMO()
    for step in range(10):
        now = losses(step) + 1
        above = now - torch.tensor([0, 1.5, 0, 0]).double()
        assert relative(ask(method, now, step), ask(plain, above, step)) <= 1e-14


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_loss_without_logarithm_is_refused_and_changes_nothing(bad):
    method = FAMO()
    ask(method, losses(0), 0)
    before = method.state_dict()
    now = losses(1)
    now[2] = bad
    with pytest.raises(GradientError, match="loss of task 't2' is"):
        ask(method, now, 1)
    with pytest.raises(GradientError, match="loss of task 't0' is nan"):
        method.after({"t0": math.nan})
    with pytest.raises(GradientError, match=r"after\(\) before any step with task 'x'"):
        method.after({"x": 1.0})
    assert method.state_dict() == before


@pytest.mark.parametrize("options", [{"learning_rate": 0}, {"weight_decay": -1}])
def test_options_out_of_range(options):
    with pytest.raises(GradientError, match=f"{next(iter(options))} is"):
        FAMO(**options)
