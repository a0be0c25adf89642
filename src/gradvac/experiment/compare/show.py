"""`gradvac compare`: the comparison, and its front, in the terminal and as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from gradvac.experiment.compare import comparison_view, front_view
from gradvac.experiment.compare.comet import read_comet
from gradvac.experiment.compare.compare import chosen_test, compare
from gradvac.experiment.compare.files import write
from gradvac.experiment.compare.front import Point
from gradvac.experiment.compare.fronts import fronts


@dataclass(frozen=True)
class FrontAsked:
    """The arguments of `fronts`, and the folder for its pictures."""

    sweep: Sequence[str]
    axes: str | None
    reference: Point | None
    pictures: Path


def show_comparison(
    folders: Sequence[Path],
    *,
    baseline: str | None,
    test: str,
    samples: int,
    comet: Path | None,
    every_direction: bool,
    out: Sequence[Path],
    front: FrontAsked | None,
    console: Console,
) -> None:
    """Compare runs, print the tables, and write them to the files of ``out``.

    ``test`` is the name of a test or "none", ``comet`` a folder scored by COMET. Raises RecipeError
    and RunError as `compare`, `fronts` and `write` do.
    """
    say = lambda line: console.print(line, soft_wrap=True)
    model, scores = read_comet(comet) if comet else ("", {})
    found = compare(
        folders, baseline=baseline, test=chosen_test(test), samples=samples, comet=scores
    )
    if model:
        found.signatures["COMET"] = model
    for table in comparison_view.terminal(found, every_direction, console.width):
        console.print(table)
    for line in comparison_view.notes(found):
        say(line)
    for file in out:
        write(found, file, every_direction)
    if front is None:
        return
    made = fronts(found, front.sweep, front.axes, front.reference)
    for one in made:
        console.print(front_view.table(one).terminal(whole=("verdict",)))
    for line in front_view.notes(made):
        say(line)
    for file in out:
        front_view.add_to(file, made)
    front_view.write_pictures(made, front.pictures, say)
