"""The cheaper of two exact ways: measured once, kept in the run, the same after a crash."""

import json
from types import SimpleNamespace

import pytest

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.run.disk import Outbox
from gradvac.experiment.training.updates import Updates
from gradvac.experiment.training.way import CHOICE, TIMED, WARM, WAYS, Way
from tests.build import trainer

SECONDS = {"single_pass": 3.0, "per_task": 2.0}
CHANGES = ["method.name=gradvac", "method.engine=measured", "model.dropout=0"]


def way(folder, engine="measured"):
    return Way(SimpleNamespace(engine=engine), folder, Outbox())


def measure(found, seconds=SECONDS):
    """Take the steps that measure; returns what the user is told."""
    return [found.note(n, seconds[found.of(n)], 10) for n in range(WARM + TIMED)]


def test_the_cheaper_way_is_kept(tmp_path):
    found = way(tmp_path)
    assert [found.of(n) for n in range(4)] == [*WAYS, *WAYS]
    *before, told = measure(found)
    assert not any(before) and "per_task from here on" in told and "300000.0" in told
    kept = json.loads((tmp_path / CHOICE).read_text())
    assert kept == {
        "engine": "per_task",
        "from_step": 10,
        "microseconds_per_token": {"single_pass": 3e5, "per_task": 2e5},
    }
    for after in (found, way(tmp_path)):  # also in a process that resumes before the choice
        assert [after.of(n) for n in (8, 9, 10, 11)] == [*WAYS, "per_task", "per_task"]
        assert after.note(12, 99.0, 1) == ""


def test_a_median_decides_and_the_first_steps_do_not(tmp_path):
    found = way(tmp_path)
    seconds = [1, 99, 1, 99, 3, 2, 3, 2, 0.1, 50]
    told = [found.note(n, s, 10) for n, s in enumerate(seconds)]
    assert "per_task from here on" in told[-1]


@pytest.mark.parametrize("engine", WAYS)
def test_a_way_that_the_recipe_names_is_not_measured(tmp_path, engine):
    found = way(tmp_path, engine)
    assert {found.of(n) for n in range(20)} == {engine} and not any(measure(found))
    assert not (tmp_path / CHOICE).exists()


@pytest.mark.parametrize("kept", [{"engine": "fast", "from_step": 10}, {"engine": "per_task"}])
def test_a_damaged_choice_is_an_error_that_names_the_file(tmp_path, kept):
    (tmp_path / CHOICE).write_text(json.dumps(kept))
    with pytest.raises(RunError, match=rf"{CHOICE}: engine is .* must be single_pass or per_task"):
        way(tmp_path)


def test_several_ranks_are_refused(toy, tmp_path):
    job = trainer(toy, tmp_path / "run", CHANGES).job
    with pytest.raises(RecipeError, match="measured with several ranks"):
        Updates(job, Outbox(), ranks=object())


class Crash(Exception):
    pass


def test_a_run_that_crashes_after_the_choice_goes_on_as_it_would_have(toy, tmp_path, monkeypatch):
    """Although the clock would decide differently the second time."""
    note = Way.note
    seconds = dict(SECONDS)
    monkeypatch.setattr(
        Way, "note", lambda self, n, _, tokens: note(self, n, seconds[self.of(n)], tokens)
    )
    assert trainer(toy, tmp_path / "whole", CHANGES).train() == 0
    broken = trainer(toy, tmp_path / "broken", CHANGES)
    step = broken.train_step

    def crash():
        if broken.step == 11:
            raise Crash
        return step()

    broken.train_step = crash
    with pytest.raises(Crash):
        broken.train()
    seconds["single_pass"] = 1.0
    assert trainer(toy, tmp_path / "broken", CHANGES).train() == 0
    for name in ("metrics.jsonl", "engine.json", "best/model.safetensors"):
        whole, again = (tmp_path / run / name for run in ("whole", "broken"))
        assert whole.read_bytes() == again.read_bytes(), name
