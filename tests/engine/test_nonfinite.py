"""A loss or gradient that is not finite: named, and either an error or a step that never was."""

import math

import pytest
import torch
from torch import nn

from gradvac import NotFiniteError
from gradvac.engine import Engine, PerTaskEngine, SinglePassEngine
from gradvac.errors import GradientError
from gradvac.methods import CATS, FAMO, GradNorm, GradVac, Joint, Method
from tests.methods.helpers import relative
from tests.methods.test_properties import same

ENGINES = [PerTaskEngine, SinglePassEngine]
METHODS = {
    "gradvac": lambda: GradVac(beta=0.3, seed=1),
    "gradnorm": GradNorm,
    "cats": lambda: CATS(update_every=1),
    "famo": FAMO,
}
TASKS = ["a", "b", "a", "c", "b", "c"]


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


def losses_of(model, step, spoil=None, rows=slice(None)):
    """Losses of six samples, or some of them; ``spoil`` ruins sample 1, which is of task b."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    dtype = next(model.parameters()).dtype
    loss = model(x.to(dtype)[rows]).square().mean(1) + 0.1
    at = torch.tensor([0.0, 1, 0, 0, 0, 0]).to(dtype)[rows]
    if spoil == "gradient":  # the root of 0 has the value 0 and the slope inf
        return loss + (loss - loss.detach() + 1 - at).sqrt()
    return loss if spoil is None else loss * torch.where(at > 0, spoil, 1.0).to(dtype)


def run(engine, model, step, spoil=None, scaler=None, **options):
    """One step of training through either engine."""
    scale = scaler.scale if scaler else lambda x: x
    options |= {"step": step} | ({"loss_scale": scaler} if scaler else {})
    if isinstance(engine, Engine):
        with engine.tasks(TASKS):
            return engine.backward(scale(losses_of(model, step, spoil)), **options)
    for task in "abc":
        own = torch.tensor([t == task for t in TASKS])
        engine.accumulate(task, scale(losses_of(model, step, spoil, own).sum()))
    return engine.combine(**options)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("spoil", [math.nan, math.inf, "gradient"])
def test_a_skipped_step_leaves_no_trace(kind, name, spoil):
    """The reference never met the bad batch; optimizer, parameters and state agree bit for bit."""
    trained = []
    for bad in (True, False):
        model = build()
        engine = kind(model, METHODS[name](), nonfinite="skip")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        for step in range(6):
            optimizer.zero_grad()
            if step in (0, 3) and not bad:
                continue
            report = run(engine, model, step, spoil if step in (0, 3) else None)
            optimizer.step()
            assert bool(report.skipped) == (step in (0, 3))
        states = engine.state_dict(), dict(model.state_dict()), optimizer.state_dict()["state"]
        trained.append(dict(enumerate(states)))
    assert same(*trained)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(("spoil", "loss"), [(math.nan, "nan"), (math.inf, "inf"), ("gradient", 0)])
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_task_group_and_step_are_named(kind, spoil, loss, policy):
    model = build()
    engine = kind(model, GradVac(), nonfinite=policy)
    run(engine, model, 0)
    before = engine.state_dict()
    gradients = [p.grad for p in model.parameters()]
    if policy == "raise":
        with pytest.raises(NotFiniteError) as caught:
            run(engine, model, 1, spoil)
        text = str(caught.value)
        assert caught.value.task == "b" and caught.value.group.startswith("layers.")
        assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
        assert same(engine.state_dict(), before)
    else:
        report = run(engine, model, 1, spoil)
        text = report.skipped
        assert report.tasks == ("a", "b", "c") and report.weights.tolist() == [[0.0] * 3] * 3
        assert report.gram.isnan().all() and bool(report.losses[0].isfinite())
        assert all(p.grad is None for p in model.parameters())
        assert engine.step == 2 and same(engine.state_dict()["method"], before["method"])
    assert text.startswith("the gradient of task 'b' is not finite in parameter group 'layers.")
    assert "at step 1" in text and text.endswith("nothing was updated")
    assert (f"its loss is {loss}" in text) == bool(loss)
    assert run(engine, model, 2).skipped == ""


@pytest.mark.parametrize("spoil", [math.nan, math.inf, "gradient"])
def test_the_check_of_the_first_step_blames_the_task_and_not_the_model(spoil):
    model = build()
    engine = SinglePassEngine(model, Joint())
    with pytest.raises(NotFiniteError, match="gradient of task 'b' is not finite"):
        run(engine, model, 0, spoil)


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_one_backward_per_task_through_one_graph_blames_the_task_whose_loss_it_is(spoil):
    """There 0 * NaN reaches the gradients of all tasks."""
    model = build()
    engine = Engine(model, Joint(), engine="per_task")
    with pytest.raises(NotFiniteError, match=rf"task 'b' is not .* its loss is {spoil}") as caught:
        run(engine, model, 0, spoil)
    assert caught.value.task == "b"


@pytest.mark.parametrize("kind", ENGINES)
def test_micro_batches_are_skipped_as_a_whole(kind):
    model = build()
    engine = kind(model, Joint(), nonfinite="skip")
    for spoil in (math.nan, None):
        if kind is SinglePassEngine:
            with engine.tasks(TASKS):
                engine.accumulate(losses_of(model, 0, spoil))
        else:
            engine.accumulate("b", losses_of(model, 0, spoil).sum())
    assert "task 'b'" in engine.combine().skipped
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(GradientError, match="at least one accumulate"):
        engine.combine()


# -- torch.amp.GradScaler -------------------------------------------------------------------------


def train_with(scaler, kind, steps, clip=None):
    """Scales and parameters of a float16 training; kind None is the plain loop."""
    model = build(torch.float32)
    engine = kind and kind(model, Joint())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scales, skips = [], []
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            if engine:
                skips.append(bool(run(engine, model, step, scaler=scaler).skipped))
            else:
                scaler.scale(losses_of(model, step).sum()).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales, skips, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", ENGINES)
def test_a_scaler_skips_halves_and_grows_as_in_plain_training(kind, clip):
    make = lambda: torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=4)
    expected, _, theirs = train_with(make(), None, 16, clip)
    scales, skips, ours = train_with(make(), kind, 16, clip)
    assert scales == expected
    assert sum(skips) >= 3 and not all(skips)  # the first scale is too large
    assert min(scales) < max(scales[-4:])  # and it grows again
    assert relative(ours, theirs) < 2e-3  # float16 products


@pytest.mark.parametrize("kind", ENGINES)
def test_what_no_scale_explains_is_not_left_to_the_scaler(kind):
    model = build(torch.float32)
    for scaler, spoil in (
        (torch.amp.GradScaler("cpu", init_scale=1024.0), math.nan),
        (torch.amp.GradScaler("cpu", init_scale=1.0), "gradient"),
        (torch.amp.GradScaler("cpu", enabled=False), "gradient"),
    ):
        with pytest.raises(NotFiniteError, match="task 'b'"):
            run(kind(model, Joint()), model, 0, spoil, scaler)
    report = run(kind(model, Joint(), nonfinite="skip"), model, 0, math.nan, scaler)
    assert report.skipped and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ENGINES)
def test_reports_and_methods_see_unscaled_losses_and_gradients(kind):
    model = build(torch.float32)
    plain = run(kind(model, GradVac()), model, 0)
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled = run(kind(model, GradVac()), model, 0, scaler=scaler)
    assert torch.allclose(scaled.losses, plain.losses, rtol=1e-6)
    assert relative(scaled.gram, plain.gram) < 1e-5
    for p, g in zip(model.parameters(), expected, strict=True):
        assert relative(p.grad, g * 2.0**12) < 1e-5


# -- what may not be given ------------------------------------------------------------------------


class Wrong(Method):
    def __init__(self, weights):
        self.given = weights

    def _weights(self, geometry):
        return self.given


@pytest.mark.parametrize("kind", ENGINES)
def test_a_method_that_returns_nonsense_is_named(kind):
    model = build()
    engine = kind(model, Wrong(torch.ones(3).double()), "whole_model")
    with pytest.raises(
        GradientError, match=r"Wrong returned weights \[3\] at step 0; 1 groups and"
    ):
        run(engine, model, 0)
    engine = kind(model, Wrong(torch.tensor([[1, math.nan, 1]]).double()), "whole_model")
    says = "Wrong gave task 'b' the weight nan in parameter group 'whole_model' at step 0"
    with pytest.raises(GradientError, match=says):
        run(engine, model, 0)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ENGINES)
def test_arguments_out_of_range(kind):
    model = build()
    with pytest.raises(GradientError, match=r"nonfinite is 'ignore'; it must be 'raise' or 'skip'"):
        kind(model, Joint(), nonfinite="ignore")
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(
            GradientError, match=r"loss_scale is .*; it must be finite and positive"
        ):
            run(kind(model, Joint()), model, 0, loss_scale=scale)
