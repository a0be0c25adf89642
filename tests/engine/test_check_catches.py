"""An engine that loses, repeats or misplaces the gradient of one use of one parameter is caught.

The faults are put into the engine where it hands over the K gradients of a use: :func:`broken`
knows the names of the engine's parts, nothing else here does. A model is caught if an error is
raised before ``p.grad`` is set, or if the engine falls back and what it leaves is right.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradvac.engine import Engine
from gradvac.engine.gradients.slots import Slot
from gradvac.engine.tracing.parameter_use import ParameterUse
from gradvac.errors import GradientError
from gradvac.methods import StaticWeights
from tests.engine import test_single_pass
from tests.engine import test_single_pass_models as suite
from tests.engine.partition import flat, separate
from tests.engine.samples import test_recurrent
from tests.engine.test_single_pass_properties import OPERATIONS, Chain

EXACT = 1e-9
WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5}
FAULTS = {
    "dropped": lambda gradients: torch.zeros_like(gradients),
    "counted twice": lambda gradients: 2 * gradients,
    "tasks shifted": lambda gradients: gradients.roll(1, 0),
}


# -- how the engine is broken --------------------------------------------------------------------


class Changed(Slot):
    """Collects the K gradients of one use of a parameter and hands others on."""

    def __init__(self, slot, change):
        self.slot, self.change = slot, change
        self.expect, self.arrived = slot.expect, slot.arrived
        self.probe = getattr(slot, "probe", None)
        self.held = None

    def collected(self, n_tasks):
        if self.held is None:
            # Not by `collected`: who asks for these has to fill them.
            tensor = getattr(self.slot, "parameter", getattr(self.slot, "tensor", None))
            shape = self.slot.probe().shape if tensor is None else tensor.shape
            self.held = torch.zeros(n_tasks, *shape, dtype=torch.float64)
        return self.held, False

    def hand_on(self):
        if self.held is not None:
            self.slot.add(self.change(self.held))
        self.held = None


class Plan:
    """Which use is broken, and what was seen of uses."""

    def __init__(self, change=None, use=0):
        self.change, self.use = change, use
        self.on, self.uses, self.done = True, 0, 0

    def slots(self, given):
        """Count the parameters of a use, and change one of its slots if it is its turn."""
        for n, slot in enumerate(given):
            if slot is None:
                continue
            if self.on and self.change is not None and self.uses == self.use:
                given[n] = Changed(slot, self.change)  # the operation has the same list
                self.done += 1
            self.uses += 1


@contextmanager
def broken(plan: Plan) -> Iterator[None]:
    """Break the engine by a plan."""
    begin, finish = ParameterUse.__init__, ParameterUse.finish

    def init(self, slots, *args):
        plan.slots(slots)
        begin(self, slots, *args)

    def end(self):
        for slot in self.slots:
            if isinstance(slot, Changed):
                slot.hand_on()
        finish(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParameterUse, "__init__", init)
        patch.setattr(ParameterUse, "finish", end)
        yield


# -- the models of the suite ---------------------------------------------------------------------

FIVE = ["a", "b", "c", "a", "c"]


def hugging_face(make, losses):
    def case():
        model = suite.built(make)
        return model, losses(model), FIVE, {}

    return case


def translator():
    model = test_single_pass.translator()
    losses = test_single_pass.losses_of(model, test_single_pass.batch())
    return model, losses, ["a", "b", "c", "a", "c", "c", "a"], {}


def torch_transformer():
    model = suite.built(suite.Seq2Seq, batch_first=True)
    ids, target, labels = (suite.tokens(seed) for seed in (1, 2, 3))
    return model, lambda: (suite.of_tokens(model(ids, target), labels), None), FIVE, {}


def vision():
    model = suite.built(suite.Vision)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    return model, lambda: (F.cross_entropy(model(x), labels, reduction="none"), None), FIVE, {}


def reused():
    model = suite.built(suite.Reused)
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    return model, lambda: (model(x).square().sum(-1), None), FIVE, {}


def recurrent(kind):
    def case():
        model, x = test_recurrent.built(kind, batch_first=True), test_recurrent.inputs()
        return model, lambda: (model(x).square().sum(-1), None), FIVE, {}

    return case


def chain():
    """Every operation of the random chains that keeps samples apart."""
    torch.manual_seed(0)
    mixes = {"mean over samples", "reverse samples", "wrong positions"}
    model = Chain(["linear", *sorted(OPERATIONS.keys() - mixes)], 0).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    return model, lambda: (model(x).tanh().sum(-1), None), FIVE, {}


MODELS = {
    "translator": translator,
    "torch transformer": torch_transformer,
    "vision": vision,
    "reused": reused,
    "chain": chain,
    **{kind.__name__: recurrent(kind) for kind in (nn.LSTM, nn.GRU, nn.RNN)},
    **{make.__name__: hugging_face(make, suite.encoder_losses) for make in suite.ONE_SIDED},
    **{
        make.__name__: hugging_face(make, suite.translation_losses)
        for make in (suite.t5, suite.mt5, suite.marian, suite.m2m100, suite.mbart)
    },
}


# -- the steps -----------------------------------------------------------------------------------


def step(engine, model, losses, tasks, options):
    model.zero_grad()
    torch.manual_seed(1)
    with engine.tasks(tasks, **options):
        return engine.backward(*losses())


def error(engine, report, expected):
    """Relative error of the Gram matrices and the combined gradients, whichever is larger."""
    worst = 0.0
    for k, group in enumerate(engine.groups):
        rows = torch.stack([expected[task][k] for task in report.tasks])
        gram, scale = rows @ rows.T, float(rows.norm()) ** 2 or 1.0
        worst = max(worst, float((report.gram[k] - gram).abs().max()) / scale)
        right = sum(WEIGHTS[task] * row for task, row in zip(report.tasks, rows, strict=True))
        found = flat([p.grad for p in group.parameters], group.parameters)
        worst = max(worst, float((found - right).norm()) / scale**0.5)
    return worst


def uses(case):
    """Count the uses of parameters in a forward pass."""
    model, losses, tasks, options = case
    plan = Plan()
    with broken(plan):
        step(Engine(model, StaticWeights(WEIGHTS)), model, losses, tasks, options)
    return plan.uses


def outcome(case, expected, change, use, before, **arguments):
    """Break one use after some right steps, of the tasks ``before``; return what became of it."""
    model, losses, tasks, options = case
    plan = Plan(change, use)
    engine = Engine(model, StaticWeights(WEIGHTS), **arguments)
    with broken(plan):
        plan.on = False
        for names in before:
            step(engine, model, losses, names, options)
        assert not engine.refused
        plan.on, plan.uses = True, 0
        try:
            report = step(engine, model, losses, tasks, options)
        except GradientError:
            assert all(p.grad is None for p in model.parameters())
            return "raised"
    assert plan.done
    found = error(engine, report, expected)
    return f"{'fell back' if engine.refused else 'kept'}, {'right' if found < EXACT else 'WRONG'}"


@pytest.fixture(scope="module")
def prepared():
    """Each model with its exact gradients and its number of uses, made once."""
    made = {}

    def get(name):
        if name not in made:
            case = MODELS[name]()
            model, losses, tasks, _ = case
            made[name] = (case, separate(model, losses, tasks), uses(case))
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_is_right_where_nothing_is_broken(name, prepared):
    case, expected, count = prepared(name)
    assert count >= 3
    same = lambda gradients: gradients.clone()
    for use in (0, count - 1):
        assert outcome(case, expected, same, use, ()) == "kept, right"


@pytest.mark.parametrize("before", [0, 2])  # steps of one task alone, in which nothing splits
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_broken_use_is_caught_in_the_first_step_that_splits(name, fault, before, prepared):
    case, expected, count = prepared(name)
    right = [["a"] * len(case[2])] * before
    uses = (count // 2,) if before else (0, count // 3, count - 1)
    found = [outcome(case, expected, FAULTS[fault], use, right) for use in uses]
    # "kept, right": the gradient of this use is zero, of which there is nothing to lose
    assert set(found) <= {"raised", "fell back, right", "kept, right"}, (uses, count)
    assert before or set(found) != {"kept, right"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"granularity": "all_matrix"},
        {"granularity": "whole_model"},
        {"granularity": "whole_model", "passes": 2},
        {"budget": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_saves_memory_is_checked_too(fault, arguments, prepared):
    case, expected, count = prepared("bert")
    if "granularity" in arguments:  # exact gradients by layer, in other groups
        model, losses, tasks, _ = case
        expected = separate(model, losses, tasks, arguments["granularity"])
    for use in (0, count // 2, count - 1):
        found = outcome(case, expected, FAULTS[fault], use, (), **arguments)
        assert found in ("raised", "fell back, right"), f"use {use} of {count}"
