"""A step that does not fit into memory is made in halves, with the same result, or says why not."""

import json

import pytest
import torch

from gradvac.errors import RunError
from gradvac.experiment.training.train import Trainer
from gradvac.geometry.record import GramRecord
from tests.build import trainer

WAYS = {
    "joint": ["method.name=joint"],
    "single_pass": ["method.name=gradvac", "method.beta=0.2"],
    "per_task": ["method.name=gradvac", "method.beta=0.2", "method.engine=per_task"],
    "accumulating": ["method.name=gradnorm", "batches.accumulate=2"],
}
NO_DROPOUT = [f"model.{k}dropout=0" for k in ("", "attention_", "activation_")]
ON_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to ...")
ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ON_CPU]


def failing(call, fails, error):
    """``call``, but its calls of the numbers ``fails`` run out of memory after their work."""
    count = 0

    def called(*args, **kwargs):
        nonlocal count
        count += 1
        result = call(*args, **kwargs)
        if count in fails:
            raise error
        return result

    return called


def gradients(t: Trainer) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in t.job.model.parameters()])


def parameters(t: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in t.job.model.parameters()])


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu"])
@pytest.mark.parametrize("point", ["forward", "clip", "combine"])
@pytest.mark.parametrize("way", WAYS)
def test_in_halves_the_step_is_the_same(toy, tmp_path, monkeypatch, way, point, error):
    sets = [*WAYS[way], *NO_DROPOUT]
    whole, halved = (trainer(toy, tmp_path / name, sets) for name in ("whole", "halved"))
    first = {"forward": 3 if way == "accumulating" else 2, "clip": 2, "combine": 2}[point]
    place, name = {
        "forward": (halved.job, "losses"),
        "clip": (halved.updates, "_clip"),
        "combine": (halved.updates, "_combine_tasks"),
    }[point]
    if point == "combine" and way == "joint":
        name = "_backward_jointly"
    for t in (whole, halved):
        t.train_step()
        if t is halved:
            if way == "per_task" and point == "forward":
                first = 2  # between the passes of two tasks
            monkeypatch.setattr(place, name, failing(getattr(place, name), {first - 1}, error))
        t.train_step()
    assert halved.updates.window.halved == 1 and whole.updates.window.halved == 0
    # Not the parameters: of a gradient that is zero but for rounding Adam makes a whole step.
    ours, theirs = gradients(halved), gradients(whole)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.norm()))
    ours, theirs = (vars(t.updates.window) for t in (halved, whole))
    assert ours["tokens"] == theirs["tokens"] and ours["steps"] == theirs["steps"]
    assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-5)
    frames = [list(GramRecord(t.folder / "geometry")) for t in (halved, whole)]
    for a, b in zip(*frames, strict=True):
        assert (a.step, a.tasks) == (b.step, b.tasks)
        torch.testing.assert_close(torch.tensor(a.gram), torch.tensor(b.gram), rtol=1e-3, atol=1e-9)


def test_twice_ends_the_run_with_the_shape_and_the_keys(toy, tmp_path):
    t = trainer(toy, tmp_path / "run", ["batches.accumulate=2"])
    t.train_step()
    t.job.losses = failing(t.job.losses, range(99), ERRORS[0])
    before = parameters(t).clone()
    with pytest.raises(RunError) as caught:
        t.train_step()
    text = str(caught.value)
    assert "step 1: memory ran out, and again with the batch in halves; the largest half is" in text
    assert "source [" in text and "target_out [" in text
    assert (
        "batches.tokens (now 60); with batches.tokens=15 and batches.accumulate=8 (now 2)" in text
    )
    assert torch.equal(parameters(t), before)


def test_other_errors_are_not_taken_for_it(toy, tmp_path):
    t = trainer(toy, tmp_path / "run", [])
    t.job.losses = failing(t.job.losses, {1}, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        t.train_step()


def test_the_log_counts_them(toy, tmp_path):
    t = trainer(toy, tmp_path / "run", [])
    t.job.losses = failing(t.job.losses, {1, 5}, ERRORS[1])
    t.train()
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [x.get("halved") for x in lines if x["kind"] == "train"] == [2, None, None, None]
