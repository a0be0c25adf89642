"""What every method promises, asked of whole steps through both engines."""

import math

import pytest
import torch
from torch import nn

from gradvac import NotFiniteError
from gradvac.engine import Engine, PerTaskEngine, SinglePassEngine
from gradvac.methods import GradVac
from tests.methods.helpers import relative
from tests.methods.test_properties import CASES, REMEMBERS_ROWS, SCALE_DEPENDENT, TASKS, K, same

ENGINES = [PerTaskEngine, SinglePassEngine]
# A bound that is absolute in the losses; alpha follows raw ones.
READS_THE_SCALE_OF_LOSSES = {"cats", "cats_share", "gradnorm_whole"}


@pytest.fixture(params=CASES)
def case(request):
    if request.param.startswith("torchjd"):
        pytest.importorskip("torchjd")
    return request.param


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def build(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def samples(step, dtype=torch.float64):
    """Two samples and targets for each of the tasks, [10, 4] each."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, 2 * K, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def run(engine, model, step, loss=None, order=range(2 * K), dtype=torch.float64):
    """A step; ``loss`` maps outputs, targets and positions of tasks to losses of samples."""
    loss = loss or (lambda out, y, task: (out - y).square().mean(1) + 0.1)
    x, y = (z[list(order)] for z in samples(step, dtype))
    task = torch.tensor([n % K for n in order])
    if isinstance(engine, Engine):
        with engine.tasks([TASKS[n] for n in task]):
            return engine.backward(loss(model(x), y, task), step=step)
    for n in dict.fromkeys(task.tolist()):
        own = task == n
        engine.accumulate(TASKS[n], loss(model(x[own]), y[own], task[own]).sum())
    return engine.combine(step=step)


def gradient(model):
    return torch.cat([p.grad.double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ENGINES)
def test_the_scale_of_losses_scales_the_update_and_nothing_else(kind, case):
    """Gradient norms from 1e-8 to 1e8; the scale of the plain gradient is about 1."""
    if case in SCALE_DEPENDENT | READS_THE_SCALE_OF_LOSSES:
        pytest.skip("absolute by its own definition")
    runs = {power: (build(), CASES[case]()) for power in (0, -8, 8)}
    engines = {power: kind(*pair) for power, pair in runs.items()}
    for step in range(4):
        found = {}
        for power, engine in engines.items():
            scaled = lambda out, y, task, p=power: ((out - y).square().mean(1) + 0.1) * 10.0**p
            run(engine, runs[power][0], step, scaled)
            found[power] = gradient(runs[power][0])
        for power in (-8, 8):
            assert relative(found[power] / 10.0**power, found[0]) <= 1e-10


@pytest.mark.parametrize("kind", ENGINES)
def test_the_order_of_tasks_does_not_matter(kind, case):
    """Neither that of the samples nor, by it, that in which tasks become known."""
    orders = [range(2 * K), [7, 3, 8, 0, 9, 2, 5, 4, 6, 1]]
    models = [build(), build()]
    engines = [kind(model, CASES[case]()) for model in models]
    for step in range(4):
        reports = [
            run(e, m, step, order=o) for e, m, o in zip(engines, models, orders, strict=True)
        ]
        assert relative(gradient(models[1]), gradient(models[0])) <= 1e-10
        back = [reports[1].tasks.index(task) for task in reports[0].tasks]
        assert relative(reports[1].weights[:, back], reports[0].weights) <= 1e-9


@pytest.mark.parametrize("kind", ENGINES)
def test_duplicated_opposed_and_zero_gradients_in_bfloat16(kind, case):
    """And a NaN after them; state is float64, finite, and never knows of it."""
    dtype = torch.bfloat16
    model = build(dtype)
    engine = kind(model, CASES[case]())

    def degenerate(out, y, task):
        base = out.square().mean(1)  # t0, t1 and t2 have it, t3 its opposite, t4 nothing
        sign = torch.tensor([1.0, 1, 1, -1, 0]).to(dtype)[task]
        return 2 + sign * base

    def spoilt(out, y, task):
        return out.square().mean(1) * torch.where(task == 3, math.nan, 1.0).to(dtype) + 0.1

    same_rows = [0, 0, 0, 0, 0]  # every task has the same sample
    x = samples(0, dtype)[0][same_rows]
    names = list(TASKS)
    for _ in range(6):
        if kind is SinglePassEngine:
            with engine.tasks(names):
                report = engine.backward(degenerate(model(x), None, torch.arange(K)))
        else:
            for n, task in enumerate(names):
                loss = degenerate(model(x[n : n + 1]), None, torch.tensor([n]))
                engine.accumulate(task, loss.sum())
            report = engine.combine()
        assert bool(report.weights.isfinite().all()) and bool(gradient(model).isfinite().all())
        assert report.gram[:, 4].abs().sum() == 0
        assert (report.gram[:, 0, 3] < 0).all() and (report.gram[:, 0, 1] > 0).all()
    before = engine.state_dict()
    for value in tensors(before):
        assert value.dtype in (torch.float64, torch.int64) and bool(value.isfinite().all())
    with pytest.raises(NotFiniteError, match=r"task 't3' .* group 'layers\.\d' at step 6"):
        run(engine, model, 6, spoilt, dtype=dtype)
    assert same(engine.state_dict(), before)


def tensors(state):
    """All numbers of a state as tensors."""
    if isinstance(state, dict):
        return [x for value in state.values() for x in tensors(value)]
    if isinstance(state, list):
        return [x for value in state for x in tensors(value)]
    if isinstance(state, float):
        return [torch.tensor(state, dtype=torch.float64)]
    return [state] if isinstance(state, torch.Tensor) else []


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("max_target", [0.5, 0.99, 0.999, 1 - 1e-9])
def test_no_edit_amplifies_by_more_than_its_cap_allows(kind, max_target):
    """Twenty parallel steps drive the target to 1 - 1e-6; the next gradients are orthogonal."""
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("w", w)
    engine = kind(model, GradVac(beta=0.5, tasks=["a"], max_target=max_target), "whole_model")
    for step in range(21):
        w.grad = None
        directions = torch.eye(2) if step == 20 else torch.tensor([[1.0, 0], [2, 0]])
        a, b = directions.double()
        if kind is SinglePassEngine:
            model.forward = lambda x: x * w
            with engine.tasks(["a", "b"]):
                engine.backward(model(torch.stack([a, b])).sum(1))
        else:
            engine.backward({"a": (w * a).sum(), "b": (w * b).sum()})
    edited = w.grad - b  # a's gradient after the edit; b's is not edited
    bound = 1 / math.sqrt(1 - max_target**2)
    target = min(max_target, 1 - 0.5**20)  # a closed form of the moving average of 1
    assert float(edited.norm()) <= bound * (1 + 1e-12)
    assert float(edited.norm()) == pytest.approx(1 / math.sqrt(1 - target**2), rel=1e-6)


def test_edits_one_after_the_other_multiply_at_most():
    """Of K - 1 edits each is bounded; that is all that Algorithm 1 allows to promise."""
    cap = 0.9
    for seed in range(20):
        g = torch.randn(5, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        p = nn.Parameter(torch.zeros(30, dtype=torch.float64))
        method = GradVac(target=cap, max_target=cap, tasks=["t0"], seed=seed)
        engine = PerTaskEngine([("p", p)], method, "whole_model")
        engine.backward({f"t{n}": (p * row).sum() for n, row in enumerate(g)})
        edited = p.grad - g[1:].sum(0)
        assert float(edited.norm() / g[0].norm()) <= (1 / math.sqrt(1 - cap**2)) ** 4


@pytest.mark.parametrize("kind", ENGINES)
def test_tasks_may_be_missing_from_a_step(kind, case):
    if case in REMEMBERS_ROWS:
        pytest.skip("remembers tasks by row, and says so")
    model = build()
    engine = kind(model, CASES[case]())
    for step, order in enumerate(([0, 1, 2, 3, 4], [3, 1], [4], [2, 0, 4])):
        report = run(engine, model, step, order=order)
        assert set(report.tasks) == {TASKS[n] for n in order}
        assert bool(gradient(model).isfinite().all())
