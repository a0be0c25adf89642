"""The folder of a sweep in place of its runs, for every verb that takes runs."""

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RunError
from gradvac.experiment.run.below import all_runs, runs_below
from gradvac.experiment.view.geometry import subjects_of
from gradvac.experiment.view.run_view import load_runs
from gradvac.experiment.view.seeds import over_seeds
from tests.build import make_toy, trained, write_json

runner = CliRunner()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two seeds of one method, the second a copy that says so, and a run that is not prepared."""
    toy = make_toy(tmp_path_factory.mktemp("toy"))
    root = toy / "sweep"
    first = trained(toy, root / "joint" / "seed-3", ["training.steps=4"])
    shutil.copytree(first, root / "joint" / "seed-10")
    file = root / "joint" / "seed-10" / "recipe.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "seed": 10}))
    (root / "joint" / "seed-11").mkdir()
    write_json(root / "sweep.json", {"variants": ["joint", "late"], "baseline": "joint"})
    return root


def test_runs_are_found_in_order_of_their_seeds(sweep: Path, tmp_path: Path) -> None:
    runs = [sweep / "joint" / "seed-3", sweep / "joint" / "seed-10"]
    assert runs_below(sweep) == runs and runs_below(runs[0]) == [runs[0]]
    assert all_runs([sweep, tmp_path]) == [*runs, tmp_path]
    write_json(tmp_path / "sweep.json", {"variants": ["joint"], "baseline": None})
    with pytest.raises(RunError, match="none of the runs of this sweep is prepared"):
        runs_below(tmp_path)


def test_seeds_are_joined(sweep: Path) -> None:
    (subject,) = over_seeds(subjects_of(load_runs([sweep])))
    assert [s.run.recipe.seed for s in subject.seeds] == [3, 10]


def test_evaluate_and_geometry_take_a_sweep(sweep: Path, tmp_path: Path) -> None:
    done = runner.invoke(app, ["evaluate", str(sweep), "--beam", "1"])
    assert done.exit_code == 0, done.output
    options = ["--strings", "3", "--granularity", "whole_model"]
    done = runner.invoke(app, ["geometry", str(sweep), *options])
    assert done.exit_code == 0, done.output
    for run in runs_below(sweep):
        assert (run / "scores.json").exists()
        assert (run / "geometry" / "measured" / "measured.json").exists()
    assert done.output.count("are too few to test anything") == 1  # of the mean of the seeds, once
    done = runner.invoke(app, ["geometry", str(sweep), "--out", str(tmp_path / "g")])
    assert isinstance(done.exception, RunError) and "their own folders" in str(done.exception)
