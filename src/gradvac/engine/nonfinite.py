"""Steps whose losses or gradients are not finite: raise, or skip the step and report it.

With ``torch.amp.GradScaler`` an infinite gradient tells the scaler that its scale is too large.
Give the engine the scaler instead of a number; the rest of the loop is unchanged::

    engine.backward(scaler.scale(loss), loss_scale=scaler)
    scaler.unscale_(optimizer)  # and clip, if wanted
    scaler.step(optimizer)
    scaler.update()

The engine divides the scale out before it measures anything and puts it back into ``p.grad``. After
an overflow ``p.grad`` is infinite: the scaler skips the step and lowers its scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradvac.engine.report import StepReport
from gradvac.errors import GradientError, NotFiniteError
from gradvac.methods import StepGeometry

NonFinite = Literal["raise", "skip"]
"""What to do about a loss or gradient that is not finite."""


def check_policy(nonfinite: str) -> None:
    """Raise GradientError unless ``nonfinite`` is "raise" or "skip"."""
    if nonfinite not in ("raise", "skip"):
        raise GradientError(f"nonfinite is {nonfinite!r}; it must be 'raise' or 'skip'")


@dataclass(frozen=True)
class LossScale:
    """The factor that losses were multiplied by.

    Attributes:
        factor: the number.
        scaled: whether a GradScaler did it, so ``p.grad`` must be scaled too.
    """

    factor: float
    scaled: bool = False

    @classmethod
    def of(cls, scale: float | torch.amp.GradScaler) -> LossScale:
        """Read a number, or a GradScaler, which may be disabled.

        Raises:
            GradientError: if the number is not finite and positive.
        """
        if isinstance(scale, torch.amp.GradScaler):
            return cls(scale.get_scale(), scale.is_enabled())
        if not 0 < scale < math.inf:
            raise GradientError(f"loss_scale is {scale!r}; it must be finite and positive")
        return cls(float(scale))

    def overflowed(self, losses: Tensor) -> bool:
        """Whether a gradient that is not finite may be due to a GradScaler's scale.

        Not for a NaN loss, and not once the scale has fallen to 1: the scaler would silently halve
        it for ever.
        """
        return self.scaled and self.factor > 1 and not bool(losses.isnan().any())


def skip_or_raise(
    error: BaseException,
    nonfinite: NonFinite,
    parameters: Iterable[Tensor],
    scale: LossScale,
    tasks: tuple[str, ...],
    groups: tuple[str, ...],
    losses: Tensor,
    step: int,
) -> StepReport:
    """Set gradients so that no optimizer updates, and report the step as skipped; or raise.

    ``p.grad`` is None, for which optimizers neither step nor decay nor count; for a GradScaler,
    which needs a gradient, it is infinite.

    Raises:
        BaseException: ``error``, unless it is a NotFiniteError that policy or scale allows.
    """
    may_skip = nonfinite == "skip" or scale.overflowed(losses)
    if not (isinstance(error, NotFiniteError) and may_skip):
        raise error
    for p in parameters:
        p.grad = torch.full_like(p, math.inf) if scale.scaled else None
    return skipped_report(tasks, groups, losses, step, str(error))


def skipped_report(
    tasks: tuple[str, ...], groups: tuple[str, ...], losses: Tensor, step: int, why: str
) -> StepReport:
    """Return the report of a step that was skipped."""
    gram = torch.full((len(groups), len(tasks), len(tasks)), math.nan, dtype=torch.float64)
    geometry = StepGeometry(gram, losses, tasks, groups, step)
    return StepReport(geometry, torch.zeros_like(gram[:, 0]), {}, skipped=why)
