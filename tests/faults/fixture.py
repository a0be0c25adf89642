"""Write tests/fixtures anew: runs of this version, stopped at step 8, and what they log to the end.

    python -m tests.faults.fixture

Only when the numbers of training are meant to change, which the commit then says. The runs that are
there stay: they are what users of that version have.
"""

from __future__ import annotations

import shutil
import signal
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.faults.bench import RUN, SETS, copy, in_child, make_toy, train, trainer

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSION = "0.1"
STEPS = 12
SETS_OF = {"translation": SETS, "tagging": [], "encoder": []}
"""Kinds of runs, and what is said beside the recipe of each."""


def old_run(kind: str, folder: Path) -> Path:
    """Lay the run of the first version, stopped at step 8, into ``folder``: what it returns."""
    with tarfile.open(_archive(kind)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"{_stem(kind)}-{VERSION}"


def golden(kind: str) -> Path:
    """The metrics of that run if nothing stops it."""
    return FIXTURES / ("golden.jsonl" if kind == "translation" else f"golden-{kind}.jsonl")


def make(kind: str, folder: Path) -> None:
    """The text and the recipe of a toy run of a kind, which is to be ``folder/run``."""
    if kind == "translation":
        make_toy(folder)
        return
    from tests.tagging.helpers import make_toy as make_tagged  # needs an extra

    tree = make_tagged(folder, n=16)
    if kind == "encoder":
        data = {"tagged": tree["data"]["languages"], "max_tokens": 24}
        tree = {"job": kind, "name": kind, "seed": 3, "device": "cpu", "data": data}
        tree["vocabulary"] = {"size": 110}
        tree["model"] = {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24, "max_position_embeddings": 32,
        }  # fmt: skip
        tree["batches"] = {"tokens": 60, "pool": 3}
        tree["training"] = {
            "steps": STEPS, "warmup": 4, "learning_rate": 0.01, "validate_every": 4,
            "checkpoint_every": 4, "log_every": 3, "precision": "fp32",
        }  # fmt: skip
    tree["method"] = {"name": "gradvac", "beta": 0.2, "record_every": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def stop_at_8(sets: list[str]) -> int:
    """Train to step 8 and stop, as by SIGTERM."""
    t = trainer(sets)
    step = t.train_step

    def stopping() -> int:
        if t.step == 7:
            t.stop.number = signal.SIGTERM
        return step()

    t.train_step = stopping
    return t.train()


def main() -> None:
    for kind, sets in SETS_OF.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / f"{_stem(kind)}-{VERSION}"
            if _archive(kind).exists():  # its text: `tokenizers` trains no two tokenizers alike
                shutil.rmtree(old_run(kind, Path(name)) / RUN)
            else:
                folder.mkdir()
                make(kind, folder)
            whole = copy(folder, Path(name) / "whole")
            assert in_child(whole, lambda sets=sets: train(sets)) == 0
            shutil.copy(whole / RUN / "metrics.jsonl", golden(kind))
            if not _archive(kind).exists():
                _write(kind, folder, lambda sets=sets: stop_at_8(sets))
            print(f"{_archive(kind).stat().st_size:,} bytes, {golden(kind).stat().st_size:,} bytes")


def _write(kind: str, folder: Path, stop: Callable[[], int]) -> None:
    assert in_child(folder, stop) == 128 + signal.SIGTERM
    for older in sorted((folder / RUN / "checkpoints").glob("step-*"))[:-1]:
        shutil.rmtree(older)
    recipe = folder / RUN / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(folder), "/corpora"))
    with tarfile.open(_archive(kind), "w:xz", preset=9) as archive:
        archive.add(folder, folder.name, filter=_nobody)


def _stem(kind: str) -> str:
    return "run" if kind == "translation" else kind


def _archive(kind: str) -> Path:
    return FIXTURES / f"{_stem(kind)}-{VERSION}.tar.xz"


def _nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
