"""`gradvac doctor`: every extra has a purpose, and bfloat16 is timed only where it is used."""

import importlib.metadata as metadata
import re
import tomllib
from pathlib import Path

import torch

from gradvac.experiment.training import doctor

ROOT = Path(__file__).parents[3]
OWN = {"dev", "docs", "build", "fuzz"}  # for work on the project itself


def test_every_extra_for_users_has_a_purpose():
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(doctor.EXTRAS) == set(tree["project"]["optional-dependencies"]) - OWN


def test_extras_of_extras_are_counted(monkeypatch):
    lines = ['peft>=0.17; extra == "trl"', "gradvac[transformers]; extra == 'trl'"]
    lines += ["torch>=2.6", "accelerate>=1.10 ; extra == 'transformers'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert doctor.extras() == {"trl": ["accelerate", "peft"], "transformers": ["accelerate"]}


def test_a_missing_package_is_named_with_what_it_is_for(monkeypatch):
    monkeypatch.setattr(doctor, "extras", lambda: {"wandb": ["no-such-package", "torch"]})
    said = {line.split(":")[0]: line for line in doctor.examine()}
    assert said["extra wandb"] == (
        "extra wandb: missing no-such-package, needed for training.loggers: [wandb]: "
        "pip install 'gradvac[wandb]'."
    )
    assert said["extra tune"] == "extra tune: complete, for gradvac tune."
    assert f"PyTorch {torch.__version__}" in said["versions"]
    assert all(line.endswith((".", "?")) and "\n" not in line for line in said.values())


def test_nothing_tries_bfloat16_where_the_cpu_has_none(monkeypatch):
    tried: list[torch.dtype] = []
    monkeypatch.setattr(doctor, "_seconds", lambda kind, device: tried.append(kind) or 1.0)
    for there in (False, True):
        monkeypatch.setattr(doctor, "has_bf16", lambda device, there=there: there)
        (line,) = doctor._precision()
        assert bool(re.search("auto means bf16", line)) == there
        assert (torch.bfloat16 in tried) == there


def test_too_many_threads_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "_cores", lambda: 0)
    assert "more than there are cores" in next(doctor._threads())
