"""A run on toy languages, processes that die in it, and what it must leave behind."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from gradvac.errors import GradvacError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.train import Trainer
from tests import build

SETS = ["method.name=gradvac", "method.beta=0.2"]
RUN, SAID = Path("run"), Path("said.txt")


def make_toy(folder: Path) -> None:
    """The corpus and the recipe, read by the prepared run ``folder/run``."""
    recipe = build.toy_recipe()
    recipe["model"]["d_model"] = 12  # the fixture below 200 kB
    build.make_toy(folder, recipe)
    prepare(load_recipe(folder / "recipe.yaml", SETS), folder / RUN, lambda text: None)


def trainer(sets: list[str] = SETS) -> Trainer:
    """A trainer of the run in the working directory; what it says goes to ``said.txt``."""
    console = Console(file=SAID.open("a"), highlight=False, width=1000)
    return build.trainer(Path(), RUN, sets, console)


def train(sets: list[str] = SETS) -> int:
    return trainer(sets).train()


def in_child(folder: Path, action: Callable[[], int | None]) -> int:
    """Exit code of ``action`` in a process of its own, in ``folder``; -N if killed by signal N.

    Forked, so that nothing is imported again; with one thread, since those of OpenMP stay behind.
    """
    child = start(folder, action)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(folder: Path, action: Callable[[], int | None]) -> int:
    """The id of a process that does ``action`` in ``folder``."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        os.chdir(folder)
        code = action() or 0
    except GradvacError as e:
        SAID.open("a").write(f"error: {e}\n")
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def said(folder: Path) -> str:
    return (folder / SAID).read_text()


def everything(folder: Path) -> dict[str, bytes]:
    """All that a run leaves behind that must not depend on what happened to it."""
    run = folder / RUN
    newest = list_checkpoints(run / "checkpoints")[-1]
    files = [*sorted(newest.iterdir()), run / "metrics.jsonl", run / "best" / "model.safetensors"]
    files += [*sorted((run / "geometry").glob("*")), run / "done.json"]
    return {f.name: f.read_bytes() for f in files} | {"at": newest.name.encode()}


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))
