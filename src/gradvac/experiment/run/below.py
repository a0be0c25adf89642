"""The runs of a sweep's folder, where verbs take one in place of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gradvac.errors import RunError
from gradvac.experiment.recipe.paths import RECIPE
from gradvac.experiment.run.contents import Sweep
from gradvac.reading import read_json

DESCRIPTION = "sweep.json"


def runs_of(sweep: Path) -> Iterator[tuple[str, Path]]:
    """Variant and folder of every started run of a sweep, in the order of the recipe."""
    tree = read_json(sweep / DESCRIPTION, Sweep)
    for variant in tree["variants"]:
        for run in sorted((sweep / variant).glob("seed-*"), key=_seed):
            yield variant, run


def _seed(run: Path) -> int:
    number = run.name.removeprefix("seed-")
    return int(number) if number.isdecimal() else -1


def runs_below(folder: Path) -> list[Path]:
    """The prepared runs of a sweep's folder; of any other folder itself.

    RunError for a sweep without a prepared run.
    """
    if not (folder / DESCRIPTION).exists():
        return [folder]
    found = [run for _, run in runs_of(folder) if (run / RECIPE).exists()]
    if not found:
        raise RunError(f"{folder}: none of the runs of this sweep is prepared yet")
    return found


def all_runs(folders: Iterable[Path]) -> list[Path]:
    """The runs of all folders, those of sweeps included."""
    return [run for folder in folders for run in runs_below(folder)]
