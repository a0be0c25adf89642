"""A recipe trained by torchrun on two ranks is the run that one process makes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradvac.experiment.display import Display
from gradvac.experiment.prepare import prepare
from gradvac.experiment.recipe import load_recipe
from gradvac.experiment.train import Trainer
from gradvac.experiment.translation_job import TranslationJob
from tests.experiment.toy import make_toy

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "training.steps=12",
    "training.checkpoint_every=2",
    "training.validate_every=4",
    "training.log_every=2",
    "model.dropout=0",
    "batches.tokens=120",
]


def on_two_ranks(toy: Path, *settings: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.2"]
    command += ["-m", "--", "gradvac", "train", "recipe.yaml", "--run", "two"]
    for setting in settings:
        command += ["--set", setting]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    to = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=toy, env=environment, stdout=to, stderr=subprocess.STDOUT, text=True
    )


def ranks_of(launcher: int) -> list[int]:
    """Processes that a process started, by their ids."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(child) for child in children.read_text().split()]


@pytest.mark.parametrize("method", ["gradvac", "joint"])
def test_two_ranks_train_the_model_of_one_and_go_on_after_one_was_killed(tmp_path, method):
    toy = make_toy(tmp_path)
    settings = [*SETTINGS, f"method.name={method}"]
    with on_two_ranks(toy, *settings) as run:
        try:
            if method == "gradvac":
                while not list(toy.glob("two/checkpoints/step-*")) and run.poll() is None:
                    time.sleep(0.05)
                os.kill(ranks_of(run.pid)[1], signal.SIGKILL)
            said, _ = run.communicate(timeout=300)
        finally:
            run.terminate()
    assert run.returncode == 0, said
    assert method == "joint" or "resuming at step" in said

    recipe = load_recipe(toy / "recipe.yaml", settings)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert Trainer(TranslationJob(prepare(recipe, toy / "one", print)), Display()).train() == 0
    torch.set_num_threads(before)
    one, two = (
        load_file(toy / name / "checkpoints" / "step-00000012" / "model.safetensors")
        for name in ("one", "two")
    )
    for name in one:
        # Without a gradient but for rounding, of which Adam makes steps.
        if "bias" not in name:
            assert float((two[name] - one[name]).norm() / one[name].norm()) < 1e-4, name
    lines = [
        [json.loads(line) for line in (toy / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(lines[0]) == len(lines[1]) > 6
    for mine, theirs in zip(*lines, strict=True):
        assert mine["kind"] == theirs["kind"] and mine["step"] == theirs["step"]
        assert mine.get("task_tokens") == theirs.get("task_tokens")
        for key in {"loss", "nll", "gradient_norm", "task_nll"} & mine.keys():
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4), key
    assert (toy / "two" / "done.json").exists()
    assert sorted(f.name for f in (toy / "two").iterdir()) == sorted(
        f.name for f in (toy / "one").iterdir()
    )


def test_stretches_of_a_batch_hold_all_of_it_and_few_tasks(tmp_path):
    recipe = load_recipe(make_toy(tmp_path) / "recipe.yaml", ["batches.tokens=300"])
    plan = TranslationJob(prepare(recipe, tmp_path / "run", print)).balance.plan
    for step in range(8):
        whole = plan(step)
        for world in (2, 3, 5):
            parts = [plan(step, rank, world, together=True) for rank in range(world)]
            assert torch.cat([part.sentence for part in parts]).equal(whole.sentence)
            assert torch.cat([part.task for part in parts]).equal(whole.task)
            assert sum(len(part.present) for part in parts) <= len(whole.present) + world - 1
            longest = int((whole.target_out != 0).sum(1).max())
            for part in parts:
                assert abs(part.tokens - whole.tokens / world) <= 2 * longest
