"""A step that is not finite is kept as it was, and repeated: where does it begin?"""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import GradientError, RunError
from gradvac.experiment.training.replay import Replay, replay, replay_run
from tests.build import trainer

WAYS = {
    "joint": ["method.name=joint"],
    "gradvac": ["method.name=gradvac"],
    "accumulating": ["method.name=gradvac", "batches.accumulate=2"],
}


def spoilt(toy, run, sets):
    """A trainer that finds NaN in training sentences with a word of Nepali; and the word."""
    t = trainer(toy, run, sets)
    train = t.job.prepared.train.items()
    ids = {task: {int(i) for n in range(len(d)) for i in d.source[n]} for task, d in train}
    word = min(ids["ne-en"] - ids["fr-en"])
    losses = t.job.losses

    def spoil(batch):
        loss, nll, rows = losses(batch)
        if not t.job.model.training:  # a validation with NaN ends a run
            return loss, nll, rows
        bad = (batch.source == word).any(1)[rows]
        scale = torch.where(bad, math.nan, 1.0)
        return loss * scale, nll * scale, rows

    t.job.losses = spoil
    return t, word


@pytest.mark.parametrize("way", WAYS)
def test_the_step_is_kept_and_fails_again(toy, tmp_path, way):
    run = tmp_path / "run"
    t, word = spoilt(toy, run, WAYS[way])
    with pytest.raises(GradientError) as caught:
        t.train()
    step = t.step
    state = json.loads((run / "replay" / f"step-{step:08d}.json").read_text())
    named = {(task, n) for task, numbers in state["sentences"].items() for n in numbers}
    holding = set()
    for number in range(state["batches"]):
        batch = t.job.batch(step * state["batches"] + number)
        for row, (k, n) in enumerate(
            zip(batch.task.tolist(), batch.sentence.tolist(), strict=True)
        ):
            if word in batch.source[row].tolist():
                holding.add((batch.tasks[k], n))
    assert named == holding and holding
    assert f"kept: gradvac replay {run} {step}" in str(caught.value)
    assert f"training sentences {state['sentences']['ne-en'][0]}" in str(caught.value)

    said: list[str] = []
    assert replay(t.job, Replay.open(run, step), said.append)
    assert said[0].startswith(f"step {step} was kept because") and "'ne-en'" in said[0]
    (bad,) = [line for line in said if "not finite on training sentences" in line]
    assert bad.startswith("task ne-en: loss nan")
    assert "gradient first not finite at" in bad
    assert all("gradient finite" in line for line in said if line.startswith("task fr-en: "))
    assert said[-1] == "it fails again"


def test_the_command_names_the_module_that_is_first(toy, tmp_path):
    run = tmp_path / "run"
    t = trainer(toy, run, [])
    t.train_step()
    with torch.no_grad():
        t.job.model.state_dict()["encoder.layers.0.feed_forward.up.weight"].fill_(math.inf)
    with pytest.raises(GradientError, match=r"kept: gradvac replay .* 1;"):
        t.train_step()
    result = CliRunner().invoke(app, ["replay", str(run)])
    said = result.output.replace("\n", " ")
    assert result.exit_code == 0, said
    assert "not finite already: encoder.layers.0.feed_forward.up.weight" in said
    assert "the first output that is not finite is that of encoder.layers.0.feed_forward.up" in said
    assert "task fr-en: loss nan" in said


def test_a_step_that_was_mended_does_not_fail(toy, tmp_path):
    run = tmp_path / "run"
    t, _ = spoilt(toy, run, [])
    with pytest.raises(GradientError):
        t.train()
    said: list[str] = []
    assert not replay(trainer(toy, run, []).job, Replay.open(run, t.step), said.append)
    assert said[-1].startswith("it does not fail here")


def test_only_the_first_are_kept_and_a_full_disk_costs_only_the_copy(toy, tmp_path, monkeypatch):
    run = tmp_path / "run"
    sets = ["training.nonfinite=skip", "training.steps=8"]
    t, _ = spoilt(toy, run, sets)
    t.train()
    steps = sorted(int(f.stem[5:]) for f in (run / "replay").glob("*.safetensors"))
    assert len(steps) == 3 and steps[0] >= 0
    with pytest.raises(RunError, match=f"step 77 is not kept; there: {steps[0]}"):
        replay_run(run, 77, print)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradvac.experiment.training.replay.save_tensors", full)
    t, _ = spoilt(toy, tmp_path / "full", sets)
    t.train()
    assert t.step == 8 and not list((tmp_path / "full" / "replay").glob("*.safetensors"))


def test_without_such_a_step_there_is_nothing_to_replay(tmp_path):
    with pytest.raises(RunError, match="no step is kept"):
        replay_run(tmp_path, None, print)
