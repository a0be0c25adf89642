"""`gradvac demo`, the main job, at its smallest: two steps, three sentences a direction."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.run.checkpoint import load_tensors
from gradvac.experiment.sweep.demo import run_demo
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.train import Trainer
from gradvac.experiment.translation.job import TranslationJob
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.prepare import open_prepared


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    console = Console(file=(out / "log").open("w"), width=120)
    run_demo(out, steps=2, sentences=3, console=console)
    console.file.close()
    return out


def test_it_prints_one_table_and_the_report(demo):
    log = (demo / "log").read_text()
    for name in ("starting model", "joint", "GradVac", "any-en high", "any-en low", "xh-en"):
        assert name in log
    assert "report: " in log and "One seed" in log


def test_both_runs_start_from_the_shipped_parameters_and_see_the_same_batches(demo, tmp_path):
    start = load_tensors(find_model(resolve("shipped:start")).parameters)
    trainers = []
    for name in ("joint", "gradvac"):
        run = tmp_path / name  # as it was before the first step
        shutil.copytree(demo / name, run, ignore=shutil.ignore_patterns("checkpoints"))
        trainers.append(Trainer(TranslationJob(open_prepared(run)), Display(Console(quiet=True))))
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
    assert len(scores["directions"]) == 12 and "xh-en" in scores["directions"]
    levels = {x["level"] for x in scores["directions"].values()}
    assert levels == {"high", "medium", "low"}


def test_the_report_is_one_file_about_everything(demo):
    page = (demo / "report.html").read_text()
    HTMLParser().feed(page)
    for text in ("starting model", "GradVac", "Xhosa", "PCGrad", "One seed"):
        assert text in page
    assert "<script src" not in page and "http:" not in page.replace("http://www.w3.org", "")


def test_again_is_quick_and_changes_nothing(demo):
    before = (demo / "gradvac" / "metrics.jsonl").read_bytes()
    run_demo(demo, steps=2, sentences=3, console=Console(quiet=True))
    assert (demo / "gradvac" / "metrics.jsonl").read_bytes() == before
