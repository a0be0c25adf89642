"""The verbs about parallel text: `gradvac corpus ...`."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Build, import and clean parallel text.",
    no_args_is_help=True,
)
