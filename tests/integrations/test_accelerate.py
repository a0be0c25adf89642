from copy import deepcopy

import accelerate
import pytest
import torch
from torch.nn import functional as F

import gradvac
from gradvac.integrations.accelerate import backward, without_wrapper
from tests.integrations import tiny

DATA = tiny.samples(24, tiny.CLASSES)


def run(model, step_backward, accelerator):
    """Train for an epoch with accumulation and clipping; returns the norms before clipping."""
    torch.manual_seed(0)  # of dropout
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(DATA, batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    norms = []
    for batch in loader:
        with accelerator.accumulate(model):
            step_backward(model, batch)
            if accelerator.sync_gradients:
                norms.append(accelerator.clip_grad_norm_(model.parameters(), 0.2).item())
            optimizer.step()
            optimizer.zero_grad()
    return norms


def losses_of(model, batch):
    logits = model(input_ids=batch["input_ids"]).logits
    return F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")


def accelerator_with(scaler):
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
    if scaler:  # refused on a CPU if asked for openly
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return accelerator


@pytest.mark.parametrize("scaler", [False, True])
def test_joint_is_the_ordinary_backward(scaler):
    start = tiny.built(tiny.tagger, torch.float32 if scaler else torch.float64)
    plain, ours = deepcopy(start), deepcopy(start)
    accelerator = accelerator_with(scaler)
    expected = run(
        plain,
        lambda model, batch: accelerator.backward(losses_of(model, batch).mean()),
        accelerator,
    )
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerator_with(scaler)
    engine, reports = gradvac.Engine(ours, gradvac.Joint()), []

    def ours_backward(model, batch):
        with engine.tasks(batch["task"]):
            losses = losses_of(model, batch)
            mask = torch.full_like(losses, 1 / losses.numel())
            reports.append(backward(accelerator, engine, losses, mask=mask))

    norms = run(ours, ours_backward, accelerator)
    assert norms == pytest.approx(expected, rel=1e-2 if scaler else 1e-10)
    assert max(norms) > 0.2  # some were clipped
    assert tiny.distance(plain, ours) <= (0.01 if scaler else 1e-10) * tiny.distance(plain, start)
    assert [report is None for report in reports] == [True, False] * 3


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"])
def test_what_would_add_up_gradients_itself_is_refused(monkeypatch, kind):
    accelerator = accelerate.Accelerator(cpu=True)
    distributed = property(lambda self: accelerate.DistributedType[kind])
    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", distributed)
    says = rf"{kind} on 1 process.*by torchrun without {kind}: .*\(fsdp_size=.*loop of your own use"
    with pytest.raises(gradvac.GradientError, match=says):
        without_wrapper(accelerator)
    engine = gradvac.Engine(tiny.built(tiny.tagger), gradvac.Joint())
    with pytest.raises(gradvac.GradientError, match=says):
        backward(accelerator, engine, torch.ones(2))


def test_an_engine_of_one_rank_is_refused_on_several(monkeypatch):
    accelerator = accelerate.Accelerator(cpu=True)
    monkeypatch.setattr(accelerate.Accelerator, "num_processes", property(lambda self: 2))
    engine = gradvac.Engine(tiny.built(tiny.tagger), gradvac.Joint())
    with pytest.raises(gradvac.GradientError, match=r"by without_wrapper\(Accelerator"):
        backward(accelerator, engine, torch.ones(2))
    without_wrapper(accelerator)
    with pytest.raises(gradvac.GradientError, match=r"on 1 rank.*after the accelerator"):
        backward(accelerator, engine, torch.ones(2))
