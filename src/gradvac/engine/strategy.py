"""The base class of ways to compute task gradients: the current step and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from gradvac.engine.gradients.pool import free_bytes
from gradvac.engine.lazy import LazyReport, report_unread, zero_unless
from gradvac.engine.nonfinite import LossScale, skip_or_raise
from gradvac.engine.ranks.agreement import Agreement, agree, sameness, tell_failure
from gradvac.engine.ranks.passes import NO_SAMPLES
from gradvac.engine.ranks.shards import failure_of_a_collective
from gradvac.engine.report import StepReport
from gradvac.engine.setup import Setup
from gradvac.engine.step import Shares, Step
from gradvac.errors import GradientError, NotFiniteError, RankError

Gradients = Sequence[tuple[Tensor, Tensor | None]]
"""Parameters and their combined gradients, None for one that was not used."""


class Strategy:
    """Combines the gradients of several tasks; a subclass computes these gradients.

    Attributes:
        setup: model, method, parameters and ranks.
        step: the current step.
        first_step: whether no step has succeeded yet.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.step = Step()
        self.first_step = True

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        self.setup.heads.clear()
        self.step = Step()

    def agree(self) -> Agreement | None:
        """Agree with other ranks on the tasks of the step; None without other ranks.

        Raises:
            RankError: if a rank failed, is at another step, or runs something else.
        """
        setup, step, ranks = self.setup, self.step, self.setup.ranks
        if ranks is None:
            return None
        same = None
        if not ranks.same:
            policy = setup.options.nonfinite
            same = sameness(setup.groups, setup.heads.heads, setup.method, policy)
        free = free_bytes(setup.parameters[0].device)
        own = step.names, step.shares
        step.agreed = agree(ranks, step.number, step.loss_scale, *own, same, free)
        ranks.same = True
        return step.agreed

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks that this one gives up the step, unless they know."""
        shards, ranks, step = self.setup.shards, self.setup.ranks, self.step
        if ranks is None or error is ranks.known or isinstance(error, RankError):
            return
        ranks.known = error
        if step.failed_everywhere or isinstance(error, NotFiniteError):
            if shards is not None:
                shards.reset()
            return
        if shards is not None:  # they may be gathering parameters, and cannot receive this
            if failure_of_a_collective(error):
                raise ranks.lost(error) from error
            ranks.leave(f"{type(error).__name__}: {error}")
        elif step.agreed is not None:  # they wait for gradients that will not come
            ranks.broken = ranks.broken or f"its step {step.number} failed: {error}"
        elif isinstance(error, Exception):
            with suppress(RankError):
                tell_failure(ranks, step.number, error)

    def report(self) -> StepReport:
        """Return the report of the step, once all groups are decided."""
        setup, step = self.setup, self.step
        if not setup.lazy:
            return step.report(setup.group_names)
        heads, policy = setup.heads.with_gradient, setup.options.nonfinite
        return report_unread(step, setup.method, setup.group_names, heads, policy)

    def of_heads(self) -> list[Tensor | None]:
        """Return the gradients of the heads.

        Raises:
            NotFiniteError: if one is not finite, unless the engine is lazy.
        """
        heads, step = self.setup.heads, self.step
        if self.setup.lazy:
            return heads.unread(step.loss_scale)
        return heads.finished(step.loss_scale, step.heads_state)

    def check_accumulated(self, accumulated: bool) -> None:
        """Check that there is something to combine, here or on another rank.

        Raises:
            GradientError: if there is not.
        """
        if not accumulated and self.setup.ranks is None:
            raise GradientError("combine() needs at least one accumulate() since the last step")
        if not accumulated and self.setup.shards is not None:
            raise GradientError(NO_SAMPLES)

    def end_step(
        self,
        finish: Callable[[], tuple[StepReport, Gradients]],
        loss_scale: float | torch.amp.GradScaler,
        number: int | None,
        shares: Shares | None,
    ) -> StepReport:
        """End the step, or skip it; if that fails, the method is as it was before.

        Args:
            finish: returns the report, and the gradients to add to ``p.grad``.
            loss_scale: the factor of the losses.
            number: number of the step; None for the next one.
            shares: by task, what its mean loss was multiplied by.
        """
        setup, step = self.setup, self.step
        if setup.lazy and isinstance(loss_scale, torch.amp.GradScaler) and loss_scale.is_enabled():
            raise GradientError(
                "lazy=True with a GradScaler, whose scale the host reads in every step; leave lazy "
                "out, or train in bfloat16, which needs no scaler"
            )
        scale = LossScale.of(loss_scale)
        step.number = setup.next_step if number is None else number
        step.loss_scale = scale.factor
        step.give_shares(shares)
        method = setup.method
        before = method.snapshot() if setup.lazy else method.state_dict()
        try:
            report, gradients = finish()
            if isinstance(report, LazyReport):
                if self.first_step:
                    _ = report.skipped  # read: it is an error at once if not finite
                method.keep_if(report.finite, before)
                zero_unless(report.finite, gradients)
                setup.unsettled.add(report)
            add_to_grad(gradients, scale)
        except BaseException as e:
            if setup.lazy:
                method.restore(before)
            else:
                method.load_state_dict(before)
            self.tell(e)
            report = skip_or_raise(
                e,
                setup.options.nonfinite,
                setup.parameters,
                scale,
                step.tasks,
                setup.group_names,
                step.task_losses,
                step.number,
            )
        finally:
            self.clear()
        setup.next_step = step.number + 1
        setup.guard.end_step()
        self.first_step = False
        return report


@torch.no_grad()
def add_to_grad(gradients: Iterable[tuple[Tensor, Tensor | None]], scale: LossScale) -> None:
    """Add gradients to ``p.grad``, as a backward pass of autograd does, and call the hooks.

    Args:
        gradients: parameters and their gradients, None to leave ``p.grad`` unchanged.
        scale: the factor of ``p.grad`` for a GradScaler.
    """
    hooked: list[Tensor] = []
    with torch._C.DisableTorchFunction():  # the call may be in a ``tasks`` block
        for p, gradient in gradients:
            if gradient is None:
                continue
            if scale.scaled:
                gradient = gradient * scale.factor
            before = p.grad
            if before is None:
                p.grad = gradient
            elif before.layout == gradient.layout == torch.strided:
                before += gradient
            else:
                p.grad = before + gradient
            if getattr(p, "_post_accumulate_grad_hooks", None):
                hooked.append(p)
    for p in hooked:
        for hook in list((getattr(p, "_post_accumulate_grad_hooks", None) or {}).values()):
            hook(p)
