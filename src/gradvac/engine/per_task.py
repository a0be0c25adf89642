"""Per-task gradients by one backward per task: any model, any loss, any number of micro-batches.

Usage, in place of ``loss.backward()``::

    engine = PerTaskEngine(model, GradVac(), granularity="all_layer")
    for task, batch in batches:
        engine.accumulate(task, loss_of(batch))   # one backward through that task's own graph
    report = engine.combine()                     # adds to p.grad
    optimizer.step()
    optimizer.zero_grad()

For results comparable with plain training, divide each task's loss by the divisor of the joint loss
(all tokens of the step, not only the task's): the sum of the losses is then the joint loss, and a
step without edits is a plain step.

With ``torch.amp.GradScaler``, accumulate ``scaler.scale(loss)`` and call
``combine(loss_scale=scaler)``; see :mod:`gradvac.engine.nonfinite`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gradvac.engine.gradients.buffer import GroupBuffer
from gradvac.engine.gradients.gram import gram, gram_there
from gradvac.engine.groups import Grouping, Heads
from gradvac.engine.hidden import refuse_hidden
from gradvac.engine.lazy import decide_unread
from gradvac.engine.nonfinite import NonFinite
from gradvac.engine.options import EngineOptions
from gradvac.engine.ranks.buckets import buckets_of
from gradvac.engine.ranks.exchange import Exchange
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.passes import agree_on_passes
from gradvac.engine.repeats import Repeats
from gradvac.engine.report import StepReport, combine, decide
from gradvac.engine.samples.calls import explained, leaves
from gradvac.engine.setup import Setup
from gradvac.engine.step import Shares
from gradvac.engine.strategy import Gradients, Strategy
from gradvac.engine.task_engine import TaskEngine
from gradvac.engine.task_names import task_name
from gradvac.errors import GradientError
from gradvac.methods import Method

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PerTask(Strategy):
    """Runs a backward pass for each task and combines the gradients at the end of the step."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._buffers = [GroupBuffer(group) for group in setup.groups]
        self._repeats = Repeats(setup.leaves)

    @property
    def accumulated(self) -> bool:
        """Whether anything was accumulated since the last step."""
        return bool(self.step.names)

    def accumulate(self, task: str, loss: Tensor, retain_graph: bool) -> None:
        """Add the gradient of a loss; see :meth:`PerTaskEngine.accumulate`."""
        setup = self.setup
        task = task_name(task)
        setup.guard.check_tasks([task])
        if not self.accumulated:
            setup.unsettled.check()
            setup.guard.check_parameters()
        if loss.numel() != 1 or not loss.requires_grad:
            raise GradientError(
                f"the loss of task {task!r} is {list(loss.shape)} with requires_grad="
                f"{loss.requires_grad}; it must be a scalar computed from the model's parameters"
            )
        if setup.shards is not None:
            setup.shards.gather_kept_whole()
        else:
            refuse_hidden(loss.reshape(()), setup.module, setup.leaves, setup.name)
        run = lambda keep: torch.autograd.grad(
            loss.reshape(()), setup.leaves, retain_graph=keep, allow_unused=True
        )
        with explained(loss, setup.module):
            if retain_graph:
                self._repeats.check(loss.reshape(()), lambda: run(True))
            gradients = run(retain_graph)
        if all(gradient is None for gradient in gradients):
            raise GradientError(
                f"the loss of task {task!r} depends on none of the engine's parameters; was it "
                "computed with another copy of the model, or with one wrapped after the engine "
                "was made?"
            )
        of_heads = gradients[setup.n_shared :]
        if self.first_step:
            setup.guard.check_leaves(leaves(loss))
            setup.heads.check(task, of_heads)
        setup.heads.add(of_heads)
        row = self.step.position(task)
        self.step.add_losses(pad(loss.detach().reshape(1).double(), (row, 0)))
        remaining = iter(gradients)
        for buffer in self._buffers:
            buffer.add(row, [next(remaining) for _ in buffer.group.parameters])

    def reserve(self, n_tasks: int) -> None:
        """Make room for the gradients of so many tasks; see :meth:`PerTaskEngine.reserve`."""
        for buffer in self._buffers:
            buffer.reserve(n_tasks)

    def accumulate_all(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of several losses, which may share a graph."""
        setup, count = self.setup, len(losses)
        self.reserve(len({*self.step.names, *losses}))
        if setup.shards is not None and setup.ranks is not None:
            count = agree_on_passes(setup.ranks, count).number
        for n, (task, loss) in enumerate(losses.items(), start=1):
            self.accumulate(task, loss, retain_graph=n < count)
        for n in range(len(losses) + 1, count + 1):  # passes that other ranks make
            loss = list(losses.values())[-1].reshape(())
            nothing = torch.zeros_like(loss)
            assert setup.shards is not None
            setup.shards.gather_kept_whole()
            torch.autograd.grad(
                loss, setup.leaves, nothing, retain_graph=n < count, allow_unused=True
            )

    def combine(
        self,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Shares | None = None,
    ) -> StepReport:
        """Combine the accumulated gradients; see :meth:`PerTaskEngine.combine`."""
        self.check_accumulated(self.accumulated)
        return self.end_step(self._finish, loss_scale, step, shares)

    def _finish(self) -> tuple[StepReport, Gradients]:
        """Combine the gradients and return what to add to ``p.grad`` of every parameter."""
        setup = self.setup
        found = self._finish_alone() if self.agree() is None else self._finish_with_ranks()
        report, combined = found
        return report, [*combined, *zip(setup.heads.parameters, self.of_heads(), strict=True)]

    def _finish_alone(self) -> tuple[StepReport, Gradients]:
        step, setup = self.step, self.setup
        gradients = [
            buffer.task_gradients(len(step.names), step.loss_scale) for buffer in self._buffers
        ]
        step.heads_state = setup.heads.state()
        groups = [[each] for each in gradients]
        if setup.lazy:
            weights = decide_unread(step, setup.method, gram_there(groups), setup.group_names)
            report = self.report()
        else:
            report = decide(
                setup.method,
                gram(groups, step.fetch),
                step.losses(len(step.names)) / step.loss_scale,
                step.tasks,
                setup.group_names,
                step.number,
                step.shares,
            )
            weights = report.weights
        parts = zip(self._buffers, gradients, weights, strict=True)
        return report, [pair for buffer, m, w in parts for pair in buffer.gradients(combine(w, m))]

    def _finish_with_ranks(self) -> tuple[StepReport, Gradients]:
        setup, step, ranks = self.setup, self.step, self.setup.ranks
        assert ranks is not None
        buckets = buckets_of(setup.groups, ranks.bucket)
        exchange = Exchange(ranks, setup, buckets, step)
        buffers = {buffer.group.name: buffer for buffer in self._buffers}
        try:
            for bucket in buckets:
                found = [buffers[p.name].piece(p, len(step.names)) for p in bucket.pieces]
                sources, used = [source for source, _ in found], chain(*(used for _, used in found))
                exchange.launch(sources, list(used))
            gradients = exchange.finish()
        except GradientError:
            if step.failed_everywhere:
                exchange.drain()
            raise
        report = step.report(setup.group_names)
        shared = setup.parameters[: setup.n_shared]
        return report, [(p, gradients[id(p)]) for p in shared]

    def clear(self) -> None:
        """Drop what was accumulated since the last step."""
        super().clear()
        for buffer in self._buffers:
            buffer.clear()


class PerTaskEngine(TaskEngine):
    """Collects the gradients of each task of a step and combines them by a method.

    Holds K x P numbers for K tasks and P trainable parameters, in float32 (float64 for float64
    parameters), so that sums over micro-batches lose no precision with bfloat16.

    Args:
        model: the model, or names and parameters of it.
        method: turns the geometry of a step into weights.
        granularity: how parameters are grouped; see :mod:`gradvac.engine.groups`.
        nonfinite: "raise" an error if a loss or gradient is not finite, or "skip" the step:
            ``p.grad`` is then None, so that optimizers do nothing, and the report says why.
        heads: modules or parameters that belong to one task, by task; see
            :func:`gradvac.engine.groups.task_heads`. They get their plain gradient.
        task_names: the allowed tasks: a task of another name is then an error, not a new task.
        process_group: the ranks to train with; by default all of ``torch.distributed``, if that is
            initialised.

    Raises:
        GradientError: if the model is wrapped for data parallelism or has nothing to train.

    Example:
        >>> import torch
        >>> import gradvac
        >>> from gradvac.engine import PerTaskEngine
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> engine = PerTaskEngine(model, gradvac.PCGrad())
        >>> for task, x in {"fr": [1.0, 0.0], "hi": [-1.0, 1.0]}.items():
        ...     engine.accumulate(task, model(torch.tensor(x)).sum())
        >>> engine.combine().weights
        tensor([[2.0000, 1.5000]], dtype=torch.float64)
        >>> model.weight.grad
        tensor([[0.5000, 1.5000]])
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, nn.Parameter]],
        method: Method,
        granularity: Grouping = "all_layer",
        nonfinite: NonFinite = "raise",
        heads: Heads | None = None,
        task_names: Collection[str] | None = None,
        process_group: ProcessGroup | Ranks | None = None,
    ) -> None:
        options = EngineOptions(
            granularity,
            heads,
            engine="per_task",
            nonfinite=nonfinite,
            task_names=task_names,
            process_group=process_group,
        )
        super().__init__(Setup(model, method, options))
        self._per_task = PerTask(self._setup)

    def reserve(self, n_tasks: int) -> None:
        """Allocate the gradients of so many tasks at once, when the first one comes.

        Otherwise each new task of the first step copies the gradients of those before it, and both
        copies are held for a moment. `accumulate_all` does it by itself.
        """
        self._per_task.reserve(n_tasks)

    def accumulate(self, task: str, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradient of a loss to the gradient of a task of the current step.

        Args:
            task: name of the task; may be called several times per step.
            loss: a scalar with a graph.
            retain_graph: keep the graph for another loss that shares it.

        Raises:
            GradientError: if the loss is not a scalar, does not depend on the parameters, trains a
                parameter that autograd's graph does not show, or depends on another task's head; or
                if the task is unknown or the parameters are not those the engine was made for.
        """
        self._per_task.accumulate(task, loss, retain_graph)

    def accumulate_all(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of several losses, which may share a graph."""
        self._per_task.accumulate_all(losses)

    @property
    def accumulated(self) -> bool:
        """Whether anything was accumulated since the last step."""
        return self._per_task.accumulated

    def combine(
        self,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Shares | None = None,
    ) -> StepReport:
        """Combine the accumulated gradients, add them to ``p.grad`` and begin the next step.

        Gradients are added to ``p.grad``. For a parameter that no task used, ``p.grad`` is
        unchanged, as in plain training.

        Args:
            loss_scale: factor the losses were multiplied by, divided out before the Gram; or the
                GradScaler that scaled them; ``p.grad`` is then scaled again.
            step: number of this step; by default one more than the last.
            shares: by task, what its mean loss was multiplied by (its share of the step's
                tokens), for methods that read losses; numbers, or tensors that are read with the
                Gram matrices.

        Raises:
            GradientError: if nothing was accumulated, or a loss or gradient is not finite
                (NotFiniteError). ``p.grad``, the method and the step counter are then unchanged and
                the gradients are dropped.
        """
        return self._per_task.combine(loss_scale, step, shares)

    def backward(
        self,
        losses: Mapping[str, Tensor],
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Shares | None = None,
    ) -> StepReport:
        """Accumulate several losses of one forward pass and combine them."""
        self.accumulate_all(losses)
        return self.combine(loss_scale, step, shares)

    def clear(self) -> None:
        """Drop what was accumulated since the last step."""
        self._per_task.clear()
