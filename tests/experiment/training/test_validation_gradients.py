"""CATS with the gradients of validation text, in a run."""

import json

import pytest
import torch

from gradvac import Engine
from gradvac.errors import GradientError, RecipeError
from gradvac.methods import CATS
from tests.build import trainer

CHANGES = ["method.name=cats", "batches.temperature=1"]
VALIDATION = [*CHANGES, "method.options={gradients: validation, update_every: 3}"]


def test_they_are_those_of_separate_backwards_without_dropout(toy, tmp_path):
    t = trainer(toy, tmp_path / "run", [*VALIDATION, "model.dropout=0.5"])
    job, drawn = t.job, []
    mean_loss = job.mean_loss
    job.mean_loss = lambda batch: (drawn.append(batch), mean_loss(batch))[1]
    for step in range(4):
        t.train_step()
        assert len(drawn) == (2 if step >= 2 else 0)  # the third step is the first that is due
    drawn.clear()
    found = job.held_out(5)
    assert found.tasks == ("fr-en", "ne-en") == tuple(b.tasks[b.present[0]] for b in drawn)
    assert all(0 < batch.tokens <= 1.5 * 30 for batch in drawn)  # half of a batch each

    job.model.eval()
    parameters = list(job.model.parameters())
    losses = [mean_loss(batch) for batch in drawn]
    flat = lambda loss: torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, materialize_grads=True)]
    ).double()
    gradients = torch.stack([flat(loss) for loss in losses])
    torch.testing.assert_close(found.gram[0], gradients @ gradients.T, rtol=1e-5, atol=0)
    assert found.losses.tolist() == pytest.approx([loss.item() for loss in losses], rel=1e-6)
    again = job.held_out(5)
    assert torch.equal(again.gram, found.gram) and not torch.equal(job.held_out(6).gram, found.gram)


def test_measuring_leaves_no_trace_but_in_the_weights(toy, tmp_path):
    """Without updates of the weights, a run is the same with and without."""
    runs = []
    for name, gradients in (("a", "validation"), ("b", "training")):
        options = f"method.options={{gradients: {gradients}, learning_rate: 1.0e-30}}"
        t = trainer(toy, tmp_path / name, [*CHANGES, options, "training.steps=22"])
        assert t.train() == 0
        runs.append(t)
    for p, q in zip(*(t.job.model.parameters() for t in runs), strict=True):
        assert torch.equal(p, q)
    state = runs[0].updates.method.state_dict()
    assert state["observed"] == {"fr-en": 19.0, "ne-en": 19.0}  # before the tenth and twentieth


def test_a_run_learns_its_weights_from_them(toy, tmp_path):
    weights = {}
    for gradients in ("training", "validation"):
        run = tmp_path / gradients
        options = f"method.options={{gradients: {gradients}, update_every: 3}}"
        assert trainer(toy, run, [*CHANGES, options]).train() == 0
        lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
        weights[gradients] = [x["task_weights"] for x in lines if x["kind"] == "train"]
    first, *later = [a == b for a, b in zip(*weights.values(), strict=True)]
    assert first and not any(later)


def test_every_task_needs_validation_text(toy, tmp_path):
    with pytest.raises(RecipeError, match=r"gradients: validation .* data.valid has no text of fr"):
        trainer(toy, tmp_path / "run", [*VALIDATION, "data.valid=[]"])


def test_one_that_is_not_finite_is_named(toy, tmp_path):
    t = trainer(toy, tmp_path / "run", VALIDATION)
    t.train_step(), t.train_step()
    mean_loss = t.job.mean_loss
    t.job.mean_loss = lambda batch: mean_loss(batch) * float("nan")
    with pytest.raises(GradientError, match=r"validation text, before the step: .*'fr-en'"):
        t.train_step()


def test_in_a_loop_of_ones_own():
    """An engine says what is missing where nothing observes."""
    model = torch.nn.Linear(2, 1)
    engine = Engine(model, CATS(gradients="validation", update_every=1))
    x = torch.ones(2, 2)
    with pytest.raises(GradientError, match="observe was not called"), engine.tasks(["a", "b"]):
        engine.backward(model(x).flatten())
