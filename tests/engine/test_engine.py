"""The engine that splits one backward pass where it can and runs one per task where it cannot."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradvac.engine import Engine, PerTaskEngine, SinglePassEngine
from gradvac.engine.samples import calls
from gradvac.errors import GradientError
from gradvac.methods import GradVac, Joint, PCGrad, StaticWeights
from tests.engine.partition import largest_error

D, EXACT = 4, 1e-10
TASKS = ["a", "b", "a", "c", "b"]
X = torch.linspace(-1, 1, 5 * 3 * D, dtype=torch.float64).sin().view(5, 3, D)


class Hidden(torch.autograd.Function):
    """Uses a parameter where no function mode sees it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.mul(x.detach(), w.detach())

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).flatten(0, -2).sum(0)


class Net(nn.Module):
    """Something between two maps and a weight made of weights, used on both of its sides."""

    def __init__(self, between, checkpoints=False):
        super().__init__()
        self.first, self.last = nn.Linear(D, D), nn.Linear(D, D)
        self.norm = nn.BatchNorm1d(D)
        self.scale = nn.Parameter(torch.ones(D))
        self.gate = nn.Parameter(torch.zeros(D))
        self.enter, self.drop = nn.Identity(), nn.Dropout(0.3)
        self.between, self.checkpoints = between, checkpoints

    def forward(self, x):
        weight = self.first.weight * self.gate.sigmoid()[:, None]
        part = partial(checkpoint, use_reentrant=False) if self.checkpoints else lambda f, x: f(x)
        x = F.linear(self.drop(part(self.first, x)), weight)
        x = part(lambda x: self.between(self, self.enter(x)), x)
        return part(self.last, self.drop(F.linear(x, weight))).tanh()


def each(x, dim):
    """[B, d] to [B, B, d] with the samples in a dimension."""
    return x.unsqueeze(1 - dim).expand(len(x), len(x), -1).clone()


BETWEEN = {
    "batch_norm": lambda m, x: m.norm(x.flatten(0, 1)).view_as(x),
    "in place": lambda m, x: each(x.mean(1), 0).addcmul_(each(x.mean(1), 1), m.scale),
    "custom function": lambda m, x: Hidden.apply(x, m.scale) + x.mean(0),
    "unknown": lambda m, x: torch.linalg.matrix_exp(x @ x.mT / 9) @ x * m.scale,
    "mean": lambda m, x: m.last(x - x.mean(0)),
}


def built(kind, **options):
    torch.manual_seed(0)
    return Net(BETWEEN[kind], **options).double()


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("kind", sorted(BETWEEN))
@pytest.mark.parametrize("steps", [1, 2])  # in the first one the forward pass is half split
def test_one_backward_per_task_where_samples_mix(kind, steps, checkpoints):
    model = built(kind, checkpoints=checkpoints)
    losses = lambda: (model(X).square().sum(-1), None)
    assert largest_error(model, losses, TASKS, Engine, steps) < EXACT
    make = partial(Engine, engine="per_task")
    assert largest_error(model, losses, TASKS, make, steps) < EXACT


@pytest.mark.parametrize("kind", ["batch_norm", "mean"])
@pytest.mark.parametrize("options", [{"budget": 1}, {"granularity": "whole_model", "passes": 2}])
def test_a_refusal_gives_up_what_saves_memory_and_nothing_else(kind, options):
    model = built(kind)
    weights = {"a": 0.5, "b": 2.0, "c": 0.0}
    engine = Engine(model, StaticWeights(weights), **options)
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(1)
        with engine.tasks(TASKS):
            engine.backward(model(X).square().sum(-1))
        torch.manual_seed(1)
        weighted = model(X).square().sum((1, 2)) * torch.tensor([weights[t] for t in TASKS])
        wanted = torch.autograd.grad(weighted.sum(), list(model.parameters()), allow_unused=True)
        for p, g in zip(model.parameters(), wanted, strict=True):
            assert (p.grad is None) == (g is None)
            if g is not None:
                torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)


def test_the_reason_is_logged_once_and_training_goes_on(caplog):
    model = built("batch_norm")
    engine = Engine(model, GradVac())
    for _ in range(3):
        with engine.tasks(TASKS):
            report = engine.backward(model(X).square().sum(-1))
    (line,) = [r.getMessage() for r in caplog.records if r.name == "gradvac"]
    assert line.startswith("one backward pass per task from now on: 'batch_norm' in module 'norm'")
    assert "put it in eval mode or use GroupNorm" in line and engine.refused in line
    assert report.step == 2 and engine.step == 3
    assert int(model.norm.num_batches_tracked) == 3  # no forward pass was done twice


def test_a_model_that_splits_is_split(caplog):
    model = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D)).double()
    engine = Engine(model, Joint())
    with engine.tasks(TASKS):
        engine.backward(model(X).sum(-1))
    assert not engine.refused and not caplog.records


def contrastive(model):
    """A loss across samples, of which each belongs to the sample it starts from."""
    y = model(X).mean(1)
    return (y @ y.T).log_softmax(1).diagonal(), None


@pytest.mark.parametrize("steps", [1, 2])
def test_a_loss_across_samples(steps, caplog):
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)).double()
    assert largest_error(model, lambda: contrastive(model), TASKS, Engine, steps) < EXACT
    assert all(
        "have a gradient at samples of other tasks" in r.getMessage() for r in caplog.records
    )


class Tokens(nn.Module):
    """Batch normalisation between an embedding and a softmax over words."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.out = nn.Embedding(9, D), nn.BatchNorm1d(D), nn.Linear(D, 9)

    def forward(self, ids):
        return self.out(self.norm(self.table(ids).flatten(0, 1)).view(*ids.shape, D))


@pytest.mark.parametrize("batch_dim", [0, 1])
@pytest.mark.parametrize("length", [3, 5])  # 5: as many words as samples
@pytest.mark.parametrize("steps", [1, 2])
def test_losses_of_tokens_still_find_their_samples(batch_dim, length, steps):
    torch.manual_seed(0)
    model = Tokens().double()
    ids, labels = torch.randint(9, (2, 5, length))
    if batch_dim:
        ids, labels = ids.T.contiguous(), labels.T.contiguous()

    def losses():
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="none")
        return loss, (torch.arange(5).repeat(length) if batch_dim
                      else torch.arange(5).repeat_interleave(length))  # fmt: skip

    options = {"inputs": [ids, labels], "batch_dim": batch_dim}
    told = largest_error(model, losses, TASKS, Engine, steps, **options)
    assert told < EXACT

    class Untold(Engine):
        def backward(self, loss, rows=None, *args, **kwargs):
            return super().backward(loss, None, *args, **kwargs)

    assert largest_error(model, losses, TASKS, Untold, steps, **options) < EXACT


def test_losses_that_lost_their_samples_are_asked_for_rows():
    model = Tokens().double()
    ids = torch.arange(25).view(5, 5) % 9
    message = "say by `rows` which sample each loss belongs to"
    for flat in (False, True):
        engine = Engine(model, Joint(), engine="per_task")
        with pytest.raises(GradientError, match=message), engine.tasks(TASKS, batch_dim=1):
            loss = torch.linalg.qr(model(ids))[0].sum(-1)
            engine.backward(loss.flatten() if flat else loss)


def test_losses_of_samples_in_two_orders_are_asked_for_rows():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x)
            return (2 * x + x[[1, 2, 0]]).square().sum((1, 2))

    model, x, tasks = Twice().double(), X[:3].double(), ["c", "d", "e"]
    engine = Engine(model, Joint())
    message = "say by `rows` which sample each loss belongs to"
    with pytest.raises(GradientError, match=message), engine.tasks(tasks):
        engine.backward(model(x))
    with engine.tasks(tasks):
        report = engine.backward(model(x), torch.arange(3))
    norms = [
        sum(g.square().sum() for g in torch.autograd.grad(model(x)[n], list(model.parameters())))
        for n in range(3)
    ]
    assert torch.allclose(report.gram.sum(0).diagonal(), torch.stack(norms), rtol=1e-9)
    assert engine.refused


def test_micro_batches_before_and_after_the_refusal_add_up():
    model = built("mean").eval()
    plain = model.first
    engine = Engine(model, PCGrad())
    with engine.tasks(TASKS, inputs=[X]):
        engine.accumulate(plain(X).square().sum(-1))
    assert not engine.refused
    for _ in range(2):
        with engine.tasks(["c", "d", "c", "a", "d"]):
            engine.accumulate(model(X).square().sum(-1))
    assert engine.refused
    report = engine.combine()
    found = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    other = Engine(model, PCGrad())
    first, second = plain(X).square().sum((1, 2)), 2 * model(X).square().sum((1, 2))
    expected = other.backward(
        {
            "a": first[[0, 2]].sum() + second[3],
            "b": first[[1, 4]].sum(),
            "c": first[3] + second[[0, 2]].sum(),
            "d": second[[1, 4]].sum(),
        }
    )
    assert report.tasks == expected.tasks
    torch.testing.assert_close(report.gram, expected.gram, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(report.losses, expected.losses)
    for p, g in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)


def test_a_run_may_switch_engines():
    kinds = [
        lambda m: SinglePassEngine(m, GradVac(beta=0.3)),
        lambda m: Engine(m, GradVac(beta=0.3), engine="per_task"),
        lambda m: Engine(m, GradVac(beta=0.3)),
        lambda m: PerTaskEngine(m, GradVac(beta=0.3)),
    ]
    reports = []
    for order in ([0, 0, 0, 0, 0], [1, 2, 0, 1, 3]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)).double()
        state = None
        for step, kind in enumerate(order):
            engine = kinds[kind](model)
            if state is not None:
                engine.load_state_dict(state)
            x = X + step
            if isinstance(engine, PerTaskEngine):
                each = (model(x) - X).square().sum((1, 2))
                parts = {"a": each[[0, 2]].sum(), "b": each[[1, 4]].sum(), "c": each[3]}
                report = engine.backward(parts)
            else:
                with engine.tasks(TASKS):
                    report = engine.backward((model(x) - X).square().sum((1, 2)))
            state = engine.state_dict()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
        reports.append((report, [p.detach().clone() for p in model.parameters()]))
    (one, ps), (two, qs) = reports
    assert one.step == two.step == 4
    torch.testing.assert_close(one.gram, two.gram, rtol=1e-9, atol=1e-14)
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_several_losses_of_one_input():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.Linear(D, D)).double()
    y = model(X[:, 0])
    losses = {"depth": y[:, 0].square().mean(), "edges": y[:, 1:].abs().sum()}
    expected = PerTaskEngine(model, PCGrad()).backward(dict(losses))
    wanted = [p.grad for p in model.parameters()]
    y = model(X[:, 0])
    engine = Engine(model, PCGrad())
    engine.accumulate({"depth": y[:, 0].square().mean()} | {"edges": y[:, 1:].abs().sum()})
    report = engine.combine(shares={"depth": 0.5, "edges": 0.5})
    torch.testing.assert_close(report.gram, expected.gram)
    for p, g in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g)
    assert engine.step == report.step + 1 == 1
    assert engine.backward({"depth": model(X[:, 0]).sum()}).step == 1


def test_the_two_forms_of_losses_are_not_mixed_in_a_step():
    model = nn.Linear(D, D).double()
    engine = Engine(model, Joint())
    loss = lambda: model(X).sum(-1)
    engine.accumulate({"a": loss().sum()})
    message = "began with a loss for each task"
    with pytest.raises(GradientError, match=message), engine.tasks(TASKS):
        engine.accumulate(loss())
    with engine.tasks(TASKS):
        engine.accumulate(loss())
    with pytest.raises(GradientError, match="began with losses of samples"):
        engine.accumulate({"a": loss().sum()})
    with pytest.raises(GradientError, match="at least one accumulate"):  # all was dropped
        engine.combine()
    with pytest.raises(GradientError, match="belong to losses of samples"):
        engine.backward({"a": loss().sum()}, rows=torch.arange(5))
    with pytest.raises(GradientError, match=r"single_pass.*was asked for"):
        Engine(model, Joint(), engine="single_pass").backward({"a": loss().sum()})


def test_the_engine_may_be_chosen():
    model = built("batch_norm")
    strict = Engine(model, Joint(), engine="single_pass")
    message = r"'batch_norm' in module 'norm' \(BatchNorm1d\).*engine=\"per_task\""
    with pytest.raises(GradientError, match=message), strict.tasks(TASKS):
        strict.backward(model(X).sum(-1))
    assert all(p.grad is None for p in model.parameters()) and not strict.refused
    with pytest.raises(GradientError, match="engine is 'auto'; it must be 'single_pass', 'per_t"):
        Engine(model, Joint(), engine="auto")


def test_a_parameter_from_elsewhere_is_not_trained_silently():
    model, other = nn.Linear(D, D).double(), nn.Parameter(torch.ones(D).double())
    engine = Engine(model, Joint())
    message = "not in the model the engine was made for"
    with pytest.raises(GradientError, match=message), engine.tasks(TASKS):
        engine.backward((model(X) * other).sum(-1))


def test_inputs_and_constants_may_require_a_gradient():
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)).double()
    x, shift = X.clone().requires_grad_(), torch.ones(D, dtype=X.dtype, requires_grad=True)
    losses = lambda: ((model(x + shift) * shift.exp()).square().sum(-1), None)
    strict = partial(Engine, engine="single_pass")
    assert largest_error(model, losses, TASKS, strict, inputs=[x]) < EXACT
    assert x.grad is None and shift.grad is None


def test_reentrant_checkpointing_is_refused_by_name():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x):
            return checkpoint(self.second, self.first(x), use_reentrant=True)

    model = Checkpointed().double()
    message = r"module 'second' \(Linear\) is checkpointed with use_reentrant=True.*=False"
    for engine in (None, "single_pass", "per_task"):
        chosen = Engine(model, Joint(), engine=engine)
        with pytest.raises(GradientError, match=message), chosen.tasks(TASKS):
            chosen.backward(model(X).sum(-1))
    with pytest.raises(GradientError, match=message):
        Engine(model, Joint()).backward({"a": model(X).sum()})
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_checkpointed_functions_without_a_module(batch_norm):
    model = nn.ModuleDict({"a": nn.Linear(D, D), "b": nn.Linear(D, D), "norm": nn.BatchNorm1d(D)})
    model = model.double()
    plain = lambda x: F.linear(x, model["b"].weight, model["b"].bias).tanh()
    made = lambda x: F.linear(x * model["b"].bias, model["b"].weight.tanh())

    def losses():
        x = checkpoint(plain, model["a"](X), use_reentrant=False)
        x = model["norm"](x.flatten(0, 1)).view_as(x) if batch_norm else x
        return checkpoint(made, x, use_reentrant=False).square().sum(-1), None

    assert largest_error(model, losses, TASKS, Engine, 2, inputs=[X]) < EXACT
    engine = Engine(model, Joint())
    with engine.tasks(TASKS, inputs=[X]):
        engine.backward(losses()[0])
    assert bool(engine.refused) == batch_norm


class Block(nn.Linear):
    def __init__(self):
        super().__init__(D, D)

    def forward(self, x):
        return F.gelu(super().forward(x))


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_run_as_written_where_samples_are_followed(whole, caplog):
    torch.manual_seed(0)
    calls._tell_compiled.cache_clear()  # said once in a process
    ran = []

    def backend(graph, inputs):
        return lambda *args: ran.append(1) or graph.forward(*args)

    plain = nn.Sequential(Block(), nn.Linear(D, D)).double()
    model = torch.compile(plain, backend=backend) if whole else plain
    if not whole:
        plain[0].compile(backend=backend)
    weights = {"a": 1.0, "b": 3.0, "c": 0.5}
    engine = Engine(model, StaticWeights(weights))
    with engine.tasks(TASKS):
        one = engine.backward(model(X).square().sum(-1))
    assert not engine.refused and not ran
    found = [p.grad for p in model.parameters()]
    parts = {t: X[[s == t for s in TASKS]] for t in weights}
    for task, x in parts.items():
        engine.accumulate({task: model(x).square().sum()})
    two = engine.combine()
    assert len(ran) == 3  # here they are
    torch.testing.assert_close(one.gram, two.gram, rtol=1e-10, atol=0)
    for p, g in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)
    lines = [r.getMessage() for r in caplog.records if r.name == "gradvac"]
    what = "the model" if whole else "module '0'"
    assert len(lines) == 1 and lines[0].startswith(f"{what} is compiled by torch.compile and runs")


def test_a_compiled_model_stays_compiled_where_tasks_have_a_forward_pass_each():
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters, compiled = torch._dynamo.utils.counters, []
    counters.clear()

    def backend(graph, inputs):
        compiled.append(len(inputs))
        return graph.forward

    plain = nn.Sequential(Block(), nn.Linear(D, D), Block()).double()
    model = torch.compile(plain, backend=backend, fullgraph=True)
    engine = Engine(model, StaticWeights({"a": 1.0, "b": 3.0, "c": 0.5}))
    for _ in range(3):
        for task in "abc":
            engine.accumulate({task: model(X).square().sum()})
        engine.combine()
    assert len(compiled) == 1  # one graph, never compiled again
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1
