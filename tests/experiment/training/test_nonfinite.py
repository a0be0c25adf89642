"""A run meets a loss that is not finite: it stops with advice, or goes on as if it had not."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradvac.errors import GradientError
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.training.train import Trainer
from tests.build import trainer
from tests.turns import by_turns

SKIP = "training.nonfinite=skip"
WAYS = {
    "joint": ["method.name=joint"],
    "single_pass": ["method.name=gradvac", "method.beta=0.2"],
    "per_task": ["method.name=gradvac", "method.beta=0.2", "method.engine=per_task"],
    "accumulating": ["method.name=gradnorm", "batches.accumulate=2"],
}


def spoilt_trainer(
    toy: Path, run: Path, changes: list[str], bad: range = range(0), task: str | None = "ne-en"
) -> Trainer:
    """A trainer that finds NaN in the losses of a task, or of all, at the steps ``bad``."""
    t = trainer(toy, run, changes)
    losses = t.job.losses

    def spoilt(batch):
        loss, nll, rows = losses(batch)
        if t.job.model.training and t.step in bad:
            own = [task in (None, batch.tasks[n]) for n in batch.task[rows].tolist()]
            loss, nll = (torch.where(torch.tensor(own), math.nan, x) for x in (loss, nll))
        return loss, nll, rows

    t.job.losses = spoilt
    return t


def lines(run: Path) -> list[dict]:
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]


def without_skips(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "skipped"} for line in lines(run)]


def final(run: Path) -> dict[str, bytes]:
    newest = list_checkpoints(run / "checkpoints")[-1]
    return {name: (newest / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")}


@pytest.mark.parametrize("way", by_turns(list(WAYS), 2))
def test_a_skipped_step_is_as_if_it_had_not_been_and_resumes(toy, tmp_path, way):
    whole = spoilt_trainer(toy, tmp_path / "whole", [SKIP, *WAYS[way]])
    step = whole.train_step

    def absent() -> int:
        if whole.step in (5, 6):
            whole.updates.step += 1
            return 0
        return step()

    whole.train_step = absent
    whole.train()
    t = spoilt_trainer(toy, tmp_path / "run", [SKIP, *WAYS[way]], range(5, 7))
    t.train()
    assert without_skips(tmp_path / "run") == without_skips(tmp_path / "whole")
    assert final(tmp_path / "run") == final(tmp_path / "whole")
    counted = [x.get("skipped") for x in lines(tmp_path / "run") if x["kind"] == "train"]
    assert counted == [None, {"ne-en": 1}, {"ne-en": 1}, None]

    broken = spoilt_trainer(toy, tmp_path / "broken", [SKIP, *WAYS[way]], range(5, 7))
    train_step = broken.train_step

    def crashing() -> int:
        if broken.step == 7:
            raise KeyboardInterrupt
        return train_step()

    broken.train_step = crashing
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    spoilt_trainer(toy, tmp_path / "broken", [SKIP, *WAYS[way]], range(5, 7)).train()
    assert lines(tmp_path / "broken") == lines(tmp_path / "run")
    assert final(tmp_path / "broken") == final(tmp_path / "run")


@pytest.mark.parametrize("way", ["joint", "single_pass"])
def test_by_default_it_stops_and_says_what_to_do(toy, tmp_path, way):
    t = spoilt_trainer(toy, tmp_path / "run", WAYS[way], range(5, 7))
    with pytest.raises(GradientError) as caught:
        t.train()
    text = str(caught.value)
    assert "task 'ne-en'" in text and "at step 5" in text
    assert "go on without such steps by training.nonfinite=skip, or, in another folder" in text
    assert text.endswith("training.precision=fp32")
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [c.name for c in saved] == ["step-00000004"]
    model = load_file(saved[0] / "model.safetensors")
    assert all(bool(p.isfinite().all()) for p in model.values())


def test_ten_in_a_row_are_enough_also_across_a_resumption(toy, tmp_path):
    changes = [SKIP, "training.steps=40", "training.log_every=2", "training.validate_every=40"]
    for stop in (9, 99):
        t = spoilt_trainer(toy, tmp_path / "run", changes, range(3, 40), None)
        display = t.display.advance

        def advance(tokens, seconds, cpu_seconds, t=t, stop=stop, display=display):
            display(tokens, seconds, cpu_seconds)
            if t.step == stop:
                t.stop.number = 2  # SIGINT

        t.display.advance = advance
        if stop == 9:
            assert t.train() == 130
            continue
        with pytest.raises(GradientError, match=r"10 steps in a row were skipped.*now .* step 13"):
            t.train()
    logged = [x for x in lines(tmp_path / "run") if x["kind"] == "train"]
    assert [x["step"] for x in logged] == [2, 4]  # after that no step had numbers
    assert sum(logged[-1]["skipped"].values()) == 1


def test_one_good_step_begins_the_count_anew(toy, tmp_path):
    t = spoilt_trainer(toy, tmp_path / "run", [SKIP, "training.steps=30"], range(3, 12), None)
    t.train()
    assert t.updates.skipped == 0 and t.step == 30
    assert sum(sum(x.get("skipped", {}).values()) for x in lines(tmp_path / "run")) == 9
