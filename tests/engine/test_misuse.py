"""What is used wrongly is refused with what to do instead, at the first step, by both engines."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

from gradvac.engine import Engine, PerTaskEngine, SinglePassEngine
from gradvac.errors import GradientError
from gradvac.methods import GradVac, Joint

TASKS = ["a", "b", "a", "b"]
X = torch.linspace(-1, 1, 12).view(4, 3)
ENGINES = [PerTaskEngine, SinglePassEngine]


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))


def step(engine, forward):
    """A step; ``forward`` maps four samples, or two, to their losses."""
    if isinstance(engine, Engine):
        with engine.tasks(TASKS):
            return engine.backward(forward(X.clone()))
    for task in "ab":
        engine.accumulate(task, forward(X[[t == task for t in TASKS]]).sum())
    return engine.combine()


def loss(model):
    return lambda x: model(x).squeeze(1).square()


# -- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("steps", [0, 2])
def test_unfrozen_and_frozen_parameters_are_named(kind, steps):
    for first, what in ((False, r"unfrozen"), (True, r"frozen \(requires_grad is False\)")):
        model = build()
        model[0].bias.requires_grad_(first)
        engine = kind(model, Joint())
        for _ in range(steps):
            step(engine, loss(model))
        model[0].bias.requires_grad_(not first)
        says = rf"parameter '0\.bias' has been {what} since the engine was made; make a new engine"
        with pytest.raises(GradientError, match=says):
            step(engine, loss(model))
        anew = kind(model, Joint())  # what the message says
        anew.load_state_dict(engine.state_dict())
        assert step(anew, loss(model)).step == steps


@pytest.mark.parametrize("kind", ENGINES)
def test_parameters_added_or_replaced_are_named(kind):
    model = build()
    engine = kind(model, Joint())
    model.append(nn.Linear(1, 1))
    with pytest.raises(GradientError, match=r"parameter '3\.weight' has been added or replaced"):
        step(engine, loss(model))
    engine = kind(model, Joint())
    model[2].weight = nn.Parameter(torch.ones(1, 3))
    with pytest.raises(GradientError, match=r"parameter '2\.weight' has been added or replaced"):
        step(engine, loss(model))


@pytest.mark.parametrize("kind", ENGINES)
def test_a_loss_with_parameters_of_its_own_is_refused(kind):
    model, scale = build(), nn.Parameter(torch.ones(1))
    own = lambda x: loss(model)(x) * scale.exp() - scale
    with pytest.raises(
        GradientError, match=r"\[1\] that (is not in|.* is no parameter of) the model"
    ):
        step(kind(model, Joint()), own)
    scale.requires_grad_(False)
    step(kind(model, Joint()), own)


def test_parameters_chosen_by_hand_may_leave_others_out():
    model = build()
    engine = PerTaskEngine([("first", model[0].weight)], Joint(), "whole_model")
    step(engine, loss(model))
    assert model[2].weight.grad is None


# -- the optimizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENGINES)
def test_an_optimizer_with_parameters_that_get_no_gradient_is_found_when_it_steps(kind):
    model, head = build(), nn.Linear(2, 2)
    engine = kind(model, Joint())
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    step(engine, loss(model))
    before = [p.clone() for p in model.parameters()]
    says = r"holds parameter number 4 \[2, 2\], for which the engine makes no gradient"
    with pytest.raises(GradientError, match=says):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_an_optimizer_is_checked_on_request_and_names_what_is_in_the_model():
    model = build()
    chosen = [(n, p) for n, p in model.named_parameters() if n != "2.bias"]
    engine = PerTaskEngine(chosen, Joint())
    with pytest.raises(GradientError, match=r"holds parameter number 3 \[1\]"):
        engine.check_optimizer(torch.optim.SGD(model.parameters()))
    engine = SinglePassEngine(model, Joint())
    engine.check_optimizer(torch.optim.SGD(model.parameters()))
    model.append(nn.Linear(1, 1))
    with pytest.raises(GradientError, match=r"holds parameter '3\.weight' \[1, 1\], for which"):
        engine.check_optimizer(torch.optim.SGD(model.parameters()))
    with pytest.raises(GradientError, match="holds none of the engine's parameters; both must be"):
        engine.check_optimizer(torch.optim.SGD(build().parameters()))


@pytest.mark.parametrize("kind", ENGINES)
def test_optimizers_of_others_and_gradients_from_elsewhere_are_let_be(kind):
    model, other = build(), nn.Linear(2, 2)
    engine = kind(model, Joint())
    step(engine, loss(model))
    torch.optim.SGD(other.parameters()).step()  # a discriminator, say
    other(torch.ones(1, 2)).sum().backward()
    both = torch.optim.SGD([*model.parameters(), *other.parameters()])
    both.step()  # other has a gradient of its own
    other.zero_grad()
    step(engine, loss(model))
    both.step()  # only the first one is looked at


def test_the_look_at_the_optimizer_ends_and_keeps_nothing_alive():
    hooks.clear()  # what other tests have left
    model = build()
    engine = SinglePassEngine(model, Joint())
    optimizer = torch.optim.SGD(model.parameters())
    for _ in range(2):
        step(engine, loss(model))
        optimizer.step()
    assert not hooks
    engine = SinglePassEngine(model, Joint())
    step(engine, loss(model))
    alive = weakref.ref(engine._setup.guard)
    del engine
    gc.collect()
    assert alive() is None
    optimizer.step()
    step(SinglePassEngine(model, Joint()), loss(model))  # sweeps up after the one that is gone
    assert len(hooks) == 1


# -- the order of calls, tasks and shapes -------------------------------------------------------


def test_backward_twice_and_outside():
    model = build()
    engine = SinglePassEngine(model, Joint())
    says = r"needs a forward pass inside `with engine\.tasks\(\.\.\.\)`: there has been none since"
    with pytest.raises(GradientError, match=says):
        engine.backward(loss(model)(X))
    with engine.tasks(TASKS):
        losses = loss(model)(X)
        engine.backward(losses)
        with pytest.raises(GradientError, match=says):
            engine.backward(losses)
    early = loss(model)(X)
    says = r"no tensor with 4 samples was given to the model .* 4 task names: it was not called"
    with pytest.raises(GradientError, match=says), engine.tasks(TASKS):
        engine.backward(early)


def test_a_loss_given_twice_to_one_backward_per_task():
    model = build()
    engine = PerTaskEngine(model, Joint())
    losses = loss(model)(X)
    engine.accumulate("a", losses[:2].sum())
    says = (
        "been through the graph of this loss already: .* give losses of one forward pass together"
    )
    with pytest.raises(GradientError, match=says):
        engine.accumulate("b", losses[2:].sum())
    engine.clear()
    losses = loss(model)(X)
    engine.backward({"a": losses[:2].sum(), "b": losses[2:].sum()})  # what the message says


@pytest.mark.parametrize("kind", ENGINES)
def test_combine_needs_something_to_combine(kind):
    engine = kind(build(), Joint())
    with pytest.raises(GradientError, match=r"combine\(\) needs at least one accumulate\(\) since"):
        engine.combine()


@pytest.mark.parametrize("kind", ENGINES)
def test_a_task_that_is_none_is_refused_with_the_nearest(kind):
    model = build()
    engine = kind(model, GradVac(), task_names=["a", "bb"])
    with pytest.raises(GradientError, match=r"unknown task 'b'; .* for a, bb; did you mean 'bb'\?"):
        step(engine, loss(model))
    assert step(kind(model, GradVac(), task_names=("b", "a")), loss(model)).tasks == ("a", "b")


def test_more_or_fewer_names_than_samples():
    model = build()
    for names in (["a", "b", "a"], ["a", "b", "a", "b", "b"]):
        engine = SinglePassEngine(model, Joint())
        says = rf"no tensor with {len(names)} samples .* tensors \[\[4, 3\]\] were; give one name"
        with pytest.raises(GradientError, match=says), engine.tasks(names):
            engine.backward(loss(model)(X))


@pytest.mark.parametrize("kind", ENGINES)
def test_a_loss_of_the_wrong_shape(kind):
    model = build()
    engine = kind(model, Joint())
    if kind is PerTaskEngine:
        with pytest.raises(GradientError, match=r"task 'a' is \[4\] .*; it must be a scalar"):
            engine.accumulate("a", loss(model)(X))
        return
    for shape, says in (
        (lambda x: x.mean(), r"the loss is \[\] .* neither averaged nor summed over samples"),
        (
            lambda x: x.view(2, 2).sum(1),
            r"the loss is \[2\] and the batch has 4 samples; say by `r",
        ),
        (lambda x: x.detach(), r"the loss is \[4\] with requires_grad=False"),
    ):
        with pytest.raises(GradientError, match=says), engine.tasks(TASKS):
            engine.backward(shape(loss(model)(X)))


@pytest.mark.parametrize("kind", ENGINES)
def test_a_model_wrapped_for_data_parallelism(kind):
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(build())
        with pytest.raises(GradientError, match=r"in DistributedDataParallel.*\(model\.module\)"):
            kind(wrapped, Joint())
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(("divide", "said"), [(False, 1), (True, 0)])
def test_losses_that_are_added_up_are_said_once(caplog, divide: bool, said: int) -> None:
    """24 losses of 2 each have a sum of 48, and a mean of 2."""
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, 2.0)
    engine = Engine(model, GradVac())
    for _ in range(2):
        with engine.tasks(["fr", "hi"] * 12):
            loss = model(torch.randn(24, 3)).squeeze(1)
            engine.backward(loss / 24 if divide else loss)
    lines = [r.getMessage() for r in caplog.records if "add up to" in r.getMessage()]
    assert len(lines) == said
    assert all("add up to 48" in x and "of 24 losses" in x and "which is 2;" in x for x in lines)


def test_an_engine_that_is_never_used_is_said_when_the_optimizer_steps(caplog) -> None:
    model = build()
    engine = Engine(model, GradVac())
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.step()  # without a gradient it changes nothing
    assert "no effect" not in caplog.text
    for _ in range(2):
        model(X.clone()).sum().backward()
        optimizer.step()
    assert caplog.text.count("its method has no effect") == 1
    optimizer.zero_grad()
    step(engine, loss(model))
    optimizer.step()
    assert caplog.text.count("no effect") == 1


@pytest.mark.parametrize(
    ("method", "named"), [("gradvac", "'gradvac'"), (GradVac, "GradVac"), (None, "None")]
)
def test_a_method_that_is_none_is_refused(method: object, named: str) -> None:
    with pytest.raises(GradientError, match=rf"method is {named}; it must be an instance"):
        Engine(build(), method)  # type: ignore[arg-type]


def test_data_parallelism_in_one_process_is_refused_on_a_cpu() -> None:
    with pytest.raises(GradientError, match="the model is wrapped in DataParallel"):
        Engine(nn.DataParallel(build()), GradVac())
