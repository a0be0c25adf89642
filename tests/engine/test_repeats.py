"""A graph that can be run backward only once is found, whatever asks for several passes."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from gradvac import Engine, GradientError, Joint
from gradvac.engine import PerTaskEngine

TASKS = ["a", "b", "a", "b"]
X = torch.linspace(-1, 1, 12, dtype=torch.float64).sin().view(4, 3)


class Once(torch.autograd.Function):
    """Writes its gradient to what it saved, as fused kernels do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        x.data.mul_(2 * dy)
        return x.clone()


class Twice(Once):
    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2 * dy * x


def model_with(function):
    torch.manual_seed(0)
    first, last = nn.Linear(3, 3), nn.Linear(3, 2)
    model = nn.ModuleList([first, last]).double()
    return model, lambda: last(function.apply(first(X))).square().sum(1)


FOUND = pytest.raises(GradientError, match=r"other gradients .* \(Once\) writes to what it saved")


def exact(model, losses):
    """The gradient of all losses, by a graph that is used once."""
    return torch.autograd.grad(losses().sum(), list(model.parameters()))


def close(model, gradients):
    for p, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("options", [{}, {"engine": "per_task"}])
@pytest.mark.parametrize("function", [Once, Twice])
def test_one_pass_for_each_task_of_a_batch(function, options):
    model, losses = model_with(function)
    engine = Engine(model, Joint(), **options)
    with engine.tasks(TASKS, inputs=[X]):
        loss = losses()
        with FOUND if function is Once else nullcontext():
            engine.backward(loss)
    if function is Once:
        assert all(p.grad is None for p in model.parameters())
    else:
        close(model, exact(model, losses))


@pytest.mark.parametrize("function", [Once, Twice])
def test_losses_of_tasks_that_share_a_graph(function):
    model, losses = model_with(function)
    engine = PerTaskEngine(model, Joint())
    loss = losses()
    with FOUND if function is Once else nullcontext():
        engine.backward({"a": loss[::2].sum(), "b": loss[1::2].sum()})
    if function is Once:
        engine.clear()
        for n, task in enumerate("ab"):  # a graph for each task, as the error advises
            engine.accumulate(task, losses()[n::2].sum())
        engine.combine()
    close(model, exact(model, losses))
