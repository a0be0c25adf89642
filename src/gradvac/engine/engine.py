"""The engine: one backward pass where samples keep apart, one per task where they do not.

Usage, in place of ``loss.backward()``::

    engine = Engine(model, GradVac(beta=1e-2), granularity="all_layer")
    optimizer.zero_grad()
    with engine.tasks(task_of_each_sample):        # one name per sample, in any order
        loss_per_token = ...                       # an ordinary forward pass, nothing averaged
        engine.backward(loss_per_token / tokens)   # adds to p.grad
    optimizer.step()

or, for several losses of one forward pass or a forward pass for each task::

    engine.backward({"depth": depth_loss, "segments": segment_loss})
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from gradvac.engine.collector import BUDGET
from gradvac.engine.groups import Grouping, Heads
from gradvac.engine.nonfinite import NonFinite
from gradvac.engine.per_task import PerTaskEngine
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.report import StepReport
from gradvac.engine.single_pass import SinglePassEngine
from gradvac.engine.tracing.known import Refusal
from gradvac.errors import GradientError
from gradvac.methods import Method

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Engine(SinglePassEngine):
    """Gives every parameter one gradient, made by a method of the gradients of the tasks.

    Losses come in one of two forms. Losses of samples or tokens, computed inside
    ``with engine.tasks(...)``: their gradients are split in one backward pass. Where the forward
    pass lets samples meet (BatchNorm in training, a contrastive loss) or cannot be followed, each
    task gets a backward pass of its own through the same graph from there on, and a line in the log
    of ``gradvac`` says why. Or one loss for each task, ``{task: loss}``, each with a backward pass
    of its own.

    Args:
        model: the model; it is not changed.
        method: turns the geometry of a step into weights.
        granularity: how parameters are grouped; see :mod:`gradvac.engine.groups`.
        heads: modules or parameters of one task alone, by task, such as ``{"ner": "heads.ner"}``;
            or a function from a parameter's name to its task, None for what tasks share. They get
            their plain gradient and are in no group.
        engine: "single_pass" to raise an error instead of going on with a backward pass per task,
            "per_task" to split nothing; None for the one that the model allows.
        verify_steps: how many first steps with several tasks to check against autograd, by two more
            backward passes. A step whose forward pass does something new is checked too, unless
            this is 0.
        nonfinite: "raise" an error if a loss or gradient is not finite, or "skip" the step:
            ``p.grad`` is then None, so that optimizers do nothing, and the report says why.
        task_names: the tasks there are: a task of another name is then an error, not a new task.
        passes: 2 to run a second backward pass, of the losses times their weights, in place of
            holding K gradients of the whole model; for granularity "whole_model".
        budget: bytes; the K gradients of a parameter that would take more are formed in chunks of
            rows, once to measure and once to combine them. A backward pass per task holds them all.
        process_group: the ranks to train with; by default all of ``torch.distributed``, if that is
            initialised. See :mod:`gradvac.engine.ranks.collector`.

    Attributes:
        refused: why every task has a backward pass of its own; empty while gradients are split.

    Raises:
        GradientError: if the model is wrapped for data parallelism or has nothing to train, or an
            argument is not one of those allowed.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        granularity: Grouping = "all_layer",
        *,
        heads: Heads | None = None,
        engine: Literal["single_pass", "per_task"] | None = None,
        verify_steps: int = 1,
        nonfinite: NonFinite = "raise",
        task_names: Collection[str] | None = None,
        passes: int = 1,
        budget: int = BUDGET,
        process_group: ProcessGroup | Ranks | None = None,
    ) -> None:
        if engine not in ("single_pass", "per_task", None):
            raise GradientError(
                f"engine is {engine!r}; it must be 'single_pass', 'per_task' or None for either"
            )
        super().__init__(
            model,
            method,
            granularity,
            verify_steps,
            heads,
            nonfinite,
            task_names,
            passes,
            budget,
            process_group,
        )
        self._separate = PerTaskEngine(
            model, method, granularity, nonfinite, heads, task_names, self._ranks, self._shards
        )
        self.refused = ""
        self._engine = engine
        if verify_steps <= 0 and engine != "per_task":
            logging.getLogger("gradvac").warning(
                "verify_steps=%d: what a forward pass does for the first time is not checked "
                "against autograd; an operation that the engine follows wrongly would go unnoticed",
                verify_steps,
            )
        self._splits = engine != "per_task"
        self._give_up = None if engine == "single_pass" else self._go_on_per_task

    def _go_on_per_task(self, refusal: Refusal) -> None:
        self._splits = False
        self.refused = refusal.reason
        logging.getLogger("gradvac").warning(
            "one backward pass per task from now on: %s", refusal.reason
        )

    def backward(
        self,
        loss: Tensor | Mapping[str, Tensor],
        rows: Tensor | None = None,
        mask: Tensor | None = None,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> StepReport:
        """Run the backward pass, add the combined gradients to ``p.grad``, begin the next step.

        Args:
            loss: losses of samples, tokens or the like, ``[B, ...]`` or, with ``rows``, ``[N]``;
                or a scalar for each task, which may share a graph.
            rows: the sample that each loss belongs to, ``[N]``.
            mask: weights of the losses, such as 0 for padding; of the shape of ``loss``.
            loss_scale: factor the losses were multiplied by, divided out before the Gram; or the
                GradScaler that did, for which it is put back into ``p.grad``.
            step: number of this step; by default one more than the last.
            shares: by task, what its mean loss was multiplied by (its share of the step's
                tokens), for methods that read losses.

        Raises:
            GradientError: if the gradients cannot be had or are not finite (NotFiniteError).
                ``p.grad``, the method and the step counter are then unchanged and the gradients are
                dropped.
        """
        if isinstance(loss, Tensor) and not self._separate.accumulated:
            return super().backward(loss, rows, mask, loss_scale, step, shares)
        self.accumulate(loss, rows, mask)
        return self.combine(loss_scale, step, shares)

    def accumulate(
        self,
        loss: Tensor | Mapping[str, Tensor],
        rows: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Run the backward pass of a micro-batch; its gradients wait for :meth:`combine`.

        With a forward pass for each task, ``{task: loss}`` may be given one task at a time: that
        costs what training on the same samples costs, and no graph is held for long.

        Args:
            loss: as for :meth:`backward`.
            rows: the sample that each loss belongs to, ``[N]``.
            mask: weights of the losses.

        Raises:
            GradientError: if the gradients cannot be had; what was accumulated is then dropped.
        """
        try:
            if isinstance(loss, Mapping):
                self._check_separate(rows, mask)
                self._separate.accumulate_all(loss)
                return
            if self._separate.accumulated:
                raise GradientError(
                    "this step began with a loss for each task, {task: loss}; losses of samples "
                    "cannot be added to them before combine()"
                )
        except BaseException as e:
            self._tell(e)
            self.clear()
            raise
        super().accumulate(loss, rows, mask)

    def _check_separate(self, rows: Tensor | None, mask: Tensor | None) -> None:
        if rows is not None or mask is not None:
            raise GradientError("rows and mask belong to losses of samples, not to {task: loss}")
        if self._engine == "single_pass":
            raise GradientError(
                "a loss for each task needs a backward pass for each; engine='single_pass' was "
                "asked for, leave it out"
            )
        if self._step.accumulated:
            raise GradientError(
                "this step began with losses of samples; a loss for each task, {task: loss}, "
                "cannot be added to them before combine()"
            )

    def combine(
        self,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> StepReport:
        """Combine the accumulated gradients, add them to ``p.grad`` and begin the next step.

        A rank without samples of its own calls this, where others run a backward pass.

        Raises:
            GradientError: as :meth:`backward`, and if nothing was accumulated, on any rank.
        """
        if not self._separate.accumulated:
            return super().combine(loss_scale, step, shares)
        number = self.step if step is None else step
        report = self._separate.combine(loss_scale, number, shares)
        self.step = number + 1
        return report

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        super().clear()
        self._separate.clear()
