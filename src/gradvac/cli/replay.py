"""`gradvac replay`: a step that was not finite, once more."""

from __future__ import annotations

from typing import Annotated

import typer

from gradvac.cli.options import RunFolder, say

app = typer.Typer()


@app.command()
def replay(
    run: RunFolder,
    step: Annotated[
        int | None, typer.Argument(help="A step that was kept. Default: the first.")
    ] = None,
) -> None:
    """Repeat a step with a loss or gradient that was not finite, and say where it begins.

    Says which task, module and parameter group is the first that is not finite, and on which
    sentences. Exit code 0 if the step fails again, 1 if it does not.

    Example: gradvac replay runs/gradvac 512
    """
    from gradvac.experiment.training.replay import replay_run

    if not replay_run(run, step, say):
        raise typer.Exit(1)
