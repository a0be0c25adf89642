"""A recipe trained by torchrun on two ranks is the run that one process makes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.run.checkpoint import list_checkpoints, load_checkpoint, load_tensors
from gradvac.experiment.training.measuring import curvature_lines
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.together import joined
from gradvac.experiment.translation.evaluate import evaluate_run
from gradvac.experiment.translation.geometry import measure_run
from gradvac.experiment.translation.job import TranslationJob
from gradvac.experiment.translation.shared_job import check_shard
from gradvac.geometry.record import GramRecord
from tests.build import make_toy, trained
from tests.experiment.training.ranks.resumes import END, HALF, SIZES
from tests.experiment.training.ranks.verbs import JOINT, METHOD, SHARD, STOP
from tests.turns import by_turns

ROOT = Path(__file__).parents[4]
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


@pytest.mark.parametrize("how", by_turns(["gradvac", "gradvac in shards", "joint"]))
def test_two_ranks_train_the_model_of_one_and_go_on_after_one_was_killed(tmp_path, how):
    """Or after all of them were asked to stop, which saves the step they are in."""
    toy = make_toy(tmp_path)
    method, _, shards = how.partition(" in ")
    settings = [*SETTINGS, f"method.name={method}", *([SHARD] if shards else [])]
    if method == "gradvac":
        assert "resuming at step" in two_ranks(toy, settings, kill_one)
    else:
        said = two_ranks(toy, settings, stop_all)
        (stopped,) = re.findall(r"stopped at step (\d+); the same command resumes", said)
        saved = sorted(folder.name for folder in toy.glob("two/checkpoints/step-*"))
        assert saved[-1] == f"step-{int(stopped):08}" and int(stopped) < 12
        assert f"resuming at step {stopped} of 12" in two_ranks(toy, settings)

    alone(toy, "one", settings)
    last = [toy / name / "checkpoints" / "step-00000012" for name in ("one", "two")]
    same_model(*(folder / "model.safetensors" for folder in last))
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


def alone(folder: Path, name: str, settings: list[str]) -> Path:
    """The run of one process, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trained(folder, folder / name, settings)
    torch.set_num_threads(before)
    return folder / name / "best" / "model.safetensors"


def same_model(one: Path, other: Path) -> None:
    mine, theirs = load_tensors(one), load_tensors(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        # Without a gradient but for rounding, of which Adam makes steps.
        if "bias" not in name:
            assert float((theirs[name] - value).norm() / value.norm()) < 1e-4, name


def torchrun(processes: int, module: str, folder: Path) -> None:
    """Start processes of a module of these tests, and see all of them end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        f"--nproc-per-node={processes}",
        "-m",
        f"tests.experiment.training.ranks.{module}",
        str(folder),
    ]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory):
    folder = make_toy(tmp_path_factory.mktemp("shards"))
    torchrun(2, "verbs", folder)
    return folder


def test_any_number_of_ranks_goes_on_from_the_shards_of_any_other(tmp_path):
    folder = make_toy(tmp_path)
    torchrun(3, "resumes", folder)
    last = lambda name: folder / name / "checkpoints" / f"step-{END:08d}" / "model.safetensors"
    for size, again in product(SIZES, SIZES):
        saved = folder / f"{size}" / "checkpoints"
        assert [each.name for each in saved.iterdir()] == [f"step-{HALF:08d}"]
        assert (saved / f"step-{HALF:08d}" / "shards").is_dir() == (size > 1)
        same_model(last("alone"), last(f"{size}-{again}"))


def test_joint_training_in_shards_is_that_of_one_process_to_the_averaged_end(in_shards):
    one = alone(in_shards, "one-joint", [*JOINT, SHARD])
    same_model(one, in_shards / "joint" / "best" / "model.safetensors")
    lines = [(in_shards / n / "metrics.jsonl").read_text() for n in ("one-joint", "joint")]
    for mine, theirs in zip(*(map(json.loads, text.splitlines()) for text in lines), strict=True):
        assert (mine["kind"], mine["step"]) == (theirs["kind"], theirs["step"])
        for key in {"loss", "nll", "gradient_norm"} & mine.keys():
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4), key


def test_hosts_exchange_one_message_a_step_and_one_for_the_passes_of_shards(in_shards):
    for rank in range(2):
        joint, method = (
            json.loads((in_shards / f"{name}-messages-{rank}").read_text())
            for name in ("joint", "method")
        )
        assert set(joint) == {1}
        # One more in the steps that are checked, in which a rank does something new.
        assert set(method) <= {2, 3} and method.count(2) > method.count(3)


def test_two_ranks_score_and_measure_what_one_does(in_shards):
    run = in_shards / "method"
    found = {name: (run / name).read_bytes() for name in ("scores.json", "translations.jsonl")}
    evaluate_run(run, checkpoint="last", say=print)
    assert {name: (run / name).read_bytes() for name in found} == found
    measure_run(run, in_shards / "alone", curvature_strings=2)
    ours, theirs = (list(GramRecord(in_shards / n)) for n in ("alone", "measured"))
    assert [f.step for f in ours] == [f.step for f in theirs] != []
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.tasks, mine.groups) == (other.tasks, other.groups)
        scale = np.abs(mine.gram).max()
        np.testing.assert_allclose(other.gram, mine.gram, rtol=1e-5, atol=1e-7 * scale)
    curves = [curvature_lines(in_shards / n) for n in ("alone", "measured")]
    assert len(curves[0]) > 1
    for mine, other in zip(*curves, strict=True):
        assert (mine["step"], mine["group"]) == (other["step"], other["group"])
        assert other["value"] == pytest.approx(mine["value"], rel=1e-4)


def test_one_process_goes_on_where_two_stopped_in_shards(in_shards):
    saved = list_checkpoints(in_shards / "method" / "checkpoints")[-1]
    assert saved.name == f"step-{STOP:08d}" and (saved / "shards").is_dir()
    assert not (saved / "model.safetensors").exists()
    copy = shutil.copytree(saved, in_shards / "copy" / saved.name)
    method = [*METHOD, SHARD]
    same_model(alone(in_shards, "one-method", method), alone(in_shards, "method", method))
    damaged = next((copy / "shards").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match=rf"{damaged.name}: damaged: its SHA-256"):
        load_checkpoint(copy)
    damaged.unlink()
    with pytest.raises(RunError, match=rf"{damaged.name}: cannot be read"):
        load_checkpoint(copy)


def two_alone(folder: Path, plight: str) -> list[subprocess.Popen]:
    """Two ranks that no launcher looks after."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
    }
    command = [sys.executable, "-m", "tests.experiment.training.ranks.plights", str(folder), plight]
    start = lambda rank: subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | {"RANK": str(rank)},
        stderr=subprocess.PIPE,
        text=True,
    )
    return [start(rank) for rank in range(2)]


GONE = "RankError: rank 1 is gone (seen by rank 0); start all ranks again from the last checkpoint"


def test_ranks_wait_for_a_long_preparation_and_name_who_died_while_shards_were_written(tmp_path):
    folder = make_toy(tmp_path)
    both = two_alone(folder, "killed")
    said = [rank.communicate(timeout=300)[1] for rank in both]
    assert [rank.returncode for rank in both] == [0, -signal.SIGKILL], said
    assert (folder / "said-0").read_text() == GONE


def test_a_rank_that_hangs_is_named_though_nothing_raises(tmp_path):
    first, stopped = two_alone(make_toy(tmp_path), "stopped")
    try:
        said = first.communicate(timeout=300)[1]
    finally:
        stopped.kill()
        stopped.communicate()
    assert first.returncode == 2 and said.splitlines()[-1] == GONE


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0"])
def test_one_gpu_for_all_ranks_is_refused(device):
    says = f"device: '{device}' on several ranks would put all"
    with pytest.raises(RecipeError, match=says), joined(device):
        pass


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "method.engine=per_task",
            "training.shard: true with method.engine: per_task.*single_pass",
        ),
        ("batches.sampling=multidds_s", "training.shard: true with batches.sampling: multidds_s"),
        (
            "method={name: cats, options: {gradients: validation}}",
            "training.shard: true with method.options.gradients: validation",
        ),
    ],
)
def test_what_shards_cannot_be_is_refused(tmp_path, setting, says):
    settings = ["method.name=gradvac", SHARD, setting]
    with pytest.raises(RecipeError, match=says):
        check_shard(load_recipe(make_toy(tmp_path) / "recipe.yaml", settings))


def test_shards_need_a_torch_that_writes_them(tmp_path, monkeypatch):
    recipe = load_recipe(make_toy(tmp_path) / "recipe.yaml", [SHARD])
    for version, fits in (
        ("2.6.0", False),
        ("2.8.1+cpu", False),
        ("2.9.0", True),
        ("2.13.0", True),
    ):
        monkeypatch.setattr(torch, "__version__", version)
        if fits:
            check_shard(recipe)
            continue
        says = rf"training.shard: true needs torch 2.9 or newer, .* found {re.escape(version)}"
        with pytest.raises(RecipeError, match=says):
            check_shard(recipe)


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
