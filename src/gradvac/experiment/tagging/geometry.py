"""`gradvac geometry` on a run of sequence labelling: the gradient of every language.

Each language has its own validation sentences: unlike parallel text, tagged text is usually not the
same in all languages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from gradvac.data.batches import in_order
from gradvac.data.encoded import Side
from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RunError
from gradvac.experiment.tagging.prepare import SHAPE, open_tagging
from gradvac.experiment.tagging.recipe import TaggingRecipe
from gradvac.experiment.training.build import device_of
from gradvac.experiment.training.job import Prepared
from gradvac.experiment.training.measuring import (
    AlignedSet,
    Shares,
    first_of,
    joined,
    measure_text,
    measured_folder,
    steps_of,
)
from gradvac.geometry.measure import HOLD, Losses
from gradvac.tagging.encoder import cells_at_once, empty_tagger, label_losses, labels_of
from gradvac.tagging.encoding import counted_by_sentence, token_batch
from gradvac.terminal import Terminal
from gradvac.text.scripts import script


def measure_tagging(
    run: Path,
    out: Path | None = None,
    *,
    every: int | None = None,
    granularity: str = "parameter",
    strings: int | None = None,
    curvature_strings: int = 0,
    device: str | None = None,
    hold: int = HOLD,
    console: Console | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Measure the saved checkpoints of a run on its validation text; returns the folder.

    The loss of a language is the training loss per word. Arguments and files are those of
    `gradvac.experiment.translation.geometry.measure_run`. RunError without checkpoints or
    validation text, or if the folder has a measurement with other settings.
    """
    prepared, steps = open_tagging(run), steps_of(run, every)
    text = _text(prepared, strings)
    model = empty_tagger(run / SHAPE).to(device_of(device or prepared.recipe.device))
    smoothing = prepared.recipe.training.label_smoothing
    labels, padding = len(labels_of(run / SHAPE)), prepared.vocabulary.pad_token_id or 0
    return measure_text(
        run,
        out or measured_folder(run),
        steps,
        model,
        text,
        prepared.tasks,
        lambda shares: _losses(model, shares, labels, padding, smoothing),
        "languages",
        granularity=granularity,
        smoothing=smoothing,
        curvature_strings=curvature_strings,
        hold=hold,
        console=console or Terminal(),
        ranks=ranks,
    )


def _text(prepared: Prepared[TaggingRecipe, Any], strings: int | None) -> AlignedSet:
    """The first ``strings`` validation sentences of each language; RunError if one has none."""
    if absent := [task for task in prepared.tasks if task not in prepared.valid]:
        raise RunError(
            f"{prepared.folder}: no validation text to measure on for {', '.join(absent)}; "
            "data.languages.LANG.valid names it"
        )
    count = len if strings is None else lambda _: strings
    sides = {task: prepared.valid[task].source for task in prepared.tasks}
    cut = {task: first_of(side, count(side)) for task, side in sides.items()}
    digest = hashlib.sha256(b"".join(side.ids.tobytes() for side in cut.values()))
    labels = len(labels_of(prepared.folder / SHAPE))
    words = lambda side: prepared.vocabulary.decode(
        (side.ids - 1) // (labels + 1), skip_special_tokens=True
    )
    return AlignedSet(
        {task: counted_by_sentence(side) for task, side in cut.items()},
        "validation text",
        False,
        digest.hexdigest()[:16],
        {task: script([words(side)]) for task, side in cut.items()},
    )


def _losses(model: Any, shares: Shares, labels: int, padding: int, smoothing: float) -> Losses:
    """The sum of the training loss per word of each language, times its share."""
    data = counted_by_sentence(joined([task.source for task, _ in shares]))
    scale = torch.cat(
        [torch.full((len(task),), share / _words(task.source, labels)) for task, share in shares]
    )

    def parts() -> Iterator[Tensor]:
        device = next(model.parameters()).device
        for drawn in in_order({"": data}, ("",), 0, cells_at_once(device)):
            batch = token_batch(drawn, labels, padding).to(device)
            loss, _, rows = label_losses(model, batch, smoothing)
            yield (loss * scale.to(device)[batch.sentence[rows]]).sum()

    return parts


def _words(side: Side, labels: int) -> int:
    """The number of subwords with a label, as stored by `gradvac.tagging.encoding`."""
    return int(((side.gather(np.arange(len(side))) - 1) % (labels + 1) > 0).sum())
