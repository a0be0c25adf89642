"""The step and the batch under way in a single pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gradvac.engine.ranks.agreement import Agreement
from gradvac.engine.report import StepReport
from gradvac.engine.samples.calls import inner
from gradvac.engine.samples.flow import Place
from gradvac.engine.samples.rows import RowMap
from gradvac.engine.tracing.trace import Trace
from gradvac.errors import GradientError


class Step:
    """What is known of the step under way."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._positions: dict[str, int] = {}
        self.number = 0
        self.loss_scale = 1.0
        self.shares: Mapping[str, float] | None = None
        self.streams = False
        self.accumulated = False
        self.waiting = 0  # groups that are complete but not yet combined
        self.at_once: int | None = (
            None  # numbers of the gradients of a task that are combined together
        )
        self.gram = torch.zeros(1, dtype=torch.float64)  # of the whole model, of two passes
        self.gradients: dict[int, Tensor | None] = {}  # combined, by the id of the parameter
        self.reports: list[StepReport] = []
        self.agreed: Agreement | None = None  # with the other ranks
        self.failed_alike = False  # on all ranks, who then need not be told
        self._losses: list[Tensor] = []  # of micro-batches, [2, K]: see `add_losses`
        self._read: Tensor | None = None

    def position(self, name: str) -> int:
        """Return the position of a task, a new one at the end."""
        if name not in self._positions:
            self._positions[name] = len(self.names)
            self.names.append(name)
        return self._positions[name]

    def add_losses(self, losses: Tensor, present: Tensor | None = None) -> None:
        """Add the losses ``[K]`` of a micro-batch, and which tasks have any: all, by default."""
        present = torch.ones_like(losses) if present is None else present.to(losses)
        self._losses.append(torch.stack([losses, present]))
        self._read = None

    def fetch(self, values: Tensor) -> Tensor:
        """Return float64 values on the CPU; losses not read yet come along, in the same wait."""
        on_device = {losses.device for losses in self._losses}
        if self._read is not None or on_device != {values.device}:
            return values.cpu()
        own = self._added()
        both = torch.cat([own.flatten(), values.flatten()]).cpu()
        self._read = both[: own.numel()].view(own.shape)
        return both[own.numel() :].view(values.shape)

    def present(self) -> list[int]:
        """Return the positions of the tasks that have a loss in the step, on this rank."""
        return self._on_host()[1].nonzero().flatten().tolist()

    def losses(self, n_tasks: int) -> Tensor:
        """Return the losses of all micro-batches, ``[K]``, on the CPU."""
        losses = self._on_host()[0]
        return pad(losses, (0, n_tasks - len(losses)))

    def _on_host(self) -> Tensor:
        """Losses of the tasks and how often they had any, ``[2, K]``."""
        if self._read is None:
            self._read = self._added().cpu()
        return self._read

    def _added(self) -> Tensor:
        """Add up the micro-batches; some had fewer tasks."""
        if not self._losses:
            return torch.zeros(2, len(self.names), dtype=torch.float64)
        first = self._losses[0].device
        padded = [pad(x, (0, len(self.names) - x.shape[1])).to(first) for x in self._losses]
        return torch.stack(padded).sum(0)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the step, on whatever rank."""
        return tuple(self.names) if self.agreed is None else self.agreed.tasks

    @property
    def task_losses(self) -> Tensor:
        """Their losses without the loss scale, ``[K]``, on the CPU."""
        total = self.losses(len(self.names)) if self.agreed is None else self.agreed.losses
        return total / self.loss_scale

    def report(self, groups: tuple[str, ...]) -> StepReport:
        """Join the reports of the groups, in the order of the model."""
        names = [name for report in self.reports for name in report.groups]
        order = torch.tensor([names.index(name) for name in groups])
        join = lambda parts: torch.cat(parts).index_select(0, order.to(parts[0].device))
        first = self.reports[0].geometry
        gram = join([report.gram for report in self.reports])
        geometry = replace(first, gram=gram, groups=groups)
        diagnostics = {
            key: join([report.diagnostics[key] for report in self.reports])
            for key in self.reports[0].diagnostics
        }
        return StepReport(geometry, join([r.weights for r in self.reports]), diagnostics)


class Batch:
    """The batch whose forward pass is being watched.

    Attributes:
        trace: what watches it.
        rows: the tasks of its samples.
        only: position of its task if all samples belong to one; then nothing is watched.
        declared: whether a tensor that holds the samples has been seen.
        followed: whether the samples were followed to the losses without a gap.
        seen: shapes of the tensors given to the model, for errors.
    """

    def __init__(self, trace: Trace, rows: RowMap, only: int | None, batch_dim: int) -> None:
        self.trace, self.rows, self.only = trace, rows, only
        self.batch_dim = batch_dim
        self.declared = only is not None
        self.followed = False
        self.seen: list[list[int]] = []

    def declare(self, x: Tensor, batch_dim: int) -> None:
        """Tag an input, unless it is known already: the model may be called twice."""
        if x.shape[batch_dim] != len(self.rows):
            raise GradientError(
                f"an input is {list(x.shape)}; its dimension {batch_dim} should hold "
                f"{len(self.rows)} samples, one for each task given"
            )
        if self.trace.place(x) is None and x.grad_fn is None and not isinstance(x, nn.Parameter):
            self.trace.tag(x, Place(self.rows, batch_dim))
        self.declared = True

    def owners(
        self, loss: Tensor, rows: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, RowMap]:
        """Return the losses ``[N]`` and their owners."""
        if not self.declared and (self.trace.splits or rows is None):
            raise GradientError(
                f"no tensor with {len(self.rows)} samples was given to the model inside "
                f"`with engine.tasks(...)`, which has {len(self.rows)} task names: "
                + (f"tensors {self.seen} were; give" if self.seen else "it was not called; give")
                + " one name per sample, or name the batch by tasks(..., inputs=[...])"
            )
        known = self.trace.known(loss)
        place = known and known.place
        self.followed = known is not None and place is not None and known.why is None
        if self.only is not None and loss.requires_grad:
            loss = loss.reshape(-1) if mask is None else (loss * mask).reshape(-1)
            return loss, self.rows.taken(0, 1, 1).spread(len(loss), 1)
        if not loss.requires_grad or not loss.ndim:
            raise GradientError(
                f"the loss is {list(loss.shape)} with requires_grad={loss.requires_grad}; it must "
                "hold one value per sample or token, neither averaged nor summed over samples"
            )
        if rows is not None:
            if rows.shape != loss.shape or loss.ndim != 1:
                raise GradientError(
                    f"rows is {list(rows.shape)} and the loss {list(loss.shape)}; both must be [N]"
                )
            owners = self.rows.selected(rows)
            if place is not None and self.followed and not place.rows.same(owners):
                raise GradientError("rows contradicts the samples that the losses were made from")
        elif place is not None:
            owners = place.rows
            loss = loss.movedim(place.dim, 0)
            mask = None if mask is None else mask.movedim(place.dim, 0)
        elif len(loss) == len(self.rows) and not (self._ambiguous(loss) or (known and known.lost)):
            owners = self.rows
        else:
            raise GradientError(
                f"the loss is {list(loss.shape)} and the batch has {len(self.rows)} samples; say "
                "by `rows` which sample each loss belongs to"
            )
        if mask is not None:
            loss = loss * mask
        after = loss[0].numel() if loss.ndim > 1 else 1
        return loss.reshape(-1), owners.spread(1, after)

    def _ambiguous(self, loss: Tensor) -> bool:
        """Whether another dimension of losses that nobody followed may be that of the samples."""
        dim = self.batch_dim
        return 0 < dim < loss.ndim and loss.shape[dim] == len(self.rows)

    def carry_on(self, n_tasks: int) -> None:
        """Carry gradients of what was made of parameters alone on to these parameters."""
        chains = [chain for chain in self.trace.chains if chain.buffer is not None]
        sources = {id(slot): slot for chain in chains for slot in chain.sources}
        slots: list[Any] = list(sources.values())
        parameters = [slot.leaf for slot in slots]
        found: list[list[Tensor]] = [[] for _ in slots]
        for task in range(n_tasks if chains else 0):
            tensors = [chain.tensor for chain in chains]
            outputs = [c.buffer[task].to(c.tensor.dtype) for c in chains if c.buffer is not None]
            with self.trace.repeats():
                gradients = inner(torch.autograd.grad)(tensors, parameters, outputs, True)
            for stack, gradient in zip(found, gradients, strict=True):
                stack.append(gradient)
        for slot, stack in zip(slots, found, strict=True):
            slot.add(torch.stack(stack))
        for chain in chains:
            chain.buffer = None
