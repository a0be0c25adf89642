"""`gradvac tune`: the space is checked, budgets are equal, stops and failures change nothing."""

import csv
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import gradvac.experiment.sweep.tune
from gradvac.cli.main import app
from gradvac.errors import GradvacError, RecipeError, RunError
from gradvac.experiment.recipe.load import load_recipe, read_recipe_file
from gradvac.experiment.recipe.tune_space import as_yaml, read_space
from gradvac.experiment.sweep.sweep import work
from gradvac.experiment.sweep.tune import DESCRIPTION
from tests.build import make_toy, toy_recipe

SPACE = {
    "trials": 3,
    "space": {"training.learning_rate": {"range": [0.001, 0.1], "log": True}},
    "variants": {"gradvac": {"method.beta": {"choices": [0.01, 0.1]}}},
}


class InThisProcess:
    """A trial trained at once, where a process of its own would take seconds to begin."""

    def __init__(self, folder: Path, score: bool) -> None:
        (folder / "sweep.log").write_text("")
        try:
            self.returncode = work(folder, score=score)
        except GradvacError as e:
            (folder / "sweep.log").write_text(f"error: {e}\n")
            self.returncode = 2

    def poll(self) -> int:
        return self.returncode


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradvac.experiment.sweep.tune, "start", InThisProcess)
        yield


def write_recipe(folder: Path, **tune) -> Path:
    tree = toy_recipe()
    tree["training"]["steps"] = 4
    tree |= {
        "variants": {"joint": {}, "gradvac": {"method.name": "gradvac", "method.beta": 0.01}},
        "tune": {**SPACE, **tune},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder / "recipe.yaml"


def tune(recipe: Path, out: Path, *flags: str):
    return CliRunner().invoke(app, ["tune", str(recipe), "--out", str(out), *flags])


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    folder = make_toy(tmp_path_factory.mktemp("tune"))
    done = tune(write_recipe(folder), folder / "out", "--only", "gradvac")
    assert done.exit_code == 0, done.output
    return folder


def test_the_best_trial_is_that_of_the_lowest_validation_perplexity(searched):
    out = searched / "out" / "gradvac"
    lowest = {}
    for line in trials(out):
        metrics = (out / f"trial-00{line['trial']}" / "metrics.jsonl").read_text().splitlines()
        valid = [x for x in map(json.loads, metrics) if x["kind"] == "valid"]
        each = [[math.exp(x[f"nll/{d}"]) for d in ("fr-en", "ne-en")] for x in valid]
        lowest[line["trial"]] = min(sum(values) / 2 for values in each)
        assert float(line["perplexity"]) == pytest.approx(lowest[line["trial"]])
    assert list(lowest) == ["0", "1", "2"]
    number = min(lowest, key=lowest.__getitem__)
    best = load_recipe(out / "best.yaml")
    line = trials(out)[int(number)]
    assert best.training.learning_rate == float(line["training.learning_rate"])
    assert best.method.options["beta"] == float(line["method.beta"])
    assert not (out / f"trial-00{number}" / "scores.json").exists()  # the test set is not touched


def test_trial_0_is_the_recipe_and_the_others_are_in_the_space(searched):
    first, *others = trials(searched / "out" / "gradvac")
    assert (float(first["training.learning_rate"]), first["method.beta"]) == (0.01, "0.01")
    for line in others:
        assert 0.001 <= float(line["training.learning_rate"]) <= 0.1
        assert line["method.beta"] in ("0.01", "0.1")


def test_the_same_command_adds_nothing_and_more_trials_add_the_rest(searched):
    before = trials(searched / "out" / "gradvac")
    recipe = searched / "recipe.yaml"
    assert tune(recipe, searched / "out", "--only", "gradvac").exit_code == 0
    assert trials(searched / "out" / "gradvac") == before
    # In one go it is the same fourth trial as in two.
    more = tune(recipe, searched / "out", "--only", "gradvac", "--trials", "4")
    assert more.exit_code == 0 and "best of each" in more.output
    whole = trials(searched / "out" / "gradvac")
    assert whole[:3] == before
    again = tune(recipe, searched / "again", "--only", "gradvac", "--trials", "4")
    assert again.exit_code == 0 and trials(searched / "again" / "gradvac") == whole


def test_a_search_from_before_a_key_goes_on(searched):
    file = searched / "out" / "gradvac" / DESCRIPTION
    whole = file.read_text()
    tree = json.loads(whole)
    assert tree["recipe"]["vocabulary"].pop("normalization") == "nfc"
    file.write_text(json.dumps(tree))
    done = tune(searched / "recipe.yaml", searched / "out", "--only", "gradvac")
    assert done.exit_code == 0, done.output
    tree["recipe"]["vocabulary"]["size"] += 1
    file.write_text(json.dumps(tree))
    done = tune(searched / "recipe.yaml", searched / "out", "--only", "gradvac")
    assert "another space or recipe" in str(done.exception)
    file.write_text(whole)


def test_a_failed_trial_counts_and_stops_no_other(tmp_path):
    recipe = write_recipe(
        make_toy(tmp_path),
        trials=2,
        space={"training.start_from": {"choices": ["nowhere", None]}},
        variants={},
    )
    done = tune(recipe, tmp_path / "out", "--only", "joint", "--trials", "4")
    assert done.exit_code == 0, done.output
    states = {line["training.start_from"]: line["state"] for line in trials(tmp_path / "out/joint")}
    assert states == {"null": "COMPLETE", "nowhere": "FAIL"}
    assert "failed: " in done.output and "nowhere" in done.output


def test_another_space_is_refused(searched, tmp_path):
    shutil.copytree(searched / "out", tmp_path / "out")
    make_toy(tmp_path)
    done = tune(write_recipe(tmp_path, variants={}), tmp_path / "out", "--only", "gradvac")
    assert isinstance(done.exception, RunError) and "another space" in str(done.exception)


def test_a_stopped_search_goes_on_with_the_trial_it_was_at(tmp_path, monkeypatch):
    recipe, out = write_recipe(make_toy(tmp_path), trials=1), tmp_path / "out"
    told = []

    class Endless:
        """A trial that a terminal interrupts."""

        returncode = None

        def __init__(self, folder, score):
            os.kill(os.getpid(), signal.SIGTERM)

        def poll(self):
            return self.returncode

        def send_signal(self, number):
            told.append(number)

        def wait(self):
            self.returncode = 128 + signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(gradvac.experiment.sweep.tune, "start", Endless)
        stopped = tune(recipe, out, "--only", "joint")
    assert stopped.exit_code == 128 + signal.SIGTERM and told == [signal.SIGTERM]
    assert "the same command goes on" in stopped.output
    assert [line["state"] for line in trials(out / "joint")] == ["RUNNING"]
    assert tune(recipe, out, "--only", "joint").exit_code == 0
    (line,) = trials(out / "joint")
    assert (line["trial"], line["state"]) == ("0", "COMPLETE")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": {"training.learning_rat": {"choices": [1]}}}, "did you mean 'learning_rate'"),
        (
            {"space": {"training.learning_rate": {"range": [0, 1]}}},
            "training.learning_rate: found 0",
        ),
        ({"space": {"training.learning_rate": {"range": [2, 1]}}}, "must be {choices"),
        ({"space": {"training.learning_rate": 3}}, "tune.space.training.learning_rate: found 3"),
        ({"trials": 0}, "tune.trials: found 0"),
        ({"tries": 3}, "tune.tries: unknown key"),
        ({"variants": {"pcgrad": {}}}, "'pcgrad' is no variant; there are: joint, gradvac"),
        ({"space": {}, "variants": {}}, "tune.space: empty"),
    ],
)
def test_a_space_is_checked_before_anything_trains(tmp_path, change, words):
    recipe = write_recipe(make_toy(tmp_path), **change)
    done = tune(recipe, tmp_path / "out")
    assert isinstance(done.exception, RecipeError) and words in str(done.exception)
    assert not list((tmp_path / "out").rglob("trial-*"))


def test_variants_add_to_the_space_and_replace_its_keys(tmp_path):
    own = {
        "gradvac": {"training.learning_rate": {"choices": [0.1]}, **SPACE["variants"]["gradvac"]}
    }
    file = read_recipe_file(write_recipe(make_toy(tmp_path), variants=own))
    space = read_space(file)
    assert [p.key for p in space.of("joint")] == ["training.learning_rate"]
    assert [(p.key, p.choices) for p in space.of("gradvac")] == [
        ("training.learning_rate", ("0.1",)),
        ("method.beta", ("0.01", "0.1")),
    ]


@pytest.mark.parametrize("value", [1e-5, 3, True, None, "x", [0.9, 0.98], {"a": [1, 2]}])
def test_values_survive_the_way_through_the_command_line(value):
    assert yaml.safe_load(as_yaml(value)) == value and "\n" not in as_yaml(value)
