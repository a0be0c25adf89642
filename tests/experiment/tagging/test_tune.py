"""`gradvac tune` of sequence labelling."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RecipeError
from gradvac.experiment.recipe.load import load_recipe
from tests.build import write_recipe
from tests.tagging.helpers import make_toy

pytest.importorskip("transformers")


def tune(folder: Path, tree: dict, out: str):
    recipe = write_recipe(folder, tree)
    return CliRunner().invoke(app, ["tune", str(recipe), "--out", str(folder / out)])


def test_sequence_labelling_is_searched_by_validation_error(tmp_path):
    tree = make_toy(tmp_path) | {"variants": {"pcgrad": {"method.name": "pcgrad"}}}
    tree["tune"] = {"trials": 2, "space": {"training.learning_rate": {"choices": [0.01, 1e-6]}}}
    done = tune(tmp_path, tree, "out")
    assert done.exit_code == 0, done.output
    out = tmp_path / "out" / "pcgrad"
    with (out / "trials.csv").open() as lines:
        trials = list(csv.DictReader(lines))
    for line in trials:
        metrics = (out / f"trial-00{line['trial']}" / "metrics.jsonl").read_text().splitlines()
        valid = [x for x in map(json.loads, metrics) if x["kind"] == "valid"]
        each = [(x["error/de"] + x["error/fr"]) / 2 for x in valid]
        assert float(line["error"]) == pytest.approx(min(each)) and len(each) == 2
    best = min(trials, key=lambda line: float(line["error"]))
    recipe = load_recipe(out / "best.yaml")
    assert recipe.training.learning_rate == float(best["training.learning_rate"])
    assert not list(out.rglob("scores.json"))
    for own in tree["data"]["languages"].values():
        own.pop("valid")
    done = tune(tmp_path, tree, "none")
    assert isinstance(done.exception, RecipeError)
    assert "data.languages: valid: empty; the search minimises its error" in str(done.exception)
