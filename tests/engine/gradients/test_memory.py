"""A budget for large parameters, and two passes for the whole model: same numbers, less memory."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradvac.engine import Engine, PerTaskEngine, SinglePassEngine
from gradvac.engine.gradients.on_demand import Lookup, OnDemand, Product
from gradvac.engine.samples.owners import Owners
from gradvac.errors import GradientError
from gradvac.geometry.measure import measure
from gradvac.methods import GradVac, Joint, PCGrad, StaticWeights
from tests.engine.partition import largest_error
from tests.engine.test_single_pass import TASKS, batch, losses_of, translator
from tests.turns import by_turns

SMALL = 1000  # bytes, at K = 3 in float64: the embedding [40, 16] in chunks of two rows
EXACT = 1e-10


@pytest.mark.parametrize("budget", by_turns([1, SMALL, 5000], 2))  # chunks of 1, 2 and 13 rows
def test_a_budget_changes_no_task_gradient(budget):
    model = translator()
    make = partial(SinglePassEngine, budget=budget)
    assert largest_error(model, losses_of(model, batch()), TASKS, make) < EXACT


def test_a_budget_gives_way_to_a_use_that_needs_all_gradients():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 4).double(), torch.randn(3, 2, 4, dtype=torch.float64)
    scaled = lambda: (model(x) * model.weight[0] + (x @ model.weight.tanh())).square().sum(-1)
    make = partial(SinglePassEngine, budget=1)
    assert largest_error(model, lambda: (scaled(), None), ["a", "b", "a"], make) < EXACT


def updates(engine_of, steps=4, scale=1.0, tasks=TASKS):
    """Parameters and reports of a few steps of plain descent."""
    model = translator()
    engine, reports = engine_of(model), []
    for step in range(steps):
        torch.manual_seed(step)
        with engine.tasks(tasks):
            loss, _, rows = model.token_losses(*batch(seed=step), 0.1)
            reports.append(engine.backward(loss / 30 * scale, rows, loss_scale=scale))
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return nn.utils.parameters_to_vector(model.parameters()), reports


def compare(one, other):
    (p, reports), (q, others) = one, other
    assert (p - q).abs().max() <= 1e-10 * q.abs().max()
    for a, b in zip(reports, others, strict=True):
        assert a.groups == b.groups and a.tasks == b.tasks
        torch.testing.assert_close(a.gram, b.gram, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(a.weights, b.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_with_a_budget_training_is_the_same(scale):
    held = updates(lambda m: SinglePassEngine(m, GradVac(), budget=SMALL), scale=scale)
    compare(held, updates(lambda m: SinglePassEngine(m, GradVac())))


@pytest.mark.parametrize("method", [GradVac, PCGrad])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_two_passes_equal_one(method, scale):
    two = updates(lambda m: Engine(m, method(), "whole_model", passes=2, budget=SMALL), scale=scale)
    compare(two, updates(lambda m: SinglePassEngine(m, method(), "whole_model")))


def test_two_passes_with_a_batch_of_one_task():
    one = updates(lambda m: Engine(m, GradVac(), "whole_model"), tasks=["a"] * 7)
    two = updates(lambda m: Engine(m, GradVac(), "whole_model", passes=2), tasks=["a"] * 7)
    compare(two, one)


class Positions(nn.Module):
    """Position embeddings reach the batch by broadcasting, a scale through its exponential."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 6))
        self.scale = nn.Parameter(torch.randn(6))
        self.out = nn.Linear(6, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.out((x + self.position) * self.scale.exp()).tanh()

    def losses(self, x, own):
        y = self(x)
        loss = y.square().mean(2)
        return loss + torch.where(own[:, None], self.head(y).squeeze(2).square(), 0.0)


def test_two_passes_reach_parameters_behind_a_broadcast_and_give_heads_their_plain_gradient():
    torch.manual_seed(0)
    model = Positions().double()
    x, tasks = torch.randn(6, 5, 6).double(), ["a", "b", "a", "c", "b", "b"]
    own = torch.tensor([task == "a" for task in tasks])
    shared = [p for n, p in model.named_parameters() if "head" not in n]
    weights = {"a": 0.5, "b": 2.0, "c": 0.0}
    loss = model.losses(x, own)
    weighted = (loss * torch.tensor([[weights[t]] for t in tasks])).sum()
    wanted = torch.autograd.grad(weighted, shared, retain_graph=True)
    heads = torch.autograd.grad(loss.sum(), list(model.head.parameters()))
    method = StaticWeights(weights)
    engine = SinglePassEngine(model, method, "whole_model", passes=2, heads={"a": "head"})
    with engine.tasks(tasks):
        engine.backward(model.losses(x, own))
    for p, g in zip([*shared, *model.head.parameters()], [*wanted, *heads], strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)


def test_two_passes_need_one_group_and_no_micro_batches():
    with pytest.raises(GradientError, match="granularity='whole_model'"):
        Engine(translator(), GradVac(), passes=2)
    with pytest.raises(GradientError, match="passes is 3"):
        Engine(translator(), GradVac(), "whole_model", passes=3)
    with pytest.raises(GradientError, match="positive number of bytes"):
        Engine(translator(), GradVac(), budget=0)
    model = translator()
    engine = Engine(model, GradVac(), "whole_model", passes=2)
    with engine.tasks(TASKS):
        loss, _, rows = model.token_losses(*batch(), 0.1)
        with pytest.raises(GradientError, match="passes=1 to accumulate"):
            engine.accumulate(loss, rows)


@pytest.mark.parametrize("transposed", [False, True])
def test_held_gradients_are_the_products_of_each_task(transposed):
    torch.manual_seed(0)
    index = torch.tensor([2, 0, 2, 2, 0])  # task 1 is absent
    x, dy = torch.randn(5, 4).double(), torch.randn(5, 7).double()
    ids, rows = torch.tensor([3, 1, 3]), torch.randn(3, 7 if transposed else 4).double()
    shape = torch.Size([4, 7] if transposed else [7, 4])
    uses = [
        Product(x, dy, transposed, Owners(index, 3)),
        Lookup(ids, rows, Owners(torch.tensor([0, 2, 2]), 3)),
    ]
    held = OnDemand(uses, shape, 3, torch.float64, budget=2 * 3 * shape[1] * 8)
    chunks = [chunk.clone() for chunk in held.chunks()]
    assert len(chunks) == -(-shape[0] // 2)
    found = torch.cat([chunk.view(3, -1, shape[1]) for chunk in chunks], 1)
    wanted = torch.stack([dy[index == k].T @ x[index == k] for k in range(3)])
    wanted = wanted.mT.clone() if transposed else wanted
    wanted[0, 3] += rows[0]
    wanted[2, 1] += rows[1]
    wanted[2, 3] += rows[2]
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)


class Copied(TorchDispatchMode):
    """Counts the numbers that concatenations write."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.cat:
            self.numbers += found.numel()
        return found


def per_task(reserved, weight):
    engine = PerTaskEngine([("w", weight)], Joint())
    if reserved:
        engine.reserve(reserved)
    for n, task in enumerate("abcde"):
        engine.accumulate(task, (n + 1) * weight.sum())
    return engine.combine()


@pytest.mark.parametrize(
    ("reserved", "rows"),
    [(0, 2 + 3 + 4 + 5), (3, 4 + 5), (5, 0), (9, 0)],  # each new row copies those before it
)
def test_reserved_task_gradients_are_not_copied_for_each_new_task(reserved, rows):
    weight = nn.Parameter(torch.ones(1000))
    with Copied() as copied:
        report = per_task(reserved, weight)
    assert copied.numbers // 1000 == rows
    assert report.gram[0, 1].tolist() == [2000.0 * n for n in (1, 2, 3, 4, 5)]
    assert weight.grad.tolist() == [15.0] * 1000


def test_all_losses_of_a_step_reserve_room_together():
    weight = nn.Parameter(torch.ones(1000))
    engine = PerTaskEngine([("w", weight)], Joint())
    with Copied() as copied:
        engine.accumulate("a", weight.sum())
        engine.accumulate_all({task: weight.sum() for task in "bcde"})
    assert copied.numbers // 1000 == 5  # once, when the first row moves
    engine.combine()


def test_a_measurement_copies_no_gradient():
    model = nn.Linear(1000, 1, bias=False)
    rows = torch.randn(7, 1000)
    with Copied() as copied:
        frame = measure(model, {str(n): lambda x=x: [model(x).sum()] for n, x in enumerate(rows)})
    assert copied.numbers < 1000
    torch.testing.assert_close(
        torch.tensor(frame.gram[0]), rows.double() @ rows.double().T, rtol=1e-6, atol=1e-4
    )
