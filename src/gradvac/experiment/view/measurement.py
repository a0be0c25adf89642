"""`gradvac geometry`: measure a run, or a Hugging Face model, and print the findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gradvac.errors import RunError
from gradvac.experiment.run.below import runs_below
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.training.kind import kind_of_run
from gradvac.experiment.training.measuring import measured_folder
from gradvac.experiment.training.together import shared, started_by_torchrun
from gradvac.experiment.translation.geometry_huggingface import is_huggingface, measure_huggingface
from gradvac.experiment.view.numbers import print_numbers, print_numbers_of


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

    Every run of a sweep is measured, and the numbers are of the means over seeds.

    Under torchrun each rank measures a part of a run, and rank 0 prints. Raises RunError for a
    Hugging Face model under torchrun, and the errors of the measurement.
    """
    options |= {"device": device, "console": console}
    runs = runs_below(run)
    if out is not None and runs != [run]:
        raise RunError(
            f"--out {out}: runs of a sweep are measured in their own folders; leave it out"
        )
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
    with shared(device or any_recipe(runs[0]).device, console) as ranks:
        for one in runs:
            folder = kind_of_run(one).measure(
                one, out, rows, directions, curvature_strings=curvature, ranks=ranks, **options
            )
            if (ranks is None or not ranks.rank) and runs == [run]:
                print_numbers(run, folder, console)
        if (ranks is None or not ranks.rank) and runs != [run]:
            print_numbers_of(runs, console)
