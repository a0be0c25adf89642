"""Per-task gradients by one backward per task: any model, any loss, any number of micro-batches.

Usage, in place of ``loss.backward()``::

    engine = PerTaskEngine(model, GradVac(), granularity="all_layer")
    for task, batch in batches:
        engine.accumulate(task, loss_of(batch))   # one backward through that task's own graph
    report = engine.combine()                     # adds to p.grad
    optimizer.step()
    optimizer.zero_grad()

For results comparable with plain training, divide each task's loss by what the joint loss would
be divided by (all tokens of the step, not the task's own): the sum of the losses is then the
joint loss, and a step without edits is a plain step.

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

from gradvac.engine.base import End, TaskEngine
from gradvac.engine.gradients.gram import gram
from gradvac.engine.groups import Grouping, Heads, ParameterGroup
from gradvac.engine.hidden import refuse_hidden
from gradvac.engine.nonfinite import NonFinite
from gradvac.engine.ranks.buckets import Source, buckets_of
from gradvac.engine.ranks.exchange import Exchange
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.passes import NO_SAMPLES, agree_on_passes
from gradvac.engine.ranks.shards import Shards
from gradvac.engine.report import StepReport, combine, decide
from gradvac.engine.samples.calls import explained, leaves
from gradvac.engine.task_names import task_name
from gradvac.errors import GradientError
from gradvac.methods import Method

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PerTaskEngine(TaskEngine):
    """Collects the gradients of each task of a step and combines them by a method.

    Holds K x P numbers for K tasks and P trainable parameters, in float32 (float64 for float64
    parameters) so that adding up micro-batches loses nothing under bfloat16.

    Args:
        model: the model, or names and parameters of it.
        method: turns the geometry of a step into weights.
        granularity: how parameters are grouped; see :mod:`gradvac.engine.groups`.
        nonfinite: "raise" an error if a loss or gradient is not finite, or "skip" the step:
            ``p.grad`` is then None, so that optimizers do nothing, and the report says why.
        heads: modules or parameters of one task alone, by task; see
            :func:`gradvac.engine.groups.task_heads`. They get their plain gradient.
        task_names: the tasks there are: a task of another name is then an error, not a new task.
        process_group: the ranks to train with; by default all of ``torch.distributed``, if that is
            initialised.
        shards: of a model sharded by fully_shard, if they have been found already.

    Raises:
        GradientError: if the model is wrapped for data parallelism or has nothing to train.
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
        shards: Shards | None = None,
    ) -> None:
        given = model if isinstance(model, nn.Module) else list(model)
        super().__init__(
            given, method, granularity, nonfinite, heads, task_names, process_group, shards
        )
        self._named = given if isinstance(given, nn.Module) else nn.Module()  # names in errors
        self._checks_heads = True  # in this process's first step
        self._buffers = [_GroupBuffer(group) for group in self.groups]

    def accumulate(self, task: str, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradient of a loss to the gradient of a task of the current step.

        Args:
            task: name of the task; may be called several times per step.
            loss: a scalar with a graph.
            retain_graph: keep the graph for another loss that shares it.

        Raises:
            GradientError: if the loss is not a scalar, does not depend on the parameters, trains
                one that autograd's graph does not show, or depends on another task's head; or if
                the task is unknown or the parameters are not those the engine was made for.
        """
        task = task_name(task)
        self._guard.check_tasks([task])
        if not self.accumulated:
            self._guard.check_parameters()
        if loss.numel() != 1 or not loss.requires_grad:
            raise GradientError(
                f"the loss of task {task!r} is {list(loss.shape)} with requires_grad="
                f"{loss.requires_grad}; it must be a scalar computed from the model's parameters"
            )
        if self._shards is not None:
            self._shards.stand()
        else:
            refuse_hidden(loss.reshape(()), self._named, self._leaves, self._name)
        with explained(loss, self._named):
            gradients = torch.autograd.grad(
                loss.reshape(()), self._leaves, retain_graph=retain_graph, allow_unused=True
            )
        if all(gradient is None for gradient in gradients):
            raise GradientError(
                f"the loss of task {task!r} depends on none of the engine's parameters; was it "
                "computed with another copy of the model, or with one wrapped after the engine "
                "was made?"
            )
        if self._guard.fresh:
            self._guard.check_leaves(leaves(loss))
        own = gradients[len(gradients) - len(self._heads.parameters) :]
        if self._checks_heads:
            self._heads.check(task, own)
        self._heads.add(own)
        row = self._step.position(task)
        self._step.add_losses(pad(loss.detach().reshape(1).double(), (row, 0)))
        remaining = iter(gradients)
        for buffer in self._buffers:
            buffer.add(row, [next(remaining) for _ in buffer.group.parameters])

    def combine(
        self,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> StepReport:
        """Combine the accumulated gradients, add them to ``p.grad`` and begin the next step.

        Gradients are added to what ``p.grad`` holds; that of a parameter that no task used stays as
        it is, as in plain training.

        Args:
            loss_scale: factor the losses were multiplied by, divided out before the Gram; or the
                GradScaler that did, for which it is put back into ``p.grad``.
            step: number of this step; by default one more than the last.
            shares: by task, what its mean loss was multiplied by (its share of the step's
                tokens), for methods that read losses.

        Raises:
            GradientError: if nothing was accumulated, or a loss or gradient is not finite
                (NotFiniteError). ``p.grad``, the method and the step counter are then unchanged and
                the gradients are dropped.
        """
        if not self.accumulated and self._ranks is None:
            raise GradientError("combine() needs at least one accumulate() since the last step")
        if not self.accumulated and self._shards is not None:
            raise GradientError(NO_SAMPLES)
        with self._ending(loss_scale, step, shares) as end:
            self._finish(end)
        self._checks_heads = False
        return end.report

    def _finish(self, end: End) -> None:
        """Combine the gradients and say what is to be added to ``p.grad`` of every parameter."""
        now = self._step
        if self._agree() is not None:
            combined = self._finish_with_ranks(end)
        else:
            tasks, groups = tuple(now.names), tuple(group.name for group in self.groups)
            rows = [buffer.rows(len(tasks), now.loss_scale) for buffer in self._buffers]
            inner = gram([[r] for r in rows], now.fetch)
            losses = now.losses(len(tasks)) / now.loss_scale
            end.report = decide(self.method, inner, losses, tasks, groups, now.number, now.shares)
            parts = zip(self._buffers, rows, end.report.weights, strict=True)
            combined = [pair for buffer, m, w in parts for pair in buffer.gradients(combine(w, m))]
        own = self._heads.finished(now.loss_scale)
        end.gradients = [*combined, *zip(self._heads.parameters, own, strict=True)]

    def _finish_with_ranks(self, end: End) -> list[tuple[Tensor, Tensor | None]]:
        assert self._ranks is not None
        now, ranks = self._step, self._ranks
        buckets = buckets_of(self.groups, ranks.bucket)
        exchange = Exchange(ranks, self.groups, buckets, self.method, now)
        buffers = {buffer.group.name: buffer for buffer in self._buffers}
        try:
            for bucket in buckets:
                found = [buffers[p.name].piece(p, len(now.names)) for p in bucket.pieces]
                sources, used = [rows for rows, _ in found], chain(*(used for _, used in found))
                exchange.launch(sources, list(used))
            gradients = exchange.finish()
        except GradientError:
            if now.failed_alike:
                exchange.drain()
            raise
        self._heads.add_ranks(ranks)
        end.report = now.report(tuple(group.name for group in self.groups))
        return [(p, gradients[id(p)]) for group in self.groups for p in group.parameters]

    def backward(
        self,
        losses: Mapping[str, Tensor],
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> StepReport:
        """Accumulate several losses of one forward pass and combine them."""
        self.accumulate_all(losses)
        return self.combine(loss_scale, step, shares)

    def accumulate_all(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of several losses, which may share a graph."""
        count = len(losses)
        if self._shards is not None and self._ranks is not None:
            count = agree_on_passes(self._ranks, count).number
        for n, (task, loss) in enumerate(losses.items(), start=1):
            self.accumulate(task, loss, retain_graph=n < count)
        for n in range(len(losses) + 1, count + 1):  # passes that other ranks make
            loss = list(losses.values())[-1].reshape(())
            nothing = torch.zeros_like(loss)
            assert self._shards is not None
            self._shards.stand()
            torch.autograd.grad(
                loss, self._leaves, nothing, retain_graph=n < count, allow_unused=True
            )

    @property
    def accumulated(self) -> bool:
        """Whether anything was accumulated since the last step."""
        return bool(self._step.names)

    def clear(self) -> None:
        """Drop what was accumulated since the last step."""
        super().clear()
        for buffer in self._buffers:
            buffer.clear()


class _GroupBuffer:
    """Task gradients of one parameter group, a matrix ``[>= K, P]`` reused from step to step."""

    def __init__(self, group: ParameterGroup) -> None:
        self.group = group
        self._sizes = [p.numel() for p in group.parameters]
        self._matrix = torch.empty(0, 0)  # allocated by the first row, where the model then is
        self._filled = 0  # rows that hold gradients of this step
        self._used = [False] * len(self._sizes)

    def _new_row(self) -> Tensor:
        parameters = self.group.parameters
        if any(p.device != parameters[0].device for p in parameters):
            raise GradientError(
                f"parameter group {self.group.name!r} lies on several devices; choose a finer "
                "granularity"
            )
        widest = max((p.dtype for p in parameters), key=lambda dtype: dtype.itemsize)
        dtype = torch.promote_types(torch.float32, widest)
        return torch.empty(1, sum(self._sizes), dtype=dtype, device=parameters[0].device)

    def add(self, row: int, gradients: list[Tensor | None]) -> None:
        """Add gradients, one per parameter and None for zero, to a row."""
        if row == len(self._matrix):
            self._matrix = torch.cat([self._matrix, self._new_row()]) if row else self._new_row()
        fresh = row == self._filled
        self._filled = max(self._filled, row + 1)
        pieces = self._matrix[row].split(self._sizes)
        for n, (piece, gradient) in enumerate(zip(pieces, gradients, strict=True)):
            if gradient is None:
                if fresh:
                    piece.zero_()
                continue
            self._used[n] = True
            flat = (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1)
            if fresh:
                piece.copy_(flat)
            else:
                piece.add_(flat)

    def rows(self, n_tasks: int, loss_scale: float) -> Tensor:
        """Return the gradients of the step, ``[K, P]``, with the loss scale divided out."""
        matrix = self._matrix[:n_tasks]
        return matrix if loss_scale == 1.0 else matrix.mul_(1 / loss_scale)

    def piece(self, piece: ParameterGroup, n_tasks: int) -> tuple[Source, list[bool]]:
        """Return the gradients of some neighbouring parameters, and which of them are used."""
        first = next(n for n, p in enumerate(self.group.parameters) if p is piece.parameters[0])
        last = first + len(piece.parameters)
        size, start = sum(self._sizes[first:last]), sum(self._sizes[:first])
        used = self._used[first:last]
        return Source(
            size, self._matrix[:n_tasks, start : start + size] if any(used) else None
        ), used

    def gradients(self, combined: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return each parameter with its part of the combined gradient ``[P]``, None if unused."""
        parts = zip(self.group.parameters, combined.split(self._sizes), self._used, strict=True)
        return [(p, g.view(p.shape).to(p.dtype) if used else None) for p, g, used in parts]

    def clear(self) -> None:
        """Forget the gradients of the step; the memory is kept for the next one."""
        self._filled = 0
        self._used = [False] * len(self._sizes)
