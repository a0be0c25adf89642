"""Training runs: resumed runs equal uninterrupted ones bit for bit; GradVac's seam is exact."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.run.checkpoint import list_checkpoints, load_tensors, saved_models
from gradvac.experiment.run.lock import alone
from gradvac.experiment.translation.model_folder import find_model
from gradvac.geometry.record import GramRecord
from tests.build import trainer
from tests.turns import by_turns

METHODS = {
    "joint": ["method.name=joint"],
    "gradvac": ["method.name=gradvac", "method.beta=0.2"],
    "pcgrad": ["method.name=pcgrad", "method.granularity=whole_model"],
    "per_task": ["method.name=gradvac", "method.beta=0.2", "method.engine=per_task"],
    "gradnorm": ["method.name=gradnorm"],
    "mgda": ["method.name=mgda"],
    "cats": ["method.name=cats"],
    "cats_validation": [
        "method.name=cats",
        "method.options={gradients: validation, update_every: 3}",
    ],
    "famo": ["method.name=famo"],
    "cooldown": ["batches.temperature=[[0, 5], [7, 1]]"],
    "multidds_s": ["batches.sampling=multidds_s", "batches.multidds_s.every=2"],
    "clsr": ["model.clsr={budget: 0.2, hidden: 4}"],
    "bf16": ["method.name=gradvac", "training.precision=bf16"],
    "accumulating": ["method.name=gradvac", "batches.accumulate=2", "method.tasks=low"],
}


def everything(run: Path) -> dict[str, bytes]:
    """All that a run leaves behind that must not depend on interruptions."""
    newest = list_checkpoints(run / "checkpoints")[-1]
    files = [*sorted(newest.iterdir()), run / "metrics.jsonl", run / "best" / "model.safetensors"]
    files += sorted((run / "geometry").glob("*"))
    return {f.name: f.read_bytes() for f in files} | {"at": newest.name.encode()}


class Crash(Exception):
    pass


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at", [1, 6, 11])
def test_a_crash_at_any_step_changes_nothing(toy, tmp_path, name, at):
    changes = METHODS[name]
    assert trainer(toy, tmp_path / "whole", changes).train() == 0
    broken = trainer(toy, tmp_path / "broken", changes)
    step = broken.train_step

    def failing() -> int:
        if broken.step == at:
            raise Crash
        return step()

    broken.train_step = failing
    with pytest.raises(Crash):
        broken.train()
    assert trainer(toy, tmp_path / "broken", changes).train() == 0
    assert everything(tmp_path / "broken") == everything(tmp_path / "whole")


def command(toy: Path, run: Path, changes: list[str]) -> subprocess.Popen:
    sets = [part for change in changes for part in ("--set", change)]
    return subprocess.Popen(
        [sys.executable, "-m", "gradvac", "train", str(toy / "recipe.yaml"), "--run", run, *sets],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_lines(file: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() or file.read_text().count("\n") < count:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("name", "kind"),
    by_turns([*itertools.product(["joint", "gradvac"], [signal.SIGINT, signal.SIGKILL])], 2),
)
def test_a_killed_process_resumes_bit_for_bit(toy, tmp_path, name, kind):
    changes = [*METHODS[name], "training.steps=60", "training.checkpoint_every=7"]
    run = tmp_path / "run"
    process = command(toy, run, changes)
    wait_for_lines(run / "metrics.jsonl", 6, process)
    process.send_signal(kind)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if kind == signal.SIGKILL else 130), output
    assert "Traceback" not in output
    assert not (run / "done.json").exists()
    again = command(toy, run, changes)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert "resuming at step" in output
    whole = command(toy, tmp_path / "whole", changes)
    assert (whole.communicate(timeout=120), whole.returncode)[1] == 0
    assert everything(run) == everything(tmp_path / "whole")


def test_the_same_command_on_a_finished_run_does_nothing(toy, tmp_path):
    trainer(toy, tmp_path / "run").train()
    before = everything(tmp_path / "run")
    assert trainer(toy, tmp_path / "run").train() == 0
    assert everything(tmp_path / "run") == before


def test_another_recipe_on_the_same_folder_is_refused_with_the_keys(toy, tmp_path):
    trainer(toy, tmp_path / "run").train()
    with pytest.raises(RunError, match=r"these keys differ: batches\.tokens, method\.name"):
        trainer(toy, tmp_path / "run", ["method.name=pcgrad", "batches.tokens=50"])


def test_two_processes_on_one_run_folder_the_second_is_refused(toy, tmp_path):
    trainer(toy, tmp_path / "run")
    with (
        alone(tmp_path / "run"),
        pytest.raises(RunError, match="another process is training this run"),
    ):
        trainer(toy, tmp_path / "run").train()


@pytest.mark.parametrize(
    "sets",
    [
        ["method.engine=single_pass"],  # the same dropout masks as joint training
        ["method.engine=single_pass", "batches.accumulate=2"],
        ["method.engine=per_task", "model.dropout=0"],
    ],
)
def test_joint_through_an_engine_is_plain_training(toy, tmp_path, sets):
    """Weights of one: the sum of task gradients is the gradient of the joint loss."""
    joint = trainer(toy, tmp_path / "joint", sets)
    static = trainer(toy, tmp_path / "static", [*sets, "method.name=static"])
    for t in (joint, static):
        t.updates._clip = lambda: torch.tensor(0.0)  # look at the gradient itself
        t.train_step()
    for (name, p), q in zip(
        joint.job.model.named_parameters(), static.job.model.parameters(), strict=True
    ):
        assert p.grad is not None and q.grad is not None
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-7), name


def test_metrics_validation_and_best(toy, tmp_path):
    run = tmp_path / "run"
    trainer(toy, run, ["training.metric=nll/low"]).train()
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    valid = [x for x in lines if x["kind"] == "valid"]
    assert [x["step"] for x in valid] == [4, 8, 12]
    for x in valid:
        tasks = [x["nll/fr-en"], x["nll/ne-en"]]
        assert x["nll"] == pytest.approx(sum(tasks) / 2)
        assert x["nll/low"] == x["nll/ne-en"]
        expected = sum(torch.tensor(tasks, dtype=torch.float64).exp().tolist()) / 2
        assert x["perplexity"] == pytest.approx(expected)
    best = min(valid, key=lambda x: x["nll/low"])
    done = json.loads((run / "done.json").read_text())
    assert done["best"]["step"] == best["step"] and done["best"]["value"] == best["nll/low"]
    train = [x for x in lines if x["kind"] == "train"]
    assert [x["step"] for x in train] == [3, 6, 9, 12]
    assert train[0]["tokens"] == sum(train[0]["task_tokens"].values())


def test_learning_rate_is_the_papers_schedule(toy, tmp_path):
    t = trainer(toy, tmp_path / "run")
    assert t.updates.learning_rate(1) == pytest.approx(0.01 / 4)
    assert t.updates.learning_rate(4) == pytest.approx(0.01)
    assert t.updates.learning_rate(16) == pytest.approx(0.01 * (4 / 16) ** 0.5)


def test_a_linear_schedule_is_that_of_transformers(toy, tmp_path):
    transformers = pytest.importorskip("transformers")
    t = trainer(toy, tmp_path / "run", ["training.schedule=linear"])
    training = t.recipe.training
    own = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=training.learning_rate)
    steps, warmup = training.steps, training.warmup
    theirs = transformers.get_linear_schedule_with_warmup(own, warmup, steps + 1)
    for step in range(1, steps + 1):
        own.step()
        theirs.step()
        assert t.updates.learning_rate(step) == pytest.approx(own.param_groups[0]["lr"], rel=1e-12)


def test_weight_decay_is_adamw(toy, tmp_path):
    """Two runs of one step: parameters differ by learning rate times decay times what they were."""
    runs = {}
    for decay in (0.0, 0.25):
        t = trainer(toy, tmp_path / f"{decay}", [f"training.weight_decay={decay}"])
        before = {name: p.detach().clone() for name, p in t.job.model.named_parameters()}
        t.train_step()
        runs[decay] = dict(t.job.model.named_parameters())
    rate = t.updates.learning_rate(1)
    for name, p in runs[0.25].items():
        expected = runs[0.0][name] - rate * 0.25 * before[name]
        assert torch.allclose(p, expected, atol=1e-7), name


def test_early_stopping(toy, tmp_path):
    changes = ["training.learning_rate=1.0e-9", "training.patience=1", "training.steps=100"]
    t = trainer(toy, tmp_path / "run", changes)
    values = iter([3.0, 2.0, 2.5, 1.0])
    t.job.validation_nll = lambda: dict.fromkeys(t.job.prepared.valid, next(values))
    t.train()
    assert t.step == 12  # validated at 4, 8 and 12; the third was worse


def test_averaging_the_last_checkpoints(toy, tmp_path):
    run = tmp_path / "run"
    trainer(toy, run, ["training.average=3"]).train()
    models = [load_file(c / "model.safetensors") for c in list_checkpoints(run / "checkpoints")]
    assert len(models) == 3
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["kind"] == "valid"] == [4, 8, 12]
    assert (lines[-1]["kind"], lines[-1]["step"]) == ("average", 12)
    t = trainer(toy, tmp_path / "other")
    mean = {k: torch.stack([m[k].double() for m in models]).mean(0).float() for k in models[0]}
    t.job.model.load_state_dict(mean)
    own = t.job.validation_nll()
    assert sum(own.values()) / len(own) == pytest.approx(lines[-1]["nll"], rel=1e-6)


def test_a_stop_changes_nothing_about_the_average(toy, tmp_path):
    sets = ["training.average=2"]
    trainer(toy, tmp_path / "whole", sets).train()
    stopped = trainer(toy, tmp_path / "stopped", sets)
    step = stopped.train_step

    def stopping() -> int:
        stopped.stop.number = signal.SIGTERM if stopped.step == 10 else None
        return step()

    stopped.train_step = stopping
    assert stopped.train() == 143
    assert trainer(toy, tmp_path / "stopped", sets).train() == 0
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")


def test_only_the_newest_checkpoints_are_kept(toy, tmp_path):
    trainer(toy, tmp_path / "run", ["training.keep=2"]).train()
    names = [p.name for p in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["step-00000008", "step-00000012"]


def test_the_parameters_of_every_nth_step_are_kept_and_open_by_their_step(toy, tmp_path):
    run = tmp_path / "run"
    trainer(toy, run, ["training.keep=1", "training.keep_every=4"]).train()
    assert list(saved_models(run)) == [4, 8, 12]
    for step, file in saved_models(run).items():
        opened = find_model(run, str(step)).load().embedding.weight
        assert torch.equal(opened, load_tensors(file)["embedding.weight"])
    with pytest.raises(RunError, match="no checkpoint '5'; there: step-00000004, step-00000008"):
        find_model(run, "5")


def test_the_record_holds_what_the_method_saw(toy, tmp_path):
    run = tmp_path / "run"
    trainer(toy, run, METHODS["gradvac"]).train()
    frames = list(GramRecord(run / "geometry"))
    assert [f.step for f in frames] == [0, 2, 4, 6, 8, 10]
    for f in frames:
        assert set(f.tasks) <= {"fr-en", "ne-en"}
        assert f.groups == ("embedding", "encoder.layers.0", "decoder.layers.0")
        assert f.gram.shape == (3, len(f.tasks), len(f.tasks))
        assert sum(f.edits) <= sum(f.comparisons) == 3 * len(f.tasks) * (len(f.tasks) - 1)
    assert frames[0].edits == frames[0].pcgrad_edits  # targets begin at 0: the first step is PCGrad


def test_the_record_holds_the_targets_and_only_the_steps_its_policy_names(toy, tmp_path):
    run = tmp_path / "run"
    policy = "method.record_every=[[0, 1], [4, 3]]"
    changes = ["method.name=gradvac", "method.beta=0.3", "batches.pool=1"]  # no batch of one task
    trainer(toy, run, [*changes, policy]).train()
    frames = list(GramRecord(run / "geometry"))
    assert [f.step for f in frames] == [0, 1, 2, 3, 6, 9]
    expected = np.zeros((3, 2, 2))
    tasks = ("fr-en", "ne-en")
    for f in frames[:4]:  # Wang et al. 2021, eq. 3: of two tasks, each is compared with the other
        own = [tasks.index(t) for t in f.tasks]
        assert f.targets == pytest.approx(expected[:, own][:, :, own], abs=1e-12)
        if len(own) == 2:
            norms = np.sqrt(f.gram[:, 0, 0] * f.gram[:, 1, 1])
            moved = 0.7 * expected[:, 0, 1] + 0.3 * f.gram[:, 0, 1] / norms
            expected[:, 0, 1] = expected[:, 1, 0] = moved
    assert expected[0, 0, 1] != 0


def test_methods_without_targets_record_none(toy, tmp_path):
    trainer(toy, tmp_path, ["method.name=static", "training.steps=2"]).train()
    assert [f.targets for f in GramRecord(tmp_path / "geometry")] == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.metric=nll/none", r"training\.metric: 'nll/none' is not among: nll, perplexity"),
        ("model.heads=3", r"model: .*d_model"),
        ("method.tasks=[xx-en]", r"method\.options\.tasks: \['xx-en'\] are no tasks"),
        (
            "method.tasks=medium",
            r"method\.options\.tasks: no task is 'medium'; levels: fr-en high, ne-en low",
        ),
        ("device=cuda:9", r"device: 'cuda:9' asked for|device"),
        ("device=gpu", r"device: 'gpu' is not a device"),
        ("data.directions=[zz-en]", r"no text in zz"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(toy, tmp_path, change, message):
    sets = ["method.name=gradvac", change]
    with pytest.raises(RecipeError, match=message):
        trainer(toy, tmp_path / "run", sets)


def test_starting_from_another_run_continues_its_parameters_and_vocabulary(toy, tmp_path):
    first = trainer(toy, tmp_path / "first")
    first.train()
    second = trainer(toy, tmp_path / "second", [f"training.start_from={tmp_path / 'first'}"])
    best = load_file(tmp_path / "first" / "best" / "model.safetensors")
    for name, p in second.job.model.state_dict().items():
        assert torch.equal(p, best[name])
    assert second.job.prepared.vocabulary.fingerprint == first.job.prepared.vocabulary.fingerprint


def test_a_checkpoint_of_another_vocabulary_is_refused(toy, tmp_path):
    run = tmp_path / "run"
    trainer(toy, run).train()
    state = list_checkpoints(run / "checkpoints")[-1] / "state.json"
    tree = json.loads(state.read_text())
    (state.parent / "SHA256SUMS").unlink()  # else it is damaged, not foreign
    del tree["made_with"]
    state.write_text(json.dumps(tree | {"vocabulary": "0" * 16}))
    with pytest.raises(RunError, match="its vocabulary is 0000000000000000, the run has"):
        trainer(toy, run).train()
    state.write_text(json.dumps(tree | {"tasks": ["fr-en", "de-en"]}))
    message = r"tasks are not .* only in the checkpoint: de-en; only in the run: ne-en"
    with pytest.raises(RunError, match=message):
        trainer(toy, run).train()


def test_a_run_folder_describes_itself(toy, tmp_path):
    run = tmp_path / "run"
    trainer(toy, run, ["method.name=gradvac"]).train()
    method = yaml.safe_load((run / "recipe.yaml").read_text())["method"]
    assert method["options"] == {
        "tasks": "all",
        "beta": 0.01,
        "target": "adaptive",
        "max_target": 0.999,
        "rescale": False,
    }  # defaults too: those of a later version may differ
    tasks = json.loads((run / "tasks.json").read_text())
    assert tasks["fr-en"]["level"] == "high" and tasks["ne-en"]["level"] == "low"
    for name in ("vocabulary.model", "model.json", "data/account.json", "speed.jsonl"):
        assert (run / name).exists(), name


def test_the_time_of_steps_is_kept_by_interval_and_process(toy, tmp_path, monkeypatch):
    """Clocks that tick once at each look: a step takes three seconds, a half on the processor."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    halves = itertools.count()
    monkeypatch.setattr("time.process_time", lambda: next(halves) / 2)
    run, few = tmp_path / "run", ["training.log_every=2", "training.checkpoint_every=3"]
    t = trainer(toy, run, few)
    train_step = t.train_step
    t.train_step = lambda: (train_step(), setattr(t.stop, "number", 2 if t.step == 5 else None))[0]
    assert t.train() == 130
    trainer(toy, run, few).train()
    lines = [json.loads(x) for x in (run / "speed.jsonl").read_text().splitlines()]
    steps = yaml.safe_load((run / "recipe.yaml").read_text())["training"]["steps"]
    expected = [(n, 0 if n < 5 else 5) for n in range(2, steps + 1, 2)]
    assert [(x["step"], x["began"]) for x in lines] == expected
    assert [x["cpu_seconds"] for x in lines] == [(n - began) / 2 for n, began in expected]
    assert [x["seconds"] for x in lines] == [3 * (n - began) for n, began in expected]
    assert {(x["device"], x["processes"]) for x in lines} == {("cpu", 1)}


def test_a_crash_after_averaging_does_not_repeat_its_line(toy, tmp_path):
    run = tmp_path / "run"
    trainer(toy, run, ["training.average=3"]).train()
    before = (run / "metrics.jsonl").read_bytes()
    (run / "done.json").unlink()  # as if killed just before it was written
    trainer(toy, run, ["training.average=3"]).train()
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("sets", [[], ["method.engine=per_task"], ["batches.accumulate=2"]])
def test_methods_that_read_losses_see_mean_losses(toy, tmp_path, sets):
    """Losses come as shares of the step's mean; shares turn them into each task's own mean."""
    t = trainer(toy, tmp_path / "run", ["method.name=gradnorm", "model.dropout=0", *sets])
    seen = []
    weights = t.updates.method.weights
    t.updates.method.weights = lambda geometry: (seen.append(geometry), weights(geometry))[1]
    t.train_step()
    (geometry,) = seen
    assert float(geometry.shares.sum()) == pytest.approx(1)
    line = t.updates.window.line()
    for task, mean, share in zip(
        geometry.tasks, geometry.mean_losses.tolist(), geometry.shares.tolist(), strict=True
    ):
        assert share == pytest.approx(line["task_tokens"][task] / line["tokens"])
        # label smoothing of 0.1: between 0.9 of the NLL and far above it
        assert 0.9 * line["task_nll"][task] < mean < 2 * line["task_nll"][task]
