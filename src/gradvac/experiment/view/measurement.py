"""`gradvac geometry`: measure a run, or a Hugging Face model, and print the findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gradvac.errors import RunError
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.training.kind import kind_of_run
from gradvac.experiment.training.measuring import measured_folder
from gradvac.experiment.training.together import shared, started_by_torchrun
from gradvac.experiment.translation.geometry_huggingface import is_huggingface, measure_huggingface
from gradvac.experiment.view.numbers import print_numbers


def measure_and_print(
    run: Path,
    out: Path | None,
    rows: Path | None,
    directions: Sequence[str] | None,
    *,
    codes: Sequence[str],
    curvature: int,
    device: str | None,
    console: Console,
    **options: Any,
) -> None:
    """Measure and print; ``options`` are those that `measure_huggingface` and runs share.

    Under torchrun each rank measures a part of a run, and rank 0 prints. Raises RunError for a
    Hugging Face model under torchrun, and the errors of the measurement.
    """
    options |= {"device": device, "console": console}
    if is_huggingface(run):
        if started_by_torchrun():
            raise RunError(
                f"{run}: a Hugging Face model is measured by one process; do not use torchrun"
            )
        folder = measure_huggingface(
            run, rows, directions, out, codes=codes, curvature=curvature, **options
        )
        print_numbers(folder, measured_folder(folder), console)
        return
    with shared(device or any_recipe(run).device, console) as ranks:
        folder = kind_of_run(run).measure(
            run, out, rows, directions, curvature_strings=curvature, ranks=ranks, **options
        )
        if ranks is None or not ranks.rank:
            print_numbers(run, folder, console)
