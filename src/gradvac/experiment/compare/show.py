"""`gradvac compare`: the comparison, and its front, in the terminal and as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from gradvac.errors import RunError
from gradvac.experiment.compare import comparison_view, front_view
from gradvac.experiment.compare.comet import read_comet
from gradvac.experiment.compare.compare import Comparison, chosen_test, compare
from gradvac.experiment.compare.files import write
from gradvac.experiment.compare.front import Point
from gradvac.experiment.compare.fronts import fronts
from gradvac.experiment.compare.results import test_sets

Say = Callable[[str], None]


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
    sets: Sequence[str] = (),
) -> None:
    """Compare runs on each test set, print the tables, and write them to the files of ``out``.

    ``test`` is the name of a significance test or "none", ``comet`` a folder scored by COMET,
    ``sets`` the names of test sets, empty for all. The files of several sets have their names.
    Raises RecipeError and RunError as `compare`, `fronts` and `write` do.
    """
    say = lambda line: console.print(line, soft_wrap=True)
    model, scores = read_comet(comet) if comet else ("", {})
    known = test_sets(folders)
    if unknown := [name for name in sets if name not in known]:
        there = ", ".join(filter(None, known)) or "none with a name"
        raise RunError(f"--test-set {unknown[0]}: the test sets of these runs: {there}")
    for number, name in enumerate(known or [""]):
        if sets and name not in sets:
            continue
        found = compare(
            folders,
            baseline=baseline,
            test=chosen_test(test),
            samples=samples,
            comet=None if number else scores,  # COMET scores the first test set
            test_set=name,
        )
        if model and not number:
            found.signatures["COMET"] = model
        part = name if len(known) > 1 else ""
        if part:
            console.rule(f"test set {part}")
        files = [_of_set(file, part) for file in out]
        _show(found, every_direction, files, console, say)
        if front is not None:
            _show_fronts(found, front, files, _of_set(front.pictures, part), console, say)


def _of_set(file: Path, name: str) -> Path:
    """The file with the name of a test set at the end of its own."""
    return file.with_name(f"{file.stem}-{name}{file.suffix}") if name else file


def _show(
    found: Comparison, every_direction: bool, out: Sequence[Path], console: Console, say: Say
) -> None:
    for table in comparison_view.terminal(found, every_direction, console.width):
        console.print(table)
    for line in comparison_view.notes(found):
        say(line)
    for file in out:
        write(found, file, every_direction)


def _show_fronts(
    found: Comparison,
    asked: FrontAsked,
    out: Sequence[Path],
    pictures: Path,
    console: Console,
    say: Say,
) -> None:
    made = fronts(found, asked.sweep, asked.axes, asked.reference)
    for one in made:
        console.print(front_view.table(one).terminal(whole=("verdict",)))
    for line in front_view.notes(made):
        say(line)
    for file in out:
        front_view.add_to(file, made)
    front_view.write_pictures(made, pictures, say)
