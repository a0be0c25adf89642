"""Parameters of one task's own: in no group, with the gradient plain training gives them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradvac.engine import Engine, PerTaskEngine, parameter_groups
from gradvac.engine.groups import task_heads
from gradvac.errors import GradientError
from gradvac.methods import GradVac, StaticWeights

D, TASKS = 4, ["ner", "pos", "ner", "pos", "pos", "senses"]
X = torch.linspace(-1, 1, 6 * 3 * D, dtype=torch.float64).sin().view(6, 3, D)
HEADS = {"ner": "heads.ner", "pos": ["heads.pos", "pos_scale"]}


class Tagger(nn.Module):
    """A shared body, a head for two of three tasks: one recurrent, one with a weight of weights."""

    def __init__(self, mixes=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(3) if mixes else nn.Tanh())
        attention = nn.MultiheadAttention(D, 2, 0.2, batch_first=True)
        self.heads = nn.ModuleDict({"ner": attention, "pos": nn.LSTM(D, D, batch_first=True)})
        self.pos_scale = nn.Parameter(torch.ones(D))
        self.shared = nn.Linear(D, 1)

    def forward(self, x):
        y = self.body(x)
        ner = torch.tensor([task == "ner" for task in TASKS])
        pos = torch.tensor([task == "pos" for task in TASKS])
        parts = y.clone()  # every sample goes through its own head alone
        parts[ner] = self.heads["ner"](y[ner], y[ner], y[ner])[0]
        weight = torch.diag(self.pos_scale.exp())
        parts[pos] = F.linear(self.heads["pos"](y[pos])[0], weight)
        return self.shared(parts).squeeze(-1).square()


class Selected(Tagger):
    """All samples go through all heads, and a mask selects."""

    def forward(self, x):
        y = self.body(x)
        mask = {task: torch.tensor([t == task for t in TASKS])[:, None, None] for task in HEADS}
        ner = self.heads["ner"](y, y, y)[0]
        pos = self.heads["pos"](y)[0] * self.pos_scale.exp()
        y = torch.where(mask["pos"], pos, torch.where(mask["ner"], ner, y))
        return self.shared(y).squeeze(-1).square()


def built(kind, **options):
    torch.manual_seed(0)
    return kind(**options).double()


def expected(model, weights):
    """Weighted gradients of what tasks share, the plain one of heads; by autograd."""
    torch.manual_seed(1)
    loss = model(X)
    index = {task: torch.tensor([t == task for t in TASKS]) for task in weights}
    total = sum(w * loss[index[task]].sum() for task, w in weights.items())
    of = lambda value: dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(value, list(model.parameters()), retain_graph=True),
            strict=True,
        )
    )
    weighted, plain = of(total), of(loss.sum())
    own = lambda name: name.startswith("heads.") or name == "pos_scale"
    return {name: plain[name] if own(name) else weighted[name] for name in plain}


WEIGHTS = {"ner": 1.0, "pos": 3.0, "senses": 0.5}


@pytest.mark.parametrize("engine", [None, "per_task"])
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("kind", [Tagger, Selected])
def test_heads_get_their_plain_gradient(kind, mixes, engine):
    model = built(kind, mixes=mixes)
    wanted = expected(model, WEIGHTS)
    made = Engine(model, StaticWeights(WEIGHTS), heads=HEADS, engine=engine)
    assert not any(n.startswith("heads") or n == "pos_scale" for g in made.groups for n in g.names)
    for scale in (1.0, 1024.0):
        model.zero_grad()
        torch.manual_seed(1)
        with made.tasks(TASKS):
            made.backward(scale * model(X), loss_scale=scale)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-9, atol=1e-12, msg=name)
    assert bool(made.refused) == (engine is None and mixes)


def test_a_loss_for_each_task_and_micro_batches():
    model = built(Tagger)
    wanted = expected(model, WEIGHTS)
    for engine in (Engine, PerTaskEngine):
        model.zero_grad()
        made = engine(model, StaticWeights(WEIGHTS), heads=HEADS)
        torch.manual_seed(1)
        loss = model(X) / 2
        for n in range(2):
            each = {t: loss[[s == t for s in TASKS]].sum() for t in WEIGHTS}
            if engine is Engine:
                made.accumulate({t: value * 1 for t, value in each.items()} if n else each)
            else:
                for t, value in each.items():
                    made.accumulate(t, value, retain_graph=True)
            torch.manual_seed(1)
            loss = model(X) / 2
        made.combine()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-9, atol=1e-12, msg=name)


def test_batches_of_one_task():
    model = built(Tagger)
    engine = Engine(model, GradVac(), heads=lambda name: "pos" if "pos" in name else None)
    x = X[:, 0]
    scale = lambda: (x * model.pos_scale).square().sum(-1)
    with engine.tasks(["pos"] * 6, inputs=[x]):
        engine.backward(scale() + model.body(x).sum(-1))
    torch.testing.assert_close(model.pos_scale.grad, 2 * x.square().sum(0) * model.pos_scale)
    assert [g.name for g in engine.groups] == ["body", "heads", "shared"]


def test_a_head_that_another_task_uses_is_named():
    model = built(Selected)
    wrong = {"ner": "heads.pos", "pos": "heads.ner"}
    message = r"'heads.*is in the head of task '(ner|pos)' and has a gradient from the loss of task"
    for engine in (None, "per_task"):
        made = Engine(model, GradVac(), heads=wrong, engine=engine)
        with pytest.raises(GradientError, match=message), made.tasks(TASKS):
            made.backward(model(X))
    with pytest.raises(GradientError, match=message):
        Engine(model, GradVac(), heads=wrong).backward({"pos": model(X)[1].sum()})
    assert all(p.grad is None for p in model.parameters())


def test_a_head_that_meets_a_shared_parameter_has_passes_of_its_own(caplog):
    model = built(Tagger)
    weights = {"ner": 1.0, "pos": 3.0}
    x, tasks = X[:, 0], ["ner", "pos", "ner", "pos", "pos", "ner"]
    mask = torch.tensor([t == "pos" for t in tasks])[:, None]

    def losses():
        bias = model.pos_scale * model.shared.weight[0]  # of a head and of what tasks share
        return torch.where(mask, model.body(x) + bias, model.body(x)).square().sum(-1)

    engine = Engine(model, StaticWeights(weights), heads={"pos": "pos_scale"})
    with engine.tasks(tasks, inputs=[x, mask]):
        engine.backward(losses())
    loss = losses()
    total = loss[~mask[:, 0]].sum() + 3 * loss[mask[:, 0]].sum()
    shared = torch.autograd.grad(total, model.shared.weight, retain_graph=True)[0]
    torch.testing.assert_close(model.shared.weight.grad, shared)
    own = torch.autograd.grad(loss.sum(), model.pos_scale)[0]
    torch.testing.assert_close(model.pos_scale.grad, own)
    assert "a parameter of a task's head, or what is no parameter, meets one" in caplog.text


def test_heads_are_named_by_module_parameter_or_function():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    model["ab"].bias.requires_grad_(False)
    heads = task_heads(model, {"x": "a", "y": ["ab", "c.bias"]})
    assert [(h.name, h.names) for h in heads] == [
        ("x", ("a.weight", "a.bias")),
        ("y", ("ab.weight", "c.bias")),
    ]
    by_function = task_heads(model, lambda name: name[0] if name.endswith("bias") else None)
    assert [(h.name, h.names) for h in by_function] == [("a", ("a.bias",)), ("c", ("c.bias",))]
    (group,) = parameter_groups(model, "whole_model", heads)
    assert group.names == ("c.weight",)
    assert task_heads(model, None) == []


def test_heads_that_cannot_be_are_refused():
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    with pytest.raises(GradientError, match=r"heads\['x'\] is 'frst'.*did you mean 'first'"):
        task_heads(model, {"x": "frst"})
    with pytest.raises(GradientError, match=r"'first.bias' is in the head of task 'y' and in"):
        task_heads(model, {"x": "first", "y": ["first.bias"]})
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(GradientError, match="belongs to one task"):
        task_heads(tied, {"x": "a", "y": "b"})
    with pytest.raises(GradientError, match="nothing is shared by tasks"):
        Engine(model, GradVac(), heads={"x": ["first", "second"]})
