"""Two ranks train by the Trainer and by Accelerate as one does, and as the ordinary ones do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from tests.integrations import tiny
from tests.integrations.ranks.cases import (
    AS_ONE,
    PAIRS,
    by_accelerate,
    parameters,
    sharded_adapters,
    tagger,
    trained,
)

ROOT = Path(__file__).parents[3]
EXACT = 1e-10
ROUNDED = 1e-5  # where transformers computes a loss in float32


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.integrations.ranks.worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder)],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [worker.communicate(timeout=900)[1] for worker in workers]
    files = [folder / f"{rank}.pt" for rank in range(2)]
    assert all(file.exists() for file in files), "\n".join(errors)
    return [torch.load(file, weights_only=False) for file in files]


def relative(a, b, start):
    """How far apart two ends are, beside the way from the start."""
    return float((a - b).norm() / (b - start).norm())


@pytest.mark.parametrize("name", AS_ONE)
def test_two_ranks_are_one_with_the_double_batch(found, name, tmp_path):
    case = AS_ONE[name]
    one, two = trained(case, tmp_path, 1, 0), found[0][name]
    assert relative(two["parameters"], one["parameters"], parameters(tiny.built(case.make))) < EXACT
    assert torch.equal(two["parameters"], found[1][name]["parameters"])
    assert len(two["log"]) == len(one["log"]) >= 2
    for ours, alone in zip(two["log"], one["log"], strict=True):
        assert ours == pytest.approx(alone, rel=ROUNDED)
    assert any("loss_fr" in entry and entry["conflicts"] > 0 for entry in one["log"])
    alone = {k: v for k, v in one["evaluated"].items() if "loss" in k}
    assert len(alone) == 4  # of three tasks, and all
    ours = {k: v for k, v in two["evaluated"].items() if "loss" in k}
    assert {k: v for k, v in ours.items() if k != "eval_loss"} == pytest.approx(
        {k: v for k, v in alone.items() if k != "eval_loss"}, rel=ROUNDED
    )
    assert two["saved"]


@pytest.mark.parametrize("name", PAIRS)
def test_joint_on_two_ranks_is_the_ordinary_trainer(found, name):
    plain, ours = found[0][name]
    start = parameters(tiny.built(PAIRS[name].make))
    assert relative(ours["parameters"], plain["parameters"], start) < ROUNDED
    for one, other in zip(ours["log"], plain["log"], strict=True):
        assert {key: one[key] for key in other} == pytest.approx(other, rel=ROUNDED)


def test_joint_on_two_ranks_is_the_backward_of_accelerate(found):
    plain, ours = found[0]["accelerate"]
    start = parameters(tiny.built(tagger))
    assert relative(ours, plain, start) < EXACT
    assert relative(ours, by_accelerate(1, ours=False), start) < EXACT  # one with the double batch


@pytest.mark.parametrize("model", ["trl", "trl at load"])
def test_joint_on_two_ranks_is_the_ordinary_trainer_of_trl(found, model):
    (plain, expected), (ours, log) = found[0][model]
    assert float((ours - plain).norm() / plain.norm()) < ROUNDED
    for one, other in zip(log, expected, strict=True):
        assert {key: one[key] for key in other} == pytest.approx(other, rel=1e-4)


def test_sharded_adapters_on_two_ranks_are_whole_ones_on_one(found):
    alone = sharded_adapters(1, 0)
    model = tiny.adapted(tiny.llama, LoraConfig(r=2, target_modules="all-linear"))
    start = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    assert relative(found[0]["sharded"], alone, start) < EXACT
    assert torch.equal(found[0]["sharded"], found[1]["sharded"])


@pytest.mark.parametrize("what", ["at load", "adapters"])
def test_joint_on_a_model_sharded_at_load_is_the_ordinary_trainer(found, what):
    plain, ours = (found[0][f"{name} {what}"] for name in ("plain", "joint"))
    start = parameters(tiny.built(tiny.llama))
    if what == "at load":
        assert relative(ours["parameters"], plain["parameters"], start) < ROUNDED
    else:
        assert float((ours["parameters"] - plain["parameters"]).abs().max()) < ROUNDED
    assert not ours["refused"]
    for one, other in zip(ours["log"], plain["log"], strict=True):
        assert {key: one[key] for key in other} == pytest.approx(other, rel=ROUNDED)
    assert torch.equal(found[1][f"joint {what}"]["parameters"], ours["parameters"])


def test_a_model_sharded_at_load_is_trained_as_a_whole_one(found):
    ours, whole = found[0]["gradvac at load"], found[0]["whole"]
    start = parameters(tiny.built(tiny.llama))
    assert relative(ours["parameters"], whole["parameters"], start) < EXACT
    assert relative(ours["saved"], whole["parameters"], start) < EXACT  # the file is whole
    assert not ours["refused"]


def test_what_would_add_gradients_up_in_another_way_is_refused(found):
    for rank in found:
        assert "wraps models in DistributedDataParallel" in rank["refused"]["wrapped"]
        assert "without_wrapper(Accelerator(...))" in rank["refused"]["wrapped"]
        assert '{"dispatch_batches": False}' in rank["refused"]["stream"]
