"""`gradvac replay`: repeat a step that was not finite."""

from __future__ import annotations

from typing import Annotated

import typer

from gradvac.cli.options import RunFolder, say

app = typer.Typer()


@app.command()
def replay(
    run: RunFolder,
    step: Annotated[int | None, typer.Argument(help="A kept step. Default: the first.")] = None,
) -> None:
    """Repeat a step with a loss or gradient that was not finite, and find the cause.

    Prints the task, module and parameter group that are the first with a value that is not finite,
    and the sentences. Exit code 0 if the step fails again, 1 if it does not.

    Example: gradvac replay runs/gradvac 512
    """
    from gradvac.experiment.training.replay import replay_run

    if not replay_run(run, step, say):
        raise typer.Exit(1)
