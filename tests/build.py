"""What tests train: a corpus of toy languages, a recipe of a second, the trainer of a run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.kind import job_of
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.train import Trainer

QUIET = Console(quiet=True)

NOUNS = "file page table image sheet frame index style border column header footer".split()
VERBS = "open close save print insert delete select format search replace".split()


def toy_rows() -> list[dict[str, str]]:
    """English sentences with two made-up translations, the second for a quarter of them."""
    rows = []
    for n, noun in enumerate(NOUNS):
        for v, verb in enumerate(VERBS):
            english = f"{verb} the {noun}"
            aa = f"{noun[::-1]} {verb[::-1]}a"
            rows.append({"en": english, "fr": aa})
            if (n + v) % 4 == 0:
                rows[-1]["ne"] = f"{verb.upper()} ko {noun.upper()}"
    return rows


def write_tsv(path: Path, rows: list[dict[str, str]]) -> None:
    codes = ["en", "fr", "ne"]
    lines = ["\t".join(codes)] + ["\t".join(r.get(c, "") for c in codes) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def toy_recipe(**method: Any) -> dict[str, Any]:
    return {
        "name": "toy",
        "seed": 3,
        "device": "cpu",
        "data": {
            "train": [{"path": "train.tsv"}],
            "valid": [{"path": "valid.tsv"}],
            "test": [{"path": "test.tsv"}],
            "directions": "to_en",
            "levels": [50, 100],
        },
        "vocabulary": {"size": 330},
        "model": {
            "preset": "tiny",
            "d_model": 16,
            "d_ffn": 32,
            "heads": 2,
            "encoder_layers": 1,
            "decoder_layers": 1,
        },
        "batches": {"tokens": 60, "pool": 4},
        "training": {
            "steps": 12,
            "warmup": 4,
            "precision": "fp32",
            "learning_rate": 0.01,
            "validate_every": 4,
            "checkpoint_every": 4,
            "log_every": 3,
        },
        "method": {"name": "joint", "record_every": 2, **method},
        "search": {"beam": 2},
    }


def make_toy(folder: Path, recipe: Mapping[str, Any] | None = None) -> Path:
    """Fill a folder with train.tsv, valid.tsv, test.tsv and recipe.yaml; returns it."""
    rows = toy_rows()
    complete = [r for r in rows if "ne" in r]
    held = complete[::3]
    write_tsv(folder / "train.tsv", [r for r in rows if r not in held])
    write_tsv(folder / "valid.tsv", held[::2])
    write_tsv(folder / "test.tsv", held[1::2])
    write_recipe(folder, recipe or toy_recipe())
    return folder


def write_recipe(folder: Path, tree: Mapping[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def trainer(
    folder: Path, run: Path, changes: Sequence[str] = (), console: Console = QUIET
) -> Trainer:
    """The trainer of the recipe in ``folder``, of any kind, with the run prepared in ``run``."""
    prepare(load_recipe(folder / "recipe.yaml", list(changes)), run, lambda text: None)
    return Trainer(job_of(run), Display(console))


def trained(folder: Path, run: Path, changes: Sequence[str] = ()) -> Path:
    """A run of the recipe in ``folder``, trained to its end; returns ``run``."""
    assert trainer(folder, run, changes).train() == 0
    return run


def write_json(file: Path, tree: Any) -> None:
    file.write_text(json.dumps(tree), encoding="utf-8")


def write_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")
