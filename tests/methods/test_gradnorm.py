"""GradNorm against its own algorithm with double backward on a small network."""

import math

import pytest
import torch

from gradvac.errors import GradientError
from gradvac.methods import GradNorm, StepGeometry
from tests.methods.helpers import geometry, relative, task_gradients
from tests.reference.gradnorm import LiteralGradNorm


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 5)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(5, 1) for _ in range(3))

    def forward(self, x):
        h = torch.tanh(self.last(torch.tanh(self.first(x))))
        return [head(h).squeeze(1) for head in self.heads]


@pytest.mark.parametrize("relative_rule", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_against_double_backward(alpha, relative_rule):
    torch.manual_seed(0)
    net = Net().double()
    x, y = torch.randn(32, 4).double(), torch.randn(3, 32).double()
    y *= torch.tensor([[1.0], [5.0], [20.0]])
    lr = 0.025 if relative_rule else 5e-4
    ours = GradNorm(alpha, lr, group="last", relative=relative_rule)
    literal = LiteralGradNorm(3, alpha, lr, relative_rule)
    groups = {name: list(getattr(net, name).parameters()) for name in ("first", "last")}
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for step in range(40):
        losses = [(p - t).square().mean() for p, t in zip(net(x), y, strict=True)]
        rows = {
            name: torch.stack(
                [
                    torch.cat([g.reshape(-1) for g in torch.autograd.grad(l, p, retain_graph=True)])
                    for l in losses
                ]
            )
            for name, p in groups.items()
        }
        now = torch.stack(losses).detach()
        weights = ours.weights(geometry(rows, step=step, losses=now))
        assert relative(weights[0], literal.w.detach()) <= 1e-12
        assert torch.equal(weights[0], weights[1])
        literal.step(losses, groups["last"])
        optimizer.zero_grad()
        sum(w * l for w, l in zip(weights[0], losses, strict=True)).backward()
        optimizer.step()
    assert float((literal.w.detach() - 1).abs().max()) > 0.05  # it went somewhere


def drawn(step, n_tasks=3):
    return task_gradients("independent", n_tasks, 20, torch.Generator().manual_seed(step))


def test_alpha_zero_makes_the_weighted_norms_equal():
    g, method = drawn(0), GradNorm(alpha=0, learning_rate=0.01)
    g = g / g.norm(dim=1, keepdim=True) * torch.tensor([[1.0], [2.0], [4.0]])
    for step in range(1500):
        weights = method.weights(geometry(g, step=step, losses=torch.ones(3).double()))[0]
    expected = 3 * torch.tensor([4.0, 2.0, 1.0]).double() / 7
    assert relative(weights, expected) <= 0.03
    assert float(weights.sum()) == pytest.approx(3)


def test_the_slow_task_gets_more():
    method, g = GradNorm(alpha=1.5, initial_losses=math.log(1000)), torch.eye(2).double()
    for step in range(200):
        losses = torch.tensor([6.0, 2.0]).double()
        weights = method.weights(geometry(g, step=step, losses=losses))[0]
    # w_i n_i -> Gbar r_i^alpha, up to their common sum: r = (1.5, 0.5)
    expected = torch.tensor([1.5, 0.5]).double() ** 1.5
    assert relative(weights, 2 * expected / expected.sum()) <= 0.05


def test_absent_tasks_are_only_renormalised():
    method, ones = GradNorm(), torch.ones(3).double()
    for step in range(5):
        method.weights(geometry(drawn(step), step=step, losses=ones))
    before = method.state_dict()["weights"]
    method.weights(geometry(drawn(9, 2), ("t0", "t1"), 9, ones[:2]))
    after = method.state_dict()["weights"]
    assert sum(after.values()) == pytest.approx(3, rel=1e-14)
    assert after["t2"] != before["t2"]
    method.weights(geometry(drawn(10, 1), ("new",), 10, ones[:1]))
    assert method.state_dict()["weights"]["new"] == pytest.approx(1)


def test_weights_stay_positive_whatever_the_step():
    method = GradNorm(learning_rate=50.0)
    for step in range(20):
        weights = method.weights(geometry(drawn(step), step=step, losses=torch.rand(3).double()))
        assert float(weights.min()) > 0


def test_shares_are_divided_out_of_training_rates():
    method, same = GradNorm(initial_losses=5.0), GradNorm(initial_losses=5.0)
    losses = torch.tensor([2.0, 3.0, 4.0]).double()
    for step in range(5):
        geo = geometry(drawn(step), step=step, losses=losses)
        share = torch.tensor([0.5, 0.1, 0.4]).double()
        mixed = StepGeometry(geo.gram, losses * share, geo.tasks, geo.groups, step, share)
        assert relative(method.weights(mixed), same.weights(geo)) <= 1e-12


@pytest.mark.parametrize(
    ("group", "chosen"),
    [("last_layer", 2), ("whole_model", None), ("embedding", 0), ("encoder.layers.0", 1)],
)
def test_where_norms_are_taken(group, chosen):
    groups = ("embedding", "encoder.layers.0", "decoder.layers.3", "head")
    gram = torch.diag_embed(torch.rand(4, 2, generator=torch.Generator().manual_seed(0)).double())
    method = GradNorm(group=group)
    method.weights(StepGeometry(gram, torch.ones(2).double(), ("a", "b"), groups, 0))
    used = gram.sum(0) if chosen is None else gram[chosen]
    assert torch.equal(method.report()["norms"][0], used.diagonal().sqrt())


@pytest.mark.parametrize(
    ("options", "losses", "says"),
    [
        ({"group": "decoder"}, [1, 1, 1], "group is 'decoder'; it must be last_layer, whole_model"),
        ({}, [1, -1, 1], "loss of task 't1' is -1.0 at step 0; GradNorm needs losses >= 0"),
        ({}, [1, 0, 1], "first loss of task 't1' is 0"),
        ({"initial_losses": {"t0": 1.0, "t10": 1.0}}, [1, 1, 1], "'t1' has no initial.*mean 't10'"),
    ],
)
def test_what_it_cannot_work_with(options, losses, says):
    method = GradNorm(**options)
    before = method.state_dict()
    with pytest.raises(GradientError, match=says):
        method.weights(geometry(drawn(0), losses=torch.tensor(losses).double()))
    assert method.state_dict() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": -1}, "alpha is -1"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"initial_losses": 0.0}, "initial_losses holds 0.0"),
        ({"initial_losses": "log"}, "initial_losses is 'log'; it must be 'first'"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(GradientError, match=says):
        GradNorm(**options)
