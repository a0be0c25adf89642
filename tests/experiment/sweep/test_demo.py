"""`gradvac demo`, the main job, at its smallest: two steps, three sentences a direction."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gradvac.errors import RunError
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.run.checkpoint import load_tensors
from gradvac.experiment.sweep import demo as module
from gradvac.experiment.sweep.demo import FEWEST, MOST, Plan, run_demo
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.train import Trainer
from gradvac.experiment.translation.job import TranslationJob
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.prepare import open_prepared

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    console = Console(file=(out / "log").open("w"), width=120)
    run_demo(out, steps=2, minutes=4, sentences=3, console=console)
    console.file.close()
    return out


def test_it_prints_one_table_and_the_report(demo):
    log = (demo / "log").read_text()
    for name in ("starting model", "joint", "GradVac", "any-en high", "any-en low", "xh-en"):
        assert name in log
    assert "report: " in log and "One seed" in log


def test_translations_and_gradients_come_before_any_training(demo):
    before, after = (demo / "log").read_text().split("joint: 2 steps", 1)
    for seen in ("the shipped model", "Cannot create the file {}.", "Cosines of the gradients"):
        assert seen in before and seen not in after
    assert "it has never seen hi, ne, kk, xh" in before
    assert "closest: ne and hi" in before


def test_both_runs_start_from_the_shipped_parameters_and_see_the_same_batches(demo, tmp_path):
    start = load_tensors(find_model(resolve("shipped:start")).parameters)
    trainers = []
    for name in ("joint", "gradvac"):
        run = tmp_path / name  # as it was before the first step
        shutil.copytree(demo / name, run, ignore=shutil.ignore_patterns("checkpoints"))
        trainers.append(Trainer(TranslationJob(open_prepared(run)), Display(QUIET)))
    for trainer in trainers:
        assert trainer.step == 0  # nothing is loaded before train()
        for name, p in trainer.job.model.named_parameters():
            assert torch.equal(p, start[name].float())
    for step in (0, 1, 70):
        a, b = (t.job.balance.plan(step) for t in trainers)
        assert torch.equal(a.source, b.source) and torch.equal(a.task, b.task)


def test_low_resource_directions_are_trained_and_scored(demo):
    lines = [json.loads(x) for x in (demo / "gradvac" / "metrics.jsonl").read_text().splitlines()]
    assert "nll/xh-en" in next(x for x in lines if x["kind"] == "valid")
    scores = json.loads((demo / "gradvac" / "scores.json").read_text())
    assert len(scores["directions"]) == 8 and "xh-en" in scores["directions"]
    levels = {x["level"] for x in scores["directions"].values()}
    assert levels == {"high", "medium", "low"}


def test_the_report_is_one_file_about_everything(demo):
    page = (demo / "report.html").read_text()
    HTMLParser().feed(page)
    for text in ("starting model", "GradVac", "Xhosa", "PCGrad", "One seed", "has 2 steps"):
        assert text in page
    assert "<script src" not in page and "http:" not in page.replace("http://www.w3.org", "")


def test_again_takes_the_recorded_steps_is_quick_and_changes_nothing(demo):
    before = (demo / "gradvac" / "metrics.jsonl").read_bytes()
    run_demo(demo, steps=None, minutes=4, sentences=3, console=QUIET)
    assert (demo / "gradvac" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(RunError, match=r"demo.json: this demo has 2 steps; --out another folder"):
        run_demo(demo, steps=3, minutes=4, sentences=3, console=QUIET)


def test_a_folder_of_another_version_is_refused(demo, tmp_path):
    shutil.copytree(demo / "joint", tmp_path / "joint")
    with pytest.raises(RunError, match=r"holds a demo without demo\.json, of another version"):
        run_demo(tmp_path, steps=2, minutes=4, sentences=3, console=QUIET)


@pytest.mark.parametrize(
    ("each", "seconds", "steps"),
    [
        (1.0, 163, 80),  # 1.85 times 80 steps and their validations, and the timed steps: 162.1 s
        (1.0, 162, 70),
        (1.0, 20, FEWEST),
        (0.01, 151, MOST),
    ],
)
def test_steps_follow_from_the_speed_and_are_recorded(tmp_path, monkeypatch, each, seconds, steps):
    monkeypatch.setattr(module, "_speed", lambda text: (each, 1000 / each))
    plan = module._plan(tmp_path, None, seconds, QUIET)
    assert plan.steps == steps and plan.tokens_per_s == 1000 / each
    kept = json.loads((tmp_path / "demo.json").read_text())
    assert Plan(**kept) == plan
    monkeypatch.setattr(module, "_speed", lambda text: (100.0, 10.0))  # slow today
    assert module._plan(tmp_path, None, 1.0, QUIET) == plan


def test_the_time_left_is_that_of_the_whole_demo(tmp_path):
    console = Console(file=(tmp_path / "log").open("w"), width=100)
    display = Display(console, after=100.0)
    display.start(4, 0)
    for _ in range(2):
        display.advance(10, 3.0, 3.0)
    display.log(2, {"nll": 1.0, "padding": 0.0})
    console.file.close()
    assert "0:01:46 left" in (tmp_path / "log").read_text()  # two steps of 3 s, then 100 s
