"""CATS from validation gradients on two ranks is that of one process."""

import json
import os
import subprocess
import sys

import pytest

from tests.build import make_toy, trained
from tests.experiment.training.ranks.test_run import ROOT

OPTIONS = "{gradients: validation, update_every: 2, bound: absolute, rho: 0.5, loss_term: none}"
SETTINGS = ["model.dropout=0", "batches.tokens=120", "training.steps=8", "training.log_every=2"]
SETTINGS += ["method.name=cats", f"method.options={OPTIONS}"]


def test_validation_gradients_are_not_added_up_over_ranks(tmp_path):
    folder = make_toy(tmp_path)
    trained(folder, folder / "one", SETTINGS)
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    recipe, run = str(folder / "recipe.yaml"), str(folder / "two")
    done = subprocess.run(
        [*command, "-m", "--", "gradvac", "train", recipe, "--run", run, *sets],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        [line for text in (folder / name / "metrics.jsonl").read_text().splitlines()
         if (line := json.loads(text))["kind"] == "train"]
        for name in ("one", "two")
    )  # fmt: skip
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert b["method"]["curvature"] == pytest.approx(a["method"]["curvature"], rel=1e-4)
        assert b["task_weights"] == pytest.approx(a["task_weights"], rel=1e-4)
    assert abs(one[-1]["task_weights"]["ne-en"] - 1) > 1e-3
