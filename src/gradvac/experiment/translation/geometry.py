"""`gradvac geometry` on a run of translation: the gradient of every direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from gradvac.data.batches import in_order
from gradvac.data.encoded import EncodedTask
from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RunError
from gradvac.experiment.run.folder import run_recipe, task_infos
from gradvac.experiment.training.build import device_of
from gradvac.experiment.training.measuring import (
    Shares,
    joined,
    measure_text,
    measured_folder,
    steps_of,
)
from gradvac.experiment.translation.geometry_text import aligned_set
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.recipe import Recipe
from gradvac.geometry.measure import HOLD, Losses
from gradvac.terminal import Terminal
from gradvac.translation.transformer import Transformer

TOKENS = 4096  # padded cells per batch; affects only speed and memory


def measure_run(
    run: Path,
    out: Path | None = None,
    *,
    every: int | None = None,
    granularity: str = "parameter",
    strings: int | None = None,
    rows: Path | None = None,
    directions: Sequence[str] | None = None,
    curvature_strings: int = 0,
    device: str | None = None,
    hold: int = HOLD,
    console: Console | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Measure the saved checkpoints of a run; returns the folder of the measurement.

    Args:
        run: the run's folder; training may be in progress.
        out: the folder to write.
        every: only checkpoints whose step is a multiple of this.
        granularity: of the Gram matrices; coarser ones can be computed from it.
        strings: maximum number of sentences, from the first on.
        rows: a file of parallel text (TSV or JSONL with language codes) to measure on.
        directions: only these of the run, such as those whose languages share sentences.
        curvature_strings: number of sentences of each direction for the top Hessian eigenvalue
            per resource level; 0 for none.
        device: as in a recipe; by default that of the run's recipe.
        hold: numbers of gradients held at a time, see `gradvac.geometry.measure.measure`.
        console: receives a progress bar on a terminal, lines elsewhere.
        ranks: all call this; each measures some directions; rank 0 writes.

    Raises:
        RunError: without checkpoints or text, for a direction not in the run, or if the folder
            has a measurement with other settings.
    """
    console = console or Terminal()
    say = partial(console.print, markup=False, soft_wrap=True)
    recipe, infos = run_recipe(run, Recipe), task_infos(run)
    if strange := [d for d in directions or () if d not in infos]:
        raise RunError(f"{run}: no direction {', '.join(strange)}; it has {', '.join(infos)}")
    steps = steps_of(run, every)
    found = find_model(run, str(steps[-1]))
    limit = recipe.data.max_tokens
    text = aligned_set(
        run,
        list(directions or infos),
        found.vocabulary,
        max_tokens=limit,
        strings=strings,
        file=rows,
        say=say,
    )
    model = found.load(device_of(device or recipe.device))
    smoothing = recipe.training.label_smoothing
    return measure_text(
        run,
        out or measured_folder(run),
        steps,
        model,
        text,
        infos,
        lambda shares: mean_losses(model, shares, smoothing),
        "directions",
        granularity=granularity,
        smoothing=smoothing,
        curvature_strings=curvature_strings,
        hold=hold,
        console=console,
        ranks=ranks,
    )


def mean_losses(model: Transformer, shares: Shares, smoothing: float) -> Losses:
    """The sum of the training loss per target token of each direction, times its share.

    Directions share batches, so a dozen small directions are as fast as one.
    """
    data = EncodedTask(
        joined([task.source for task, _ in shares]), joined([task.target for task, _ in shares])
    )
    scale = torch.cat(
        [torch.full((len(task),), share / task.target.tokens) for task, share in shares]
    )

    def parts() -> Iterator[Tensor]:
        device = model.embedding.weight.device
        for batch in in_order({"": data}, ("",), 0, TOKENS):
            b = batch.to(device)
            loss, _, rows = model.token_losses(
                b.source, b.target_in, b.target_out, smoothing, b.kept
            )
            yield (loss * scale[batch.sentence].to(device)[rows]).sum()

    return parts
