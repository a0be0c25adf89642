"""The command line trains with a method of an installed package, and of a module of one's own."""

import os
import subprocess
import sys

import pytest

from gradvac.experiment.view.run_view import load_runs
from gradvac.geometry.record import GramRecord
from tests.methods.test_registry import SOURCE, install


@pytest.mark.parametrize("way", ["entry point", "module"])
def test_the_command_finds_it_and_others_read_the_run_without_it(toy, tmp_path, way):
    site, run = tmp_path / "site", tmp_path / "run"
    site.mkdir()
    sets = ["method.name=halves", "method.options={factor: 0.25}", "training.steps=3"]
    if way == "module":
        text = SOURCE.replace("class Halves", '@register("halves")\nclass Halves')
        (site / "mine.py").write_text("from gradvac.methods import register\n" + text)
        sets.append("method.module=mine")
    else:
        install(site, "one_package", halves="one_package:Halves")
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "gradvac", "train", toy / "recipe.yaml", "--run", run]
        + [part for change in sets for part in ("--set", change)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((frame.weights == 0.25).all() for frame in GramRecord(run / "geometry"))
    (view,) = load_runs([run])
    assert view.method == "halves"
    assert not {"mine", "one_package"} & set(sys.modules)
