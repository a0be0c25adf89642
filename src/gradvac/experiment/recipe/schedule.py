"""The learning rate of a step."""

from __future__ import annotations

import math

from gradvac.experiment.recipe.sections import TrainingSection


def learning_rate(training: TrainingSection, step: int) -> float:
    """Linear warm-up, then inverse square root (Wang et al. 2021, appendix B) or linear."""
    rise = step / training.warmup
    if training.schedule == "linear":  # to zero, for fine-tuning encoders (appendix E)
        left = (training.steps - step + 1) / max(1, training.steps - training.warmup + 1)
        return training.learning_rate * min(rise, left)
    return training.learning_rate * min(rise, math.sqrt(training.warmup / step))
