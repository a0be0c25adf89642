"""A recipe trained by torchrun on two ranks is the run that one process makes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


def two_ranks(toy: Path, settings: list[str], at_first: Callable[[int], None] | None = None) -> str:
    """What two ranks say; ``at_first``, given the launcher, acts after the first checkpoint."""
    with on_two_ranks(toy, *settings) as run:
        try:
            while at_first and run.poll() is None:
                if list(toy.glob("two/checkpoints/step-*")):
                    at_first(run.pid)
                    break
                time.sleep(0.05)
            said, _ = run.communicate(timeout=300)
        finally:
            run.terminate()
    if at_first is not stop_all:
        assert run.returncode == 0, said
    return said


def kill_one(launcher: int) -> None:
    os.kill(ranks_of(launcher)[1], signal.SIGKILL)


def stop_all(launcher: int) -> None:
    """As a scheduler does: to all processes, of which the launcher hands it on once more."""
    for process in (*ranks_of(launcher), launcher):
        os.kill(process, signal.SIGTERM)


@pytest.mark.parametrize("method", ["gradvac", "joint"])
def test_two_ranks_train_the_model_of_one_and_go_on_after_one_was_killed(tmp_path, method):
    """Or after all of them were asked to stop, which saves the step they are in."""
    toy = make_toy(tmp_path)
    settings = [*SETTINGS, f"method.name={method}"]
    if method == "gradvac":
        assert "resuming at step" in two_ranks(toy, settings, kill_one)
    else:
        said = two_ranks(toy, settings, stop_all)
        (stopped,) = re.findall(r"stopped at step (\d+); the same command resumes", said)
        saved = sorted(folder.name for folder in toy.glob("two/checkpoints/step-*"))
        assert saved[-1] == f"step-{int(stopped):08}" and int(stopped) < 12
        assert f"resuming at step {stopped} of 12" in two_ranks(toy, settings)

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
