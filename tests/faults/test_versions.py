"""What an earlier version left behind is read and gone on with; numbers are what they were."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from gradvac.experiment.run.checkpoint import list_checkpoints, load_checkpoint, saved_models
from gradvac.experiment.run.folder import run_recipe, task_infos
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.recipe import Recipe
from gradvac.geometry.record import GramRecord
from tests.faults.bench import RUN, copy, everything, in_child, said, train, trainer
from tests.faults.fixture import SETS_OF, golden, old_run

# Between processors: sums of float32 in another order, 12 steps on. On the machine that wrote them
# the numbers are equal to the last bit.
ACROSS_MACHINES = 1e-4


@pytest.fixture
def old(tmp_path) -> Path:
    """A run of version 0.1 that was stopped at step 8, in another folder than it was made in."""
    return old_run("translation", tmp_path)


def numbers(tree: object) -> list[float]:
    if isinstance(tree, dict):
        return [n for key in sorted(tree) for n in numbers(tree[key])]
    return [float(tree)] if isinstance(tree, int | float) else []


def assert_golden(metrics: Path, kind: str = "translation") -> None:
    ours, wanted = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (metrics, golden(kind))
    )
    assert [(x["kind"], x["step"]) for x in ours] == [(x["kind"], x["step"]) for x in wanted]
    for a, b in zip(ours, wanted, strict=True):
        assert numbers(a) == pytest.approx(numbers(b), rel=ACROSS_MACHINES)


def test_the_losses_of_a_run_are_golden(whole):
    assert_golden(whole / RUN / "metrics.jsonl")


def test_a_run_of_an_earlier_version_is_readable(old):
    run = old / RUN
    assert run_recipe(run, Recipe).name == "toy" and list(task_infos(run)) == [
        "fr-en",
        "ne-en",
    ]
    (saved,) = list_checkpoints(run / "checkpoints")
    assert load_checkpoint(saved).step == 8 and list(saved_models(run)) == [8]
    assert find_model(run, "best").load().embedding.weight.isfinite().all()
    assert [frame.step for frame in GramRecord(run / "geometry")] == [0, 2, 4, 6]


@pytest.mark.parametrize("kind", SETS_OF)
def test_a_run_of_an_earlier_version_goes_on(kind, tmp_path):
    """In another folder than it was made in, and of tagging without the encoder it began with."""
    if kind != "translation":
        pytest.importorskip("transformers")
    old = old_run(kind, tmp_path)
    shutil.rmtree(old / "encoder", ignore_errors=True)
    assert in_child(old, lambda: train(SETS_OF[kind])) == 0
    assert "resuming at step 8 of 12" in said(old)
    assert_golden(old / RUN / "metrics.jsonl", kind)


@pytest.mark.parametrize("kind", ["tagging", "encoder"])
def test_the_losses_of_every_kind_are_golden(kind, tmp_path):
    """From the text of the fixture: no two tokenizers that `tokenizers` trains are the same."""
    pytest.importorskip("transformers")
    old = old_run(kind, tmp_path)
    shutil.rmtree(old / RUN)
    assert in_child(old, lambda: train(SETS_OF[kind])) == 0
    assert_golden(old / RUN / "metrics.jsonl", kind)


def test_two_runs_are_equal_to_the_last_bit(case, whole):
    assert in_child(case, train) == 0
    assert everything(case) == everything(whole)


def test_deterministic_runs_are_equal_to_the_last_bit(case):
    """And PyTorch is told: an operation without such a kernel would be an error."""
    for file in (case / "recipe.yaml", case / RUN / "recipe.yaml"):
        tree = yaml.safe_load(file.read_text())
        tree["training"]["deterministic"] = True
        if file.parent == case:
            tree["method"] = {**tree["method"], "name": "gradvac", "beta": 0.2}
        file.write_text(yaml.safe_dump(tree))

    def told() -> int:
        t = trainer()
        step = t.train_step

        def checked() -> int:
            assert torch.are_deterministic_algorithms_enabled()
            return step()

        t.train_step = checked
        code = t.train()
        assert not torch.are_deterministic_algorithms_enabled()
        return code

    again = copy(case, case.with_name("again"))
    assert in_child(case, told) == 0 and in_child(again, told) == 0
    assert everything(case) == everything(again)
