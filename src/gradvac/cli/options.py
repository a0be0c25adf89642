"""Common parts of the verbs: printing, and options with the same meaning everywhere."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gradvac.terminal import Terminal

console = Terminal()


def say(text: str) -> None:
    """Print a line unchanged, without wrapping."""
    console.print(text, soft_wrap=True)


class Verbs(TyperGroup):
    """All verbs. Ctrl-C ends one at once, with a line that says how to go on, and exit code 130."""

    resumed = frozenset({"train", "sweep", "tune", "tag", "pretrain-encoder", "geometry", "demo"})

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            again = "what is written is kept, and the same command goes on"
            if ctx.invoked_subcommand not in self.resumed:
                again = "the same command starts again"
            typer.echo(f"\nstopped; {again}", err=True)
            raise typer.Exit(130) from None


def asked(option: str, question: str, default: str | None = None) -> str:
    """The answer to a question on a terminal; elsewhere the default, or an error without one."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return str(typer.prompt(question, default=default))
    if default is None:
        raise typer.BadParameter("not given, and there is no terminal to ask", param_hint=option)
    return default


def finite(value: float | None) -> float | None:
    """Return the number, or reject NaN and infinity, which pass every bound of an option."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def placed(folder: Path | None) -> Path | None:
    """The folder given on the command line; "shipped:start" is in the package."""
    if folder is None or not str(folder).startswith("shipped:"):
        return folder
    from gradvac.experiment.recipe.paths import resolve

    return resolve(str(folder))


RunFolder = Annotated[
    Path,
    typer.Argument(
        help='A run folder; to export, "shipped:start" too.', show_default=False, callback=placed
    ),
]
RecipePath = Annotated[Path, typer.Argument(help="A recipe, a YAML file.", show_default=False)]
Size = Annotated[
    str | None, typer.Option(help="One of the recipe's sizes: smoke, small, paper in ours.")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key: method.name=pcgrad.")
]
Beam = Annotated[
    int | None, typer.Option(min=1, help="Beam size; 1 is greedy. Default: the recipe's.")
]
CheckpointName = Annotated[str, typer.Option(help="best, last, or a step number.")]
