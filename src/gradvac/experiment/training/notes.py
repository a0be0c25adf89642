"""What a recipe asks for in vain or at a high price, in words, before the first step."""

from __future__ import annotations

import math

import torch

from gradvac.experiment.recipe.sections import TrainingSection
from gradvac.experiment.training.build import has_bf16


def notes(training: TrainingSection, device: torch.device) -> list[str]:
    """Lines to print before training on ``device``; usually none."""
    return [*unreached(training), *_slow(training, device)]


def unreached(training: TrainingSection) -> list[str]:
    """Periodic actions of a recipe whose period is longer than the run, in words."""
    lines, steps, saved = [], training.steps, training.checkpoint_every
    first = math.lcm(training.keep_every or 1, saved)
    if training.keep_every and first > steps:
        lines.append(
            f"note: training.keep_every {training.keep_every:,} keeps nothing: with checkpoints at "
            f"every {saved:,} steps the first to keep is at step {first:,} of {steps:,}"
        )
    elif training.keep_every and training.keep_every % saved:
        lines.append(
            f"note: training.keep_every {training.keep_every:,}: with checkpoints at every "
            f"{saved:,} steps one is kept at every {first:,} steps"
        )
    if training.log_every > steps:
        lines.append(f"note: training.log_every {training.log_every:,}: no line in {steps:,} steps")
    return lines


def _slow(training: TrainingSection, device: torch.device) -> list[str]:
    """A line if the recipe asks for a precision that the device is slow in."""
    if training.precision != "bf16" or has_bf16(device):
        return []
    return [
        f"note: training.precision bf16: this {device.type} does not compute in it, and is many "
        "times slower than in fp32, which auto takes here"
    ]
