"""Planned forward passes: exact, the same as plain ones, and given up where the model changes."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradvac.engine import Engine, SinglePassEngine
from gradvac.engine.planning.planner import Planner
from gradvac.errors import GradientError
from gradvac.methods import Joint, StaticWeights
from tests.engine import test_single_pass_models as models
from tests.engine.partition import flat, largest_error, separate
from tests.engine.test_repeats import Twice
from tests.engine.test_single_pass_properties import OPERATIONS as LINKS
from tests.engine.test_single_pass_properties import Chain, D

EXACT = 1e-10
TASKS, OTHERS = ["a", "b", "c", "a", "c"], ["c", "c", "b", "a", "b"]


def planner_of(engine) -> Planner:
    return engine._single_pass.planner


class Counting:
    """Makes engines and sums up how many forward passes they planned."""

    def __init__(self, kind=SinglePassEngine):
        self.kind, self.engines = kind, []

    def __call__(self, model, method):
        self.engines.append(self.kind(model, method))
        return self.engines[-1]

    @property
    def planned(self):
        return sum(planner_of(engine).planned for engine in self.engines)


# -- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [models.bert, models.xlm_roberta, models.llama, models.gpt2])
def test_one_sided_models(make):
    model, count = models.built(make), Counting()
    losses = models.encoder_losses(model)
    assert largest_error(model, losses, TASKS, count, steps=4, before=OTHERS) < EXACT
    assert count.planned == 2 * len(count.engines)


@pytest.mark.parametrize("make", [models.marian, models.m2m100, models.mbart])
def test_translation_models(make):
    model, count = models.built(make), Counting()
    losses = models.translation_losses(model)
    assert largest_error(model, losses, TASKS, count, steps=4, before=OTHERS) < EXACT
    assert count.planned == 2 * len(count.engines)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_transformer(batch_first):
    model, count = models.built(models.Seq2Seq, batch_first=batch_first), Counting()
    ids, target, labels = (models.tokens(n) for n in (1, 2, 3))

    def losses():
        if batch_first:
            return models.of_tokens(model(ids, target), labels), None
        logits = model(ids.T.contiguous(), target.T.contiguous())
        return models.of_tokens(logits.transpose(0, 1), labels), None

    dim = 0 if batch_first else 1
    error = largest_error(model, losses, TASKS, count, steps=4, before=OTHERS, batch_dim=dim)
    assert error < EXACT
    # A learned position that is broadcast in the middle, [T, 1, d], is traced.
    assert count.planned == (2 * len(count.engines) if batch_first else 0)


PLAINLY = {"linear", "other linear", "linear by its transpose", "layer norm", "shift after norm"}
"""Links of a chain that can all be planned."""


@settings(max_examples=60, derandomize=True)
@given(
    names=st.lists(st.sampled_from(sorted(LINKS)), min_size=1, max_size=4),
    batch_dim=st.sampled_from([0, 1]),
    before=st.lists(st.sampled_from("abc"), min_size=4, max_size=4),
    tasks=st.lists(st.sampled_from("abc"), min_size=4, max_size=4),
    length=st.integers(1, 4),
)
def test_any_chain_with_other_tasks_than_were_recorded(names, batch_dim, before, tasks, length):
    torch.manual_seed(0)
    model, count = Chain(["linear", *names], batch_dim).double(), Counting(Engine)
    shape = (4, length, D) if batch_dim == 0 else (length, 4, D)
    x = torch.randn(shape, dtype=torch.float64)
    rows = torch.arange(4).repeat_interleave(length)
    losses = lambda: (model(x).square().sum(-1).movedim(batch_dim, 0).flatten(), rows)
    # The first step has several tasks, or it would not be traced.
    tasks, before = ["a", "b", *tasks[2:]], ["b", "c", *before[2:]]
    error = largest_error(model, losses, tasks, count, 4, before, batch_dim=batch_dim)
    assert error < 1e-9, names
    assert count.planned or not PLAINLY.issuperset(names), names


def test_autocast_keeps_what_is_exact_to_its_precision():
    model, count = models.built(models.llama).float(), Counting()
    losses = models.encoder_losses(model)

    def in_bfloat16():
        with torch.autocast("cpu", torch.bfloat16):
            return losses()

    assert largest_error(model, in_bfloat16, TASKS, count, steps=4) < 0.05
    assert count.planned


def test_inputs_of_several_sizes_and_micro_batches():
    torch.manual_seed(0)
    model = Chain(["attention", "layer norm", "scale", "linear"], 0).double()
    engine = Engine(model, StaticWeights(weights := {"a": 2.0, "b": 1.0, "c": 0.5}))
    xs = [torch.randn(5, t, D, dtype=torch.float64) for t in (3, 4, 3, 4, 3, 4)]
    losses = lambda x: (model(x).square().sum(-1), None)
    for n in (0, 2, 4, 0, 2):
        model.zero_grad()
        wanted = torch.zeros(())
        for x, tasks in zip(xs[n : n + 2], (TASKS, OTHERS), strict=True):
            found = separate(model, lambda x=x: losses(x), tasks, "whole_model")
            wanted = wanted + sum(weights[task] * g[0] for task, g in found.items())
            with engine.tasks(tasks):
                engine.accumulate(losses(x)[0])
        engine.combine()
        parameters = list(model.parameters())
        given = flat([p.grad for p in parameters], parameters)
        assert float((given - wanted).norm()) < EXACT * float(wanted.norm())
    assert planner_of(engine).planned >= 4


class Kinds(nn.Module):
    """Adds the first row of a table, looked up for each token by ids that no sample determines."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2, 1).double()

    def forward(self, x):
        return x + self.table(torch.zeros(x.shape[:2], dtype=torch.int64))


def test_rows_of_a_table_are_added_in_one_order_traced_and_planned():
    first, second = torch.zeros(3, 2, 1).double(), torch.full((3, 2, 1), 2.0**-53).double()
    first[0, 0] = 1.0  # to which one number of the second batch adds nothing, but several would
    x, found = torch.zeros(3, 2, 1).double(), []
    for plan in (False, True):
        engine = Engine(model := Kinds(), Joint(), plan=plan)
        for _ in range(4):
            model.zero_grad()
            for factors in (first, second):
                with engine.tasks(["a", "b", "a"]):
                    engine.accumulate((model(x) * factors).sum((1, 2)))
            engine.combine()
        assert (planner_of(engine).planned > 0) == plan
        found.append(model.table.weight.grad)
    assert torch.equal(*found)


def passes_in_a_step(engine, forward):
    """How many backward passes a step runs through what ``forward`` returns."""
    passes = []
    with engine.tasks(TASKS):
        out = forward()
        out.register_hook(lambda _: passes.append(1))
        engine.backward(out.square().mean((1, 2)))
    return len(passes)


class Positions(nn.Module):
    """An encoder whose positions are the first rows of a table, and whose projections are parts."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, D), nn.Parameter(torch.randn(9, D))
        self.body = nn.TransformerEncoderLayer(D, 2, 8, 0.0, batch_first=True)

    def forward(self, words):
        return self.body(self.words(words) + self.places[: words.shape[1]])


@pytest.mark.parametrize("make", [models.bert, models.llama, models.gpt2, Positions])
def test_a_new_size_is_recorded_without_another_check(make):
    """As with padding to the longest of a batch, where nearly every batch has a size of its own."""
    torch.manual_seed(0)
    model = Positions().double() if make is Positions else models.built(make)
    engine, found = SinglePassEngine(model, Joint()), []
    for length in (3, 3, 4, 5, 6, 6):
        words = torch.arange(5 * length).view(5, length) % 7 + 3
        logits = lambda x=words: model(x) if make is Positions else model(x).logits
        found.append(passes_in_a_step(engine, logits))
    assert found[1] > 1  # the plan of the second is checked
    assert found[2:] == [1] * 4
    plans = planner_of(engine)._plans.values()
    assert planner_of(engine).planned == 1 and len(plans) == 4
    assert make is Positions or len({id(plan.uses) for plan in plans}) == 1  # else 100 KB each


def test_a_longer_loop_over_positions_is_not_checked_again():
    """Traced: a stack of as many tensors as there are positions."""
    torch.manual_seed(0)
    model, found = nn.Linear(D, D).double(), []
    engine = SinglePassEngine(model, Joint(), plan=False)

    def loop(x):
        h = model(x[:, 0])
        return torch.stack([h := (h + x[:, t]).tanh() for t in range(x.shape[1])], 1)

    for length in (5, 6, 7, 8):
        x = torch.randn(5, length, D, dtype=torch.float64)
        found.append(passes_in_a_step(engine, lambda x=x: loop(x)))
    assert found == [3, 1, 1, 1]


class Skipping(nn.Module):
    """Leaves out layers at random, as LayerDrop does."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(D, D)
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(6))

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            if torch.rand(()) < 0.5:
                x = x + layer(x).tanh()
        return x


def test_plans_of_a_model_that_is_never_the_same_are_given_up():
    """Each would be checked: no size of inputs is seen twice here."""
    torch.manual_seed(0)
    model = Skipping().double()
    engine, checked = SinglePassEngine(model, Joint()), 0
    for length in range(2, 62):
        x = torch.randn(5, length, D, dtype=torch.float64)
        checked += passes_in_a_step(engine, lambda x=x: model(x)) > 1
    assert "more than the sizes" in planner_of(engine).off
    assert checked < 20  # every structure while there are plans, then each operation once


FUNCTIONS = "tanh sin cos sigmoid relu square abs neg atan exp".split()


class Shuffled(Skipping):
    """Runs its operations in another order in each step."""

    def forward(self, x):
        for n in torch.randperm(len(FUNCTIONS)).tolist():
            x = getattr(x, FUNCTIONS[n])()
        return self.first(x)


def test_many_checked_steps_are_said(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), Shuffled()).double()
    engine = SinglePassEngine(model, Joint(), plan=False)
    x = torch.randn(5, D, dtype=torch.float64)
    for _ in range(60):
        model.zero_grad()
        with engine.tasks(TASKS):
            engine.backward(model(x).square().mean(1))
    said = [r.getMessage() for r in caplog.records if "did something new" in r.getMessage()]
    assert len(said) == 1
    assert "in 20 steps" in said[0] and "' after '" in said[0]


def test_a_custom_function_in_the_loss_is_not_taken_for_checkpointing():
    """Its backward pass computes with what the forward pass saved."""
    torch.manual_seed(0)
    model, count = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)).double(), Counting()
    x = torch.randn(5, D, dtype=torch.float64)
    losses = lambda: (Twice.apply(model(x)).sum(1), torch.arange(5))
    assert largest_error(model, losses, TASKS, count, steps=4) < EXACT
    assert count.planned == 2 * len(count.engines)


# -- the same as a plain forward pass --------------------------------------------------------------


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.drop = nn.Linear(D, D), nn.Linear(D, D), nn.Dropout(0.5)
        self.turn, self.calls = 0, 0

    def forward(self, x):
        self.calls += 1
        y = self.drop(self.one(x))
        return self.two(y.roll(1, self.turn) if self.turn else y.tanh())


def step(engine, model, x, tasks=TASKS, seed=5):
    model.zero_grad()
    torch.manual_seed(seed)
    with engine.tasks(tasks):
        out = model(x)
        engine.backward(out.square().mean((1, 2)), torch.arange(len(x)))
    return out.detach()


def test_values_and_random_numbers_are_those_of_plain_training():
    torch.manual_seed(0)
    model = Dropping()
    engine, x = Engine(model, Joint()), torch.randn(5, 3, D)
    for _ in range(4):
        out = step(engine, model, x)
        after = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(out, model(x))
        assert torch.equal(after, torch.rand(3))
    assert planner_of(engine).planned == 2


def test_a_model_that_does_something_else_is_called_again_with_the_same_random_numbers():
    torch.manual_seed(0)
    model = Dropping()
    engine, x = Engine(model, Joint()), torch.randn(5, 3, D)
    for _ in range(4):
        step(engine, model, x)
    model.calls, model.turn = 0, 1
    out = step(engine, model, x)
    assert model.calls == 2
    torch.manual_seed(5)
    model.zero_grad()
    plain = model(x)
    assert torch.equal(out, plain)
    plain.square().mean((1, 2)).sum().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    step(engine, model, x)
    for p, g in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_samples_that_begin_to_be_mixed_are_noticed():
    """The same operations on the same parameters, along another dimension."""
    torch.manual_seed(0)
    model = Dropping().double()
    model.turn = 1
    engine, x = Engine(model, StaticWeights({"a": 1.0, "b": 2.0, "c": 3.0})), torch.randn(5, 3, D)
    x = x.double()
    for _ in range(4):
        step(engine, model, x)
    assert planner_of(engine).planned
    model.turn = 2
    step(engine, model, x)
    assert not engine.refused
    model.forward = lambda y: model.two(model.drop(model.one(y)).roll(1, 0))
    step(engine, model, x)
    assert "roll" in engine.refused


def test_batch_normalisation_put_into_training_mode_is_noticed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.Linear(D, D)).eval()
    engine, x = Engine(model, Joint()), torch.randn(5, D)

    def plain_step():
        with engine.tasks(TASKS):
            engine.backward(model(x).square().mean(1))

    for _ in range(4):
        plain_step()
    model.train()
    plain_step()
    assert "batch normalisation" in engine.refused


# -- what is not planned ---------------------------------------------------------------------------


class Sorting(nn.Module):
    """Puts the samples in an order that depends on their numbers, and back."""

    def __init__(self, uses):
        super().__init__()
        self.one, self.two, self.uses = nn.Linear(D, D), nn.Linear(D, D), uses

    def forward(self, x):
        y = self.one(x)
        order = y.detach().sum(1).argsort()
        if self.uses:
            return self.two(y[order])[order.argsort()]
        return self.two(y[order].sin()[order.argsort()])


@pytest.mark.parametrize("uses", [True, False])
def test_samples_in_an_order_that_depends_on_numbers(uses):
    torch.manual_seed(0)
    model, count = Sorting(uses).double(), Counting()
    x = torch.randn(5, D, dtype=torch.float64)
    losses = lambda: (model(x + torch.rand(1)).square().sum(1), None)
    assert largest_error(model, losses, TASKS, count, steps=4, before=OTHERS) < EXACT
    assert not count.planned


def test_pairs_of_samples_that_happened_to_have_the_same_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.Flatten(0), nn.Unflatten(0, (-1, 2 * D)))
    model.append(nn.Linear(2 * D, D))
    engine, x = Engine(model, Joint()), torch.randn(4, D)
    for _ in range(4):
        with engine.tasks(["a", "a", "b", "b"]):
            engine.backward(model(x).square().sum(1))
    assert not engine.refused and not planner_of(engine).planned
    with pytest.raises(GradientError, match="rows"), engine.tasks(["a", "b", "a", "b"]):
        engine.backward(model(x).square().sum(1))


def test_a_model_that_counts_in_a_buffer_is_not_called_twice():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(D, D)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.layer(x)

    model = Counts()
    engine, x = Engine(model, Joint()), torch.randn(5, D)
    for _ in range(5):
        with engine.tasks(TASKS):
            engine.backward(model(x).square().sum(1))
    assert model.calls == 5
    assert "buffers" in planner_of(engine).off


class Aside(nn.Module):
    """Keeps a part of the loss to itself."""

    def __init__(self, uses):
        super().__init__()
        self.one, self.two, self.uses = nn.Linear(D, D), nn.Linear(D, D), uses

    def forward(self, x):
        y = self.one(x).tanh()
        self.aside = (self.two(y) if self.uses else y).square().sum(1)
        return self.two(y)


@pytest.mark.parametrize("uses", [True, False])
def test_a_loss_that_is_no_output_of_the_model(uses):
    torch.manual_seed(0)
    model, count = Aside(uses).double(), Counting(Engine)
    x = torch.randn(5, D, dtype=torch.float64)
    losses = lambda: (model(x).square().sum(1) + model.aside, torch.arange(5))
    for steps in (2, 3, 4, 5):
        assert largest_error(model, losses, TASKS, count, steps=steps, before=OTHERS) < EXACT
    assert not any(engine.refused for engine in count.engines)


class Masked(nn.Module):
    """Returns a mask beside its result."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x):
        return {"out": self.layer(x), "mask": x.sum(-1) > 0}


def test_outputs_without_a_gradient():
    torch.manual_seed(0)
    model, count = Masked().double(), Counting()
    x = torch.randn(5, 3, D, dtype=torch.float64)

    def losses():
        found = model(x)
        return found["out"].square().sum(-1) * found["mask"], None

    assert largest_error(model, losses, TASKS, count, steps=4, before=OTHERS) < EXACT
    assert count.planned


# -- the engine's other duties ---------------------------------------------------------------------


def planned_engine():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
    engine, x = Engine(model, Joint()), torch.randn(5, D)
    losses = lambda: model(x).square().sum(1)
    for _ in range(3):
        with engine.tasks(TASKS):
            engine.backward(losses())
    assert planner_of(engine).planned == 1
    return model, engine, losses


def test_a_backward_pass_by_mistake():
    _, engine, losses = planned_engine()
    with engine.tasks(TASKS):
        loss = losses()
    with pytest.raises(GradientError, match=r"engine\.backward\(loss\)"):
        loss.sum().backward()


def test_memory_is_free_after_the_step_without_the_collector_of_cycles():
    _, engine, losses = planned_engine()
    gc.disable()
    try:
        for end in ("backward", "clear", "delete"):
            with engine.tasks(TASKS):
                out = losses()
            planned = weakref.ref(engine._single_pass._batch.planned)
            saved = weakref.ref(out.grad_fn.next_functions[0][0]._saved_self)
            if end == "backward":
                engine.backward(out)
            elif end == "clear":
                engine.clear()
            else:
                del engine, losses
            del out
            assert planned() is None
            assert saved() is None
    finally:
        gc.enable()


def test_losses_that_were_not_followed_are_checked_in_every_step(caplog):
    _, engine, losses = planned_engine()
    with engine.tasks(TASKS):
        out = losses()
    loss = out * 1.0  # outside
    engine.backward(loss)
    assert not engine.refused
    for _ in range(2):  # in the first, planned one this holds for the step alone
        assert not engine.refused
        with engine.tasks(TASKS):
            out = losses()
        engine.backward(out + out.mean())
        assert "other tasks" in caplog.records[-1].getMessage()
    assert "other tasks" in engine.refused
