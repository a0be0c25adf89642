"""Verbs to begin with: demo, new, doctor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gradvac.cli.options import asked, console, finite, say

app = typer.Typer()
STARTED = time.perf_counter()  # imports take seconds, which are a part of the demo's minutes


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of runs and report.")] = Path("runs/demo"),
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of each of the two runs. Default: what fits the minutes."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0, callback=finite, help="Time of the whole demo, about.")
    ] = 4.0,
    sentences: Annotated[
        int, typer.Option(min=1, help="Test sentences scored per direction.")
    ] = 100,
) -> None:
    """Train the shipped model further, jointly and with GradVac; score, compare, report.

    The number of steps follows from the speed of this machine and is recorded in OUT/demo.json:
    the same command resumes with it, and --steps repeats it elsewhere.

    Example: gradvac demo --out runs/demo
    """
    from gradvac.experiment.sweep.demo import run_demo

    run_demo(
        out, steps=steps, minutes=minutes, sentences=sentences, console=console, started=STARTED
    )


@app.command()
def new(
    text: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders, files or archives of parallel text.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write: corpus and recipe.")
    ] = None,
    directions: Annotated[
        str | None, typer.Option(help="both, to_en or from_en. Default: both.")
    ] = None,
    languages: Annotated[
        str | None, typer.Option(help="Columns of tables without a header, as in 'en fr'.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Check that columns have their language and that rows match.")
    ] = True,
) -> None:
    """Write a commented recipe for your own text, with what was found in it.

    Languages, scripts, sizes, resource levels, overlap of test and training text. The text is read
    as by gradvac corpus import. On a terminal, what is not given is asked for.

    Example: gradvac new my-text --out my-project
    """
    from gradvac.corpus.importing.build import Options
    from gradvac.corpus.starting import new_project

    given = text or [Path(asked("text", "Folder of text"))]
    folder = out or Path(asked("--out", "Folder to write"))
    ways = directions or asked("--directions", "Directions: both, to_en, from_en", "both")
    named = tuple((languages or "").replace(",", " ").split())
    say(f"recipe: {new_project(given, folder, ways, Options(languages=named, check=check), say)}")


@app.command()
def doctor() -> None:
    """Say what is installed, which devices there are, what is fast here, and what is missing.

    Example: gradvac doctor
    """
    from gradvac.experiment.training.doctor import examine

    for line in examine():
        say(line)
