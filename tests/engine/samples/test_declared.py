"""Registered operations are split exactly, and a wrong registration is found in the first step."""

import pytest
import torch
from torch import nn

from gradvac import Engine, GradientError, Joint
from gradvac.engine import SinglePassEngine, register_operation
from tests.engine.partition import found_by, largest_error, separate, worst_error

D, EXACT = 4, 1e-10
TASKS = ["b", "a", "c", "a", "b", "b"]
X = torch.linspace(-1, 1, 6 * 3 * D, dtype=torch.float64).sin().view(6, 3, D)
OPTIONS = [{}, {"budget": 1}, {"granularity": "whole_model", "passes": 2}]


class Scale(torch.autograd.Function):
    """Scales the last dimension by a parameter."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy * w, (dy * x).flatten(0, -2).sum(0)


class Two(torch.autograd.Function):
    """Returns two tensors that depend on its parameter, and one that has no gradient."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        least = x.amin()
        ctx.mark_non_differentiable(least)
        return x * w, x + w, least

    @staticmethod
    def backward(ctx, dy, dz, _):
        x, w = ctx.saved_tensors
        return dy * w + dz, (dy * x + dz).flatten(0, -2).sum(0)


def formula(factor):
    return lambda dy, x, w: (None, factor * (dy * x).flatten(0, -2).sum(0))


def new(base):
    """A new function that does the same as another, not registered yet."""
    return type(base.__name__, (base,), {})


def kind(base, **how):
    """A new function that does the same as another, registered as said."""
    return register_operation(new(base), **how)


def error(model, losses, options=OPTIONS[0]):
    """The largest relative error of an engine that raises where it does not split."""
    make = lambda m, method: SinglePassEngine(m, method, **options)
    expected = separate(model, losses, TASKS, options.get("granularity", "all_layer"))
    return worst_error(found_by(make, model, losses, TASKS, 2, inputs=[X]), expected)


class Model(nn.Module):
    """An operation between two projections."""

    def __init__(self, operation, derived=False):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(D, D).double(), nn.Linear(D, D).double()
        self.w = nn.Parameter(torch.randn(D, dtype=torch.float64))
        self.operation, self.derived = operation, derived

    def forward(self, x):
        w = self.w.exp() if self.derived else self.w
        out = self.operation(self.before(x), w)
        h = out if isinstance(out, torch.Tensor) else out[0] * out[1]
        return self.after(h).square().sum(-1)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize(
    ("base", "how"),
    [
        (Scale, {}),
        (Scale, {"dim": None}),
        (Scale, {"gradients": formula(1.0)}),
        (Two, {}),
        (Two, {"dim": None}),
    ],
)
def test_a_registered_function_is_split(base, how, derived, options):
    model = Model(kind(base, **how).apply, derived)
    assert error(model, lambda: (model(X), None), options) < EXACT


def test_rows_processed_apart_may_lie_along_any_dimension_but_the_last():
    x, found = X.transpose(0, 1), []
    for dim in (None, 0):
        model = Model(kind(Scale, dim=dim).apply)
        engine = Engine(model, Joint())
        with engine.tasks(TASKS, inputs=[x], batch_dim=1):
            engine.backward(model(x))
        found.append(engine.refused)
    assert not found[0] and "samples along dimension 0, which they are not" in found[1]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_registered_function_under_checkpointing(checkpointed):
    model = Model(kind(Scale, gradients=formula(1.0)).apply)
    run = lambda: torch.utils.checkpoint.checkpoint(model, X, use_reentrant=False)
    losses = run if checkpointed else lambda: model(X)
    assert error(model, lambda: (losses(), None)) < EXACT


@torch.library.custom_op("gradvac_tests::scale", mutates_args=())
def operator(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * w


def _backward(ctx, dy):
    x, w = ctx.saved_tensors
    return dy * w, (dy * x).flatten(0, -2).sum(0)


operator.register_autograd(
    _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


@pytest.mark.parametrize(
    "of",
    [
        lambda: operator,
        lambda: torch.ops.gradvac_tests.scale,
        lambda: torch.ops.gradvac_tests.scale.default,
    ],
)
def test_a_registered_operator_is_split(of):
    operation = register_operation(of(), gradients=formula(1.0))
    model = Model(operation)
    assert error(model, lambda: (model(X), None)) < EXACT


def test_a_registered_python_function_is_split():
    hidden = new(Scale)
    model = Model(register_operation(lambda x, w: hidden.apply(x, w) + 1, dim=None))
    assert error(model, lambda: (model(X), None)) < EXACT


class Center(torch.autograd.Function):
    """Takes the mean over samples away: what may not be registered."""

    @staticmethod
    def forward(ctx, x, w):
        return x - x.mean(0) + 0 * w

    @staticmethod
    def backward(ctx, dy):
        return dy - dy.mean(0), None


@pytest.mark.parametrize(
    ("base", "how", "parameter"),
    [
        (Center, {}, "before.weight"),
        (Scale, {"gradients": formula(1.001)}, "w"),
        (Scale, {"gradients": lambda dy, x, w: (None, None)}, "w"),
    ],
)
def test_a_wrong_registration_is_found_in_the_first_step(base, how, parameter):
    model = Model(kind(base, **how).apply)
    losses = lambda: (model(X), None)
    assert largest_error(model, losses, TASKS, Engine, steps=2, inputs=[X]) < EXACT
    engine = SinglePassEngine(model, Joint())
    with (
        engine.tasks(TASKS, inputs=[X]),
        pytest.raises(GradientError, match=f"'{parameter}' has a gradient that does not split"),
    ):
        engine.backward(model(X))


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (lambda dy, x, w: (None,), "returned 1 entries; it must return one for each of the 2"),
        (lambda dy, x, w: (None, w[:2]), r"returned \[2\] for argument 1, which is \[4\]"),
    ],
)
def test_a_formula_of_another_shape_is_an_error(gradients, message):
    model = Model(kind(Scale, gradients=gradients).apply)
    engine = Engine(model, Joint())
    with engine.tasks(TASKS, inputs=[X]), pytest.raises(GradientError, match=message):
        engine.backward(model(X))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: kind(Two, gradients=formula(1.0)).apply, "return one tensor with a gradient"),
        (lambda: new(Scale).apply, "gradvac.engine.register_operation"),
    ],
)
def test_what_is_not_split_falls_back_with_the_reason(operation, message):
    model = Model(operation())
    assert largest_error(model, lambda: (model(X), None), TASKS, Engine, inputs=[X]) < EXACT
    engine = Engine(model, Joint())
    with engine.tasks(TASKS, inputs=[X]):
        engine.backward(model(X))
    assert message in engine.refused


def test_only_operations_are_registered():
    for thing in (3, nn.Linear):
        with pytest.raises(GradientError, match="is not an operation"):
            register_operation(thing)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_function_of_parameters_alone_needs_no_registration(options):
    model = nn.ModuleDict({"before": nn.Linear(D, D), "after": nn.Linear(D, D)}).double()
    hidden = new(Scale)

    def losses():
        weight = hidden.apply(model["after"].weight, model["before"].bias)
        return (model["before"](X) @ weight.T).square().sum(-1), None

    assert error(model, losses, options) < EXACT
