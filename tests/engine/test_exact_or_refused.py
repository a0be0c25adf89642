"""Ways of writing a model that could give a wrong gradient in silence: exact, or refused."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradvac.engine import Engine, PerTaskEngine, parameter_groups, register_operation
from gradvac.engine.tracing import any_operation
from gradvac.errors import GradientError
from gradvac.methods import Joint, PCGrad, StaticWeights
from tests.engine.partition import flat, largest_error

D, EXACT = 4, 1e-10
TASKS = ["a", "b", "a", "c", "b"]
X = torch.linspace(-1, 1, 5 * D, dtype=torch.float64).sin().view(5, D)
WEIGHTS = {"a": 0.5, "b": 2.0, "c": 0.25}


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*(layers or (nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)))).double()


def error_of_step(engine, model, losses, tasks=TASKS):
    """Relative error of a step against autograd, the engine's method being StaticWeights."""
    engine.clear()
    model.zero_grad()
    torch.manual_seed(1)
    with engine.tasks(tasks, inputs=[X]):
        engine.backward(losses())
    torch.manual_seed(1)
    weights = torch.tensor([WEIGHTS[t] for t in tasks], dtype=torch.float64)
    loss = losses()
    total = (loss * weights.view(-1, *[1] * (loss.ndim - 1))).sum()
    parameters = list(model.parameters())
    wanted = flat(torch.autograd.grad(total, parameters, allow_unused=True), parameters)
    found = flat([p.grad for p in parameters], parameters)
    return float((found - wanted).norm() / wanted.norm())


# -- a model that begins to lie later -------------------------------------------------------------


def info_nce(z):
    return F.cross_entropy(z @ z.T, torch.arange(len(z)), reduction="none")


class Fused(torch.autograd.Function):
    """Scales by a parameter where no function mode sees it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x.detach() * w.detach()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).flatten(0, -2).sum(0)


class Center(torch.autograd.Function):
    """Takes the mean over samples away."""

    @staticmethod
    def forward(ctx, x):
        return x.detach() - x.detach().mean(0)

    @staticmethod
    def backward(ctx, g):
        return g - g.mean(0)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


LATE = {
    "contrastive after one task": lambda m, step: info_nce(m(X)),
    "contrastive ramped up": lambda m, step: m(X).square().sum(1) + (step > 2) * info_nce(m(X)),
    "custom function ramped up": lambda m, step: (
        m(X).square().sum(1) + (step > 2) * Center.apply(m(X)).square().sum(1)
    ),
    "custom function switched on": lambda m, step: (
        (Center.apply(m(X)) if step > 2 else m(X)).square().sum(1)
    ),
    "hidden parameter switched on": lambda m, step: (
        (Fused.apply(m(X), m[2].bias) if step > 2 else m(X)).square().sum(1)
    ),
    "gate that starts at zero": lambda m, step: (
        m[2](m[0](X) + (step > 2) * Center.apply(m[0](X))).square().sum(1)
    ),
    "vmap at the end": lambda m, step: torch.func.vmap(lambda z: z.square().sum())(m(X)),
    "vmap over samples": lambda m, step: torch.func.vmap(lambda z: z.softmax(0), 1, 1)(m(X)).sum(1),
}


@pytest.mark.parametrize(
    "options",
    [{}, {"granularity": "all_matrix", "budget": 1}, {"granularity": "whole_model", "passes": 2}],
)
@pytest.mark.parametrize("kind", LATE)
def test_what_begins_to_mix_samples_is_found_in_that_step(kind, options):
    model = net()
    engine = Engine(model, StaticWeights(WEIGHTS), **options)
    for step in range(5):
        tasks = ["a"] * 5 if step == 0 else TASKS
        losses = lambda step=step: LATE[kind](model, step)
        assert error_of_step(engine, model, losses, tasks) < EXACT
    assert bool(engine.refused) == (kind != "vmap at the end")


def test_a_check_is_made_again_where_the_forward_pass_changes(monkeypatch):
    model = net()
    engine = Engine(model, Joint())
    made = []
    checks = engine._single_pass.checks
    rehearse = checks.rehearse
    monkeypatch.setattr(checks, "rehearse", lambda *args: made.append(1) or rehearse(*args))

    def step(loss, tasks=TASKS):
        with engine.tasks(tasks, inputs=[X]):
            engine.backward(loss())
        return len(made)

    assert step(lambda: model(X).square().sum(1), ["a"] * 5) == 0
    assert step(lambda: model(X).square().sum(1)) == 1
    assert step(lambda: model(X).square().sum(1)) == 2  # of the plan
    assert step(lambda: model(X).square().sum(1), TASKS[::-1]) == 2
    assert step(lambda: model(X).abs().sum(1)) == 3
    assert step(lambda: model[0](model[1](model[2](X))).abs().sum(1)) == 4
    assert step(lambda: model(X).abs().sum(1)) == 4


def test_a_gate_that_opens_where_two_passes_are_made():
    model = net()
    model.scale = nn.Parameter(torch.ones(D, dtype=torch.float64))
    engine = Engine(model, StaticWeights(WEIGHTS), "whole_model", passes=2)
    h = lambda: model[0](X)
    for gate in (0.0, 0.0, 1.0, 1.0):
        losses = lambda gate=gate: model[2](h() + gate * (h() * model.scale)).square().sum(1)
        assert error_of_step(engine, model, losses) < EXACT
    assert not engine.refused


@pytest.mark.parametrize("accumulates", [False, True])
def test_a_wrong_split_behind_a_gate_is_found_when_the_gate_opens(monkeypatch, accumulates):
    """Its gradients are zero while it is checked, so that nothing is shown."""
    reduce = any_operation._reduce
    monkeypatch.setattr(any_operation, "_reduce", lambda *args: 1.5 * reduce(*args))
    model = net()
    model.scale = nn.Parameter(torch.ones(D, dtype=torch.float64))
    engine = Engine(model, Joint())

    def step(gate):
        model.zero_grad()
        with engine.tasks(TASKS, inputs=[X]):
            h = model[0](X)
            loss = model[2](h + gate * (h * model.scale)).square().sum(1)
            engine.accumulate(loss) if accumulates else engine.backward(loss)
        if accumulates:
            engine.combine()

    for _ in range(3):
        step(0.0)
    assert not engine.refused
    state = engine.state_dict()
    with pytest.raises(GradientError, match="parameter 'scale' has a gradient that does not split"):
        step(1.0)
    assert all(p.grad is None for p in model.parameters()) and engine.state_dict() == state
    step(1.0)  # a backward pass per task from then on
    h = model[0](X)
    loss = model[2](h + h * model.scale).square().sum()
    torch.testing.assert_close(model.scale.grad, torch.autograd.grad(loss, model.scale)[0])


@pytest.mark.parametrize("right", [True, False])
def test_a_declared_function_is_followed_and_its_word_checked(right):
    function = Double if right else Center
    declared = register_operation()(lambda x: function.apply(x))
    model = net()
    losses = lambda: (model[2](declared(model[0](X))).square().sum(1), None)
    assert largest_error(model, losses, TASKS, Engine, 2, inputs=[X]) < EXACT
    engine = Engine(model, Joint())
    with engine.tasks(TASKS, inputs=[X]):
        engine.backward(losses()[0])
    assert bool(engine.refused) != right
    engine = Engine(model, Joint())
    with engine.tasks(TASKS, batch_dim=1, inputs=[X.T]):
        engine.backward(model[2](declared(model[0](X.T.mT).T).T).square().sum(1))
    assert engine.refused  # its samples lie along another dimension


# -- autograd inside the forward pass -------------------------------------------------------------


def penalty(m, x):
    """The gradient penalty of WGAN-GP, per sample."""
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
    return (g.flatten(1).norm(dim=1) - 1).square()


def adversarial(m, x):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(m(x).square().sum(), x)
    return m(x + 0.1 * g.sign()).flatten(1).square().sum(1)


INNER = {
    "convolution": (lambda: net(nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Conv1d(3, 1, 2)), X[:, None]),
    "linear": (net, X),
    "norm": (lambda: net(nn.Linear(D, D), nn.LayerNorm(D), nn.Tanh(), nn.Linear(D, D)), X),
    "linear energy": (lambda: net(nn.Linear(D, D, bias=False)), X),
}


@pytest.mark.parametrize("term", [penalty, adversarial])
@pytest.mark.parametrize("kind", INNER)
def test_autograd_inside_the_forward_pass(kind, term):
    make, x = INNER[kind]
    model = make()
    losses = lambda: (term(model, x) + model(x).flatten(1).sum(1), None)
    assert largest_error(model, losses, TASKS, Engine, 2) < EXACT


def test_autograd_inside_the_forward_pass_under_autocast():
    model = net().float()
    engine = Engine(model, Joint())
    with engine.tasks(TASKS), torch.autocast("cpu", torch.bfloat16):
        engine.backward(penalty(model, X.float()))
    assert all(p.grad is not None for p in model.parameters() if p.ndim > 1)


# -- activation checkpointing ---------------------------------------------------------------------


@pytest.mark.parametrize("engine", [None, "per_task"])
@pytest.mark.parametrize("lora", [False, True])
def test_reentrant_checkpointing_is_refused_whatever_its_inputs(lora, engine):
    model = net(nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D))
    model[0].requires_grad_(False)
    model[2].requires_grad_(lora)
    made = Engine(model, Joint(), engine=engine)
    with (
        pytest.raises(GradientError, match="use_reentrant=True"),
        made.tasks(TASKS, inputs=[X]),
    ):
        h = checkpoint(model[1], model[0](X).requires_grad_(), use_reentrant=True)
        made.backward(model[2](h).sum(1))


@pytest.mark.parametrize("made_by", [Engine, PerTaskEngine])
@pytest.mark.parametrize("heads", [None, {"b": "1"}], ids=["shared", "head"])
def test_a_loss_of_a_task_refuses_reentrant_checkpointing_too(made_by, heads):
    """The module's parameters alone are hidden, so `.grad` would stay None without a word."""
    model = net(nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D))
    model[0].requires_grad_(False)
    made = made_by(model, Joint(), heads=heads)
    h = checkpoint(model[1], model[0](X).requires_grad_(), use_reentrant=True)
    with pytest.raises(GradientError, match=r"'1\.weight'.*use_reentrant=False"):
        made.backward({"b": model[2](h).sum()})
    assert all(p.grad is None for p in model.parameters())


class Inside(torch.autograd.Function):
    """Trains a module it does not take as an input."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.save_for_backward(x)
        ctx.module = module
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.module(x), g)
        return x.grad, None


@pytest.mark.parametrize("engine", [None, "per_task"])
def test_a_parameter_that_the_graph_does_not_show_is_named(engine):
    model = net()
    made = Engine(model, Joint(), engine=engine)
    message = r"parameter '2\.weight' is trained inside a custom autograd function \(Inside\)"
    with pytest.raises(GradientError, match=message), made.tasks(TASKS, inputs=[X]):
        made.backward(Inside.apply(model[0](X), model[2]).sum(1))
    assert all(p.grad is None for p in model.parameters())


# -- hooks, what p.grad holds, sparse gradients ---------------------------------------------------


def new_rows_alone(gradient):
    mask = torch.zeros_like(gradient)
    mask[5:] = 1
    return gradient * mask


@pytest.mark.parametrize("options", [{}, {"budget": 1}, {"engine": "per_task"}])
def test_hooks_of_parameters_change_the_gradient_of_each_task(options):
    model = net(nn.Embedding(9, D), nn.Linear(D, D))
    seen = []
    model[0].weight.register_hook(new_rows_alone)
    model[1].weight.register_hook(lambda g: seen.append(g.shape))
    engine = Engine(model, PCGrad(), "whole_model", **options)
    ids = torch.arange(15).view(5, 3) % 9
    with engine.tasks(TASKS):
        report = engine.backward(model(ids).square().sum((1, 2)))
    assert not model[0].weight.grad[:5].any() and model[0].weight.grad[5:].any()
    rows = []
    for task in "abc":
        loss = model(ids).square().sum((1, 2))[[t == task for t in TASKS]].sum()
        rows.append(flat(torch.autograd.grad(loss, list(model.parameters())), model.parameters()))
    rows = torch.stack(rows)
    torch.testing.assert_close(report.gram[0], rows @ rows.T, rtol=1e-10, atol=1e-14)
    assert len(seen) >= 3


@pytest.mark.parametrize("engine", [None, "per_task"])
def test_an_optimizer_that_steps_in_the_backward_pass(engine):
    model, plain = net(), net()
    for p in model.parameters():
        one = torch.optim.SGD([p], lr=0.1)
        p.register_post_accumulate_grad_hook(lambda p, one=one: (one.step(), one.zero_grad()))
    made = Engine(model, Joint(), engine=engine)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        with made.tasks(TASKS):
            made.backward(model(X).square().sum(1))
        optimizer.zero_grad()
        plain(X).square().sum().backward()
        optimizer.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"engine": "per_task"}])
def test_gradients_are_added_to_what_is_there(options):
    model = net()
    engine = Engine(model, Joint(), **options)
    decay = lambda: 0.5 * sum(p.square().sum() for p in model.parameters())
    loss = lambda: model(X).square().sum(1)
    (decay() + 2 * loss().sum()).backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    decay().backward()
    for _ in range(2):
        with engine.tasks(TASKS):
            engine.backward(loss())
    for p, g in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", [None, "per_task"])
def test_sparse_embeddings_have_sparse_gradients(engine):
    model = net(nn.Embedding(50, D, sparse=True), nn.Linear(D, D))
    plain = copy.deepcopy(model)
    ids = torch.tensor([[3, 7], [7, 9], [3, 3], [40, 1], [1, 2]])
    made = Engine(model, Joint(), engine=engine)
    for _ in range(2):
        model.zero_grad()
        with made.tasks(TASKS):
            made.backward(model(ids).square().sum((1, 2)))
    plain(ids).square().sum().backward()
    torch.optim.SparseAdam([model[0].weight]).step()
    torch.testing.assert_close(model[0].weight.grad.to_dense(), plain[0].weight.grad.to_dense())
    assert model[0].weight.grad.coalesce().indices().tolist() == [[1, 2, 3, 7, 9, 40]]


# -- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [["a"] * 5, TASKS])
@pytest.mark.parametrize("engine", [None, "per_task"])
def test_losses_averaged_over_samples_are_refused_also_where_there_are_as_many_tokens(
    first, engine
):
    model = net()
    made = Engine(model, Joint(), engine=engine)
    x = X[:, None].expand(5, 5, D)
    message = "say by `rows` which sample each loss belongs to"
    if first != TASKS:
        with made.tasks(first):
            made.backward(
                model(x).square().sum(-1).mean(0)
            )  # one task: whatever it is, it is exact
    with pytest.raises(GradientError, match=message), made.tasks(TASKS):
        made.backward(model(x).square().sum(-1).mean(0))


def test_losses_put_in_another_order_are_refused():
    model = net()
    made = Engine(model, Joint())
    for reorder in (lambda x: x.flip(0), lambda x: x.sort(0).values, lambda x: x.roll(1, 0)):
        with pytest.raises(GradientError, match="say by `rows`"), made.tasks(TASKS):
            made.backward(reorder(model(X).square().sum(1)))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("engine", [None, "per_task"])
def test_a_task_without_a_loss_is_not_in_the_step(masked, engine):
    model = net()
    made = Engine(model, Joint(), engine=engine)
    here = torch.tensor([1.0, 0, 1, 1, 0], dtype=torch.float64)
    with made.tasks(TASKS):
        loss = model(X).square().sum(1)
        report = made.backward(loss if masked else loss * here, mask=here if masked else None)
    assert report.tasks == ("a", "c") and report.gram.shape[1:] == (2, 2)
    assert report.losses.tolist() == [loss[[0, 2]].sum().item(), loss[3].item()]
    wanted = torch.autograd.grad((model(X).square().sum(1) * here).sum(), model[0].weight)[0]
    torch.testing.assert_close(model[0].weight.grad, wanted)


# -- what is used otherwise than it is meant ------------------------------------------------------


@pytest.mark.parametrize("tasks", [TASKS, ["a"] * 5])
@pytest.mark.parametrize("engine", [None, "per_task"])
def test_plain_backward_passes_are_found(engine, tasks):
    model = net()
    made = Engine(model, Joint(), engine=engine)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(GradientError, match=r"engine\.backward\(loss\)"):
        with made.tasks(tasks):
            loss = model(X).square().sum(1)
        loss.sum().backward()
        optimizer.step()
    with pytest.raises(GradientError, match=r"engine\.backward\(loss\)"):
        with made.tasks(tasks):
            model(X).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_blocks_inside_each_other_are_refused():
    model = net()
    one, two = Engine(model, Joint()), Engine(net(), Joint())
    for other, what in ((one, "the same engine's"), (two, "another engine's")):
        with pytest.raises(GradientError, match=what), one.tasks(TASKS), other.tasks(TASKS):
            pass
    with one.tasks(TASKS):
        one.backward(model(X).sum(1))


@pytest.mark.parametrize("kind", [Engine, PerTaskEngine])
def test_engines_are_not_copied(kind):
    made = kind(net(), Joint())
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(GradientError, match="make a new engine for the copy of the model"):
            copied(made)


@pytest.mark.parametrize("kind", [Engine, PerTaskEngine])
def test_a_method_is_an_instance(kind):
    for wrong in ("gradvac", PCGrad, None):
        with pytest.raises(GradientError, match="must be an instance of a method"):
            kind(net(), wrong)


def test_the_forms_of_task_names():
    model = net()
    made = Engine(model, Joint())
    forms = {
        "names": TASKS,
        "generator": (t for t in TASKS),
        "positions": (torch.tensor([0, 1, 0, 2, 1]), ["a", "b", "c"]),
        "list of positions": ([0, 1, 0, 2, 1], ["a", "b", "c"]),
    }
    for form, tasks in forms.items():
        with made.tasks(tasks):
            assert made.backward(model(X).sum(1)).tasks == ("a", "b", "c"), form
    for integers in ([3, 5, 3, 3, 5], torch.tensor([3, 5, 3, 3, 5])):
        with made.tasks(integers):
            assert made.backward(model(X).sum(1)).tasks == ("3", "5")
    assert made.backward({3: model(X).sum(), 5: model(X).sum()}).tasks == ("3", "5")
    for wrong in ([None, "a"], [1.5, "a"], [True, "a"]):
        with pytest.raises(GradientError, match="the task of sample 0 is"), made.tasks(wrong):
            pass
    with pytest.raises(GradientError, match="a task name is None"):
        made.backward({None: model(X).sum()})


def test_a_model_on_the_meta_device_is_refused():
    made = Engine(net().to("meta"), Joint())
    with pytest.raises(GradientError, match="on the meta device"), made.tasks(TASKS):
        pass


def test_what_is_given_up_without_a_check_is_said(caplog):
    Engine(net(), Joint(), verify_steps=0)
    assert "is not checked against autograd" in caplog.text


# -- tables above the budget ----------------------------------------------------------------------


class Language(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.table, self.inner = nn.Embedding(11, D), nn.Linear(D, D)
        self.head = nn.Linear(D, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.inner(self.table(ids)).tanh())


@pytest.mark.parametrize("granularity", ["whole_model", "all_layer", "all_matrix"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("budget", [1, 100, 1000])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_gram_matrix_of_tables_above_the_budget(tied, budget, granularity, micro):
    torch.manual_seed(0)
    model = Language(tied).double()
    ids, labels = torch.randint(11, (2, 5, 6))
    losses = lambda: F.cross_entropy(model(ids).mT, labels, reduction="none")
    engine = Engine(model, PCGrad(), granularity, budget=budget)
    for _ in range(micro - 1):
        with engine.tasks(TASKS):
            engine.accumulate(losses())
    with engine.tasks(TASKS):
        report = engine.backward(losses())
    assert not engine.refused
    for group, gram in zip(parameter_groups(model, granularity), report.gram, strict=True):
        rows = []
        for task in "abc":
            loss = micro * losses()[[t == task for t in TASKS]].sum()
            rows.append(flat(torch.autograd.grad(loss, group.parameters), group.parameters))
        rows = torch.stack(rows)
        torch.testing.assert_close(gram, rows @ rows.T, rtol=1e-10, atol=1e-14)
