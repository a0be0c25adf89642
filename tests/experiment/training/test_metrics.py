"""What the log says of a method, against plain averages of the record of every step."""

import json

import numpy as np
import pytest
import torch

from gradvac.engine import StepReport
from gradvac.errors import RunError
from gradvac.experiment.training.metrics import Window, averages
from gradvac.experiment.translation.job import TranslationJob
from gradvac.geometry.record import GramRecord
from gradvac.methods import StepGeometry
from tests.build import trained, trainer


def train_lines(toy, run, changes):
    trained(toy, run, [*changes, "method.record_every=1"])
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("name", ["gradvac", "gradnorm", "cats", "famo", "mgda"])
def test_logged_weights_are_the_means_of_the_record(toy, tmp_path, name):
    lines = train_lines(toy, tmp_path / "run", [f"method.name={name}"])
    frames = list(GramRecord(tmp_path / "run" / "geometry"))
    for n, line in enumerate(lines):  # of three steps each
        own = frames[3 * n : 3 * n + 3]
        assert [f.step + 1 for f in own][-1] == line["step"]
        for task, weight in line["task_weights"].items():
            seen = [f.weights[:, f.tasks.index(task)].mean() for f in own if task in f.tasks]
            assert weight == pytest.approx(np.mean(seen), rel=1e-12)
        if name == "gradvac":
            for key in ("edits", "pcgrad_edits", "comparisons"):
                assert line["method"][key] == pytest.approx(
                    np.mean([sum(getattr(f, key)) for f in own])
                )
    expected = {
        "gradvac": {"edits", "pcgrad_edits", "comparisons", "skipped", "targets"},
        "gradnorm": {"norms", "inverse_rates"},
        "cats": {"curvature", "multiplier"},
        "famo": {"preferences"},
        "mgda": set(),
    }
    assert set(lines[0].get("method", {})) == expected[name]


def test_joint_training_has_no_weights_to_log(toy, tmp_path):
    assert all("task_weights" not in x for x in train_lines(toy, tmp_path / "run", []))


def test_the_nll_of_a_step_is_added_up_by_task(toy, tmp_path):
    """As a loop over the tasks adds it up; what is not finite stays with its own task."""
    training = trainer(toy, tmp_path / "run", [])
    updates, job = training.updates, training.job
    batch = next(b for b in map(job.batch, range(99)) if len(b.present) > 1)
    there = batch.to(job.device)
    nll, rows = torch.rand(batch.tokens), there.rows
    owner = batch.task[(batch.target_out != 0).nonzero()[:, 0]]
    nll[int((owner == batch.present[0]).nonzero()[0])] = torch.nan
    updates._count(batch, there, nll, rows)
    updates._unread.losses += [torch.tensor(0.25), torch.tensor(0.5)]
    assert updates._unread.read(torch.tensor(3.0), updates.window) == (0.75, 3.0)
    window = updates.window
    assert list(window.nll) == [batch.tasks[i] for i in batch.present]
    for index in batch.present:
        own = nll[owner == index]
        name = batch.tasks[index]
        expected = pytest.approx(own.double().sum().item(), rel=1e-12, nan_ok=True)
        assert window.nll[name] == expected and window.tokens[name] == len(own)


def report(tasks, weights, **diagnostics):
    groups, k = tuple("gh"), len(tasks)
    geometry = StepGeometry(torch.zeros(2, k, k).double(), torch.zeros(k), tasks, groups, 0)
    return StepReport(geometry, torch.tensor(weights).double(), diagnostics)


def test_numbers_of_every_shape_and_tasks_that_come_and_go():
    window = Window.empty()
    window.add("a", 2.0, 2)
    window.steps = 2
    targets = torch.tensor([[[0, 0.2], [0.4, 0]], [[0, 0.6], [0.8, 0]]])
    window.observe(report(("a", "b"), [[1, 2], [3, 4]], edits=torch.tensor([2, 5]), t=targets))
    window.observe(report(("b",), [[7], [8]], edits=torch.tensor([0, 1]), t=torch.zeros(2, 1, 1)))
    window = Window(**json.loads(json.dumps(vars(window))))  # as in a checkpoint
    line = window.line()
    assert line["task_weights"] == {"a": 2.0, "b": (3 + 7.5) / 2}
    assert line["method"] == {"edits": (7 + 1) / 2, "t": pytest.approx((0.5 + 0) / 2)}
    assert "skipped" not in line


@pytest.mark.parametrize("value", [700.1, 1e4, float("inf"), float("nan")])
def test_a_run_that_diverged_ends_with_a_sentence(toy, tmp_path, value, monkeypatch):
    found = iter([2.0, value])
    monkeypatch.setattr(
        TranslationJob, "validation_nll", lambda job: dict.fromkeys(job.prepared.valid, next(found))
    )
    run = tmp_path / "run"
    t = trainer(toy, run, ["training.validate_every=2"])
    told = rf"run: step 4: the validation NLL of \w+-\w+ is {value:.4g} per token: .* diverged"
    with pytest.raises(RunError, match=told.replace("+0", r"\+0")):
        t.train()
    assert (run / "best" / "model.safetensors").exists()


def test_a_large_nll_has_a_perplexity():
    found = averages({"a": 700.0, "b": 1.0}, {"a": "low", "b": "low"})
    assert found["perplexity"] == pytest.approx((np.exp(700.0) + np.exp(1.0)) / 2)
