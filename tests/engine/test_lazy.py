"""Steps without a wait: the numbers of an engine that waits, and steps that are not finite."""

import logging
import math
import pickle

import pytest
import torch
from torch import nn

from gradvac import GradientError, NotFiniteError
from gradvac.engine import Engine, LazyReport
from gradvac.methods import MGDA, GradVac, Joint, PCGrad, StaticWeights
from tests.engine.test_nonfinite import TASKS, build, losses_of
from tests.methods.helpers import relative
from tests.methods.test_properties import same

METHODS = {
    "gradvac": lambda: GradVac(beta=0.3, seed=1),
    "some tasks": lambda: GradVac(beta=0.3, tasks=["a", "c"], rescale=True, compare_pcgrad=True),
    "pcgrad": PCGrad,
    "joint": Joint,
    "static": lambda: StaticWeights({"a": 1, "b": 2, "c": 0.5}),
}
OPTIONS = {
    "single pass": {},
    "whole model": {"granularity": "whole_model"},
    "two passes": {"granularity": "whole_model", "passes": 2},
    "chunks": {"budget": 100},
    "per task": {"engine": "per_task"},
    "traced": {"plan": False},
}


def one_step(engine, model, step, spoil=None, **options):
    with engine.tasks(TASKS):
        return engine.backward(losses_of(model, step, spoil), **options)


def loss_per_task(engine, model, step):
    own = {t: torch.tensor([x == t for x in TASKS]) for t in "abc"}
    return engine.backward({t: losses_of(model, step, rows=own[t]).sum() for t in own})


def in_two(engine, model, step):
    """Two micro-batches, of which the first has a task less."""
    for rows in (slice(0, 3), slice(3, 6)):
        with engine.tasks(TASKS[rows]):
            engine.accumulate(losses_of(model, step, rows=rows))
    return engine.combine()


def trained(lazy, method, step=one_step, steps=6, resumed=3, **options):
    """A model, its engine and the reports of its steps, resumed in the middle."""
    model = build()
    engine = Engine(model, method(), lazy=lazy, **options)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    reports = []
    for n in range(steps):
        if n == resumed:
            state = pickle.loads(pickle.dumps(engine.state_dict()))
            engine = Engine(model, method(), lazy=lazy, **options)
            engine.load_state_dict(state)
        optimizer.zero_grad()
        reports.append(step(engine, model, n))
        optimizer.step()
    return model, engine, reports


def assert_equal(one, other):
    for p, q in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert relative(p.detach(), q.detach()) <= 1e-12
    states = [engine.state_dict() for _, engine, _ in (one, other)]
    assert states[0]["step"] == states[1]["step"]
    targets = [state["method"].pop("targets", torch.zeros(1)) for state in states]
    assert relative(*targets) <= 1e-12 if targets[0].any() else same(*map(list, targets))
    assert same(*states)
    for a, b in zip(one[2], other[2], strict=True):
        assert isinstance(a, LazyReport) and not isinstance(b, LazyReport)
        assert (a.step, a.tasks, a.groups) == (b.step, b.tasks, b.groups)
        assert a.diagnostics.keys() == b.diagnostics.keys()
        pairs = [(a.gram, b.gram), (a.weights, b.weights), (a.losses, b.losses)]
        for x, y in pairs + [(a.diagnostics[key], b.diagnostics[key]) for key in a.diagnostics]:
            assert x.dtype == y.dtype and torch.allclose(x, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", METHODS)
def test_a_lazy_engine_does_the_same_with_every_method(name):
    """Parameters, state, and reports that are read long after."""
    assert_equal(trained(True, METHODS[name]), trained(False, METHODS[name]))


@pytest.mark.parametrize("name", list(OPTIONS)[1:])
def test_a_lazy_engine_does_the_same_with_every_option(name):
    options = OPTIONS[name]
    found = (trained(lazy, METHODS["gradvac"], **options) for lazy in (True, False))
    assert_equal(*found)


@pytest.mark.parametrize("step", [loss_per_task, in_two])
def test_a_lazy_engine_does_the_same_with_every_form_of_losses(step):
    assert_equal(*(trained(lazy, METHODS["gradvac"], step) for lazy in (True, False)))


def test_a_state_goes_from_an_engine_that_waits_to_a_lazy_one_and_back():
    _, one, _ = trained(True, METHODS["gradvac"], steps=3)
    _, other, _ = trained(False, METHODS["gradvac"], steps=3)
    assert same(one.state_dict(), other.state_dict())
    one.load_state_dict(other.state_dict())
    other.load_state_dict(one.state_dict())
    assert same(one.state_dict(), other.state_dict())


def test_tasks_that_come_and_go():
    """A task without a loss counts as if it were not there, but the report names it."""

    def step(engine, model, n):
        mask = torch.tensor([float(t != "abc"[n % 3]) for t in TASKS]).double()
        with engine.tasks(TASKS):
            return engine.backward(losses_of(model, n), mask=mask)

    (one, lazy, reports), (other, waits, _) = (
        trained(x, METHODS["gradvac"], step, resumed=None) for x in (True, False)
    )
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert relative(p.detach(), q.detach()) <= 1e-12
    names = [waits.groups[0].name], "abc"
    assert relative(lazy.method.targets(*names), waits.method.targets(*names)) <= 1e-12
    assert reports[1].tasks == ("a", "b", "c") and not reports[1].weights[:, 1].any()


def test_shares_are_numbers_or_tensors():
    model = build()
    engine = Engine(model, GradVac(), lazy=True)
    shares = {"a": 0.5, "b": torch.tensor(0.25), "c": 0.25}
    report = one_step(engine, model, 0, shares=shares)
    assert report.geometry.shares.tolist() == [0.5, 0.25, 0.25]
    report = one_step(engine, model, 1, shares={"a": 1.0, "b": 2.0, "c": 3.0})
    assert report.geometry.shares.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(GradientError, match="shares have no entry for b, c"):
        one_step(engine, model, 2, shares={"a": 1.0})
    before = engine.state_dict()
    assert before["step"] == 2 and one_step(engine, model, 2).step == 2


# -- steps that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [math.nan, math.inf, "gradient"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_that_is_not_finite_leaves_no_trace(spoil, options):
    """The gradient is that of before, the method's state too, and the error comes a step later."""
    model = build()
    engine = Engine(model, METHODS["gradvac"](), lazy=True, **options)
    for n in range(3):
        one_step(engine, model, n)
    before, gradients = engine.state_dict(), [p.grad.clone() for p in model.parameters()]
    report = one_step(engine, model, 3, spoil)
    found = [p.grad for p in model.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(found, gradients, strict=True))
    targets = engine.method.targets([g.name for g in engine.groups], "abc")
    assert torch.equal(targets, before["method"]["targets"])
    assert float(report.found_inf) == 1.0 and report.step == 3
    for _ in range(2):
        with pytest.raises(NotFiniteError, match="at step 3") as caught:
            print(report.weights)
    assert caught.value.task == "b" or options.get("engine") == "per_task"
    with pytest.raises(NotFiniteError, match="at step 3"):
        one_step(engine, model, 4)
    assert float(one_step(engine, model, 4).found_inf) == 0.0
    engine.state_dict()


def test_the_error_is_that_of_an_engine_that_waits():
    told = []
    for lazy in (True, False):
        model = build()
        engine = Engine(model, GradVac(), lazy=lazy)
        one_step(engine, model, 0)
        with pytest.raises(NotFiniteError) as caught:
            print(one_step(engine, model, 1, "gradient").gram)
        told.append((str(caught.value), caught.value.task, caught.value.group))
    assert told[0] == told[1]


def test_a_state_is_not_saved_before_the_error_is_raised():
    model = build()
    engine = Engine(model, GradVac(), lazy=True)
    one_step(engine, model, 0)
    one_step(engine, model, 1, math.nan)
    with pytest.raises(NotFiniteError, match="at step 1"):
        engine.state_dict()
    assert engine.state_dict()["step"] == 2


def test_the_first_step_of_an_engine_is_read_at_once():
    model = build()
    engine = Engine(model, GradVac(), lazy=True)
    with pytest.raises(NotFiniteError, match="at step 0"):
        one_step(engine, model, 0, math.nan)
    assert all(p.grad is None for p in model.parameters()) and engine.step == 0
    assert not engine.state_dict()["method"]["tasks"]


def test_skipped_steps_are_told_by_the_report_alone():
    model = build()
    engine = Engine(model, GradVac(), lazy=True, nonfinite="skip")
    one_step(engine, model, 0)
    for p in model.parameters():
        p.grad = None
    report = one_step(engine, model, 1, math.inf)
    assert not any(p.grad.any() for p in model.parameters())
    assert not one_step(engine, model, 2).skipped
    assert "at step 1" in report.skipped and report.gram.isnan().all() and not report.weights.any()
    assert report.to_dict()["skipped"] == report.skipped


def test_new_parameters_of_a_table_are_0_after_a_bad_step():
    """The table grows in a step that is not finite."""
    model = build()
    engine = Engine(model, GradVac(beta=0.3), lazy=True, nonfinite="skip")
    with engine.tasks(["a", "b"]):
        engine.backward(losses_of(model, 0, rows=slice(0, 2)))
    before = engine.method.targets([engine.groups[0].name], "ab")
    one_step(engine, model, 1, math.nan)
    after = engine.method.targets([engine.groups[0].name], "abc")
    assert torch.equal(after[:, :2, :2], before) and before.any()
    assert not after[:, 2].any() and not after[:, :, 2].any()


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x, factor):
        hidden = self.body(x).tanh()
        of_a = torch.tensor([1.0, 0, 1, 0]) * self.head(hidden.detach())[:, 0] * factor
        return hidden.square().mean(1) + of_a


def test_a_head_whose_gradient_is_not_finite():
    """Its losses are finite, and so are the gradients of what the tasks share."""
    told = []
    for lazy in (False, True):
        torch.manual_seed(0)
        model, x = Headed(), torch.randn(4, 4)
        nn.init.constant_(model.head.weight, 0.01)
        engine = Engine(model, PCGrad(), heads={"a": "head"}, lazy=lazy)
        with engine.tasks(["a", "b", "a", "b"]):
            engine.backward(model(x, 1.0))
        before = [p.grad.clone() for p in model.parameters()]
        with pytest.raises(NotFiniteError) as caught, engine.tasks(["a", "b", "a", "b"]):
            print(engine.backward(model(x, 3e38)).gram)  # their sum is above 3.4e38
        told.append(str(caught.value))
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert told[0] == told[1] and "in the head of task 'a'" in told[0]


def test_an_optimizer_that_knows_found_inf_does_nothing():
    """Not even its weight decay and its count of steps, as after a step that never was."""
    trained = []
    for bad in (True, False):
        model = build()
        engine = Engine(model, GradVac(), lazy=True, nonfinite="skip")
        optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1, fused=True)
        for n in range(5):
            if n == 3 and not bad:
                continue
            optimizer.zero_grad()
            engine.load_state_dict(engine.state_dict() | {"step": n})
            report = one_step(engine, model, n, math.nan if n == 3 else None)
            optimizer.found_inf = report.found_inf
            optimizer.step()
        trained.append({"parameters": model.state_dict()} | optimizer.state_dict()["state"])
    assert same(*trained)


class Answer:
    """An event of a device that is several steps behind."""

    arrived = False

    def query(self):
        return self.arrived

    def synchronize(self):
        self.arrived = True


def test_the_error_comes_when_the_answer_has_arrived():
    """No step waits for it; asking for the state does."""
    for ask in (False, True):
        model = build()
        engine = Engine(model, GradVac(), lazy=True)
        one_step(engine, model, 0)
        one_step(engine, model, 1, math.nan)
        steps, answer = engine._setup.unsettled._steps, Answer()
        steps[:] = [(report, flag, answer) for report, flag, _ in steps]
        for n in (2, 3):
            assert float(one_step(engine, model, n).found_inf) == 0.0
        answer.arrived = not ask
        with pytest.raises(NotFiniteError, match="at step 1"):
            engine.state_dict() if ask else one_step(engine, model, 4)
        assert engine.state_dict()["step"] == 4


# -- what is refused -----------------------------------------------------------------------------


def test_a_grad_scaler_is_refused():
    model = build()
    engine = Engine(model, GradVac(), lazy=True)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(GradientError, match="lazy=True with a GradScaler"):
        one_step(engine, model, 0, loss_scale=scaler)
    assert isinstance(one_step(engine, model, 0, loss_scale=2.0), LazyReport)
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    assert isinstance(one_step(engine, model, 1, loss_scale=disabled), LazyReport)


def test_a_method_that_computes_on_the_host_waits_and_says_so(caplog):
    model = build()
    with caplog.at_level(logging.WARNING, "gradvac"):
        engine = Engine(model, MGDA(), lazy=True)
    assert "lazy=True has no effect: MGDA computes on the host" in caplog.text
    report = one_step(engine, model, 0)
    assert not isinstance(report, LazyReport)
    with pytest.raises(NotFiniteError):
        one_step(engine, model, 1, math.nan)
